//! SQL that makes PostgreSQL write every kind of WAL record that stock use produces.
//!
//! A workload is a list of named steps, so that a test can read pages at the LSN between any two.
//! The SQL of most steps is in files beside this one; steps that need several sessions, databases
//! or programs are functions in `programs.rs`. Equal seeds give equal data, not equal WAL:
//! background processes and concurrent sessions write when they like.

use std::{num::NonZeroU32, time::Instant};

use anyhow::{Context as _, Result};
use palimpsest_types::Lsn;

use crate::Cluster;

mod programs;

/// The database that the steps work in; made anew by the first of them.
pub const DATABASE: &str = "workload";

/// The smallest size: some 100 MB of WAL, in a few seconds on two cores.
pub const QUICK: NonZeroU32 = NonZeroU32::MIN;

/// What to run, how much of it, and with which random numbers.
#[derive(Debug, Clone)]
pub struct Workload {
    seed: u32,
    scale: NonZeroU32,
    steps: Vec<Step>,
}

/// The end of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boundary {
    /// The step that ended.
    pub step: &'static str,
    /// End of the WAL inserted when it had ended.
    pub lsn: Lsn,
}

/// What a cluster or a test may not want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// `CREATE DATABASE … STRATEGY file_copy`: pages change without records of their own.
    FileCopy,
    /// Relations in and moved between tablespaces (in place, so without absolute paths).
    Tablespaces,
}

#[derive(Debug, Clone, Copy)]
struct Step {
    name: &'static str,
    work: Work,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    /// SQL in which psql replaces `:scale`.
    Sql(&'static str),
    Program(fn(&Workload, &Cluster) -> Result<()>),
}

macro_rules! sql {
    ($name:literal) => {
        Step {
            name: $name,
            work: Work::Sql(include_str!(concat!("workload/", $name, ".sql"))),
        }
    };
}

const fn program(name: &'static str, run: fn(&Workload, &Cluster) -> Result<()>) -> Step {
    Step {
        name,
        work: Work::Program(run),
    }
}

const STEPS: [Step; 24] = [
    program("create_database", programs::create_database),
    sql!("btree"),
    sql!("hash"),
    sql!("gin"),
    sql!("gist"),
    sql!("spgist"),
    sql!("brin"),
    sql!("generic"),
    sql!("toast"),
    sql!("hot"),
    program("copy", programs::copy),
    sql!("vacuum"),
    sql!("transactions"),
    sql!("sequences"),
    sql!("ddl"),
    sql!("unlogged"),
    sql!("concurrent_index"),
    sql!("two_phase"),
    sql!("large_objects"),
    sql!("locks_setup"),
    program("row_locks", programs::row_locks),
    program("databases", programs::databases),
    program("pgbench", programs::pgbench),
    sql!("log_only"),
];

impl Workload {
    /// Every step that runs on a cluster with the default options.
    pub fn full(seed: u32, scale: NonZeroU32) -> Self {
        Self {
            seed,
            scale,
            steps: STEPS.to_vec(),
        }
    }

    /// The same with one step more, before the steps that end the workload.
    #[must_use]
    pub fn with(mut self, extra: Extra) -> Self {
        let step = match extra {
            Extra::FileCopy => program("file_copy", programs::file_copy),
            Extra::Tablespaces => sql!("tablespaces"),
        };
        let end = self.steps.len().saturating_sub(2);
        self.steps.insert(end, step);
        self
    }

    /// The names of the steps, in order.
    pub fn step_names(&self) -> impl Iterator<Item = &'static str> {
        self.steps.iter().map(|step| step.name)
    }

    /// Runs all steps; returns where each ended.
    pub fn run(&self, cluster: &Cluster) -> Result<Vec<Boundary>> {
        let mut boundaries = Vec::with_capacity(self.steps.len());
        self.run_with(cluster, |boundary| {
            boundaries.push(boundary);
            Ok(())
        })?;
        Ok(boundaries)
    }

    /// Runs all steps and calls `between` after each, while nothing else runs.
    pub fn run_with(
        &self,
        cluster: &Cluster,
        mut between: impl FnMut(Boundary) -> Result<()>,
    ) -> Result<()> {
        for step in &self.steps {
            let begun = Instant::now();
            match step.work {
                Work::Sql(text) => cluster.psql(DATABASE, &self.script(text)).map(drop),
                Work::Program(run) => run(self, cluster),
            }
            .with_context(|| {
                format!(
                    "workload step {} with seed {}, {:?} on",
                    step.name,
                    self.seed,
                    begun.elapsed()
                )
            })?;
            between(Boundary {
                step: step.name,
                lsn: cluster.lsn()?,
            })?;
        }
        Ok(())
    }

    /// SQL with the size and the random numbers set up before it.
    fn script(&self, text: &str) -> String {
        // `setseed` takes numbers from -1 to 1.
        let fraction = f64::from(self.seed) / f64::from(u32::MAX);
        format!(
            "\\set scale {}\nSELECT setseed({fraction});\n{text}",
            self.scale
        )
    }
}
