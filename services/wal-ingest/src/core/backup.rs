//! A base backup's files as layers.

use std::{collections::BTreeMap, ops::RangeInclusive, path::Path};

use bytes::{Bytes, BytesMut};
use palimpsest_layer::image::MAX_RELATION_MAP;
use palimpsest_manifest::LayerEntry;
use palimpsest_postgres::{ControlFile, ReplicationOrigins, TarDecoder, TarEvent};
use palimpsest_types::{BlockNumber, Fork, Key, Oid, PAGE_SIZE, RelTag, SlruKind};
use palimpsest_wal::{OriginProgress, RecordReader, segment_of};

use self::facts::{control_data_of, next_multixact_of, parameters_of};
use super::error::IngestError;

mod changes;
mod facts;
mod form;
mod reading;

pub(super) use changes::{Before, Changes, is_leftover};
pub(super) use form::{Base, Form, Shelf};
pub(super) use reading::{Backup, read};

/// Turns the files of a backup into layers.
pub(super) struct BackupLayers<F> {
    relation_segment_blocks: u32,
    form: F,
    sizes: BTreeMap<RelTag, BlockNumber>,
    /// The control file, and what it says.
    control: Option<(Bytes, ControlFile)>,
    /// Of the archive being read: its tablespace, `None` for the data directory itself.
    tablespace: Option<Oid>,
    tar: Option<TarDecoder>,
    file: OpenFile,
}

/// What the file being read is to us.
enum OpenFile {
    Ignored,
    Paged {
        area: Paged,
        next: BlockNumber,
        partial: BytesMut,
    },
    Whole {
        kind: WholeFile,
        content: BytesMut,
    },
}

/// What the pages of a file are pages of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paged {
    Relation(RelTag),
    Slru(SlruKind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WholeFile {
    ControlFile,
    RelationMap {
        spc: Oid,
        db: Oid,
    },
    /// Of a prepared transaction.
    TwoPhase(u32),
    /// How far replication origins are replayed.
    Origins,
}

/// A control file is a page.
const MAX_CONTROL_FILE: usize = PAGE_SIZE;
/// What is kept of a prepared transaction grows with its locks and dropped relations: some bytes for
/// each. The log's reader takes no larger record either.
const MAX_TWO_PHASE_FILE: usize = RecordReader::MAX_RECORD_LEN as usize;

/// Made when the backup begins.
const BACKUP_LABEL: &str = "backup_label";

const DEFAULT_TABLESPACE: Oid = 1663;
const GLOBAL_TABLESPACE: Oid = 1664;

impl<F: Form> BackupLayers<F> {
    /// Layers of this form, of a source whose relations have files of so many blocks.
    pub(super) fn new(form: F, relation_segment_blocks: u32) -> Self {
        Self {
            relation_segment_blocks,
            form,
            sizes: BTreeMap::new(),
            control: None,
            tablespace: None,
            tar: None,
            file: OpenFile::Ignored,
        }
    }

    /// Another archive begins; the one before must be complete.
    pub(super) fn begin_archive(&mut self, tablespace: Option<Oid>) -> Result<(), IngestError> {
        self.finish_archive()?;
        self.tablespace = tablespace;
        self.tar = Some(TarDecoder::new());
        Ok(())
    }

    fn finish_archive(&mut self) -> Result<(), IngestError> {
        Ok(self.tar.take().map_or(Ok(()), TarDecoder::finish)?)
    }

    /// Some bytes of the archive.
    pub(super) async fn data(&mut self, mut bytes: Bytes) -> Result<(), IngestError> {
        loop {
            let tar = self
                .tar
                .as_mut()
                .ok_or(IngestError::Backup("bytes of no archive"))?;
            let Some(event) = tar.decode(&mut bytes)? else {
                return Ok(());
            };
            match event {
                TarEvent::File { path, modified, .. } => {
                    if path == BACKUP_LABEL {
                        self.form.begun_at(modified);
                    }
                    self.file = self.open_file(&path);
                }
                TarEvent::Data(data) => self.file_data(&data).await?,
                TarEvent::FileEnd => self.end_file()?,
                TarEvent::Directory { .. } | TarEvent::Symlink { .. } => {}
            }
            self.form.store_full().await?;
        }
    }

    /// Ends the backup: the layers, and what its control file says.
    pub(super) async fn finish(mut self) -> Result<(Vec<LayerEntry>, ControlFile), IngestError> {
        self.finish_archive()?;
        for (rel, blocks) in std::mem::take(&mut self.sizes) {
            self.form.size(Key::RelSize(rel), blocks);
        }
        let missing = IngestError::Backup("it has no control file");
        let (file, control) = self.control.take().ok_or(missing)?;
        self.cluster(&file, &control);
        Ok((self.form.finish().await?, control))
    }

    /// What the control file says, in the forms in which the log goes on.
    fn cluster(&mut self, file: &[u8], control: &ControlFile) {
        let file = file.get(..ControlFile::LEN).unwrap_or(file);
        self.form.file(Key::ControlFile, file);
        let parameters = parameters_of(control).to_bytes();
        self.form.file(Key::Parameters, &parameters);
        let data = control_data_of(control).to_bytes();
        self.form.file(Key::ControlData, &data);
        let next = next_multixact_of(control).to_bytes();
        self.form.file(Key::NextMultiXact, &next);
    }

    fn open_file(&self, path: &str) -> OpenFile {
        let Some(file) = parse_path(path, self.tablespace) else {
            return OpenFile::Ignored;
        };
        match file {
            BackupFile::Paged { area, segment } => {
                let segment_pages = match area {
                    Paged::Relation(_) => self.relation_segment_blocks,
                    Paged::Slru(_) => SlruKind::PAGES_PER_SEGMENT,
                };
                OpenFile::Paged {
                    area,
                    next: BlockNumber::new(segment.saturating_mul(segment_pages)),
                    partial: BytesMut::with_capacity(PAGE_SIZE),
                }
            }
            BackupFile::Whole(kind) => OpenFile::Whole {
                kind,
                content: BytesMut::new(),
            },
        }
    }

    async fn file_data(&mut self, mut data: &[u8]) -> Result<(), IngestError> {
        match &mut self.file {
            OpenFile::Ignored => {}
            OpenFile::Whole { kind, content } => {
                if content.len() + data.len() > kind.max_len() {
                    return Err(IngestError::Backup(
                        "a control file, map file, prepared transaction or list of origins is too long",
                    ));
                }
                content.extend_from_slice(data);
            }
            OpenFile::Paged {
                area,
                next,
                partial,
            } => {
                while !data.is_empty() {
                    let (some, rest) = data.split_at(data.len().min(PAGE_SIZE - partial.len()));
                    partial.extend_from_slice(some);
                    data = rest;
                    if let Some(page) = partial.first_chunk() {
                        self.form.page(area.key(*next), page).await?;
                        let too_long = IngestError::Backup("a file of pages is too long");
                        *next = next.next().ok_or(too_long)?;
                        partial.clear();
                    }
                }
            }
        }
        Ok(())
    }

    /// A piece of a page at the end of a file of pages is not a page: it was being written when
    /// the file was read, and the log has the whole of it.
    fn end_file(&mut self) -> Result<(), IngestError> {
        match std::mem::replace(&mut self.file, OpenFile::Ignored) {
            OpenFile::Ignored => {}
            OpenFile::Paged {
                area: Paged::Slru(kind),
                next,
                ..
            } => self.end_slru_segment(kind, next),
            OpenFile::Paged {
                area: Paged::Relation(rel),
                next,
                ..
            } => {
                let size = self.sizes.entry(rel).or_default();
                *size = next.max(*size);
            }
            OpenFile::Whole {
                kind: WholeFile::ControlFile,
                content,
            } => {
                let content = content.freeze();
                let control = ControlFile::parse(&content)?;
                self.control = Some((content, control));
            }
            OpenFile::Whole {
                kind: WholeFile::Origins,
                content,
            } => {
                for (origin, up_to) in ReplicationOrigins::parse(&content.freeze())?.iter() {
                    let progress = OriginProgress(up_to).to_bytes();
                    self.form.file(Key::Origin(origin), &progress);
                }
            }
            OpenFile::Whole {
                kind: WholeFile::RelationMap { spc, db },
                content,
            } => {
                self.form.file(Key::RelMap { spc, db }, &content);
            }
            OpenFile::Whole {
                kind: WholeFile::TwoPhase(xid),
                content,
            } => {
                // It ends with its checksum, as what we make of the log does.
                self.form.file(Key::TwoPhase(xid), &content);
            }
        }
        Ok(())
    }

    /// A file's pages go up to `next`; of an empty one nothing has been written.
    fn end_slru_segment(&mut self, kind: SlruKind, next: BlockNumber) {
        let Some(last) = next.get().checked_sub(1) else {
            return;
        };
        let pages = last % SlruKind::PAGES_PER_SEGMENT + 1;
        let key = Key::SlruSegment(kind, segment_of(last));
        self.form.size(key, BlockNumber::new(pages));
    }
}

#[derive(Debug, PartialEq, Eq)]
enum BackupFile {
    Paged { area: Paged, segment: u32 },
    Whole(WholeFile),
}

impl WholeFile {
    const fn max_len(self) -> usize {
        match self {
            Self::ControlFile => MAX_CONTROL_FILE,
            Self::RelationMap { .. } => MAX_RELATION_MAP,
            Self::TwoPhase(_) => MAX_TWO_PHASE_FILE,
            Self::Origins => ReplicationOrigins::MAX_LEN,
        }
    }
}

impl Paged {
    const fn key(self, page: BlockNumber) -> Key {
        match self {
            Self::Relation(rel) => Key::RelBlock(rel, page),
            Self::Slru(kind) => Key::SlruBlock(kind, page.get()),
        }
    }
}

/// What a path of an archive is to us; `None` for what is not kept.
fn parse_path(path: &str, tablespace: Option<Oid>) -> Option<BackupFile> {
    let path = Path::new(path);
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let (spc, db, name) = match (tablespace, parts.as_slice()) {
        (None, ["global", "pg_control"]) => {
            return Some(BackupFile::Whole(WholeFile::ControlFile));
        }
        (None, ["pg_xact", name]) => return slru_file(SlruKind::Clog, name),
        (None, ["pg_multixact", "offsets", name]) => {
            return slru_file(SlruKind::MultiXactOffsets, name);
        }
        (None, ["pg_multixact", "members", name]) => {
            return slru_file(SlruKind::MultiXactMembers, name);
        }
        (None, ["pg_commit_ts", name]) => return slru_file(SlruKind::CommitTs, name),
        (None, ["pg_twophase", name]) => {
            return Some(BackupFile::Whole(WholeFile::TwoPhase(hex(name, 8..=8)?)));
        }
        (None, ["pg_logical", "replorigin_checkpoint"]) => {
            return Some(BackupFile::Whole(WholeFile::Origins));
        }
        (None, ["global", name]) => (GLOBAL_TABLESPACE, 0, *name),
        (None, ["base", db, name]) => (DEFAULT_TABLESPACE, db.parse().ok()?, *name),
        // A tablespace in place, which has no archive of its own.
        (None, ["pg_tblspc", spc, _version, db, name]) => {
            (spc.parse().ok()?, db.parse().ok()?, *name)
        }
        (Some(spc), [_version, db, name]) => (spc, db.parse().ok()?, *name),
        _ => return None,
    };
    if name == "pg_filenode.map" {
        return Some(BackupFile::Whole(WholeFile::RelationMap { spc, db }));
    }
    let (stem, segment) = match name.split_once('.') {
        Some((stem, segment)) => (stem, segment.parse().ok()?),
        None => (name, 0),
    };
    let (rel, fork) = match stem.split_once('_') {
        Some((rel, fork)) => (rel, Fork::from_name(fork)?),
        None => (stem, Fork::Main),
    };
    let rel = RelTag {
        spc,
        db,
        rel: rel.parse().ok()?,
        fork,
    };
    let area = Paged::Relation(rel);
    Some(BackupFile::Paged { area, segment })
}

/// Segments of SLRU areas are called by their number, in four or more hexadecimal digits.
fn slru_file(kind: SlruKind, name: &str) -> Option<BackupFile> {
    let segment = hex(name, 4..=6)?;
    let area = Paged::Slru(kind);
    Some(BackupFile::Paged { area, segment })
}

/// A number of so many hexadecimal digits.
fn hex(name: &str, digits: RangeInclusive<usize>) -> Option<u32> {
    let is_number = digits.contains(&name.len()) && name.bytes().all(|it| it.is_ascii_hexdigit());
    u32::from_str_radix(name, 16).ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(path: &str, tablespace: Option<Oid>) -> Option<(String, u32)> {
        match parse_path(path, tablespace)? {
            BackupFile::Paged {
                area: Paged::Relation(rel),
                segment,
            } => Some((rel.to_string(), segment)),
            BackupFile::Paged { .. } | BackupFile::Whole(_) => None,
        }
    }

    #[test]
    fn finds_relations_in_every_place_they_can_be() {
        let found = |path, tablespace| relation(path, tablespace).unwrap();
        assert_eq!(found("global/1262", None), ("1664/0/1262".into(), 0));
        assert_eq!(found("base/5/16384.2", None), ("1663/5/16384".into(), 2));
        assert_eq!(
            found("base/5/16384_vm", None),
            ("1663/5/16384:vm".into(), 0)
        );
        assert_eq!(
            found("PG_15_202209061/5/7_init", Some(99)),
            ("99/5/7:init".into(), 0)
        );
        assert_eq!(
            found("pg_tblspc/99/PG_15_202209061/5/7", None),
            ("99/5/7".into(), 0)
        );
    }

    #[test]
    fn finds_pages_outside_relations() {
        let file = BackupFile::Paged {
            area: Paged::Slru(SlruKind::Clog),
            segment: 0x1F,
        };
        assert_eq!(parse_path("pg_xact/001F", None), Some(file));
        assert_eq!(parse_path("pg_xact/001F", Some(99)), None);
        for (path, kind) in [
            ("pg_multixact/offsets/0000", SlruKind::MultiXactOffsets),
            ("pg_multixact/members/0000", SlruKind::MultiXactMembers),
            ("pg_commit_ts/0000", SlruKind::CommitTs),
        ] {
            let area = Paged::Slru(kind);
            let file = BackupFile::Paged { area, segment: 0 };
            assert_eq!(parse_path(path, None), Some(file), "{path}");
        }
        let page = Paged::Slru(SlruKind::Clog).key(BlockNumber::new(33));
        assert_eq!(page, Key::SlruBlock(SlruKind::Clog, 33));
    }

    #[test]
    fn knows_the_files_it_keeps_whole_and_ignores_the_rest() {
        let control = BackupFile::Whole(WholeFile::ControlFile);
        assert_eq!(parse_path("global/pg_control", None), Some(control));
        let map = BackupFile::Whole(WholeFile::RelationMap { spc: 1663, db: 5 });
        assert_eq!(parse_path("base/5/pg_filenode.map", None), Some(map));
        let origins = BackupFile::Whole(WholeFile::Origins);
        assert_eq!(
            parse_path("pg_logical/replorigin_checkpoint", None),
            Some(origins)
        );
        let prepared = BackupFile::Whole(WholeFile::TwoPhase(0x2BC));
        assert_eq!(parse_path("pg_twophase/000002BC", None), Some(prepared));
        for path in [
            "PG_VERSION",
            "base/5/PG_VERSION",
            "pg_xact/000",
            "pg_xact/+000",
            "pg_multixact/0000",
            "pg_twophase/2BC",
            "base/5/t3_16384",
            "",
        ] {
            assert_eq!(parse_path(path, None), None, "{path}");
        }
    }
}
