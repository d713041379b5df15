//! What is printed about services and timelines.

use palimpsest_api::{
    admin::{StoredTimeline, TimelineDetails},
    broker::{ClusterView, DatabaseSize, Lost, Member, Role, TimelineView, WalReceiver},
};
use palimpsest_types::{ByteCount, Lsn, Oid};
use serde::Serialize;

use crate::{client::full_name, moment, output::Column};

/// A service instance.
#[derive(Debug, Serialize)]
pub(crate) struct MemberLine {
    service: &'static str,
    address: String,
    version: String,
    node: String,
}

/// A timeline, with what follows from its positions.
#[derive(Debug, Serialize)]
pub(crate) struct TimelineLine {
    name: String,
    tenant_id: String,
    timeline_id: String,
    state: &'static str,
    reason: String,
    writer: Option<String>,
    writer_epoch: u64,
    source: String,
    slot: String,
    received: Option<Lsn>,
    flushed: Option<Lsn>,
    last_record: Option<Lsn>,
    disk_consistent: Option<Lsn>,
    remote_consistent: Option<Lsn>,
    oldest_readable: Option<Lsn>,
    lag_bytes: u64,
    slot_retained_bytes: u64,
    backup_done_bytes: u64,
    backup_total_bytes: u64,
    logical_size_lsn: Option<Lsn>,
    logical_size_bytes: Option<u64>,
    databases: Vec<DatabaseLine>,
    warnings: Vec<String>,
    lost: Vec<LostLine>,
    wal_receiver: Option<ReceiverLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<StoredLine>,
}

/// What came over the connection to the source, and when.
#[derive(Debug, Serialize)]
struct ReceiverLine {
    connected_since: Option<String>,
    last_heard: String,
    source_lsn: Lsn,
    pg_timeline: u32,
}

/// What the object store has of a timeline.
#[derive(Debug, Serialize)]
struct StoredLine {
    manifest: u64,
    gc_cutoff: Option<Lsn>,
    layers: u64,
    layer_bytes: u64,
    branches: u32,
    leases: u32,
}

/// LSNs at which nothing can be read; the two ends can.
#[derive(Debug, Serialize)]
struct LostLine {
    after: Lsn,
    up_to: Lsn,
}

/// How large a database is.
#[derive(Debug, Serialize)]
struct DatabaseLine {
    oid: Oid,
    bytes: u64,
}

pub(crate) const MEMBER_COLUMNS: [Column; 4] = [
    Column::Left("SERVICE"),
    Column::Left("ADDRESS"),
    Column::Left("VERSION"),
    Column::Left("NODE"),
];

pub(crate) const TIMELINE_COLUMNS: [Column; 8] = [
    Column::Left("TIMELINE"),
    Column::Left("STATE"),
    Column::Left("OLDEST"),
    Column::Left("NEWEST"),
    Column::Right("SIZE"),
    Column::Right("LAG"),
    Column::Right("SLOT KEEPS"),
    Column::Left("SOURCE"),
];

impl From<&Member> for MemberLine {
    fn from(member: &Member) -> Self {
        Self {
            service: role_name(member.role),
            address: member.address.clone(),
            version: member.version.clone(),
            node: member.node.to_string(),
        }
    }
}

impl From<&TimelineView> for TimelineLine {
    fn from(view: &TimelineView) -> Self {
        let status = &view.status;
        let size = status.logical_size.as_ref();
        let databases = size.map_or(&[][..], |size| &size.databases);
        Self {
            name: full_name(view),
            tenant_id: view.timeline.tenant.to_string(),
            timeline_id: view.timeline.timeline.to_string(),
            state: status.state.name(),
            reason: status.reason.clone(),
            writer: view.writer.clone(),
            writer_epoch: status.epoch.get(),
            source: view.source.clone(),
            slot: view.slot.clone(),
            received: known(status.received),
            flushed: known(status.flushed),
            last_record: known(status.last_record),
            disk_consistent: known(status.disk_consistent),
            remote_consistent: known(status.remote_consistent),
            oldest_readable: known(status.oldest_readable),
            lag_bytes: status.lag().get(),
            wal_receiver: status.receiver.map(ReceiverLine::from),
            stored: None,
            slot_retained_bytes: status.slot_retained.get(),
            backup_done_bytes: status.backup_done.get(),
            backup_total_bytes: status.backup_total.get(),
            logical_size_lsn: size.map(|size| size.at),
            logical_size_bytes: size.map(|size| size.total.get()),
            databases: databases.iter().map(DatabaseLine::from).collect(),
            warnings: status.warnings.clone(),
            lost: status.lost.iter().map(LostLine::from).collect(),
        }
    }
}

impl From<WalReceiver> for ReceiverLine {
    fn from(receiver: WalReceiver) -> Self {
        Self {
            connected_since: receiver.connected_unix_ms.map(moment::shown),
            last_heard: moment::shown(receiver.heard_unix_ms),
            source_lsn: receiver.source_end,
            pg_timeline: receiver.pg_timeline,
        }
    }
}

impl From<StoredTimeline> for StoredLine {
    fn from(stored: StoredTimeline) -> Self {
        Self {
            manifest: stored.manifest,
            gc_cutoff: known(stored.gc_cutoff),
            layers: stored.layers,
            layer_bytes: stored.layer_bytes.get(),
            branches: stored.branches,
            leases: stored.leases,
        }
    }
}

impl From<&Lost> for LostLine {
    fn from(lost: &Lost) -> Self {
        Self {
            after: lost.after,
            up_to: lost.up_to,
        }
    }
}

impl From<&DatabaseSize> for DatabaseLine {
    fn from(listed: &DatabaseSize) -> Self {
        Self {
            oid: listed.database,
            bytes: listed.size.get(),
        }
    }
}

impl MemberLine {
    /// All of them, by duty.
    pub(crate) fn all(view: &ClusterView) -> Vec<Self> {
        let mut members: Vec<_> = view.members.iter().collect();
        members.sort_by_key(|member| (member.role, member.address.clone()));
        members.into_iter().map(Self::from).collect()
    }

    /// In the order of [`MEMBER_COLUMNS`].
    pub(crate) fn cells(&self) -> Vec<String> {
        vec![
            self.service.to_owned(),
            self.address.clone(),
            self.version.clone(),
            self.node.clone(),
        ]
    }
}

impl TimelineLine {
    /// All of them, by name.
    pub(crate) fn all(view: &ClusterView) -> Vec<Self> {
        let mut lines: Vec<_> = view.timelines.iter().map(Self::from).collect();
        lines.sort_by(|a, b| a.name.cmp(&b.name));
        lines
    }

    /// In the order of [`TIMELINE_COLUMNS`].
    pub(crate) fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.state.to_owned(),
            shown(self.oldest_readable),
            shown(self.last_record),
            self.logical_size(),
            ByteCount::new(self.lag_bytes).to_string(),
            ByteCount::new(self.slot_retained_bytes).to_string(),
            self.source.clone(),
        ]
    }

    /// What a person should read: why it is in its state, and its warnings.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let Self { name, state, .. } = self;
        let reason =
            (!self.reason.is_empty()).then(|| format!("{name} is {state}: {}", self.reason));
        let warnings = self.warnings.iter();
        reason
            .into_iter()
            .chain(warnings.map(|warning| format!("{name}: {warning}")))
            .collect()
    }

    /// The same with what the object store has.
    pub(crate) fn with_stored(mut self, details: TimelineDetails) -> Self {
        self.stored = details.stored.map(StoredLine::from);
        self.warnings.extend(details.problem);
        self
    }

    /// Everything, as names and values.
    pub(crate) fn details(&self) -> Vec<(&'static str, String)> {
        let bytes = |bytes| ByteCount::new(bytes).to_string();
        let mut details = vec![
            ("timeline", self.name.clone()),
            ("tenant id", self.tenant_id.clone()),
            ("timeline id", self.timeline_id.clone()),
            ("state", self.state.to_owned()),
            ("source", self.source.clone()),
            ("slot", self.slot.clone()),
            (
                "writer",
                self.writer.clone().unwrap_or_else(|| "none".to_owned()),
            ),
            ("writer epoch", self.writer_epoch.to_string()),
            ("oldest readable", shown(self.oldest_readable)),
            ("newest readable", shown(self.last_record)),
            ("WAL received", shown(self.received)),
            ("WAL fsynced here", shown(self.flushed)),
            ("in layers here", shown(self.disk_consistent)),
            ("in object store", shown(self.remote_consistent)),
            ("lag", bytes(self.lag_bytes)),
            ("slot keeps", bytes(self.slot_retained_bytes)),
            (
                "base backup",
                format!(
                    "{} of {}",
                    bytes(self.backup_done_bytes),
                    bytes(self.backup_total_bytes)
                ),
            ),
        ];
        details.extend(self.wal_receiver.iter().flat_map(ReceiverLine::details));
        details.extend(self.stored.iter().flat_map(StoredLine::details));
        details.extend(self.sizes());
        details.extend(self.lost.iter().map(|LostLine { after, up_to }| {
            let lost = format!("after {after}, up to {up_to}, where nothing can be read");
            ("lost at source", lost)
        }));
        if !self.reason.is_empty() {
            details.insert(4, ("reason", self.reason.clone()));
        }
        details.extend(self.warnings.iter().map(|text| ("warning", text.clone())));
        details
    }
}

impl ReceiverLine {
    fn details(&self) -> [(&'static str, String); 2] {
        let Self {
            source_lsn,
            last_heard,
            pg_timeline,
            ..
        } = self;
        let since = match &self.connected_since {
            Some(since) => {
                format!("connected since {since}, reads PostgreSQL timeline {pg_timeline}")
            }
            None => "not connected".to_owned(),
        };
        let source = format!("WAL up to {source_lsn}, heard {last_heard}");
        [("WAL receiver", since), ("source has", source)]
    }
}

impl StoredLine {
    fn details(&self) -> Vec<(&'static str, String)> {
        let Self {
            manifest,
            layers,
            branches,
            leases,
            ..
        } = self;
        let size = ByteCount::new(self.layer_bytes);
        let own = format!("{layers} layers of its own, {size}; manifest {manifest}");
        let kept = format!("{branches} branches, {leases} leases");
        let mut details = vec![("stored", own), ("kept readable for", kept)];
        details.extend(self.gc_cutoff.map(|cutoff| {
            let removed = format!("below {cutoff}, but for what is kept");
            ("removed", removed)
        }));
        details
    }
}

impl TimelineLine {
    /// All relations of all databases, for people.
    fn logical_size(&self) -> String {
        let known = self.logical_size_bytes;
        known.map_or_else(|| "-".to_owned(), |bytes| ByteCount::new(bytes).to_string())
    }

    /// How large it is and its databases are, as names and values.
    fn sizes(&self) -> Vec<(&'static str, String)> {
        let Some(at) = self.logical_size_lsn else {
            return vec![("logical size", self.logical_size())];
        };
        let mut sizes = vec![("logical size", format!("{} at {at}", self.logical_size()))];
        sizes.extend(self.databases.iter().map(|listed| {
            let size = ByteCount::new(listed.bytes);
            let whose = match listed.oid {
                0 => "shared by all databases".to_owned(),
                oid => format!("of database {oid}"),
            };
            ("", format!("{size} {whose}"))
        }));
        sizes
    }
}

/// A service's name.
pub(crate) const fn role_name(role: Role) -> &'static str {
    match role {
        Role::WalIngest => "wal-ingest",
        Role::PageServe => "page-serve",
        Role::RedoWorker => "redo-worker",
        Role::Compactor => "compactor",
    }
}

fn known(lsn: Lsn) -> Option<Lsn> {
    (lsn != Lsn::ZERO).then_some(lsn)
}

fn shown(lsn: Option<Lsn>) -> String {
    lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string())
}

#[cfg(test)]
mod tests {
    use palimpsest_api::{
        TimelineRef,
        broker::{LogicalSize, TimelineStatus},
    };
    use palimpsest_types::{TenantId, TimelineId};

    use super::*;

    fn line(logical_size: Option<LogicalSize>) -> TimelineLine {
        let status = TimelineStatus {
            logical_size,
            ..TimelineStatus::default()
        };
        TimelineLine::from(&TimelineView {
            timeline: TimelineRef {
                tenant: TenantId::from_bytes([1; 16]),
                timeline: TimelineId::from_bytes([2; 16]),
            },
            tenant_name: "demo".into(),
            timeline_name: "main".into(),
            status,
            writer: None,
            source: String::new(),
            slot: String::new(),
            branch: None,
            source_cluster: None,
        })
    }

    #[test]
    fn people_and_programs_are_told_how_large_a_timeline_is() {
        let sizes = [(0, 1 << 20), (5, 3 << 20)].map(|(oid, size)| (oid, ByteCount::new(size)));
        let line = line(Some(LogicalSize::of(Lsn::new(8), sizes)));
        assert_eq!(line.cells().len(), TIMELINE_COLUMNS.len());
        assert_eq!(line.cells()[4], ByteCount::mib(4).to_string());
        let json = serde_json::to_value(&line).unwrap();
        assert_eq!(json["logical_size_bytes"], 4 << 20);
        assert_eq!(json["databases"][0]["oid"], 5);
        assert_eq!(json["databases"][1]["bytes"], 1 << 20);
        let details = line.sizes().into_iter().map(|(_, value)| value);
        let details: Vec<_> = details.collect();
        assert_eq!(details.len(), 3, "{details:?}");
        assert!(details[1].ends_with("of database 5"), "{details:?}");
    }

    #[test]
    fn a_size_that_is_not_known_is_not_zero() {
        let line = line(None);
        assert_eq!(line.cells()[4], "-");
        let json = serde_json::to_value(&line).unwrap();
        assert!(json["logical_size_bytes"].is_null());
    }
}
