use std::{
    num::{NonZeroU32, NonZeroUsize},
    path::Path,
    time::Duration,
};

use palimpsest_api::tenant_settings::TenantSettings;
use palimpsest_settings::{PortBase, Service, duration};
use palimpsest_store::StoreLocation;
use palimpsest_types::ByteCount;
use serde::{Deserialize, Serialize};

/// Settings of a compactor.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Where to listen, as host:port; port 0 is any free one
    #[arg(long)]
    pub listen: String,
    /// Where the storage-broker is, as host:port
    #[arg(long)]
    pub broker: String,
    /// The object store: a directory, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX
    #[arg(long)]
    pub store: StoreLocation,
    /// Layers that are compacted together, at least
    #[arg(long)]
    pub compaction_threshold: NonZeroUsize,
    /// Layers that are compacted together, at most; each takes about 2 MiB while it is read
    #[arg(long)]
    pub compaction_inputs: NonZeroUsize,
    /// Compacted layers since the last image of some pages that are worth another image; many: none is made
    #[arg(long)]
    pub image_threshold: NonZeroUsize,
    /// Size that layers get; one is in memory while it is made
    #[arg(long)]
    pub target_size: ByteCount,
    /// How long a timeline is left to a compactor that does not say that it is alive
    #[arg(long, value_parser = duration::parse)]
    #[serde(with = "duration")]
    pub claim: Duration,
}

const THRESHOLD: NonZeroUsize = NonZeroUsize::new(4).expect("4 is not 0");
const INPUTS: NonZeroUsize = NonZeroUsize::new(32).expect("32 is not 0");
const IMAGES: NonZeroUsize = NonZeroUsize::new(3).expect("3 is not 0");
const MOST_INPUTS: usize = 256;
const SMALLEST: ByteCount = ByteCount::kib(64);
/// It is in memory, and goes to a bucket by one request.
const LARGEST: ByteCount = ByteCount::gib(1);
/// It is renewed three times as often, each time by a manifest.
const SHORTEST_CLAIM: Duration = Duration::from_secs(1);
const LONGEST_CLAIM: Duration = Duration::from_secs(600);

impl Settings {
    /// What holds for a tenant that has set nothing.
    pub(crate) fn tenant_defaults(&self) -> TenantSettings {
        TenantSettings {
            compaction_threshold: NonZeroU32::try_from(self.compaction_threshold).ok(),
            image_threshold: NonZeroU32::try_from(self.image_threshold).ok(),
            ..TenantSettings::default()
        }
    }
}

impl palimpsest_settings::Settings for Settings {
    const SERVICE: Option<Service> = Some(Service::Compactor);

    fn defaults(ports: PortBase) -> Self {
        Self {
            listen: ports.address(Service::Compactor),
            broker: ports.address(Service::StorageBroker),
            store: Path::new("data/store").into(),
            compaction_threshold: THRESHOLD,
            compaction_inputs: INPUTS,
            image_threshold: IMAGES,
            target_size: ByteCount::mib(128),
            claim: Duration::from_secs(30),
        }
    }

    fn listen(&self) -> Option<&str> {
        Some(&self.listen)
    }

    fn check(&self) -> Vec<(&'static str, String)> {
        let mut problems = palimpsest_service_kit::check_broker(&self.broker);
        problems.extend(self.tenant_defaults().check());
        if self.compaction_inputs < self.compaction_threshold {
            let threshold = self.compaction_threshold;
            let problem = format!("is less than compaction-threshold, {threshold}");
            problems.push(("compaction-inputs", problem));
        }
        if self.compaction_inputs.get() > MOST_INPUTS {
            let problem = format!("{MOST_INPUTS} is the most, as each takes memory");
            problems.push(("compaction-inputs", problem));
        }
        if self.target_size < SMALLEST || self.target_size > LARGEST {
            let problem = format!("give something from {SMALLEST} to {LARGEST}");
            problems.push(("target-size", problem));
        }
        if self.claim < SHORTEST_CLAIM || self.claim > LONGEST_CLAIM {
            let problem = format!("give something from {SHORTEST_CLAIM:?} to {LONGEST_CLAIM:?}");
            problems.push(("claim", problem));
        }
        problems
    }
}

impl Default for Settings {
    fn default() -> Self {
        palimpsest_settings::Settings::defaults(PortBase::default())
    }
}
