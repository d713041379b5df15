use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use palimpsest_types::{BlockNumber, Fork, Oid, PAGE_SIZE, RelTag};

/// The relation files of a stopped PostgreSQL's data directory.
#[derive(Debug)]
pub struct DataFiles {
    relations: BTreeMap<RelTag, RelationFile>,
}

/// One relation fork: its segment files in order.
#[derive(Debug, Default)]
pub struct RelationFile {
    segments: BTreeMap<u32, PathBuf>,
}

const DEFAULT_TABLESPACE: Oid = 1663;
const GLOBAL_TABLESPACE: Oid = 1664;

impl DataFiles {
    /// Finds all relation files of a data directory, also where links of tablespaces lead.
    pub fn read(data_dir: &Path) -> Result<Self> {
        Self::read_with_links(data_dir, |target| Ok(target.to_owned()))
    }

    /// The same where the links of tablespaces are not to be followed as they are.
    pub fn read_with_links(
        data_dir: &Path,
        mut follow: impl FnMut(&Path) -> Result<PathBuf>,
    ) -> Result<Self> {
        let mut relations = BTreeMap::new();
        find_files(
            &data_dir.join("global"),
            GLOBAL_TABLESPACE,
            0,
            &mut relations,
        )?;
        find_databases(&data_dir.join("base"), DEFAULT_TABLESPACE, &mut relations)?;
        for (spc, mut directory) in numbered(&data_dir.join("pg_tblspc"))? {
            if directory.is_symlink() {
                directory = follow(&fs::read_link(&directory)?)?;
            }
            for (_, version) in entries(&directory)? {
                find_databases(&version, spc, &mut relations)?;
            }
        }
        Ok(Self { relations })
    }

    /// All forks, in order.
    pub fn iter(&self) -> impl Iterator<Item = (RelTag, &RelationFile)> {
        self.relations.iter().map(|(rel, file)| (*rel, file))
    }

    /// One fork.
    pub fn get(&self, rel: RelTag) -> Option<&RelationFile> {
        self.relations.get(&rel)
    }

    /// Length of a fork; none at all if it does not exist.
    pub fn blocks(&self, rel: RelTag) -> Result<BlockNumber> {
        self.get(rel)
            .map_or(Ok(BlockNumber::ZERO), RelationFile::blocks)
    }

    /// True for an unlogged relation: its other forks are not in the log.
    pub fn is_unlogged(&self, rel: RelTag) -> bool {
        self.relations.contains_key(&rel.with_fork(Fork::Init))
    }
}

impl RelationFile {
    /// Length in blocks.
    pub fn blocks(&self) -> Result<BlockNumber> {
        let mut bytes = 0;
        for path in self.segments.values() {
            bytes += fs::metadata(path)?.len();
        }
        ensure!(
            bytes % PAGE_SIZE as u64 == 0,
            "{:?} end within a page",
            self.segments
        );
        Ok(BlockNumber::new(u32::try_from(bytes / PAGE_SIZE as u64)?))
    }

    /// All pages in order.
    pub fn pages(&self) -> Result<Vec<Bytes>> {
        let mut pages = Vec::new();
        for path in self.segments.values() {
            let mut file = fs::File::open(path)?;
            let mut content = Vec::new();
            file.read_to_end(&mut content)
                .with_context(|| path.display().to_string())?;
            let content = Bytes::from(content);
            let count = content.len() / PAGE_SIZE;
            pages.extend((0..count).map(|i| content.slice(i * PAGE_SIZE..(i + 1) * PAGE_SIZE)));
        }
        Ok(pages)
    }
}

/// The relation whose main fork `pg_relation_filepath` says to be there.
pub fn relation_of(path: &str) -> Result<RelTag> {
    let parts: Vec<&str> = path.split('/').collect();
    let (spc, db, rel) = match parts[..] {
        ["global", rel] => (GLOBAL_TABLESPACE, 0, rel),
        ["base", db, rel] => (DEFAULT_TABLESPACE, db.parse()?, rel),
        ["pg_tblspc", spc, _version, db, rel] => (spc.parse()?, db.parse()?, rel),
        _ => bail!("{path:?} is not the path of a relation"),
    };
    Ok(RelTag {
        spc,
        db,
        rel: rel.parse()?,
        fork: Fork::Main,
    })
}

fn find_databases(
    directory: &Path,
    spc: Oid,
    relations: &mut BTreeMap<RelTag, RelationFile>,
) -> Result<()> {
    for (db, directory) in numbered(directory)? {
        find_files(&directory, spc, db, relations)?;
    }
    Ok(())
}

fn find_files(
    directory: &Path,
    spc: Oid,
    db: Oid,
    relations: &mut BTreeMap<RelTag, RelationFile>,
) -> Result<()> {
    for (name, path) in entries(directory)? {
        if let Some((rel, fork, segment)) = parse_file_name(&name) {
            let rel = RelTag { spc, db, rel, fork };
            relations
                .entry(rel)
                .or_default()
                .segments
                .insert(segment, path);
        }
    }
    Ok(())
}

/// Entries whose names are numbers.
fn numbered(directory: &Path) -> Result<Vec<(Oid, PathBuf)>> {
    let entries = entries(directory)?;
    Ok(entries
        .into_iter()
        .filter_map(|(name, path)| Some((name.parse().ok()?, path)))
        .collect())
}

fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        found.push((
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        ));
    }
    found.sort();
    Ok(found)
}

/// `16384`, `16384.1`, `16384_vm`, `16384_vm.1`. Temporary relations (`t3_16384`) are left out.
fn parse_file_name(name: &str) -> Option<(Oid, Fork, u32)> {
    let (stem, segment) = match name.split_once('.') {
        Some((stem, segment)) => (stem, segment.parse().ok()?),
        None => (name, 0),
    };
    let (number, fork) = match stem.split_once('_') {
        Some((number, fork)) => (number, Fork::from_name(fork)?),
        None => (stem, Fork::Main),
    };
    Some((number.parse().ok()?, fork, segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_relation_files_by_name() {
        assert_eq!(parse_file_name("16384"), Some((16384, Fork::Main, 0)));
        assert_eq!(
            parse_file_name("16384_vm.2"),
            Some((16384, Fork::VisibilityMap, 2))
        );
        assert_eq!(parse_file_name("t3_16384"), None);
        assert_eq!(parse_file_name("pg_filenode.map"), None);
        assert_eq!(parse_file_name("PG_VERSION"), None);
    }

    #[test]
    fn knows_relations_by_path() {
        let found = |path| relation_of(path).unwrap().to_string();
        assert_eq!(found("base/5/16384"), "1663/5/16384");
        assert_eq!(found("global/1262"), "1664/0/1262");
        assert_eq!(found("pg_tblspc/99/PG_15_202209061/5/7"), "99/5/7");
        assert!(relation_of("pg_xact/0000").is_err());
    }
}
