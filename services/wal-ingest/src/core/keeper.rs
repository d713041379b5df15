//! The slot, kept apart from the stream: it follows what the object store has.
//!
//! PostgreSQL moves a physical slot to the flush position of the connection that uses it, and
//! removes the WAL before it. Our own disk alone is not enough for that. So the stream uses no slot,
//! and every few seconds a short connection looks at the slot, and moves it up to
//! `remote_consistent` by a stream of its own that ends at once.
//!
//! The same look guards the source's disk: a slot that holds back more WAL than allowed is dropped,
//! because the user's database matters more than our history; what becomes of the timeline then,
//! [`slotless`] decides. It also notices a slot that nobody but
//! us should move and that has moved: it was dropped and made anew, perhaps with WAL lost between.

use std::time::Duration;

use palimpsest_manifest::SourceCluster;
use palimpsest_postgres::{
    ClientError, Connection, ReplicationEvent, SlotState, StandbyStatus, SystemIdentity,
};
use palimpsest_types::{ByteCount, Lsn};
use tokio::time::{Instant, sleep, timeout};

use super::{
    back_off::BackOff,
    error::{IngestError, Stop},
    set_back, slotless,
    source::{connect_to, warnings},
    timeline::Timeline,
    warnings::Topic,
};

/// How often the slot is looked at, on average.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
/// Never more often.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// So much more in the object store is worth an earlier look.
const WORTH_A_VISIT: u64 = 16 << 20;
/// Longest visit: while one lasts, the source can't shut down.
pub(super) const VISIT: Duration = Duration::from_secs(5);
/// For each of several hosts.
const PATIENCE: Duration = Duration::from_secs(3);
/// Failures in a row that a person hears of.
const FAILURES: u32 = 3;

/// What a slot is kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Duty {
    /// It follows what the object store has.
    Follow,
    /// Nothing any more: it is only kept from filling the source's disk.
    Guard,
}

/// What a look at the slot asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// Nothing can be done: it does not exist, or keeps nothing because the source invalidated it.
    /// Never reported over, which would hide the gap.
    Lost,
    /// It keeps only what comes after here, which the object store has not reached, as far as we
    /// know.
    Ahead(Lsn),
    /// It would hold back so much even after it was moved; more than allowed.
    Drop(ByteCount),
    /// To move it up to here.
    Move(Lsn),
    /// Nothing: the object store has no more than before.
    Leave,
}

/// What is left to do for the slot of a timeline that has stopped.
pub(super) fn duty_after(error: &IngestError) -> Option<Duty> {
    match error {
        // A slot of another history is not ours to move.
        IngestError::Stop(Stop::Superseded | Stop::SlotDropped { .. } | Stop::NotTheEnd { .. }) => {
            None
        }
        // In its place there may be another of its name, which keeps WAL as well. And a source that was
        // recovered in place has the slot still.
        IngestError::Stop(
            Stop::SlotLost { .. }
            | Stop::OtherTimeline { .. }
            | Stop::Left(_)
            | Stop::SetBack { .. }
            | Stop::OtherCluster { .. },
        ) => Some(Duty::Guard),
        _ => Some(Duty::Follow),
    }
}

/// Keeps the slot until it is lost or has to be dropped; says which.
pub(super) async fn run(timeline: &Timeline, source: &SourceCluster, duty: Duty) -> Stop {
    let mut back_off = BackOff::default();
    let mut failures = 0;
    let mut kept_from = None;
    loop {
        let remote = known_remote(timeline, duty);
        // Boxed: its state is large, and there only while it lasts.
        let visit = Box::pin(visit(timeline, source, (duty, remote)));
        let error = match timeout(VISIT, visit).await {
            Ok(Ok(restart)) => {
                (back_off, failures) = (BackOff::default(), 0);
                kept_from = restart.or(kept_from);
                well(timeline, duty).await;
                wait(timeline, remote).await;
                continue;
            }
            // Whoever answers there now, the slot may be back with the source.
            Ok(Err(IngestError::Stop(stop @ Stop::OtherCluster { .. }))) if duty == Duty::Guard => {
                stop.to_string()
            }
            Ok(Err(IngestError::Stop(stop))) => {
                timeline.warn(Topic::Keeper, Vec::new());
                return stop;
            }
            Ok(Err(error)) => error.in_words(),
            Err(_) => format!("the source did not answer within {} s", VISIT.as_secs()),
        };
        failures += 1;
        if failures < FAILURES {
            tracing::debug!(timeline = %timeline.id(), error, failures, "can't look after the slot");
        } else {
            if failures == FAILURES {
                tracing::error!(timeline = %timeline.id(), error, "can't look after the slot; trying again");
            }
            neglected(timeline, kept_from, &error);
        }
        back_off.wait().await;
    }
}

/// The slot is as it should be.
async fn well(timeline: &Timeline, duty: Duty) {
    timeline.warn(Topic::Keeper, Vec::new());
    if duty == Duty::Guard {
        return;
    }
    match timeline.is_slotless() {
        // It was to be dropped, and was not.
        true => slotless::over(timeline).await,
        false => {
            timeline.warn(Topic::Slot, Vec::new());
        }
    }
}

/// Nobody looks after the slot for the moment, so it keeps more and more of the source's WAL: a
/// person has to know, and how much, as far as the stream tells.
fn neglected(timeline: &Timeline, kept_from: Option<Lsn>, error: &str) {
    let slot = &timeline.slot;
    let text = format!(
        "can't look after replication slot {slot} at the source, which holds back WAL there: {error}"
    );
    timeline.warn(Topic::Keeper, vec![text]);
    if let Some(from) = kept_from {
        timeline.update(|status| {
            let kept = ByteCount::new(status.received.saturating_sub(from));
            status.slot_retained = kept.max(status.slot_retained);
        });
    }
}

/// What the object store has, if that is known and the slot is to follow it.
fn known_remote(timeline: &Timeline, duty: Duty) -> Option<Lsn> {
    let remote = timeline.status().remote_consistent;
    (duty == Duty::Follow && remote > Lsn::ZERO).then_some(remote)
}

/// Waits until another visit is due.
async fn wait(timeline: &Timeline, visited_at: Option<Lsn>) {
    let visited_at = visited_at.unwrap_or_else(|| timeline.status().remote_consistent);
    let interval = INTERVAL.mul_f64(rand::random_range(0.75..1.25));
    let begun = Instant::now();
    loop {
        sleep(MIN_INTERVAL).await;
        let remote = timeline.status().remote_consistent;
        if begun.elapsed() >= interval || remote.saturating_sub(visited_at) > WORTH_A_VISIT {
            return;
        }
    }
}

/// One look at the slot, and what follows from it: from where on it keeps WAL now.
async fn visit(
    timeline: &Timeline,
    source: &SourceCluster,
    (duty, remote): (Duty, Option<Lsn>),
) -> Result<Option<Lsn>, IngestError> {
    let slot = &timeline.slot;
    let (mut connection, identity) = connect(timeline, source, duty).await?;
    let state = connection.read_replication_slot(slot).await?;
    let limit = timeline.limits().slot_retention;
    match plan(state, identity.xlogpos, remote, limit) {
        Plan::Lost => {
            connection.close().await;
            return Err(lost(timeline, remote).into());
        }
        Plan::Ahead(restart) => {
            connection.close().await;
            explain(timeline, restart).await?;
            return Ok(Some(restart));
        }
        Plan::Drop(retained) => {
            slotless::before_drop(timeline).await;
            timeline.note_dropped(true);
            connection.drop_slot(slot).await?;
            timeline.update(|status| status.slot_retained = ByteCount::ZERO);
            connection.close().await;
            let slot = slot.to_string();
            return Err(Stop::SlotDropped {
                slot,
                retained,
                limit,
            }
            .into());
        }
        Plan::Leave => {}
        Plan::Move(target) => {
            connection = move_slot(timeline, source, connection, identity.xlogpos, target).await?;
        }
    }
    let state = connection.read_replication_slot(slot).await?;
    let restart = state.and_then(|state| state.restart_lsn);
    let kept = restart.map_or(0, |restart| identity.xlogpos.saturating_sub(restart));
    timeline.update(|status| status.slot_retained = ByteCount::new(kept));
    // They change while we look on, and what was said of them before is lost with each start.
    timeline.warn(Topic::Settings, warnings(&mut connection).await?);
    connection.close().await;
    Ok(restart)
}

/// A connection to the cluster that the slot is at.
pub(super) async fn connect(
    timeline: &Timeline,
    source: &SourceCluster,
    duty: Duty,
) -> Result<(Connection, SystemIdentity), IngestError> {
    // No commit shall wait for this connection, so its name is another than the stream's: by a
    // prefix, because the server cuts long names off at their end.
    let name = format!("keeper_{}", timeline.slot);
    let conninfo = &timeline.assignment.source;
    // Before the source is asked, as more may come meanwhile.
    let end = timeline.status().last_record;
    let (mut connection, identity) = connect_to(conninfo, &name, source, PATIENCE).await?;
    let is_same = identity.system_id == source.system_identifier;
    if is_same && identity.timeline > source.pg_timeline {
        timeline.note_later(identity.timeline);
        if duty == Duty::Follow {
            guard(timeline, &mut connection, identity.xlogpos).await?;
        }
    }
    expect_same(&identity, source, duty)?;
    // Else a slot that is not there in a copy of the source would be what is seen first.
    if duty == Duty::Follow {
        set_back::expect_whole(timeline, (end, identity.xlogpos)).await?;
    }
    Ok((connection, identity))
}

/// On a timeline that is not read yet the slot is not to be moved, but must not fill the server's disk either.
async fn guard(
    timeline: &Timeline,
    connection: &mut Connection,
    end: Lsn,
) -> Result<(), ClientError> {
    let slot = &timeline.slot;
    let state = connection.read_replication_slot(slot).await?;
    let limit = timeline.limits().slot_retention;
    if let Plan::Drop(retained) = plan(state, end, None, limit) {
        connection.drop_slot(slot).await?;
        tracing::error!(timeline = %timeline.id(), %slot, %retained, %limit, "the slot at the promoted server kept too much and was dropped");
    }
    Ok(())
}

fn lost(timeline: &Timeline, remote: Option<Lsn>) -> Stop {
    Stop::SlotLost {
        slot: timeline.slot.to_string(),
        from: remote.unwrap_or_else(|| timeline.status().remote_consistent),
    }
}

/// Why a slot is ahead of us. Only a writer moves it, never past the manifest: if the manifest has
/// not come there either, the slot is not the one that it was.
async fn explain(timeline: &Timeline, restart: Lsn) -> Result<(), IngestError> {
    let epoch = timeline.status().epoch;
    match timeline
        .manifests()
        .newest()
        .await?
        .map(|newest| newest.state)
    {
        Some(manifest) if manifest.writer_epoch > epoch => Err(Stop::Superseded.into()),
        Some(manifest) if manifest.lsn >= restart => Ok(()),
        Some(manifest) => Err(lost(timeline, Some(manifest.lsn)).into()),
        None => Err(lost(timeline, None).into()),
    }
}

/// What to do with a slot, given the end of the source's WAL, what the object store has, and what
/// the slot may hold back. It never moves backwards: PostgreSQL would follow there, too.
fn plan(slot: Option<SlotState>, end: Lsn, remote: Option<Lsn>, limit: ByteCount) -> Plan {
    let Some(restart) = slot.and_then(|slot| slot.restart_lsn) else {
        return Plan::Lost;
    };
    // One that was just made keeps the WAL from before the backup's start on, so it is behind.
    let target = remote.unwrap_or(restart);
    if restart > target {
        return Plan::Ahead(restart);
    }
    let retained = ByteCount::new(end.saturating_sub(target));
    if retained > limit {
        return Plan::Drop(retained);
    }
    // A source that was set back has not come so far.
    match target > restart && target <= end {
        true => Plan::Move(target),
        false => Plan::Leave,
    }
}

/// Another cluster's slot of this name is not ours to move or drop. On a later timeline of the same
/// cluster it is not to be moved, but keeps WAL as before: the stream follows there, or says why not. Who was left
/// behind by a promotion is not where the slot is.
fn expect_same(
    identity: &SystemIdentity,
    source: &SourceCluster,
    duty: Duty,
) -> Result<(), IngestError> {
    if identity.system_id != source.system_identifier {
        let (found, expected) = (identity.system_id.get(), source.system_identifier.get());
        return Err(Stop::OtherCluster { found, expected }.into());
    }
    let is_behind = identity.timeline < source.pg_timeline;
    if is_behind || (identity.timeline != source.pg_timeline && duty == Duty::Follow) {
        let (found, expected) = (identity.timeline, source.pg_timeline);
        return Err(IngestError::Switched { found, expected });
    }
    Ok(())
}

/// Reports `target` as flushed over a stream that uses the slot, and ends it. The stream begins at
/// the end of the WAL, so that nothing is sent that nobody wants.
async fn move_slot(
    timeline: &Timeline,
    source: &SourceCluster,
    connection: Connection,
    end: Lsn,
    target: Lsn,
) -> Result<Connection, ClientError> {
    let slot = Some(&timeline.slot);
    let mut stream = connection
        .start_physical_replication(slot, end, source.pg_timeline)
        .await?;
    let status = StandbyStatus {
        write: target,
        flush: target,
        apply: target,
        reply_requested: true,
    };
    stream.send_status(status).await?;
    // Its answer, or its end: `finish` says which.
    while let Some(ReplicationEvent::XLogData { .. }) = stream.next().await? {}
    tracing::debug!(timeline = %timeline.id(), at = %target, "slot moved");
    stream.finish().await
}

#[cfg(test)]
mod tests {
    use palimpsest_types::SystemIdentifier;

    use super::*;

    const LIMIT: ByteCount = ByteCount::new(1000);

    fn plan_at(restart: u64, remote: impl Into<Option<u64>>) -> Plan {
        let remote = remote.into().map(Lsn::new);
        let slot = SlotState {
            restart_lsn: Some(Lsn::new(restart)),
            restart_tli: Some(1),
        };
        plan(Some(slot), Lsn::new(5000), remote, LIMIT)
    }

    #[test]
    fn a_slot_follows_the_object_store_and_never_goes_back() {
        assert_eq!(plan_at(4500, 4800), Plan::Move(Lsn::new(4800)));
        assert_eq!(plan_at(4800, 4800), Plan::Leave);
        assert_eq!(plan_at(4800, None), Plan::Leave);
    }

    #[test]
    fn p4_a_slot_that_somebody_else_made_anew_is_not_taken_for_the_one_it_was() {
        assert_eq!(plan_at(4800, 4500), Plan::Ahead(Lsn::new(4800)));
        // Not even to drop it: who has taken over may have moved it.
        assert_eq!(plan_at(1001, 1000), Plan::Ahead(Lsn::new(1001)));
    }

    #[test]
    fn p9_the_slot_of_a_stopped_timeline_is_looked_after_unless_it_is_another_s() {
        let (slot, from) = (String::new(), Lsn::ZERO);
        let lost = Stop::SlotLost { slot, from };
        assert_eq!(duty_after(&lost.into()), Some(Duty::Guard));
        assert_eq!(duty_after(&Stop::Superseded.into()), None);
        let (found, expected) = (2, 1);
        let promoted = Stop::OtherTimeline { found, expected };
        assert_eq!(duty_after(&promoted.into()), Some(Duty::Guard));
        let other = IngestError::Backup("");
        assert_eq!(duty_after(&other), Some(Duty::Follow));
    }

    #[test]
    fn p9_a_guarded_slot_is_ours_on_any_timeline_of_its_cluster() {
        let system = |id| SystemIdentifier::new(id);
        let source = SourceCluster {
            system_identifier: system(7),
            pg_version: 15,
            pg_timeline: 1,
            wal_segment_size: ByteCount::mib(16),
            wal_log_hints: false,
        };
        let identity = |id, timeline| SystemIdentity {
            system_id: system(id),
            timeline,
            xlogpos: Lsn::new(1),
            dbname: None,
        };
        let same = |id, timeline, duty| expect_same(&identity(id, timeline), &source, duty).is_ok();
        assert!(same(7, 1, Duty::Follow) && same(7, 1, Duty::Guard));
        assert!(!same(7, 2, Duty::Follow) && same(7, 2, Duty::Guard));
        assert!(!same(8, 1, Duty::Follow) && !same(8, 1, Duty::Guard));
    }

    #[test]
    fn p9_a_slot_is_dropped_only_when_moving_it_does_not_help() {
        assert_eq!(plan_at(1000, 4000), Plan::Move(Lsn::new(4000)));
        assert_eq!(plan_at(1000, 3999), Plan::Drop(ByteCount::new(1001)));
        assert_eq!(plan_at(3999, None), Plan::Drop(ByteCount::new(1001)));
    }

    #[test]
    fn p9_a_lost_slot_is_never_reported_over() {
        let (end, remote) = (Lsn::new(5000), Some(Lsn::new(4800)));
        assert_eq!(plan(None, end, remote, LIMIT), Plan::Lost);
        let empty = SlotState {
            restart_lsn: None,
            restart_tli: None,
        };
        assert_eq!(plan(Some(empty), end, remote, LIMIT), Plan::Lost);
    }
}
