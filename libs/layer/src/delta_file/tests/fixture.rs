//! A file as the first version of the format wrote it. It must be read for as long as the program
//! claims to read that version; what is written today may differ, as compressors do.

use super::{super::entry::ToStore, sample::small_layer, *};

/// [`small_layer`], in hexadecimal digits.
const VERSION_1: &str = "\
    50414c44454c5441010000000000000031f00300010013f80800f00e19000000612073706c6974206368\
    616e6765732074776f207061676573d1010000067f0000000500004000010021f8030700300007000900\
    0e200022280420003c0900023c002001f03300630000000301e80a00041200ae06000000696e73657274\
    36000472000359002f00005a000013181d001101a7001f0901002c0d840015028400110181000f840001\
    230220840011051a0103e100080200032000110220000a020013081c00cf060102000000bc020000bd02\
    44000113302800110a32017603000200010204680103020013102600900800030000006d617029000000\
    2d000000fe1bdd8801000000010000067f00000005000040000000000000f80300000000000004000006\
    7f000000050000000000000000001004000000000000bf000000c70100000170efe00b00000007000000\
    00000000e80300000000000030040000000000000b00000000000000f800000000000000010000000100\
    000023522c0f01000000707ccdec";

#[test]
fn files_of_version_1_stay_readable() {
    let byte = |digits: &[u8]| u8::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap();
    let file: Bytes = VERSION_1.as_bytes().chunks(2).map(byte).collect();
    let layer = small_layer();
    let expected = layer
        .entries()
        .map(|(key, lsn, value)| (key, lsn, value.clone()));
    let found = File::open(file).unwrap().everything().unwrap();
    assert_eq!(found, expected.collect::<Vec<_>>());
}

#[test]
fn a_copied_database_is_stored_as_it_always_was() {
    let key = Key::Database { spc: 1663, db: 6 };
    let value = Value::CopyOf { spc: 1700, db: 5 };
    let mut entry = Vec::new();
    let to_store = ToStore::Value(&value);
    to_store.encode((key, Lsn::new(9)), &mut entry);
    let stored_key = [8, 0, 0, 6, 0x7F, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let lsn = [9, 0, 0, 0, 0, 0, 0, 0];
    let (kind, flag) = (11, 0);
    let body = [0xA4, 6, 0, 0, 5, 0, 0, 0];
    let expected = [&stored_key[..], &lsn, &[kind, flag], &body].concat();
    assert_eq!(entry, expected);
    assert_eq!(entry.len(), to_store.entry_len());
}
