//! `pal init`.
//!
//! A PostgreSQL is made by initdb and attached as any other is. When the object store has it, it is read no more, and goes: what was read
//! of it is what the tenant's main branch begins with.

use std::time::Duration;

use clap::Args;
use palimpsest_api::broker::{Branched, ClusterView, TimelineView};
use palimpsest_types::{Lsn, TenantId};
use serde::Serialize;
use tokio::{signal::ctrl_c, time::timeout};

use super::{
    attach::attach,
    start::{expect_passable, free_port},
    tenant::delete_and_wait,
};
use crate::{
    cli::Common,
    client::Client,
    compute::{ComputePlace, Programs, Server, first_settings},
    error::CliError,
    output::Output,
    progress::{Progress, Step},
};

/// Makes a tenant of an empty cluster.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Name of the new tenant: a letter, then letters, digits, '-' and '_'.
    pub name: String,
    /// Name of its superuser.
    #[arg(long, default_value = "postgres")]
    pub superuser: String,
    /// Where PostgreSQL's programs are.
    #[command(flatten)]
    pub programs: Programs,
    /// For initdb, as `--locale=C` or `--data-checksums` after `--`.
    #[arg(last = true)]
    pub arguments: Vec<String>,
}

/// What was made, for programs.
#[derive(Debug, Serialize)]
struct Made {
    name: String,
    tenant_id: TenantId,
    timeline_id: String,
    begins_at: Lsn,
}

/// A tenant's setting.
const LAYER_AGE: &str = "layer-age";
/// After this, who reads an empty cluster does not get any further.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn run(
    common: &Common,
    arguments: InitArgs,
    output: Output,
) -> Result<(), CliError> {
    let InitArgs { name, .. } = &arguments;
    expect_name(name)?;
    let mut client = Client::new(common)?;
    let view = client.cluster().await?;
    let place = ComputePlace::claim_first(&common.data, name)?;
    let server = Server::new(&arguments.programs, &place)?;
    server.kill().await?;
    match of_tenant(&view, name) {
        Some(timeline) if server.is_its(&timeline.source) => {
            undo(&mut client, &server, name).await?;
        }
        Some(_) => {
            place.remove()?;
            return Err(CliError::Failed {
                what: format!("there is a tenant {name} already"),
                hint: Some(
                    "choose another name; `pal branch list --tree` shows what there is".to_owned(),
                ),
            });
        }
        None => {}
    }
    place.clear()?;
    let making = make(common, &mut client, (&place, &server), &arguments);
    // Cancel-safe: what has begun is undone.
    let made = tokio::select! {
        // First: what is waited for in there says that it goes on.
        biased;
        _ = ctrl_c() => Err(CliError::Interrupted {
            what: format!("tenant {name} is not made"),
        }),
        made = making => made,
    };
    let branch = match made {
        Ok(branch) => branch,
        Err(error) => {
            let undone = undo(&mut client, &server, name).await;
            place.remove()?;
            return match undone {
                Ok(()) => Err(error),
                Err(undone) => Err(CliError::Failed {
                    what: format!(
                        "{}; and what was begun is left: {}",
                        error.in_full(),
                        undone.in_full()
                    ),
                    hint: Some(format!("`pal init {name}` again goes on from there")),
                }),
            };
        }
    };
    server.kill().await?;
    place.remove()?;
    let made = Made {
        name: name.clone(),
        tenant_id: branch.timeline.tenant,
        timeline_id: branch.timeline.timeline.to_string(),
        begins_at: branch.lsn,
    };
    if output.is_json() {
        return output.json(&made);
    }
    output.line(format!("{name} is an empty cluster, at {}", branch.lsn))?;
    output.line(format!("start it:  pal start {name}"))
}

/// Makes the cluster, and all that is kept of it.
async fn make(
    common: &Common,
    client: &mut Client,
    (place, server): (&ComputePlace, &Server),
    arguments: &InitArgs,
) -> Result<Branched, CliError> {
    let InitArgs {
        name, superuser, ..
    } = arguments;
    expect_passable(place, server)?;
    let mut progress = Progress::start();
    progress.show(&Step::new("making an empty cluster"));
    place.make_data()?;
    place.make_sockets()?;
    server.user().map_or(Ok(()), |user| place.give_to(user))?;
    server.init(superuser, &arguments.arguments).await?;
    let port = free_port()?;
    server.write("postgresql.conf", &first_settings(port, &place.sockets()))?;
    server.start().await?;
    progress.end();
    let source = server.conninfo_as(superuser, port);
    let attached = timeout(PATIENCE, attach(common, name, &source, None)).await;
    let attached = attached.map_err(|_| CliError::Failed {
        what: format!("{name} is not attached after {PATIENCE:?}"),
        hint: Some(format!(
            "wal-ingest has to run on this machine, and to reach {}",
            place.sockets().display()
        )),
    })??;
    // Nobody need wait for a layer to be worth it.
    let soon = vec![(LAYER_AGE.to_owned(), "100ms".to_owned())];
    set(client, name, soon, Vec::new()).await?;
    wait_until_stored(client, name, attached.oldest).await?;
    set(client, name, Vec::new(), vec![LAYER_AGE.to_owned()]).await?;
    // It is ours, and goes.
    let left = client.broker().leave_source(name, true).await;
    left.map_err(|error| client.refused(format!("making {name}"), error))
}

async fn set(
    client: &mut Client,
    tenant: &str,
    set: Vec<(String, String)>,
    unset: Vec<String>,
) -> Result<(), CliError> {
    let done = client
        .broker()
        .set_tenant_settings(tenant, set, unset)
        .await;
    let done = done.map_err(|error| client.refused(format!("setting up {tenant}"), error));
    done.map(drop)
}

/// Waits until the object store has what the cluster began with.
async fn wait_until_stored(client: &Client, name: &str, oldest: Lsn) -> Result<(), CliError> {
    let mut watch = client.watch()?;
    let stored = watch.until(|view| {
        let timeline = of_tenant(view, name)?;
        (timeline.status.remote_consistent >= oldest).then_some(())
    });
    let in_time = timeout(PATIENCE, stored).await.ok().flatten();
    in_time.ok_or_else(|| CliError::Failed {
        what: format!("the object store has not got what {name} begins with"),
        hint: Some("`pal status` says why".to_owned()),
    })
}

/// Leaves nothing of what has been begun, unless it was done before somebody heard of it.
async fn undo(client: &mut Client, server: &Server, name: &str) -> Result<(), CliError> {
    server.kill().await?;
    let view = client.cluster().await?;
    match of_tenant(&view, name) {
        Some(timeline) if server.is_its(&timeline.source) => {
            delete_and_wait(client, name, true).await
        }
        Some(_) | None => Ok(()),
    }
}

/// What a tenant's source is read to.
fn of_tenant<'a>(view: &'a ClusterView, name: &str) -> Option<&'a TimelineView> {
    let mut timelines = view.timelines.iter();
    timelines.find(|timeline| timeline.tenant_name == name)
}

/// It is part of a path here, before the storage-broker has seen it.
fn expect_name(name: &str) -> Result<(), CliError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    match name.bytes().all(allowed) && !name.is_empty() {
        true => Ok(()),
        false => Err(CliError::Failed {
            what: format!("{name:?} is not a name"),
            hint: Some("use a letter, then letters, digits, '-' and '_'".to_owned()),
        }),
    }
}
