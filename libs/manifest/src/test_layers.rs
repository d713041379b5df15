//! Layers for tests.

use palimpsest_types::{BlockNumber, ByteCount, Fork, Key, Lsn, RelTag, WriterEpoch};

use crate::layer_entry::{KeySpan, LayerEntry, LayerKind, LsnSpan};

pub(crate) fn delta(name: &str, after: u64, up_to: u64) -> LayerEntry {
    let (after, up_to) = (Lsn::new(after), Lsn::new(up_to));
    layer(name, LayerKind::Delta(LsnSpan { after, up_to }))
}

pub(crate) fn base(name: &str, lsn: u64) -> LayerEntry {
    layer(name, LayerKind::Base(Lsn::new(lsn)))
}

pub(crate) fn image(name: &str, lsn: u64) -> LayerEntry {
    LayerEntry {
        keys: KeySpan::IMAGED[0],
        ..layer(name, LayerKind::Image(Lsn::new(lsn)))
    }
}

fn layer(name: &str, kind: LayerKind) -> LayerEntry {
    let rel = RelTag {
        spc: 1663,
        db: 5,
        rel: 16384,
        fork: Fork::Main,
    };
    LayerEntry {
        name: name.to_owned(),
        kind,
        keys: KeySpan {
            first: Key::RelSize(rel),
            last: Key::RelBlock(rel, BlockNumber::new(9)),
        },
        size: ByteCount::kib(8),
        entries: 10,
        level: 0,
        epoch: WriterEpoch::FIRST,
    }
}
