//! The redo-worker with real processes, over real gRPC, through the clients' pool.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod records;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use palimpsest_api::{
    broker::{ClusterView, Member, Role},
    redo::{RedoPool, RedoTenant, TenantRedo},
    tenant_settings::TenantSettings,
};
use palimpsest_redo::Engine as _;
use palimpsest_redo_worker::{Running, Settings, run};
use palimpsest_runtime::TaskScope;
use palimpsest_types::{ErrorKind, Lsn, NodeId, PAGE_SIZE, Reason, TenantId};
use tokio::{sync::watch, task::JoinSet};

use records::{insert_on_new_page, insertion, stored_value};

const BUILD_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../compute/redo/build/15");
/// Nobody listens there: the worker works without a storage-broker.
const NO_BROKER: &str = "127.0.0.1:1";

const LANES: u32 = 32;
const STEPS: u32 = 200;

/// A worker in a scope of its own.
struct Worker {
    scope: TaskScope,
    running: Running,
}

/// What the storage-broker would tell the pool.
struct Pool {
    cluster: watch::Sender<ClusterView>,
    pool: RedoPool,
}

async fn worker() -> Worker {
    let scope = TaskScope::default();
    let settings = Settings {
        listen: "127.0.0.1:0".to_owned(),
        broker: NO_BROKER.to_owned(),
        redo_build: Path::new(BUILD_DIR).to_owned(),
        max_tenants: 2.try_into().unwrap(),
        ..Settings::default()
    };
    let running = run(settings, &scope)
        .await
        .expect("run make -C compute/redo, with PostgreSQL 15 and its server headers installed");
    Worker { scope, running }
}

fn pool(workers: &[&Worker]) -> Pool {
    let members = workers.iter().enumerate().map(|(number, worker)| Member {
        node: NodeId::from_bytes([u8::try_from(number).unwrap(); 16]),
        role: Role::RedoWorker,
        address: worker.running.address().to_string(),
        version: String::new(),
        tenant_defaults: TenantSettings::default(),
    });
    let view = ClusterView {
        members: members.collect(),
        ..ClusterView::default()
    };
    let (cluster, view) = watch::channel(view);
    let pool = RedoPool::new(view, TaskScope::default());
    Pool { cluster, pool }
}

impl Pool {
    fn tenant(&self, number: u8, pg_version: u32) -> TenantRedo {
        self.pool.for_tenant(RedoTenant {
            tenant: TenantId::from_bytes([number; 16]),
            pg_version,
            wal_log_hints: false,
        })
    }
}

#[tokio::test]
async fn builds_a_page_from_a_record() {
    let worker = worker().await;
    let pool = pool(&[&worker]);
    // More tenants than there is room for.
    for tenant in 1..=4 {
        let redo = pool.tenant(tenant, 15);
        let page = redo.apply(insert_on_new_page(tenant.into())).await.unwrap();
        assert_eq!(page.len(), PAGE_SIZE);
        assert_eq!(stored_value(&page, 1), u32::from(tenant));
        let next = insertion(Some(page), 2, 77);
        let page = redo.apply(next).await.unwrap();
        assert_eq!(stored_value(&page, 2), 77);
        assert_eq!(
            page[4..8],
            0x2000_u32.to_le_bytes(),
            "LSN of the last record"
        );
    }
    assert_eq!(worker.running.deaths(), 0);
    drop(pool.cluster);
    worker.scope.stop().await;
}

#[tokio::test]
async fn an_impossible_job_fails_alone() {
    let worker = worker().await;
    let pool = pool(&[&worker]);
    let redo = pool.tenant(1, 15);
    let mut garbage = insert_on_new_page(1);
    garbage.records[0].bytes = vec![0x5A; 300].into();
    let mut short = insertion(Some(vec![0; 100].into()), 2, 1);
    short.records.clear();
    let (garbage, short, good) = tokio::join!(
        redo.apply(garbage),
        redo.apply(short),
        redo.apply(insert_on_new_page(5))
    );
    let error = garbage.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    assert!(error.message.contains("WAL record"), "{error}");
    assert_eq!(short.unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(stored_value(&good.unwrap(), 1), 5);

    // The same connection serves on.
    let future = pool.tenant(2, 16).apply(insert_on_new_page(1)).await;
    let error = future.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(
        error.message.contains("PostgreSQL 15 only, not 16"),
        "{error}"
    );
    redo.apply(insert_on_new_page(6)).await.unwrap();

    // A row far beyond the last one makes the process panic, and the one that has the job next.
    let deadly = insertion(None, 200, 1);
    let error = redo.apply(deadly.clone()).await.unwrap_err();
    let fault = (error.kind, error.reason);
    assert_eq!(fault, (ErrorKind::Internal, Reason::RedoDied), "{error}");
    assert_eq!(worker.running.deaths(), 2);
    // From now on it is refused, and kills no more.
    let error = redo.apply(deadly).await.unwrap_err();
    assert_eq!(error.reason, Reason::Quarantined, "{error}");
    // Other records of the same page are not to blame.
    let mut other = insert_on_new_page(7);
    for record in &mut other.records {
        record.end_lsn = Lsn::new(record.end_lsn.get() + 8);
        record.start_lsn = Lsn::new(record.start_lsn.get() + 8);
    }
    redo.apply(other).await.unwrap();
    assert_eq!(worker.running.deaths(), 2);
    worker.scope.stop().await;
}

#[tokio::test]
async fn a_worker_that_is_killed_under_load_loses_no_request() {
    let (first, second) = (worker().await, worker().await);
    // The view goes on naming the dead one, as the storage-broker's does for a while.
    let pool = pool(&[&first, &second]);
    let done = Arc::new(AtomicUsize::new(0));
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let (redo, done) = (pool.tenant(1, 15), Arc::clone(&done));
        lanes.spawn(async move {
            for step in 0..STEPS {
                let value = lane * STEPS + step;
                let page = redo.apply(insert_on_new_page(value)).await.unwrap();
                assert_eq!(stored_value(&page, 1), value);
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let total = (LANES * STEPS) as usize;
    while done.load(Ordering::Relaxed) < total / 10 {
        tokio::task::yield_now().await;
    }
    first.scope.stop().await;
    assert!(done.load(Ordering::Relaxed) < total, "it ended under load");
    lanes.join_all().await;
    assert_eq!(done.load(Ordering::Relaxed), total);
    second.scope.stop().await;
}
