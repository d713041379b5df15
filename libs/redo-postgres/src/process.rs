//! One redo process: its pipes, its last words and its end.

use std::{fmt, process::ExitStatus, time::Duration};

use rustix::pipe::fcntl_setpipe_size;
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStderr, ChildStdin, ChildStdout},
    task::JoinHandle,
    time::timeout,
};

/// Messages kept of a process that dies.
const LAST_WORDS_MAX: usize = 4096;

/// What a pipe is asked to hold, so that a request with a base page and its answer need one system
/// call each.
const PIPE_BYTES: usize = 1 << 20;

/// How long to wait for the end of a killed process and of its messages.
const BURIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pub(crate) stdin: ChildStdin,
    pub(crate) stdout: ChildStdout,
    last_words: JoinHandle<Vec<u8>>,
}

/// How a process ended.
#[derive(Debug, Clone)]
pub struct Obituary {
    status: Option<ExitStatus>,
    last_words: String,
}

impl Process {
    /// Takes over a child whose three standard streams are pipes; `None` if one is not.
    pub(crate) fn new(mut child: Child) -> Option<Self> {
        let (stdin, stdout) = (child.stdin.take()?, child.stdout.take()?);
        let last_words = tokio::spawn(collect_last_words(child.stderr.take()?));
        let sizes = (
            fcntl_setpipe_size(&stdin, PIPE_BYTES),
            fcntl_setpipe_size(&stdout, PIPE_BYTES),
        );
        if let (Err(error), _) | (_, Err(error)) = sizes {
            tracing::debug!(%error, "redo pipes keep their default size");
        }
        Some(Self {
            child,
            stdin,
            stdout,
            last_words,
        })
    }

    /// Its process number, while it has not been waited for.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills it, if that is still necessary, and collects what there is to know.
    pub(crate) async fn bury(mut self) -> Obituary {
        // The status of a process that has ended by itself stays what it was.
        let _ = self.child.start_kill();
        let status = timeout(BURIAL_TIMEOUT, self.child.wait()).await;
        let last_words = timeout(BURIAL_TIMEOUT, self.last_words).await;
        Obituary {
            status: status.ok().and_then(Result::ok),
            last_words: last_words
                .ok()
                .and_then(Result::ok)
                .map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
                .unwrap_or_default(),
        }
    }

    /// Lets it end by itself at the end of its input; kills it after `patience`.
    pub(crate) async fn dismiss(self, patience: Duration) {
        let Self {
            mut child, stdin, ..
        } = self;
        drop(stdin);
        if timeout(patience, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }
}

/// Reads to the end, so that the process never waits for a reader, and keeps the last part.
async fn collect_last_words(mut stderr: ChildStderr) -> Vec<u8> {
    let mut words = Vec::new();
    while let Ok(1..) = stderr.read_buf(&mut words).await {
        let excess = words.len().saturating_sub(LAST_WORDS_MAX);
        words.drain(..excess);
    }
    words
}

impl fmt::Display for Obituary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}")?,
            None => f.write_str("it has not ended yet")?,
        }
        if self.last_words.is_empty() {
            return Ok(());
        }
        write!(f, ", after {:?}", self.last_words)
    }
}
