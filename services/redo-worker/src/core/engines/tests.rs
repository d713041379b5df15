use std::{sync::atomic::AtomicUsize, time::Duration};

use palimpsest_types::{BlockNumber, Fork, RelTag, TenantId};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::*;

/// Starts processes that answer while the gate is open; tells how many live.
struct Fake {
    gate: watch::Sender<bool>,
    living: Arc<AtomicUsize>,
    started: AtomicUsize,
    start_takes: Duration,
    given: Arc<Mutex<Given>>,
}

/// Which process was given each job, by the order of their start, and what that one is for.
type Given = Vec<(usize, Urgency)>;

#[derive(Debug, Clone)]
struct FakeProcess {
    number: usize,
    urgency: Urgency,
    gate: watch::Receiver<bool>,
    given: Arc<Mutex<Given>>,
    _alive: Arc<Alive>,
}

#[derive(Debug)]
struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fake {
    fn new() -> Self {
        Self {
            gate: watch::Sender::new(true),
            living: Arc::default(),
            started: AtomicUsize::new(0),
            start_takes: Duration::ZERO,
            given: Arc::default(),
        }
    }
}

impl ProcessSource for Fake {
    type Process = FakeProcess;

    fn check(&self, tenant: &RedoTenant) -> Result<(), StartFailure> {
        let wrong = || StartFailure {
            kind: ErrorKind::Invalid,
            message: "wrong version".to_owned(),
        };
        (tenant.pg_version == 15).then_some(()).ok_or_else(wrong)
    }

    async fn start(&self, _: &RedoTenant, urgency: Urgency) -> Result<FakeProcess, StartFailure> {
        let number = self.started.fetch_add(1, Ordering::SeqCst);
        if !self.start_takes.is_zero() {
            sleep(self.start_takes).await;
        }
        self.living.fetch_add(1, Ordering::SeqCst);
        Ok(FakeProcess {
            number,
            urgency,
            gate: self.gate.subscribe(),
            given: Arc::clone(&self.given),
            _alive: Arc::new(Alive(Arc::clone(&self.living))),
        })
    }
}

impl Engine for FakeProcess {
    async fn apply(&self, _: ApplyRequest) -> Result<Bytes, EngineError> {
        let job = (self.number, self.urgency);
        self.given.lock().unwrap().push(job);
        let mut gate = self.gate.clone();
        gate.wait_for(|open| *open).await.unwrap();
        Ok(Bytes::from_static(b"page"))
    }
}

impl RedoProcess for FakeProcess {
    fn deaths(&self) -> u64 {
        3
    }

    async fn stop(self) {}
}

fn engines(tenants: usize) -> Arc<TenantEngines<Fake>> {
    let limits = Limits {
        processes_per_tenant: NonZeroUsize::MIN,
        tenants: NonZeroUsize::new(tenants).unwrap(),
    };
    Arc::new(TenantEngines::new(Fake::new(), limits))
}

fn tenant(number: u8) -> RedoTenant {
    RedoTenant {
        tenant: TenantId::from_bytes([number; 16]),
        pg_version: 15,
        wal_log_hints: false,
    }
}

fn request() -> ApplyRequest {
    ApplyRequest {
        rel: RelTag {
            spc: 1663,
            db: 5,
            rel: 16384,
            fork: Fork::Main,
        },
        block: BlockNumber::ZERO,
        base: None,
        records: Vec::new(),
    }
}

#[tokio::test]
async fn the_tenant_that_was_idle_for_longest_makes_room() {
    let engines = engines(2);
    for number in [1, 2, 1, 3, 1] {
        engines
            .apply(tenant(number), Urgency::Awaited, request())
            .await
            .unwrap();
    }
    assert_eq!(engines.source.living.load(Ordering::SeqCst), 2);
    assert_eq!(engines.source.started.load(Ordering::SeqCst), 3);
    assert_eq!(engines.deaths(), 9, "deaths of ended processes count on");
}

#[tokio::test]
async fn a_busy_tenant_ends_its_jobs_before_another_takes_its_room() {
    let engines = engines(1);
    engines.source.gate.send_replace(false);
    let apply = |number| {
        let engines = Arc::clone(&engines);
        tokio::spawn(async move {
            engines
                .apply(tenant(number), Urgency::Awaited, request())
                .await
        })
    };
    let first = apply(1);
    while engines.source.living.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let mut second = apply(2);
    let early = timeout(Duration::from_millis(20), &mut second).await;
    assert!(early.is_err(), "there is no room yet");
    assert_eq!(engines.source.started.load(Ordering::SeqCst), 1);

    engines.source.gate.send_replace(true);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(engines.source.living.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn refuses_what_it_cannot_serve_and_everything_once_stopped() {
    let engines = engines(1);
    let wrong = RedoTenant {
        pg_version: 16,
        ..tenant(1)
    };
    let error = engines
        .apply(wrong, Urgency::Awaited, request())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert_eq!(engines.tenants(), 0);

    engines
        .apply(tenant(1), Urgency::Awaited, request())
        .await
        .unwrap();
    engines.stop().await;
    assert_eq!(engines.source.living.load(Ordering::SeqCst), 0);
    let error = engines
        .apply(tenant(1), Urgency::Awaited, request())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotReady);
}

fn slow_engines(processes: usize, start_takes: Duration) -> TenantEngines<Fake> {
    let source = Fake {
        start_takes,
        ..Fake::new()
    };
    let limits = Limits {
        processes_per_tenant: NonZeroUsize::new(processes).unwrap(),
        tenants: NonZeroUsize::MIN,
    };
    TenantEngines::new(source, limits)
}

#[tokio::test(start_paused = true)]
async fn many_processes_take_no_longer_to_start_than_one() {
    let engines = slow_engines(8, START_LIMIT / 2);
    let begun = Instant::now();
    engines
        .apply(tenant(1), Urgency::Awaited, request())
        .await
        .unwrap();
    assert_eq!(begun.elapsed(), START_LIMIT / 2);
    assert_eq!(engines.source.living.load(Ordering::SeqCst), 8);
}

#[tokio::test(start_paused = true)]
async fn p8_every_job_that_waits_for_processes_in_vain_is_told_in_time() {
    let engines = slow_engines(1, 2 * START_LIMIT);
    let begun = Instant::now();
    let jobs = (0..5).map(|_| engines.apply(tenant(1), Urgency::Awaited, request()));
    for outcome in futures::future::join_all(jobs).await {
        assert_eq!(outcome.unwrap_err().kind, ErrorKind::NotReady);
    }
    assert_eq!(begun.elapsed(), START_LIMIT);
}

#[tokio::test]
async fn jobs_that_nobody_waits_for_have_a_process_of_their_own() {
    let engines = engines(1);
    let apply = |urgency| engines.apply(tenant(1), urgency, request());
    let living = || engines.source.living.load(Ordering::SeqCst);
    apply(Urgency::Awaited).await.unwrap();
    assert_eq!(living(), 1, "most tenants need no other");
    for urgency in [Urgency::Background, Urgency::Awaited, Urgency::Background] {
        apply(urgency).await.unwrap();
    }
    let given = engines.source.given.lock().unwrap().clone();
    let [read, image] = [Urgency::Awaited, Urgency::Background];
    assert_eq!(given, [(0, read), (1, image), (0, read), (1, image)]);
    assert_eq!(engines.deaths(), 6, "of both");
    engines.stop().await;
    assert_eq!(living(), 0);
}

#[tokio::test(start_paused = true)]
async fn reads_dont_wait_for_the_process_in_the_background_to_start() {
    let engines = slow_engines(1, START_LIMIT / 2);
    let begun = Instant::now();
    let background = engines.apply(tenant(1), Urgency::Background, request());
    let read = async {
        let outcome = engines.apply(tenant(1), Urgency::Awaited, request()).await;
        (outcome, begun.elapsed())
    };
    let (background, (read, took)) = tokio::join!(background, read);
    read.unwrap();
    assert_eq!(took, START_LIMIT / 2);
    background.unwrap();
    assert_eq!(begun.elapsed(), START_LIMIT / 2, "nor the other way round");
}

#[tokio::test]
async fn a_tenant_that_nobody_reads_has_no_processes_for_that() {
    let engines = slow_engines(8, Duration::ZERO);
    let image = engines.apply(tenant(1), Urgency::Background, request());
    image.await.unwrap();
    assert_eq!(engines.source.living.load(Ordering::SeqCst), 1);
}
