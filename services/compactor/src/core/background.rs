//! Work that takes a CPU for seconds, out of the way of what somebody waits for.

use std::{
    cell::Cell,
    thread,
    time::{Duration, Instant},
};

use palimpsest_runtime::{TaskScope, give_way};
use tokio::runtime::Handle;

use super::error::CompactError;

/// How long work goes on at a stretch: less than what a read takes.
const STRETCH: Duration = Duration::from_micros(100);
/// So long a thread rests; timers are late by about as much again.
const REST: Duration = Duration::from_micros(50);

/// Rests for a moment after each stretch, between steps of work that nobody waits for: it may take up to twice as long by it.
///
/// Giving way is not enough for who reads. The kernel owes each thread its share, be it ever so small, and pays it in one piece,
/// up to the next tick, four milliseconds later: also to one that gives way again and again. Only a thread that sleeps is
/// passed over.
pub(super) fn rest_in_between() {
    #[expect(
        clippy::disallowed_methods,
        reason = "the thread is to sleep, with all that it does; it belongs to work in the background"
    )]
    in_between(|| thread::sleep(REST));
}

/// Gives way after each stretch, between steps of work that must not take longer: layers pile up while they are merged. On
/// kernels that know no long slices (`palimpsest-priority`) who wakes up on this CPU would have to wait until the slice ends.
pub(super) fn give_way_in_between() {
    in_between(thread::yield_now);
}

/// Does `pause` if this thread's stretch is over: the time since the last, be it that it worked or that it waited.
fn in_between(pause: impl FnOnce()) {
    thread_local! {
        static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    // Steps differ by a thousand times, so they are not counted; a look at the clock is far shorter than any of them.
    let now = Instant::now();
    let since = SINCE.get().unwrap_or(now);
    if now.duration_since(since) < STRETCH {
        SINCE.set(Some(since));
        return;
    }
    pause();
    SINCE.set(Some(Instant::now()));
}

/// Does work on a thread of its own, which gives way to all others of the machine: reads, ingest and, on one
/// host, the PostgreSQL that is kept. The scope waits for it. It ends, where it waits next, when the scope is
/// cancelled or this future is dropped: nobody would want what comes of it. So it must be cancel-safe.
///
/// # Errors
/// If there can be no thread, the work panics, or is cancelled.
pub(super) async fn in_background<T: Send + 'static>(
    scope: &TaskScope,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, CompactError> {
    let handle = Handle::current();
    let token = scope.token().child_token();
    let guard = token.clone().drop_guard();
    let run = move || {
        give_way();
        handle.block_on(token.run_until_cancelled(work))
    };
    // A thread of the runtime's pool could not be given back: no priority may be raised again.
    let thread = thread::Builder::new().name("background".to_owned());
    let thread = thread.spawn(run).map_err(CompactError::Thread)?;
    let ended = scope.spawn_blocking(move || thread.join());
    let ended = ended.await.map_err(CompactError::Panicked)?;
    drop(guard);
    // What a thread panicked with was printed by then.
    let ended = ended.map_err(|_| CompactError::ThreadPanicked)?;
    ended.ok_or(CompactError::Stopped)
}

#[cfg(test)]
mod tests {
    use std::{future, time::Duration};

    use palimpsest_priority::NICE;
    use rustix::process::getpriority_process;

    use super::*;

    #[tokio::test]
    async fn only_the_work_gives_way() {
        let before = getpriority_process(None).unwrap();
        let scope = TaskScope::default();
        let inside = in_background(&scope, async { getpriority_process(None).unwrap() });
        assert_eq!(inside.await.unwrap(), NICE.max(before));
        assert_eq!(getpriority_process(None).unwrap(), before);
        let panics = in_background(&scope, async { panic!("on purpose") });
        let panics: Result<(), _> = panics.await;
        assert!(matches!(panics, Err(CompactError::ThreadPanicked)));
    }

    #[tokio::test]
    async fn work_that_nobody_wants_any_more_ends() {
        let scope = TaskScope::default();
        let work = || in_background(&scope, future::pending::<()>());
        let dropped = tokio::time::timeout(Duration::from_millis(10), work());
        assert!(dropped.await.is_err(), "it does not end by itself");
        let stopped = async {
            scope.token().cancel();
            work().await
        };
        assert!(matches!(stopped.await, Err(CompactError::Stopped)));
        // Waits for the threads of both.
        scope.stop().await;
    }
}
