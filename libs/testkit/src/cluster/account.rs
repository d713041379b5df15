//! The user that PostgreSQL runs as.

use std::{
    os::unix::{fs::chown, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use super::process;

/// The caller, or `postgres` when the caller is root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Account {
    Caller,
    Other { uid: u32, gid: u32 },
}

impl Account {
    /// Who the server must run as.
    pub(super) fn for_server() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Caller);
        }
        Ok(Self::Other {
            uid: id_of_postgres("-u")?,
            gid: id_of_postgres("-g")?,
        })
    }

    /// Makes `command` run as this user.
    pub(super) fn apply(self, command: &mut Command) {
        if let Self::Other { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
    }

    /// Gives one file or directory to this user.
    pub(super) fn own(self, path: &Path) -> Result<()> {
        let Self::Other { uid, gid } = self else {
            return Ok(());
        };
        chown(path, Some(uid), Some(gid))
            .with_context(|| format!("giving {} to the server's user", path.display()))
    }

    /// Whether this user can enter `dir` and create files in it. Asked by trying, so that access
    /// lists and mount options count too.
    pub(super) fn can_use(self, dir: &Path) -> bool {
        let mut probe = Command::new("/bin/sh");
        probe
            .args(["-c", r#"cd "$1" && test -w ."#, "sh"])
            .arg(dir)
            .current_dir("/");
        probe
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.apply(&mut probe);
        probe.status().is_ok_and(|status| status.success())
    }
}

fn id_of_postgres(which: &str) -> Result<u32> {
    let text = process::output(Command::new("id").args([which, "postgres"]))
        .context("run as root, PostgreSQL needs the user postgres; install it by `make deps`")?;
    text.trim()
        .parse()
        .with_context(|| format!("{text:?} is not a user or group number"))
}
