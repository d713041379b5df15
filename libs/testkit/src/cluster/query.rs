//! Asking a running cluster: psql, pgbench, positions, pg_waldump.

use std::{
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use palimpsest_types::Lsn;

use super::{Cluster, SUPERUSER, Session, process};

/// What pg_waldump says where the WAL written so far ends.
const END_OF_WAL: &str = "error in WAL record at";

impl Cluster {
    /// Runs SQL, each statement in a transaction of its own, and returns the rows, unaligned and
    /// without headers. The first failing statement ends it with an error.
    pub fn psql(&self, db: &str, sql: &str) -> Result<String> {
        let mut command = self.psql_command(db);
        let mut child = command
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("psql could not be executed")?;
        let stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            // Apart, because psql stops reading while nobody takes what it prints.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(sql.as_bytes())));
            child.wait_with_output()
        })?;
        process::checked(&command, output.status, &output.stderr)?;
        let text = String::from_utf8(output.stdout).context("psql's output is not UTF-8")?;
        Ok(text.trim_end().to_owned())
    }

    /// Runs a file of SQL as [`Cluster::psql`] does.
    pub fn psql_file(&self, db: &str, file: &Path) -> Result<String> {
        process::output(self.psql_command(db).arg("-f").arg(file))
    }

    /// Opens a session that stays: for what needs several at once, such as row locks.
    pub fn session(&self, db: &str) -> Result<Session> {
        Session::open(self.psql_command(db))
    }

    /// Runs pgbench with these arguments, the last of which is the database.
    pub fn pgbench(&self, args: &[&str]) -> Result<String> {
        process::output(self.as_superuser("pgbench").args(args))
    }

    /// Starts pgbench with these arguments, the last of which is the database.
    pub fn start_pgbench(&self, args: &[&str]) -> Result<Child> {
        let mut pgbench = self.as_superuser("pgbench");
        let started = pgbench.args(args).stdout(Stdio::null()).spawn();
        started.context("starting pgbench")
    }

    /// The end of the WAL inserted so far, which may not be written yet.
    pub fn lsn(&self) -> Result<Lsn> {
        self.query_lsn("SELECT pg_current_wal_insert_lsn()")
    }

    /// The end of the WAL that is flushed.
    pub fn flush_lsn(&self) -> Result<Lsn> {
        self.query_lsn("SELECT pg_current_wal_flush_lsn()")
    }

    /// Ends the current WAL segment; returns the end of the record that did.
    pub fn switch_wal(&self) -> Result<Lsn> {
        self.query_lsn("SELECT pg_switch_wal()")
    }

    /// Writes a checkpoint.
    pub fn checkpoint(&self) -> Result<()> {
        self.psql("postgres", "CHECKPOINT").map(drop)
    }

    /// The records from `start` on, as pg_waldump prints them: up to `end`, or all that is flushed.
    pub fn waldump(&self, start: Lsn, end: Option<Lsn>) -> Result<Vec<String>> {
        self.run_waldump(&[], start, end)
    }

    /// The number of records of each kind from `start` on: `Heap/INSERT`, `Btree/SPLIT_L`.
    pub fn wal_stats(&self, start: Lsn, end: Option<Lsn>) -> Result<Vec<(String, u64)>> {
        let lines = self.run_waldump(&["--stats=record"], start, end)?;
        Ok(lines.iter().filter_map(|line| stats_line(line)).collect())
    }

    fn run_waldump(&self, flags: &[&str], start: Lsn, end: Option<Lsn>) -> Result<Vec<String>> {
        let end = match end {
            None if self.is_running() => Some(self.flush_lsn()?),
            given => given,
        };
        let mut command = self.tool("pg_waldump");
        command
            .args(flags)
            .arg("--path")
            .arg(self.data_dir().join("pg_wal"));
        command.arg(format!("--start={start}"));
        if let Some(end) = end {
            command.arg(format!("--end={end}"));
        }
        let output = command
            .stdin(Stdio::null())
            .output()
            .context("executing pg_waldump")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        // Without an end it always complains: that is how it finds the end of a stopped server's WAL.
        if end.is_some() || !complaint.contains(END_OF_WAL) {
            process::checked(&command, output.status, &output.stderr)?;
        }
        let text = String::from_utf8(output.stdout).context("pg_waldump's output is not UTF-8")?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn query_lsn(&self, sql: &str) -> Result<Lsn> {
        let text = self.psql("postgres", sql)?;
        text.parse()
            .with_context(|| format!("the answer to {sql:?}"))
    }

    fn psql_command(&self, db: &str) -> Command {
        let mut command = self.as_superuser("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", db]);
        command
    }

    /// A client program that connects over the socket.
    fn as_superuser(&self, program: &str) -> Command {
        let mut command = self.tool(program);
        command
            .args(["-U", SUPERUSER, "-p", &self.port().to_string(), "-h"])
            .arg(self.socket_dir())
            .env("PGCONNECT_TIMEOUT", "30");
        command
    }
}

/// A line `Heap2   123 ( 4.50)  …` of the table; headings, rules and the sum are not.
fn stats_line(line: &str) -> Option<(String, u64)> {
    let mut words = line.split_whitespace();
    let (name, count) = (words.next()?, words.next()?.parse().ok()?);
    (name != "Total").then(|| (name.to_owned(), count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_table_of_pg_waldump() {
        let line = "Heap2            2 ( 12.50)     1014 ( 22.34)    0 (  0.00)   1014 ( 18.14)";
        assert_eq!(stats_line(line), Some(("Heap2".to_owned(), 2)));
        assert_eq!(
            stats_line("Type        N      (%)          Record size"),
            None
        );
        assert_eq!(stats_line("Total       16           4540 [81.20%]"), None);
    }
}
