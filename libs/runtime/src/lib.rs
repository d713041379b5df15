//! Owned background tasks.
//!
//! A [`TaskScope`] is the way services start tasks ([`finish`] is for one that ends with who waits for
//! it): each has a name, all are told to stop by
//! one token, and the scope waits for them. A task that panics takes its scope down, because what
//! it was doing is not being done any more.
//!
//! [`BackgroundThreads`] are for what must not keep anybody waiting.

mod background;
mod finish;

use std::future::Future;

pub use background::{BackgroundLimits, BackgroundThreads, give_way};
pub use finish::finish;
use tokio::task::JoinHandle;
pub use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// Tasks that live and end together.
#[derive(Debug, Clone)]
pub struct TaskScope {
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Default for TaskScope {
    fn default() -> Self {
        Self::new(CancellationToken::new())
    }
}

impl TaskScope {
    /// A scope whose tasks are told to stop when `cancel` is.
    pub fn new(cancel: CancellationToken) -> Self {
        Self {
            cancel,
            tracker: TaskTracker::new(),
        }
    }

    /// A scope that stops with this one and can be stopped alone; its tasks count for both.
    pub fn child(&self) -> Self {
        let child = Self::new(self.cancel.child_token());
        let tracker = child.tracker.clone();
        let cancel = child.cancel.clone();
        self.tracker.spawn(async move {
            cancel.cancelled().await;
            tracker.close();
            tracker.wait().await;
        });
        child
    }

    /// What tells the tasks to stop.
    pub fn token(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Starts a task. It should end soon after the token is cancelled.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        // A task may outlive the request that happened to start it, and is no part of it.
        let span = tracing::info_span!(parent: None, "task", name);
        let guarded = async move {
            if let Err(error) = tokio::spawn(task.in_current_span()).await {
                tracing::error!(%error, "a task panicked; stopping what belongs to it");
                cancel.cancel();
            }
        };
        self.tracker.spawn(guarded.instrument(span));
    }

    /// Starts work that blocks, on a thread that may. The scope waits for it, even when nobody waits
    /// for its outcome any more: blocking work can't be cancelled.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.tracker.spawn_blocking(work)
    }

    /// Whether nothing of it runs at the moment.
    pub fn is_idle(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Tells all tasks to stop and waits until they have.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn stopping_a_scope_stops_its_children_first() {
        let scope = TaskScope::default();
        let child = scope.child();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let token = child.token().clone();
        child.spawn("waits", async move {
            token.cancelled().await;
            let _ = sender.send(());
        });
        scope.stop().await;
        assert!(receiver.await.is_ok());
    }

    #[tokio::test]
    async fn a_scope_waits_for_blocking_work_that_nobody_waits_for() {
        let scope = TaskScope::default();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let work = scope.spawn_blocking(move || gone.recv());
        drop(work);
        assert!(!scope.is_idle());
        let stopping = scope.stop();
        tokio::pin!(stopping);
        let soon = tokio::time::timeout(Duration::from_millis(50), &mut stopping);
        assert!(soon.await.is_err());
        go.send(()).unwrap();
        stopping.await;
        assert!(scope.is_idle());
    }

    #[tokio::test]
    async fn a_panic_stops_the_scope() {
        let scope = TaskScope::default();
        scope.spawn("panics", async { panic!("on purpose") });
        scope.token().cancelled().await;
        scope.stop().await;
    }
}
