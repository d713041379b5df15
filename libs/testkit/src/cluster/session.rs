//! A psql that stays connected.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Printed by psql after each piece of SQL, so that its answer's end can be seen.
const END_OF_ANSWER: &str = "--- end of answer ---";

/// One connection, whose transaction and locks last from call to call.
#[derive(Debug)]
pub struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    stderr: ChildStderr,
}

impl Session {
    pub(super) fn open(mut psql: Command) -> Result<Self> {
        psql.stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = psql.spawn().context("psql could not be executed")?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            bail!("psql has no pipes");
        };
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
            stderr,
        })
    }

    /// Runs SQL and waits for its end; returns the rows. After an error the session is over.
    pub fn run(&mut self, sql: &str) -> Result<String> {
        // A write to a psql that has ended fails; what it said on its way out tells more.
        let sent = writeln!(self.stdin, "{sql};\n\\echo '{END_OF_ANSWER}'");
        let mut answer = String::new();
        let mut line = String::new();
        while sent.is_ok() && self.stdout.read_line(&mut line)? > 0 {
            if line.trim_end() == END_OF_ANSWER {
                return Ok(answer.trim_end().to_owned());
            }
            answer.push_str(&line);
            line.clear();
        }
        let mut complaint = String::new();
        self.stderr.read_to_string(&mut complaint)?;
        bail!("psql gave up at {sql:?}: {}", complaint.trim());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Whatever is open is rolled back by the server when the connection ends.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
