//! A file as the first version of the format wrote it. It must be read for as long as the program
//! claims to read that version; what is written today may differ, as compressors do.

use super::{sample::small_layer, *};

/// [`small_layer`], in hexadecimal digits.
const VERSION_1: &str = "\
    50414c44454c5441010000000000000031f00300010013f80800f00e19000000612073706c6974206368616e\
    6765732074776f207061676573d1010000067f0000000500004000010021f80307003000070009000e200022\
    280420003c0900023c002001f03300630000000301e80a00041200ae06000000696e73657274360004720003\
    59002f00005a000013181d001101a7001f0901002c0d840015028400110181000f840001230220840011051a\
    0103e100080200032000110220000a020013081c00c1060102000000bc020000bd023100047e010302001310\
    2800900800030000006d6170290000002d000000fe1bdd8801000000010000067f0000000500004000000000\
    0000f803000000000000040000067f000000050000000000000000001004000000000000af000000a1010000\
    d40f4bb10a0000000700000000000000e80300000000000028040000000000000a00000000000000e8000000\
    0000000001000000010000000092ddd4010000001e504afd";

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
