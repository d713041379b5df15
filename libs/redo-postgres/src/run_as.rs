//! Whom the process runs as.

use std::{fs, io};

/// A user that is not root; `postgres` refuses to run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The user whom Debian's packages make for PostgreSQL.
const USER: &str = "postgres";

impl RunAs {
    /// The user `postgres` when the caller is root, and otherwise nobody else than the caller.
    ///
    /// # Errors
    /// If the caller is root and there is no such user in `/etc/passwd`.
    pub fn unprivileged() -> io::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd")?;
        let found = users
            .lines()
            .find_map(|line| Self::from_passwd_line(line, USER));
        found.map(Some).ok_or_else(|| {
            let why = format!("root needs a user {USER:?} to run redo processes as; there is none");
            io::Error::new(io::ErrorKind::NotFound, why)
        })
    }

    /// `name:password:uid:gid:…`
    fn from_passwd_line(line: &str, user: &str) -> Option<Self> {
        let mut fields = line.split(':');
        if fields.next()? != user {
            return None;
        }
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Self { uid, gid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_of_the_user_database() {
        let line = "postgres:x:101:104:PostgreSQL:/var/lib/postgresql:/bin/bash";
        let expected = RunAs { uid: 101, gid: 104 };
        assert_eq!(RunAs::from_passwd_line(line, "postgres"), Some(expected));
        assert_eq!(RunAs::from_passwd_line(line, "postgre"), None);
    }
}
