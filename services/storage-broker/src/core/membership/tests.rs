use palimpsest_api::{broker::TimelineState, tenant_settings::TenantSettings};
use palimpsest_types::{TenantId, TimelineId, WriterEpoch};

use super::*;

const TIMING: Timing = Timing {
    lease: Duration::from_secs(5),
    grace: Duration::from_secs(2),
};

fn timeline(number: u8) -> TimelineRef {
    TimelineRef {
        tenant: TenantId::from_bytes([number; 16]),
        timeline: TimelineId::from_bytes([number; 16]),
    }
}

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

fn ingest(number: u8) -> Member {
    Member {
        node: node(number),
        role: Role::WalIngest,
        address: format!("127.0.0.1:{number}"),
        version: "1.2.3".to_owned(),
        tenant_defaults: TenantSettings::default(),
    }
}

fn streaming(number: u8, epoch: u64) -> (TimelineRef, TimelineStatus) {
    let status = TimelineStatus {
        state: TimelineState::Streaming,
        epoch: WriterEpoch::new(epoch),
        ..TimelineStatus::default()
    };
    (timeline(number), status)
}

/// A membership of timelines 1 to `count`, with a clock.
struct Scene {
    membership: Membership,
    start: Instant,
}

impl Scene {
    fn new(count: u8) -> Self {
        let start = Instant::now();
        let mut membership = Membership::new(TIMING, start);
        membership.set_timelines(&(1..=count).map(timeline).collect());
        Self { membership, start }
    }

    fn beat(&mut self, millis: u64, number: u8, statuses: Vec<(TimelineRef, TimelineStatus)>) {
        let now = self.start + Duration::from_millis(millis);
        self.membership
            .heartbeat(now, ingest(number), statuses)
            .unwrap();
        self.membership.assign(now);
    }

    fn owned(&self, number: u8) -> Vec<TimelineRef> {
        self.membership.owned_by(node(number)).collect()
    }
}

#[test]
fn a_running_writer_claims_its_timeline_before_others_are_assigned() {
    let mut scene = Scene::new(2);
    scene.beat(0, 1, Vec::new());
    assert!(scene.owned(1).is_empty(), "the grace is not over");
    scene.beat(1900, 2, vec![streaming(2, 3)]);
    assert_eq!(scene.owned(2), [timeline(2)]);
    scene.beat(2000, 1, Vec::new());
    assert_eq!(scene.owned(1), [timeline(1)]);
    assert_eq!(scene.owned(2), [timeline(2)]);
}

#[test]
fn ownership_stays_and_new_timelines_go_to_who_has_fewest() {
    let mut scene = Scene::new(3);
    scene.beat(2000, 1, Vec::new());
    assert_eq!(scene.owned(1).len(), 3);
    scene.beat(2100, 2, Vec::new());
    assert!(scene.owned(2).is_empty(), "what has a writer stays there");
    scene
        .membership
        .set_timelines(&(1..=5).map(timeline).collect());
    scene.beat(2200, 1, Vec::new());
    assert_eq!(scene.owned(2), [timeline(4), timeline(5)]);
    scene.membership.set_timelines(&[timeline(5)].into());
    assert!(scene.owned(1).is_empty());
    assert_eq!(scene.owned(2), [timeline(5)]);
}

#[test]
fn a_silent_members_timelines_move_after_its_lease() {
    let mut scene = Scene::new(1);
    scene.beat(2000, 1, vec![streaming(1, 7)]);
    scene.beat(6900, 2, Vec::new());
    assert_eq!(scene.owned(1), [timeline(1)]);
    scene.beat(7000, 2, Vec::new());
    assert_eq!(scene.owned(2), [timeline(1)]);
    assert_eq!(scene.membership.members().count(), 1);
    let status = scene.membership.status(timeline(1));
    assert_eq!(status, streaming(1, 7).1, "known until the new one speaks");

    scene.beat(7100, 1, vec![streaming(1, 7)]);
    assert!(scene.owned(1).is_empty(), "the dead one comes too late");
    scene.beat(7200, 2, vec![streaming(1, 8)]);
    assert_eq!(scene.membership.writer(timeline(1)), Some(&ingest(2)));
}

#[test]
fn the_manifest_decides_between_two_writers() {
    let mut scene = Scene::new(1);
    scene.beat(0, 1, vec![streaming(1, 3)]);
    scene.beat(100, 2, vec![streaming(1, 4)]);
    assert_eq!(scene.owned(2), [timeline(1)]);
    scene.beat(200, 1, vec![streaming(1, 3)]);
    assert_eq!(scene.owned(2), [timeline(1)]);
}

#[test]
fn a_restarted_member_takes_the_place_of_the_one_before_at_once() {
    let mut scene = Scene::new(1);
    scene.beat(2000, 1, vec![streaming(1, 1)]);
    let restarted = Member {
        node: node(9),
        ..ingest(1)
    };
    let now = scene.start + Duration::from_millis(2100);
    scene
        .membership
        .heartbeat(now, restarted.clone(), Vec::new())
        .unwrap();
    scene.membership.assign(now);
    let members: Vec<_> = scene.membership.members().collect();
    assert_eq!(members, [&restarted]);
    assert_eq!(scene.owned(9), [timeline(1)]);
}

#[test]
fn only_wal_ingest_writes() {
    let mut scene = Scene::new(1);
    let server = Member {
        role: Role::PageServe,
        ..ingest(1)
    };
    let now = scene.start + TIMING.grace;
    scene
        .membership
        .heartbeat(now, server, vec![streaming(1, 1)])
        .unwrap();
    scene.membership.assign(now);
    assert_eq!(scene.membership.writer(timeline(1)), None);
}

#[test]
fn p8_a_member_that_says_goodbye_is_gone_at_once_and_stays_so() {
    let now = Instant::now();
    let mut membership = Membership::new(TIMING, now);
    for number in [1, 2] {
        membership
            .heartbeat(now, ingest(number), Vec::new())
            .unwrap();
    }
    let alive = |membership: &Membership| -> Vec<_> {
        membership.members().map(|member| member.node).collect()
    };
    membership.leave(now, node(1));
    assert_eq!(alive(&membership), [node(2)]);
    // One that was on its way when it left.
    membership.heartbeat(now, ingest(1), Vec::new()).unwrap();
    assert_eq!(alive(&membership), [node(2)]);
    // Nobody remembers who left for ever.
    let later = now + TIMING.lease;
    membership.leave(later, node(3));
    assert!(membership.left.is_empty());
}
