//! Signals that end the process.

use std::{io, process};

use palimpsest_runtime::CancellationToken;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a shell reports for a program that was interrupted.
const INTERRUPTED: i32 = 130;

/// A token that SIGTERM or Ctrl-C cancels. A second signal exits at once.
///
/// # Errors
/// If the signals can't be listened for.
pub fn signal_token() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    // Outside of any scope: it must outlive all of them to notice the second signal.
    tokio::spawn(async move {
        next(&mut terminate, &mut interrupt).await;
        tracing::info!("shutting down; a second signal exits at once");
        cancel.cancel();
        next(&mut terminate, &mut interrupt).await;
        tracing::warn!("exiting without finishing the shutdown");
        process::exit(INTERRUPTED);
    });
    Ok(token)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) {
    // Cancel-safe: `recv` loses no signal when dropped.
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
