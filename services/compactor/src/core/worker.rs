//! Looking for what is to be compacted, and doing it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use palimpsest_api::{TimelineRef, broker::ClusterView, redo::RedoPool};
use palimpsest_manifest::{LayerEntry, TimelineManifest, TimelineManifests, Versioned};
use palimpsest_runtime::TaskScope;
use palimpsest_store::ObjectStore;
use palimpsest_types::{ByteCount, Lsn};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    activity::{Activity, Done},
    asked::Asked,
    checks::Checks,
    claim::{Claim, Claimant},
    error::CompactError,
    imaging::{Imaging, Interruption},
    known::Known,
    lock::lock,
    looks::{Again, Looks},
    making::Workshop,
    metrics::CompactionMetrics,
    plan::{Plan, Policy},
    readers::{Engines, Readers},
    setbacks::Setbacks,
    wear::{Worn, compacted_up_to, worn},
};

/// Compacts the timelines of a cluster, one after the other.
#[derive(Debug)]
pub struct Compactor<R = RedoPool> {
    shop: Workshop,
    readers: Readers<R>,
    policy: Policy,
    claimant: Claimant,
    metrics: CompactionMetrics,
    /// Held by the one compaction that goes on: memory is for one.
    turn: tokio::sync::Mutex<()>,
    /// Those who wait for it because somebody asked them.
    asked: Asked,
    /// They remember what they have read of manifests.
    manifests: Mutex<HashMap<TimelineRef, TimelineManifests>>,
    /// Layers as they were written from WAL.
    backlogs: Mutex<HashMap<TimelineRef, i64>>,
    /// With compacted layers up to here no more images were worth it.
    settled: Mutex<HashMap<TimelineRef, Lsn>>,
    /// What was gone by when timelines were looked at.
    policies: Mutex<HashMap<TimelineRef, Policy>>,
    checks: Checks,
    setbacks: Setbacks,
}

/// What is worth doing about a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Putting layers together.
    Merge(Plan),
    /// Making images of keys, unless they have changed in fewer layers than the manifest can tell.
    Images(Vec<Worn>),
}

/// How long the timelines are left alone when there was nothing to do.
const LOOK: Duration = Duration::from_secs(2);
/// Who asks for a compaction hears so soon that another goes on. Images stop for them.
const PATIENCE: Duration = Duration::from_secs(60);

impl Compactor {
    /// A compactor of the cluster's timelines, with the cluster's redo-workers. What it starts is in
    /// `scope`.
    pub fn new(
        store: ObjectStore,
        cluster: watch::Receiver<ClusterView>,
        policy: Policy,
        scope: TaskScope,
    ) -> Self {
        let redo = RedoPool::new(cluster.clone(), scope.clone()).in_background();
        Self::with_engines(store, cluster, redo, policy, scope)
    }

    /// The redo-workers that it makes images with.
    pub fn redo(&self) -> &RedoPool {
        self.readers.engines()
    }
}

impl<R: Engines> Compactor<R> {
    /// The same, with engines of any kind.
    pub fn with_engines(
        store: ObjectStore,
        cluster: watch::Receiver<ClusterView>,
        engines: R,
        policy: Policy,
        scope: TaskScope,
    ) -> Self {
        Self {
            shop: Workshop::new(store, Known::new(cluster), scope),
            readers: Readers::new(engines),
            policy,
            claimant: Claimant {
                id: rand::random(),
                holds_for: policy.claim,
            },
            metrics: CompactionMetrics::default(),
            turn: tokio::sync::Mutex::default(),
            asked: Asked::default(),
            manifests: Mutex::default(),
            backlogs: Mutex::default(),
            settled: Mutex::default(),
            policies: Mutex::default(),
            checks: Checks::default(),
            setbacks: Setbacks::default(),
        }
    }

    /// What is counted here.
    pub fn metrics(&self) -> &CompactionMetrics {
        &self.metrics
    }

    /// What it does and has done.
    pub fn activity(&self) -> &Activity {
        self.shop.activity()
    }

    /// The newest manifest of a timeline.
    ///
    /// # Errors
    /// If there is none, or it can't be read.
    pub async fn manifest(&self, timeline: TimelineRef) -> Result<TimelineManifest, CompactError> {
        let newest = self.manifests(timeline).newest().await?;
        let newest = newest.ok_or(CompactError::NoTimeline(timeline))?;
        Ok(newest.state)
    }

    /// What it would do next about a timeline with this manifest.
    pub fn next(
        &self,
        timeline: TimelineRef,
        manifest: &TimelineManifest,
        policy: &Policy,
    ) -> Option<Next> {
        let merge = self.plan(timeline, manifest, policy).map(Next::Merge);
        let images = || Some(self.worn(timeline, manifest, policy)).filter(|worn| !worn.is_empty());
        merge.or_else(|| images().map(Next::Images))
    }

    /// Which layers it would put together next.
    fn plan(
        &self,
        timeline: TimelineRef,
        manifest: &TimelineManifest,
        policy: &Policy,
    ) -> Option<Plan> {
        let layers = manifest.layers();
        self.setbacks
            .choose(timeline, layers, policy, Instant::now())
    }

    /// What it goes by with a timeline.
    pub fn policy(&self, timeline: TimelineRef) -> Policy {
        let set = self.shop.known().settings(timeline.tenant);
        self.policy.of_tenant(&set)
    }

    /// The same, but that so many layers are worth it, if that is asked for.
    pub fn policy_with(&self, timeline: TimelineRef, threshold: Option<usize>) -> Policy {
        let policy = self.policy(timeline);
        Policy {
            threshold: threshold.unwrap_or(policy.threshold),
            ..policy
        }
    }

    /// What it goes by with a timeline. If that is news, what was found out by another policy is forgotten.
    fn policy_for(&self, timeline: TimelineRef, looks: [&mut Looks; 2]) -> Policy {
        let policy = self.policy(timeline);
        let before = lock(&self.policies).insert(timeline, policy);
        if before.is_some_and(|before| before != policy) {
            tracing::info!(%timeline, threshold = policy.threshold, images = policy.images, "settings have changed");
            for looks in looks {
                looks.forget(timeline);
            }
            lock(&self.settled).remove(&timeline);
        }
        policy
    }

    /// Goes on until the scope's token is cancelled; what is half done then is left.
    pub async fn run(&self) {
        let token = self.shop.scope().token().clone();
        let (mut looks, mut looks_for_images) = (Looks::default(), Looks::default());
        while !token.is_cancelled() {
            let known = self.shop.known().timelines();
            self.forget_but(&known);
            looks.retain(&known);
            looks_for_images.retain(&known);
            let mut did = false;
            for (timeline, lsn) in known {
                let policy = self.policy_for(timeline, [&mut looks, &mut looks_for_images]);
                if self.setbacks.have_ended(timeline, Instant::now()) {
                    looks.forget(timeline);
                }
                if looks.is_due(timeline, lsn, Instant::now()) {
                    let compact = self.in_turn(Box::pin(self.compact(timeline, &policy)));
                    // Cancel-safe: files that nobody refers to may be left, as by a crash.
                    let Some(outcome) = token.run_until_cancelled(compact).await else {
                        return;
                    };
                    let outcome = outcome.map(|done| match done {
                        Some(_) => Again::Now,
                        None => Again::WhenChanged,
                    });
                    did |= self.noted(timeline, lsn, &outcome, &mut looks);
                    match outcome {
                        Ok(Again::WhenChanged) => {}
                        Ok(_) => {
                            looks_for_images.forget(timeline);
                            continue;
                        }
                        Err(_) => continue,
                    }
                }
                // Apart, so that an image that can't be made holds up no layers.
                if looks_for_images.is_due(timeline, lsn, Instant::now()) {
                    let image = self.in_turn(Box::pin(self.image(timeline, &policy)));
                    // Cancel-safe, likewise.
                    let Some(outcome) = token.run_until_cancelled(image).await else {
                        return;
                    };
                    let outcome = outcome.map(|(_, again)| again);
                    if matches!(outcome, Ok(Again::Later)) {
                        // Mostly for layers that are to be put together.
                        looks.forget(timeline);
                    }
                    did |= self.noted(timeline, lsn, &outcome, &mut looks_for_images);
                }
            }
            if !did {
                // Cancel-safe: nothing is consumed.
                token.run_until_cancelled(sleep(LOOK)).await;
            }
        }
    }

    async fn in_turn<T>(&self, work: impl Future<Output = T>) -> T {
        let _turn = self.turn.lock().await;
        work.await
    }

    /// Notes what a look at a timeline came to, and tells whether to go on at once.
    fn noted(
        &self,
        timeline: TimelineRef,
        lsn: Lsn,
        outcome: &Result<Again, CompactError>,
        looks: &mut Looks,
    ) -> bool {
        if let Err(error) = outcome {
            self.complain(timeline, error);
        }
        looks.note(timeline, lsn, outcome, Instant::now());
        matches!(outcome, Ok(Again::Now))
    }

    /// Compacts because somebody asks for it, whether they wait for it or not.
    ///
    /// # Errors
    /// If it came to nothing, in which case the timeline is as it was, the storage-broker knows no such
    /// timeline, or something else is compacted now.
    pub async fn compact_now(
        self: Arc<Self>,
        timeline: TimelineRef,
        policy: Policy,
    ) -> Result<Option<Done>, CompactError> {
        let (answer, answered) = oneshot::channel();
        let token = self.shop.scope().token().clone();
        self.shop
            .scope()
            .clone()
            .spawn("asked compaction", async move {
                let compact = async {
                    let turn = {
                        let _asks = self.asked.enter();
                        timeout(PATIENCE, self.turn.lock()).await
                    };
                    let _turn = turn.map_err(|_| CompactError::Busy)?;
                    // Whoever asks may have mended something.
                    self.setbacks.forget(timeline);
                    match Box::pin(self.compact(timeline, &policy)).await {
                        Ok(None) => {
                            let imaged = Box::pin(self.image(timeline, &policy)).await;
                            imaged.map(|(done, _)| done)
                        }
                        outcome => outcome,
                    }
                };
                // Cancel-safe, as in [`Compactor::run`].
                if let Some(outcome) = token.run_until_cancelled(compact).await {
                    if let Err(error) = &outcome {
                        self.complain(timeline, error);
                    }
                    // Whoever asked may have gone away.
                    let _ = answer.send(outcome);
                }
            });
        answered.await.unwrap_or(Err(CompactError::Stopped))
    }

    fn complain(&self, timeline: TimelineRef, error: &CompactError) {
        if error.is_of_another() || matches!(error, CompactError::Busy) {
            tracing::debug!(%timeline, %error, "left alone");
            return;
        }
        self.metrics.failures.inc();
        let error = error as &dyn std::error::Error;
        tracing::warn!(%timeline, error, "compaction came to nothing; nothing is lost, trying again");
    }

    fn forget_but(&self, known: &[(TimelineRef, Lsn)]) {
        let known: HashSet<_> = known.iter().map(|(timeline, _)| *timeline).collect();
        lock(&self.manifests).retain(|timeline, _| known.contains(timeline));
        lock(&self.backlogs).retain(|timeline, _| known.contains(timeline));
        lock(&self.settled).retain(|timeline, _| known.contains(timeline));
        lock(&self.policies).retain(|timeline, _| known.contains(timeline));
        self.checks.retain(&known);
        self.setbacks.retain(&known);
        self.note_backlog(None);
    }

    fn note_backlog(&self, of: Option<(TimelineRef, i64)>) {
        let mut backlogs = lock(&self.backlogs);
        backlogs.extend(of);
        let most = backlogs.values().copied().max();
        self.metrics.backlog.set(most.unwrap_or(0));
    }

    /// Compacts a timeline once, if anything is worth it and nobody else does.
    ///
    /// # Errors
    /// If it came to nothing; the timeline is as it was.
    async fn compact(
        &self,
        timeline: TimelineRef,
        policy: &Policy,
    ) -> Result<Option<Done>, CompactError> {
        self.shop.known().check(timeline)?;
        let manifests = self.manifests(timeline);
        let Some(mut newest) = manifests.newest().await? else {
            return Ok(None);
        };
        self.note_backlog(Some((timeline, fresh(&newest.state))));
        if self.plan(timeline, &newest.state, policy).is_none() {
            return Ok(None);
        }
        let claim = self.claimant.claim(timeline, manifests, &mut newest);
        let claim = claim.await?;
        // Made anew from the manifest that has the claim: nobody else replaces layers of that.
        let Some(plan) = self.plan(timeline, &newest.state, policy) else {
            claim.let_go(&mut newest).await;
            return Ok(None);
        };
        let doing = self.activity().begin(timeline, total(&plan.inputs));
        let made = self.carry_out(timeline, &claim, newest.clone(), &plan);
        let layers = match made.await {
            Ok(layers) => layers,
            Err(error) => {
                if error.is_of_the_layers() {
                    self.setbacks.note(timeline, &plan, Instant::now());
                }
                if !error.is_of_another() {
                    claim.let_go(&mut newest).await;
                }
                return Err(error);
            }
        };
        let done = doing.end(total(&layers));
        self.metrics.note(&done);
        tracing::info!(%timeline, layers = done.read.0, bytes = %done.read.1, by = done.written.0, of = %done.written.1, took = ?done.took, "compacted");
        Ok(Some(done))
    }

    /// Makes the layers of a plan while the claim is kept, and publishes them.
    async fn carry_out(
        &self,
        timeline: TimelineRef,
        claim: &Claim,
        mut newest: Versioned<TimelineManifest>,
        plan: &Plan,
    ) -> Result<Vec<LayerEntry>, CompactError> {
        let known = self.shop.known();
        let job = self.shop.begin(timeline, claim.epoch(), self.policy.target);
        // Cancel-safe: what was uploaded is known.
        let made = tokio::select! {
            made = job.make(plan) => made,
            error = claim.keep(known, newest.clone()) => Err(error),
        };
        // What was put there while all was being deleted would stay.
        let layers = match made.and_then(|layers| known.check(timeline).map(|()| layers)) {
            Ok(layers) => layers,
            Err(error) => {
                job.undo().await;
                // What goes while it is read looks damaged.
                known.check(timeline)?;
                return Err(error);
            }
        };
        let published = claim.publish(&mut newest, &plan.inputs, &layers).await;
        if let Err(error) = published {
            if error.leaves_nothing_published() {
                job.undo().await;
            }
            return Err(error);
        }
        Ok(layers)
    }

    /// Makes images of a timeline's keys that are worn, if any are and nobody else compacts it; tells also
    /// when to look again.
    ///
    /// # Errors
    /// If one could not be made. Others may be published.
    async fn image(
        &self,
        timeline: TimelineRef,
        policy: &Policy,
    ) -> Result<(Option<Done>, Again), CompactError> {
        self.shop.known().check(timeline)?;
        let manifests = self.manifests(timeline);
        let Some(mut newest) = manifests.newest().await? else {
            return Ok((None, Again::WhenChanged));
        };
        if self.worn(timeline, &newest.state, policy).is_empty() {
            return Ok((None, Again::WhenChanged));
        }
        if self.plan(timeline, &newest.state, policy).is_some() {
            return Ok((None, Again::Later));
        }
        let claim = self.claimant.claim(timeline, manifests, &mut newest);
        let claim = claim.await?;
        let worn = self.worn(timeline, &newest.state, policy);
        let up_to = compacted_up_to(newest.state.layers());
        let doing = self.activity().begin(timeline, (0, ByteCount::ZERO));
        let job = self.shop.begin(timeline, claim.epoch(), policy.target);
        let imaging = Imaging {
            shop: &self.shop,
            readers: &self.readers,
            checks: &self.checks,
            setbacks: &self.setbacks,
            asked: &self.asked,
            timeline,
            claim: &claim,
            job: &job,
            policy,
        };
        let images = imaging.make(newest.clone(), &worn).await;
        self.metrics.note_images(&images);
        let (count, size) = (images.count, images.size);
        let done = (count > 0).then(|| doing.end((count, size)));
        if let Some(done) = &done {
            tracing::info!(%timeline, images = count, %size, took = ?done.took, "images made");
        }
        claim.let_go(&mut newest).await;
        let again = match (images.failed, images.interrupted) {
            (Some(error), _) if count == 0 => return Err(error),
            (Some(error), interrupted) => {
                self.complain(timeline, &error);
                match interrupted {
                    Some(Interruption::Turn) => Again::Now,
                    _ => Again::Later,
                }
            }
            (None, Some(Interruption::Turn)) => Again::Now,
            (None, Some(Interruption::Pressing)) => Again::Later,
            (None, None) => {
                // Parts that have changed in few layers stay as they are until there are more.
                lock(&self.settled).insert(timeline, up_to);
                Again::WhenChanged
            }
        };
        Ok((done, again))
    }

    /// Keys that may need images.
    fn worn(
        &self,
        timeline: TimelineRef,
        manifest: &TimelineManifest,
        policy: &Policy,
    ) -> Vec<Worn> {
        let up_to = compacted_up_to(manifest.layers());
        let is_settled = lock(&self.settled).get(&timeline) == Some(&up_to);
        // Until the end of a base backup pages are torn.
        if is_settled || manifest.lsn < manifest.consistent_from() {
            return Vec::new();
        }
        worn(manifest.layers(), policy.images)
    }

    fn manifests(&self, timeline: TimelineRef) -> TimelineManifests {
        let TimelineRef {
            tenant,
            timeline: id,
        } = timeline;
        let mut known = lock(&self.manifests);
        let manifests = known.entry(timeline);
        let make = || TimelineManifests::new(self.shop.store().clone(), tenant, id);
        manifests.or_insert_with(make).clone()
    }
}

fn total(layers: &[LayerEntry]) -> (usize, ByteCount) {
    let bytes = layers.iter().map(|layer| layer.size.get()).sum();
    (layers.len(), ByteCount::new(bytes))
}

/// How many layers are as they were written from WAL.
fn fresh(manifest: &TimelineManifest) -> i64 {
    let layers = manifest.layers().iter();
    let fresh = layers.filter(|layer| layer.is_written());
    i64::try_from(fresh.count()).unwrap_or(i64::MAX)
}

/// What goes on by itself, once and without its turn.
#[cfg(test)]
impl<R: Engines> Compactor<R> {
    pub(super) async fn compact_once(
        &self,
        timeline: TimelineRef,
    ) -> Result<Option<Done>, CompactError> {
        self.compact(timeline, &self.policy).await
    }

    pub(super) async fn image_once(&self, timeline: TimelineRef) -> Result<Again, CompactError> {
        let imaged = self.image(timeline, &self.policy).await;
        imaged.map(|(_, again)| again)
    }

    pub(super) fn asked(&self) -> &Asked {
        &self.asked
    }
}

#[cfg(test)]
mod tests;
