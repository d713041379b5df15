//! Membership and positions: what services tell the storage-broker and learn from it.

mod client;
mod convert;
mod logical_size;

use palimpsest_types::{
    ByteCount, Lsn, NodeId, SystemIdentifier, TenantId, TimelineId, WriterEpoch,
};

use crate::{convert::TimelineRef, tenant_settings::TenantSettings};

pub use client::{BrokerClient, watch_cluster};
pub(crate) use client::{malformed, within_deadline};
pub use convert::{
    assignment_to_wire, claim_from_wire, leaving_from_wire, promotion_from_wire, status_from_wire,
    view_to_wire,
};
pub(crate) use convert::{state_from_wire, state_to_wire};
pub use logical_size::{DatabaseSize, LogicalSize};

/// Name of the first timeline of every tenant.
pub const MAIN: &str = "main";

/// A service's duty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads WAL.
    WalIngest,
    /// Serves pages.
    PageServe,
    /// Replays records.
    RedoWorker,
    /// Makes layers anew.
    Compactor,
}

/// A live service instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// New at every start.
    pub node: NodeId,
    /// Its duty.
    pub role: Role,
    /// Where its gRPC server is, as `host:port`.
    pub address: String,
    /// Version of its program; empty if it does not say.
    pub version: String,
    /// What it does with a tenant that has set nothing, where it goes by such settings.
    pub tenant_defaults: TenantSettings,
}

/// What happens to a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimelineState {
    /// Nobody has said yet.
    #[default]
    Unknown,
    /// The base backup is being read.
    Attaching,
    /// WAL is being read as the source writes it.
    Streaming,
    /// The source can't be reached at the moment.
    Disconnected,
    /// It was taken over, and the WAL on the local disk is being decoded.
    Resuming,
    /// There is no room for more; the connection is closed until there is.
    Paused,
    /// It can't go on.
    Stopped,
    /// Slot and files are being removed.
    Deleting,
    /// Nothing is left.
    Deleted,
    /// It is a branch that nobody writes to.
    Idle,
}

/// How far a timeline has come, as its writer says. Zero LSNs are not known yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimelineStatus {
    /// What happens to it.
    pub state: TimelineState,
    /// Why, in words.
    pub reason: String,
    /// Generation of the writer.
    pub epoch: WriterEpoch,
    /// WAL received.
    pub received: Lsn,
    /// WAL fsynced here.
    pub flushed: Lsn,
    /// Decoded and readable.
    pub last_record: Lsn,
    /// In layer files on our disk, fsynced.
    pub disk_consistent: Lsn,
    /// In the object store.
    pub remote_consistent: Lsn,
    /// The oldest LSN that can be read.
    pub oldest_readable: Lsn,
    /// Of the base backup, read so far.
    pub backup_done: ByteCount,
    /// Of the base backup, as the source estimates.
    pub backup_total: ByteCount,
    /// WAL that the slot keeps on the source's disk.
    pub slot_retained: ByteCount,
    /// What needs attention though the timeline goes on.
    pub warnings: Vec<String>,
    /// How large its databases are, once that was added up.
    pub logical_size: Option<LogicalSize>,
    /// What of its history was lost at the source, and can't be read.
    pub lost: Vec<Lost>,
    /// What its WAL receiver last heard, once it has connected.
    pub receiver: Option<WalReceiver>,
}

/// The connection to a source, over which WAL comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalReceiver {
    /// Since when there is one, in milliseconds since 1970; `None` if there is none at the moment.
    pub connected_unix_ms: Option<u64>,
    /// When something last came over it, likewise.
    pub heard_unix_ms: u64,
    /// Up to where the source had WAL then.
    pub source_end: Lsn,
    /// PostgreSQL timeline that is read.
    pub pg_timeline: u32,
}

/// LSNs at which nothing can be read, because changes were lost. The two ends can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The end of what was there before.
    pub after: Lsn,
    /// From here on there is a base backup, and what came after it.
    pub up_to: Lsn,
}

/// A timeline that the broker proposes a writer for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Which timeline.
    pub timeline: TimelineRef,
    /// How to reach the source.
    pub source: String,
    /// The slot there.
    pub slot: String,
    /// What to do with it.
    pub task: AssignedTask,
    /// Of a branch: whose WAL it is to be.
    pub writer: Option<BranchWriter>,
    /// That it is to go on from a base backup, if it has not yet.
    pub reattach: Option<Reattach>,
    /// What its tenant has set.
    pub settings: TenantSettings,
}

/// Somebody has asked that a timeline goes on from a base backup, because WAL was lost at its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reattach {
    /// Where its history ended in the object store. Done when it has gone on from there, or from later.
    pub after: Lsn,
    /// How often somebody has asked: each time it is tried anew.
    pub request: u64,
}

/// The cluster that writes a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BranchWriter {
    /// Told apart from all others by this.
    pub system_identifier: SystemIdentifier,
    /// Its PostgreSQL timeline.
    pub pg_timeline: u32,
    /// Where its WAL begins, which is where that of the branch ended.
    pub begin: Lsn,
}

/// A server was promoted that lacks the end of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promotion {
    /// Where the server's own history begins.
    pub at: Lsn,
    /// PostgreSQL's timeline since then.
    pub pg_timeline: u32,
    /// The end of what is here, which nobody writes any more.
    pub end: Lsn,
}

/// Who says that a server was promoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeavingWriter {
    /// What it has written.
    pub timeline: TimelineRef,
    /// Its generation.
    pub epoch: WriterEpoch,
}

/// What the writer of a timeline is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssignedTask {
    /// Attach or resume, then read WAL.
    Ingest,
    /// Remove slot and files, of a branch only those on the writer's disk; `forget_slot` if the source is gone
    /// for good.
    Delete {
        /// Do not insist on dropping the slot.
        forget_slot: bool,
    },
    /// Remove the slot, and what is on the writer's disk.
    Leave {
        /// Do not insist on dropping the slot.
        forget_slot: bool,
    },
}

/// The whole picture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterView {
    /// Who is alive.
    pub members: Vec<Member>,
    /// The timelines of the catalog.
    pub timelines: Vec<TimelineView>,
    /// The tenants of the catalog.
    pub tenants: Vec<TenantView>,
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantView {
    /// Which.
    pub tenant: TenantId,
    /// What people call it.
    pub name: String,
    /// What it has set for itself.
    pub settings: TenantSettings,
}

/// A timeline and its writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineView {
    /// Which.
    pub timeline: TimelineRef,
    /// Name of the tenant.
    pub tenant_name: String,
    /// Name of the timeline.
    pub timeline_name: String,
    /// What its writer last said.
    pub status: TimelineStatus,
    /// Where the writer is, if there is one.
    pub writer: Option<String>,
    /// The source, without the password.
    pub source: String,
    /// The slot at the source.
    pub slot: String,
    /// What makes it a branch, if it is one.
    pub branch: Option<BranchView>,
    /// The cluster that writes it, if it is a branch that one does.
    pub source_cluster: Option<SystemIdentifier>,
}

/// A timeline that begins on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BranchView {
    /// The timeline that it begins on, of the same tenant.
    pub timeline: TimelineId,
    /// What ends at or before it is shared.
    pub lsn: Lsn,
    /// When it was made, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// When it is deleted by itself, likewise.
    pub expires_unix_ms: Option<u64>,
    /// Whether it can't be deleted before that is taken back.
    pub is_protected: bool,
}

/// What is to change about a branch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BranchChange {
    /// Its name.
    pub name: Option<String>,
    /// Whether it can't be deleted.
    pub is_protected: Option<bool>,
    /// When it is deleted by itself, in milliseconds since 1970; `Some(None)`: never.
    pub expires_unix_ms: Option<Option<u64>>,
}

/// A branch that was made, or was there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Branched {
    /// It.
    pub timeline: TimelineRef,
    /// The timeline that it begins on: the one asked for, or one that this begins on itself.
    pub begins_on: TimelineRef,
    /// Where it begins.
    pub lsn: Lsn,
}

impl TimelineStatus {
    /// WAL that the source is known to have and that is not readable yet.
    pub fn lag(&self) -> ByteCount {
        let source = self.receiver.map_or(Lsn::ZERO, |heard| heard.source_end);
        let end = self.received.max(source);
        // Until WAL is read nothing is late.
        match self.last_record {
            Lsn::ZERO => ByteCount::ZERO,
            last => ByteCount::new(end.saturating_sub(last)),
        }
    }
}

impl TimelineView {
    /// Whether a PostgreSQL writes it. If not, it is a branch that stays as it is, or was left for another timeline.
    pub fn is_written(&self) -> bool {
        !self.source.is_empty()
    }

    /// The timeline that it begins on, and where; `None` if it is no branch.
    pub fn begins_on(&self) -> Option<(TimelineRef, Lsn)> {
        let point = self.branch?;
        let parent = TimelineRef {
            timeline: point.timeline,
            ..self.timeline
        };
        Some((parent, point.lsn))
    }

    /// Whether it is what people mean by its tenant: what that one's source is read to, be it since a promotion, or what stands in
    /// for it since the source was left.
    pub fn is_main(&self) -> bool {
        self.timeline_name == MAIN
    }
}

impl ClusterView {
    /// Addresses of all live members with a duty.
    pub fn addresses(&self, role: Role) -> Vec<String> {
        let members = self.members.iter().filter(|member| member.role == role);
        members.map(|member| member.address.clone()).collect()
    }

    /// What a tenant has set for itself; nothing of one that is not known.
    pub fn settings(&self, tenant: TenantId) -> TenantSettings {
        let found = self.tenants.iter().find(|view| view.tenant == tenant);
        found.map_or_else(TenantSettings::default, |view| view.settings)
    }

    /// A timeline by id.
    pub fn timeline(&self, timeline: TimelineRef) -> Option<&TimelineView> {
        self.timelines.iter().find(|view| view.timeline == timeline)
    }

    /// A timeline by name: `TENANT` for its `main`, `TENANT/TIMELINE`, or `TIMELINE` if no tenant is
    /// called so and only one has such a timeline.
    pub fn find(&self, name: &str) -> Option<&TimelineView> {
        let (tenant, timeline) = name.split_once('/').unwrap_or((name, MAIN));
        let named =
            |view: &&TimelineView| view.tenant_name == tenant && view.timeline_name == timeline;
        let in_tenant = self.timelines.iter().find(named);
        in_tenant.or_else(|| {
            let called_so = |view: &&TimelineView| view.timeline_name == name;
            let mut called_so = self.timelines.iter().filter(called_so);
            let only = called_so.next();
            only.filter(|_| called_so.next().is_none())
        })
    }
}

impl TimelineState {
    /// A word for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Attaching => "attaching",
            Self::Streaming => "streaming",
            Self::Disconnected => "disconnected",
            Self::Resuming => "resuming",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Deleting => "deleting",
            Self::Deleted => "deleted",
            Self::Idle => "idle",
        }
    }
}
