//! Running programs, and bringing a server up and down.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Line of `postmaster.pid` that tells how far the server is.
const STATUS_LINE: usize = 7;

/// A command in a process group of its own, deaf to the caller's PostgreSQL settings.
pub(super) fn isolated(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C").process_group(0);
    command
}

/// Runs a command to its end and returns what it printed; an error carries its complaints.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{:?} could not be executed", command.get_program()))?;
    checked(command, output.status, &output.stderr)?;
    String::from_utf8(output.stdout).context("the output is not UTF-8")
}

/// Turns a failed exit into an error with what the command wrote to standard error.
pub(super) fn checked(command: &Command, status: ExitStatus, stderr: &[u8]) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let program = Path::new(command.get_program()).display();
    bail!(
        "{program} ended with {status}: {}",
        String::from_utf8_lossy(stderr).trim()
    );
}

/// Waits until the server says in its lock file that it accepts connections.
pub(super) fn wait_until_ready(child: &mut Child, data: &Path, limit: Duration) -> Result<()> {
    let lock = data.join("postmaster.pid");
    let own_pid = child.id().to_string();
    let deadline = Instant::now() + limit;
    loop {
        let text = fs::read_to_string(&lock).unwrap_or_default();
        let mut lines = text.lines().map(str::trim);
        // A file left by a killed server names another process.
        let is_own = lines.clone().next() == Some(own_pid.as_str());
        if is_own && lines.nth(STATUS_LINE) == Some("ready") {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended with {status}");
        }
        if Instant::now() > deadline {
            bail!("it was not ready after {limit:?}");
        }
        pause();
    }
}

/// Sends `signal` and waits for the end.
pub(super) fn stop(child: &mut Child, signal: Signal, limit: Duration) -> Result<()> {
    kill_process(Pid::from_child(child), signal).context("signalling the server")?;
    let deadline = Instant::now() + limit;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            bail!("the server did not stop within {limit:?} of signal {signal:?}");
        }
        pause();
    }
    Ok(())
}

/// Kills the server and the processes it started, and waits until all are gone.
///
/// Its children have sessions of their own, so no group reaches them. The server is halted first:
/// it could start new ones between the look and the kill.
pub(super) fn kill_with_children(child: &mut Child) {
    let server = Pid::from_child(child);
    // Errors mean that the process is gone, which is what is wanted.
    let _ = kill_process(server, Signal::STOP);
    let workers = children_of(child.id());
    let _ = kill_process(server, Signal::KILL);
    for pid in workers
        .iter()
        .filter_map(|pid| Pid::from_raw(pid.cast_signed()))
    {
        let _ = kill_process(pid, Signal::KILL);
    }
    let _ = child.wait();
    let deadline = Instant::now() + Duration::from_secs(10);
    while workers.iter().any(|pid| is_alive(*pid)) && Instant::now() < deadline {
        pause();
    }
}

fn children_of(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| state_and_parent(*pid).is_some_and(|(_, of)| of == parent))
        .collect()
}

fn is_alive(pid: u32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != "Z")
}

/// The state and the parent of a process. The name, second in the line, may hold spaces and
/// parentheses, so the fields are counted from its end.
fn state_and_parent(pid: u32) -> Option<(String, u32)> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = line.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a blocking test helper; no runtime to hold up"
)]
fn pause() {
    std::thread::sleep(POLL_INTERVAL);
}
