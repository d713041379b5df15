//! Pages of a backup that were read while they were written.

use std::collections::BTreeMap;

use palimpsest_types::PAGE_SIZE;

/// Pages to be torn as they pass: one half is as it was before.
///
/// A server that copies its files for a backup may read a page while another process writes it, and
/// so get one half as it was and the other as it is. Both halves are PostgreSQL's own bytes.
#[derive(Debug, Clone, Default)]
pub struct Tears {
    files: BTreeMap<String, BTreeMap<u64, OldHalf>>,
}

/// Where in the file the old half of a page stands, and its bytes.
#[derive(Debug, Clone)]
struct OldHalf {
    at: u64,
    bytes: Vec<u8>,
}

/// What a disk's sector or a kernel's page makes of a page of PostgreSQL.
const HALF: usize = PAGE_SIZE / 2;

impl Tears {
    /// Has a page of a file, by its path below the data directory, keep a half of what it was.
    pub fn tear(&mut self, path: &str, block: u32, old_page: &[u8], first_half: bool) {
        let within = if first_half { 0 } else { HALF };
        let old = OldHalf {
            at: u64::from(block) * PAGE_SIZE as u64 + within as u64,
            bytes: old_page[within..within + HALF].to_vec(),
        };
        let file = self.files.entry(path.to_owned()).or_default();
        file.insert(u64::from(block), old);
    }

    /// The torn pages: their file and number.
    pub fn pages(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files
            .iter()
            .flat_map(|(path, pages)| pages.keys().map(|block| (path.as_str(), *block)))
    }

    /// Puts old halves into some bytes of a file, which stand `at` in it.
    pub(super) fn apply(&self, path: &str, at: u64, bytes: &mut [u8]) {
        let Some(file) = self.files.get(path) else {
            return;
        };
        let end = at + bytes.len() as u64;
        let first = at / PAGE_SIZE as u64;
        for old in file.range(first..).map(|(_, old)| old) {
            if old.at >= end {
                break;
            }
            old.apply(at, bytes);
        }
    }
}

impl OldHalf {
    fn apply(&self, at: u64, bytes: &mut [u8]) {
        let from = self.at.max(at);
        let to = (self.at + HALF as u64).min(at + bytes.len() as u64);
        if from >= to {
            return;
        }
        let index = |position: u64, base: u64| usize::try_from(position - base).unwrap_or_default();
        let target = &mut bytes[index(from, at)..index(to, at)];
        target.copy_from_slice(&self.bytes[index(from, self.at)..index(to, self.at)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_torn_the_same_in_whatever_pieces_it_passes() {
        let old = vec![1; PAGE_SIZE];
        let mut tears = Tears::default();
        tears.tear("base/1/2", 1, &old, false);
        tears.tear("base/1/2", 2, &old, true);
        let mut expected = vec![0; 4 * PAGE_SIZE];
        expected[PAGE_SIZE + HALF..2 * PAGE_SIZE + HALF].fill(1);
        for piece in [1000, HALF, PAGE_SIZE, 3 * PAGE_SIZE] {
            let mut bytes = vec![0; 4 * PAGE_SIZE];
            let mut at = 0;
            for chunk in bytes.chunks_mut(piece) {
                tears.apply("base/1/2", at, chunk);
                tears.apply("base/1/3", at, chunk);
                at += chunk.len() as u64;
            }
            assert_eq!(bytes, expected, "pieces of {piece}");
        }
        assert_eq!(tears.pages().count(), 2);
    }
}
