//! Changing a manifest while others do, too.

use std::convert::Infallible;

use palimpsest_types::{Lsn, WriterEpoch};

use super::{TimelineManifests, back_off};
use crate::{
    error::{ManifestError, UpdateError},
    publisher::Publisher,
    sequence::{SequenceError, Versioned},
    timeline::{SourceCluster, TimelineManifest},
    validate::InvalidManifestError,
};

/// How often a change is made anew because another publisher's came first.
const ATTEMPTS: usize = 16;

impl TimelineManifests {
    /// Changes the newest manifest on behalf of `publisher`, unless that is superseded.
    ///
    /// `cached` is what the caller knows as the newest; on return it is what is newest. `edit`
    /// changes a manifest and says whether that was still needed. It is called anew on the newest
    /// manifest when another publisher was first. It must look whether its change is there already,
    /// which it is after an answer of the store was lost.
    ///
    /// Gives whether anything was published. Dropping the future leaves that open.
    ///
    /// # Errors
    /// [`ManifestError::Superseded`] if the newest manifest is of another generation; then nothing
    /// is published any more. An attempt before, whose answer was lost, may have been, so that files which
    /// the change names must stay. [`ManifestError::Gone`] if the timeline was deleted; nothing is put in its place.
    /// An error of `edit` ends it as well.
    pub async fn update<E: std::error::Error + 'static>(
        &self,
        publisher: impl Into<Publisher>,
        cached: &mut Versioned<TimelineManifest>,
        edit: impl Fn(&mut TimelineManifest) -> Result<bool, E>,
    ) -> Result<bool, UpdateError<E>> {
        let publisher = publisher.into();
        for attempt in 1..=ATTEMPTS {
            publisher.check(&cached.state)?;
            let mut changed = cached.state.clone();
            if !edit(&mut changed).map_err(UpdateError::Edit)? {
                return Ok(false);
            }
            match self.publish(cached.number, changed).await {
                Ok(published) => {
                    *cached = published;
                    return Ok(true);
                }
                Err(error) if stale(&error) => {}
                Err(error) => return Err(error.into()),
            }
            back_off(attempt).await;
            // What is made after a deletion would be all there is.
            *cached = self.newest().await?.ok_or(ManifestError::Gone)?;
        }
        Err(ManifestError::Contended.into())
    }

    /// Makes the caller the timeline's writer, with a generation of its own that begins at the
    /// manifest's LSN. Whoever was the writer can't publish any more.
    ///
    /// # Errors
    /// [`ManifestError::Superseded`] if another took over at the same time.
    pub async fn take_over(
        &self,
        newest: Versioned<TimelineManifest>,
    ) -> Result<Versioned<TimelineManifest>, ManifestError> {
        self.take_over_with(newest, |manifest| manifest.source)
            .await
    }

    /// The same; and what follows `begin`, where the timeline ends, is WAL of this cluster.
    ///
    /// # Errors
    /// As [`TimelineManifests::take_over`]. [`ManifestError::Contended`] if it does not end there any more.
    pub async fn take_over_from(
        &self,
        newest: Versioned<TimelineManifest>,
        (source, begin): (SourceCluster, Lsn),
    ) -> Result<Versioned<TimelineManifest>, ManifestError> {
        // A manifest of the same epoch that came meanwhile may end elsewhere.
        let at_its_end = |manifest: &TimelineManifest| match manifest.lsn == begin {
            true => source,
            false => manifest.source,
        };
        let taken = self.take_over_with(newest, at_its_end).await?;
        match taken.state.source == source {
            true => Ok(taken),
            false => Err(ManifestError::Contended),
        }
    }

    async fn take_over_with(
        &self,
        mut newest: Versioned<TimelineManifest>,
        source: impl Fn(&TimelineManifest) -> SourceCluster,
    ) -> Result<Versioned<TimelineManifest>, ManifestError> {
        let epoch = newest.state.writer_epoch;
        let next = epoch.next().ok_or_else(no_more_epochs)?;
        let edit = |manifest: &mut TimelineManifest| {
            manifest.go_on_with(source(manifest));
            raise(manifest, next)
        };
        // Of those who try to follow one epoch, one succeeds: the others find it gone.
        match self.update(epoch, &mut newest, edit).await {
            Ok(_) => Ok(newest),
            Err(UpdateError::Manifest(error)) => Err(error),
            Err(UpdateError::Edit(never)) => match never {},
        }
    }
}

fn raise(manifest: &mut TimelineManifest, epoch: WriterEpoch) -> Result<bool, Infallible> {
    manifest.writer_epoch = epoch;
    manifest.epoch_start = manifest.lsn;
    Ok(true)
}

/// Whether the failure may only mean that our manifest is not the newest. A list is deleted only
/// when manifests much newer than those that refer to it are published.
fn stale(error: &ManifestError) -> bool {
    matches!(
        error,
        ManifestError::Sequence(SequenceError::Lost { .. }) | ManifestError::MissingList { .. }
    )
}

fn no_more_epochs() -> ManifestError {
    ManifestError::Refused(InvalidManifestError::NoMoreEpochs)
}
