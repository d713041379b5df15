//! Quoting for the replication command grammar, which is not SQL: a backslash is a plain character.

use crate::ClientError;

/// `text` as a string literal.
pub(crate) fn literal(argument: &'static str, text: &str) -> Result<String, ClientError> {
    if text.chars().any(char::is_control) {
        let reason = "it contains a control character";
        return Err(ClientError::Argument {
            argument,
            value: text.to_owned(),
            reason,
        });
    }
    Ok(format!("'{}'", text.replace('\'', "''")))
}

/// `name`, perhaps with a prefix and a dot, as the name of a setting.
pub(crate) fn setting(name: &str) -> Result<String, ClientError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let parts: Vec<&str> = name.split('.').collect();
    if parts.len() > 2
        || parts
            .iter()
            .any(|part| part.is_empty() || !part.bytes().all(allowed))
    {
        let reason = "a setting is letters, digits and underscores, with at most one dot";
        return Err(ClientError::Argument {
            argument: "setting",
            value: name.to_owned(),
            reason,
        });
    }
    Ok(format!("\"{}\"", parts.join("\".\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_escapes_its_quotes() {
        assert_eq!(literal("label", r"it's \ fine").unwrap(), r"'it''s \ fine'");
        assert!(literal("label", "two\nlines").is_err());
        assert!(literal("label", "nul\0").is_err());
        assert_eq!(setting("wal_level").unwrap(), "\"wal_level\"");
        assert_eq!(setting("my.setting").unwrap(), "\"my\".\"setting\"");
        for name in ["", "a.b.c", "a;b", "a\"", "a."] {
            assert!(setting(name).is_err(), "{name}");
        }
    }
}
