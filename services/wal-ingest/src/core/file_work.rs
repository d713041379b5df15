//! Blocking work on local files, which can be waited for when nobody wants it any more.

use std::sync::Arc;

use palimpsest_runtime::TaskScope;
use tokio::{sync::watch, task::JoinHandle};

/// Starts blocking work in a scope, and knows whether there is any. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct FileWork {
    scope: TaskScope,
    /// What is under way holds a receiver.
    running: Arc<watch::Sender<()>>,
}

impl FileWork {
    pub(super) fn new(scope: TaskScope) -> Self {
        Self {
            scope,
            running: Arc::default(),
        }
    }

    /// Starts some. It goes on even if nobody waits for its outcome.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let running = self.running.subscribe();
        self.scope.spawn_blocking(move || {
            let _running = running;
            work()
        })
    }

    /// Waits until none is under way.
    pub(super) async fn finished(&self) {
        self.running.closed().await;
    }
}
