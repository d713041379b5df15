//! Holding a timeline while its layers are made anew, and publishing them.

use std::time::{Duration, SystemTime};

use palimpsest_api::TimelineRef;
use palimpsest_manifest::{
    CompactorClaim, CompactorEpoch, InvalidManifestError, LayerEntry, ManifestError,
    TimelineManifest, TimelineManifests, Versioned,
};
use tokio::time::sleep;

use super::{error::CompactError, known::Known};

/// Who claims timelines, and for how long at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claimant {
    /// Differs at every start.
    pub(super) id: u128,
    /// Others may have the timeline then, unless the claim is renewed.
    pub(super) holds_for: Duration,
}

/// A timeline that was claimed. Nobody else publishes for it until another claims it.
#[derive(Debug)]
pub(super) struct Claim {
    timeline: TimelineRef,
    manifests: TimelineManifests,
    by: Claimant,
    epoch: CompactorEpoch,
}

impl Claimant {
    fn word_from(&self, now: SystemTime) -> CompactorClaim {
        CompactorClaim::new(self.id, now, self.holds_for)
    }

    /// Claims a timeline; `newest` is the manifest that says so then.
    ///
    /// # Errors
    /// If another has it.
    pub(super) async fn claim(
        self,
        timeline: TimelineRef,
        manifests: TimelineManifests,
        newest: &mut Versioned<TimelineManifest>,
    ) -> Result<Claim, CompactError> {
        let before = newest.state.compactor_epoch;
        let now = SystemTime::now();
        let word = self.word_from(now);
        let edit = |manifest: &mut TimelineManifest| manifest.claim(word, now).map(|_| true);
        manifests.update(before, newest, edit).await?;
        Ok(Claim {
            timeline,
            manifests,
            by: self,
            epoch: newest.state.compactor_epoch,
        })
    }
}

impl Claim {
    /// The generation of what is published by it.
    pub(super) fn epoch(&self) -> CompactorEpoch {
        self.epoch
    }

    /// Keeps it for as long as the work takes. Ends only if the timeline was taken away or deleted.
    pub(super) async fn keep(
        &self,
        known: &Known,
        mut newest: Versioned<TimelineManifest>,
    ) -> CompactError {
        loop {
            sleep(self.by.holds_for / 3).await;
            let Err(error) = self.renew(known, &mut newest).await else {
                continue;
            };
            if error.is_of_another() {
                return error;
            }
            // The claim only saves work; what is published is held to the epoch.
            let timeline = self.timeline;
            let error = &error as &dyn std::error::Error;
            tracing::warn!(%timeline, error, "can't renew the claim of a timeline");
        }
    }

    async fn renew(
        &self,
        known: &Known,
        newest: &mut Versioned<TimelineManifest>,
    ) -> Result<(), CompactError> {
        known.check(self.timeline)?;
        let word = self.by.word_from(SystemTime::now());
        let edit = |manifest: &mut TimelineManifest| {
            manifest.compactor_claim = Some(word);
            Ok::<_, InvalidManifestError>(true)
        };
        self.manifests.update(self.epoch, newest, edit).await?;
        Ok(())
    }

    /// The newest manifest.
    ///
    /// # Errors
    /// If it can't be read, or the timeline was deleted.
    pub(super) async fn newest(&self) -> Result<Versioned<TimelineManifest>, CompactError> {
        let newest = self.manifests.newest().await?;
        Ok(newest.ok_or(ManifestError::Gone)?)
    }

    /// Adds an image, and goes on.
    ///
    /// # Errors
    /// If the manifest does not take it, or another has the timeline.
    pub(super) async fn add(
        &self,
        newest: &mut Versioned<TimelineManifest>,
        image: &LayerEntry,
    ) -> Result<(), CompactError> {
        let edit = |manifest: &mut TimelineManifest| {
            if manifest.layers().iter().any(|it| it.name == image.name) {
                return Ok(false);
            }
            manifest.add_layers(vec![image.clone()])?;
            Ok::<_, InvalidManifestError>(true)
        };
        self.manifests.update(self.epoch, newest, edit).await?;
        Ok(())
    }

    /// Lets go of the timeline, so that others need not wait until the claim ends by time.
    pub(super) async fn let_go(&self, newest: &mut Versioned<TimelineManifest>) {
        let edit = |manifest: &mut TimelineManifest| {
            Ok::<_, InvalidManifestError>(manifest.compactor_claim.take().is_some())
        };
        if let Err(error) = self.manifests.update(self.epoch, newest, edit).await {
            let timeline = self.timeline;
            tracing::debug!(%timeline, %error, "the claim of a timeline is left to end by time");
        }
    }

    /// Puts layers in the place of others, and lets go of the timeline.
    ///
    /// # Errors
    /// If the manifest does not take them, or another has the timeline.
    pub(super) async fn publish(
        &self,
        newest: &mut Versioned<TimelineManifest>,
        inputs: &[LayerEntry],
        layers: &[LayerEntry],
    ) -> Result<(), CompactError> {
        let replaced: Vec<_> = inputs.iter().map(|layer| &layer.name).collect();
        let edit = |manifest: &mut TimelineManifest| {
            let is_there =
                |layer: &LayerEntry| layers.first().is_some_and(|it| it.name == layer.name);
            if manifest.layers().iter().any(is_there) {
                return Ok(false);
            }
            manifest.replace_layers(&replaced, layers.to_vec())?;
            manifest.compactor_claim = None;
            Ok::<_, InvalidManifestError>(true)
        };
        self.manifests.update(self.epoch, newest, edit).await?;
        Ok(())
    }
}
