//! What records say of the cluster as a whole.

use std::collections::{BTreeMap, BTreeSet};

use palimpsest_codec::TruncatedError;
use palimpsest_types::{Key, Lsn, Oid};

use crate::{
    change::{Change, Value},
    clog::{Xid, newest},
    control::{CommitTime, ControlData, NextMultiXact, OriginProgress},
    multixact::{MultiXactId, NewMultiXact, next_multixact},
    v15::{Checkpoint, EndedTransaction, OriginEvent, PreparedTransaction, RunningTransactions},
};

/// The cluster after the last record.
///
/// Where the base did not say how it began, as those of timelines that were attached before that was
/// kept, it stays unknown: what is only advanced can't be known from the log alone.
#[derive(Debug, Clone, Default)]
pub(super) struct ClusterState {
    numbers: Numbers,
    /// Each by its number.
    origins: BTreeMap<u16, Lsn>,
    /// Those that the record has changed.
    changed_origins: BTreeSet<u16>,
}

/// What has one version of a key each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    control: Option<ControlData>,
    next_multi: Option<NextMultiXact>,
    commit_time: Option<CommitTime>,
}

/// Progress that concerns nobody is given to this one (`DoNotReplicateId`).
const NO_ORIGIN: [u16; 2] = [0, u16::MAX];

impl ClusterState {
    /// A key has this version.
    pub(super) fn note(&mut self, key: Key, value: &Value) -> Result<(), TruncatedError> {
        match (key, value) {
            (Key::ControlData, Value::File(content)) => {
                self.numbers.control = Some(ControlData::decode(content)?);
            }
            (Key::NextMultiXact, Value::File(content)) => {
                self.numbers.next_multi = Some(NextMultiXact::decode(content)?);
            }
            (Key::CommitTime, Value::File(content)) => {
                self.numbers.commit_time = Some(CommitTime::decode(content)?);
            }
            (Key::Origin(id), Value::File(content)) => {
                let OriginProgress(up_to) = OriginProgress::decode(content)?;
                self.origins.insert(id, up_to);
            }
            (Key::Origin(id), Value::Dropped) => drop(self.origins.remove(&id)),
            _ => {}
        }
        Ok(())
    }

    /// What there is now, to be compared with what there is after a record.
    pub(super) fn numbers(&self) -> Numbers {
        self.numbers
    }

    /// New versions since `before`, and those of origins.
    pub(super) fn changes_since(&mut self, before: Numbers) -> impl Iterator<Item = Change> + '_ {
        let now = self.numbers;
        let control = now.control.filter(|_| now.control != before.control);
        let next_multi = now
            .next_multi
            .filter(|_| now.next_multi != before.next_multi);
        let commit_time = now
            .commit_time
            .filter(|_| now.commit_time != before.commit_time);
        let numbers = [
            (Key::ControlData, control.map(|it| it.to_bytes())),
            (Key::NextMultiXact, next_multi.map(|it| it.to_bytes())),
            (Key::CommitTime, commit_time.map(|it| it.to_bytes())),
        ];
        let numbers = numbers
            .into_iter()
            .filter_map(|(key, content)| Some((key, Value::File(content?))));
        let changed = std::mem::take(&mut self.changed_origins).into_iter();
        let origins = changed.map(|id| {
            let up_to = self.origins.get(&id);
            let file = |up_to: &Lsn| Value::File(OriginProgress(*up_to).to_bytes());
            (Key::Origin(id), up_to.map_or(Value::Dropped, file))
        });
        numbers
            .chain(origins)
            .map(|(key, value)| Change { key, value })
    }

    /// A record is of this transaction, or names it.
    pub(super) fn note_xid(&mut self, xid: Xid) {
        self.control(|control| control.note_xid(xid));
    }

    /// The newest of some transactions counts for the next id, whether or not it wrote anything else.
    fn note_xids(&mut self, xids: &[Xid]) {
        if let Some(xid) = newest(xids) {
            self.note_xid(xid);
        }
    }

    /// A transaction ended by the record that begins at `record`.
    pub(super) fn ended(&mut self, ended: &EndedTransaction, record: Lsn) {
        self.note_xids(&ended.xids);
        let end = CommitTime {
            time: ended.time,
            record,
        };
        if self
            .numbers
            .commit_time
            .is_none_or(|latest| end.is_after(latest.time))
        {
            self.numbers.commit_time = Some(end);
        }
        if let Some(up_to) = ended.origin_lsn {
            self.advance_origin(ended.at.origin, up_to);
        }
    }

    /// Commit times of these are kept.
    pub(super) fn commit_ts(&mut self, xids: &[Xid]) {
        if let Some(xid) = newest(xids) {
            self.control(|control| control.note_commit_ts(xid));
        }
    }

    /// A transaction is prepared, with its subtransactions.
    pub(super) fn prepared(&mut self, prepared: &PreparedTransaction) {
        self.note_xid(prepared.xid);
        self.note_xids(&prepared.subxids);
        self.advance_origin(prepared.origin, prepared.origin_lsn);
    }

    /// A multixact came into being.
    pub(super) fn multixact(&mut self, new: &NewMultiXact) {
        let members: Vec<_> = new.members.iter().map(|member| member.xid).collect();
        self.note_xids(&members);
        let next = NextMultiXact {
            id: next_multixact(new.id),
            offset: new.offset.wrapping_add(new.members.len() as u32),
        };
        if let Some(known) = &mut self.numbers.next_multi {
            known.advance(next);
        }
    }

    /// Older transactions are frozen everywhere.
    pub(super) fn oldest_xid(&mut self, xid: Xid, db: Oid) {
        self.control(|control| control.note_oldest_xid(xid, db));
    }

    /// Older multixacts are gone.
    pub(super) fn oldest_multi(&mut self, multi: MultiXactId, db: Oid) {
        self.control(|control| (control.oldest_multi, control.oldest_multi_db) = (multi, db));
    }

    /// Older commit times are gone.
    pub(super) fn oldest_commit_ts(&mut self, xid: Xid) {
        self.control(|control| control.note_oldest_commit_ts(xid));
    }

    /// As redo takes it: what the server says when it stops is so; what it says while it goes on was
    /// so when the checkpoint began.
    pub(super) fn checkpoint(&mut self, said: &Checkpoint) {
        self.control(|control| match said.is_shutdown {
            true => *control = said.control,
            false => control.note_checkpoint(&said.control),
        });
        if let Some(known) = &mut self.numbers.next_multi {
            match said.is_shutdown {
                true => *known = said.next_multi,
                false => known.advance(said.next_multi),
            }
        }
    }

    pub(super) fn next_oid(&mut self, oid: Oid) {
        self.control(|control| control.next_oid = oid);
    }

    pub(super) fn full_page_writes(&mut self, on: bool) {
        self.control(|control| control.full_page_writes = on);
    }

    pub(super) fn timeline(&mut self, timeline: u32, previous: u32) {
        self.control(|control| {
            (control.timeline, control.previous_timeline) = (timeline, previous);
        });
    }

    pub(super) fn keep_commit_ts(&mut self, keep: bool) {
        self.control(|control| control.keep_commit_ts(keep));
    }

    pub(super) fn running(&mut self, running: RunningTransactions) {
        self.note_xid(running.next.wrapping_sub(1));
        self.control(|control| control.oldest_active_xid = running.oldest);
    }

    /// As `replorigin_redo`.
    pub(super) fn origin(&mut self, event: OriginEvent) {
        match event {
            OriginEvent::Set { id, up_to, force } if force => self.set_origin(id, up_to),
            OriginEvent::Set { id, up_to, .. } => self.advance_origin(id, up_to),
            OriginEvent::Drop(id) => {
                if self.origins.remove(&id).is_some() {
                    self.changed_origins.insert(id);
                }
            }
        }
    }

    /// Progress only goes forward (`replorigin_advance`), unless somebody says otherwise.
    fn advance_origin(&mut self, id: u16, up_to: Lsn) {
        if self.origins.get(&id).is_none_or(|known| *known < up_to) {
            self.set_origin(id, up_to);
        }
    }

    fn set_origin(&mut self, id: u16, up_to: Lsn) {
        if !NO_ORIGIN.contains(&id) && self.origins.insert(id, up_to) != Some(up_to) {
            self.changed_origins.insert(id);
        }
    }

    fn control(&mut self, change: impl FnOnce(&mut ControlData)) {
        if let Some(control) = &mut self.numbers.control {
            change(control);
        }
    }
}

#[cfg(test)]
mod tests;
