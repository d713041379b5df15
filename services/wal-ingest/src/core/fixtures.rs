//! For tests: a timeline that nothing runs for yet.

use std::{io, path::Path, sync::Arc};

use palimpsest_api::{
    TimelineRef,
    broker::{AssignedTask, Assignment},
    tenant_settings::TenantSettings,
};
use palimpsest_disk::OsDisk;
use palimpsest_runtime::TaskScope;
use palimpsest_store::ObjectStore;
use palimpsest_types::{TenantId, TimelineId};

use super::{
    broker::Broker,
    node::{Limits, Local, Shared},
    timeline::Timeline,
};

/// A timeline on `store`, with its local files below `directory`, whose source is not there.
pub(crate) fn timeline(store: ObjectStore, directory: &Path, limits: Limits) -> Timeline {
    timeline_of(unused_port().unwrap(), store, directory, limits)
}

/// The same, with a source at this port of the local host.
pub(crate) fn timeline_of(
    port: u16,
    store: ObjectStore,
    directory: &Path,
    limits: Limits,
) -> Timeline {
    let disk = Arc::new(OsDisk);
    let scope = TaskScope::default();
    let broker = broker(&scope);
    let local = Local {
        disk,
        directory: directory.to_owned(),
        restore_command: None,
    };
    let shared = Shared::new(store, local, limits, broker);
    let assignment = Assignment {
        timeline: TimelineRef {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
        },
        source: format!("host=127.0.0.1 port={port} user=nobody dbname=postgres"),
        slot: "palimpsest_test".to_owned(),
        task: AssignedTask::Ingest,
        writer: None,
        reattach: None,
        settings: TenantSettings::default(),
    };
    let slot = assignment.slot.parse().unwrap();
    Timeline::new(assignment, slot, Arc::new(shared), scope)
}

/// A storage-broker that is not there.
pub(crate) fn broker(scope: &TaskScope) -> Broker {
    let address = format!("127.0.0.1:{}", unused_port().unwrap());
    Broker::new(&address, scope).unwrap()
}

/// A port at which nobody listens.
fn unused_port() -> io::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}
