use std::ops::Range;

use palimpsest_codec::TruncatedError;
use palimpsest_types::{BlockNumber, ByteCount, InvalidForkError, Key, Lsn, Oid, RelTag};

use crate::{
    change::{Change, Value},
    image::ImageError,
    record::{BlockRef, DecodeError, DecodedRecord, RawRecord},
    relation_sizes::RelationSizes,
    rmgr::ResourceManager,
    slru::{NotAnSlruChangeError, SlruSegments},
    v15,
};

mod changes;
mod cluster;
mod databases;
mod files;
mod gaps;
mod maps;
mod slru;
mod torn;

use changes::Changes;
use cluster::ClusterState;
use databases::MAX_FORKS;
use gaps::GapAllowance;
pub use maps::truncate_visibility_map_page;
use torn::TornForks;

/// Says what each record of a timeline changes.
///
/// Records come in log order, each once. The state is the size of every relation fork, from which
/// it knows that a record extends one: pages between the old end and the new page come into being
/// as zeros, as redo makes them (`XLogReadBufferExtended`). The same goes for the segments of SLRU
/// areas; and of settings, it knows those on which the meaning of records depends. Of the cluster as
/// a whole it knows what a record may say less of than is so.
#[derive(Debug, Clone)]
pub struct Interpreter {
    sizes: RelationSizes,
    segments: SlruSegments,
    torn: TornForks,
    cluster: ClusterState,
    gaps: GapAllowance,
    base: BaseFacts,
}

/// What is known of the base that the records come after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseFacts {
    /// End of the base backup: from here on its pages are consistent with each other. Until then
    /// records may name pages that it does not have. [`Lsn::ZERO`] for files of a stopped server.
    pub consistent_from: Lsn,
    /// Whether the source had `wal_log_hints` on, and so whether redo does as if. `None` if that
    /// is not known, or without effect because pages have checksums.
    pub wal_log_hints: Option<bool>,
    /// Whether transactions that commit are noted in `pg_commit_ts`, until the log says otherwise.
    pub track_commit_timestamp: bool,
}

/// A record can't be turned into changes. The timeline must stop here: what follows would be wrong.
#[derive(Debug, thiserror::Error)]
#[error("the WAL record at {at} ({rmgr}) can't be applied")]
pub struct InterpretError {
    /// Start of the record.
    pub at: Lsn,
    /// Its resource manager, by name or number.
    pub rmgr: String,
    /// Why.
    #[source]
    pub reason: Reason,
}

/// Why a record can't be turned into changes.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// Its frame is damaged.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Its main data is damaged.
    #[error(transparent)]
    Truncated(#[from] TruncatedError),
    /// It names a fork that does not exist.
    #[error(transparent)]
    Fork(#[from] InvalidForkError),
    /// An image in it is damaged.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A page outside relations can't be begun with such a change.
    #[error(transparent)]
    Slru(#[from] NotAnSlruChangeError),
    /// An extension wrote it, and may change anything.
    #[error(
        "no built-in resource manager has number {0}; extensions that log their own are not supported"
    )]
    UnknownResourceManager(u8),
    /// The resource manager has no such record.
    #[error("unknown record type {0:02X}")]
    UnknownRecord(u8),
    /// The source stopped writing what redo needs.
    #[error("wal_level fell below replica; set it to replica or logical and attach again")]
    WalLevel,
    /// Redo depends on a setting that is not what it was.
    #[error(
        "wal_log_hints was turned {}, which pages made so far do not show; delete the tenant and attach again",
        if *on { "on" } else { "off" }
    )]
    WalLogHints {
        /// What it is from here on.
        on: bool,
    },
    /// A database's new relation map is not what PostgreSQL writes.
    #[error("the new relation map of database {db} in tablespace {spc} is damaged: {why}")]
    RelationMap {
        /// Its tablespace.
        spc: Oid,
        /// The database.
        db: Oid,
        /// What is wrong.
        why: &'static str,
    },
    /// A database is dropped from more tablespaces than one record may say.
    #[error("a database is dropped from {count} tablespaces at once, more than {limit}")]
    TooManyTablespaces {
        /// In the record.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// A relation grows by more than a record can make it, or several within little WAL.
    #[error("{rel} would grow from {from} blocks to block {to} at once; attach again")]
    Gap {
        /// The relation fork.
        rel: RelTag,
        /// Its size before.
        from: BlockNumber,
        /// The block that the record names.
        to: BlockNumber,
    },
    /// A page is to be changed that does not exist.
    #[error("{rel} has no block {block}; the WAL does not fit the pages before it, attach again")]
    MissingPage {
        /// The relation fork.
        rel: RelTag,
        /// The block.
        block: BlockNumber,
    },
    /// There are more relation forks than are kept track of.
    #[error("there are more than {0} relation forks; drop some at the source and attach again")]
    TooManyForks(usize),
    /// A record is about more pages outside relations that do not exist than one can be.
    #[error("more than {0} pages outside relations would begin at once; attach again")]
    TooManySlruPages(u32),
    /// Redo of a page could depend on the order of two references to it.
    #[error("{rel} block {block} is named twice")]
    NamedTwice {
        /// The relation fork.
        rel: RelTag,
        /// The block.
        block: BlockNumber,
    },
}

const WAL_LEVEL_REPLICA: u32 = 1;

impl Interpreter {
    /// Keys of the cluster as a whole, each with one newest version to be noted or none. There is one
    /// more for each replication origin: [`Interpreter::origins`].
    pub const CLUSTER_KEYS: [Key; 3] = [Key::ControlData, Key::NextMultiXact, Key::CommitTime];

    /// Keys of replication origins. The last number is that of none.
    pub const fn origins() -> Range<Key> {
        Key::Origin(0)..Key::Origin(u16::MAX)
    }

    /// An interpreter for the records after the point at which the relations had these sizes.
    pub fn new(sizes: RelationSizes, base: BaseFacts) -> Self {
        Self {
            sizes,
            segments: SlruSegments::default(),
            torn: TornForks::default(),
            cluster: ClusterState::default(),
            gaps: GapAllowance::default(),
            base,
        }
    }

    /// The same, where these segments of SLRU areas existed at that point.
    pub fn with_slru_segments(self, segments: SlruSegments) -> Self {
        Self { segments, ..self }
    }

    /// Goes on from a later point, at which a key has this version. Once that is said of every key
    /// that has changed until there, it is as if the records had come; but for what changes a whole
    /// database, which is more than its own key.
    ///
    /// # Errors
    /// If a file is cut short.
    pub fn note(&mut self, key: Key, value: &Value) -> Result<(), TruncatedError> {
        match (key, value) {
            (Key::RelSize(rel), Value::RelSize(blocks)) => self.sizes.set(rel, *blocks),
            (Key::RelSize(rel), Value::Dropped) => drop(self.sizes.remove(rel)),
            (Key::SlruSegment(kind, segment), Value::RelSize(pages)) => {
                self.segments.set(kind, segment, pages.get());
            }
            (Key::SlruSegment(kind, segment), Value::Dropped) => {
                self.segments.set(kind, segment, 0);
            }
            (Key::Parameters, Value::File(content)) => {
                let settings = v15::Parameters::decode(content)?;
                self.base.track_commit_timestamp = settings.track_commit_timestamp;
            }
            _ => self.cluster.note(key, value)?,
        }
        Ok(())
    }

    /// Sizes of all relation forks after the last record.
    pub fn sizes(&self) -> &RelationSizes {
        &self.sizes
    }

    /// Memory that it takes, about: it grows with the number of relation forks, of which there are
    /// [at most 16 million](Reason::TooManyForks).
    pub fn size(&self) -> ByteCount {
        self.sizes.size()
    }

    /// The changes that `record` makes, each key at most once.
    ///
    /// # Errors
    /// If the record is damaged or changes what can't be represented.
    pub fn interpret(&mut self, record: &RawRecord) -> Result<Vec<Change>, InterpretError> {
        self.changes(record).map_err(|reason| {
            let number = record.header().map(|header| header.rmid);
            let rmgr = match number.and_then(ResourceManager::from_number) {
                Some(rmgr) => rmgr.name().to_owned(),
                None => format!("resource manager {}", number.unwrap_or_default()),
            };
            InterpretError {
                at: record.start_lsn,
                rmgr,
                reason,
            }
        })
    }

    fn changes(&mut self, raw: &RawRecord) -> Result<Vec<Change>, Reason> {
        let record = raw.decode()?;
        let rmid = record.header.rmid;
        let rmgr =
            ResourceManager::from_number(rmid).ok_or(Reason::UnknownResourceManager(rmid))?;
        if !v15::is_known(rmgr, &record.header) {
            return Err(Reason::UnknownRecord(record.header.rmgr_info()));
        }
        let consistent = raw.end_lsn > self.base.consistent_from;
        if consistent {
            self.torn.expect_none()?;
        }
        self.gaps.refill(raw.end_lsn);
        let sizes = (&mut self.sizes, &mut self.segments);
        let gaps = (&mut self.torn, &mut self.gaps);
        let mut changes = Changes::new(sizes, gaps, &mut self.cluster, consistent);
        changes.cluster.note_xid(record.header.xid);
        match rmgr {
            ResourceManager::Xlog => {
                if let Some(event) = v15::log_event(&record, raw.start_lsn)? {
                    if let v15::LogEvent::Parameters(after) = &event {
                        self.base.check_parameters(after)?;
                        self.base.track_commit_timestamp = after.track_commit_timestamp;
                    }
                    changes.log_event(event);
                }
            }
            ResourceManager::Transaction => {
                let track = self.base.track_commit_timestamp;
                changes.transaction(&record, raw.start_lsn, track)?;
            }
            ResourceManager::Storage => changes.storage(&record)?,
            ResourceManager::Database => changes.database(&record)?,
            ResourceManager::RelMap => changes.relation_map(&record)?,
            ResourceManager::Heap | ResourceManager::Heap2 => {
                changes.visibility_cleared(&record, rmgr, raw)?;
            }
            ResourceManager::Clog => {
                changes.slru(v15::clog_action(&record)?)?;
            }
            ResourceManager::CommitTs => {
                changes.slru(v15::commit_ts_action(&record)?)?;
            }
            ResourceManager::MultiXact => changes.slru(v15::multixact_action(&record)?)?,
            ResourceManager::Standby => {
                if let Some(running) = v15::running_transactions(&record)? {
                    changes.cluster.running(running);
                }
            }
            ResourceManager::ReplicationOrigin => {
                if let Some(event) = v15::origin_event(&record)? {
                    changes.cluster.origin(event);
                }
            }
            // Nothing beyond the pages they refer to. What tablespaces hold is not kept yet; nothing
            // reads it.
            ResourceManager::Tablespace
            | ResourceManager::Btree
            | ResourceManager::Hash
            | ResourceManager::Gin
            | ResourceManager::Gist
            | ResourceManager::Sequence
            | ResourceManager::SpGist
            | ResourceManager::Brin
            | ResourceManager::Generic
            | ResourceManager::LogicalMessage => {}
        }
        // Redo skips what such a record names without an image: it does not even extend the fork.
        let needs_image = v15::is_for_hint(&record.header);
        let skipped = |block: &&BlockRef| needs_image && block.image.is_none();
        refuse_twice_named(&record)?;
        for block in record.blocks.iter().filter(|block| !skipped(block)) {
            changes.block(block, &record, raw)?;
        }
        let changes = changes.finish();
        match self.sizes.len() > MAX_FORKS {
            true => Err(Reason::TooManyForks(MAX_FORKS)),
            false => Ok(changes),
        }
    }
}

impl BaseFacts {
    /// Of a stopped server's files, whatever its settings; commit times are not kept.
    pub const fn consistent() -> Self {
        Self {
            consistent_from: Lsn::ZERO,
            wal_log_hints: None,
            track_commit_timestamp: false,
        }
    }

    /// Whether the source still writes what redo needs, and as redo expects it.
    fn check_parameters(&self, after: &v15::Parameters) -> Result<(), Reason> {
        if after.wal_level < WAL_LEVEL_REPLICA {
            return Err(Reason::WalLevel);
        }
        let on = after.wal_log_hints;
        match self.wal_log_hints {
            Some(before) if before != on => Err(Reason::WalLogHints { on }),
            Some(_) | None => Ok(()),
        }
    }
}

/// PostgreSQL never does that (`XLogRegisterBuffer`), and a key has one version of a record.
fn refuse_twice_named(record: &DecodedRecord) -> Result<(), Reason> {
    let place = |block: &BlockRef| (block.rel, block.block);
    for (index, block) in record.blocks.iter().enumerate() {
        let before = record.blocks.iter().take(index);
        if before.map(place).any(|earlier| earlier == place(block)) {
            let (rel, block) = place(block);
            return Err(Reason::NamedTwice { rel, block });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
