//! What is known of the cluster where decoding begins.

use std::sync::Arc;

use palimpsest_api::TimelineRef;
use palimpsest_manifest::{TimelineManifest, Versioned};
use palimpsest_read::{
    BlockCache, PageCache, ReadError, StoredTimelines, TimelineReader, Versions as _, relations_at,
};
use palimpsest_redo::NoEngine;
use palimpsest_types::{ByteCount, Key, KeyRange, Lsn, SlruKind};
use palimpsest_wal::{BaseFacts, Interpreter, RelationSizes, SlruSegments, Value, v15::Parameters};

use super::{cluster::note_cluster, error::IngestError, laggard::Beginning, timeline::Timeline};

/// Each block is read once when sizes are.
const SIZES_CACHE: ByteCount = ByteCount::mib(32);
/// No pages are made here.
const PAGES: ByteCount = ByteCount::mib(1);

impl Timeline {
    /// An interpreter that knows how things are at the manifest's LSN: how long every relation fork
    /// and SLRU segment is, and the settings. A branch has that from the timelines it begins on, too, which
    /// must be in the object store up to there.
    pub(super) async fn interpreter(
        &self,
        manifest: &TimelineManifest,
    ) -> Result<Interpreter, IngestError> {
        let reader = self.stored(manifest).await?;
        let mut sizes = RelationSizes::default();
        for (rel, blocks) in relations_at(&reader, manifest.lsn).await? {
            sizes.set(rel, blocks);
        }
        let mut segments = SlruSegments::default();
        let listing = reader.newest_in(all_slru_segments(), manifest.lsn).await?;
        for entry in listing.versions {
            if let (Key::SlruSegment(kind, segment), (_, Value::RelSize(pages))) = entry {
                segments.set(kind, segment, pages.get());
            }
        }
        let settings = reader
            .newest(Key::Parameters, Lsn::ZERO..=manifest.lsn)
            .await?;
        let facts = base_facts(manifest, &parameters(settings)?);
        let mut interpreter = Interpreter::new(sizes, facts).with_slru_segments(segments);
        note_cluster(&mut interpreter, &reader, manifest.lsn).await?;
        Ok(interpreter)
    }

    /// A reader of what the object store has of the timeline, and of those that it begins on. It makes no pages.
    pub(super) async fn stored(
        &self,
        manifest: &TimelineManifest,
    ) -> Result<TimelineReader<NoEngine>, IngestError> {
        let store = self.shared.store.clone();
        let blocks = Arc::new(BlockCache::new(SIZES_CACHE));
        let pages = Arc::new(PageCache::new(PAGES));
        let TimelineRef { tenant, timeline } = self.id();
        let stored = StoredTimelines::new(store, tenant, (pages, blocks));
        Ok(stored.reader(timeline, manifest, None, || NoEngine).await?)
    }

    /// Asks the object store how things are where decoding can begin.
    pub(super) async fn learn_beginning(&self, beginning: &Beginning) -> Result<(), IngestError> {
        if let Some(Versioned { state: newest, .. }) = self.manifests().newest().await? {
            let interpreter = self.interpreter(&newest).await?;
            beginning.learn(newest.lsn, interpreter);
        }
        Ok(())
    }
}

/// What the interpreter must know of the base backup, and of the settings since.
fn base_facts(manifest: &TimelineManifest, settings: &Parameters) -> BaseFacts {
    BaseFacts {
        track_commit_timestamp: settings.track_commit_timestamp,
        consistent_from: manifest.consistent_from(),
        // True also stands for checksums, with which the setting has no effect.
        wal_log_hints: (!manifest.source.wal_log_hints).then_some(false),
    }
}

fn parameters(settings: Option<(Lsn, Value)>) -> Result<Parameters, ReadError> {
    let key = Key::Parameters;
    match settings.ok_or(ReadError::NotInBackup(key))? {
        (_, Value::File(content)) => {
            Parameters::decode(&content).map_err(|_| ReadError::WrongValue(key))
        }
        _ => Err(ReadError::WrongValue(key)),
    }
}

/// Sizes of all segments of SLRU areas there can be.
fn all_slru_segments() -> KeyRange {
    Key::SlruSegment(SlruKind::Clog, 0)..Key::Parameters
}
