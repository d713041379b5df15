//! P7 of two tenants at once: each reads its own pages, however alike the two clusters are, and ids of one used with the
//! other's are refused by each service and each call.

use std::{num::NonZeroUsize, time::SystemTime};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use palimpsest_api::{
    RemoteError, TimelineRef,
    admin::AdminClient,
    broker::{BranchChange, BranchWriter, Role},
    channel::connect_lazily,
    compaction::CompactorClient,
    feed,
    lease::LeaseClient,
    page::{BaseBackupRequest, PageClient, PagesRequest, ReadAt},
};
use palimpsest_integration::{
    embedded::Embedded,
    judge::{Judge, JudgeSize, seed},
};
use palimpsest_testkit::{Cluster, ClusterOptions, cluster::pg_bin};
use palimpsest_types::{
    BlockNumber, ErrorKind, LeaseId, Lsn, RelTag, RequestId, SlruKind, SystemIdentifier, TenantId,
};
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use tokio::task::{block_in_place, spawn_blocking};

const NAME: &str = "tenants";
/// Requests under way.
const AT_ONCE: usize = 16;

/// A tenant whose rows all say whose they are.
struct Tenant {
    name: &'static str,
    cluster: Cluster,
    main: TimelineRef,
    branch: TimelineRef,
    /// The table, which has the same numbers in both.
    table: RelTag,
    blocks: BlockNumber,
    end: Lsn,
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_of_two_tenants_each_has_its_own_and_nothing_of_the_other() {
    let (size, seed) = (JudgeSize::from_env(), seed());
    eprintln!("{NAME}: {size:?}, seed {seed}");
    let mut judge = Judge::new(NAME, "P7");
    let mut random = StdRng::seed_from_u64(seed);
    let rows = size.pick(20_000, 400_000);
    two_tenants(rows, &mut random, &mut judge).await.unwrap();
    judge.close();
}

async fn two_tenants(rows: u32, random: &mut StdRng, judge: &mut Judge) -> Result<()> {
    let files = tempfile::tempdir()?;
    let mut services = Embedded::start(files.path()).await?;
    // With layers of both tenants made anew.
    let settings = palimpsest_compactor::Settings {
        listen: "127.0.0.1:0".to_owned(),
        broker: services.broker_address().to_owned(),
        store: services.store().as_path().into(),
        compaction_threshold: NonZeroUsize::MIN.saturating_add(1),
        image_threshold: NonZeroUsize::MIN,
        ..palimpsest_compactor::Settings::default()
    };
    palimpsest_compactor::run(settings, services.scope()).await?;
    let one = Tenant::attach("redfox", rows, &mut services).await?;
    let other = Tenant::attach("bluejay", rows, &mut services).await?;
    ensure!(
        one.table == other.table,
        "{} and {}",
        one.table,
        other.table
    );
    read_both(&services, [&one, &other], random, judge).await?;
    for (own, foreign) in [(&one, &other), (&other, &one)] {
        for (tenant, timeline) in [
            (own.main.tenant, foreign.main),
            (own.main.tenant, foreign.branch),
        ] {
            let crossed = TimelineRef { tenant, ..timeline };
            refuse_all(&services, crossed, own, judge).await?;
        }
        judge.check(keeps_its_lease(&services, own.main.tenant, foreign).await?);
    }
    // Nothing of all that was tried has changed anything.
    read_both(&services, [&one, &other], random, judge).await?;
    services.stop().await;
    Ok(())
}

impl Tenant {
    async fn attach(name: &'static str, rows: u32, services: &mut Embedded) -> Result<Self> {
        let mut cluster = Cluster::temporary(ClusterOptions::default())?;
        block_in_place(|| cluster.start())?;
        let conninfo = cluster.conninfo("postgres");
        let main = services.attach(name, &conninfo).await?;
        let sql = |text: &str| block_in_place(|| cluster.psql("postgres", text));
        sql(&format!(
            "CREATE TABLE t AS SELECT '{name}' AS whose, i FROM generate_series(1, {rows}) i"
        ))?;
        sql("UPDATE t SET i = i + 1 WHERE i % 7 = 0")?;
        sql("CHECKPOINT")?;
        sql("UPDATE t SET i = i + 1 WHERE i % 11 = 0")?;
        let table = sql("SELECT 1663 || '/5/' || pg_relation_filenode('t')")?;
        let blocks = sql("SELECT pg_relation_size('t') / 8192")?.parse()?;
        let end = sql("SELECT pg_current_wal_flush_lsn()")?.parse()?;
        services
            .wait_for(main, |view| view.status.last_record >= end)
            .await?;
        let branch = services
            .broker()
            .create_branch(main, "b", Some(end))
            .await?;
        Ok(Self {
            name,
            main,
            branch: branch.timeline,
            table: table.parse()?,
            blocks: BlockNumber::new(blocks),
            end,
            cluster,
        })
    }
}

/// Reads all pages of both tables in a random order over one connection, while both tenants go on writing.
async fn read_both(
    services: &Embedded,
    tenants: [&Tenant; 2],
    random: &mut StdRng,
    judge: &mut Judge,
) -> Result<()> {
    for tenant in tenants {
        services.served(tenant.main).await?;
    }
    let client = page_client(services).await?;
    let mut asked: Vec<_> = tenants
        .into_iter()
        .flat_map(|tenant| (0..tenant.blocks.get()).map(move |block| (tenant, block)))
        .flat_map(|(tenant, block)| {
            [tenant.main, tenant.branch].map(|timeline| (tenant, timeline, block))
        })
        .collect();
    asked.shuffle(random);
    let working = tenants.map(|tenant| {
        let conninfo = tenant.cluster.conninfo("postgres");
        spawn_blocking(move || {
            std::process::Command::new(pg_bin().join("psql"))
                .args([&conninfo, "-qc", "UPDATE t SET i = i + 1 WHERE i % 5 = 0"])
                .status()
        })
    });
    let client = &client;
    let read = stream::iter(asked).map(async |(tenant, timeline, block)| {
        let request = PagesRequest {
            timeline,
            rel: tenant.table,
            blocks: vec![BlockNumber::new(block)],
            at: at(tenant.end),
        };
        let pages = client.pages(request).await?;
        let page = pages.pages.first().context("no page")?.clone();
        Ok::<_, anyhow::Error>((tenant, block, page))
    });
    let read: Vec<_> = read.buffer_unordered(AT_ONCE).try_collect().await?;
    for (tenant, block, page) in read {
        let has = |name: &str| {
            page.windows(name.len())
                .any(|bytes| bytes == name.as_bytes())
        };
        let others = tenants.iter().filter(|other| other.name != tenant.name);
        let foreign = others.filter(|other| has(other.name)).count() > 0;
        judge.check(match (has(tenant.name), foreign) {
            (true, false) => None,
            found => Some(format!(
                "{} block {block}: own, foreign: {found:?}",
                tenant.name
            )),
        });
    }
    for work in working {
        let status = work.await??;
        ensure!(status.success(), "the tenants could not write");
    }
    Ok(())
}

type Refused = Vec<(&'static str, Option<RemoteError>)>;

/// Each call that names a timeline, with one that there is not.
async fn refuse_all(
    services: &Embedded,
    crossed: TimelineRef,
    own: &Tenant,
    judge: &mut Judge,
) -> Result<()> {
    let mut refused = reads(services, crossed, own).await?;
    refused.extend(changes(services, crossed, own).await?);
    for (call, error) in refused {
        judge.check(finding(call, crossed, error));
    }
    Ok(())
}

async fn reads(services: &Embedded, crossed: TimelineRef, own: &Tenant) -> Result<Refused> {
    let at = at(own.end);
    let pages = page_client(services).await?;
    let request = PagesRequest {
        timeline: crossed,
        rel: own.table,
        blocks: vec![BlockNumber::ZERO],
        at,
    };
    let backup = BaseBackupRequest {
        timeline: crossed,
        at,
        system_identifier: None,
        postgres_timeline: None,
        is_packed: false,
        is_sparse: true,
    };
    let mut refused = vec![
        ("GetPages", pages.pages(request).await.err()),
        ("GetReadable", pages.readable(crossed).await.err()),
        (
            "GetRelationSize",
            pages.relation_size(crossed, at, own.table).await.err(),
        ),
        (
            "GetDatabaseSize",
            pages.database_size(crossed, at, 5).await.err(),
        ),
        ("ListRelations", pages.relations(crossed, at).await.err()),
        (
            "GetRelationMap",
            pages.relation_map(crossed, at, 1663, 5).await.err(),
        ),
        (
            "GetSlruSegment",
            pages
                .slru_segment(crossed, at, SlruKind::Clog, 0)
                .await
                .err(),
        ),
        (
            "GetLsnAtTime",
            pages.lsn_at_time(crossed, SystemTime::now()).await.err(),
        ),
        ("GetTimeAtLsn", pages.time_at_lsn(crossed, at).await.err()),
        ("GetBaseBackup", pages.base_backup(backup).await.err()),
    ];
    let ingest = connect_lazily(&address(services, Role::WalIngest)?)?;
    let fed = async {
        let mut fed = feed::subscribe(ingest, crossed, own.end).await?;
        fed.next().await.map(drop)
    };
    refused.push(("Subscribe", fed.await.err()));
    Ok(refused)
}

async fn changes(services: &Embedded, crossed: TimelineRef, own: &Tenant) -> Result<Refused> {
    let mut broker = services.broker();
    let change = BranchChange {
        is_protected: Some(true),
        ..BranchChange::default()
    };
    let writer = BranchWriter {
        system_identifier: SystemIdentifier::new(77),
        pg_timeline: 1,
        begin: own.end,
    };
    let source = ("host=127.0.0.1 user=nobody", "palimpsest");
    let set = broker.set_branch_source(crossed, source, writer, None);
    let mut refused = vec![("SetBranchSource", set.await.err())];
    let request = RequestId::from_bytes(rand::random());
    refused.extend([
        (
            "CreateBranch",
            broker
                .create_branch(crossed, "stolen", Some(own.end))
                .await
                .err(),
        ),
        (
            "UpdateBranch",
            broker.update_branch(crossed, change).await.err(),
        ),
        ("DeleteBranch", broker.delete_branch(crossed).await.err()),
        ("Reattach", broker.reattach(crossed, request).await.err()),
    ]);
    let admin = AdminClient::new(services.broker_address())?;
    refused.push(("GetTimeline", admin.timeline(crossed).await.err()));
    let leases = LeaseClient::new(services.broker_address())?;
    let lease = LeaseId::from_bytes(rand::random());
    refused.extend([
        (
            "LeaseLsn",
            leases.take(crossed, lease, Some(own.end), None).await.err(),
        ),
        ("ListLeases", leases.list(crossed).await.err()),
    ]);
    let compactor = address(services, Role::Compactor)?;
    let compactor = CompactorClient::new(connect_lazily(&compactor)?);
    refused.extend([
        ("ListLayers", compactor.layers(crossed).await.err()),
        ("GetPlan", compactor.plan(crossed, None).await.err()),
        ("Compact", compactor.compact(crossed, None).await.err()),
    ]);
    Ok(refused)
}

/// A lease of one, named with the other's id.
async fn keeps_its_lease(
    services: &Embedded,
    tenant: TenantId,
    foreign: &Tenant,
) -> Result<Option<String>> {
    let leases = LeaseClient::new(services.broker_address())?;
    let id = LeaseId::from_bytes(rand::random());
    leases
        .take(foreign.main, id, Some(foreign.end), None)
        .await?;
    let crossed = TimelineRef {
        tenant,
        ..foreign.main
    };
    let dropped = leases.drop_lease(crossed, id).await.unwrap_or(false);
    let kept = leases.list(foreign.main).await?;
    let is_kept = kept.iter().any(|lease| lease.id == id);
    Ok((dropped || !is_kept).then(|| format!("the lease of {} was dropped", foreign.name)))
}

fn finding(call: &str, crossed: TimelineRef, error: Option<RemoteError>) -> Option<String> {
    match error {
        Some(error) if error.kind == ErrorKind::NotFound => None,
        // A wal-ingest knows what it writes, and no more.
        Some(error) if call == "Subscribe" && error.kind == ErrorKind::NotReady => None,
        Some(error) => Some(format!("{call} of {crossed}: {:?}: {error}", error.kind)),
        None => Some(format!("{call} of {crossed} was answered")),
    }
}

async fn page_client(services: &Embedded) -> Result<PageClient> {
    let address = address(services, Role::PageServe)?;
    Ok(PageClient::connect(connect_lazily(&address)?).await?)
}

fn address(services: &Embedded, role: Role) -> Result<String> {
    let cluster = services.cluster().borrow();
    let addresses = cluster.addresses(role);
    Ok(addresses.first().context("nobody has that duty")?.clone())
}

fn at(lsn: Lsn) -> ReadAt {
    ReadAt {
        lsn: Some(lsn),
        ..ReadAt::default()
    }
}
