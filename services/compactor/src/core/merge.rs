//! Making one layer of a part of several: the same versions, in the order of keys.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
};

use palimpsest_layer::delta_file::{DeltaLayerSummary, RecordPlace, RecordSection, Stored};
use palimpsest_manifest::LsnSpan;
use palimpsest_read::{EntryScan, LayerScan};
use palimpsest_types::{ByteCount, Key, Lsn, WriterEpoch};

use super::{cut::Cell, error::CompactError};

/// A layer that was made.
#[derive(Debug)]
pub struct Merged {
    /// The file.
    pub bytes: Vec<u8>,
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
/// In memory are the new file, some blocks of each layer, and 32 bytes of each record that is shared.
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
    let mut bytes = Vec::new();
    let lsns = cell.lsns.after..cell.lsns.up_to;
    let mut records = RecordSection::begin(making.epoch, lsns, &mut bytes)?;
    let mut moved: HashMap<Place, RecordPlace> = HashMap::new();
    // Records of a layer all start before those of the next.
    for (number, layer) in layers.iter().enumerate() {
        let places = shared(layer, cell).await?;
        let mut shared = layer.records(places);
        while let Some((place, record)) = shared.next().await? {
            check(records.written())?;
            moved.insert((number, place), records.add(&record)?);
        }
    }
    let mut section = records.end()?;
    let mut versions = Merge::new(&layers, cell).await?;
    while let Some((number, key, lsn, stored)) = versions.next().await? {
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
        if let Stored::Shared { at, .. } = stored {
            places.insert(at);
        }
    }
    Ok(places)
}

/// The versions of several layers as one, rising by key, then LSN.
struct Merge<'a> {
    scans: Vec<EntryScan<'a>>,
    /// The next version of each scan.
    heads: Vec<Option<Stored>>,
    /// Which scan is next.
    order: BinaryHeap<Reverse<(Key, Lsn, usize)>>,
}

impl<'a> Merge<'a> {
    async fn new(layers: &[&'a LayerScan], cell: &Cell) -> Result<Self, CompactError> {
        let scans = layers
            .iter()
            .map(|layer| layer.entries(cell.keys, cell.lsns));
        let scans: Vec<_> = scans.collect();
        let mut merge = Self {
            heads: vec![None; scans.len()],
            order: BinaryHeap::with_capacity(scans.len()),
            scans,
        };
        for number in 0..merge.scans.len() {
            merge.pull(number).await?;
        }
        Ok(merge)
    }

    /// Takes in the next version of a scan.
    async fn pull(&mut self, number: usize) -> Result<(), CompactError> {
        let (Some(scan), Some(head)) = (self.scans.get_mut(number), self.heads.get_mut(number))
        else {
            return Ok(());
        };
        if let Some((key, lsn, stored)) = scan.next().await? {
            *head = Some(stored);
            self.order.push(Reverse((key, lsn, number)));
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<(usize, Key, Lsn, Stored)>, CompactError> {
        let Some(Reverse((key, lsn, number))) = self.order.pop() else {
            return Ok(None);
        };
        let stored = self.heads.get_mut(number).and_then(Option::take);
        self.pull(number).await?;
        Ok(stored.map(|stored| (number, key, lsn, stored)))
    }
}
