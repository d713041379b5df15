//! A base backup, planned and then written.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use palimpsest_postgres::{ReplicationOrigins, Tli};
use palimpsest_read::{TimelineReader, cluster_at};
use palimpsest_redo::Engine;
use palimpsest_runtime::finish;
use palimpsest_types::{BlockNumber, Lsn, PAGE_SIZE, RelTag, SlruKind, SystemIdentifier};
use palimpsest_wal::{SegmentNumber, WAL_PAGE_SIZE};
use tokio::sync::mpsc;

use crate::{
    archive::Archive,
    catalogs::{superuser_at, tablespaces_at},
    checksum::set_checksum,
    contents::{Contents, Entry, MadeOf, copied, sparse},
    error::BackupError,
    manifest::Manifest,
    server_files::{AUTO_CONFIGURATION, CLIENT_ACCESS, USER_MAPS, configuration},
    start::{History, Identity, Start},
};

/// A data directory that a stock PostgreSQL starts from, as a timeline was at an LSN. The same one at the same LSN
/// is the same, byte for byte.
#[derive(Debug)]
pub struct BaseBackup {
    contents: Contents,
    superuser: Option<String>,
}

/// Whether everything is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// All of it.
    Full,
    /// Without what relations hold, but for those that are not logged; [`BaseBackup::left_out`] tells of the others.
    /// For a server that reads pages when it needs them.
    Sparse,
}

/// What a base backup is, before it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFacts {
    /// What it sees: records that end here or before.
    pub lsn: Lsn,
    /// Where its own checkpoint record is, with which its log begins.
    pub checkpoint: Lsn,
    /// The cluster that starts from it.
    pub system_identifier: SystemIdentifier,
    /// PostgreSQL's timeline of what that writes.
    pub timeline: Tli,
    /// Files, without the manifest.
    pub files: u64,
    /// Bytes of those files.
    pub bytes: u64,
    /// A superuser who may log in, if there is one.
    pub superuser: Option<String>,
}

/// What is read at once, or written.
enum Piece {
    File {
        path: String,
        len: u64,
    },
    Relation {
        rel: RelTag,
        blocks: Range<u32>,
    },
    Slru {
        kind: SlruKind,
        segment: u32,
    },
    Log {
        segment: SegmentNumber,
        pages: Range<u64>,
    },
    Bytes(Bytes),
    End,
}

/// The same, read.
enum Loaded {
    File { path: String, len: u64 },
    Data(Bytes),
    End,
}

/// Pages that are read at once.
const PAGES: u32 = 32;
/// Pieces that are read while one is written: no more pages than two requests of a reader may ask for.
const AHEAD: usize = 4;

impl BaseBackup {
    /// Finds out what there is at an LSN that can be read.
    ///
    /// # Errors
    /// If something can't be read, or the identity does not fit.
    pub async fn plan<E: Engine>(
        reader: &TimelineReader<E>,
        lsn: Lsn,
        identity: impl FnOnce(Tli) -> Option<Identity> + Send,
        form: Form,
    ) -> Result<Self, BackupError> {
        let cluster = cluster_at(reader, lsn).await?;
        let cluster = cluster.ok_or(BackupError::NoControlFile(lsn))?;
        let parent = cluster.control.timeline;
        let identity = identity(parent).ok_or(BackupError::NoTimeline(parent))?;
        let history = History {
            left: reader.left_pg_timelines(lsn),
            cluster: reader.cluster_at(lsn),
        };
        let start = Arc::new(Start::new(&cluster, lsn, identity, history)?);
        let mut slru = Vec::new();
        for kind in SlruKind::ALL {
            let segments = reader.slru_segments(kind, lsn).await?;
            slru.extend(
                segments
                    .into_iter()
                    .map(|(segment, pages)| (kind, segment, pages)),
            );
        }
        let relations = copied(&reader.relations(lsn).await?);
        let mut tablespaces: BTreeSet<_> = tablespaces_at(reader, lsn).await?.into_iter().collect();
        // Of transactions that had not committed there are relations and no rows.
        let maps = reader.relation_maps(lsn).await?;
        let others = relations.iter().map(|copied| copied.rel.spc);
        let others = others.chain(maps.iter().map(|(spc, _, _)| *spc));
        tablespaces.extend(others.filter(is_own));
        let origins: ReplicationOrigins = cluster
            .origins
            .iter()
            .map(|(id, lsn)| (*id, *lsn))
            .collect();
        let whole = vec![
            (
                "postgresql.conf",
                configuration(&cluster.parameters, cluster.origins.len()).into(),
            ),
            ("postgresql.auto.conf", AUTO_CONFIGURATION.into()),
            ("pg_hba.conf", CLIENT_ACCESS.into()),
            ("pg_ident.conf", USER_MAPS.into()),
            ("pg_logical/replorigin_checkpoint", origins.to_bytes()),
        ];
        let (relations, left_out) = match form {
            Form::Full => (relations, None),
            Form::Sparse => {
                let (kept, left_out) = sparse(relations);
                (kept, Some(left_out))
            }
        };
        let contents = Contents {
            start,
            relations,
            left_out,
            slru,
            maps,
            two_phase: reader.prepared_transactions(lsn).await?,
            tablespaces,
            whole,
        };
        Ok(Self {
            contents,
            superuser: superuser_at(reader, lsn).await?,
        })
    }

    /// The forks that are left out of a sparse one, with their lengths.
    pub fn left_out(&self) -> &[(RelTag, BlockNumber)] {
        self.contents.left_out.as_deref().unwrap_or_default()
    }

    /// What it is.
    pub fn facts(&self) -> BackupFacts {
        let start = &self.contents.start;
        let (files, bytes) = self
            .contents
            .entries()
            .fold((0, 0), |(files, bytes), entry| {
                (files + 1, entry.len.saturating_add(bytes))
            });
        BackupFacts {
            lsn: start.lsn,
            checkpoint: start.checkpoint,
            system_identifier: start.identity.system_identifier,
            timeline: start.identity.timeline,
            files,
            bytes,
            superuser: self.superuser.clone(),
        }
    }

    /// Writes it as a tar archive, chunk by chunk, as fast as they are taken. Dropping the future ends it.
    ///
    /// # Errors
    /// If something can't be read, or nobody takes the chunks any more.
    pub async fn write<E: Engine + 'static>(
        &self,
        reader: Arc<TimelineReader<E>>,
        out: mpsc::Sender<Bytes>,
    ) -> Result<(), BackupError> {
        let contents = &self.contents;
        let mut archive = Archive::new(out, contents.start.time);
        for directory in contents.directories() {
            archive.directory(&directory).await?;
        }
        let mut checksums = Vec::new();
        let pieces = contents.entries().flat_map(pieces);
        // In tasks of their own: others may wait for the same page while the archive waits for who takes it.
        let load = |piece| {
            let work = load(Arc::clone(&reader), Arc::clone(&contents.start), piece);
            let work = finish(work);
            async move { work.await.unwrap_or(Err(BackupError::Panicked)) }
        };
        let mut loaded = stream::iter(pieces).map(load).buffered(AHEAD);
        while let Some(piece) = loaded.try_next().await? {
            match piece {
                Loaded::File { path, len } => archive.begin(path, len).await?,
                Loaded::Data(bytes) => archive.data(bytes).await?,
                Loaded::End => checksums.push(archive.end().await?),
            }
        }
        if contents.left_out.is_some() {
            return archive.finish().await;
        }
        let manifest = Manifest::new(contents, &checksums);
        archive
            .begin("backup_manifest".to_owned(), manifest.len())
            .await?;
        for line in manifest.all() {
            archive.data(line.into()).await?;
        }
        archive.end().await?;
        archive.finish().await
    }
}

/// Reads a piece.
async fn load<E: Engine>(
    reader: Arc<TimelineReader<E>>,
    start: Arc<Start>,
    piece: Piece,
) -> Result<Loaded, BackupError> {
    let bytes = match piece {
        Piece::File { path, len } => return Ok(Loaded::File { path, len }),
        Piece::End => return Ok(Loaded::End),
        Piece::Bytes(bytes) => bytes,
        Piece::Relation { rel, blocks } => {
            let numbers: Vec<_> = blocks.map(BlockNumber::new).collect();
            let pages = reader.pages(rel, &numbers, start.lsn).await?;
            together(pages.into_iter().zip(numbers), start.has_checksums)
        }
        Piece::Slru { kind, segment } => {
            let pages = reader.slru_segment(kind, segment, start.lsn).await?;
            let pages = pages.into_iter();
            let pages = pages.map(|(number, page)| (page, BlockNumber::new(number)));
            together(pages, false)
        }
        Piece::Log { segment, pages } => {
            let pages = start.log_pages(segment, pages).into_iter();
            together(pages.map(|page| (page, BlockNumber::ZERO)), false)
        }
    };
    Ok(Loaded::Data(bytes))
}

/// A tablespace that is a directory of its own.
fn is_own(spc: &palimpsest_types::Oid) -> bool {
    use palimpsest_catalog::v15::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE};
    ![DEFAULT_TABLESPACE, GLOBAL_TABLESPACE].contains(spc)
}

/// Pages one after the other, with checksums if they are to have some.
fn together(
    pages: impl ExactSizeIterator<Item = (Bytes, BlockNumber)>,
    has_checksums: bool,
) -> Bytes {
    let mut all = BytesMut::with_capacity(pages.len() * PAGE_SIZE);
    for (page, block) in pages {
        let at = all.len();
        all.put_slice(&page);
        let page = all.get_mut(at..).and_then(|page| page.first_chunk_mut());
        if let Some(page) = page.filter(|_| has_checksums) {
            set_checksum(page, block);
        }
    }
    all.freeze()
}

/// A file as what is read at once.
fn pieces(Entry { path, len, made_of }: Entry) -> impl Iterator<Item = Piece> + Send {
    let data: Box<dyn Iterator<Item = Piece> + Send> = match made_of {
        MadeOf::Bytes(bytes) => Box::new(std::iter::once(Piece::Bytes(bytes))),
        MadeOf::Slru { kind, segment } => Box::new(std::iter::once(Piece::Slru { kind, segment })),
        MadeOf::Relation { rel, first, blocks } => {
            let end = first.saturating_add(blocks);
            let starts = (first..end).step_by(PAGES as usize);
            Box::new(starts.map(move |start| Piece::Relation {
                rel,
                blocks: start..start.saturating_add(PAGES).min(end),
            }))
        }
        MadeOf::Log(segment) => {
            let end = len / WAL_PAGE_SIZE;
            let starts = (0..end).step_by(PAGES as usize);
            Box::new(starts.map(move |start| Piece::Log {
                segment,
                pages: start..start.saturating_add(PAGES.into()).min(end),
            }))
        }
    };
    let begin = Piece::File { path, len };
    std::iter::once(begin).chain(data).chain([Piece::End])
}
