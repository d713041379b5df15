//! Making a branch: a pin, a manifest, an entry in the catalog, in this order.
//!
//! The pin keeps what the branch shares, so it comes first; it names the branch, so that whatever is
//! left of an attempt that ended half way is found by it (`sweeper.rs`). The catalog comes last: what
//! it lists is whole. Nobody is waited for but the object store.

use std::time::{Duration, SystemTime};

use palimpsest_api::{
    TimelineRef,
    broker::{Branched, ClusterView, LeavingWriter, Promotion, TimelineState},
};
use palimpsest_manifest::{
    BranchPointError, ManifestError, Pin, PinError, PinKind, Publisher, TimelineManifest,
    TimelineManifests, UpdateError, Versioned,
};
use palimpsest_types::{ErrorKind, Fault, Lsn, Reason, TimelineId, unix_ms};
use palimpsest_wal::{SegmentSize, WAL_PAGE_SIZE, record_end};

use super::{
    branch::Branch,
    broker::Broker,
    catalog::{CatalogError, Change},
    catalog_store::CatalogStoreError,
    catalog_writer::ChangeError,
    sweeper::discard,
    tenant::Name,
};

/// What is asked for when a branch is made.
#[derive(Debug, Clone)]
pub struct NewBranch {
    /// The timeline that it is to begin on.
    pub parent: TimelineRef,
    /// What people will call it.
    pub name: Name,
    /// Where it is to begin; the newest LSN without it.
    pub lsn: Option<Lsn>,
    /// When it goes by itself, in milliseconds since 1970.
    pub expires_unix_ms: Option<u64>,
}

/// A branch was not made.
#[derive(Debug, thiserror::Error)]
pub enum BranchError {
    /// The catalog does not allow it, or could not be changed.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The catalog does not allow it.
    #[error(transparent)]
    Refused(#[from] CatalogError),
    /// Nothing can be read of the parent yet.
    #[error("timeline {0} has no manifest yet: its base backup is not complete")]
    NotAttached(TimelineRef),
    /// Somebody else has gone on with the timeline, or has not stored all of it.
    #[error("who asks is not the writer of timeline {0} any more, or has not stored all of it")]
    NotTheWriter(TimelineRef),
    /// What is not stored would be lost, and somebody needs it.
    #[error(
        "a branch or a lease needs the timeline up to {needed}, and the object store has it up to {stored}; wait until it has that"
    )]
    NotStored {
        /// Up to where.
        needed: Lsn,
        /// What there is.
        stored: Lsn,
    },
    /// It can't begin there.
    #[error(transparent)]
    Point(#[from] BranchPointError),
    /// The newest LSN is not known.
    #[error("how far timeline {0} is nobody has said yet; try again, or say at which LSN")]
    NotHeard(TimelineRef),
    /// The LSN is in the future.
    #[error("{lsn} has not arrived yet, {newest} is the newest LSN of the timeline")]
    NotArrived {
        /// Where it should begin.
        lsn: Lsn,
        /// The newest LSN.
        newest: Lsn,
    },
    /// What the branch shares could not be kept.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A manifest could not be read or published.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The catalog can't be read.
    #[error(transparent)]
    Catalog(#[from] CatalogStoreError),
}

/// Where an LSN is: on which timeline, whose newest manifest this is.
pub(super) struct Point {
    pub(super) timeline: TimelineRef,
    pub(super) lsn: Lsn,
    pub(super) manifests: TimelineManifests,
    pub(super) newest: Versioned<TimelineManifest>,
}

/// Whether an LSN must be there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    Required,
    /// It may come later.
    Expected,
}

/// After this, what an attempt that ended half way has left may be removed, by clocks that differ.
const PIN_HOLDS: Duration = Duration::from_secs(60 * 60);
/// Of a page of WAL; that of the first one of a segment.
const LONGEST_HEADER: u64 = 40;
/// No attempt goes on for longer.
pub(super) const LONGEST: Duration = Duration::from_secs(10 * 60);
/// Branches that one storage-broker makes side by side.
pub(super) const AT_ONCE: usize = 4;

impl Broker {
    /// Makes a branch durable, or finds the one that there is.
    ///
    /// # Errors
    /// If it can't begin there, its name is taken, or the store fails. Dropping the future may leave a
    /// pin, which goes after a while.
    pub async fn branch(&self, new: NewBranch) -> Result<Branched, BranchError> {
        let created = SystemTime::now();
        let NewBranch {
            parent,
            name,
            lsn,
            expires_unix_ms,
        } = new;
        let lsn = lsn.map(|lsn| lsn.floor_to(8));
        // In what may be the header of a page it begins somewhat before, as is found out with the manifest.
        let is_told = lsn.is_none_or(|lsn| lsn.offset_in(WAL_PAGE_SIZE) >= LONGEST_HEADER);
        if is_told && let Some(branch) = self.branch_like(parent, &name, lsn).await? {
            return Ok(branched(parent, &branch));
        }
        // They would only be in each other's way at the manifest, and in the writer's.
        let _turn = self.branching().acquire().await;
        let point = self.point(parent, lsn, Arrival::Required).await?;
        let made = |new: Branch| Change::Branch {
            tenant: parent.tenant,
            before_unix_ms: unix_ms(created + LONGEST),
            new,
        };
        self.make(point, (name, expires_unix_ms), created, made)
            .await
    }

    /// A server was promoted that lacks the end of a timeline: makes the one that goes on in its place durable, or
    /// finds it.
    ///
    /// # Errors
    /// As for [`Broker::branch`], if nobody writes the timeline, or who asks is not its writer any more.
    pub async fn follow_promotion(
        &self,
        writer: LeavingWriter,
        promotion: Promotion,
    ) -> Result<Branched, BranchError> {
        let created = SystemTime::now();
        let LeavingWriter {
            timeline: left,
            epoch,
        } = writer;
        let _turn = self.branching().acquire().await;
        let newest = self.newest_catalog().await?;
        if let Some(branch) = newest.successor(left, promotion) {
            return Ok(branched(left, branch));
        }
        let name = newest.name_of(left)?;
        let manifest = self.manifests(left).newest().await?;
        let manifest = manifest.ok_or(BranchError::NotAttached(left))?.state;
        if manifest.writer_epoch != epoch || manifest.lsn < promotion.end {
            return Err(BranchError::NotTheWriter(left));
        }
        let cluster = manifest.source.system_identifier;
        let point = self
            .point(left, Some(promotion.at), Arrival::Required)
            .await?;
        let promotion = Promotion {
            at: point.lsn,
            ..promotion
        };
        let made = |new: Branch| Change::Follow {
            left,
            promotion,
            cluster,
            before_unix_ms: unix_ms(created + LONGEST),
            new,
        };
        self.make(point, (name, None), created, made).await
    }

    /// A pin, a manifest, and what the catalog is to list of them.
    pub(super) async fn make(
        &self,
        point: Point,
        (name, expires_unix_ms): (Name, Option<u64>),
        created: SystemTime,
        change: impl FnOnce(Branch) -> Change,
    ) -> Result<Branched, BranchError> {
        let Point {
            timeline: on,
            lsn,
            manifests,
            mut newest,
        } = point;
        let timeline = TimelineRef {
            tenant: on.tenant,
            timeline: TimelineId::from_bytes(rand::random()),
        };
        let pin = pin_of(timeline.timeline, lsn, created);
        let set = |manifest: &mut TimelineManifest| {
            // It is there after an answer of the store was lost.
            let is_set = manifest.pins().contains(&pin);
            manifest.add_pin(pin).map(|()| !is_set)
        };
        let pinned = manifests.update(Publisher::Broker, &mut newest, set).await;
        pinned.map_err(|error| match error {
            UpdateError::Edit(error) => BranchError::Pin(error),
            UpdateError::Manifest(error) => BranchError::Manifest(error),
        })?;
        let first = newest.state.branch(on.timeline, lsn)?;
        let own = self.manifests(timeline);
        own.publish(0, first).await?;
        let branch = Branch {
            id: timeline.timeline,
            name,
            parent: on.timeline,
            lsn,
            created_unix_ms: unix_ms(created),
            expires_unix_ms,
            is_protected: false,
            deleting: false,
            left: None,
            source: None,
        };
        let listed = self.change(change(branch.clone())).await;
        let is_left = match &listed {
            // Of two that are made at once the catalog takes one.
            Ok(listed) => *listed != timeline,
            Err(error) => error.is_refusal(),
        };
        if is_left {
            discard(self, timeline, on).await;
        }
        let id = listed?.timeline;
        Ok(branched(on, &Branch { id, ..branch }))
    }

    /// The branch that is asked for, if it is there already.
    async fn branch_like(
        &self,
        parent: TimelineRef,
        name: &Name,
        lsn: Option<Lsn>,
    ) -> Result<Option<Branch>, BranchError> {
        match self.catalog().branch_like(parent, name, lsn) {
            Ok(None) => Ok(None),
            // Another storage-broker may have changed it since.
            Ok(Some(_)) | Err(_) => {
                let newest = self.newest_catalog().await?;
                Ok(newest.branch_like(parent, name, lsn)?)
            }
        }
    }

    /// On which timeline an LSN of another's history is, and that it can be read.
    pub(super) async fn point(
        &self,
        parent: TimelineRef,
        lsn: Option<Lsn>,
        arrival: Arrival,
    ) -> Result<Point, BranchError> {
        let mut timeline = parent;
        loop {
            let manifests = self.manifests(timeline);
            let newest = manifests.newest().await?;
            let newest = newest.ok_or(BranchError::NotAttached(timeline))?;
            let told = told(&self.watch().borrow(), timeline);
            let arrived = told.unwrap_or(Lsn::ZERO).max(newest.state.lsn);
            let at = match (lsn, told) {
                (None, None) => return Err(BranchError::NotHeard(timeline)),
                (None, Some(_)) => arrived,
                (Some(lsn), _) => lsn,
            };
            let at = end_of(&newest.state, at);
            match newest.state.inherited_at(at) {
                Some(ancestor) => timeline.timeline = ancestor,
                None if at > arrived && arrival == Arrival::Required => {
                    return Err(BranchError::NotArrived {
                        lsn: at,
                        newest: arrived,
                    });
                }
                None => {
                    // Before anything is made.
                    newest.state.check_point(at)?;
                    return Ok(Point {
                        timeline,
                        lsn: at,
                        manifests,
                        newest,
                    });
                }
            }
        }
    }
}

/// How far a timeline is by its writer, if that has said so since this storage-broker started.
fn told(view: &ClusterView, timeline: TimelineRef) -> Option<Lsn> {
    let status = &view.timeline(timeline)?.status;
    (status.state != TimelineState::Unknown).then_some(status.last_record)
}

/// The first LSN at which the same records have ended as at this one.
pub(super) fn end_of(manifest: &TimelineManifest, lsn: Lsn) -> Lsn {
    let size = manifest.source.wal_segment_size.get();
    record_end(lsn, SegmentSize::new(size).unwrap_or(SegmentSize::DEFAULT))
}

pub(super) fn branched(on: TimelineRef, branch: &Branch) -> Branched {
    let timeline = |timeline| TimelineRef { timeline, ..on };
    Branched {
        timeline: timeline(branch.id),
        begins_on: timeline(branch.parent),
        lsn: branch.lsn,
    }
}

fn pin_of(branch: TimelineId, lsn: Lsn, now: SystemTime) -> Pin {
    let expires = unix_ms(now + PIN_HOLDS);
    Pin {
        id: u128::from_be_bytes(*branch.as_bytes()),
        kind: PinKind::Branch { timeline: branch },
        lsn,
        expires_unix_ms: Some(expires),
    }
}

impl BranchError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Change(error) => error.kind(),
            Self::Refused(error) => error.kind(),
            Self::Catalog(error) => error.kind(),
            Self::NotAttached(_)
            | Self::NotHeard(_)
            | Self::NotArrived { .. }
            | Self::NotStored { .. } => ErrorKind::NotReady,
            Self::NotTheWriter(_) => ErrorKind::Conflict,
            Self::Point(_) | Self::Pin(PinError::BelowCutoff { .. }) => ErrorKind::Invalid,
            Self::Pin(PinError::TooMany) => ErrorKind::Throttled,
            Self::Manifest(error) => error.kind(),
        }
    }

    /// The same and what is so, for programs.
    pub fn fault(&self) -> Fault {
        let kind = self.kind();
        match self {
            Self::NotArrived { .. } | Self::NotHeard(_) | Self::NotStored { .. } => {
                Fault::new(kind, Reason::NotArrived)
            }
            Self::NotAttached(_) => Fault::new(kind, Reason::NotOpen),
            Self::Point(BranchPointError::BelowOldest { .. }) => {
                Fault::new(kind, Reason::BelowHorizon)
            }
            Self::Point(BranchPointError::InHole { .. }) => Fault::new(kind, Reason::Lost),
            Self::Pin(PinError::BelowCutoff { .. }) => Fault::new(kind, Reason::BelowHorizon),
            Self::Pin(PinError::TooMany) => Fault::new(kind, Reason::LimitReached),
            Self::Change(error) => error.fault(),
            Self::Refused(error) => error.fault(),
            Self::Catalog(error) => error.fault(),
            _ => kind.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_runtime::TaskScope;

    use super::*;
    use crate::core::{
        fixture::{Site, lsn},
        tenant::NewTenant,
    };

    async fn branch(site: &Site, parent: TimelineRef, name: &str, at: u64) -> Branched {
        site.branch(parent, name, Some(at)).await.unwrap()
    }

    #[tokio::test]
    async fn a_branch_is_a_pin_a_manifest_and_an_entry() {
        let site = Site::new().await;
        let made = branch(&site, site.main, "a", 165).await;
        assert_eq!((made.begins_on, made.lsn), (site.main, lsn(160)));
        let parent = site.manifest(site.main).await.unwrap();
        let [pin] = parent.pins() else {
            panic!("{:?}", parent.pins());
        };
        let timeline = made.timeline.timeline;
        assert_eq!(
            (pin.kind, pin.lsn),
            (PinKind::Branch { timeline }, lsn(160))
        );
        let own = site.manifest(made.timeline).await.unwrap();
        let ancestor = own.ancestor.unwrap();
        assert_eq!(
            (ancestor.timeline, ancestor.lsn),
            (site.main.timeline, lsn(160))
        );
        let view = site.broker.watch().borrow().clone();
        let seen = view.find("shop/a").unwrap();
        assert_eq!(seen.status.state, TimelineState::Idle);
        assert_eq!(seen.branch.unwrap().lsn, lsn(160));
        // What is asked for twice is made once.
        assert_eq!(branch(&site, site.main, "a", 160).await, made);
        assert_eq!(site.branch(site.main, "a", None).await.unwrap(), made);
        assert_eq!(site.manifest(site.main).await.unwrap().pins().len(), 1);
    }

    #[tokio::test]
    async fn of_two_that_are_made_at_once_one_is_there() {
        let site = Site::new().await;
        let (one, other) = tokio::join!(
            site.branch(site.main, "a", Some(160)),
            site.branch(site.main, "a", Some(160)),
        );
        assert_eq!(one.unwrap(), other.unwrap());
        let differs = site.branch(site.main, "a", Some(168)).await.unwrap_err();
        assert_eq!(differs.kind(), ErrorKind::AlreadyExists);
        // What the other had made is gone.
        assert_eq!(site.manifest(site.main).await.unwrap().pins().len(), 1);
    }

    #[tokio::test]
    async fn the_same_name_on_another_timeline_is_another_branch() {
        let site = Site::new().await;
        let made = branch(&site, site.main, "a", 160).await;
        let other = branch(&site, site.main, "b", 160).await.timeline;
        for at in [None, Some(160)] {
            let error = site.branch(other, "a", at).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        }
        // What is older than `b` is main's, whatever it is asked of.
        let old = branch(&site, site.main, "old", 152).await;
        assert_eq!(branch(&site, other, "old", 152).await, old);
        assert_eq!(branch(&site, site.main, "a", 160).await, made);
    }

    #[tokio::test]
    async fn it_begins_where_its_history_is() {
        let site = Site::new().await;
        let first = branch(&site, site.main, "a", 160).await.timeline;
        // At its end, which is its beginning, and before that.
        assert_eq!(
            site.branch(first, "b", None).await.unwrap().begins_on,
            first
        );
        assert_eq!(branch(&site, first, "c", 152).await.begins_on, site.main);
    }

    #[tokio::test]
    async fn in_the_header_of_a_page_it_begins_where_the_page_does() {
        let site = Site::up_to(20_000).await;
        let begins = async |name, at| branch(&site, site.main, name, at).await.lsn.get();
        assert_eq!(begins("a", 8192).await, 8192);
        for at in [8192, 8200, 8192 + 23] {
            assert_eq!(begins("a", at).await, 8192, "the same one");
        }
        assert_eq!(begins("b", 8192 + 24).await, 8192 + 24);
    }

    #[tokio::test]
    async fn it_begins_only_where_one_can_read() {
        let site = Site::new().await;
        let kind = async |at| {
            let outcome = site.branch(site.main, "a", Some(at)).await;
            outcome.map_err(|error| error.kind())
        };
        assert_eq!(kind(112).await, Err(ErrorKind::Invalid));
        assert_eq!(kind(208).await, Err(ErrorKind::NotReady));
        let newest = site.branch(site.main, "a", None).await.unwrap_err();
        assert_eq!(newest.kind(), ErrorKind::NotReady, "{newest}");
        // Nothing of what was refused is left.
        assert!(site.manifest(site.main).await.unwrap().pins().is_empty());
        kind(200).await.unwrap();
    }

    #[tokio::test]
    async fn who_was_promoted_without_the_end_of_a_timeline_is_followed_under_its_name() {
        let site = Site::new().await;
        let cluster = palimpsest_types::SystemIdentifier::new(1);
        assert_eq!(site.broker.claim(site.main, cluster).await.unwrap(), None);
        let kept = branch(&site, site.main, "kept", 192).await.timeline;
        let promotion = Promotion {
            at: lsn(160),
            pg_timeline: 2,
            end: lsn(200),
        };
        let follow = async || site.follow(site.main, promotion).await;
        // Neither one who was superseded, nor before all is stored.
        let superseded = LeavingWriter {
            timeline: site.main,
            epoch: palimpsest_types::WriterEpoch::new(7),
        };
        let early = Promotion {
            end: lsn(208),
            ..promotion
        };
        let asked = site.broker.follow_promotion(superseded, promotion).await;
        assert_eq!(asked.unwrap_err().kind(), ErrorKind::Conflict);
        let asked = site.follow(site.main, early).await;
        assert_eq!(asked.unwrap_err().kind(), ErrorKind::Conflict);
        let next = follow().await.unwrap();
        assert_eq!((next.begins_on, next.lsn), (site.main, lsn(160)));
        // Asked again, by one who did not hear the answer; or at once by two.
        let (again, other) = tokio::join!(follow(), follow());
        assert_eq!([again.unwrap(), other.unwrap()], [next, next]);
        assert_eq!(site.manifest(site.main).await.unwrap().pins().len(), 2);

        let view = site.broker.watch().borrow().clone();
        let main = view.find("shop").unwrap();
        assert_eq!(main.timeline, next.timeline);
        assert!(main.source.contains("host=h") && main.slot == "palimpsest_shop");
        let old = view.find("shop/main@0/A0").unwrap();
        assert_eq!(old.timeline, site.main);
        assert_eq!((old.source.as_str(), old.slot.as_str()), ("", ""));
        assert_eq!(old.status.last_record, lsn(200));
        let begins_on = view.timeline(kept).unwrap().branch.unwrap().timeline;
        assert_eq!(begins_on, site.main.timeline);
        // The cluster is still this tenant's, and what was left is not followed elsewhere.
        let holder = site.broker.catalog().tenants().first().cloned().unwrap();
        assert_eq!(holder.written().collect::<Vec<_>>(), [next.timeline]);
        let again = NewTenant::parse("shop", "host=h user=u", None).unwrap();
        assert_eq!(site.broker.attach(again).await.unwrap(), next.timeline);
        let name = Some("other".parse().unwrap());
        let named = site.broker.update_branch(next.timeline, name, None, None);
        assert_eq!(named.await.unwrap_err().kind(), ErrorKind::Invalid);
        let third = Promotion {
            at: lsn(176),
            ..promotion
        };
        let refused = site.follow(site.main, third).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
    }

    #[tokio::test]
    async fn a_promotion_is_followed_twice() {
        // Attached before clusters were claimed.
        let site = Site::new().await;
        let promotion = |at, pg_timeline| Promotion {
            at: lsn(at),
            pg_timeline,
            end: lsn(200),
        };
        let first = site.follow(site.main, promotion(176, 2)).await;
        let first = first.unwrap().timeline;
        site.grow(first, 200).await;
        let second = site.follow(first, promotion(184, 3)).await;
        let second = second.unwrap();
        assert_eq!(second.begins_on, first);
        let view = site.broker.watch().borrow().clone();
        assert_eq!(view.find("shop").unwrap().timeline, second.timeline);
        let left = view.timeline(first).unwrap();
        assert_eq!(left.timeline_name, "main@0/B8");
        assert_eq!(
            (left.source.as_str(), left.status.last_record),
            ("", lsn(200))
        );
        // It goes with the tenant, and what was left with it.
        let stays = site.broker.delete_branch(second.timeline).await;
        assert_eq!(stays.unwrap_err().kind(), ErrorKind::Invalid);
        let deleted = site.broker.delete("shop".parse().unwrap(), false).await;
        assert_eq!(deleted.unwrap(), site.main);
    }

    #[tokio::test]
    async fn another_broker_finds_it() {
        let site = Site::new().await;
        let made = branch(&site, site.main, "a", 160).await;
        let scope = TaskScope::default();
        let second = site.another_broker(&scope).await;
        let view = second.watch().borrow().clone();
        assert_eq!(view.find("shop/a").unwrap().timeline, made.timeline);
        scope.stop().await;
    }
}
