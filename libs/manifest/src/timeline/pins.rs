use palimpsest_types::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};

use super::TimelineManifest;

/// An LSN that stays readable while the pin is in the manifest.
///
/// Time does not end a pin by itself, since clocks differ: an expired pin counts until somebody has
/// removed it from the manifest, and only then may its versions go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// By this it is renewed and removed.
    pub id: u128,
    /// What needs it.
    pub kind: PinKind,
    /// What it keeps readable.
    pub lsn: Lsn,
    /// When it may be removed, in milliseconds since 1970; `None`: by its owner only.
    pub expires_unix_ms: Option<u64>,
}

/// What needs a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PinKind {
    /// A branch begins here.
    Branch {
        /// The branch.
        timeline: TimelineId,
    },
    /// Somebody wants to read here for a while.
    Lease,
    /// A running PostgreSQL reads here.
    Compute,
}

/// A pin can't be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// What it should keep may be gone already.
    #[error("versions below {cutoff} may have been removed, so {lsn} can't be pinned any more")]
    BelowCutoff {
        /// What should be pinned.
        lsn: Lsn,
        /// The manifest's cutoff.
        cutoff: Lsn,
    },
    /// There are too many.
    #[error("the timeline has {MAX_PINS} pins, which is the limit; remove some first")]
    TooMany,
}

/// A manifest is written whole with every change, and a pin takes 150 bytes of it.
const MAX_PINS: usize = 16_384;

impl TimelineManifest {
    /// The pins, in the order in which they were set.
    pub fn pins(&self) -> &[Pin] {
        &self.pins
    }

    /// Whether something keeps an LSN readable, wherever the cutoff is.
    pub fn is_pinned(&self, lsn: Lsn) -> bool {
        self.pins.iter().any(|pin| pin.lsn == lsn)
    }

    /// The pin with this id.
    pub fn pin(&self, id: u128) -> Option<&Pin> {
        self.pins.iter().find(|pin| pin.id == id)
    }

    /// Sets a pin, or renews the one with this id. The cutoff may have passed its LSN if another pin, or this one
    /// before, has the same: what it keeps is still there.
    ///
    /// # Errors
    /// If the LSN is below the cutoff.
    pub fn add_pin(&mut self, pin: Pin) -> Result<(), PinError> {
        let full = self.pins.len() >= MAX_PINS;
        if pin.lsn < self.gc_cutoff && !self.is_pinned(pin.lsn) {
            return Err(PinError::BelowCutoff {
                lsn: pin.lsn,
                cutoff: self.gc_cutoff,
            });
        }
        match self.pins.iter_mut().find(|other| other.id == pin.id) {
            Some(same) => *same = pin,
            None if full => return Err(PinError::TooMany),
            None => self.pins.push(pin),
        }
        Ok(())
    }

    /// Removes a pin; whether it was there.
    pub fn remove_pin(&mut self, id: u128) -> bool {
        let before = self.pins.len();
        self.pins.retain(|pin| pin.id != id);
        self.pins.len() < before
    }

    /// Removes the leases, also of computes, that ended before a time; whether there were any. What is left of a
    /// branch is more than its pin, so that is removed by itself.
    pub fn remove_ended_leases(&mut self, before_unix_ms: u64) -> bool {
        let before = self.pins.len();
        self.pins.retain(|pin| match pin.kind {
            PinKind::Branch { .. } => true,
            PinKind::Lease | PinKind::Compute => {
                pin.expires_unix_ms.is_none_or(|end| end >= before_unix_ms)
            }
        });
        self.pins.len() < before
    }
}
