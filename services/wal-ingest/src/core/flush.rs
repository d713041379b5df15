//! From changes in memory to layers in the object store, behind the stream's back.
//!
//! ```text
//! frozen piece ─▶ layer file here (fsync, rename, fsync) ─▶ object store ─▶ manifest
//!                 disk_consistent                                         remote_consistent
//! ```
//!
//! Both halves go on when the other waits: with the object store away, memory still empties into
//! local files, until the local disk allowance is used up and the timeline pauses. With the local
//! disk full before that, layers go to the object store from memory, which makes room for those
//! after them: WAL files are let go of only when layers have what is in them. Nothing here is
//! needed after a crash: the WAL files have everything above the manifest's LSN, and are let go of
//! only when it passes them.

use std::{convert::Infallible, sync::Arc};

use palimpsest_layer::{DeltaLayer as _, OpenLayer};
use palimpsest_manifest::{InvalidManifestError, LayerEntry, ManifestError, UpdateError};
use palimpsest_types::Lsn;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    back_off::BackOff,
    error::{IngestError, Remedy, Stop},
    local_layers::{LocalLayer, LocalLayers},
    timeline::{Opened, Timeline},
    warnings::Topic,
};

/// Layers that one manifest publishes, at most.
const TOGETHER: usize = 16;
/// Failures in a row before a person hears of it.
const PATIENCE: u32 = 3;
const WARNING: &str = "layers do not reach the object store";

/// Flushes until the timeline is superseded.
pub(super) async fn run(
    timeline: &Timeline,
    opened: &Opened,
    frozen: UnboundedReceiver<Arc<OpenLayer>>,
) -> Result<Infallible, IngestError> {
    // Bounded by the local disk allowance.
    let (written, pending) = unbounded_channel();
    let files = Arc::new(opened.local_layers.clone());
    tokio::try_join!(
        write_all(timeline, opened, &files, frozen, written),
        upload_all(timeline, opened, &files, pending),
    )
    .map(|(never, _)| never)
}

/// The first half: from memory to a local file.
async fn write_all(
    timeline: &Timeline,
    opened: &Opened,
    files: &Arc<LocalLayers>,
    mut frozen: UnboundedReceiver<Arc<OpenLayer>>,
    written: UnboundedSender<LocalLayer>,
) -> Result<Infallible, IngestError> {
    loop {
        let Some(piece) = frozen.recv().await else {
            return Err(Stop::Superseded.into());
        };
        let Some(layer) = write_or_upload(timeline, opened, files, &piece).await? else {
            continue;
        };
        let lsn = layer.span.up_to;
        tracing::debug!(timeline = %timeline.id(), layer = layer.name, size = %layer.size, "layer written here");
        timeline.shared.metrics.layers_written.inc();
        opened.growth.share().set_layers(files.add(layer.size));
        opened.growth.note_on_disk(lsn);
        opened.growth.relieve();
        timeline.update(|status| status.disk_consistent = lsn);
        // Without the other half the timeline is ending.
        let _ = written.send(layer);
    }
}

/// A local file of a piece; none if the disk was full, and the object store has it now.
async fn write_or_upload(
    timeline: &Timeline,
    opened: &Opened,
    files: &Arc<LocalLayers>,
    piece: &Arc<OpenLayer>,
) -> Result<Option<LocalLayer>, IngestError> {
    let mut back_off = BackOff::default();
    // Kept, so that a try whose answer was lost is repeated under the same name.
    let mut unwritten = None;
    loop {
        let error = match layer_of(timeline, files, piece, |files, piece| files.write(piece)).await
        {
            Ok(layer) => return Ok(Some(layer)),
            Err(error) => error,
        };
        timeline.shared.metrics.layer_failures.inc();
        tracing::warn!(timeline = %timeline.id(), error = error.in_words(), "can't write a layer here; trying again");
        // Not before those that wait in files for their upload.
        let in_turn = timeline.status().remote_consistent >= piece.lsns().start;
        if error.is_full_disk() && in_turn {
            let layer = match unwritten.take() {
                Some(layer) => layer,
                None => layer_of(timeline, files, piece, LocalLayers::keep).await?,
            };
            let layers = unwritten.insert(layer);
            match upload(timeline, opened, files, std::slice::from_ref(layers)).await {
                Ok(()) => {
                    settle(timeline, opened, files, std::slice::from_ref(layers)).await;
                    return Ok(None);
                }
                Err(error) if error.remedy() == Remedy::GiveUp => return Err(error),
                Err(error) => {
                    let reason = error.in_words();
                    tracing::warn!(timeline = %timeline.id(), reason, WARNING);
                }
            }
        }
        back_off.wait().await;
    }
}

/// A layer of a piece, made by `make` on a thread that may block.
async fn layer_of(
    timeline: &Timeline,
    files: &Arc<LocalLayers>,
    piece: &Arc<OpenLayer>,
    make: fn(&LocalLayers, &Arc<OpenLayer>) -> Result<LocalLayer, IngestError>,
) -> Result<LocalLayer, IngestError> {
    let (files, piece) = (Arc::clone(files), Arc::clone(piece));
    let directory = files.directory().to_owned();
    let made = timeline.spawn_blocking(move || make(&files, &piece));
    made.await.map_err(|error| IngestError::LayerFile {
        path: directory,
        source: std::io::Error::other(error),
    })?
}

/// The second half: from local files to the object store, and into the manifest.
async fn upload_all(
    timeline: &Timeline,
    opened: &Opened,
    files: &Arc<LocalLayers>,
    mut pending: UnboundedReceiver<LocalLayer>,
) -> Result<Infallible, IngestError> {
    let mut layers = Vec::with_capacity(TOGETHER);
    loop {
        if pending.recv_many(&mut layers, TOGETHER).await == 0 {
            return Err(Stop::Superseded.into());
        }
        let mut back_off = BackOff::default();
        let mut failures = 0;
        while let Err(error) = upload(timeline, opened, files, &layers).await {
            if error.remedy() == Remedy::GiveUp {
                return Err(error);
            }
            failures += 1;
            let reason = error.in_words();
            tracing::warn!(timeline = %timeline.id(), reason, failures, WARNING);
            if failures >= PATIENCE {
                warn(timeline, Some(&reason));
            }
            back_off.wait().await;
        }
        warn(timeline, None);
        settle(timeline, opened, files, &layers).await;
        layers.clear();
    }
}

/// Puts layers into the object store, then into the manifest. Repeating it does no harm: what is
/// there already is left, and what the manifest has is not added again.
async fn upload(
    timeline: &Timeline,
    opened: &Opened,
    files: &Arc<LocalLayers>,
    layers: &[LocalLayer],
) -> Result<(), IngestError> {
    let directory = timeline.store_path().child("layers");
    for layer in layers {
        // One file's bytes are in memory during an upload.
        let permit = timeline.shared.uploads.acquire().await;
        let bytes = files.read(layer).await?;
        timeline
            .shared
            .store
            .put_once(&directory.child(&layer.name), bytes)
            .await?;
        drop(permit);
    }
    let entries: Vec<LayerEntry> = layers.iter().map(LocalLayer::entry).collect();
    let Some(end) = layers.last().map(|layer| layer.span.up_to) else {
        return Ok(());
    };
    let mut manifest = opened.manifest.lock().await;
    let published = timeline
        .manifests()
        .update(opened.epoch, &mut manifest, |manifest| {
            if manifest.lsn >= end {
                return Ok(false);
            }
            manifest.add_layers(entries.clone())?;
            manifest.lsn = end;
            Ok::<_, InvalidManifestError>(true)
        })
        .await;
    match published {
        Ok(_) => Ok(()),
        Err(UpdateError::Manifest(ManifestError::Superseded { .. })) => {
            Err(Stop::Superseded.into())
        }
        Err(UpdateError::Manifest(error)) => Err(error.into()),
        Err(UpdateError::Edit(refused)) => Err(ManifestError::Refused(refused).into()),
    }
}

/// What is in the object store need not be here.
async fn settle(
    timeline: &Timeline,
    opened: &Opened,
    files: &Arc<LocalLayers>,
    layers: &[LocalLayer],
) {
    let Some(lsn) = layers.last().map(|layer| layer.span.up_to) else {
        return;
    };
    let uploaded = layers.len() as u64;
    timeline.shared.metrics.layers_uploaded.inc_by(uploaded);
    timeline.update(|status| {
        status.remote_consistent = lsn;
        status.disk_consistent = status.disk_consistent.max(lsn);
    });
    // Before the WAL goes: who still decodes it learns by that where to begin anew.
    opened.beginning.advance(layers);
    opened.growth.let_go(lsn);
    for layer in layers {
        let (held, removed) = files.remove(layer).await;
        if let Err(error) = removed {
            tracing::warn!(timeline = %timeline.id(), error = error.in_words(), "a layer file stays behind until the next start");
        }
        opened.growth.share().set_layers(held);
    }
    trim_wal(timeline, opened, lsn).await;
    tracing::info!(timeline = %timeline.id(), at = %lsn, layers = layers.len(), "layers are in the object store");
    learn_beginning(timeline, opened).await;
}

/// Asks the layers what the newest of them did not tell, while the store is there: laggards come
/// when it is away. If it fails, the next layer or a laggard asks again.
async fn learn_beginning(timeline: &Timeline, opened: &Opened) {
    if opened.beginning.is_known() {
        return;
    }
    // Boxed: it is large and rare, and the flush has a part in all that runs.
    let learning = Box::pin(timeline.learn_beginning(&opened.beginning));
    if let Err(error) = learning.await {
        tracing::warn!(timeline = %timeline.id(), error = error.in_words(), "can't learn yet how long relations are where laggards begin");
    }
}

/// Removes WAL files that the object store makes superfluous.
async fn trim_wal(timeline: &Timeline, opened: &Opened, lsn: Lsn) {
    let trimmed = opened.wal.clone();
    let trimmed = timeline
        .spawn_blocking(move || trimmed.remove_below(lsn))
        .await;
    match trimmed {
        Ok(Ok(left)) => opened.growth.share().set_wal(left),
        Ok(Err(error)) => {
            tracing::warn!(timeline = %timeline.id(), error = error.in_words(), "can't remove old WAL files; trying again after the next layer");
        }
        Err(error) => {
            tracing::warn!(timeline = %timeline.id(), %error, "removing old WAL files was cut off")
        }
    }
}

/// Says in the timeline's status that the object store is in trouble, or not any more.
fn warn(timeline: &Timeline, reason: Option<&str>) {
    let text = reason.map(|reason| format!("{WARNING}: {reason}"));
    timeline.warn(Topic::Store, text.into_iter().collect());
}
