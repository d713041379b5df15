use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use palimpsest_api::tenant_settings::TenantSettings;
use palimpsest_settings::{PortBase, Service, duration};
use palimpsest_store::StoreLocation;
use palimpsest_types::{ByteCount, Percent};
use serde::{Deserialize, Serialize};

use crate::core::RestoreCommand;

/// Settings of a wal-ingest.
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
    /// Directory of the WAL that this node keeps
    #[arg(long)]
    pub data: PathBuf,
    /// Memory for changes, of all timelines
    #[arg(long)]
    pub memory: ByteCount,
    /// Local disk for WAL and layers that the object store does not have yet, of all timelines; when
    /// it is used up, they pause
    #[arg(long)]
    pub local_disk: ByteCount,
    /// Changes that become one layer, as they are in memory
    #[arg(long)]
    pub layer_size: ByteCount,
    /// Changes become a layer after so long, however few they are
    #[arg(long, value_parser = duration::parse)]
    #[serde(with = "duration")]
    pub layer_age: Duration,
    /// WAL that a slot of ours may hold back on the source's disk before it is dropped
    #[arg(long)]
    pub slot_retention_limit: ByteCount,
    /// A shell's command that fetches WAL which a source has removed from where that archives it: it copies file %f to %p, as PostgreSQL's
    /// restore_command, and ends by a number from 1 to 125 if there is no such file. In its environment: PALIMPSEST_SLOT,
    /// PALIMPSEST_SYSTEM_IDENTIFIER
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_command: Option<String>,
    /// How long a WAL file that restore-command does not find is asked for before it is believed to be lost
    #[arg(long, value_parser = duration::parse)]
    #[serde(with = "duration")]
    pub restore_patience: Duration,
    /// At shutdown, time for changes to reach the object store, of all timelines; 0s leaves them on
    /// the local disk, where the next start finds them, as it does what takes longer
    #[arg(long, value_parser = duration::parse)]
    #[serde(with = "duration")]
    pub flush_at_shutdown: Duration,
}

/// With less, timelines would be paused for ever.
const LEAST_MEMORY: ByteCount = ByteCount::mib(16);
/// Less than the storage-broker waits for a heartbeat: then it gives the timelines to others.
const LONGEST_FLUSH: Duration = Duration::from_secs(4);
/// Some segments of the usual size.
const LEAST_DISK: ByteCount = ByteCount::mib(64);

impl Settings {
    /// How WAL is fetched that a source has no more.
    pub(crate) fn restore(&self) -> Option<RestoreCommand> {
        let command = self.restore_command.clone()?;
        Some(RestoreCommand::new(command, self.restore_patience))
    }

    /// What holds for a tenant that has set nothing.
    pub(crate) fn tenant_defaults(&self) -> TenantSettings {
        TenantSettings {
            layer_size: Some(self.layer_size),
            layer_age: Some(self.layer_age),
            slot_retention_limit: Some(self.slot_retention_limit),
            reattach_after_drop: Some(true),
            memory_share: Some(Percent::WHOLE),
            ..TenantSettings::default()
        }
    }
}

impl palimpsest_settings::Settings for Settings {
    const SERVICE: Option<Service> = Some(Service::WalIngest);

    fn defaults(ports: PortBase) -> Self {
        Self {
            listen: ports.address(Service::WalIngest),
            broker: ports.address(Service::StorageBroker),
            store: Path::new("data/store").into(),
            data: "data/wal-ingest".into(),
            memory: ByteCount::gib(1),
            local_disk: ByteCount::gib(20),
            layer_size: ByteCount::mib(256),
            layer_age: Duration::from_secs(300),
            slot_retention_limit: ByteCount::gib(10),
            restore_command: None,
            restore_patience: Duration::from_secs(600),
            flush_at_shutdown: LONGEST_FLUSH,
        }
    }

    fn listen(&self) -> Option<&str> {
        Some(&self.listen)
    }

    fn check(&self) -> Vec<(&'static str, String)> {
        let mut wrong = palimpsest_service_kit::check_broker(&self.broker);
        wrong.extend(self.tenant_defaults().check());
        let least = [
            ("memory", self.memory, LEAST_MEMORY),
            ("local-disk", self.local_disk, LEAST_DISK),
        ];
        for (name, value, least) in least {
            if value < least {
                wrong.push((
                    name,
                    format!("{value} is too little to work with; give it at least {least}"),
                ));
            }
        }
        if self.restore().is_some_and(|command| !command.is_told_all()) {
            let problem = "say which file by %f, and where to put it by %p".to_owned();
            wrong.push(("restore-command", problem));
        }
        if self.flush_at_shutdown > LONGEST_FLUSH {
            let problem = format!(
                "others take over the timelines after that; give at most {LONGEST_FLUSH:?}"
            );
            wrong.push(("flush-at-shutdown", problem));
        }
        wrong
    }
}

impl Default for Settings {
    fn default() -> Self {
        palimpsest_settings::Settings::defaults(PortBase::default())
    }
}
