//! How many pages tenants are answered in a second, those that have a limit.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use palimpsest_api::broker::TenantView;
use palimpsest_types::TenantId;
use tokio::time::{Instant, sleep_until};

use super::error::ServeError;

/// Lets the requests of a tenant through one after the other, as fast as it may ask. Those of others pass at once.
#[derive(Debug, Default)]
pub(super) struct Pace {
    tenants: Mutex<HashMap<TenantId, Steps>>,
    /// Whether there are any: mostly there are none, and then requests take no lock.
    limited: AtomicBool,
}

/// One tenant's.
#[derive(Debug, Clone, Copy)]
struct Steps {
    per_second: NonZeroU32,
    /// When all that was let through is used up at this pace.
    used_up: Instant,
}

/// Who has asked for nothing lately is let through at once with what there is in this time.
const BURST: Duration = Duration::from_millis(250);
/// More is forgotten when the pace changes.
const MOST_OWED: Duration = Duration::from_secs(3600);
/// Nobody waits longer.
const PATIENCE: Duration = Duration::from_secs(10);

impl Pace {
    /// These are the tenants, and what they have set.
    pub(super) fn set(&self, tenants: &[TenantView], now: Instant) {
        let mut known = self.lock();
        let before = std::mem::take(&mut *known);
        *known = tenants
            .iter()
            .filter_map(|view| {
                let per_second = view.settings.pages_per_second?;
                let steps = before.get(&view.tenant);
                let steps = steps.map_or_else(
                    || Steps::new(per_second, now),
                    |steps| steps.at_pace(per_second, now),
                );
                Some((view.tenant, steps))
            })
            .collect();
        self.limited.store(!known.is_empty(), Ordering::Relaxed);
    }

    /// Waits until a tenant may have so many more pages.
    ///
    /// # Errors
    /// If that is too long; then it has taken nothing from others.
    pub(super) async fn wait(&self, tenant: TenantId, pages: usize) -> Result<(), ServeError> {
        if !self.limited.load(Ordering::Relaxed) {
            return Ok(());
        }
        let now = Instant::now();
        let turn = match self.lock().get_mut(&tenant) {
            None => return Ok(()),
            Some(steps) => steps.turn(pages, now).ok_or(ServeError::TooFast {
                limit: steps.per_second,
                patience: PATIENCE,
            })?,
        };
        if turn > now {
            // Whoever goes away meanwhile has had its pages.
            sleep_until(turn).await;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Steps>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Steps {
    fn new(per_second: NonZeroU32, now: Instant) -> Self {
        Self {
            per_second,
            used_up: now,
        }
    }

    /// The same at perhaps another pace: as many pages are owed as before.
    fn at_pace(self, per_second: NonZeroU32, now: Instant) -> Self {
        if per_second == self.per_second {
            return self;
        }
        let owed = self.used_up.saturating_duration_since(now);
        let owed = owed.saturating_mul(self.per_second.get()) / per_second.get();
        Self {
            per_second,
            used_up: now + owed.min(MOST_OWED),
        }
    }

    /// When so many pages may be had; `None` if that is too far away.
    fn turn(&mut self, pages: usize, now: Instant) -> Option<Instant> {
        // Time that nobody used counts for no more than a burst.
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let turn = self.used_up.max(earliest);
        if turn.saturating_duration_since(now) > PATIENCE {
            return None;
        }
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        self.used_up = turn + Duration::from_secs(1) * pages / self.per_second.get();
        Some(turn)
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_api::tenant_settings::TenantSettings;

    use super::*;

    const LIMITED: TenantId = TenantId::from_bytes([1; 16]);
    const OTHER: TenantId = TenantId::from_bytes([2; 16]);

    fn views(limit: Option<u32>) -> Vec<TenantView> {
        let view = |tenant, pages_per_second| TenantView {
            tenant,
            name: "shop".to_owned(),
            settings: TenantSettings {
                pages_per_second,
                ..TenantSettings::default()
            },
        };
        let limit = limit.and_then(NonZeroU32::new);
        vec![view(LIMITED, limit), view(OTHER, None)]
    }

    #[tokio::test(start_paused = true)]
    async fn p7_a_tenant_has_its_pages_per_second_and_others_do_not_wait() {
        let pace = Pace::default();
        let begun = Instant::now();
        pace.set(&views(Some(100)), begun);
        for _ in 0..100 {
            pace.wait(LIMITED, 5).await.unwrap();
        }
        let took = begun.elapsed();
        let expected = Duration::from_secs_f64(495.0 / 100.0);
        assert!(took <= expected && took + 2 * BURST >= expected, "{took:?}");
        let now = Instant::now();
        pace.wait(OTHER, 1 << 20).await.unwrap();
        pace.set(&views(None), now);
        pace.wait(LIMITED, 1 << 20).await.unwrap();
        assert_eq!(Instant::now(), now);
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_wait_too_long_is_refused_and_takes_nothing() {
        let pace = Pace::default();
        pace.set(&views(Some(10)), Instant::now());
        pace.wait(LIMITED, 200).await.unwrap();
        for _ in 0..3 {
            let error = pace.wait(LIMITED, 100).await.unwrap_err();
            assert!(
                error.to_string().contains("10 pages in a second"),
                "{error}"
            );
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        pace.wait(LIMITED, 1).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn another_limit_holds_from_then_on() {
        let pace = Pace::default();
        pace.set(&views(Some(1)), Instant::now());
        pace.wait(LIMITED, 5000).await.unwrap();
        assert!(pace.wait(LIMITED, 1).await.is_err());
        pace.set(&views(Some(1000)), Instant::now());
        let begun = Instant::now();
        pace.wait(LIMITED, 1000).await.unwrap();
        let owed = begun.elapsed();
        let expected = Duration::from_secs(4)..=Duration::from_secs(5);
        assert!(
            expected.contains(&owed),
            "five thousand pages at the new pace: {owed:?}"
        );
        pace.set(&views(Some(1)), Instant::now());
        assert!(pace.wait(LIMITED, 1).await.is_err(), "a thousand are owed");
    }
}
