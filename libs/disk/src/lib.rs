//! The local disk, as durable state needs it.
//!
//! What a service must find again after a crash goes through [`Disk`], so that a test can take the
//! power away at any instant: [`OsDisk`] is the real one, `LossyDisk` (feature `lossy`) forgets
//! what was not synced, and on a `FullDisk` (the same) nothing more fits at any step of a write.
//! The rules that both follow are those of POSIX, read strictly:
//!
//! - bytes are durable once the file is synced, and its name once its directory is;
//! - a rename is atomic, and durable once the directory is synced;
//! - a removal that was not synced may be undone by a crash.
//!
//! Not here: anything asynchronous. Every call blocks; callers keep it off the runtime's threads.

mod disk;
#[cfg(feature = "lossy")]
mod full;
#[cfg(feature = "lossy")]
mod lossy;
mod os;

pub use disk::{Disk, DiskEntry, DiskFile, is_full};
#[cfg(feature = "lossy")]
pub use full::{DiskStep, FullDisk};
#[cfg(feature = "lossy")]
pub use lossy::{LossyDisk, Survival};
pub use os::OsDisk;
