//! Caches whose values are loaded by one for all who want them.

use std::{hash::Hash, sync::Arc};

use quick_cache::{Weighter, sync::Cache};

use crate::error::ReadError;

/// What a load has come to.
///
/// A failure is in the cache only until all who wait for it know of it, so that a store that takes
/// long to fail makes them wait once, not one after the other.
#[derive(Debug, Clone)]
pub(crate) enum Loaded<V> {
    Here(V),
    Failed(Arc<ReadError>),
}

impl<V> Loaded<V> {
    /// The value, if it is here.
    pub(crate) fn value(self) -> Option<V> {
        match self {
            Self::Here(value) => Some(value),
            Self::Failed(_) => None,
        }
    }

    fn is_failed(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

impl<V> From<Loaded<V>> for Result<V, ReadError> {
    fn from(loaded: Loaded<V>) -> Self {
        match loaded {
            Loaded::Here(value) => Ok(value),
            Loaded::Failed(error) => Err(ReadError::clone(&error)),
        }
    }
}

/// The value of a key, loaded by `load` unless it is here or being loaded. Who waits for another's
/// load that fails has the same error; who comes later tries again.
///
/// Cancel-safe: if who loads is dropped, one of those who wait loads instead.
pub(crate) async fn get_or_load<K, V, W, L>(
    cache: &Cache<K, Loaded<V>, W>,
    key: &K,
    load: impl FnOnce() -> L,
) -> Result<V, ReadError>
where
    L: Future<Output = Result<V, ReadError>>,
    K: Hash + Eq + Clone,
    V: Clone,
    W: Weighter<K, Loaded<V>> + Clone,
{
    let guard = match cache.get_value_or_guard_async(key).await {
        Ok(loaded) => return loaded.into(),
        Err(guard) => guard,
    };
    // Apart: who loads has a large state, of kilobytes. Were that a part of this one, all who ask would carry a place for it,
    // and move it about, who mostly find what they ask for.
    match Box::pin(load()).await {
        Ok(value) => {
            // It may be refused, as too large: then it is not cached.
            let _ = guard.insert(Loaded::Here(value.clone()));
            Ok(value)
        }
        Err(error) => {
            let _ = guard.insert(Loaded::Failed(Arc::new(error.clone())));
            cache.remove_if(key, Loaded::is_failed);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use futures::future::{join, join_all};

    use super::*;

    const WAITERS: usize = 8;
    const A_WHILE: Duration = Duration::from_secs(30);

    /// A cache, and how often something was loaded.
    struct Fixture {
        cache: Cache<u8, Loaded<u8>>,
        loads: AtomicUsize,
    }

    impl Fixture {
        fn new() -> Self {
            let (cache, loads) = (Cache::new(10), AtomicUsize::new(0));
            Self { cache, loads }
        }

        fn loads(&self) -> usize {
            self.loads.load(Ordering::Relaxed)
        }

        /// Asks for the value, which takes a while to load.
        async fn get(&self, value: Result<u8, ()>) -> Result<u8, String> {
            let load = async || {
                self.loads.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(A_WHILE).await;
                value.map_err(|()| ReadError::NotAsListed {
                    layer: self.loads().to_string(),
                    problem: "none",
                })
            };
            let found = get_or_load(&self.cache, &7, load).await;
            found.map_err(|error| error.to_string())
        }

        async fn get_all(&self, value: Result<u8, ()>) -> Vec<Result<u8, String>> {
            join_all((0..WAITERS).map(|_| self.get(value))).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_that_fails_has_failed_for_all_who_waited_and_nobody_else() {
        let fixture = Fixture::new();
        let begun = tokio::time::Instant::now();
        let failed = fixture.get_all(Err(())).await;
        assert_eq!(begun.elapsed(), A_WHILE, "all waited once");
        assert_eq!(fixture.loads(), 1);
        assert!(failed.iter().all(|one| one.is_err() && *one == failed[0]));
        assert_eq!(fixture.cache.len(), 0);
        assert_eq!(
            fixture.get(Ok(3)).await,
            Ok(3),
            "who comes later tries again"
        );
        assert_eq!(fixture.loads(), 2);
    }

    #[test]
    fn who_asks_carries_no_place_for_the_state_of_a_load() {
        let cache: Cache<u8, Loaded<u8>> = Cache::new(10);
        let small = get_or_load(&cache, &7, async || Ok(3));
        let large = get_or_load(&cache, &7, async || {
            let state = [3; 4 << 10];
            tokio::task::yield_now().await;
            Ok(state.iter().copied().max().unwrap_or_default())
        });
        assert_eq!(size_of_val(&small), size_of_val(&large));
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_that_succeeds_is_one_for_all() {
        let fixture = Fixture::new();
        assert_eq!(fixture.get_all(Ok(3)).await, vec![Ok(3); WAITERS]);
        assert_eq!(fixture.get(Err(())).await, Ok(3));
        assert_eq!(fixture.loads(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn when_who_loads_goes_away_another_loads() {
        for value in [Ok(3), Err(())] {
            let fixture = Fixture::new();
            let first = tokio::time::timeout(A_WHILE / 2, fixture.get(Ok(9)));
            let (first, others) = join(first, fixture.get_all(value)).await;
            assert!(first.is_err(), "it was dropped");
            assert_eq!(fixture.loads(), 2);
            assert!(others.iter().all(|one| *one == others[0]));
            assert_eq!(others[0].clone().ok(), value.ok());
        }
    }
}
