//! The password file: lines of `host:port:database:user:password`, `*` for any, `\` escapes.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use super::{Endpoint, Host, Password};

/// What a replication connection matches in the database field.
const REPLICATION: &str = "replication";
/// A password file is short; what is longer is another file.
const MAX_FILE: u64 = 1 << 20;
/// Socket directories that builds of PostgreSQL take as default; they match `localhost`.
const DEFAULT_SOCKET_DIRS: [&str; 3] = ["/tmp", "/run/postgresql", "/var/run/postgresql"];

/// The password for `user` at `endpoint`, or `None`. Like libpq, a file that others could read is
/// passed over with a warning, and an absent file is no error.
pub(crate) fn lookup(path: &Path, endpoint: &Endpoint, user: &str) -> Option<Password> {
    match read(path) {
        Ok(Some(text)) => find(&text, endpoint, user),
        Ok(None) => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "password file not used");
            None
        }
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    // Looked at before it is opened: opening a FIFO would block.
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Err(refused("it is not a plain file")),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let file = File::open(path)?;
    check(&file.metadata()?)?;
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(Some(text))
}

fn check(metadata: &Metadata) -> io::Result<()> {
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(refused(
            "group or others have access to it; its mode must be 0600 or less",
        ));
    }
    if metadata.len() > MAX_FILE {
        return Err(refused("it is larger than 1 MiB"));
    }
    Ok(())
}

fn refused(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, reason)
}

pub(crate) fn find(text: &str, endpoint: &Endpoint, user: &str) -> Option<Password> {
    let host = match &endpoint.host {
        Host::Tcp { name, .. } => name.clone(),
        Host::Unix(directory)
            if DEFAULT_SOCKET_DIRS
                .iter()
                .any(|d| directory == Path::new(d)) =>
        {
            "localhost".to_owned()
        }
        Host::Unix(directory) => directory.display().to_string(),
    };
    let port = endpoint.port.to_string();
    let wanted = [host.as_str(), &port, REPLICATION, user];
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| matching(line, &wanted))
        .next()
        .map(Password)
}

/// The password of `line` if its first fields match `wanted`.
fn matching(line: &str, wanted: &[&str; 4]) -> Option<String> {
    let mut rest = line;
    for want in wanted {
        let (field, raw, after) = take_field(rest)?;
        if raw != "*" && field != *want {
            return None;
        }
        rest = after;
    }
    // Only the end of the line ends a password, so that a colon in one needs no escape.
    let password = unescape(rest);
    (!password.is_empty()).then_some(password)
}

/// The first field, unescaped and as written, and what follows its colon.
fn take_field(text: &str) -> Option<(String, &str, &str)> {
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ':' => {
                let raw = &text[..index];
                return Some((unescape(raw), raw, &text[index + 1..]));
            }
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' {
            chars.next().unwrap_or('\\')
        } else {
            c
        });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str, port: u16) -> Endpoint {
        let host = match host.starts_with('/') {
            true => Host::Unix(host.into()),
            false => Host::Tcp {
                name: host.to_owned(),
                addr: None,
            },
        };
        Endpoint { host, port }
    }

    #[test]
    fn the_first_matching_line_wins() {
        let text = "# db:5432:*:me:comment\nnonsense\ndb:5432:postgres:me:wrong\n\
                    db:5432:replication:me:co:l\\\\on\n*:*:*:*:any\n";
        let find = |host, user| find(text, &at(host, 5432), user).map(|p| p.0);
        assert_eq!(find("db", "me").unwrap(), "co:l\\on");
        assert_eq!(find("db", "you").unwrap(), "any");
    }

    #[test]
    fn sockets_and_escaped_colons_match() {
        let text = "localhost:1:*:me:default\n/sock:1:*:me:other\n\\:\\:1:1:*:me:six\n";
        let find = |host| find(text, &at(host, 1), "me").map(|p| p.0);
        assert_eq!(find("/var/run/postgresql").unwrap(), "default");
        assert_eq!(find("/sock").unwrap(), "other");
        assert_eq!(find("::1").unwrap(), "six");
        assert_eq!(find("elsewhere"), None);
    }

    #[test]
    fn a_file_that_others_can_read_is_passed_over() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "*:*:*:*:secret\n").unwrap();
        let lookup = |mode| {
            std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
            lookup(file.path(), &at("db", 5432), "me")
        };
        assert_eq!(lookup(0o600), Some(Password::new("secret")));
        assert_eq!(lookup(0o640), None);
        assert_eq!(
            super::lookup(Path::new("/dev/null"), &at("db", 1), "me"),
            None
        );
        assert_eq!(
            super::lookup(Path::new("/nonexistent"), &at("db", 1), "me"),
            None
        );
    }
}
