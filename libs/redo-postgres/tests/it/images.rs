//! Records with an image of the page wanted.

use bytes::Bytes;
use palimpsest_redo_postgres::{ApplyRequest, RedoRecord};
use palimpsest_types::{BlockNumber, Fork, Lsn, RelTag};

use crate::engine;

const REL: RelTag = RelTag {
    spc: 1663,
    db: 5,
    rel: 16384,
    fork: Fork::Main,
};
const GIST: u8 = 14;
const PAGE_UPDATE: u8 = 0x00;
const PAGE_SPLIT: u8 = 0x30;
const PAGE_DELETE: u8 = 0x60;

/// An empty GiST page whose flags are all set.
fn left_half() -> Vec<u8> {
    let mut page = vec![0; 8192];
    // Lower, upper and special; page size and layout version.
    page[12..20].copy_from_slice(&[24, 0, 0xF0, 0x1F, 0xF0, 0x1F, 4, 0x20]);
    page[8192 - 16..].fill(0xFF);
    page
}

/// A record that refers to one page, by this id, and has an image of it to be applied.
fn request(info: u8, id: u8) -> ApplyRequest {
    let mut bytes = vec![0; 24];
    bytes[16..18].copy_from_slice(&[info, GIST]);
    bytes.extend([id, 0x10, 0, 0, 0x00, 0x20, 0, 0, 0x02]);
    bytes.extend([REL.spc, REL.db, REL.rel, 1].map(u32::to_le_bytes).concat());
    bytes.extend(left_half());
    let len = (bytes.len() as u32).to_le_bytes();
    bytes[..4].copy_from_slice(&len);
    let record = RedoRecord {
        start_lsn: Lsn::new(0x0A_0000_0A00),
        end_lsn: Lsn::new(0x0A_0000_0B00),
        bytes: bytes.into(),
    };
    ApplyRequest {
        rel: REL,
        block: BlockNumber::new(1),
        base: None,
        records: vec![record],
    }
}

#[tokio::test]
async fn the_left_half_of_a_completed_gist_split_gets_what_its_image_lacks() {
    let engine = engine().await;
    let lsn = [0x0A, 0, 0, 0, 0, 0x0B, 0, 0];
    for (info, id, completes) in [
        (PAGE_UPDATE, 1, true),
        (PAGE_SPLIT, 0, true),
        (PAGE_UPDATE, 0, false),
        (PAGE_SPLIT, 1, false),
        (PAGE_DELETE, 1, false),
    ] {
        let page: Bytes = engine.apply(request(info, id)).await.unwrap();
        assert_eq!(page[..8], lsn);
        let (nsn, flags) = (&page[8176..8184], page[8188]);
        let expected = if completes {
            (lsn, 0xF7)
        } else {
            ([0xFF; 8], 0xFF)
        };
        assert_eq!(
            (nsn, flags),
            (expected.0.as_slice(), expected.1),
            "{info:02x} {id}"
        );
    }
    engine.stop().await;
}
