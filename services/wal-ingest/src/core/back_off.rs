//! Pauses between attempts.

use std::time::Duration;

/// From the first to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Waits longer after each failure, with jitter so that many do not come back at once.
#[derive(Debug)]
pub(super) struct BackOff {
    next: Duration,
}

impl Default for BackOff {
    fn default() -> Self {
        Self { next: BACK_OFF.0 }
    }
}

impl BackOff {
    pub(super) async fn wait(&mut self) {
        let jitter = self.next.mul_f64(rand::random::<f64>() / 2.0);
        tokio::time::sleep(self.next + jitter).await;
        self.next = (self.next * 2).min(BACK_OFF.1);
    }
}
