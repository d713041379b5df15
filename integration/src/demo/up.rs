use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use palimpsest_console::{
    Format, Output,
    cli::Common,
    commands::attach::{Attached, attach},
    place::Place,
    stack::{Stack, StackSettings},
};
use palimpsest_runtime::CancellationToken;
use palimpsest_service_kit::telemetry::{self, LogFormat};
use palimpsest_settings::PortBase;

use super::{
    postgres::{DemoPostgres, Sample},
    story::in_full,
};

/// What the demo is told.
#[derive(Debug, Clone)]
pub struct UpSettings {
    /// Where everything is kept.
    pub data: PathBuf,
    /// The storage-broker's port, from which the others are counted; 0 takes free ones.
    pub port_base: PortBase,
    /// PostgreSQL's port.
    pub postgres_port: u16,
}

/// The tenant that the demo attaches its PostgreSQL as.
const TENANT: &str = "demo";

/// Runs the services and a PostgreSQL until `stop` is cancelled.
pub async fn up(settings: UpSettings, stop: &CancellationToken) -> Result<()> {
    let telemetry = telemetry::init("demo", LogFormat::default());
    let place = Place::claim(&settings.data)?;
    let directory = place.dir().join("demo-postgres");
    let postgres = DemoPostgres::start(&directory, settings.postgres_port).await?;
    let stack = StackSettings {
        port_base: settings.port_base,
        pg_bin: Some(palimpsest_testkit::cluster::pg_bin()),
        ..StackSettings::default()
    };
    let stack = Stack::start(&stack, &place)
        .await
        .context("starting the services")?;
    let shown = serve(&stack, &postgres, &place, stop).await;
    // The services first: then no WAL sender keeps PostgreSQL from ending.
    stack.stop().await;
    telemetry.finish().await;
    postgres.stop()?;
    shown
}

async fn serve(
    stack: &Stack,
    postgres: &DemoPostgres,
    place: &Place,
    stop: &CancellationToken,
) -> Result<()> {
    place.announce(&stack.announcement())?;
    let common = Common {
        endpoint: Some(stack.broker().to_owned()),
        data: place.dir().to_owned(),
        output: Format::default(),
    };
    let source = postgres.source();
    // Cancel-safe: the attach is wal-ingest's, and goes on at the next start.
    let attached = tokio::select! {
        attached = attach(&common, TENANT, &source, None) => attached.map_err(in_full)?,
        () = stop.cancelled() => return Ok(()),
    };
    let sample = tokio::task::block_in_place(|| postgres.change_something())?;
    tell(stack, postgres, &attached, (sample, pal(place.dir())))?;
    match stack.wait(stop).await {
        None => Ok(()),
        Some(name) => bail!("{name} ended by itself; its last messages say why"),
    }
}

fn tell(
    stack: &Stack,
    postgres: &DemoPostgres,
    attached: &Attached,
    (sample, pal): (Sample, String),
) -> Result<()> {
    let output = Output::new(Format::Table);
    let Sample {
        name,
        before,
        after,
    } = sample;
    output.line("")?;
    for (name, address) in stack.addresses() {
        output.line(format!("  {name:<14}  {address}"))?;
    }
    if let Some(place) = postgres.moved_to() {
        output.line(format!("  PostgreSQL's files are in {}", place.display()))?;
    }
    for warning in &attached.warnings {
        output.line(format!("! {warning}"))?;
    }
    output.line("")?;
    output.line(format!("PostgreSQL:  {}", postgres.psql()))?;
    output.line(format!(
        "attached as {TENANT:?}; its pages can be read at any LSN from {} on",
        attached.oldest
    ))?;
    output.line("")?;
    output.line("try, in another terminal:")?;
    output.line(format!("  {pal} status"))?;
    output.line(format!("  {pal} page get {TENANT} {name} 0 --lsn {before}"))?;
    output.line(format!(
        "  {pal} page diff {TENANT} {name} 0 --lsn {before} --lsn {after}"
    ))?;
    output.line(format!(
        "  {pal} branch create mine --from {TENANT} --at {before}"
    ))?;
    output.line(format!(
        "  {pal} start mine    # and write on it: pal psql mine"
    ))?;
    output.line("")?;
    Ok(output.line("Ctrl-C stops everything; started again, it goes on")?)
}

/// How the program `pal` that was built with this one is called from here.
fn pal(data: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let beside = std::env::current_exe().map(|demo| demo.with_file_name("pal"));
    let program = match beside {
        Ok(pal) if pal.is_file() => pal.strip_prefix(&here).unwrap_or(&pal).to_owned(),
        Ok(_) | Err(_) => "pal".into(),
    };
    match data == here.join("data") {
        true => program.display().to_string(),
        false => format!("{} --data {}", program.display(), data.display()),
    }
}
