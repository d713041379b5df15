//! Which records several entries refer to.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashSet},
};

use palimpsest_types::Lsn;
use palimpsest_wal::{RawRecord, Value};

/// Records that more than one of these values refers to, by where they start.
///
/// The values are counted, which takes a pass over them. The record's own block references would
/// tell without one, but not the truth: a page that it carries whole is a [`Value::Image`], a
/// visibility map page that it changes may be named nowhere in it, and a layer of some keys only has
/// some of the pages.
///
/// It remembers 8 bytes of each record, and keeps those that are shared, which are handles if the
/// values are in memory anyway. What starts at the same LSN is taken for the same record; whoever
/// uses the result must compare.
pub(super) fn shared_records<V: Borrow<Value>>(
    values: impl Iterator<Item = V>,
) -> BTreeMap<Lsn, RawRecord> {
    let mut met = HashSet::new();
    let mut shared = BTreeMap::new();
    for value in values {
        let Value::Record { record, .. } = value.borrow() else {
            continue;
        };
        if !met.insert(record.start_lsn) {
            shared
                .entry(record.start_lsn)
                .or_insert_with(|| record.clone());
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_record_is_shared_from_the_second_reference_on() {
        let record = |start| RawRecord {
            start_lsn: Lsn::new(start),
            end_lsn: Lsn::new(start + 8),
            bytes: Bytes::from_static(b"record"),
        };
        let value = |start| Value::Record {
            will_init: false,
            record: record(start),
        };
        let values = [value(16), value(8), Value::ZeroPage, value(16), value(24)];
        let shared = shared_records(values.iter());
        assert_eq!(shared, BTreeMap::from([(Lsn::new(16), record(16))]));
    }
}
