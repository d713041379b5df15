//! Who is alive, and who is proposed to write which timeline. Pure: the time is passed in.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use palimpsest_api::{
    TimelineRef,
    broker::{Member, Role, TimelineStatus},
};
use palimpsest_types::NodeId;
use tokio::time::Instant;

/// How long the broker waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// A member that is silent for this long is dead.
    pub lease: Duration,
    /// After the start, timelines without a writer wait for this long, so that writers which
    /// outlived the broker before can claim them.
    pub grace: Duration,
}

/// There are too many members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_MEMBERS} members are alive already, which is all that are allowed")]
pub struct TooManyMembersError;

/// Live members and the timelines' writers.
#[derive(Debug)]
pub struct Membership {
    timing: Timing,
    started: Instant,
    nodes: BTreeMap<NodeId, Node>,
    /// Members that ended in good order, and when: a heartbeat of theirs may still be on its way.
    left: BTreeMap<NodeId, Instant>,
    timelines: BTreeMap<TimelineRef, Position>,
}

#[derive(Debug)]
struct Node {
    member: Member,
    last_seen: Instant,
}

#[derive(Debug, Default)]
struct Position {
    owner: Option<NodeId>,
    /// What the last owner said; kept when it dies.
    status: TimelineStatus,
}

const MAX_MEMBERS: usize = 1024;

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(5),
            grace: Duration::from_secs(2),
        }
    }
}

impl Membership {
    /// Nobody and nothing yet.
    pub fn new(timing: Timing, now: Instant) -> Self {
        Self {
            timing,
            started: now,
            nodes: BTreeMap::new(),
            left: BTreeMap::new(),
            timelines: BTreeMap::new(),
        }
    }

    /// Makes these the timelines that there are.
    pub fn set_timelines(&mut self, timelines: &BTreeSet<TimelineRef>) {
        self.timelines
            .retain(|timeline, _| timelines.contains(timeline));
        for timeline in timelines {
            self.timelines.entry(*timeline).or_default();
        }
    }

    /// Takes a heartbeat in. A wal-ingest owns the timelines that it reports, unless another live
    /// one does whose epoch is not lower.
    ///
    /// # Errors
    /// If there is no room for another member.
    pub fn heartbeat(
        &mut self,
        now: Instant,
        member: Member,
        statuses: Vec<(TimelineRef, TimelineStatus)>,
    ) -> Result<(), TooManyMembersError> {
        self.expire(now);
        let node = member.node;
        if self.left.contains_key(&node) {
            return Ok(());
        }
        // Two instances can't have one address: the one before is dead, without waiting for it.
        self.nodes.retain(|id, other| {
            let replaced =
                other.member.role == member.role && other.member.address == member.address;
            *id == node || !replaced
        });
        if self.nodes.len() >= MAX_MEMBERS && !self.nodes.contains_key(&node) {
            return Err(TooManyMembersError);
        }
        let writes = member.role == Role::WalIngest;
        self.nodes.insert(
            node,
            Node {
                member,
                last_seen: now,
            },
        );
        self.release_orphans();
        if writes {
            for (timeline, status) in statuses {
                self.report(node, timeline, status);
            }
        }
        Ok(())
    }

    /// Forgets a member that ends; its timelines have no writer then.
    pub fn leave(&mut self, now: Instant, node: NodeId) {
        self.expire(now);
        if self.nodes.remove(&node).is_some() {
            self.left.insert(node, now);
        }
        self.release_orphans();
    }

    fn report(&mut self, node: NodeId, timeline: TimelineRef, status: TimelineStatus) {
        // The catalog does not know others; their writer learns it from the answer.
        let Some(position) = self.timelines.get_mut(&timeline) else {
            return;
        };
        let supersedes = status.epoch > position.status.epoch;
        if position
            .owner
            .is_none_or(|owner| owner == node || supersedes)
        {
            position.owner = Some(node);
            position.status = status;
        }
    }

    /// Forgets members whose lease is over; their timelines have no writer then.
    pub fn expire(&mut self, now: Instant) {
        let lease = self.timing.lease;
        self.left
            .retain(|_, since| now.saturating_duration_since(*since) < lease);
        self.nodes.retain(|_, node| {
            let alive = now.saturating_duration_since(node.last_seen) < lease;
            if !alive {
                let Member { role, address, .. } = &node.member;
                tracing::warn!(
                    ?role,
                    address,
                    "a member has not been heard of; taken for dead"
                );
            }
            alive
        });
        self.release_orphans();
    }

    fn release_orphans(&mut self) {
        for position in self.timelines.values_mut() {
            let nodes = &self.nodes;
            position.owner = position.owner.filter(|owner| nodes.contains_key(owner));
        }
    }

    /// Gives each timeline without a writer to the wal-ingest with the fewest.
    pub fn assign(&mut self, now: Instant) {
        if now.saturating_duration_since(self.started) < self.timing.grace {
            return;
        }
        let mut loads: BTreeMap<NodeId, usize> = self
            .nodes
            .values()
            .filter(|node| node.member.role == Role::WalIngest)
            .map(|node| (node.member.node, 0))
            .collect();
        for owner in self
            .timelines
            .values()
            .filter_map(|position| position.owner)
        {
            loads.entry(owner).and_modify(|load| *load += 1);
        }
        for position in self.timelines.values_mut() {
            if position.owner.is_some() {
                continue;
            }
            let Some((node, load)) = loads.iter_mut().min_by_key(|(_, load)| **load) else {
                return;
            };
            *load += 1;
            position.owner = Some(*node);
        }
    }

    /// Live members.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.nodes.values().map(|node| &node.member)
    }

    /// The timelines of a writer.
    pub fn owned_by(&self, node: NodeId) -> impl Iterator<Item = TimelineRef> {
        let owned = move |position: &Position| position.owner == Some(node);
        self.timelines
            .iter()
            .filter(move |(_, position)| owned(position))
            .map(|(timeline, _)| *timeline)
    }

    /// The writer of a timeline, if there is one.
    pub fn writer(&self, timeline: TimelineRef) -> Option<&Member> {
        let owner = self.timelines.get(&timeline)?.owner?;
        self.nodes.get(&owner).map(|node| &node.member)
    }

    /// What the writer of a timeline, or the one before it, last said.
    pub fn status(&self, timeline: TimelineRef) -> TimelineStatus {
        let position = self.timelines.get(&timeline);
        position
            .map(|position| position.status.clone())
            .unwrap_or_default()
    }
}
