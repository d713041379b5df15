//! Buckets of providers: how they are reached, and who asks.

use std::{fmt, sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, S3ConditionalPut},
    azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
    prefix::PrefixStore,
};

use crate::location::{Bucket, Provider};

/// Variables of an environment, which say how providers are reached and who asks: the standard ones
/// of each. No setting holds any of it, so that no settings file, log or listing of processes does.
#[derive(Clone)]
pub struct Variables(Vec<(String, String)>);

type Opened = Arc<dyn ObjectStore>;

/// A connection that takes longer is none.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How often and for how long the client itself repeats what may pass by itself.
const REPEATS: usize = 4;
const REPEAT_LIMIT: Duration = Duration::from_secs(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// The least that an answer is waited for, and the slowest network that is good enough.
const PATIENCE: Duration = Duration::from_secs(30);
const SLOWEST_PER_SECOND: u64 = 1 << 20;

impl Variables {
    /// Those of this process.
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        std::env::vars_os().filter_map(text).collect()
    }

    /// Lays those of a provider over what a builder has. Others of its prefix are no business of
    /// ours: other programs use them.
    fn apply<B, K: std::str::FromStr>(
        &self,
        provider: Provider,
        builder: B,
        with: fn(B, K, String) -> B,
    ) -> B {
        let own = self.0.iter().filter_map(|(name, value)| {
            name.strip_prefix(provider.variables())?;
            let key = name.to_ascii_lowercase().parse().ok()?;
            Some((key, value.clone()))
        });
        own.fold(builder, |builder, (key, value)| with(builder, key, value))
    }
}

impl FromIterator<(String, String)> for Variables {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

/// Without values: some are secret.
impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

/// A client of a bucket, which sees only what is below its prefix. It asks nothing yet.
pub(crate) fn open(bucket: &Bucket, variables: &Variables) -> object_store::Result<Opened> {
    // An error says that this process has one already, which will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match bucket.provider() {
        Provider::S3 => {
            let builder = AmazonS3Builder::new()
                .with_client_options(client())
                .with_retry(repeats());
            let builder = variables.apply(Provider::S3, builder, AmazonS3Builder::with_config);
            // What we depend on is not up to the environment.
            let store = builder
                .with_bucket_name(bucket.name())
                .with_conditional_put(S3ConditionalPut::ETagMatch)
                .build()?;
            Ok(below_prefix(bucket, store))
        }
        Provider::Google => {
            let builder = GoogleCloudStorageBuilder::new()
                .with_client_options(client())
                .with_retry(repeats());
            let with = GoogleCloudStorageBuilder::with_config;
            let builder = variables.apply(Provider::Google, builder, with);
            Ok(below_prefix(
                bucket,
                builder.with_bucket_name(bucket.name()).build()?,
            ))
        }
        Provider::Azure => {
            let builder = MicrosoftAzureBuilder::new()
                .with_client_options(client())
                .with_retry(repeats());
            let with = MicrosoftAzureBuilder::with_config;
            let builder = variables.apply(Provider::Azure, builder, with);
            Ok(below_prefix(
                bucket,
                builder.with_container_name(bucket.name()).build()?,
            ))
        }
    }
}

/// How long an answer is waited for that comes with so many bytes, or after them.
pub(crate) fn patience(bytes: u64) -> Duration {
    PATIENCE + Duration::from_secs(bytes / SLOWEST_PER_SECOND)
}

fn below_prefix(bucket: &Bucket, store: impl ObjectStore) -> Opened {
    match bucket.prefix().is_root() {
        true => Arc::new(store),
        false => Arc::new(PrefixStore::new(store, bucket.prefix().clone())),
    }
}

/// The client's own limit knows nothing of sizes, so ours takes its place.
fn client() -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(CONNECT_LIMIT)
        .with_timeout_disabled()
}

fn repeats() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            max_backoff: LONGEST_PAUSE,
            ..BackoffConfig::default()
        },
        max_retries: REPEATS,
        retry_timeout: REPEAT_LIMIT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        let secret = ("AWS_SECRET_ACCESS_KEY".to_owned(), "hush".to_owned());
        let variables = Variables::from_iter([secret]);
        assert_eq!(format!("{variables:?}"), "[\"AWS_SECRET_ACCESS_KEY\"]");
    }

    #[test]
    fn the_more_is_carried_the_longer_it_may_take() {
        assert_eq!(patience(0), PATIENCE);
        assert_eq!(patience(256 << 20), PATIENCE + Duration::from_secs(256));
    }
}
