//! A tenant with something to branch from, for tests.

use palimpsest_api::{
    TimelineRef,
    broker::{
        Assignment, Branched, LeavingWriter, Member, Promotion, Role, TimelineState, TimelineStatus,
    },
    tenant_settings::TenantSettings,
};
use palimpsest_manifest::{
    KeySpan, LayerEntry, LayerKind, LsnSpan, Sequence, SourceCluster, TimelineManifest,
    TimelineManifests,
};
use palimpsest_runtime::TaskScope;
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{ByteCount, Key, Lsn, NodeId, SystemIdentifier, WriterEpoch};

use super::{
    branching::{BranchError, NewBranch},
    broker::Broker,
    membership::Timing,
    tenant::NewTenant,
};

/// A broker, and tenant `shop` with a timeline that can be read from 120 to 200.
pub(super) struct Site {
    pub(super) broker: Broker,
    pub(super) main: TimelineRef,
    store: ObjectStore,
    _scope: TaskScope,
    _directory: tempfile::TempDir,
}

pub(super) const fn lsn(position: u64) -> Lsn {
    Lsn::new(position)
}

impl Site {
    pub(super) async fn new() -> Self {
        Self::up_to(200).await
    }

    /// With a timeline that can be read up to there.
    pub(super) async fn up_to(end: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(directory.path()).await.unwrap();
        let scope = TaskScope::default();
        let broker = Broker::start(store.clone(), Timing::default(), &scope).await;
        let broker = broker.unwrap();
        let new = NewTenant::parse("shop", "host=h user=u", None).unwrap();
        let main = broker.attach(new).await.unwrap();
        let manifests = TimelineManifests::new(store.clone(), main.tenant, main.timeline);
        manifests
            .publish(0, first_manifest(lsn(end)))
            .await
            .unwrap();
        Self {
            broker,
            main,
            store,
            _scope: scope,
            _directory: directory,
        }
    }

    pub(super) async fn another_broker(&self, scope: &TaskScope) -> Broker {
        let broker = Broker::start(self.store.clone(), Timing::default(), scope).await;
        broker.unwrap()
    }

    pub(super) async fn branch(
        &self,
        parent: TimelineRef,
        name: &str,
        at: Option<u64>,
    ) -> Result<Branched, BranchError> {
        let new = NewBranch {
            parent,
            name: name.parse().unwrap(),
            lsn: at.map(Lsn::new),
            expires_unix_ms: None,
        };
        self.broker.branch(new).await
    }

    /// The writer of a timeline has seen a promotion.
    pub(super) async fn follow(
        &self,
        timeline: TimelineRef,
        promotion: Promotion,
    ) -> Result<Branched, BranchError> {
        let epoch = self.manifest(timeline).await.unwrap().writer_epoch;
        let writer = LeavingWriter { timeline, epoch };
        self.broker.follow_promotion(writer, promotion).await
    }

    /// A timeline's writer says what happens to it; what it is to do.
    pub(super) async fn tell(
        &self,
        timeline: TimelineRef,
        state: TimelineState,
    ) -> Vec<Assignment> {
        let status = TimelineStatus {
            state,
            ..TimelineStatus::default()
        };
        self.tell_status(timeline, status).await
    }

    /// A timeline's writer has read WAL up to here.
    pub(super) async fn tell_end(&self, timeline: TimelineRef, last_record: Lsn) {
        let status = TimelineStatus {
            state: TimelineState::Streaming,
            last_record,
            ..TimelineStatus::default()
        };
        self.tell_status(timeline, status).await;
    }

    async fn tell_status(&self, timeline: TimelineRef, status: TimelineStatus) -> Vec<Assignment> {
        let member = Member {
            node: NodeId::from_bytes([9; 16]),
            role: Role::WalIngest,
            address: "127.0.0.1:1".into(),
            version: String::new(),
            tenant_defaults: TenantSettings::default(),
        };
        let statuses = vec![(timeline, status)];
        self.broker.heartbeat(member, statuses).await.unwrap()
    }

    /// A timeline has come to here.
    pub(super) async fn grow(&self, timeline: TimelineRef, up_to: u64) {
        let TimelineRef { tenant, timeline } = timeline;
        let manifests = TimelineManifests::new(self.store.clone(), tenant, timeline);
        let newest = manifests.newest().await.unwrap().unwrap();
        let mut grown = newest.state;
        let kind = LayerKind::Delta(LsnSpan {
            after: grown.lsn,
            up_to: lsn(up_to),
        });
        grown.lsn = lsn(up_to);
        let number = u32::try_from(grown.layers().len()).unwrap();
        grown.add_layers(vec![layer(number, kind)]).unwrap();
        manifests.publish(newest.number, grown).await.unwrap();
    }

    /// The newest manifest of a timeline is damaged from now on.
    pub(super) async fn damage(&self, timeline: TimelineRef) {
        let TimelineRef { tenant, timeline } = timeline;
        let path = StorePath::timeline(tenant, timeline).child("manifest");
        let sequence = Sequence::new(self.store.clone(), path);
        let newest = sequence.newest().await.unwrap().unwrap();
        let damaged = b"no manifest".as_slice().into();
        sequence.append(newest.number, damaged).await.unwrap();
    }

    /// The newest manifest of a timeline.
    pub(super) async fn manifest(&self, timeline: TimelineRef) -> Option<TimelineManifest> {
        let TimelineRef { tenant, timeline } = timeline;
        let manifests = TimelineManifests::new(self.store.clone(), tenant, timeline);
        Some(manifests.newest().await.unwrap()?.state)
    }
}

fn first_manifest(up_to: Lsn) -> TimelineManifest {
    let source = SourceCluster {
        system_identifier: SystemIdentifier::new(1),
        pg_version: 15,
        pg_timeline: 1,
        wal_segment_size: ByteCount::mib(16),
        wal_log_hints: false,
    };
    let mut manifest = TimelineManifest::new(source, lsn(100), lsn(120));
    let after = lsn(100);
    let kinds = [
        LayerKind::Base(after),
        LayerKind::Delta(LsnSpan { after, up_to }),
    ];
    let layers = (0..).zip(kinds).map(|(number, kind)| layer(number, kind));
    manifest.lsn = up_to;
    manifest.add_layers(layers.collect()).unwrap();
    manifest
}

fn layer(number: u32, kind: LayerKind) -> LayerEntry {
    LayerEntry {
        name: format!("layer-{number}"),
        kind,
        keys: KeySpan {
            first: Key::TwoPhase(0),
            last: Key::TwoPhase(1),
        },
        size: ByteCount::kib(8),
        entries: 1,
        level: 0,
        epoch: WriterEpoch::FIRST,
    }
}
