//! What compaction costs and what it is good for, over gigabytes of WAL.
//!
//! The same twice: first nobody compacts until the end, and then a compactor on one CPU has all of
//! it to do; then one compacts after each part of the WAL. Reads are of random pages at the newest
//! LSN, one at a time, by a page-serve that keeps hardly any page.

mod pass;
mod reads;
mod report;
mod source;
mod turns;
mod volume;

use anyhow::Result;

use super::Places;
use pass::{Pass, catch_up};
use volume::Volume;

pub use report::Report;

/// Writes so much WAL, twice, and measures after each part of it.
///
/// # Errors
/// If a service or PostgreSQL fails, or something takes much too long.
pub async fn measure(places: &Places, wal_mebibytes: u64) -> Result<Report> {
    let volume = Volume::of(wal_mebibytes);
    let mut pass = Pass::start(places, "never-compacted", volume).await?;
    let mut never = Vec::new();
    for round in 1..=volume.rounds() {
        never.push(pass.round(round, None).await?);
    }
    let ingest = pass.ingested().await?;
    let catching_up = catch_up(&mut pass).await?;
    // Its files make room for those of the next.
    pass.end()?;

    let mut pass = Pass::start(places, "compacted", volume).await?;
    let mut turns = turns::Turns::default();
    let mut compacted = Vec::new();
    turns::start(pass.processes()).await?;
    for round in 1..=volume.rounds() {
        compacted.push(pass.round(round, Some(&mut turns)).await?);
    }
    pass.end()?;
    Ok(Report {
        volume,
        never,
        compacted,
        ingest,
        catching_up,
        turns,
    })
}
