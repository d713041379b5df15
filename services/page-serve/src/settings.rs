use std::{path::Path, time::Duration};

use palimpsest_api::page::LSN_PATIENCE;
use palimpsest_settings::{PortBase, Service, duration};
use palimpsest_store::StoreLocation;
use palimpsest_types::ByteCount;
use serde::{Deserialize, Serialize};

use crate::core::AnswerMemory;

/// Settings of a page-serve.
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
    /// Memory for pages that were made, of all timelines
    #[arg(long)]
    pub page_cache: ByteCount,
    /// Memory for blocks of layers, of all timelines
    #[arg(long)]
    pub block_cache: ByteCount,
    /// Memory for changes that no layer has yet, of all timelines
    #[arg(long)]
    pub tail_memory: ByteCount,
    /// Memory for answers that are being made or wait for their clients, of all of them; at least 16MiB
    #[arg(long)]
    pub answer_memory: AnswerMemory,
    /// How long a request waits for its LSN to arrive
    #[arg(long, value_parser = duration::parse)]
    #[serde(with = "duration")]
    pub lsn_patience: Duration,
}

impl palimpsest_settings::Settings for Settings {
    const SERVICE: Option<Service> = Some(Service::PageServe);

    fn defaults(ports: PortBase) -> Self {
        Self {
            listen: ports.address(Service::PageServe),
            broker: ports.address(Service::StorageBroker),
            store: Path::new("data/store").into(),
            page_cache: ByteCount::mib(256),
            block_cache: ByteCount::mib(256),
            // As much as wal-ingest's, which counts the same changes.
            tail_memory: ByteCount::gib(1),
            answer_memory: AnswerMemory::DEFAULT,
            lsn_patience: LSN_PATIENCE,
        }
    }

    fn listen(&self) -> Option<&str> {
        Some(&self.listen)
    }

    fn check(&self) -> Vec<(&'static str, String)> {
        palimpsest_service_kit::check_broker(&self.broker)
    }
}

impl Default for Settings {
    fn default() -> Self {
        palimpsest_settings::Settings::defaults(PortBase::default())
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_settings::{Problem, Problems, Sources, merge};

    use super::*;

    #[test]
    fn too_little_memory_for_answers_is_refused_with_the_setting_and_the_least_value() {
        let asked = |size: &str| {
            let flag = ("answer-memory".to_owned(), size.to_owned());
            merge(
                &Settings::default(),
                &Sources::default().with_flags(vec![flag]),
            )
        };
        let settings = asked("16MiB").unwrap().settings;
        assert_eq!(settings.answer_memory, AnswerMemory::LEAST);
        let Problems(problems) = asked("8MiB").unwrap_err();
        let told: Vec<_> = problems.iter().map(Problem::in_full).collect();
        assert_eq!(told.len(), 1);
        for part in [
            "--answer-memory",
            "8MiB is too little",
            "to be 16MiB at least",
        ] {
            assert!(told[0].contains(part), "{told:?}");
        }
    }
}
