//! The way of a read down through the layers.

use std::{ops::RangeInclusive, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use palimpsest_layer::Visit;
use palimpsest_types::{Key, Lsn, WriterEpoch};
use palimpsest_wal::Value;

use super::LayerFiles;
use crate::{
    delta::{DeltaFile, OpenDelta},
    error::ReadError,
    layer_map::LayerMap,
    parts::READS,
    room::Room,
};

/// Looks for versions of a key, newest first.
pub(crate) trait Seek: Send {
    /// Of which key.
    fn key(&self) -> Key;

    /// The LSNs of versions that count. Older ones may be shown, too.
    fn lsns(&self) -> RangeInclusive<Lsn>;

    /// Another layer is looked into for it.
    fn visit(&mut self) {}

    /// The next older version, with the generation of its writer.
    fn take(&mut self, epoch: WriterEpoch, at: Lsn, value: &Value) -> Visit;
}

/// How far a seeker is.
struct Cursor<'a, S> {
    seeker: &'a mut S,
    /// The next layer to look into, and from which LSN down: what is newer is in layers before.
    next: Option<(Arc<DeltaFile>, Lsn)>,
    /// Whether it wants nothing more.
    stopped: bool,
}

/// A layer, and who looks into it.
#[derive(Debug)]
struct Step {
    file: Arc<DeltaFile>,
    /// In the order of cursors.
    looks: Vec<Look>,
}

/// What a cursor, by its number, looks for in a layer.
#[derive(Debug, Clone, Copy)]
struct Look {
    cursor: usize,
    key: Key,
    up_to: Lsn,
}

/// Layers that are read side by side, at most: what has not come to an end after some layers mostly
/// goes on through many.
const AHEAD: usize = 16;
/// Visits that are read ahead, at most: each may hold a block of usual size (16 MiB in all) in memory.
const VISITS_AHEAD: usize = 256;

/// Shows seekers the versions of their keys, newest first, each until it says stop. A layer that
/// several come through is read once for all of them.
pub(super) async fn walk<S: Seek>(
    files: &LayerFiles,
    map: &LayerMap<Arc<DeltaFile>>,
    seekers: &mut [S],
) -> Result<(), ReadError> {
    let cursors: Vec<_> = seekers
        .iter_mut()
        .map(|seeker| Cursor::new(seeker, map))
        .collect();
    if cursors.iter().all(|cursor| cursor.next.is_none()) {
        return Ok(());
    }
    // Apart: its state is large, and what is in no layer must not move it about.
    Box::pin(descend(files, map, cursors)).await
}

async fn descend<S: Seek>(
    files: &LayerFiles,
    map: &LayerMap<Arc<DeltaFile>>,
    mut cursors: Vec<Cursor<'_, S>>,
) -> Result<(), ReadError> {
    let room = Room::new();
    let mut ahead = 1;
    loop {
        let steps = plan(map, &mut cursors, ahead);
        if steps.is_empty() {
            return Ok(());
        }
        // Side by side and all of them, then in order: an open that was left half done while the
        // layers before it are visited would keep others waiting for what it reads.
        let opened = steps.into_iter().map(|step| open(files, step));
        let opened = stream::iter(opened.collect::<Vec<_>>()).buffered(READS);
        for (delta, looks) in opened.collect::<Vec<_>>().await {
            // Who reads ahead may come upon trouble where nobody has to go.
            if looks.iter().all(|look| cursors[look.cursor].stopped) {
                continue;
            }
            visit((files, &room), &delta?, &looks, &mut cursors).await?;
        }
        ahead = (2 * ahead).min(AHEAD);
    }
}

/// The next layers to visit, newest first, about as many as `ahead`. Who has to wait for another to
/// come as far down as itself waits, so that they visit a layer together.
fn plan<S: Seek>(
    map: &LayerMap<Arc<DeltaFile>>,
    cursors: &mut [Cursor<'_, S>],
    ahead: usize,
) -> Vec<Step> {
    let looking = cursors.iter().filter(|it| it.next().is_some()).count();
    let ahead = ahead.min(VISITS_AHEAD / looking.max(1)).max(1);
    let mut steps = Vec::with_capacity(ahead);
    for _ in 0..ahead {
        let next = cursors.iter().filter_map(Cursor::next);
        let Some(file) = next.max_by_key(|file| file.place().order()).cloned() else {
            break;
        };
        let mut looks = Vec::new();
        for (number, cursor) in cursors.iter_mut().enumerate() {
            if cursor.next().is_some_and(|next| Arc::ptr_eq(next, &file))
                && let Some(up_to) = cursor.advance(map)
            {
                looks.push(Look {
                    cursor: number,
                    key: cursor.seeker.key(),
                    up_to,
                });
            }
        }
        steps.push(Step { file, looks });
    }
    steps
}

async fn open(files: &LayerFiles, step: Step) -> (Result<OpenDelta, ReadError>, Vec<Look>) {
    let Step { file, looks } = step;
    let keys = looks.iter().map(|look| (look.key, look.up_to));
    (file.open(files, keys).await, looks)
}

/// Has the cursors look into a layer, unless they have stopped meanwhile.
async fn visit<S: Seek>(
    from: (&LayerFiles, &Room),
    delta: &OpenDelta,
    looks: &[Look],
    cursors: &mut [Cursor<'_, S>],
) -> Result<(), ReadError> {
    let mut looks = looks.iter().peekable();
    let mut under_way = Vec::new();
    for (number, cursor) in cursors.iter_mut().enumerate() {
        let look = looks.next_if(|look| look.cursor == number);
        if let Some(look) = look.filter(|_| !cursor.stopped) {
            under_way.push(cursor.look(from, delta, look.up_to));
        }
    }
    // Most need nothing more; those whose records stand elsewhere may have to wait for them.
    let under_way = stream::iter(under_way).buffer_unordered(READS);
    under_way.try_collect().await
}

impl<'a, S: Seek> Cursor<'a, S> {
    fn new(seeker: &'a mut S, map: &LayerMap<Arc<DeltaFile>>) -> Self {
        let next = next_of(seeker, map, *seeker.lsns().end());
        Self {
            seeker,
            next,
            stopped: false,
        }
    }

    fn next(&self) -> Option<&Arc<DeltaFile>> {
        let next = self.next.as_ref().filter(|_| !self.stopped);
        next.map(|(file, _)| file)
    }

    /// Goes on to the layer after the next; tells from which LSN down to look into the next.
    fn advance(&mut self, map: &LayerMap<Arc<DeltaFile>>) -> Option<Lsn> {
        let (file, up_to) = self.next.take()?;
        self.next = next_of(self.seeker, map, file.place().lsns.after);
        Some(up_to)
    }

    async fn look(
        &mut self,
        (files, room): (&LayerFiles, &Room),
        delta: &OpenDelta,
        up_to: Lsn,
    ) -> Result<(), ReadError> {
        let seeker = &mut *self.seeker;
        seeker.visit();
        let key = seeker.key();
        let mut take = |epoch, at, value: &Value| seeker.take(epoch, at, value);
        let wish = delta.versions(files, room, key, up_to, &mut take).await?;
        self.stopped = wish == Visit::Stop;
        Ok(())
    }
}

/// The newest layer that may have what is looked for at or below `before`.
fn next_of<S: Seek>(
    seeker: &S,
    map: &LayerMap<Arc<DeltaFile>>,
    before: Lsn,
) -> Option<(Arc<DeltaFile>, Lsn)> {
    let (place, file) = map.newest(seeker.key(), before)?;
    let counts = place.lsns.up_to >= *seeker.lsns().start();
    counts.then(|| (Arc::clone(file), before))
}
