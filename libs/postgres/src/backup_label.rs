//! `backup_label`: the first file of a base backup, which says where replay begins.

use palimpsest_types::{ErrorKind, Lsn};

use crate::Tli;

/// What a `backup_label` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay begins.
    pub start: Lsn,
    /// The WAL file that holds this position.
    pub start_file: String,
    /// The checkpoint record that the backup began with.
    pub checkpoint: Lsn,
    /// How the backup was taken.
    pub method: BackupMethod,
    /// From what kind of server.
    pub source: BackupSource,
    /// When it began, as the server displays it.
    pub start_time: String,
    /// What its maker called it.
    pub label: String,
    /// The timeline on which it began.
    pub timeline: Tli,
}

/// How a backup was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupMethod {
    /// By `BASE_BACKUP` or `pg_backup_start`.
    Streamed,
    /// By `pg_rewind`.
    Rewound,
}

/// What kind of server a backup was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupSource {
    /// One that writes.
    Primary,
    /// One that replays.
    Standby,
}

/// The text is not a `backup_label` of PostgreSQL 15.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupLabelError {
    /// Far longer than any that PostgreSQL writes.
    #[error("the backup_label has {0} bytes; the limit is {MAX_SIZE}")]
    TooLong(usize),
    /// Not text.
    #[error("the backup_label is not UTF-8")]
    NotText,
    /// A line that must be there.
    #[error("the backup_label lacks the line {0:?}")]
    Missing(&'static str),
    /// A line with a value that cannot be.
    #[error("the line {0:?} of the backup_label is malformed")]
    Malformed(&'static str),
    /// A line of a later version, which may change how the backup is to be used.
    #[error("the backup_label has a line {0:?}, which PostgreSQL 15 does not write")]
    Unknown(String),
}

/// The label itself has at most 1 KiB, all the rest less.
const MAX_SIZE: usize = 16 * 1024;

const START: &str = "START WAL LOCATION";
const CHECKPOINT: &str = "CHECKPOINT LOCATION";
const METHOD: &str = "BACKUP METHOD";
const SOURCE: &str = "BACKUP FROM";
const TIME: &str = "START TIME";
const LABEL: &str = "LABEL";
const TIMELINE: &str = "START TIMELINE";
const KEYS: [&str; 7] = [START, CHECKPOINT, METHOD, SOURCE, TIME, LABEL, TIMELINE];

impl BackupLabel {
    /// Reads the content of a `backup_label`.
    ///
    /// # Errors
    /// If a line is missing, malformed, repeated or unknown.
    pub fn parse(bytes: &[u8]) -> Result<Self, BackupLabelError> {
        if bytes.len() > MAX_SIZE {
            return Err(BackupLabelError::TooLong(bytes.len()));
        }
        let text = str::from_utf8(bytes).map_err(|_| BackupLabelError::NotText)?;
        let lines = Lines::parse(text)?;
        let (start, start_file) = lines.value(START, start_location)?;
        Ok(Self {
            start,
            start_file,
            checkpoint: lines.value(CHECKPOINT, |text| text.parse().ok())?,
            method: lines.value(METHOD, method)?,
            source: lines.value(SOURCE, source)?,
            start_time: lines.value(TIME, |text| Some(text.to_owned()))?,
            label: lines.value(LABEL, |text| Some(text.to_owned()))?,
            timeline: lines.value(TIMELINE, |text| text.parse().ok().filter(|tli| *tli > 0))?,
        })
    }
}

impl BackupLabelError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown(_) => ErrorKind::Invalid,
            _ => ErrorKind::Corrupt,
        }
    }
}

/// Values by the index of their key.
struct Lines<'a>([Option<&'a str>; KEYS.len()]);

impl<'a> Lines<'a> {
    fn parse(text: &'a str) -> Result<Self, BackupLabelError> {
        let mut values = [None; KEYS.len()];
        for line in text.lines().filter(|line| !line.is_empty()) {
            let unknown = || BackupLabelError::Unknown(line.chars().take(80).collect());
            let (key, value) = line.split_once(": ").ok_or_else(unknown)?;
            let index = KEYS
                .iter()
                .position(|known| *known == key)
                .ok_or_else(unknown)?;
            if values[index].replace(value).is_some() {
                return Err(BackupLabelError::Malformed(KEYS[index]));
            }
        }
        Ok(Self(values))
    }

    fn value<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, BackupLabelError> {
        let index = KEYS.iter().position(|known| *known == key);
        let text = index
            .and_then(|index| self.0[index])
            .ok_or(BackupLabelError::Missing(key))?;
        parse(text).ok_or(BackupLabelError::Malformed(key))
    }
}

/// `0/2000028 (file 000000010000000000000002)`.
fn start_location(text: &str) -> Option<(Lsn, String)> {
    let (lsn, file) = text.split_once(" (file ")?;
    let file = file.strip_suffix(')')?;
    let valid = file.len() == 24 && file.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then_some((lsn.parse().ok()?, file.to_owned()))
}

fn method(text: &str) -> Option<BackupMethod> {
    match text {
        "streamed" => Some(BackupMethod::Streamed),
        "pg_rewind" => Some(BackupMethod::Rewound),
        _ => None,
    }
}

fn source(text: &str) -> Option<BackupSource> {
    match text {
        "primary" => Some(BackupSource::Primary),
        "standby" => Some(BackupSource::Standby),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2024-01-02 03:04:05 UTC\nLABEL: my: label\nSTART TIMELINE: 1\n";

    #[test]
    fn reads_what_the_server_writes() {
        let label = BackupLabel::parse(SAMPLE.as_bytes()).unwrap();
        assert_eq!(label.start, Lsn::new(0x200_0028));
        assert_eq!(label.start_file, "000000010000000000000002");
        assert_eq!(label.checkpoint, Lsn::new(0x200_0060));
        assert_eq!(
            (label.method, label.source),
            (BackupMethod::Streamed, BackupSource::Primary)
        );
        assert_eq!((label.label.as_str(), label.timeline), ("my: label", 1));
    }

    #[test]
    fn every_line_is_needed_once_and_no_other() {
        for line in SAMPLE.lines() {
            let without = SAMPLE.replace(&format!("{line}\n"), "");
            let error = BackupLabel::parse(without.as_bytes()).unwrap_err();
            assert!(
                matches!(error, BackupLabelError::Missing(_)),
                "{line}: {error}"
            );
            let twice = format!("{SAMPLE}{line}\n");
            let error = BackupLabel::parse(twice.as_bytes()).unwrap_err();
            assert!(
                matches!(error, BackupLabelError::Malformed(_)),
                "{line}: {error}"
            );
        }
        let later = format!("{SAMPLE}INCREMENTAL FROM LSN: 0/1\n");
        let error = BackupLabel::parse(later.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(BackupLabel::parse(&[b' '; MAX_SIZE + 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_label_or_an_error(bytes: Vec<u8>, at in 0..SAMPLE.len(), byte: u8) {
            let _ = BackupLabel::parse(&bytes);
            let mut damaged = SAMPLE.as_bytes().to_vec();
            damaged[at] = byte;
            let _ = BackupLabel::parse(&damaged);
        }
    }
}
