//! Layer files on the local disk, on their way to the object store.

use std::{
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use palimpsest_disk::Disk;
use palimpsest_layer::{
    DeltaLayer as _, OpenLayer,
    delta_file::{DeltaLayerSummary, write_delta_layer},
};
use palimpsest_manifest::{KeySpan, LayerEntry, LayerKind, LsnSpan};
use palimpsest_types::{ByteCount, Fork, Key, RelTag, WriterEpoch};

use super::error::IngestError;

/// The directory of one timeline's layer files. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct LocalLayers {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    held: Arc<AtomicU64>,
}

/// A layer file that is whole and fsynced.
#[derive(Debug, Clone)]
pub(super) struct LocalLayer {
    pub(super) name: String,
    pub(super) span: LsnSpan,
    pub(super) size: ByteCount,
    epoch: WriterEpoch,
    summary: DeltaLayerSummary,
}

const BUFFER: usize = 256 << 10;
/// What a layer without changes is entered with: WAL that changes nothing moves on, too.
const NO_KEYS: KeySpan = {
    let first = Key::RelSize(RelTag {
        spc: 0,
        db: 0,
        rel: 0,
        fork: Fork::Main,
    });
    KeySpan { first, last: first }
};

impl LocalLayers {
    /// An empty directory: what an earlier start left is in the WAL, too.
    pub(super) fn prepare(disk: Arc<dyn Disk>, directory: PathBuf) -> Result<Self, IngestError> {
        let failed = |source| IngestError::LayerFile {
            path: directory.clone(),
            source,
        };
        disk.remove_dir_all(&directory).map_err(failed)?;
        disk.create_dir_all(&directory).map_err(failed)?;
        Ok(Self {
            disk,
            directory,
            held: Arc::default(),
        })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a layer so that it is whole after a crash or not there. Blocking.
    pub(super) fn write(&self, piece: &OpenLayer) -> Result<LocalLayer, IngestError> {
        let (epoch, lsns) = (piece.epoch(), piece.lsns());
        let span = LsnSpan {
            after: lsns.start,
            up_to: lsns.end,
        };
        let name = layer_name(epoch, span);
        let path = self.directory.join(&name);
        let partial = path.with_extension("partial");
        let write = || -> io::Result<DeltaLayerSummary> {
            let mut file = BufWriter::with_capacity(BUFFER, self.disk.create(&partial)?);
            let summary = write_delta_layer(piece, &mut file)?;
            file.flush()?;
            file.get_mut().sync()?;
            self.disk.rename(&partial, &path)?;
            self.disk.sync_directory(&self.directory)?;
            Ok(summary)
        };
        let summary = write().map_err(|source| {
            // A try that failed may have left a part of a file on a disk that is full.
            let _ = self.disk.remove_file(&partial);
            IngestError::LayerFile { path, source }
        })?;
        Ok(LocalLayer {
            name,
            span,
            size: summary.size,
            epoch,
            summary,
        })
    }

    /// The bytes of a layer.
    pub(super) async fn read(&self, layer: &LocalLayer) -> Result<Bytes, IngestError> {
        let len = layer.size.as_len();
        self.blocking(layer, move |disk, path| {
            let mut bytes = vec![0; len];
            disk.read_exact_at(path, &mut bytes, 0)?;
            Ok(Bytes::from(bytes))
        })
        .await
    }

    /// Removes a layer that the object store has.
    pub(super) async fn remove(&self, layer: &LocalLayer) -> Result<(), IngestError> {
        self.blocking(layer, |disk, path| disk.remove_file(path))
            .await
    }

    /// Bytes held, with so many more.
    pub(super) fn add(&self, size: ByteCount) -> ByteCount {
        ByteCount::new(self.held.fetch_add(size.get(), Ordering::Relaxed) + size.get())
    }

    /// Bytes held, without so many.
    pub(super) fn subtract(&self, size: ByteCount) -> ByteCount {
        ByteCount::new(self.held.fetch_sub(size.get(), Ordering::Relaxed) - size.get())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        layer: &LocalLayer,
        work: impl FnOnce(&dyn Disk, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, IngestError> {
        let path = self.directory.join(&layer.name);
        let (disk, named) = (Arc::clone(&self.disk), path.clone());
        let done = tokio::task::spawn_blocking(move || work(disk.as_ref(), &named)).await;
        let done = done.unwrap_or_else(|error| Err(io::Error::other(error)));
        done.map_err(|source| IngestError::LayerFile { path, source })
    }
}

impl LocalLayer {
    /// What the manifest says of it.
    pub(super) fn entry(&self) -> LayerEntry {
        LayerEntry {
            name: self.name.clone(),
            kind: LayerKind::Delta(self.span),
            keys: match self.summary.keys {
                Some(keys) => KeySpan {
                    first: keys.first,
                    last: keys.last,
                },
                None => NO_KEYS,
            },
            size: self.size,
            epoch: self.epoch,
            entries: self.summary.entries,
            level: 0,
        }
    }
}

/// Holds the epoch and a random part, so that no two writers ever make the same name.
fn layer_name(epoch: WriterEpoch, span: LsnSpan) -> String {
    let (start, end) = (span.after.get(), span.up_to.get());
    let random = rand::random::<u64>();
    format!("delta-{start:016X}-{end:016X}-{epoch}-{random:016x}")
}
