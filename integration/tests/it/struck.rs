//! A wal-ingest that dies at a step of its work.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use palimpsest_api::{TimelineRef, broker::TimelineView};
use palimpsest_integration::{
    processes::{Process, ProcessState, Processes},
    strikes::{Action, DIARY_VARIABLE, Diary, Entry, Moment, Plan, STRIKES_VARIABLE, Step, Strike},
};
use tokio::time::sleep;

/// Nothing that is waited for takes longer, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);
const GLANCE: Duration = Duration::from_millis(20);
/// Entries of a diary that a failed judge shows.
const SHOWN: usize = 12;

/// Where it dies: on one side of the step of this number of its kind, from 1.
pub(crate) fn place(moment: Moment, step: Step, number: u32) -> Strike {
    Strike {
        number: NonZeroU32::MIN.saturating_add(number - 1),
        ..Strike::first(moment, step, Action::Kill)
    }
}

/// Starts one that dies at a place, and waits until it has; `is_over` says of the timeline that it has passed all such places.
pub(crate) async fn dies_at(
    processes: &mut Processes,
    timeline: TimelineRef,
    (strike, diary): (Strike, &Diary),
    is_over: impl Fn(&TimelineView) -> bool,
) -> Result<()> {
    let (path, plan) = (diary.path().display().to_string(), Plan(vec![strike]));
    let orders = [
        (DIARY_VARIABLE, path.as_str()),
        (STRIKES_VARIABLE, &plan.to_string()),
    ];
    processes.start_with(Process::WalIngest, &orders)?;
    let begun = Instant::now();
    while processes.state(Process::WalIngest)? != ProcessState::Killed {
        let view = processes.cluster().borrow().timeline(timeline).cloned();
        let is_missed = view.as_ref().is_some_and(&is_over) || begun.elapsed() > PATIENCE;
        ensure!(!is_missed, "not struck: {:?}", newest_of(diary)?);
        sleep(GLANCE).await;
    }
    Ok(())
}

/// What was done last.
pub(crate) fn newest_of(diary: &Diary) -> Result<Vec<Entry>> {
    let entries = diary.read()?;
    let later = entries.len().saturating_sub(SHOWN);
    Ok(entries.into_iter().skip(later).collect())
}
