//! What `pal start` has a server read besides what a base backup brings. Pure.

use std::path::Path;

/// Who is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Only who reads its WAL.
    Closed,
    /// Who has a password, and who is on this machine and called like a role.
    Passwords,
    /// Everybody on this machine.
    Trust,
}

/// The map by which the user who runs `pal` is the superuser.
const MAP: &str = "palimpsest";

/// What is added to `postgresql.conf`. Later lines count.
pub(crate) fn settings(port: u16, sockets: &Path, is_read_only: bool) -> String {
    let sockets = quoted(&sockets.display().to_string());
    let mut text = format!(
        "
# For this branch, by `pal start`. The socket is for this server's owner alone.
port = {port}
listen_addresses = '127.0.0.1'
unix_socket_directories = {sockets}
unix_socket_permissions = 0700
logging_collector = off
"
    );
    if is_read_only {
        text.push_str("default_transaction_read_only = on\n");
    }
    text
}

/// All of `postgresql.conf` of a cluster that is there only to be attached: nobody else reaches it, and it is made again if it is
/// lost.
pub(crate) fn first_settings(port: u16, sockets: &Path) -> String {
    let sockets = quoted(&sockets.display().to_string());
    format!(
        "# By `pal init`.
port = {port}
listen_addresses = ''
unix_socket_directories = {sockets}
unix_socket_permissions = 0700
wal_level = replica
max_slot_wal_keep_size = 1GB
fsync = off
"
    )
}

/// `pg_hba.conf`. Whoever comes first in it counts.
pub(crate) fn access(access: Access, superuser: &str) -> String {
    let own = double_quoted(superuser);
    let mut lines = vec![
        "# Written by `pal start`. Roles and passwords are those of the source; md5 also stands for SCRAM where a".to_owned(),
        "# password is kept so.".to_owned(),
        format!("local  replication  {own}  peer map={MAP}"),
    ];
    let more: &[&str] = match access {
        Access::Closed => &["# Nobody else, until the WAL of this server is being read."],
        Access::Passwords => &[
            "local  all          all  peer",
            "host   all          all  127.0.0.1/32  md5",
            "host   all          all  ::1/128       md5",
        ],
        Access::Trust => &[
            "local  all          all  trust",
            "host   all          all  127.0.0.1/32  trust",
            "host   all          all  ::1/128       trust",
        ],
    };
    if access == Access::Passwords {
        lines.push(format!("local  all          {own}  peer map={MAP}"));
    }
    lines.extend(more.iter().map(|line| (*line).to_owned()));
    lines.push(String::new());
    lines.join("\n")
}

/// `pg_ident.conf`: these users of the system are the superuser.
pub(crate) fn user_maps(users: &[&str], superuser: &str) -> String {
    let own = double_quoted(superuser);
    let line = |user: &&str| format!("{MAP}  {}  {own}\n", double_quoted(user));
    users.iter().map(line).collect()
}

/// As `postgresql.conf` and connection strings have it.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// As `pg_hba.conf` has it.
fn double_quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_closed_lets_in_only_who_reads_its_wal() {
        let lines = |access: Access| {
            let text = super::access(access, "post\"gres");
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let closed = lines(Access::Closed);
        assert_eq!(
            closed,
            ["local  replication  \"post\"\"gres\"  peer map=palimpsest"]
        );
        for open in [Access::Passwords, Access::Trust] {
            assert_eq!(lines(open)[0], closed[0]);
            assert!(lines(open).len() > 3);
            let trusts = lines(open).iter().any(|line| line.ends_with("trust"));
            assert_eq!(trusts, open == Access::Trust);
        }
    }

    #[test]
    fn values_are_quoted() {
        let text = settings(5433, Path::new("/d'ata"), true);
        assert!(
            text.contains("unix_socket_directories = '/d\\'ata'\n"),
            "{text}"
        );
        assert!(text.contains("default_transaction_read_only = on"));
        assert_eq!(
            user_maps(&["root", "a b"], "p"),
            "palimpsest  \"root\"  \"p\"\npalimpsest  \"a b\"  \"p\"\n"
        );
    }
}
