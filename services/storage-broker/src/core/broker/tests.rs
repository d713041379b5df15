use palimpsest_api::{
    broker::{AssignedTask, Role},
    tenant_settings::TenantSettings,
};
use palimpsest_types::NodeId;
use tokio::time::{advance, sleep};

use super::*;

const SOURCE: &str = "host=h user=u password=secret";

async fn broker(directory: &std::path::Path) -> (Broker, TaskScope) {
    let scope = TaskScope::default();
    let store = ObjectStore::open(directory).await.unwrap();
    let broker = Broker::start(store, Timing::default(), &scope).await;
    (broker.unwrap(), scope)
}

fn ingest(number: u8) -> Member {
    Member {
        node: NodeId::from_bytes([number; 16]),
        role: Role::WalIngest,
        address: format!("127.0.0.1:{number}"),
        version: "1.2.3".to_owned(),
        tenant_defaults: TenantSettings::default(),
    }
}

fn status(timeline: TimelineRef, state: TimelineState) -> Vec<(TimelineRef, TimelineStatus)> {
    let status = TimelineStatus {
        state,
        ..TimelineStatus::default()
    };
    vec![(timeline, status)]
}

async fn attach(broker: &Broker, name: &str) -> TimelineRef {
    let new = NewTenant::parse(name, SOURCE, None).unwrap();
    broker.attach(new).await.unwrap()
}

#[tokio::test]
async fn a_tenant_lives_and_goes() {
    let directory = tempfile::tempdir().unwrap();
    let (broker, scope) = broker(directory.path()).await;
    let timeline = attach(&broker, "shop").await;
    assert_eq!(attach(&broker, "shop").await, timeline);
    let view = broker.watch().borrow().clone();
    assert_eq!(view.find("shop").unwrap().timeline, timeline);
    assert!(!format!("{view:?}").contains("secret"));

    // A writer that is there already claims the timeline without waiting for the grace.
    let streaming = status(timeline, TimelineState::Streaming);
    let assigned = broker.heartbeat(ingest(1), streaming).await.unwrap();
    let [assignment] = &assigned[..] else {
        panic!("{} assignments", assigned.len());
    };
    assert_eq!(
        (assignment.timeline, assignment.task),
        (timeline, AssignedTask::Ingest)
    );
    assert_eq!(assignment.source, SOURCE, "the writer needs the password");

    let name: Name = "shop".parse().unwrap();
    broker.delete(name.clone(), true).await.unwrap();
    let view = broker.watch().borrow().clone();
    assert_eq!(view.timelines[0].status.state, TimelineState::Deleting);
    let deleting = status(timeline, TimelineState::Deleting);
    let assigned = broker.heartbeat(ingest(1), deleting).await.unwrap();
    assert_eq!(assigned[0].task, AssignedTask::Delete { forget_slot: true });

    let deleted = status(timeline, TimelineState::Deleted);
    broker.heartbeat(ingest(1), deleted).await.unwrap();
    let mut views = broker.watch();
    views
        .wait_for(|view| view.timelines.is_empty())
        .await
        .unwrap();
    let error = broker.delete(name, true).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    scope.stop().await;
    let error = broker.heartbeat(ingest(1), Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotReady);
}

#[tokio::test]
async fn a_restart_keeps_the_catalog() {
    let directory = tempfile::tempdir().unwrap();
    let (first, scope) = broker(directory.path()).await;
    let timeline = attach(&first, "shop").await;
    scope.stop().await;
    let (second, scope) = broker(directory.path()).await;
    assert_eq!(
        second.watch().borrow().find("shop").unwrap().timeline,
        timeline
    );
    assert_eq!(attach(&second, "shop").await, timeline);
    scope.stop().await;
}

#[tokio::test]
async fn a_dead_writers_timeline_is_given_to_a_live_one() {
    let directory = tempfile::tempdir().unwrap();
    let (broker, scope) = broker(directory.path()).await;
    let timeline = attach(&broker, "shop").await;
    tokio::time::pause();
    let streaming = status(timeline, TimelineState::Streaming);
    broker.heartbeat(ingest(1), streaming).await.unwrap();
    // Heartbeats of the second go on while the first is silent.
    for _ in 0..9 {
        advance(Duration::from_millis(500)).await;
        assert!(
            broker
                .heartbeat(ingest(2), Vec::new())
                .await
                .unwrap()
                .is_empty()
        );
    }
    advance(Duration::from_millis(500)).await;
    let assigned = broker.heartbeat(ingest(2), Vec::new()).await.unwrap();
    assert_eq!(assigned[0].timeline, timeline);
    let writer = |broker: &Broker| broker.watch().borrow().timelines[0].writer.clone();
    assert_eq!(writer(&broker), Some(ingest(2).address));

    // Nobody asks, and yet a death is noticed.
    sleep(Duration::from_secs(6)).await;
    assert_eq!(writer(&broker), None);
    assert!(broker.watch().borrow().members.is_empty());
    scope.stop().await;
}
