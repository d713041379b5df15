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

use super::{
    error::IngestError,
    file_work::FileWork,
    laggard::{States, states},
};

/// The directory of one timeline's layer files. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct LocalLayers {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    work: FileWork,
    held: Arc<AtomicU64>,
}

/// A layer on its way: in a file that is whole and fsynced, or still in memory.
#[derive(Debug, Clone)]
pub(super) struct LocalLayer {
    pub(super) name: String,
    pub(super) span: LsnSpan,
    pub(super) size: ByteCount,
    /// What decoding after it depends on.
    pub(super) states: States,
    epoch: WriterEpoch,
    summary: DeltaLayerSummary,
    /// What it is made of, if there is no file.
    unwritten: Option<Arc<OpenLayer>>,
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
    /// Blocking; what blocks later is part of `work`.
    pub(super) fn prepare(
        disk: Arc<dyn Disk>,
        directory: PathBuf,
        work: FileWork,
    ) -> Result<Self, IngestError> {
        let failed = |source| IngestError::LayerFile {
            path: directory.clone(),
            source,
        };
        disk.remove_dir_all(&directory).map_err(failed)?;
        disk.create_dir_all(&directory).map_err(failed)?;
        Ok(Self {
            disk,
            directory,
            work,
            held: Arc::default(),
        })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a layer so that it is whole after a crash or not there. Blocking.
    pub(super) fn write(&self, piece: &OpenLayer) -> Result<LocalLayer, IngestError> {
        let name = layer_name(piece);
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
            // A try that failed may have left a part of a file, or a name that nobody knows, on a
            // disk that is full.
            let _ = self.disk.remove_file(&partial);
            let _ = self.disk.remove_file(&path);
            IngestError::LayerFile { path, source }
        })?;
        Ok(LocalLayer::new(name, piece, summary))
    }

    /// A layer without a file, for a disk that is full: its bytes are made when they are read, the
    /// same each time. Blocking.
    pub(super) fn keep(&self, piece: &Arc<OpenLayer>) -> Result<LocalLayer, IngestError> {
        let name = layer_name(piece);
        let summary = write_delta_layer(piece, io::sink()).map_err(|error| {
            let path = self.directory.join(&name);
            let source = error.into();
            IngestError::LayerFile { path, source }
        })?;
        let layer = LocalLayer::new(name, piece, summary);
        Ok(LocalLayer {
            unwritten: Some(Arc::clone(piece)),
            ..layer
        })
    }

    /// The bytes of a layer.
    pub(super) async fn read(&self, layer: &LocalLayer) -> Result<Bytes, IngestError> {
        let len = layer.size.as_len();
        let unwritten = layer.unwritten.clone();
        self.blocking(layer, move |disk, path| {
            if let Some(piece) = unwritten {
                let mut bytes = Vec::with_capacity(len);
                write_delta_layer(&piece, &mut bytes)?;
                return Ok(bytes.into());
            }
            let mut bytes = vec![0; len];
            disk.read_exact_at(path, &mut bytes, 0)?;
            Ok(Bytes::from(bytes))
        })
        .await
    }

    /// Removes a layer that the object store has; returns the bytes that are held then.
    pub(super) async fn remove(&self, layer: &LocalLayer) -> (ByteCount, Result<(), IngestError>) {
        if layer.unwritten.is_some() {
            let held = ByteCount::new(self.held.load(Ordering::Relaxed));
            return (held, Ok(()));
        }
        let removed = self.blocking(layer, |disk, path| disk.remove_file(path));
        let removed = removed.await;
        (self.subtract(layer.size), removed)
    }

    /// Bytes held, with so many more.
    pub(super) fn add(&self, size: ByteCount) -> ByteCount {
        ByteCount::new(self.held.fetch_add(size.get(), Ordering::Relaxed) + size.get())
    }

    /// Bytes held, without so many.
    fn subtract(&self, size: ByteCount) -> ByteCount {
        ByteCount::new(self.held.fetch_sub(size.get(), Ordering::Relaxed) - size.get())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        layer: &LocalLayer,
        work: impl FnOnce(&dyn Disk, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, IngestError> {
        let path = self.directory.join(&layer.name);
        let (disk, named) = (Arc::clone(&self.disk), path.clone());
        let done = self.work.spawn(move || work(disk.as_ref(), &named));
        let done = done.await;
        let done = done.unwrap_or_else(|error| Err(io::Error::other(error)));
        done.map_err(|source| IngestError::LayerFile { path, source })
    }
}

impl LocalLayer {
    /// A layer with a file.
    fn new(name: String, piece: &OpenLayer, summary: DeltaLayerSummary) -> Self {
        Self {
            name,
            span: span(piece),
            size: summary.size,
            states: states(piece),
            epoch: piece.epoch(),
            summary,
            unwritten: None,
        }
    }

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

fn span(piece: &OpenLayer) -> LsnSpan {
    let lsns = piece.lsns();
    LsnSpan {
        after: lsns.start,
        up_to: lsns.end,
    }
}

/// Holds the epoch and a random part, so that no two writers ever make the same name.
fn layer_name(piece: &OpenLayer) -> String {
    let (epoch, span) = (piece.epoch(), span(piece));
    let (start, end) = (span.after.get(), span.up_to.get());
    let random = rand::random::<u64>();
    format!("delta-{start:016X}-{end:016X}-{epoch}-{random:016x}")
}

#[cfg(test)]
mod tests {
    use palimpsest_disk::{DiskStep, FullDisk};
    use palimpsest_layer::LogRecord;
    use palimpsest_runtime::TaskScope;
    use palimpsest_types::{BlockNumber, Lsn};
    use palimpsest_wal::{Change, Value};

    use super::*;

    fn piece() -> Arc<OpenLayer> {
        let mut layer = OpenLayer::new(WriterEpoch::FIRST, Lsn::new(0x1000));
        for lsn in 1..500 {
            let rel = RelTag {
                spc: 1663,
                db: 5,
                rel: 16384,
                fork: Fork::Main,
            };
            let change = Change {
                key: Key::RelSize(rel),
                value: Value::RelSize(BlockNumber::new(lsn)),
            };
            let record = LogRecord {
                lsn: Lsn::new(0x1000 + u64::from(lsn) * 8),
                changes: vec![change],
            };
            layer.append(record).unwrap();
        }
        Arc::new(layer)
    }

    fn layers(root: &Path) -> (FullDisk, LocalLayers) {
        let disk = FullDisk::default();
        let directory = root.join("layers");
        let layers = LocalLayers::prepare(
            Arc::new(disk.clone()),
            directory,
            FileWork::new(TaskScope::default()),
        );
        (disk, layers.unwrap())
    }

    #[tokio::test]
    async fn a_layer_in_memory_has_the_bytes_of_its_file() {
        let root = tempfile::tempdir().unwrap();
        let (_, layers) = layers(root.path());
        let piece = piece();
        let written = layers.write(&piece).unwrap();
        let kept = layers.keep(&piece).unwrap();
        let bytes = layers.read(&written).await.unwrap();
        assert_eq!(ByteCount::new(bytes.len() as u64), kept.size);
        assert!(layers.read(&kept).await.unwrap() == bytes);
        assert!(layers.read(&kept).await.unwrap() == bytes, "once more");
        let (file, memory) = (written.entry(), kept.entry());
        assert_eq!((file.size, file.keys), (memory.size, memory.keys));

        layers.add(written.size);
        let (held, removed) = layers.remove(&kept).await;
        removed.unwrap();
        assert_eq!(held, written.size, "it takes nothing of the disk");
    }

    #[test]
    fn a_layer_that_does_not_fit_leaves_nothing() {
        for step in DiskStep::EACH {
            let root = tempfile::tempdir().unwrap();
            let (disk, layers) = layers(root.path());
            disk.fill(step, "layers");
            let error = layers.write(&piece()).unwrap_err();
            assert!(error.is_full_disk(), "{step:?}: {error}");
            assert!(disk.refused() > 0, "{step:?}");
            assert!(
                disk.list(layers.directory()).unwrap().is_empty(),
                "{step:?}"
            );
            disk.empty();
            layers.write(&piece()).unwrap();
        }
    }
}
