use proptest::prelude::*;

use super::{sample::small_layer, *};

fn read(bytes: Bytes) -> Result<Vec<(Key, Lsn, Value)>, DeltaLayerError> {
    File::open(bytes)?.everything()
}

#[test]
fn every_flipped_byte_is_found() {
    let clean = written(&small_layer());
    assert_eq!(read(clean.clone()).unwrap().len(), 11);
    for at in 0..clean.len() {
        for flip in [0x01, 0x10, 0x80, 0xFF] {
            let mut damaged = Vec::from(clean.clone());
            damaged[at] ^= flip;
            assert!(read(damaged.into()).is_err(), "byte {at} ^ {flip:#x}");
        }
    }
}

#[test]
fn every_truncation_is_found() {
    let clean = written(&small_layer());
    for len in 0..clean.len() {
        assert!(read(clean.slice(..len)).is_err(), "the first {len} bytes");
        assert!(
            read(clean.slice(clean.len() - len..)).is_err(),
            "the last {len} bytes"
        );
    }
}

#[test]
fn a_checksum_is_named() {
    let clean = written(&small_layer());
    let mut damaged = Vec::from(clean);
    damaged[HEADER_LEN] ^= 1;
    let error = read(damaged.into()).unwrap_err();
    let DeltaLayerError::Checksum { what, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(what, "record block");
}

proptest! {
    #[test]
    fn random_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        let bytes = Bytes::from(bytes);
        prop_assert!(check_header(&bytes).is_err());
        prop_assert!(Footer::decode(&bytes, bytes.len() as u64).is_err());
    }
}
