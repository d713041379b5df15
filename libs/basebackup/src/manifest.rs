//! `backup_manifest`: every file with its length and CRC-32C, and what of the log is needed, for `pg_verifybackup`
//! (`backup_manifest.c`).

use jiff::Timestamp;
use ring::digest::{Context, SHA256};

use crate::contents::{Contents, Entry};

/// The manifest of a directory. It is made line by line, twice: for its length and for itself.
#[derive(Debug)]
pub(crate) struct Manifest<'a> {
    contents: &'a Contents,
    /// Of all entries, in their order.
    checksums: &'a [u32],
    time: String,
}

/// The checksum of all lines before, as a line.
const CHECKSUM_LINE: usize = "\"Manifest-Checksum\": \"\"}\n".len() + 64;

impl<'a> Manifest<'a> {
    pub(crate) fn new(contents: &'a Contents, checksums: &'a [u32]) -> Self {
        let time = Timestamp::from_second(contents.start.time).unwrap_or_default();
        Self {
            contents,
            checksums,
            time: time.strftime("%Y-%m-%d %H:%M:%S GMT").to_string(),
        }
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        let lines = self.lines().map(|line| line.len() as u64);
        lines.sum::<u64>() + CHECKSUM_LINE as u64
    }

    /// All of it, line by line.
    pub(crate) fn all(&self) -> impl Iterator<Item = String> + Send + '_ {
        let mut digest = Some(Context::new(&SHA256));
        let mut lines = self.lines();
        std::iter::from_fn(move || match lines.next() {
            Some(line) => {
                digest.as_mut()?.update(line.as_bytes());
                Some(line)
            }
            None => {
                let digest = hex::encode(digest.take()?.finish());
                Some(format!("\"Manifest-Checksum\": \"{digest}\"}}\n"))
            }
        })
    }

    fn lines(&self) -> impl Iterator<Item = String> + Send + '_ {
        let start = &self.contents.start;
        let head = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [";
        let files = self.contents.entries().zip(self.checksums);
        let mut separator = "\n";
        let files = files
            .filter(|(file, _)| is_listed(file))
            .map(move |(file, checksum)| {
                let before = std::mem::replace(&mut separator, ",\n");
                format!("{before}{}", self.file(&file, *checksum))
            });
        let log = format!(
            "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}\n],\n",
            start.identity.timeline,
            start.checkpoint,
            start.log.end(),
        );
        std::iter::once(head.to_owned()).chain(files).chain([log])
    }

    fn file(&self, file: &Entry, checksum: u32) -> String {
        // Paths are made here, of letters that need no quoting.
        format!(
            "{{ \"Path\": \"{}\", \"Size\": {}, \"Last-Modified\": \"{}\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
            file.path,
            file.len,
            self.time,
            hex::encode(checksum.to_le_bytes()),
        )
    }
}

/// The log is not: it is told as a range.
fn is_listed(file: &Entry) -> bool {
    !file.path.starts_with("pg_wal/")
}
