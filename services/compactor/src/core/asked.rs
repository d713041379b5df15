use std::sync::atomic::{AtomicUsize, Ordering};

/// How many wait because somebody asked them to.
#[derive(Debug, Default)]
pub(super) struct Asked(AtomicUsize);

/// One of them, as long as it lives.
#[derive(Debug)]
pub(super) struct Asking<'a>(&'a Asked);

impl Asked {
    /// Begins to wait.
    pub(super) fn enter(&self) -> Asking<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Asking(self)
    }

    /// Whether anybody waits.
    pub(super) fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
