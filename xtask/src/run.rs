//! Running a program so that its output is both seen and kept.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

/// What a program said and how it ended.
pub(crate) struct Finished {
    pub(crate) success: bool,
    pub(crate) output: String,
}

/// Cargo, in the workspace, without colours so that its summaries can be read.
pub(crate) fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(arguments)
        .current_dir(root)
        .env("CARGO_TERM_COLOR", "never");
    command
}

/// Runs `command`, passing its output on line by line.
pub(crate) fn tee(mut command: Command) -> Result<Finished> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{:?} could not be executed", command.get_program()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (out, err) = std::thread::scope(|scope| {
        let out = scope.spawn(|| stdout.map(|pipe| copy_lines(pipe, io::stdout())));
        let err = scope.spawn(|| stderr.map(|pipe| copy_lines(pipe, io::stderr())));
        (out.join(), err.join())
    });
    let output = [out, err]
        .into_iter()
        .filter_map(|part| part.ok().flatten())
        .collect();
    Ok(Finished {
        success: child.wait()?.success(),
        output,
    })
}

/// Copies until the end; what cannot be shown any more is still kept.
fn copy_lines(pipe: impl Read, mut to: impl Write) -> String {
    let mut reader = BufReader::new(pipe);
    let mut kept = String::new();
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .is_ok_and(|length| length > 0)
    {
        let _ = to.write_all(&line).and_then(|()| to.flush());
        kept.push_str(&String::from_utf8_lossy(&line));
        line.clear();
    }
    kept
}
