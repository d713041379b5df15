//! Which bytes of a file are durable.

use rand::{Rng, RngExt as _};

/// What is known of a file's bytes beside those that the real file has now.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    /// So many bytes from the beginning are durable as they are now.
    synced: usize,
    /// Durable bytes after those, which were cut off and not synced since.
    cut_off: Vec<u8>,
    /// The whole content, if the file has no name any more.
    removed: Option<Vec<u8>>,
}

impl Content {
    /// A file whose `len` bytes have always been there.
    pub(super) fn found(len: usize) -> Self {
        Self {
            synced: len,
            ..Self::default()
        }
    }

    /// The file has `len` bytes and was synced.
    pub(super) fn sync(&mut self, len: usize) {
        self.synced = len;
        self.cut_off.clear();
    }

    /// The file, now `bytes`, is about to be cut to `len` bytes.
    pub(super) fn cut(&mut self, bytes: &[u8], len: usize) {
        let synced = self.synced.min(bytes.len());
        if len < synced {
            let mut lost = bytes[len..synced].to_vec();
            lost.append(&mut self.cut_off);
            self.cut_off = lost;
            self.synced = len;
        }
    }

    /// The file, now `bytes`, is about to lose its name.
    pub(super) fn remove(&mut self, bytes: Vec<u8>) {
        self.removed = Some(bytes);
    }

    /// The bytes of a file without a name.
    pub(super) fn removed(&self) -> Option<&[u8]> {
        self.removed.as_deref()
    }

    /// What a power cut leaves of `bytes`: what is durable; by chance instead what was there, up
    /// to some byte after that.
    pub(super) fn after_power_cut(&self, bytes: &[u8], chance: Option<&mut impl Rng>) -> Vec<u8> {
        let synced = self.synced.min(bytes.len());
        if let Some(chance) = chance
            && (self.cut_off.is_empty() || chance.random_bool(0.5))
        {
            let kept = chance.random_range(synced..=bytes.len());
            return bytes[..kept].to_vec();
        }
        let mut left = bytes[..synced].to_vec();
        left.extend_from_slice(&self.cut_off);
        left
    }
}
