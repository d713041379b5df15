//! `pal status`.

use palimpsest_store::StoreLocation;
use serde::Serialize;

use crate::{
    cli::Common,
    client::Client,
    error::CliError,
    output::Output,
    views::{MEMBER_COLUMNS, MemberLine, TIMELINE_COLUMNS, TimelineLine},
};

#[derive(Debug, Serialize)]
struct Status {
    storage_broker: String,
    members: Vec<MemberLine>,
    timelines: Vec<TimelineLine>,
    object_store: String,
}

pub(crate) async fn run(common: &Common, output: Output) -> Result<(), CliError> {
    let mut client = Client::new(common)?;
    let view = client.cluster().await?;
    let status = Status {
        storage_broker: client.endpoint().to_owned(),
        members: MemberLine::all(&view),
        timelines: TimelineLine::all(&view),
        object_store: object_store(&client),
    };
    if output.is_json() {
        return output.json(&status);
    }
    output.line(format!("storage-broker at {}", status.storage_broker))?;
    if status.members.is_empty() {
        output.line("no other service has registered yet")?;
    } else {
        output.table(
            &MEMBER_COLUMNS,
            status.members.iter().map(MemberLine::cells).collect(),
        )?;
    }
    output.line("")?;
    if status.timelines.is_empty() {
        output.line("no timelines; attach a PostgreSQL: pal attach NAME --source CONNINFO")?;
    } else {
        let rows = status.timelines.iter().map(TimelineLine::cells).collect();
        output.table(&TIMELINE_COLUMNS, rows)?;
    }
    for remark in status.timelines.iter().flat_map(TimelineLine::remarks) {
        output.line(format!("! {remark}"))?;
    }
    output.line("")?;
    output.line(format!("object store: {}", status.object_store))
}

/// Whether more than one disk has to be lost, as far as that is known here.
fn object_store(client: &Client) -> String {
    match client.local().map(|local| &local.store) {
        Some(StoreLocation::Directory(path)) => format!(
            "{}, a directory of this machine: it is lost with its disk",
            path.display()
        ),
        Some(StoreLocation::Bucket(bucket)) => {
            format!("{bucket}, a bucket: it does not depend on this machine's disks")
        }
        None => "not known here: the setting `store` of the services says which".to_owned(),
    }
}
