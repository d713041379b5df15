use std::{pin::pin, time::Duration};

use futures::FutureExt as _;
use tokio::time::timeout;

/// Does something within a limit; `None` if it takes longer. What needs no waiting needs no timer.
pub async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    if let Some(done) = work.as_mut().now_or_never() {
        return Some(done);
    }
    // Cancel-safe: whoever is late has no answer, and nothing else was promised.
    timeout(limit, work).await.ok()
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn what_needs_no_waiting_needs_no_timer() {
        // There is no runtime here, so that a timer would panic.
        assert_eq!(within(LIMIT, async { 7 }).now_or_never(), Some(Some(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_longer_is_given_up() {
        let begun = Instant::now();
        assert_eq!(within(LIMIT, sleep(LIMIT / 2)).await, Some(()));
        assert_eq!(within(LIMIT, sleep(2 * LIMIT)).await, None);
        assert_eq!(begun.elapsed(), LIMIT / 2 + LIMIT);
    }
}
