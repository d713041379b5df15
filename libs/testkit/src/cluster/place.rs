//! Where a cluster's files are.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::account::Account;

/// For directories that the server's user cannot reach; outlives a reboot, unlike `/tmp`.
const ELSEWHERE: &str = "/var/tmp";

/// A directory with `data` and `server.log` in it.
#[derive(Debug)]
pub(super) struct Place {
    root: PathBuf,
    data: PathBuf,
    moved: bool,
}

impl Place {
    /// Prepares an empty place in `dir`, or elsewhere if `account` cannot use `dir`.
    pub(super) fn create(dir: &Path, account: &Account) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let empty = fs::read_dir(dir)?.next().is_none();
        ensure!(
            empty,
            "{} is not empty; a new cluster needs a directory of its own",
            dir.display()
        );
        let dir = dir.canonicalize()?;
        account.own(&dir)?;
        if account.can_use(&dir) {
            return Ok(Self::in_root(dir, false));
        }
        let root = tempfile::Builder::new()
            .prefix("palimpsest-")
            .tempdir_in(ELSEWHERE)?
            .keep();
        account.own(&root)?;
        symlink(root.join("data"), dir.join("data"))?;
        Ok(Self::in_root(root, true))
    }

    /// Finds what [`Place::create`] prepared in `dir`.
    pub(super) fn existing(dir: &Path, account: &Account) -> Result<Self> {
        let link = dir.join("data");
        let data = link
            .canonicalize()
            .with_context(|| format!("{} holds no cluster; make one first", link.display()))?;
        ensure!(
            data.join("PG_VERSION").is_file(),
            "{} is not a PostgreSQL data directory",
            data.display()
        );
        ensure!(
            !data.join("postmaster.pid").exists() || !pid_is_alive(&data),
            "a server is running in {}",
            data.display()
        );
        let root = data.parent().unwrap_or(Path::new("/")).to_owned();
        let moved = root != dir.canonicalize()?;
        account.own(&root)?;
        ensure!(
            account.can_use(&data),
            "the server's user cannot use {}",
            data.display()
        );
        Ok(Self { root, data, moved })
    }

    fn in_root(root: PathBuf, moved: bool) -> Self {
        Self {
            data: root.join("data"),
            root,
            moved,
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    pub(super) fn moved_to(&self) -> Option<&Path> {
        self.moved.then_some(self.root.as_path())
    }
}

/// Whether the process named by the lock file exists. PostgreSQL removes a stale file itself.
fn pid_is_alive(data: &Path) -> bool {
    fs::read_to_string(data.join("postmaster.pid"))
        .ok()
        .and_then(|text| text.lines().next()?.trim().parse::<u32>().ok())
        .is_some_and(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "postgres"
        })
}
