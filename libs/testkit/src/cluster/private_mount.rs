//! A directory that only the server sees in the place of another.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{account::Account, process};

/// Shows the server a directory of its own at a path that belongs to somebody else.
///
/// A server that was recovered from another's files and log uses the absolute paths of the other's
/// tablespaces: those are in links of the one and in records of the other. With this it finds its
/// own files there, and cannot touch the other's. It takes root, and a kernel that lets root mount.
#[derive(Debug, Clone)]
pub struct PrivateMount {
    /// The server's own directory.
    pub own: PathBuf,
    /// Where the server finds it; nobody else does.
    pub at: PathBuf,
}

/// Mounts the first argument over the second, and becomes the rest of them.
const MOUNT_AND_BECOME: &str =
    r#"mount --bind -- "$1" "$2" || exit 1; cd /; shift 2; exec setpriv --clear-groups "$@""#;

impl PrivateMount {
    /// Why this machine cannot do it; `None` if it can. Found out by doing it.
    pub fn obstacle() -> Option<String> {
        let Ok(Account::Other { uid, gid }) = Account::for_server() else {
            return Some("only root may mount".to_owned());
        };
        let nowhere = Self {
            own: "/proc".into(),
            at: "/mnt".into(),
        };
        let mut attempt = nowhere.command(Path::new("/bin/true"), uid, gid);
        let error = process::output(&mut attempt).err()?;
        Some(format!("nothing can be mounted: {error:#}"))
    }

    /// A command that runs `program` as this user where the mount is seen. The process is the one
    /// that is started: no other stands between, so signals reach it.
    pub(super) fn command(&self, program: &Path, uid: u32, gid: u32) -> Command {
        let mut command = process::isolated(Path::new("unshare"));
        command
            .args(["--mount", "--propagation", "private", "--", "/bin/sh", "-c"])
            .args([MOUNT_AND_BECOME, "sh"])
            .args([&self.own, &self.at])
            .arg(format!("--reuid={uid}"))
            .arg(format!("--regid={gid}"))
            .arg("--")
            .arg(program);
        command
    }
}
