//! What the kernel and a service itself tell of a process.

use std::{fs, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::processes::{Process, Processes};

/// A service tells its metrics much sooner.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of a process, in `/proc/PID/stat` behind its name: time in user mode, then in the kernel.
const CPU_FIELDS: [usize; 2] = [11, 12];

/// The metrics of a service at one moment.
#[derive(Debug)]
pub(super) struct Metrics(String);

impl Metrics {
    /// Asks a service.
    ///
    /// # Errors
    /// If it does not answer.
    pub(super) async fn of(processes: &Processes, process: Process) -> Result<Self> {
        let asking = ask(processes.side_address(process));
        let answer = timeout(PATIENCE, asking).await;
        let answer = answer.with_context(|| format!("{} tells nothing", process.name()))?;
        answer
            .map(Self)
            .with_context(|| format!("the metrics of {}", process.name()))
    }

    /// The value of a metric, of all its labels together.
    ///
    /// # Errors
    /// If there is none of this name.
    pub(super) fn get(&self, name: &str) -> Result<f64> {
        let samples = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let of = series.split('{').next();
            (of == Some(name)).then(|| value.parse::<f64>())
        });
        let values = samples.collect::<Result<Vec<_>, _>>()?;
        ensure!(!values.is_empty(), "there is no metric {name}");
        Ok(values.iter().sum())
    }
}

async fn ask(address: String) -> Result<String> {
    let mut connection = TcpStream::connect(address).await?;
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The most memory that a process has had resident, in bytes (`VmHWM`).
///
/// # Errors
/// If it does not run.
pub(super) fn peak_memory(processes: &Processes, process: Process) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid(processes, process)?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmHWM")?.parse::<u64>()? << 10)
}

/// The time that all threads of a process have had of a CPU.
///
/// # Errors
/// If it does not run.
pub(super) fn cpu_seconds(processes: &Processes, process: Process) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid(processes, process)?))?;
    let ticks = cpu_ticks(&stat).with_context(|| format!("no times in {stat:?}"))?;
    let second = Command::new("getconf").arg("CLK_TCK").output()?.stdout;
    let second: u64 = String::from_utf8(second)?.trim().parse()?;
    Ok(ticks as f64 / second as f64)
}

fn cpu_ticks(stat: &str) -> Option<u64> {
    // A name may hold anything, also parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    let times = CPU_FIELDS.map(|field| fields.get(field)?.parse::<u64>().ok());
    times.into_iter().sum()
}

/// Holds all threads of a process, and those that they will start, to one CPU.
///
/// # Errors
/// If it does not run.
pub(super) fn hold_to_one_cpu(processes: &Processes, process: Process) -> Result<()> {
    let pid = pid(processes, process)?.to_string();
    // On a machine of few CPUs what it does in the background keeps to the last by itself.
    let last = thread::available_parallelism()?.get() - 1;
    let output = Command::new("taskset")
        .args([
            "--all-tasks",
            "--cpu-list",
            "--pid",
            &last.to_string(),
            &pid,
        ])
        .output()
        .context("executing taskset")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "taskset: {complaint}");
    Ok(())
}

fn pid(processes: &Processes, process: Process) -> Result<u32> {
    let pid = processes.pid(process);
    pid.with_context(|| format!("{} does not run", process.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_not_taken_for_another() {
        let text = "# HELP reads Reads\nreads_sum{of=\"a b\"} 3\nreads_sum{of=\"c\"} 4.5\nreads_sum_total 9\n# EOF\n";
        let metrics = Metrics(text.to_owned());
        assert!((metrics.get("reads_sum").unwrap() - 7.5).abs() < f64::EPSILON);
        assert!(metrics.get("reads").is_err());
    }

    #[test]
    fn times_are_found_behind_a_name_with_parentheses() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 9 0 1000";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7 (a) S 1"), None);
    }
}
