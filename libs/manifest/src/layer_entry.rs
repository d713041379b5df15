use palimpsest_types::{ByteCount, Fork, Key, Lsn, Oid, RelTag, SlruKind, WriterEpoch};
use serde::{Deserialize, Serialize};

/// One layer file, below the timeline's `layers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerEntry {
    /// Its file name; holds the epoch and a random part, never reused.
    pub name: String,
    /// What it holds of its keys.
    pub kind: LayerKind,
    /// The keys that it may hold.
    pub keys: KeySpan,
    /// Length of the file.
    pub size: ByteCount,
    /// Number of versions in it.
    pub entries: u64,
    /// How often its content was compacted; 0 as written from the WAL or the base backup.
    pub level: u8,
    /// The writer that made it, or on whose layers the compactor made it.
    pub epoch: WriterEpoch,
}

/// What a layer holds of its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// A part of a base backup: some keys, in the form of that, as they were at this LSN. All such
    /// layers of a timeline together are whole.
    ///
    /// Called an image in files, from when there was no other.
    #[serde(rename = "image")]
    Base(Lsn),
    /// Each of its keys as it is at this LSN; one that is missing does not exist there. It has the form
    /// of a delta layer of this one LSN, in which nothing needs what is older.
    #[serde(rename = "whole")]
    Image(Lsn),
    /// All changes in this span.
    Delta(LsnSpan),
}

/// LSNs after one and up to another, which is a span of changes: a change has its record's *end* as
/// LSN, so what follows a state at L begins after L.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LsnSpan {
    /// Exclusive.
    pub after: Lsn,
    /// Inclusive.
    pub up_to: Lsn,
}

/// The keys from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySpan {
    /// Lowest key.
    #[serde(with = "key_as_hex")]
    pub first: Key,
    /// Highest key.
    #[serde(with = "key_as_hex")]
    pub last: Key,
}

const FIRST_REL: RelTag = RelTag {
    spc: 0,
    db: 0,
    rel: 0,
    fork: Fork::Main,
};

impl LayerEntry {
    /// The LSN up to which it says something.
    pub fn up_to(&self) -> Lsn {
        match self.kind {
            LayerKind::Base(lsn) | LayerKind::Image(lsn) => lsn,
            LayerKind::Delta(span) => span.up_to,
        }
    }

    /// The first LSN that sees something of it.
    pub fn seen_from(&self) -> Lsn {
        match self.kind {
            LayerKind::Base(lsn) | LayerKind::Image(lsn) => lsn,
            LayerKind::Delta(span) => Lsn::new(span.after.get().saturating_add(1)),
        }
    }

    /// Whether these are changes as they were written from WAL, which nobody has compacted yet.
    pub fn is_written(&self) -> bool {
        self.level == 0 && matches!(self.kind, LayerKind::Delta(_))
    }

    /// By this a manifest's layers are sorted: LSN, where of one LSN the shorter layer is last, and
    /// an image after the changes that lead to it.
    pub(crate) fn order(&self) -> (Lsn, Lsn, &str) {
        let begin = match self.kind {
            LayerKind::Base(lsn) | LayerKind::Image(lsn) => lsn,
            LayerKind::Delta(span) => span.after,
        };
        (self.up_to(), begin, &self.name)
    }
}

impl LsnSpan {
    /// This LSN alone; empty if there is none below it.
    pub fn only(lsn: Lsn) -> Self {
        let after = Lsn::new(lsn.get().saturating_sub(1));
        Self { after, up_to: lsn }
    }

    /// Whether both have an LSN.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.after < other.up_to && other.after < self.up_to
    }

    /// Of several, one that an LSN is inside of: behind where it begins, and before its end. Of those the one that ends
    /// last.
    pub fn around(spans: &[Self], lsn: Lsn) -> Option<Self> {
        let inside = |span: &&Self| span.after < lsn && lsn < span.up_to;
        let around = spans.iter().filter(inside);
        around.max_by_key(|span| span.up_to).copied()
    }

    /// Whether there is any LSN in it.
    pub fn is_empty(&self) -> bool {
        self.up_to <= self.after
    }
}

impl KeySpan {
    /// Keys of which there are images. Of the others there are few, or their LSNs are looked for.
    pub const IMAGED: [Self; 2] = [
        Self {
            first: Key::RelSize(FIRST_REL),
            last: Key::RelMap {
                spc: Oid::MAX,
                db: Oid::MAX,
            },
        },
        Self {
            first: Key::SlruSegment(SlruKind::Clog, 0),
            last: Key::SlruSegment(SlruKind::CommitTs, u32::MAX),
        },
    ];

    /// The keys that are in both.
    pub fn and(&self, other: &Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let last = self.last.min(other.last);
        (first <= last).then_some(Self { first, last })
    }

    /// Whether `key` is in it.
    pub fn contains(&self, key: Key) -> bool {
        self.first <= key && key <= self.last
    }
}

impl std::fmt::Display for LsnSpan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({}, {}]", self.after, self.up_to)
    }
}

/// A key as hex digits of its encoding, which sort as keys do.
mod key_as_hex {
    use palimpsest_types::Key;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(key: &Key, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(key.to_bytes()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Key, D::Error> {
        let text = String::deserialize(from)?;
        let mut bytes = [0; Key::LEN];
        hex::decode_to_slice(&text, &mut bytes).map_err(D::Error::custom)?;
        Key::from_bytes(&bytes).map_err(D::Error::custom)
    }
}
