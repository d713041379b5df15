//! `pal branch`.

mod list;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use palimpsest_api::{
    RemoteError, TimelineRef,
    broker::{BranchChange, Branched, ClusterView, MAIN, TimelineView},
};
use palimpsest_types::{Lsn, Reason};
use tokio::time::{Instant, sleep};

use self::list::BranchLine;
use crate::{
    cli::Common,
    client::{Client, find, full_name},
    compute::{ComputePlace, Programs, Server},
    error::CliError,
    moment::{Moment, shown},
    output::Output,
    point::point,
};

/// Commands about branches.
#[derive(Debug, Subcommand)]
pub enum BranchCommand {
    /// Make a branch: a timeline of its own that begins on another, at any LSN or time.
    Create(CreateArgs),
    /// List the branches and where they begin.
    List {
        /// Show which begins on which, how much each takes and shares, and how far it is behind what writes it.
        #[arg(long)]
        tree: bool,
    },
    /// Give a branch another name.
    Rename {
        /// BRANCH or TENANT/BRANCH.
        name: String,
        /// Its name from now on.
        new_name: String,
    },
    /// Refuse to delete a branch from now on.
    Protect {
        /// BRANCH or TENANT/BRANCH.
        name: String,
        /// Take that back.
        #[arg(long)]
        off: bool,
    },
    /// Have a branch deleted by itself after a while, unless others begin on it or it is protected.
    #[command(group = clap::ArgGroup::new("when").required(true))]
    Expire {
        /// BRANCH or TENANT/BRANCH.
        name: String,
        /// After so long from now, as 24h or 7d.
        #[arg(long, group = "when", value_name = "DURATION")]
        after: Option<humantime::Duration>,
        /// Not by itself.
        #[arg(long, group = "when")]
        never: bool,
    },
    /// Bring a branch back to the newest state of what it begins on; what was written on it goes.
    Reset(RemoveArgs),
    /// Remove a branch and everything stored of it alone.
    Delete(RemoveArgs),
}

/// Names a branch of which what it has goes, with the PostgreSQL that was started for it.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// BRANCH or TENANT/BRANCH.
    pub name: String,
    /// Where PostgreSQL's programs are.
    #[command(flatten)]
    pub programs: Programs,
}

/// Makes a branch.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// What it is to be called.
    pub name: String,
    /// The timeline that it begins on: TENANT, TENANT/TIMELINE or TIMELINE. The only tenant's first one
    /// without it.
    #[arg(long)]
    pub from: Option<String>,
    /// An LSN, or a time with its zone; the newest without it.
    #[arg(long, value_name = "LSN|TIME")]
    pub at: Option<Moment>,
    /// Have it deleted by itself after so long, as 24h or 7d.
    #[arg(long, value_name = "DURATION")]
    pub expires: Option<humantime::Duration>,
    /// Wait until what it shares is in the object store.
    #[arg(long)]
    pub wait_durable: bool,
}

/// How long a deletion, or durability, is waited for. Both go on without us.
const WAIT: Duration = Duration::from_secs(60);

/// Writers say every second how far they are.
const HEARD: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);

pub(crate) async fn run(
    common: &Common,
    command: BranchCommand,
    output: Output,
) -> Result<(), CliError> {
    let mut client = Client::new(common)?;
    let view = client.cluster().await?;
    match command {
        BranchCommand::Create(arguments) => create(&mut client, &view, arguments, output).await,
        BranchCommand::List { tree: false } => list::as_table(&view, output),
        BranchCommand::List { tree: true } => list::as_tree(&client, &view, output).await,
        BranchCommand::Rename { name, new_name } => {
            let change = BranchChange {
                name: Some(new_name.clone()),
                ..BranchChange::default()
            };
            let name = update(&mut client, &view, &name, change).await?;
            output.line(format!("branch {name} is called {new_name} now"))
        }
        BranchCommand::Protect { name, off } => {
            let change = BranchChange {
                is_protected: Some(!off),
                ..BranchChange::default()
            };
            let name = update(&mut client, &view, &name, change).await?;
            let can = if off { "can" } else { "can't" };
            output.line(format!("branch {name} {can} be deleted now"))
        }
        BranchCommand::Expire { name, after, .. } => {
            let expires = after.map(unix_ms_after);
            let change = BranchChange {
                expires_unix_ms: Some(expires),
                ..BranchChange::default()
            };
            let name = update(&mut client, &view, &name, change).await?;
            let when = expires.map_or_else(|| "never".to_owned(), shown);
            output.line(format!("branch {name} expires: {when}"))
        }
        BranchCommand::Reset(RemoveArgs { name, programs }) => {
            let branch = find(&view, &name)?;
            reset(&mut client, &view, (common, &programs), branch, output).await
        }
        BranchCommand::Delete(RemoveArgs { name, programs }) => {
            let branch = find(&view, &name)?;
            remove(&mut client, (common, &programs), branch).await?;
            output.line(format!("branch {} is deleted", full_name(branch)))
        }
    }
}

async fn create(
    client: &mut Client,
    view: &ClusterView,
    arguments: CreateArgs,
    output: Output,
) -> Result<(), CliError> {
    let CreateArgs {
        name,
        from,
        at,
        expires,
        wait_durable,
    } = arguments;
    let (parent, name) = parent(view, from.as_deref(), &name)?;
    let lsn = point(client, view, parent, at).await?;
    let expires = expires.map(unix_ms_after);
    let made = create_soon(client, parent.timeline, name, (lsn, expires)).await;
    let what = format!("making branch {name} of {}", full_name(parent));
    let made = made.map_err(|source| client.refused(what, source))?;
    let lsn = made.lsn;
    let line = made_line(client, made, wait_durable).await?;
    if output.is_json() {
        return output.json(&line);
    }
    let begins_on = line.begins_on.unwrap_or_default();
    output.line(format!(
        "branch {} begins on {begins_on} at {lsn}",
        line.name
    ))?;
    match line.durable {
        true => Ok(()),
        false => output.line(
            "what it shares is not in the object store yet; it can be used, and `pal branch list` shows when it is",
        ),
    }
}

/// Makes a branch, again while the storage-broker has not heard of its LSN.
async fn create_soon(
    client: &mut Client,
    parent: TimelineRef,
    name: &str,
    (lsn, expires): (Lsn, Option<u64>),
) -> Result<Branched, RemoteError> {
    let begun = Instant::now();
    loop {
        let broker = client.broker();
        let made = broker.create_branch_for(parent, name, Some(lsn), expires);
        match made.await {
            Err(error) if error.reason == Some(Reason::NotArrived) && begun.elapsed() < HEARD => {
                sleep(LOOK).await;
            }
            outcome => return outcome,
        }
    }
}

/// The timeline that a branch begins on, and what the branch is called in its tenant.
fn parent<'a, 'b>(
    view: &'a ClusterView,
    from: Option<&str>,
    name: &'b str,
) -> Result<(&'a TimelineView, &'b str), CliError> {
    let (tenant, name) = match name.split_once('/') {
        Some((tenant, name)) => (Some(tenant), name),
        None => (None, name),
    };
    let parent = match (from, tenant) {
        (Some(from), Some(tenant)) if !from.contains('/') && from != tenant => {
            find(view, &format!("{tenant}/{from}"))?
        }
        (Some(from), _) => find(view, from)?,
        (None, Some(tenant)) => find(view, tenant)?,
        (None, None) => find(view, MAIN).map_err(|error| match view.timelines.is_empty() {
            true => error,
            false => CliError::Failed {
                what: "there are several tenants".to_owned(),
                hint: Some("say what the branch begins on by --from TENANT".to_owned()),
            },
        })?,
    };
    match tenant {
        Some(tenant) if parent.tenant_name != tenant => Err(CliError::Failed {
            what: format!("{} is not of tenant {tenant}", full_name(parent)),
            hint: Some("a branch is of the tenant of what it begins on".to_owned()),
        }),
        _ => Ok((parent, name)),
    }
}

/// The branch as the storage-broker tells of it.
async fn made_line(
    client: &mut Client,
    made: Branched,
    wait_durable: bool,
) -> Result<BranchLine, CliError> {
    let mut watch = client.watch()?;
    let seen = watch.until(|view| {
        let branch = view.timeline(made.timeline)?;
        let line = BranchLine::of(view, branch);
        (line.durable || !wait_durable).then_some(line)
    });
    let seen = tokio::time::timeout(WAIT, seen).await.ok().flatten();
    seen.ok_or_else(|| CliError::Failed {
        what: "the branch is made, and what it shares is not in the object store yet".to_owned(),
        hint: Some("`pal branch list` shows when it is".to_owned()),
    })
}

/// Changes a branch; gives the name that it had.
async fn update(
    client: &mut Client,
    view: &ClusterView,
    name: &str,
    change: BranchChange,
) -> Result<String, CliError> {
    let branch = find(view, name)?;
    let updated = client.broker().update_branch(branch.timeline, change).await;
    let name = full_name(branch);
    updated.map_err(|source| client.refused(format!("changing {name}"), source))?;
    Ok(name)
}

/// A time so long from now, in milliseconds since 1970.
fn unix_ms_after(duration: humantime::Duration) -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let at = since.unwrap_or_default().saturating_add(*duration);
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}

/// Makes another branch of the same name in the place of one. Whatever fails, one of them is there: the new one has
/// a name of its own until the old one is gone.
async fn reset(
    client: &mut Client,
    view: &ClusterView,
    place: (&Common, &Programs),
    branch: &TimelineView,
    output: Output,
) -> Result<(), CliError> {
    let name = full_name(branch);
    let refused = |what: String, hint: &str| CliError::Failed {
        what,
        hint: Some(hint.to_owned()),
    };
    let begun = branch.branch.ok_or_else(|| {
        refused(
            format!("{name} is no branch"),
            "it is what its source has made of it",
        )
    })?;
    if begun.is_protected {
        let hint = "`pal branch protect --off` takes that back";
        return Err(refused(format!("{name} is protected"), hint));
    }
    let begins_on = |other: &&TimelineView| parent_of(other) == Some(branch.timeline);
    if let Some(child) = view.timelines.iter().find(begins_on) {
        let what = format!("{} begins on {name}", full_name(child));
        return Err(refused(what, "delete that first"));
    }
    let parent = parent_of(branch).and_then(|parent| view.timeline(parent));
    let parent = parent.ok_or_else(|| refused(format!("what {name} begins on is gone"), ""))?;
    let lsn = point(client, view, parent, None).await?;
    let temporary = format!("reset-{:08x}", rand::random::<u32>());
    let new = (lsn, begun.expires_unix_ms);
    let made = create_soon(client, parent.timeline, &temporary, new).await;
    let what = format!("making {name} anew");
    let made = made.map_err(|source| client.refused(what.clone(), source))?;
    if let Err(error) = remove(client, place, branch).await {
        // The old one stays as it was. If the new one does, too, it is in the list.
        let _ = client.broker().delete_branch(made.timeline).await;
        return Err(error);
    }
    let change = BranchChange {
        name: Some(branch.timeline_name.clone()),
        ..BranchChange::default()
    };
    let renamed = client.broker().update_branch(made.timeline, change).await;
    let what = format!("{what}, which is called {temporary}");
    renamed.map_err(|source| client.refused(what, source))?;
    output.line(format!(
        "branch {name} begins on {} at {} now",
        full_name(parent),
        made.lsn
    ))
}

/// Removes a branch, and what was started for it here.
async fn remove(
    client: &mut Client,
    (common, programs): (&Common, &Programs),
    branch: &TimelineView,
) -> Result<(), CliError> {
    let name = full_name(branch);
    let timeline = branch.timeline;
    // Of one that was started for it here, nothing is left either.
    let place = ComputePlace::existing(&common.data, timeline)?;
    if let Some(place) = &place {
        let server = Server::new(programs, place)?;
        if place.record()?.is_some() && server.is_running().await? {
            return Err(CliError::Failed {
                what: format!("a PostgreSQL is running on {name}"),
                hint: Some(format!("`pal stop {name}` ends it")),
            });
        }
    }
    let deleted = client.broker().delete_branch(timeline).await;
    deleted.map_err(|source| client.refused(format!("deleting {name}"), source))?;
    let mut watch = client.watch()?;
    let gone = watch.until(|view| view.timeline(timeline).is_none().then_some(()));
    let in_time = tokio::time::timeout(WAIT, gone).await;
    in_time.map_err(|_| CliError::Failed {
        what: format!("{name} is still being deleted"),
        hint: Some("it goes on by itself; the storage-broker's log says what hinders it".into()),
    })?;
    place.map_or(Ok(()), ComputePlace::remove)
}

fn parent_of(branch: &TimelineView) -> Option<TimelineRef> {
    branch.begins_on().map(|(parent, _)| parent)
}

#[cfg(test)]
mod tests {
    use palimpsest_api::broker::{BranchView, TimelineStatus};
    use palimpsest_types::{TenantId, TimelineId};

    use super::*;

    /// A timeline of tenant 1, by its number, and on which it begins.
    fn timeline(name: &str, number: u8, begins: Option<(u8, u64)>, remote: u64) -> TimelineView {
        TimelineView {
            timeline: TimelineRef {
                tenant: TenantId::from_bytes([1; 16]),
                timeline: TimelineId::from_bytes([number; 16]),
            },
            tenant_name: "shop".to_owned(),
            timeline_name: name.to_owned(),
            status: TimelineStatus {
                remote_consistent: Lsn::new(remote),
                ..TimelineStatus::default()
            },
            writer: None,
            source: String::new(),
            slot: String::new(),
            branch: begins.map(|(parent, lsn)| BranchView {
                timeline: TimelineId::from_bytes([parent; 16]),
                lsn: Lsn::new(lsn),
                created_unix_ms: 0,
                expires_unix_ms: None,
                is_protected: false,
            }),
            source_cluster: None,
        }
    }

    pub(super) fn view(remote: u64) -> ClusterView {
        ClusterView {
            timelines: vec![
                timeline("main", 1, None, remote),
                timeline("a", 2, Some((1, 100)), 100),
                timeline("b", 3, Some((2, 100)), 100),
            ],
            ..ClusterView::default()
        }
    }

    #[test]
    fn what_a_branch_begins_on_is_found_by_either_name() {
        let view = view(100);
        let found = |from, name| {
            let (parent, name) = parent(&view, from, name).unwrap();
            (full_name(parent), name.to_owned())
        };
        let main = ("shop/main".to_owned(), "x".to_owned());
        assert_eq!(found(None, "x"), main);
        assert_eq!(found(Some("main"), "x"), main);
        assert_eq!(found(Some("shop"), "x"), main);
        assert_eq!(found(None, "shop/x"), main);
        let a = ("shop/a".to_owned(), "x".to_owned());
        assert_eq!(found(Some("a"), "x"), a);
        assert_eq!(found(Some("shop/a"), "x"), a);
        assert_eq!(found(Some("a"), "shop/x"), a);
        assert!(parent(&view, Some("shop/a"), "other/x").is_err());
        assert!(parent(&view, Some("z"), "x").is_err());
    }
}
