//! The storage-broker over real gRPC, as the other services meet it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use palimpsest_api::{
    TimelineRef,
    admin::{AdminClient, TimelineChanges, TimelineWatch},
    broker::{
        AssignedTask, Assignment, BrokerClient, ClusterView, Member, Role, TimelineState,
        TimelineStatus, TimelineView, watch_cluster,
    },
    tenant_settings::{EffectiveSetting, SettingOrigin, TenantSettings},
};
use palimpsest_runtime::TaskScope;
use palimpsest_service_kit::{Heartbeat, new_member};
use palimpsest_storage_broker::{Settings, core::Timing, run};
use palimpsest_types::{ByteCount, ErrorKind, Lsn, Reason, SystemIdentifier};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

const SOURCE: &str = "host=127.0.0.1 user=replicator password=hunter2";
const OTHER_SOURCE: &str = "host=127.0.0.2 user=replicator password=hunter2";
const PATIENCE: Duration = Duration::from_secs(10);

/// A broker in a scope of its own.
struct TestBroker {
    scope: TaskScope,
    address: String,
}

/// A wal-ingest without WAL: it does at once what it is told, and says so.
struct FakeIngest {
    scope: TaskScope,
    assigned: Arc<Mutex<Vec<Assignment>>>,
}

async fn start(listen: &str, store: PathBuf) -> TestBroker {
    let scope = TaskScope::default();
    let settings = Settings {
        listen: listen.to_owned(),
        store: store.into(),
        timing: Timing {
            grace: Duration::from_millis(500),
            ..Timing::default()
        },
    };
    let running = run(settings, &scope).await.unwrap();
    TestBroker {
        scope,
        address: running.address().to_string(),
    }
}

impl FakeIngest {
    fn start(broker: &str) -> Self {
        let scope = TaskScope::default();
        let assigned = Arc::new(Mutex::new(Vec::new()));
        let address = "127.0.0.1:7701".parse().unwrap();
        let member = Member {
            tenant_defaults: TenantSettings {
                layer_size: Some(ByteCount::mib(256)),
                ..TenantSettings::default()
            },
            ..new_member(Role::WalIngest, address)
        };
        let (reports, orders) = (Arc::clone(&assigned), Arc::clone(&assigned));
        let mut heartbeat = Heartbeat::new(broker, member);
        heartbeat.period = Duration::from_millis(100);
        heartbeat
            .start(
                &scope,
                move || reports.lock().unwrap().iter().map(report).collect(),
                move |assignments| *orders.lock().unwrap() = assignments,
            )
            .unwrap();
        Self { scope, assigned }
    }

    fn assigned(&self) -> Vec<Assignment> {
        self.assigned.lock().unwrap().clone()
    }
}

fn report(assignment: &Assignment) -> (TimelineRef, TimelineStatus) {
    let state = match assignment.task {
        AssignedTask::Ingest => TimelineState::Streaming,
        AssignedTask::Delete { .. } => TimelineState::Deleted,
        AssignedTask::Leave { .. } => TimelineState::Idle,
    };
    let status = TimelineStatus {
        state,
        last_record: Lsn::new(0x16_B374_D848),
        ..TimelineStatus::default()
    };
    (assignment.timeline, status)
}

async fn wait_for(
    views: &mut watch::Receiver<ClusterView>,
    condition: impl FnMut(&ClusterView) -> bool,
) -> ClusterView {
    let seen = timeout(PATIENCE, views.wait_for(condition)).await;
    seen.expect("it comes in time").unwrap().clone()
}

fn is_streaming(view: &ClusterView) -> bool {
    let states = view.timelines.iter().map(|timeline| timeline.status.state);
    states.eq([TimelineState::Streaming])
}

#[tokio::test]
async fn a_tenant_is_attached_assigned_shown_and_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("data/store");
    let broker = start("127.0.0.1:0", store.clone()).await;
    assert_private(&store);
    let scope = TaskScope::default();
    let mut views = watch_cluster(&broker.address, &scope).unwrap();
    let mut client = BrokerClient::new(&broker.address).unwrap();

    let timeline = client.attach_tenant("shop", SOURCE, None).await.unwrap();
    let ingest = FakeIngest::start(&broker.address);
    let view = wait_for(&mut views, is_streaming).await;
    let shown = view.find("shop").unwrap();
    assert_eq!(shown.timeline, timeline);
    assert_eq!(shown.writer.as_deref(), Some("127.0.0.1:7701"));
    assert_eq!(shown.status.last_record, Lsn::new(0x16_B374_D848));
    assert_eq!(shown.slot, "palimpsest_shop");
    assert!(!shown.source.contains("hunter2"), "{}", shown.source);
    let [assignment] = &ingest.assigned()[..] else {
        panic!("one timeline, one assignment");
    };
    assert_eq!(
        (assignment.timeline, assignment.task),
        (timeline, AssignedTask::Ingest)
    );
    assert_eq!(assignment.source, SOURCE);

    assert_eq!(client.delete_tenant("shop", false).await.unwrap(), timeline);
    wait_for(&mut views, |view| view.timelines.is_empty()).await;
    let error = client.delete_tenant("shop", false).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    ingest.scope.stop().await;
    scope.stop().await;
    broker.scope.stop().await;
}

#[tokio::test]
async fn a_cluster_that_two_claim_at_once_is_ones_until_that_is_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let broker = start("127.0.0.1:0", directory.path().to_owned()).await;
    let mut client = BrokerClient::new(&broker.address).unwrap();
    let one = client.attach_tenant("one", SOURCE, None).await.unwrap();
    let two = client.attach_tenant("two", SOURCE, None).await.unwrap();
    let cluster = SystemIdentifier::new(7_312_345);
    let mut other = client.clone();
    let (first, second) = tokio::join!(
        client.claim_cluster(one, cluster),
        other.claim_cluster(two, cluster),
    );
    let (winner, loser, holder) = match (first.unwrap(), second.unwrap()) {
        (None, Some(holder)) => ("one", two, holder),
        (Some(holder), None) => ("two", one, holder),
        both => panic!("{both:?}"),
    };
    assert_eq!(holder, winner);

    let ingest = FakeIngest::start(&broker.address);
    client.delete_tenant(winner, false).await.unwrap();
    let scope = TaskScope::default();
    let mut views = watch_cluster(&broker.address, &scope).unwrap();
    wait_for(&mut views, |view| view.timelines.len() == 1).await;
    assert_eq!(client.claim_cluster(loser, cluster).await.unwrap(), None);
    let nobody = client.claim_cluster(loser, SystemIdentifier::new(0)).await;
    assert_eq!(nobody.unwrap_err().kind, ErrorKind::Invalid);
    ingest.scope.stop().await;
    scope.stop().await;
    broker.scope.stop().await;
}

#[tokio::test]
async fn settings_of_a_tenant_are_kept_told_to_all_and_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let broker = start("127.0.0.1:0", directory.path().to_owned()).await;
    let mut client = BrokerClient::new(&broker.address).unwrap();
    let timeline = client.attach_tenant("shop", SOURCE, None).await.unwrap();
    client
        .attach_tenant("other", OTHER_SOURCE, None)
        .await
        .unwrap();
    let ingest = FakeIngest::start(&broker.address);
    let scope = TaskScope::default();
    let mut views = watch_cluster(&broker.address, &scope).unwrap();
    wait_for(&mut views, |view| !view.members.is_empty()).await;

    let set = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let named = |settings: &[EffectiveSetting], name: &str| {
        let found = settings.iter().find(|setting| setting.name == name);
        let found = found.unwrap();
        (found.value.clone().unwrap_or_default(), found.origin)
    };
    let told = client.tenant_settings("shop").await.unwrap();
    let layers = ("256MiB".to_owned(), SettingOrigin::Service);
    assert_eq!(
        named(&told, "layer-size"),
        layers,
        "as the wal-ingest has it"
    );
    assert_eq!(named(&told, "lease-length").0, "10m");
    assert_eq!(named(&told, "pages-per-second").1, SettingOrigin::Nobody);
    let told = client
        .set_tenant_settings("shop", set("layer-size", "64MiB"), vec![])
        .await;
    let own = ("64MiB".to_owned(), SettingOrigin::Tenant);
    assert_eq!(named(&told.unwrap(), "layer-size"), own);
    let is_told =
        |view: &ClusterView| view.settings(timeline.tenant).layer_size == Some(ByteCount::mib(64));
    wait_for(&mut views, is_told).await;
    let told = client.tenant_settings("other").await.unwrap();
    assert_eq!(
        named(&told, "layer-size"),
        layers,
        "of another it is as before"
    );

    for (wrong, part) in [
        (set("layer-sise", "64MiB"), "layer-size"),
        (set("layer-size", "1KiB"), "at least 1.0 MiB"),
    ] {
        let both = [set("layer-age", "7s"), wrong].concat();
        let error = client
            .set_tenant_settings("shop", both, vec![])
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.to_string().contains(part), "{error}");
    }
    let nobody = client.set_tenant_settings("nobody", vec![], vec![]).await;
    assert_eq!(nobody.unwrap_err().kind, ErrorKind::NotFound);
    broker.scope.stop().await;

    let broker = start(&broker.address, directory.path().to_owned()).await;
    let told = client.tenant_settings("shop").await.unwrap();
    assert_eq!(named(&told, "layer-size"), own, "after a restart");
    assert_ne!(
        named(&told, "layer-age").1,
        SettingOrigin::Tenant,
        "all or nothing"
    );
    let back = vec!["layer-size".to_owned()];
    let told = client
        .set_tenant_settings("shop", vec![], back.clone())
        .await
        .unwrap();
    assert_ne!(named(&told, "layer-size").1, SettingOrigin::Tenant);
    client
        .set_tenant_settings("shop", vec![], back)
        .await
        .unwrap();
    wait_for(&mut views, |view| {
        !view.tenants.is_empty() && view.settings(timeline.tenant).layer_size.is_none()
    })
    .await;
    ingest.scope.stop().await;
    scope.stop().await;
    broker.scope.stop().await;
}

#[tokio::test]
async fn who_watches_timelines_hears_of_each_that_comes_changes_and_goes() {
    let directory = tempfile::tempdir().unwrap();
    let broker = start("127.0.0.1:0", directory.path().to_owned()).await;
    let mut client = BrokerClient::new(&broker.address).unwrap();
    let admin = AdminClient::new(&broker.address).unwrap();
    assert_eq!(admin.tenants().await.unwrap(), []);
    let mut all = admin.watch_timelines(None).await.unwrap();
    let nothing = next(&mut all).await;
    assert!(nothing.is_complete && nothing.changed.is_empty());

    let shop = client.attach_tenant("shop", SOURCE, None).await.unwrap();
    let came = next(&mut all).await;
    assert_eq!((came.changed.len(), came.changed[0].timeline), (1, shop));
    let mut other = {
        client
            .attach_tenant("other", OTHER_SOURCE, None)
            .await
            .unwrap();
        admin.watch_timelines(Some("other")).await.unwrap()
    };
    let told = next(&mut other).await;
    assert_eq!(told.changed[0].tenant_name, "other");
    let tenants = admin.tenants().await.unwrap();
    let names: Vec<_> = tenants.iter().map(|tenant| tenant.name.as_str()).collect();
    assert_eq!(names, ["shop", "other"]);
    assert!(
        !tenants[0].source.contains("hunter2"),
        "{}",
        tenants[0].source
    );
    assert_eq!(admin.timelines(None).await.unwrap().len(), 2);
    assert_eq!(admin.timelines(Some("shop")).await.unwrap().len(), 1);

    let ingest = FakeIngest::start(&broker.address);
    let mut known = None;
    while known != Some(TimelineState::Streaming) {
        let changes = next(&mut all).await;
        let own = changes.changed.iter().find(|view| view.timeline == shop);
        known = own.map(|view| view.status.state).or(known);
    }
    let details = admin.timeline(shop).await.unwrap();
    assert_eq!(details.view.status.state, TimelineState::Streaming);
    assert_eq!((details.stored, details.problem), (None, None));
    client.delete_tenant("shop", false).await.unwrap();
    while !next(&mut all).await.gone.contains(&shop) {}
    let error = admin.timeline(shop).await.unwrap_err();
    assert_eq!(error.reason, Some(Reason::UnknownTimeline));
    for refused in [
        admin.timelines(Some("shop")).await.map(drop),
        admin.computes(Some("shop")).await.map(drop),
        admin.watch_timelines(Some("shop")).await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().reason, Some(Reason::UnknownTenant));
    }
    // Whoever watches is told of nothing else.
    let quiet = timeout(Duration::from_secs(1), async {
        loop {
            let changes = next(&mut other).await;
            let of_other = |view: &TimelineView| view.tenant_name == "other";
            assert!(changes.gone.is_empty() && changes.changed.iter().all(of_other));
        }
    });
    assert!(quiet.await.is_err(), "of another tenant something is told");

    let mut watching = Vec::new();
    let full = loop {
        match admin.watch_timelines(None).await {
            Ok(watch) => watching.push(watch),
            Err(error) => break error,
        }
        assert!(watching.len() < 100, "there is no limit");
    };
    assert_eq!(full.reason, Some(Reason::LimitReached));
    drop(watching);
    let again = async {
        while admin.watch_timelines(None).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("there is room again");
    ingest.scope.stop().await;
    broker.scope.stop().await;
    let end = timeout(PATIENCE, async {
        loop {
            match all.next().await {
                Ok(Some(_)) => {}
                end => break end,
            }
        }
    });
    assert_eq!(end.await.unwrap(), Ok(None), "it ends in good order");
}

async fn next(watch: &mut TimelineWatch) -> TimelineChanges {
    let next = timeout(PATIENCE, watch.next()).await;
    next.expect("something is told").unwrap().unwrap()
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let broker = start("127.0.0.1:0", directory.path().to_owned()).await;
    let mut client = BrokerClient::new(&broker.address).unwrap();
    client.attach_tenant("shop", SOURCE, None).await.unwrap();
    for (name, source, slot, kind) in [
        ("1shop", SOURCE, None, ErrorKind::Invalid),
        ("other", "hunter2", None, ErrorKind::Invalid),
        ("other", SOURCE, Some("Big Slot"), ErrorKind::Invalid),
        ("shop", "host=h user=u", None, ErrorKind::AlreadyExists),
        (
            "other",
            SOURCE,
            Some("palimpsest_shop"),
            ErrorKind::AlreadyExists,
        ),
    ] {
        let error = client.attach_tenant(name, source, slot).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(!error.message.is_empty());
        let expected = match kind {
            ErrorKind::Invalid => Reason::Malformed,
            _ if name == "shop" => Reason::NameTaken,
            _ => Reason::SourceTaken,
        };
        assert_eq!(error.reason, Some(expected), "{error}");
    }
    broker.scope.stop().await;
}

#[tokio::test]
async fn all_is_well_again_within_a_heartbeat_of_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let broker = start("127.0.0.1:0", directory.path().to_owned()).await;
    let scope = TaskScope::default();
    let mut views = watch_cluster(&broker.address, &scope).unwrap();
    let mut client = BrokerClient::new(&broker.address).unwrap();
    client.attach_tenant("shop", SOURCE, None).await.unwrap();
    let ingest = FakeIngest::start(&broker.address);
    let before = wait_for(&mut views, is_streaming).await;

    let stopping = tokio::time::Instant::now();
    broker.scope.stop().await;
    assert!(
        stopping.elapsed() < Duration::from_secs(4),
        "watchers do not hold it"
    );
    assert_eq!(*views.borrow(), before, "what is known is not forgotten");
    assert_eq!(ingest.assigned().len(), 1, "the writer goes on");

    let broker = start(&broker.address, directory.path().to_owned()).await;
    let restarted = tokio::time::Instant::now();
    views.mark_unchanged();
    timeout(PATIENCE, views.changed()).await.unwrap().unwrap();
    let after = wait_for(&mut views, is_streaming).await;
    assert_eq!(after, before);
    assert!(
        restarted.elapsed() < Duration::from_secs(5),
        "{:?}",
        restarted.elapsed()
    );
    ingest.scope.stop().await;
    scope.stop().await;
    broker.scope.stop().await;
}

#[tokio::test]
async fn refuses_settings_before_it_listens() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        listen: "0.0.0.0:0".to_owned(),
        store: directory.path().join("store").into(),
        ..Settings::default()
    };
    let error = run(settings, &TaskScope::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(!directory.path().join("store").exists());
}

fn assert_private(directory: &Path) {
    let mode = std::fs::metadata(directory).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
