//! What is in a data directory, and what each file of it is made of.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use palimpsest_catalog::v15::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE};
use palimpsest_types::{BlockNumber, Fork, Oid, PAGE_SIZE, RelTag, SlruKind};
use palimpsest_wal::{SegmentNumber, Xid};

use crate::start::Start;

/// A data directory, but for the bytes of its pages.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) start: Arc<Start>,
    pub(crate) relations: Vec<Copied>,
    /// Forks that are left out, if anything is.
    pub(crate) left_out: Option<Vec<(RelTag, BlockNumber)>>,
    /// Segments of each area, with their number of pages.
    pub(crate) slru: Vec<(SlruKind, u32, u32)>,
    /// Relation maps, by tablespace and database.
    pub(crate) maps: Vec<(Oid, Oid, Bytes)>,
    pub(crate) two_phase: Vec<(Xid, Bytes)>,
    pub(crate) tablespaces: BTreeSet<Oid>,
    /// Files whose bytes are known, by their path.
    pub(crate) whole: Vec<(&'static str, Bytes)>,
}

/// A fork of a relation in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Whose file it is.
    pub(crate) rel: RelTag,
    /// Which fork its pages are read from.
    pub(crate) from: Fork,
    pub(crate) blocks: BlockNumber,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Below the directory.
    pub(crate) path: String,
    pub(crate) len: u64,
    pub(crate) made_of: MadeOf,
}

/// What a file is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MadeOf {
    /// Pages of a fork, from this block on.
    Relation {
        rel: RelTag,
        first: u32,
        blocks: u32,
    },
    /// A segment of an SLRU area.
    Slru { kind: SlruKind, segment: u32 },
    /// A segment of the log.
    Log(SegmentNumber),
    /// These bytes.
    Bytes(Bytes),
}

/// What `initdb` makes, and a server expects to be there (`initdb.c`), without what [`SlruKind::directory`] tells.
const DIRECTORIES: [&str; 17] = [
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_multixact",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
];
/// The same, after what is above them.
const MORE_DIRECTORIES: [&str; 5] = [
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_xact",
];
/// The file that says of which version a database is.
const VERSION_FILE: &str = "PG_VERSION";
const VERSION: &str = "15\n";
const MAJOR: u32 = 15;
const MAP_FILE: &str = "pg_filenode.map";

/// Which forks are in the directory. Relations that are not logged begin anew, as after a crash (`reinit.c`): with
/// what their init fork has, and nothing beside.
pub(crate) fn copied(relations: &[(RelTag, BlockNumber)]) -> Vec<Copied> {
    let main = |rel: &RelTag| rel.with_fork(Fork::Main);
    let is_init = |(rel, _): &&(RelTag, BlockNumber)| rel.fork == Fork::Init;
    let unlogged: BTreeSet<_> = relations
        .iter()
        .filter(is_init)
        .map(|(rel, _)| main(rel))
        .collect();
    let mut copied = Vec::with_capacity(relations.len());
    for &(rel, blocks) in relations {
        let own = Copied {
            rel,
            from: rel.fork,
            blocks,
        };
        if rel.fork == Fork::Init {
            copied.push(Copied {
                rel: main(&rel),
                ..own
            });
            copied.push(own);
        } else if !unlogged.contains(&main(&rel)) {
            copied.push(own);
        }
    }
    copied
}

/// The same without what can be read when it is needed; and what that is.
pub(crate) fn sparse(copied: Vec<Copied>) -> (Vec<Copied>, Vec<(RelTag, BlockNumber)>) {
    let mains = copied
        .iter()
        .filter(|copied| copied.rel.fork != copied.from);
    let unlogged: BTreeSet<_> = mains.map(|copied| copied.rel).collect();
    let begins_anew = |copied: &Copied| unlogged.contains(&copied.rel.with_fork(Fork::Main));
    let (kept, left_out): (Vec<_>, Vec<_>) = copied.into_iter().partition(begins_anew);
    let left_out = left_out.into_iter();
    (
        kept,
        left_out.map(|copied| (copied.rel, copied.blocks)).collect(),
    )
}

impl Contents {
    /// All directories, each after the one that it is in.
    pub(crate) fn directories(&self) -> Vec<String> {
        let mut below = BTreeSet::new();
        for spc in &self.tablespaces {
            below.insert(format!("pg_tblspc/{spc}"));
            below.insert(self.tablespace(*spc));
        }
        let databases = self.maps.iter().map(|(spc, db, _)| (*spc, *db));
        let relations = self.relations.iter().map(|copied| copied.rel);
        let left_out = self.left_out.iter().flatten().map(|(rel, _)| *rel);
        let relations = relations.chain(left_out).map(|rel| (rel.spc, rel.db));
        let databases: BTreeSet<_> = databases.chain(relations).collect();
        let databases = databases.into_iter().filter(|(_, db)| *db != 0);
        below.extend(databases.map(|(spc, db)| self.database(spc, db)));
        let fixed = DIRECTORIES.into_iter().chain(MORE_DIRECTORIES);
        fixed.map(str::to_owned).chain(below).collect()
    }

    /// All files, in the same order every time. The control file is near the end: without it nothing starts.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> + Send + '_ {
        let version = |path| Entry::whole(path, Bytes::from_static(VERSION.as_bytes()));
        let databases = self.maps.iter().flat_map(move |(spc, db, map)| {
            let directory = self.database(*spc, *db);
            let map = Entry::whole(format!("{directory}/{MAP_FILE}"), map.clone());
            let version = (*db != 0).then(|| version(format!("{directory}/{VERSION_FILE}")));
            version.into_iter().chain([map])
        });
        let relations = self
            .relations
            .iter()
            .flat_map(|copied| self.relation(*copied));
        let slru = self.slru.iter().map(|(kind, segment, pages)| Entry {
            path: format!("{}/{segment:04X}", kind.directory()),
            len: u64::from(*pages) * PAGE_SIZE as u64,
            made_of: MadeOf::Slru {
                kind: *kind,
                segment: *segment,
            },
        });
        let two_phase = self.two_phase.iter();
        let two_phase = two_phase
            .map(|(xid, file)| Entry::whole(format!("pg_twophase/{xid:08X}"), file.clone()));
        let log = self.start.segments().map(|(name, segment)| Entry {
            path: format!("pg_wal/{name}"),
            len: self.start.segment_size.bytes(),
            made_of: MadeOf::Log(segment),
        });
        let (history, content) = self.start.history();
        let history = Entry::whole(format!("pg_wal/{history}"), content);
        let control = self.start.control_file.clone();
        let control = Entry::whole("global/pg_control".to_owned(), control);
        let whole = self.whole.iter();
        let whole = whole.map(|(path, content)| Entry::whole((*path).to_owned(), content.clone()));
        std::iter::once(version(VERSION_FILE.to_owned()))
            .chain(whole)
            .chain(databases)
            .chain(relations)
            .chain(slru)
            .chain(two_phase)
            .chain(log)
            .chain([history, control])
    }

    /// The files of a fork: one at least, and all but the last of the same length.
    fn relation(
        &self,
        Copied { rel, from, blocks }: Copied,
    ) -> impl Iterator<Item = Entry> + use<> {
        let per_file = self.start.relation_segment;
        let path = format!(
            "{}/{}{}",
            self.database(rel.spc, rel.db),
            rel.rel,
            suffix(rel.fork)
        );
        let blocks = blocks.get();
        let files = blocks.div_ceil(per_file).max(1);
        (0..files).map(move |file| {
            let first = file.saturating_mul(per_file);
            let blocks = blocks.saturating_sub(first).min(per_file);
            let path = match file {
                0 => path.clone(),
                _ => format!("{path}.{file}"),
            };
            Entry {
                path,
                len: u64::from(blocks) * PAGE_SIZE as u64,
                made_of: MadeOf::Relation {
                    rel: rel.with_fork(from),
                    first,
                    blocks,
                },
            }
        })
    }

    /// The directory of a database in a tablespace (`GetDatabasePath`).
    fn database(&self, spc: Oid, db: Oid) -> String {
        match spc {
            GLOBAL_TABLESPACE => "global".to_owned(),
            DEFAULT_TABLESPACE => format!("base/{db}"),
            _ => format!("{}/{db}", self.tablespace(spc)),
        }
    }

    /// What a server of this version has in a tablespace (`TABLESPACE_VERSION_DIRECTORY`).
    fn tablespace(&self, spc: Oid) -> String {
        format!("pg_tblspc/{spc}/PG_{MAJOR}_{}", self.start.catalog_version)
    }
}

impl Entry {
    fn whole(path: String, content: Bytes) -> Self {
        Self {
            path,
            len: content.len() as u64,
            made_of: MadeOf::Bytes(content),
        }
    }
}

const fn suffix(fork: Fork) -> &'static str {
    match fork {
        Fork::Main => "",
        Fork::FreeSpaceMap => "_fsm",
        Fork::VisibilityMap => "_vm",
        Fork::Init => "_init",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rel(number: Oid, fork: Fork) -> RelTag {
        RelTag {
            spc: DEFAULT_TABLESPACE,
            db: 5,
            rel: number,
            fork,
        }
    }

    #[test]
    fn relations_that_are_not_logged_are_what_their_init_forks_say() {
        let of = |number, fork, blocks| (rel(number, fork), BlockNumber::new(blocks));
        let relations = [
            of(1, Fork::Main, 9),
            of(1, Fork::FreeSpaceMap, 3),
            of(1, Fork::VisibilityMap, 1),
            of(1, Fork::Init, 2),
            of(2, Fork::Main, 7),
            of(2, Fork::VisibilityMap, 1),
        ];
        let copied: Vec<_> = copied(&relations)
            .into_iter()
            .map(|copied| {
                (
                    copied.rel.rel,
                    copied.rel.fork,
                    copied.from,
                    copied.blocks.get(),
                )
            })
            .collect();
        let expected = [
            (1, Fork::Main, Fork::Init, 2),
            (1, Fork::Init, Fork::Init, 2),
            (2, Fork::Main, Fork::Main, 7),
            (2, Fork::VisibilityMap, Fork::VisibilityMap, 1),
        ];
        assert_eq!(copied, expected);
        let (kept, left_out) = sparse(super::copied(&relations));
        assert!(kept.iter().all(|copied| copied.rel.rel == 1));
        assert_eq!((kept.len(), &left_out[..]), (2, &relations[4..]));
    }
}
