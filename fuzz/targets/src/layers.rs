//! Layer files, with checksums that fit whatever the rest says.

use bytes::Bytes;
use palimpsest_codec::crc32c;
use palimpsest_layer::{
    delta_file::{self, DeltaLayerError, DeltaLayerIndex, EntryBlock, RecordBlock, Stored},
    image::{self, ImageLayerError, ImageLayerIndex},
};
use palimpsest_types::{Lsn, PAGE_SIZE};
use palimpsest_wal::Value;

/// Where things stand in the footer of a delta layer and in its index.
mod delta_format {
    pub(super) const INDEX_OFFSET: usize = 32;
    pub(super) const RECORD_BLOCKS: usize = 40;
    pub(super) const INDEX_CRC: usize = 48;
    pub(super) const CRC: usize = 56;
    pub(super) const RECORD_BLOCK_LEN: usize = 16;
    pub(super) const ENTRY_BLOCK_LEN: usize = 68;
    /// Before the end of an index entry of either kind.
    pub(super) const FRAME_LEN: usize = 16;
}

/// The same of an image layer.
mod image_format {
    pub(super) const INDEX_OFFSET: usize = 8;
    pub(super) const INDEX_CRC: usize = 20;
    pub(super) const CRC: usize = 28;
    pub(super) const ENTRY_LEN: usize = 34;
    pub(super) const VALUE_OFFSET: usize = 18;
    pub(super) const VALUE_LEN: usize = 26;
    pub(super) const VALUE_CRC: usize = 30;
}

/// A delta layer file: header, footer, index, then every block and every record that it refers to.
pub fn delta_layer(data: &[u8]) {
    let mut file = data.to_vec();
    // If it can't be sealed, it is read as it is.
    let _ = seal_delta(&mut file);
    let _ = read_delta(&file.into());
}

/// An image layer file: footer, index, then every value.
pub fn image_layer(data: &[u8]) {
    let mut file = data.to_vec();
    let _ = seal_image(&mut file);
    let _ = read_image(&file.into());
}

fn read_delta(file: &Bytes) -> Result<(), DeltaLayerError> {
    let _ = delta_file::check_header(&part(file, 0, delta_file::HEADER_LEN));
    let footer_at = file.len().saturating_sub(delta_file::Footer::LEN);
    let footer = file.slice(footer_at..);
    let footer = delta_file::Footer::decode(&footer, file.len() as u64)?;
    let index = part(
        file,
        footer.index_offset as usize,
        footer.index_len as usize,
    );
    let index = DeltaLayerIndex::decode(&footer, &index)?;
    let Some(keys) = index.keys() else {
        return Ok(());
    };
    let range = keys.first..keys.last;
    let blocks: Vec<_> = index.blocks_in(range.clone()).collect();
    for no in blocks
        .into_iter()
        .chain(index.blocks_of(keys.last, Lsn::MAX))
    {
        let place = index.place(no)?;
        let stored = part(file, place.offset as usize, place.stored_len as usize);
        let Ok(block) = EntryBlock::decode(&index, no, stored) else {
            continue;
        };
        let _ = block.versions(keys.last, Lsn::MAX).count();
        for (key, lsn, stored) in block.range(range.clone()) {
            assert!(range.contains(&key) && index.lsns().end >= lsn);
            match stored {
                // Whether an image is a page is for whoever makes a page of it.
                Stored::Value(_) => {}
                Stored::Shared { at: place, .. } => {
                    let found = index.place(place.block)?;
                    let bytes = part(file, found.offset as usize, found.stored_len as usize);
                    if let Ok(records) = RecordBlock::decode(&index, place.block, bytes) {
                        let _ = records.record(place);
                    }
                }
            }
        }
    }
    Ok(())
}

fn read_image(file: &Bytes) -> Result<(), ImageLayerError> {
    let footer_at = file.len().saturating_sub(image::Footer::LEN);
    let footer = image::Footer::decode(&file.slice(footer_at..), file.len() as u64)?;
    let index = part(
        file,
        footer.index_offset as usize,
        footer.index_len as usize,
    );
    let index = ImageLayerIndex::decode(&footer, &index)?;
    for (key, place) in index.entries() {
        assert_eq!(index.find(key), Some(place));
        let stored = part(file, place.offset as usize, place.len as usize);
        // What a reader would take for a page is one.
        if let Ok(Value::Image(page)) = place.decode(key, stored) {
            assert_eq!(page.len(), PAGE_SIZE, "{key:?}");
        }
    }
    Ok(())
}

/// The part of a file that is there of what was asked for.
fn part(file: &Bytes, offset: usize, len: usize) -> Bytes {
    let start = offset.min(file.len());
    file.slice(start..start.saturating_add(len).min(file.len()))
}

/// Makes all checksums fit; `None` where the lengths lead nowhere.
fn seal_delta(file: &mut [u8]) -> Option<()> {
    use delta_format as at;
    let footer = file.len().checked_sub(delta_file::Footer::LEN)?;
    let index: usize = u64_at(file, footer + at::INDEX_OFFSET)?.try_into().ok()?;
    let records: usize = u32_at(file, footer + at::RECORD_BLOCKS)?.try_into().ok()?;
    let mut block = delta_file::HEADER_LEN;
    let mut entry = index;
    for number in 0.. {
        let entry_len = match number < records {
            true => at::RECORD_BLOCK_LEN,
            false => at::ENTRY_BLOCK_LEN,
        };
        let end = entry.checked_add(entry_len)?;
        if end > footer {
            break;
        }
        let frame = end - at::FRAME_LEN;
        let next = block.checked_add(u32_at(file, frame)? as usize)?;
        let Some(stored) = file.get(block..next) else {
            break;
        };
        put_u32(file, frame + 8, crc32c(stored))?;
        (entry, block) = (end, next);
    }
    let crc = crc32c(file.get(index..footer)?);
    put_u32(file, footer + at::INDEX_CRC, crc)?;
    let crc = crc32c(file.get(footer..footer + at::CRC)?);
    put_u32(file, footer + at::CRC, crc)
}

fn seal_image(file: &mut [u8]) -> Option<()> {
    use image_format as at;
    let footer = file.len().checked_sub(image::Footer::LEN)?;
    let index: usize = u64_at(file, footer + at::INDEX_OFFSET)?.try_into().ok()?;
    let entries = footer.checked_sub(index)? / at::ENTRY_LEN;
    for entry in (0..entries).map(|number| index + number * at::ENTRY_LEN) {
        let offset: usize = u64_at(file, entry + at::VALUE_OFFSET)?.try_into().ok()?;
        let len = u32_at(file, entry + at::VALUE_LEN)? as usize;
        if let Some(value) = file.get(offset..offset.saturating_add(len)) {
            put_u32(file, entry + at::VALUE_CRC, crc32c(value))?;
        }
    }
    let crc = crc32c(file.get(index..footer)?);
    put_u32(file, footer + at::INDEX_CRC, crc)?;
    let crc = crc32c(file.get(footer..footer + at::CRC)?);
    put_u32(file, footer + at::CRC, crc)
}

fn u32_at(file: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?))
}

fn u64_at(file: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*file.get(at..)?.first_chunk()?))
}

fn put_u32(file: &mut [u8], at: usize, value: u32) -> Option<()> {
    *file.get_mut(at..)?.first_chunk_mut()? = value.to_le_bytes();
    Some(())
}
