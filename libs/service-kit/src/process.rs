//! From the start of a service to the exit code.

use std::{error::Error, future::Future, process::ExitCode};

use palimpsest_runtime::TaskScope;
use palimpsest_types::ErrorKind;

use crate::{shutdown::signal_token, threads};

/// A service could not start: why, and whether its settings are to blame.
#[derive(Debug)]
pub struct Failure {
    kind: ErrorKind,
    message: String,
}

/// The settings are wrong (`EX_USAGE`): starting again with the same ones is of no use.
pub(crate) const BAD_SETTINGS: u8 = 64;

/// Runs the whole of a process, on no more threads than fit.
pub fn block_on(work: impl Future<Output = ExitCode>) -> ExitCode {
    threads::block_on(work).unwrap_or_else(|error| {
        tracing::error!(%error, "can't start threads");
        ExitCode::FAILURE
    })
}

/// Runs what `start` starts until a signal comes or one of its tasks panics.
pub async fn run<Start, Starting, Running, E>(start: Start) -> ExitCode
where
    Start: FnOnce(TaskScope) -> Starting,
    Starting: Future<Output = Result<Running, E>>,
    E: Into<Failure>,
{
    let signals = match signal_token() {
        Ok(token) => token,
        Err(error) => {
            tracing::error!(%error, "can't listen for signals");
            return ExitCode::FAILURE;
        }
    };
    let scope = TaskScope::new(signals.child_token());
    // Cancel-safe: a service that has not started has nothing to lose.
    let started = tokio::select! {
        started = start(scope.clone()) => started,
        () = signals.cancelled() => {
            scope.stop().await;
            return ExitCode::SUCCESS;
        }
    };
    let running = match started {
        Ok(running) => running,
        Err(failure) => {
            let failure = failure.into();
            tracing::error!(error = %failure.message, "cannot start");
            scope.stop().await;
            return failure.exit_code();
        }
    };
    scope.token().cancelled().await;
    scope.stop().await;
    drop(running);
    match signals.is_cancelled() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

impl Failure {
    /// A failure with all its causes.
    pub fn new(kind: ErrorKind, error: &dyn Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        Self { kind, message }
    }

    /// 64 if the settings are to blame, else 1.
    pub fn exit_code(&self) -> ExitCode {
        match self.kind {
            ErrorKind::Invalid => ExitCode::from(BAD_SETTINGS),
            _ => ExitCode::FAILURE,
        }
    }
}
