//! `pal start`.

use std::{
    fs::DirBuilder,
    net::TcpListener,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use palimpsest_api::{
    broker::{ClusterView, TimelineState, TimelineView},
    page::{BaseBackupRequest, ReadAt},
};
use palimpsest_postgres::{SlotName, slot_file};
use palimpsest_types::{Lsn, SystemIdentifier, WriterEpoch};
use serde::Serialize;
use tokio::time::timeout;

use super::export::fetch;
use crate::{
    cli::Common,
    client::{Client, find, full_name},
    compute::{Access, ComputePlace, Programs, Record, Server, access, settings, user_maps},
    error::CliError,
    output::Output,
    progress::{Progress, Step},
};

/// Starts a PostgreSQL on a branch.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// BRANCH or TENANT/BRANCH.
    pub name: String,
    /// Its TCP port; a free one without it.
    #[arg(long)]
    pub port: Option<u16>,
    /// Let everybody on this machine in, without a password.
    #[arg(long)]
    pub trust: bool,
    /// What it writes stays its own: it is not part of the branch, and can't be branched.
    #[arg(long)]
    pub local_only: bool,
    /// Transactions write nothing unless they ask to; and what they write is not part of the branch.
    #[arg(long)]
    pub read_only: bool,
    /// Remove what was started for the branch before, with all that it wrote and that has not arrived here, and
    /// start from what has.
    #[arg(long)]
    pub discard: bool,
    /// Where PostgreSQL's programs are.
    #[command(flatten)]
    pub programs: Programs,
}

/// What was started, for programs.
#[derive(Debug, Serialize)]
struct Started {
    name: String,
    begin: Lsn,
    host: &'static str,
    port: u16,
    user: String,
    conninfo: String,
    data: PathBuf,
    is_attached: bool,
    warnings: Vec<String>,
}

/// Of branches. No other program makes slots in what was started for one.
const SLOT: &str = "palimpsest";
/// How long it may take until the WAL of what was started is read.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn run(
    common: &Common,
    arguments: StartArgs,
    output: Output,
) -> Result<(), CliError> {
    let mut client = Client::new(common)?;
    let view = client.cluster().await?;
    let branch = find(&view, &arguments.name)?;
    let name = full_name(branch);
    expect_branch(&client, branch).await?;
    let place = ComputePlace::claim(&common.data, branch.timeline)?;
    let server = Server::new(&arguments.programs, &place)?;
    expect_passable(&place, &server)?;
    let before = place.record()?;
    let is_running = before.is_some() && server.is_running().await?;
    let record = match before {
        Some(_) if arguments.discard && is_running => {
            return Err(failed(
                format!("the PostgreSQL of {name} is running"),
                "`pal stop` it first",
            ));
        }
        Some(record) if !arguments.discard => {
            expect_as_before(&record, &arguments)?;
            record
        }
        _ => {
            expect_nobody_elsewhere(branch, &arguments)?;
            place.clear()?;
            make(&client, &view, branch, (&place, &server), &arguments).await?
        }
    };
    if !is_running {
        server.start().await?;
    }
    if record.is_attached {
        attach(&mut client, branch, &server, &record).await?;
        wait_until_read(&client, branch, &record).await?;
        if record.replaces.is_some() {
            place.remember(&Record {
                replaces: None,
                ..record.clone()
            })?;
        }
    }
    let wanted = match arguments.trust {
        true => Access::Trust,
        false => Access::Passwords,
    };
    server.write("pg_hba.conf", &access(wanted, &record.superuser))?;
    server.reload().await?;
    let warnings = server.collation_warnings(&record).await?;
    let started = Started {
        name,
        begin: record.begin,
        host: "127.0.0.1",
        port: record.port,
        conninfo: server.conninfo(&record),
        user: record.superuser,
        data: place.data(),
        is_attached: record.is_attached,
        warnings,
    };
    match output.is_json() {
        true => output.json(&started),
        false => started.tell(output),
    }
}

/// What a tenant's source is read to is written by that.
async fn expect_branch(client: &Client, timeline: &TimelineView) -> Result<(), CliError> {
    let why = match timeline.branch {
        None if timeline.is_main() => "is what its source is read to",
        None => "is what its source was read to before",
        Some(_) if timeline.is_main() && client.has_source(timeline).await? => {
            "is what its source is read to"
        }
        Some(_) => return Ok(()),
    };
    Err(failed(
        format!("{} {why}", full_name(timeline)),
        "make a branch of it: `pal branch create`",
    ))
}

/// What was started before goes on as it is.
fn expect_as_before(record: &Record, arguments: &StartArgs) -> Result<(), CliError> {
    let stays_apart = arguments.local_only || arguments.read_only;
    let hint =
        "--discard starts another in its place, and removes what it wrote and has not arrived here";
    if stays_apart && record.is_attached {
        let what = "what was started before is the branch's own writer".to_owned();
        return Err(failed(what, hint));
    }
    if !stays_apart && !record.is_attached {
        let what = "what was started before keeps what it writes to itself".to_owned();
        return Err(failed(what, &format!("start it with --local-only; {hint}")));
    }
    match arguments.port.filter(|port| *port != record.port) {
        None => Ok(()),
        Some(_) => Err(failed(
            format!("it was started on port {}", record.port),
            hint,
        )),
    }
}

/// What a branch is written by and was not started here may have WAL that has not arrived.
fn expect_nobody_elsewhere(branch: &TimelineView, arguments: &StartArgs) -> Result<(), CliError> {
    let stays_apart = arguments.local_only || arguments.read_only;
    match branch.is_written() && !arguments.discard && !stays_apart {
        false => Ok(()),
        true => Err(failed(
            format!(
                "{} is written by a PostgreSQL that is not here ({})",
                full_name(branch),
                branch.source
            ),
            "start that one; or, if it is gone for good, --discard starts another from what has arrived",
        )),
    }
}

/// As root, what is started runs as another user.
pub(super) fn expect_passable(place: &ComputePlace, server: &Server) -> Result<(), CliError> {
    let barred = server.user().and_then(|user| place.barred_to(user));
    match barred {
        None => Ok(()),
        Some(directory) => Err(failed(
            format!(
                "the user \"postgres\", as whom PostgreSQL runs when you are root, can't pass through {}",
                directory.display()
            ),
            "allow that (chmod o+x), or use a data directory elsewhere (--data)",
        )),
    }
}

/// Makes the data directory, and remembers it when it is complete.
async fn make(
    client: &Client,
    view: &ClusterView,
    branch: &TimelineView,
    (place, server): (&ComputePlace, &Server),
    arguments: &StartArgs,
) -> Result<Record, CliError> {
    let name = full_name(branch);
    let pages = client.pages(view).await?;
    let request = BaseBackupRequest {
        timeline: branch.timeline,
        at: ReadAt {
            lsn: Some(end_of(branch)),
            ..ReadAt::default()
        },
        // Its standbys and archives never take the source's log for its own, nor the other way round.
        system_identifier: Some(new_identifier()),
        postgres_timeline: None,
        is_packed: false,
        is_sparse: false,
    };
    let backup = pages.base_backup(request).await;
    let backup = backup.map_err(CliError::remote(format!(
        "asking for a base backup of {name}"
    )))?;
    let facts = backup.facts().clone();
    // In files where a line is an entry.
    let superuser = facts.superuser.clone();
    let superuser = superuser.filter(|name| !name.contains(char::is_control));
    let superuser = superuser.ok_or_else(|| {
        failed(
            format!("no superuser of {name} may log in who has a name of one line"),
            "`pal export` it, and start it in single-user mode to mend that",
        )
    })?;
    fetch(backup, &place.data(), &name).await?;
    place.make_sockets()?;
    let record = Record {
        name,
        port: arguments.port.map_or_else(free_port, Ok)?,
        superuser,
        system_identifier: facts.system_identifier.get(),
        pg_timeline: facts.postgres_timeline,
        begin: facts.lsn,
        is_attached: !arguments.local_only && !arguments.read_only,
        replaces: branch.source_cluster.map(SystemIdentifier::get),
    };
    configure(place, server, &record, arguments.read_only)?;
    server.user().map_or(Ok(()), |user| place.give_to(user))?;
    place.remember(&record)?;
    Ok(record)
}

/// Where a branch ends: page-serve may not have heard so far.
fn end_of(branch: &TimelineView) -> Lsn {
    let begin = branch.branch.map(|branch| branch.lsn);
    branch.status.last_record.max(begin.unwrap_or_default())
}

/// Files that a base backup does not have, or not so.
fn configure(
    place: &ComputePlace,
    server: &Server,
    record: &Record,
    is_read_only: bool,
) -> Result<(), CliError> {
    let own = settings(record.port, &place.sockets(), is_read_only);
    server.append("postgresql.conf", &own)?;
    server.write("pg_hba.conf", &access(Access::Closed, &record.superuser))?;
    let users = [user_name(), "postgres".to_owned()];
    let users: Vec<_> = users.iter().map(String::as_str).collect();
    server.write("pg_ident.conf", &user_maps(&users, &record.superuser))?;
    if !record.is_attached {
        return Ok(());
    }
    // It keeps all WAL from the branch on, before anybody reads it.
    let slot: SlotName = SLOT.parse().map_err(|_| failed(SLOT.to_owned(), ""))?;
    let directory = place.data().join("pg_replslot").join(SLOT);
    let made = DirBuilder::new().mode(0o700).create(&directory);
    made.map_err(CliError::file(&directory))?;
    let path = directory.join("state");
    let written = std::fs::write(&path, slot_file(&slot, record.begin));
    written.map_err(CliError::file(&path))
}

/// Has its WAL become the history of the branch.
async fn attach(
    client: &mut Client,
    branch: &TimelineView,
    server: &Server,
    record: &Record,
) -> Result<(), CliError> {
    let replaces = record.replaces.map(SystemIdentifier::new);
    let conninfo = server.conninfo(record);
    let set = client.broker().set_branch_source(
        branch.timeline,
        (&conninfo, SLOT),
        record.writer(),
        replaces,
    );
    let what = format!("telling that {} is written", full_name(branch));
    set.await.map_err(|error| client.refused(what, error))
}

/// Waits until its WAL is on the disk of a wal-ingest from where it begins.
async fn wait_until_read(
    client: &Client,
    branch: &TimelineView,
    record: &Record,
) -> Result<(), CliError> {
    let mut watch = client.watch()?;
    let mut progress = Progress::start();
    let mut reason = String::new();
    let own = record.writer().system_identifier;
    let is_new = branch.source_cluster != Some(own);
    let reading = watch.until(|view| {
        let view = view.timeline(branch.timeline)?;
        let status = &view.status;
        // What was said of another, or by one who is dead, says nothing.
        let is_stale =
            is_new && status.epoch == branch.status.epoch && status.epoch > WriterEpoch::default();
        if is_stale || view.writer.is_none() || view.source_cluster != Some(own) {
            progress.show(&Step::new("waiting for who reads its WAL"));
            return None;
        }
        reason.clone_from(&status.reason);
        let what = match reason.is_empty() {
            true => "waiting until its WAL is read".to_owned(),
            false => format!("waiting until its WAL is read: {reason}"),
        };
        progress.show(&Step::new(what));
        match status.state {
            TimelineState::Streaming if status.flushed > record.begin => Some(Ok(())),
            TimelineState::Stopped => Some(Err(())),
            _ => None,
        }
    });
    // Cancel-safe: it only waits.
    let outcome = tokio::select! {
        outcome = timeout(PATIENCE, reading) => outcome.ok().flatten(),
        _ = tokio::signal::ctrl_c() => {
            return Err(CliError::Interrupted {
                what: "it has been started and lets nobody in; start it again to go on".to_owned(),
            });
        }
    };
    progress.end();
    match outcome {
        Some(Ok(())) => Ok(()),
        Some(Err(())) => Err(failed(
            format!("its WAL is not read: {reason}"),
            "it has been started and lets nobody in",
        )),
        None => Err(failed(
            format!(
                "its WAL is not read after {} s: {reason}",
                PATIENCE.as_secs()
            ),
            "it has been started and lets nobody in; start it again to go on waiting",
        )),
    }
}

/// As initdb makes them: from the time, and from chance.
fn new_identifier() -> SystemIdentifier {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = now.map_or(1, |since| since.as_secs());
    SystemIdentifier::new((seconds << 32) | u64::from(rand::random::<u32>()))
}

pub(super) fn free_port() -> Result<u16, CliError> {
    let bound = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    let address = bound.map_err(|error| failed(format!("there is no free port: {error}"), ""))?;
    Ok(address.port())
}

/// The user who runs this, as PostgreSQL will see them at its socket.
fn user_name() -> String {
    let own = rustix::process::geteuid().as_raw().to_string();
    let users = std::fs::read_to_string(Path::new("/etc/passwd")).unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == own).then(|| name.to_owned())
    });
    name.unwrap_or(own)
}

fn failed(what: String, hint: &str) -> CliError {
    CliError::Failed {
        what,
        hint: Some(hint.to_owned()).filter(|hint| !hint.is_empty()),
    }
}

impl Started {
    fn tell(&self, output: Output) -> Result<(), CliError> {
        let Self {
            name,
            begin,
            port,
            user,
            ..
        } = self;
        output.line(format!(
            "{name}, from {begin} on: 127.0.0.1:{port}, as {user} or any role of the source"
        ))?;
        if !self.is_attached {
            output.line("what it writes is not part of the branch".to_owned())?;
        }
        for warning in &self.warnings {
            output.line(format!("warning: {warning}"))?;
        }
        output.line(format!("psql:  pal psql {name}"))?;
        output.line(format!("stop:  pal stop {name}"))
    }
}
