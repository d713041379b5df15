//! Threads for what nobody waits for.

use std::{io, num::NonZeroUsize, panic};

use tokio::runtime::{Builder, Handle, Runtime};
use tracing::Instrument as _;

/// Threads that give way to all others of the machine, for tasks and for what blocks. A task does not give way: its
/// thread does, so what belongs to work in the background must be done on these as well, down to the connections it
/// uses.
#[derive(Debug)]
pub struct BackgroundThreads {
    handle: Handle,
    runtime: Option<Runtime>,
}

/// How many threads there are.
#[derive(Debug, Clone, Copy)]
pub struct BackgroundLimits {
    /// For tasks.
    pub tasks: NonZeroUsize,
    /// For what blocks, at most; they are started when needed.
    pub blocking: NonZeroUsize,
}

impl BackgroundThreads {
    /// Starts them under this name.
    ///
    /// # Errors
    /// If there can be none.
    pub fn start(name: &str, limits: BackgroundLimits) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(limits.tasks.get())
            .max_blocking_threads(limits.blocking.get())
            .thread_name(name)
            .on_thread_start(give_way)
            .enable_all()
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// Does all of a work on them. Dropping the future does not end it. A panic goes on in who waits.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        match self.handle.spawn(work.in_current_span()).await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
            // Only dropping the runtime cancels it, and that is ours.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for BackgroundThreads {
    fn drop(&mut self) {
        // Waiting for them is not allowed where tasks are dropped.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Lets the calling thread give way as far as that is allowed.
pub fn give_way() {
    if let Err(error) = palimpsest_priority::give_way() {
        tracing::debug!(%error, "background work goes on at usual priority");
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_priority::NICE;
    use rustix::process::getpriority_process;

    use super::*;

    const LIMITS: BackgroundLimits = BackgroundLimits {
        tasks: NonZeroUsize::MIN,
        blocking: NonZeroUsize::MIN,
    };

    #[tokio::test]
    async fn all_of_a_work_gives_way_and_nothing_else() {
        let before = getpriority_process(None).unwrap();
        let threads = BackgroundThreads::start("test", LIMITS).unwrap();
        let work = async {
            let blocking = tokio::task::spawn_blocking(|| getpriority_process(None).unwrap());
            let own = getpriority_process(None).unwrap();
            (own, blocking.await.unwrap())
        };
        let expected = NICE.max(before);
        assert_eq!(threads.run(work).await, (expected, expected));
        assert_eq!(getpriority_process(None).unwrap(), before);
    }

    #[tokio::test]
    #[should_panic(expected = "on purpose")]
    async fn a_panic_is_not_lost() {
        let threads = BackgroundThreads::start("test", LIMITS).unwrap();
        threads.run(async { panic!("on purpose") }).await
    }
}
