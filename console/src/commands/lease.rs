//! `pal lease`.

use clap::{Args, Subcommand};
use palimpsest_api::{
    broker::{ClusterView, TimelineView},
    lease::{Lease, LeaseClient},
};
use palimpsest_types::{ErrorKind, LeaseId, Lsn};
use serde::Serialize;

use crate::{
    cli::Common,
    client::{Client, find, full_name},
    error::CliError,
    moment::{Moment, shown},
    output::{Column, Output},
    point::point,
};

/// Commands about leases.
#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// Keep a timeline as it was at an LSN or time readable for a while.
    Take(TakeArgs),
    /// Let a lease last longer.
    Extend {
        /// TENANT, TENANT/TIMELINE or TIMELINE.
        name: String,
        /// As `take` and `list` tell it.
        lease: LeaseId,
        /// How long from now it lasts at least, as 24h or 7d; at most 30d.
        #[arg(long = "for", value_name = "DURATION", default_value = "1h")]
        length: humantime::Duration,
    },
    /// List leases.
    List {
        /// TENANT, TENANT/TIMELINE or TIMELINE; all without it.
        name: Option<String>,
    },
    /// End a lease before its time.
    Drop {
        /// TENANT, TENANT/TIMELINE or TIMELINE.
        name: String,
        /// As `take` and `list` tell it.
        lease: LeaseId,
    },
}

/// Takes a lease.
#[derive(Debug, Args)]
pub struct TakeArgs {
    /// TENANT, TENANT/TIMELINE or TIMELINE.
    pub name: String,
    /// An LSN, or a time with its zone; the newest without it.
    #[arg(long, value_name = "LSN|TIME")]
    pub at: Option<Moment>,
    /// How long it lasts, as 24h or 7d; at most 30d.
    #[arg(long = "for", value_name = "DURATION", default_value = "1h")]
    pub length: humantime::Duration,
}

/// A lease, for people and programs.
#[derive(Debug, Serialize)]
struct LeaseLine {
    lease: String,
    timeline: String,
    tenant_id: String,
    timeline_id: String,
    lsn: Lsn,
    until: String,
}

const COLUMNS: [Column; 4] = [
    Column::Left("LEASE"),
    Column::Left("KEEPS"),
    Column::Left("AT"),
    Column::Left("UNTIL"),
];

pub(crate) async fn run(
    common: &Common,
    command: LeaseCommand,
    output: Output,
) -> Result<(), CliError> {
    let mut client = Client::new(common)?;
    let view = client.cluster().await?;
    let leases = LeaseClient::new(client.endpoint());
    let leases = leases.map_err(CliError::remote("the address of the storage-broker"))?;
    match command {
        LeaseCommand::Take(TakeArgs { name, at, length }) => {
            let timeline = find(&view, &name)?;
            let lsn = point(&client, &view, timeline, at).await?;
            let id = LeaseId::from_bytes(rand::random());
            let taken = leases.take(timeline.timeline, id, Some(lsn), Some(*length));
            let what = format!("taking a lease of {}", full_name(timeline));
            let lease = taken.await.map_err(|source| client.refused(what, source))?;
            tell(&view, lease, output)
        }
        LeaseCommand::Extend {
            name,
            lease,
            length,
        } => {
            let timeline = find(&view, &name)?;
            let kept = kept(&client, &leases, (&view, timeline), lease).await?;
            // With its LSN: if it has ended meanwhile, another one of something newer is no extension.
            let taken = leases.take(timeline.timeline, lease, Some(kept.lsn), Some(*length));
            let what = format!("extending lease {lease}");
            let lease = taken.await.map_err(|source| client.refused(what, source))?;
            tell(&view, lease, output)
        }
        LeaseCommand::List { name } => {
            let named = name.map(|name| find(&view, &name)).transpose()?;
            let mut timelines: Vec<_> = match named {
                Some(timeline) => vec![timeline],
                None => view.timelines.iter().collect(),
            };
            timelines.sort_by_key(|timeline| full_name(timeline));
            list(&client, &leases, (&view, &timelines), output).await
        }
        LeaseCommand::Drop { name, lease } => {
            let timeline = find(&view, &name)?;
            let dropped = leases.drop_lease(timeline.timeline, lease).await;
            let what = format!("ending lease {lease}");
            match dropped.map_err(|source| client.refused(what, source))? {
                true => output.line(format!("lease {lease} is ended")),
                false => Err(unknown(&name, lease)),
            }
        }
    }
}

/// The lease of a timeline with this id, wherever what it keeps is.
async fn kept(
    client: &Client,
    leases: &LeaseClient,
    (view, timeline): (&ClusterView, &TimelineView),
    id: LeaseId,
) -> Result<Lease, CliError> {
    let mut on = Some(timeline);
    while let Some(timeline) = on {
        if let Some(lease) = of(client, leases, timeline)
            .await?
            .into_iter()
            .find(|lease| lease.id == id)
        {
            return Ok(lease);
        }
        on = parent(view, timeline);
    }
    Err(unknown(&full_name(timeline), id))
}

fn parent<'a>(view: &'a ClusterView, timeline: &TimelineView) -> Option<&'a TimelineView> {
    let tenant = timeline.timeline.tenant;
    let parent = timeline.branch?.timeline;
    let is_parent =
        |view: &&TimelineView| view.timeline.tenant == tenant && view.timeline.timeline == parent;
    view.timelines.iter().find(is_parent)
}

async fn of(
    client: &Client,
    leases: &LeaseClient,
    timeline: &TimelineView,
) -> Result<Vec<Lease>, CliError> {
    let listed = leases.list(timeline.timeline).await;
    listed.map_err(|source| {
        client.refused(format!("listing leases of {}", full_name(timeline)), source)
    })
}

async fn list(
    client: &Client,
    leases: &LeaseClient,
    (view, timelines): (&ClusterView, &[&TimelineView]),
    output: Output,
) -> Result<(), CliError> {
    let mut lines = Vec::new();
    for timeline in timelines {
        match of(client, leases, timeline).await {
            Ok(of) => lines.extend(of.into_iter().map(|lease| LeaseLine::of(view, lease))),
            // It went while the others were asked of.
            Err(CliError::Remote { source, .. })
                if source.kind == ErrorKind::NotFound && timelines.len() > 1 => {}
            Err(error) => return Err(error),
        }
    }
    if output.is_json() {
        return output.json(&lines);
    }
    let cells = |line: LeaseLine| vec![line.lease, line.timeline, line.lsn.to_string(), line.until];
    output.table(&COLUMNS, lines.into_iter().map(cells).collect())
}

fn tell(view: &ClusterView, lease: Lease, output: Output) -> Result<(), CliError> {
    let line = LeaseLine::of(view, lease);
    if output.is_json() {
        return output.json(&line);
    }
    let LeaseLine {
        lease,
        timeline,
        lsn,
        until,
        ..
    } = line;
    output.line(format!(
        "lease {lease} keeps {timeline} at {lsn} readable until {until}"
    ))
}

fn unknown(name: &str, lease: LeaseId) -> CliError {
    CliError::Failed {
        what: format!("{name} has no lease {lease}, or it has ended"),
        hint: Some("`pal lease list` shows those that there are".to_owned()),
    }
}

impl LeaseLine {
    fn of(view: &ClusterView, lease: Lease) -> Self {
        let timeline = view.timeline(lease.timeline);
        Self {
            lease: lease.id.to_string(),
            timeline: timeline.map_or_else(|| lease.timeline.to_string(), full_name),
            tenant_id: lease.timeline.tenant.to_string(),
            timeline_id: lease.timeline.timeline.to_string(),
            lsn: lease.lsn,
            until: shown(lease.expires_unix_ms),
        }
    }
}
