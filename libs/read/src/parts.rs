//! Parts of a file that are read together.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{
    FutureExt as _,
    future::{self, BoxFuture, Shared},
};
use palimpsest_store::StorePath;
use tokio::sync::Semaphore;

use crate::{error::ReadError, layers::LayerFiles};

/// A part of a file. Nothing is read before one of those that are read together is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    run: Run,
    /// Where it is in the run.
    range: Range<usize>,
    /// Whether others are in the run, too.
    shared: bool,
}

type Run = Shared<BoxFuture<'static, Result<Bytes, ReadError>>>;

/// Reading so many bytes in vain is cheaper than reading twice.
const READ_OVER: u64 = 4 << 10;
/// So much is read at once, unless one part alone is longer.
const READ_AT_ONCE: u64 = 1 << 20;
/// Reads under way for parts that were asked for together, unless they are longer than usual: then
/// fewer, so that they are not of more bytes.
pub(crate) const READS: usize = 16;
/// Bytes that such reads are of, at most, unless one alone is of more.
const READING: u64 = READS as u64 * READ_AT_ONCE;

/// Parts of a file, in order of where they begin; those that lie together are read at once.
pub(crate) fn parts(files: &LayerFiles, path: &StorePath, places: &[Range<u64>]) -> Vec<Part> {
    let permits = Arc::new(Semaphore::new(READING as usize));
    let mut parts = Vec::with_capacity(places.len());
    for together in runs(places) {
        let Some(bounds) = bounds(together) else {
            continue;
        };
        let from = bounds.start;
        let run = read(files.clone(), path.clone(), bounds, Arc::clone(&permits));
        let run = run.boxed().shared();
        parts.extend(together.iter().map(|place| Part {
            run: run.clone(),
            range: (place.start - from) as usize..(place.end - from) as usize,
            shared: together.len() > 1,
        }));
    }
    parts
}

async fn read(
    files: LayerFiles,
    path: StorePath,
    range: Range<u64>,
    permits: Arc<Semaphore>,
) -> Result<Bytes, ReadError> {
    // Nobody closes it.
    let _permit = permits.acquire_many(share(&range)).await;
    files.read(&path, range).await
}

/// What a read takes of [`READING`]: what it is of, at least what makes it one of [`READS`].
fn share(range: &Range<u64>) -> u32 {
    let len = range.end.saturating_sub(range.start);
    len.clamp(READ_AT_ONCE, READING) as u32
}

/// Places in order, cut into such as are worth reading at once.
fn runs(places: &[Range<u64>]) -> impl Iterator<Item = &[Range<u64>]> {
    let mut from = places.first().map_or(0, |place| place.start);
    places.chunk_by(move |one, next| {
        let near = next.start >= one.start && next.start <= one.end.saturating_add(READ_OVER);
        let together = near && next.end.saturating_sub(from) <= READ_AT_ONCE;
        if !together {
            from = next.start;
        }
        together
    })
}

fn bounds(run: &[Range<u64>]) -> Option<Range<u64>> {
    let start = run.iter().map(|place| place.start).min()?;
    let end = run.iter().map(|place| place.end).max()?;
    Some(start..end)
}

impl Part {
    /// A part that was read already.
    pub(crate) fn known(bytes: &[u8]) -> Self {
        let bytes = Bytes::copy_from_slice(bytes);
        Self {
            range: 0..bytes.len(),
            run: future::ready(Ok(bytes)).boxed().shared(),
            shared: false,
        }
    }

    /// Its bytes, which keep no others in memory.
    pub(crate) async fn bytes(self) -> Result<Bytes, ReadError> {
        let run = self.run.await?;
        // A store may give less than it was asked for; whoever parses this sees that it is short.
        let range = self.range.start.min(run.len())..self.range.end.min(run.len());
        let part = run.slice(range);
        Ok(match self.shared {
            true => Bytes::copy_from_slice(&part),
            false => part,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lengths(places: &[Range<u64>]) -> Vec<usize> {
        runs(places).map(<[_]>::len).collect()
    }

    #[test]
    fn what_lies_together_is_read_at_once_up_to_a_limit() {
        let (kib, mib) = (1 << 10, 1 << 20);
        assert_eq!(lengths(&[]), [0; 0]);
        assert_eq!(lengths(&[0..8, 8..16, 16..24]), [3]);
        assert_eq!(lengths(&[0..8, 8 + 4 * kib..16 + 4 * kib]), [2]);
        assert_eq!(lengths(&[0..8, 9 + 4 * kib..16 + 4 * kib]), [1, 1]);
        assert_eq!(lengths(&[100..108, 0..8]), [1, 1], "behind the other");
        assert_eq!(lengths(&[0..8, 0..8]), [2], "the same twice");
        let halves = [0..mib / 2, mib / 2..mib, mib..mib + 1, mib + 1..mib + 2];
        assert_eq!(lengths(&halves), [2, 2]);
        assert_eq!(lengths(&[0..2 * mib, 2 * mib..2 * mib + 1]), [1, 1]);
    }

    #[test]
    fn reads_are_bounded_by_number_and_by_bytes() {
        let at_once = |len: u64| READING / u64::from(share(&(7..7 + len)));
        assert_eq!(at_once(1), READS as u64);
        assert_eq!(at_once(READ_AT_ONCE), READS as u64);
        assert_eq!(at_once(READ_AT_ONCE + 1), READS as u64 - 1);
        assert_eq!(at_once(4 * READ_AT_ONCE), READS as u64 / 4);
        assert_eq!(at_once(u64::from(u32::MAX) << 20), 1);
    }

    proptest! {
        #[test]
        fn no_run_is_long_and_none_is_lost(
            places in prop::collection::vec((0..20_000_u64, 0..9_000_u64), 0..50),
        ) {
            let mut at = 0;
            let places: Vec<_> = places.into_iter().map(|(gap, len)| {
                let from = at + gap;
                at = from + len;
                from..at
            }).collect();
            let runs: Vec<_> = runs(&places).collect();
            prop_assert_eq!(runs.concat(), places.clone());
            for run in runs {
                let bounds = bounds(run).unwrap();
                prop_assert!(run.len() == 1 || bounds.end - bounds.start <= READ_AT_ONCE);
            }
        }
    }
}
