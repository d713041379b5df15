use std::fmt;

use fallible_iterator::FallibleIterator;
use palimpsest_types::ErrorKind;
use postgres_protocol::message::backend::ErrorFields;

/// What a PostgreSQL server said in an `ErrorResponse` or `NoticeResponse`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ServerError {
    severity: String,
    code: String,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

/// Longest text kept of one field: enough for every message of the server, not for a flood.
const MAX_FIELD: usize = 8 * 1024;

impl ServerError {
    /// Reads the fields. A damaged field list yields what was readable: an error about an error
    /// would hide the one that matters.
    pub(crate) fn from_fields(fields: ErrorFields<'_>) -> Self {
        let mut error = Self {
            severity: "ERROR".to_owned(),
            code: "XX000".to_owned(),
            message: "the server sent an error without a message".to_owned(),
            detail: None,
            hint: None,
        };
        for field in fields.iterator().map_while(Result::ok) {
            let bytes = field.value_bytes();
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_FIELD)]).into_owned();
            match field.type_() {
                // `V` is `S` untranslated and follows it, so it wins.
                b'S' | b'V' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                _ => {}
            }
        }
        error
    }

    /// `ERROR`, `FATAL`, `PANIC`, or for a notice `WARNING`, `NOTICE` and so on.
    pub fn severity(&self) -> &str {
        &self.severity
    }

    /// The SQLSTATE, five characters.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The primary message, in the server's language.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// More about what happened.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// What the server suggests to do.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// What the caller should do, judged by the SQLSTATE.
    pub fn kind(&self) -> ErrorKind {
        match self.code.as_str() {
            // Undefined object, and a file that is gone: above all a recycled WAL segment.
            "42704" | "58P01" => ErrorKind::NotFound,
            "42710" => ErrorKind::AlreadyExists,
            // Object in use, wrong state, and a configured limit such as the number of slots.
            "55006" | "55000" | "53400" => ErrorKind::Conflict,
            // Role without a rule in pg_hba.conf, wrong password, privilege, missing feature.
            "28000" | "28P01" | "42501" | "0A000" => ErrorKind::Invalid,
            // Shutdown, crash of another backend, starting up.
            "57P01" | "57P02" | "57P03" => ErrorKind::NotReady,
            // Damaged data, damaged index.
            "XX001" | "XX002" => ErrorKind::Corrupt,
            code if code.starts_with("08") => ErrorKind::NotReady,
            code if code.starts_with("22") => ErrorKind::Invalid,
            code if code.starts_with("53") => ErrorKind::Throttled,
            _ => ErrorKind::Internal,
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} (SQLSTATE {})",
            self.severity, self.message, self.code
        )?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use postgres_protocol::message::backend::Message;

    use super::*;

    fn parse(body: &[u8]) -> ServerError {
        let mut message = BytesMut::from(&b"E"[..]);
        message.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        message.extend_from_slice(body);
        match Message::parse(&mut message).unwrap().unwrap() {
            Message::ErrorResponse(body) => ServerError::from_fields(body.fields()),
            _ => unreachable!("the tag says error"),
        }
    }

    #[test]
    fn says_code_detail_and_hint() {
        let error = parse(b"SFEHLER\0VERROR\0C42704\0Mno slot\0Dgone\0Hmake one\0\0");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(
            error.to_string(),
            "ERROR: no slot (SQLSTATE 42704); gone; hint: make one"
        );
    }

    #[test]
    fn damaged_fields_keep_what_was_readable() {
        let error = parse(b"C57P03\0Mhalf");
        assert_eq!((error.code(), error.kind()), ("57P03", ErrorKind::NotReady));
        assert_eq!(parse(b"M\xff\xfe\0\0").message(), "\u{fffd}\u{fffd}");
    }
}
