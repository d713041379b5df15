//! Making one layer of a part of several: the same versions, in the order of keys.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
};

use palimpsest_layer::delta_file::{DeltaLayerSummary, RecordPlace, RecordSection, Stored};
use palimpsest_manifest::LsnSpan;
use palimpsest_read::{EntryScan, LayerScan, ReadError, RecordScan};
use palimpsest_store::{Body, BodyWriter};
use palimpsest_types::{ByteCount, Key, Lsn, WriterEpoch};
use palimpsest_wal::RawRecord;

use super::{background::give_way_in_between, cut::Cell, error::CompactError};

/// A layer that was made.
#[derive(Debug)]
pub struct Merged {
    /// The file.
    pub bytes: Body,
    /// What is in it.
    pub summary: DeltaLayerSummary,
}

/// How a layer is made.
#[derive(Debug, Clone, Copy)]
pub struct Making {
    /// Generation of the newest writer among those whose changes go into it.
    pub epoch: WriterEpoch,
    /// It must not become larger.
    pub most: ByteCount,
}

/// A record by the number of the layer that has it and where it is there.
type Place = (usize, RecordPlace);

/// Makes the layer of a cell. The layers are those that are compacted, oldest first.
///
/// They are gone through twice: first to see which records the cell refers to, because those come
/// first in a file. A record that several versions of a layer shared is kept once for the cell.
///
/// In memory are the new file, some blocks of each layer, and some 50 bytes of each record that is shared.
///
/// Waits for the store at every megabyte that it reads: whoever drops or cancels it waits for no more
/// than that takes.
///
/// # Errors
/// If a layer can't be read or is damaged, or the new one becomes too large.
pub async fn merge(
    layers: &[LayerScan],
    cell: &Cell,
    making: Making,
) -> Result<Merged, CompactError> {
    let layers: Vec<_> = layers.iter().filter(|layer| has_any(layer, cell)).collect();
    let check = |written: ByteCount| match written > making.most {
        true => Err(CompactError::TooLarge { most: making.most }),
        false => Ok(()),
    };
    let mut bytes = BodyWriter::new();
    let lsns = cell.lsns.after..cell.lsns.up_to;
    let mut records = RecordSection::begin(making.epoch, lsns, &mut bytes)?;
    let mut moved: HashMap<Place, RecordPlace> = HashMap::new();
    let mut scans = Vec::with_capacity(layers.len());
    for layer in &layers {
        scans.push(layer.records(shared(layer, cell).await?));
    }
    let mut shared = Merge::new(scans).await?;
    let mut last: Option<(Lsn, RecordPlace)> = None;
    while let Some((number, start, (place, record))) = shared.next().await? {
        check(records.written())?;
        let at = match last {
            // Another layer of the same LSNs has it, too.
            Some((same, at)) if same == start => at,
            _ => records.add(&record)?,
        };
        last = Some((start, at));
        moved.insert((number, place), at);
    }
    // They hold what they read last.
    drop(shared);
    let mut section = records.end()?;
    let scans = layers
        .iter()
        .map(|layer| layer.entries(cell.keys, cell.lsns));
    let mut versions = Merge::new(scans.collect()).await?;
    while let Some((number, (key, lsn), stored)) = versions.next().await? {
        check(section.written())?;
        match stored {
            Stored::Value(value) => section.add(key, lsn, &value)?,
            Stored::Shared { at, will_init } => {
                let at = moved.get(&(number, at)).copied();
                // Both passes see the same versions, as files never change.
                let at = at.ok_or(CompactError::Inconsistent)?;
                section.refer(key, lsn, at, will_init)?;
            }
        }
    }
    let summary = section.finish()?;
    let bytes = bytes.finish();
    Ok(Merged { bytes, summary })
}

/// Whether a layer has LSNs of a cell.
fn has_any(layer: &LayerScan, cell: &Cell) -> bool {
    let lsns = layer.index().lsns();
    let LsnSpan { after, up_to } = cell.lsns;
    after < lsns.end && lsns.start < up_to
}

/// Where the records stand that a layer's versions in a cell share.
async fn shared(layer: &LayerScan, cell: &Cell) -> Result<BTreeSet<RecordPlace>, CompactError> {
    let mut places = BTreeSet::new();
    let mut entries = layer.entries(cell.keys, cell.lsns);
    while let Some((.., stored)) = entries.next().await? {
        give_way_in_between();
        if let Stored::Shared { at, .. } = stored {
            places.insert(at);
        }
    }
    Ok(places)
}

/// What a layer has, in the order in which layers have it.
trait Scan: Send {
    /// Where something stands in that order.
    type At: Ord + Copy + Send;
    type Item: Send;

    fn next(&mut self) -> impl Future<Output = Result<Head<Self>, ReadError>> + Send;
}

/// What comes next in a scan.
type Head<S> = Option<(<S as Scan>::At, <S as Scan>::Item)>;

/// Versions, rising by key, then LSN.
impl Scan for EntryScan<'_> {
    type At = (Key, Lsn);
    type Item = Stored;

    async fn next(&mut self) -> Result<Head<Self>, ReadError> {
        let next = EntryScan::next(self).await?;
        Ok(next.map(|(key, lsn, stored)| ((key, lsn), stored)))
    }
}

/// Records, rising by where they start.
impl Scan for RecordScan<'_> {
    type At = Lsn;
    type Item = (RecordPlace, RawRecord);

    async fn next(&mut self) -> Result<Head<Self>, ReadError> {
        let next = RecordScan::next(self).await?;
        Ok(next.map(|(place, record)| (record.start_lsn, (place, record))))
    }
}

/// Several scans as one.
struct Merge<S: Scan> {
    scans: Vec<S>,
    /// What comes next in each.
    heads: Vec<Option<S::Item>>,
    /// Which scan is next.
    order: BinaryHeap<Reverse<(S::At, usize)>>,
}

impl<S: Scan> Merge<S> {
    async fn new(scans: Vec<S>) -> Result<Self, CompactError> {
        let mut merge = Self {
            heads: scans.iter().map(|_| None).collect(),
            order: BinaryHeap::with_capacity(scans.len()),
            scans,
        };
        for number in 0..merge.scans.len() {
            merge.pull(number).await?;
        }
        Ok(merge)
    }

    /// Takes in what comes next in a scan.
    async fn pull(&mut self, number: usize) -> Result<(), CompactError> {
        let (Some(scan), Some(head)) = (self.scans.get_mut(number), self.heads.get_mut(number))
        else {
            return Ok(());
        };
        give_way_in_between();
        if let Some((at, item)) = scan.next().await? {
            *head = Some(item);
            self.order.push(Reverse((at, number)));
        }
        Ok(())
    }

    /// What comes next, with the number of its scan.
    async fn next(&mut self) -> Result<Option<(usize, S::At, S::Item)>, CompactError> {
        let Some(Reverse((at, number))) = self.order.pop() else {
            return Ok(None);
        };
        let item = self.heads.get_mut(number).and_then(Option::take);
        self.pull(number).await?;
        Ok(item.map(|item| (number, at, item)))
    }
}
