//! The way of a read down through the layers.

use std::{ops::RangeInclusive, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use palimpsest_layer::Visit;
use palimpsest_manifest::LsnSpan;
use palimpsest_types::{Key, Lsn, WriterEpoch};
use palimpsest_wal::Value;

use super::{LayerFiles, Layers};
use crate::{
    delta::{DeltaFile, OpenDelta},
    error::ReadError,
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

    /// It did not exist at this LSN; nothing older is shown.
    fn absent(&mut self, epoch: WriterEpoch, at: Lsn);
}

/// How far a seeker is.
struct Cursor<'a, S> {
    seeker: &'a mut S,
    /// The next layer to look into, and for which LSNs: what is newer is in layers before.
    next: Option<Next>,
    /// Whether it wants nothing more.
    stopped: bool,
}

type Next = (Arc<DeltaFile>, LsnSpan);

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
    lsns: LsnSpan,
}

/// Layers that are read side by side, at most: what has not come to an end after some layers mostly
/// goes on through many.
const AHEAD: usize = 16;
/// Visits that are read ahead, at most: each may hold a block of usual size (16 MiB in all) in memory.
const VISITS_AHEAD: usize = 256;
const IN_PART: &str = "it is an image, but has a change that needs what is older";

/// Shows seekers the versions of their keys, newest first, each until it says stop. A layer that
/// several come through is read once for all of them.
pub(super) async fn walk<S: Seek>(layers: &Layers, seekers: &mut [S]) -> Result<(), ReadError> {
    let cursors: Vec<_> = seekers
        .iter_mut()
        .map(|seeker| Cursor::new(seeker, layers))
        .collect();
    if cursors.iter().all(|cursor| cursor.next.is_none()) {
        return Ok(());
    }
    // Apart: its state is large, and what is in no layer must not move it about.
    Box::pin(descend(layers, cursors)).await
}

async fn descend<S: Seek>(
    layers: &Layers,
    mut cursors: Vec<Cursor<'_, S>>,
) -> Result<(), ReadError> {
    let files = &layers.files;
    let room = Room::new();
    let mut ahead = 1;
    loop {
        let steps = plan(layers, &mut cursors, ahead);
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
fn plan<S: Seek>(layers: &Layers, cursors: &mut [Cursor<'_, S>], ahead: usize) -> Vec<Step> {
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
                && let Some(lsns) = cursor.advance(layers)
            {
                looks.push(Look {
                    cursor: number,
                    key: cursor.seeker.key(),
                    lsns,
                });
            }
        }
        steps.push(Step { file, looks });
    }
    steps
}

async fn open(files: &LayerFiles, step: Step) -> (Result<OpenDelta, ReadError>, Vec<Look>) {
    let Step { file, looks } = step;
    let keys = looks.iter().map(|look| (look.key, look.lsns.up_to));
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
            under_way.push(cursor.look(from, delta, look.lsns));
        }
    }
    // Most need nothing more; those whose records stand elsewhere may have to wait for them.
    let under_way = stream::iter(under_way).buffer_unordered(READS);
    under_way.try_collect().await
}

impl<'a, S: Seek> Cursor<'a, S> {
    fn new(seeker: &'a mut S, layers: &Layers) -> Self {
        let next = next_of(seeker, layers, *seeker.lsns().end());
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

    /// Goes on to the layer after the next; tells for which LSNs to look into the next. Behind an image
    /// there is nothing to look for.
    fn advance(&mut self, layers: &Layers) -> Option<LsnSpan> {
        let (file, lsns) = self.next.take()?;
        if !file.is_image() {
            self.next = next_of(self.seeker, layers, lsns.after);
        }
        Some(lsns)
    }

    async fn look(
        &mut self,
        (files, room): (&LayerFiles, &Room),
        delta: &OpenDelta,
        lsns: LsnSpan,
    ) -> Result<(), ReadError> {
        let seeker = &mut *self.seeker;
        seeker.visit();
        let key = seeker.key();
        let mut oldest = None;
        let mut take = |epoch, at, value: &Value| {
            oldest = Some(value.stands_alone());
            seeker.take(epoch, at, value)
        };
        let wish = delta.versions(files, room, (key, lsns), &mut take).await?;
        self.stopped = wish == Visit::Stop || delta.file().is_image();
        if delta.file().is_image() {
            match oldest {
                Some(true) => {}
                Some(false) => return Err(delta.file().not_as_listed(IN_PART)),
                None => seeker.absent(delta.epoch(), delta.file().place().lsns.up_to),
            }
        }
        Ok(())
    }
}

/// The newest layer that may have what is looked for at or below `before`, and at which LSNs to look for
/// it there. What an image has is not looked for in changes that are as old.
fn next_of<S: Seek>(seeker: &S, layers: &Layers, before: Lsn) -> Option<Next> {
    let key = seeker.key();
    let image = layers.images.map.newest(key, before);
    let whole = image.map_or(Lsn::ZERO, |(place, _)| place.lsns.up_to);
    let delta = layers.deltas.map.newest(key, before);
    let delta = delta.filter(|(place, _)| place.lsns.up_to.min(before) > whole);
    let (place, file) = delta.or(image)?;
    let after = match file.is_image() {
        true => place.lsns.after,
        false => place.lsns.after.max(whole),
    };
    let lsns = LsnSpan {
        after,
        up_to: before,
    };
    let counts = place.lsns.up_to >= *seeker.lsns().start();
    counts.then(|| (Arc::clone(file), lsns))
}
