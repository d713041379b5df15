//! How many threads a process has: as many as are of use, and no more than its address space holds.
//!
//! Under `ulimit -v` a thread is dear: beside its stack the allocator maps ahead for it, so that on a machine
//! with many cores threads would use up the limit before they do anything, and a thread that can't be
//! started ends the process.

use std::{future::Future, io, num::NonZeroUsize, thread};

use palimpsest_types::ByteCount;
use rustix::process::{Resource, getrlimit};
use tokio::runtime::{Builder, Runtime};

/// Threads of a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Threads {
    /// For tasks.
    workers: usize,
    /// For what blocks: files, compression, redo.
    blocking: usize,
}

/// What the allocator maps ahead for a thread, with room to spare: services that have begun to work map 6 to
/// 10 MiB for each, the stack included.
const ARENA: u64 = 14 << 20;
const STACK: u64 = 2 << 20;
/// Blocking work comes in portions, and more of them at once than this only wait for the disk.
const MOST_BLOCKING: usize = 64;
/// Less would make tasks wait for each other.
const LEAST: usize = 2;

/// Runs the whole of a process.
///
/// # Errors
/// If the threads can't be started.
pub fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    Ok(runtime()?.block_on(work))
}

/// The runtime of a process.
///
/// # Errors
/// If its threads can't be started.
pub fn runtime() -> io::Result<Runtime> {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = threads(cores, getrlimit(Resource::As).current);
    Builder::new_multi_thread()
        .worker_threads(threads.workers)
        .max_blocking_threads(threads.blocking)
        .enable_all()
        .build()
}

/// What `ulimit -v` allows this process; `None` without a limit.
pub fn address_space() -> Option<ByteCount> {
    getrlimit(Resource::As).current.map(ByteCount::new)
}

/// Threads may take half of the address space; the other half is for what they are there for.
fn threads(cores: usize, address_space: Option<u64>) -> Threads {
    let fit = address_space.map_or(u64::MAX, |limit| limit / 2 / (ARENA + STACK));
    let fit = usize::try_from(fit).unwrap_or(usize::MAX);
    let workers = cores.min(fit / 3).max(LEAST);
    Threads {
        workers,
        blocking: fit.saturating_sub(workers).clamp(LEAST, MOST_BLOCKING),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn reserved(threads: Threads) -> u64 {
        (threads.workers + threads.blocking) as u64 * (ARENA + STACK)
    }

    #[test]
    fn without_a_limit_every_core_has_work() {
        let threads = threads(48, None);
        assert_eq!((threads.workers, threads.blocking), (48, MOST_BLOCKING));
    }

    #[test]
    fn threads_leave_half_of_a_limit_however_many_cores_there_are() {
        for cores in [1, 2, 8, 256] {
            for limit in [2 * GIB, 4 * GIB, 16 * GIB] {
                let threads = threads(cores, Some(limit));
                assert!(reserved(threads) <= limit / 2, "{cores}: {threads:?}");
                assert!(threads.workers >= LEAST && threads.blocking >= LEAST);
            }
        }
    }

    #[test]
    fn a_limit_too_small_for_any_leaves_the_least() {
        let threads = threads(8, Some(1 << 20));
        assert_eq!((threads.workers, threads.blocking), (LEAST, LEAST));
    }
}
