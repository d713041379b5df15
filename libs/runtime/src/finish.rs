use std::future::Future;

use futures::FutureExt as _;
use tokio_util::task::AbortOnDropHandle;

/// Does something, on the spot if nothing has to be waited for, else in a task of its own that ends
/// with the future returned. `None` if it panicked.
///
/// A stream of answers is polled only while its client reads. What such a client had asked for would
/// stand still half done, and others who wait for the same page with it.
pub fn finish<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = Option<T>> + Send {
    // Now, not when it is polled: what is returned is small, however large the work's state is.
    let mut work = Box::pin(work);
    async move {
        if let Some(done) = (&mut work).now_or_never() {
            return Some(done);
        }
        AbortOnDropHandle::new(tokio::spawn(work)).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        sync::{mpsc, oneshot},
        time::timeout,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn work_that_was_begun_goes_on_though_nobody_polls() {
        let (go, waiting) = oneshot::channel();
        let (done, mut is_done) = mpsc::channel(1);
        let work = finish(async move {
            waiting.await.unwrap();
            done.send(()).await.unwrap();
        });
        let mut work = Box::pin(work);
        assert!((&mut work).now_or_never().is_none());
        go.send(()).unwrap();
        timeout(PATIENCE, is_done.recv()).await.unwrap().unwrap();
        assert_eq!(timeout(PATIENCE, work).await.unwrap(), Some(()));
    }

    #[tokio::test]
    async fn work_ends_with_who_wanted_it() {
        let (held, mut is_dropped) = mpsc::channel::<()>(1);
        let work = finish(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        let mut work = Box::pin(work);
        assert!((&mut work).now_or_never().is_none());
        drop(work);
        assert_eq!(timeout(PATIENCE, is_dropped.recv()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_needs_no_waiting_needs_no_task() {
        assert_eq!(finish(async { 7 }).now_or_never(), Some(Some(7)));
    }
}
