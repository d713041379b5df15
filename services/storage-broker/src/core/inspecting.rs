//! What there is, for those who look after it.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use palimpsest_api::{
    TimelineRef,
    admin::{ComputeInfo, StoredTimeline, TenantInfo, TimelineChanges, TimelineDetails},
    broker::{ClusterView, TimelineState, TimelineView},
    error_detail,
};
use palimpsest_manifest::{PinKind, TimelineManifest, Versioned};
use palimpsest_types::{ByteCount, ErrorKind, Fault, Reason};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    branch::Branch,
    broker::Broker,
    tenant::{Name, Tenant, TenantState},
};

/// It can't be told.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// There is no such tenant.
    #[error("there is no tenant {0}")]
    UnknownTenant(Name),
    /// There is no such timeline.
    #[error("there is no timeline {0}")]
    UnknownTimeline(TimelineRef),
    /// Each that watches costs memory.
    #[error("{limit} watch timelines already, which is all that may; end one, or ask for the list")]
    TooManyWatchers {
        /// How many may.
        limit: usize,
    },
}

/// Timelines as somebody knows them who was told of all changes.
#[derive(Debug)]
pub struct ToldTimelines {
    tenant: Option<Name>,
    known: HashMap<TimelineRef, TimelineView>,
    began: bool,
}

/// Timelines in one message: a few hundred KiB.
pub const TIMELINES_AT_ONCE: usize = 500;
/// Who takes nothing for so long is cut off: others may want to watch.
const STUCK: Duration = Duration::from_secs(60);
/// A manifest is waited for no longer.
const READING: Duration = Duration::from_secs(5);

impl Broker {
    /// The tenants, in the order in which they were attached.
    pub fn tenants(&self) -> Vec<TenantInfo> {
        let catalog = self.catalog();
        catalog.tenants().iter().map(tenant_info).collect()
    }

    /// The timelines of a tenant, or all, in the order of the catalog.
    ///
    /// # Errors
    /// If there is no such tenant.
    pub fn timelines(&self, tenant: Option<&Name>) -> Result<Vec<TimelineView>, InspectError> {
        self.expect_tenant(tenant)?;
        let view = self.watch();
        let view = view.borrow();
        let of_tenant = view.timelines.iter().filter(|view| is_of(view, tenant));
        Ok(of_tenant.cloned().collect())
    }

    /// A timeline, and what its newest manifest says. If that can't be read, the rest is told nevertheless: it is what one needs then.
    ///
    /// # Errors
    /// If there is no such timeline.
    pub async fn timeline(&self, timeline: TimelineRef) -> Result<TimelineDetails, InspectError> {
        let unknown = InspectError::UnknownTimeline(timeline);
        let view = self.watch().borrow().timeline(timeline).cloned();
        let view = view.ok_or(unknown)?;
        let (stored, problem) = match self.newest_manifest(timeline).await {
            Ok(newest) => (newest.as_ref().map(stored), None),
            Err(problem) => (None, Some(problem)),
        };
        Ok(TimelineDetails {
            view,
            stored,
            problem,
        })
    }

    /// The newest manifest of a timeline, or why it can't be read.
    pub(super) async fn newest_manifest(
        &self,
        timeline: TimelineRef,
    ) -> Result<Option<Versioned<TimelineManifest>>, String> {
        let manifests = self.manifests(timeline);
        match timeout(READING, manifests.newest()).await {
            Ok(newest) => newest.map_err(|error| error_detail(error.kind(), &error).message),
            Err(_) => Err(format!(
                "the object store did not answer within {READING:?}"
            )),
        }
    }

    /// The PostgreSQL clusters that write branches of a tenant, or of all.
    ///
    /// # Errors
    /// If there is no such tenant.
    pub fn computes(&self, tenant: Option<&Name>) -> Result<Vec<ComputeInfo>, InspectError> {
        self.expect_tenant(tenant)?;
        let catalog = self.catalog();
        let view = self.watch();
        let view = view.borrow();
        let tenants = catalog.tenants().iter();
        let tenants = tenants.filter(|one| tenant.is_none_or(|name| one.name == *name));
        let computes = tenants.flat_map(|tenant| {
            let branches = tenant.branches.iter();
            branches.filter_map(|branch| compute_info(tenant, branch, &view))
        });
        Ok(computes.collect())
    }

    /// For somebody who knows nothing of the timelines of a tenant, or of all.
    ///
    /// # Errors
    /// If there is no such tenant.
    pub fn told_nothing(&self, tenant: Option<Name>) -> Result<ToldTimelines, InspectError> {
        self.expect_tenant(tenant.as_ref())?;
        Ok(ToldTimelines {
            tenant,
            known: HashMap::new(),
            began: false,
        })
    }

    fn expect_tenant(&self, name: Option<&Name>) -> Result<(), InspectError> {
        let Some(name) = name else { return Ok(()) };
        match self.catalog().named(name) {
            Some(_) => Ok(()),
            None => Err(InspectError::UnknownTenant(name.clone())),
        }
    }
}

impl ToldTimelines {
    /// Tells what changes until nobody takes it, or the tenant is gone.
    pub async fn tell_on(
        mut self,
        mut views: watch::Receiver<ClusterView>,
        reader: mpsc::Sender<TimelineChanges>,
    ) {
        loop {
            let (pieces, is_last) = {
                // The newest: who reads slowly skips what was between.
                let view = views.borrow_and_update();
                (self.tell(&view), self.is_over(&view))
            };
            for piece in pieces {
                if reader.send_timeout(piece, STUCK).await.is_err() {
                    return;
                }
            }
            if is_last {
                return;
            }
            // Cancel-safe: a picture stays until it is read.
            tokio::select! {
                () = reader.closed() => return,
                changed = views.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// Whether the tenant that was asked for is gone.
    fn is_over(&self, view: &ClusterView) -> bool {
        let Some(name) = &self.tenant else {
            return false;
        };
        view.tenants
            .iter()
            .all(|tenant| tenant.name != name.as_str())
    }

    /// What has changed until this picture, in pieces; nothing if nothing has, but for the first time.
    fn tell(&mut self, view: &ClusterView) -> Vec<TimelineChanges> {
        let timelines = view.timelines.iter();
        let now: Vec<_> = timelines
            .filter(|view| is_of(view, self.tenant.as_ref()))
            .collect();
        let there: HashSet<_> = now.iter().map(|view| view.timeline).collect();
        let gone = self.known.keys().filter(|known| !there.contains(known));
        let gone: Vec<_> = gone.copied().collect();
        self.known.retain(|timeline, _| there.contains(timeline));
        let mut changed = Vec::new();
        for view in now {
            if self.known.get(&view.timeline) != Some(view) {
                self.known.insert(view.timeline, view.clone());
                changed.push(view.clone());
            }
        }
        if self.began && changed.is_empty() && gone.is_empty() {
            return Vec::new();
        }
        self.began = true;
        let pieces = changed
            .chunks(TIMELINES_AT_ONCE)
            .map(|piece| TimelineChanges {
                changed: piece.to_vec(),
                ..TimelineChanges::default()
            });
        let mut pieces: Vec<_> = pieces.collect();
        if pieces.is_empty() {
            pieces.push(TimelineChanges::default());
        }
        if let Some(last) = pieces.last_mut() {
            last.gone = gone;
            last.is_complete = true;
        }
        pieces
    }
}

fn is_of(view: &TimelineView, tenant: Option<&Name>) -> bool {
    tenant.is_none_or(|name| view.tenant_name == name.as_str())
}

fn tenant_info(tenant: &Tenant) -> TenantInfo {
    let of_source = |text: String| match tenant.has_source() {
        true => text,
        false => String::new(),
    };
    TenantInfo {
        tenant: tenant.id,
        name: tenant.name.to_string(),
        deleting: tenant.state != TenantState::Attached,
        source: of_source(tenant.source.redacted()),
        slot: of_source(tenant.slot.clone()),
        cluster: tenant.cluster,
        main: tenant.main(),
        timelines: u32::try_from(tenant.timelines().count()).unwrap_or(u32::MAX),
    }
}

fn compute_info(tenant: &Tenant, branch: &Branch, view: &ClusterView) -> Option<ComputeInfo> {
    let timeline = TimelineRef {
        tenant: tenant.id,
        timeline: branch.id,
    };
    // What goes on with the tenant's source since that was promoted is no compute's.
    let source = branch
        .source
        .as_ref()
        .filter(|_| tenant.main() != timeline)?;
    let state = view.timeline(timeline).map(|view| view.status.state);
    Some(ComputeInfo {
        timeline,
        tenant_name: tenant.name.to_string(),
        branch_name: branch.name.to_string(),
        source: source.conninfo.redacted(),
        slot: source.slot.clone(),
        cluster: source.cluster,
        pg_timeline: source.pg_timeline,
        begin: source.begin,
        state: state.unwrap_or(TimelineState::Unknown),
    })
}

fn stored(newest: &Versioned<TimelineManifest>) -> StoredTimeline {
    let Versioned { number, state } = newest;
    let bytes = state.layers().iter().map(|layer| layer.size.get()).sum();
    let pins = |is: fn(&PinKind) -> bool| {
        let pins = state.pins().iter().filter(|pin| is(&pin.kind));
        u32::try_from(pins.count()).unwrap_or(u32::MAX)
    };
    StoredTimeline {
        manifest: *number,
        lsn: state.lsn,
        oldest_readable: state.oldest_readable,
        gc_cutoff: state.gc_cutoff,
        layers: state.layers().len() as u64,
        layer_bytes: ByteCount::new(bytes),
        branches: pins(|kind| matches!(kind, PinKind::Branch { .. })),
        leases: pins(|kind| matches!(kind, PinKind::Lease)),
    }
}

impl InspectError {
    /// What the caller may do, and what is so, for programs.
    pub fn fault(&self) -> Fault {
        match self {
            Self::UnknownTenant(_) => Fault::new(ErrorKind::NotFound, Reason::UnknownTenant),
            Self::UnknownTimeline(_) => Fault::new(ErrorKind::NotFound, Reason::UnknownTimeline),
            Self::TooManyWatchers { .. } => Fault::new(ErrorKind::Throttled, Reason::LimitReached),
        }
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_api::{
        broker::{TenantView, TimelineStatus},
        tenant_settings::TenantSettings,
    };
    use palimpsest_types::{Lsn, SystemIdentifier, TenantId, TimelineId};

    use super::*;
    use crate::core::{branch::BranchSource, fixture::Site};

    fn view(tenant: u8, timeline: u16, lsn: u64) -> TimelineView {
        let mut id = [tenant; 16];
        id[..2].copy_from_slice(&timeline.to_be_bytes());
        TimelineView {
            timeline: TimelineRef {
                tenant: TenantId::from_bytes([tenant; 16]),
                timeline: TimelineId::from_bytes(id),
            },
            tenant_name: format!("tenant{tenant}"),
            timeline_name: format!("branch{timeline}"),
            status: TimelineStatus {
                last_record: Lsn::new(lsn),
                ..TimelineStatus::default()
            },
            writer: None,
            source: String::new(),
            slot: String::new(),
            branch: None,
            source_cluster: None,
        }
    }

    fn picture(timelines: Vec<TimelineView>) -> ClusterView {
        ClusterView {
            timelines,
            ..ClusterView::default()
        }
    }

    fn told(tenant: Option<&str>) -> ToldTimelines {
        ToldTimelines {
            tenant: tenant.map(|name| name.parse().unwrap()),
            known: HashMap::new(),
            began: false,
        }
    }

    #[tokio::test]
    async fn tenants_timelines_and_who_writes_them_are_told() {
        let site = Site::new().await;
        let branch = site.branch(site.main, "a", Some(165)).await.unwrap();
        let branch = branch.timeline;
        let tenants = site.broker.tenants();
        let [tenant] = tenants.as_slice() else {
            panic!("{tenants:?}");
        };
        assert_eq!((tenant.name.as_str(), tenant.timelines), ("shop", 2));
        assert_eq!(
            (tenant.main, tenant.slot.as_str()),
            (site.main, "palimpsest_shop")
        );
        assert_eq!(site.broker.computes(None).unwrap(), []);
        let source = BranchSource {
            conninfo: "host=h user=u password=secret".parse().unwrap(),
            slot: "palimpsest".to_owned(),
            cluster: SystemIdentifier::new(9),
            pg_timeline: 1,
            begin: Lsn::new(165),
        };
        let set = site.broker.set_branch_source(branch, source, None);
        set.await.unwrap();
        let shop = "shop".parse().unwrap();
        let computes = site.broker.computes(Some(&shop)).unwrap();
        let [compute] = computes.as_slice() else {
            panic!("{computes:?}");
        };
        assert_eq!(
            (compute.timeline, compute.branch_name.as_str()),
            (branch, "a")
        );
        assert_eq!(
            (compute.begin, compute.cluster),
            (Lsn::new(165), SystemIdentifier::new(9))
        );
        assert!(!compute.source.contains("secret"), "{}", compute.source);

        let details = site.broker.timeline(site.main).await.unwrap();
        assert_eq!(details.view.timeline_name, "main");
        let stored = details.stored.unwrap();
        let manifest = site.manifest(site.main).await.unwrap();
        assert_eq!(
            (stored.lsn, stored.oldest_readable),
            (manifest.lsn, manifest.oldest_readable)
        );
        assert_eq!((stored.layers, stored.layer_bytes), (2, ByteCount::kib(16)));
        assert_eq!((stored.branches, stored.leases), (1, 0));
        let details = site.broker.timeline(branch).await.unwrap();
        assert_eq!(
            details.stored.unwrap().layers,
            0,
            "what it shares is its parent's"
        );

        // It is then that one asks.
        site.damage(site.main).await;
        let details = site.broker.timeline(site.main).await.unwrap();
        assert_eq!(
            (details.view.timeline_name.as_str(), details.stored),
            ("main", None)
        );
        assert!(details.problem.unwrap().contains("manifest"));

        let nobody = "nobody".parse().unwrap();
        let error = site.broker.timelines(Some(&nobody)).unwrap_err();
        assert_eq!(error.fault().reason, Some(Reason::UnknownTenant));
        let nowhere = TimelineRef {
            timeline: TimelineId::from_bytes([77; 16]),
            ..site.main
        };
        let error = site.broker.timeline(nowhere).await.unwrap_err();
        assert_eq!(error.fault().reason, Some(Reason::UnknownTimeline));
    }

    #[tokio::test]
    async fn who_writes_a_branch_already_may_be_named_again_when_it_has_written_more() {
        let site = Site::new().await;
        let branch = site.branch(site.main, "a", Some(165)).await.unwrap();
        let branch = branch.timeline;
        let source = |cluster: u64| BranchSource {
            conninfo: "host=h user=u".parse().unwrap(),
            slot: "palimpsest".to_owned(),
            cluster: SystemIdentifier::new(cluster),
            pg_timeline: 1,
            begin: Lsn::new(165),
        };
        let set = async |cluster: u64, replaces: u64| {
            let replaces = Some(SystemIdentifier::new(replaces));
            let set = (site.broker).set_branch_source(branch, source(cluster), replaces);
            set.await.map_err(|error| error.fault().reason)
        };
        site.broker
            .set_branch_source(branch, source(7), None)
            .await
            .unwrap();
        assert_eq!(set(8, 7).await, Ok(()));
        site.tell_end(branch, Lsn::new(400)).await;
        assert_eq!(set(8, 7).await, Ok(()), "its answer was lost");
        assert_eq!(set(9, 8).await, Err(Some(Reason::WrongEnd)));
    }

    #[test]
    fn first_all_is_told_and_then_what_has_changed() {
        let mut told = told(None);
        let first = told.tell(&picture(vec![view(1, 1, 8), view(1, 2, 8)]));
        assert_eq!(first.len(), 1);
        assert!(first[0].is_complete && first[0].changed.len() == 2);
        let same = told.tell(&picture(vec![view(1, 1, 8), view(1, 2, 8)]));
        assert_eq!(same, []);
        let next = told.tell(&picture(vec![view(1, 2, 16), view(1, 3, 8)]));
        let expected = TimelineChanges {
            changed: vec![view(1, 2, 16), view(1, 3, 8)],
            gone: vec![view(1, 1, 8).timeline],
            is_complete: true,
        };
        assert_eq!(next, [expected]);
    }

    #[test]
    fn who_asks_of_one_tenant_hears_of_no_other() {
        let mut told = told(Some("tenant1"));
        let first = told.tell(&picture(vec![view(2, 1, 8)]));
        let nothing = TimelineChanges {
            is_complete: true,
            ..TimelineChanges::default()
        };
        assert_eq!(first, [nothing], "that there is nothing is told as well");
        assert_eq!(told.tell(&picture(vec![view(2, 1, 16)])), []);
        let own = told.tell(&picture(vec![view(2, 1, 16), view(1, 1, 8)]));
        assert_eq!(own[0].changed, [view(1, 1, 8)]);
    }

    #[test]
    fn many_are_told_in_pieces_of_which_the_last_says_so() {
        let all: Vec<_> = (0..1200).map(|number| view(1, number, 8)).collect();
        let mut told = told(None);
        let pieces = told.tell(&picture(all.clone()));
        let sizes: Vec<_> = pieces.iter().map(|piece| piece.changed.len()).collect();
        assert_eq!(sizes, [500, 500, 200]);
        let complete: Vec<_> = pieces.iter().map(|piece| piece.is_complete).collect();
        assert_eq!(complete, [false, false, true]);
        let gone = told.tell(&picture(Vec::new()));
        assert_eq!((gone.len(), gone[0].gone.len()), (1, 1200));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_cut_off_and_who_goes_is_let_go() {
        let (pictures, views) = watch::channel(picture(vec![view(1, 1, 8)]));
        let (sender, mut reader) = mpsc::channel(1);
        let telling = tokio::spawn(told(None).tell_on(views.clone(), sender));
        for lsn in 2..9 {
            pictures.send_replace(picture(vec![view(1, 1, lsn * 8)]));
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        assert!(telling.is_finished());
        let mut left = 0;
        while reader.recv().await.is_some() {
            left += 1;
        }
        assert_eq!(left, 1, "what it could have had");

        let (sender, mut reader) = mpsc::channel(1);
        let telling = tokio::spawn(told(None).tell_on(views, sender));
        assert!(reader.recv().await.is_some());
        drop(reader);
        timeout(STUCK, telling).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn with_its_tenant_a_watch_ends() {
        let of_tenant = ClusterView {
            tenants: vec![TenantView {
                tenant: TenantId::from_bytes([1; 16]),
                name: "tenant1".to_owned(),
                settings: TenantSettings::default(),
            }],
            ..picture(vec![view(1, 1, 8)])
        };
        let (pictures, views) = watch::channel(of_tenant);
        let (sender, mut reader) = mpsc::channel(1);
        let telling = tokio::spawn(told(Some("tenant1")).tell_on(views, sender));
        assert_eq!(reader.recv().await.unwrap().changed.len(), 1);
        pictures.send_replace(ClusterView::default());
        assert_eq!(reader.recv().await.unwrap().gone.len(), 1);
        assert_eq!(reader.recv().await, None);
        telling.await.unwrap();
    }
}
