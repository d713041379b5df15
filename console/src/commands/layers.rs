//! `pal layers`.

mod watched;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::Subcommand;
use palimpsest_api::{
    TimelineRef,
    broker::{ClusterView, Role},
    channel::connect_lazily,
    compaction::{CompactionInfo, CompactorClient, LayerInfo, WornInfo},
};
use palimpsest_types::{ByteCount, Lsn};
use serde::Serialize;

use self::watched::{step, watched};
use crate::{
    cli::Common,
    client::{Client, find, full_name},
    error::CliError,
    layer_picture::picture,
    output::{Column, Output},
};

/// Commands about the layers of a timeline.
#[derive(Debug, Subcommand)]
pub enum LayersCommand {
    /// List the layers, those that end at the lowest LSNs first.
    List {
        /// TENANT or TENANT/TIMELINE.
        name: String,
    },
    /// Show which layers would be compacted next.
    Plan {
        /// TENANT or TENANT/TIMELINE.
        name: String,
        /// As if so many layers were worth it, instead of what the compactor is set to.
        #[arg(long)]
        threshold: Option<u32>,
    },
    /// Compact now, until nothing is left that is worth it.
    Compact {
        /// TENANT or TENANT/TIMELINE.
        name: String,
        /// So many layers are worth it.
        #[arg(long, default_value_t = 2)]
        threshold: u32,
    },
    /// Show what the compactors do, and what they did last.
    Activity,
    /// Draw the layers as a picture (SVG): keys from left to right, LSNs upwards.
    Draw {
        /// TENANT or TENANT/TIMELINE.
        name: String,
        /// The file to write; standard output without it.
        #[arg(long)]
        to: Option<PathBuf>,
    },
}

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    kind: &'static str,
    level: u8,
    after: Lsn,
    up_to: Lsn,
    first_key: String,
    last_key: String,
    bytes: u64,
    entries: u64,
    epoch: u64,
}

#[derive(Debug, Serialize)]
struct PlanLine {
    after: Lsn,
    up_to: Lsn,
    bytes: u64,
    layers: Vec<Line>,
    images: Vec<WornLine>,
    claimed_for_ms: u64,
}

/// Keys of which an image would be made.
#[derive(Debug, Serialize)]
struct WornLine {
    first_key: String,
    last_key: String,
    since: Lsn,
    layers: u32,
}

#[derive(Debug, Serialize)]
struct DoneLine {
    timeline: String,
    layers_read: u32,
    bytes_read: u64,
    layers_written: u32,
    bytes_written: u64,
    took_ms: u64,
    ended_unix_ms: u64,
}

#[derive(Debug, Serialize)]
struct ActivityLine {
    compactor: String,
    /// What it works on now.
    now: Option<String>,
    done: Vec<DoneLine>,
}

const COLUMNS: [Column; 6] = [
    Column::Left("KIND"),
    Column::Right("AFTER"),
    Column::Right("UP TO"),
    Column::Right("SIZE"),
    Column::Right("VERSIONS"),
    Column::Left("KEYS"),
];
const WORN_COLUMNS: [Column; 3] = [
    Column::Right("LAYERS"),
    Column::Right("SINCE"),
    Column::Left("KEYS"),
];
const DONE_COLUMNS: [Column; 5] = [
    Column::Left("TIMELINE"),
    Column::Right("READ"),
    Column::Right("WRITTEN"),
    Column::Right("TOOK"),
    Column::Right("AGO"),
];

pub(crate) async fn run(
    common: &Common,
    command: LayersCommand,
    output: Output,
) -> Result<(), CliError> {
    let mut client = Client::new(common)?;
    let view = client.cluster().await?;
    match command {
        LayersCommand::List { name } => {
            let (timeline, compactor) = (find(&view, &name)?.timeline, compactor(&view)?);
            list(&layers(&compactor, timeline, &name).await?, output)
        }
        LayersCommand::Plan { name, threshold } => {
            let (timeline, compactor) = (find(&view, &name)?.timeline, compactor(&view)?);
            plan(&compactor, timeline, &name, threshold, output).await
        }
        LayersCommand::Compact { name, threshold } => {
            let (timeline, compactor) = (find(&view, &name)?.timeline, compactor(&view)?);
            compact(&view, &compactor, timeline, threshold, output).await
        }
        LayersCommand::Activity => activity(&view, output).await,
        LayersCommand::Draw { name, to } => {
            let (timeline, compactor) = (find(&view, &name)?.timeline, compactor(&view)?);
            let svg = picture(&layers(&compactor, timeline, &name).await?);
            match to {
                None => output.line(svg),
                Some(path) => {
                    let written = tokio::fs::write(&path, svg).await;
                    written.map_err(|source| CliError::File { path, source })
                }
            }
        }
    }
}

/// Any of them: all know the same.
fn compactor(view: &ClusterView) -> Result<CompactorClient, CliError> {
    let address = view.addresses(Role::Compactor).into_iter().next();
    at(&address.ok_or(CliError::NoCompactor)?)
}

fn at(address: &str) -> Result<CompactorClient, CliError> {
    let channel = connect_lazily(address);
    let channel = channel.map_err(CliError::remote("the address of the compactor"))?;
    Ok(CompactorClient::new(channel))
}

async fn layers(
    compactor: &CompactorClient,
    timeline: TimelineRef,
    name: &str,
) -> Result<Vec<LayerInfo>, CliError> {
    let layers = compactor.layers(timeline).await;
    layers.map_err(CliError::remote(format!("listing the layers of {name}")))
}

fn list(layers: &[LayerInfo], output: Output) -> Result<(), CliError> {
    let lines: Vec<_> = layers.iter().map(Line::from).collect();
    if output.is_json() {
        return output.json(&lines);
    }
    output.table(&COLUMNS, lines.iter().map(Line::cells).collect())?;
    for summary in summaries(&lines) {
        output.line(summary)?;
    }
    Ok(())
}

async fn plan(
    compactor: &CompactorClient,
    timeline: TimelineRef,
    name: &str,
    threshold: Option<u32>,
    output: Output,
) -> Result<(), CliError> {
    let plan = compactor.plan(timeline, threshold).await;
    let plan = plan.map_err(CliError::remote(format!(
        "asking what to compact of {name}"
    )))?;
    let layers: Vec<_> = plan.inputs.iter().map(Line::from).collect();
    let images: Vec<_> = plan.images.iter().map(WornLine::from).collect();
    let bytes = layers.iter().map(|layer| layer.bytes).sum();
    if output.is_json() {
        return output.json(&PlanLine {
            after: plan.after,
            up_to: plan.up_to,
            bytes,
            layers,
            images,
            claimed_for_ms: plan.claimed_for.as_millis() as u64,
        });
    }
    if layers.is_empty() && images.is_empty() {
        return output.line("nothing to compact");
    }
    if layers.is_empty() {
        output.table(&WORN_COLUMNS, images.iter().map(WornLine::cells).collect())?;
        return output
            .line("images of these keys would be made, where so many layers have changes");
    }
    output.table(&COLUMNS, layers.iter().map(Line::cells).collect())?;
    let (count, size) = (layers.len(), ByteCount::new(bytes));
    let (after, up_to) = (plan.after, plan.up_to);
    output.line(format!(
        "{count} layers, {size}, the changes after {after} up to {up_to}"
    ))?;
    match plan.claimed_for.is_zero() {
        true => Ok(()),
        false => output.line("a compactor works on the timeline"),
    }
}

async fn compact(
    view: &ClusterView,
    compactor: &CompactorClient,
    timeline: TimelineRef,
    threshold: u32,
    output: Output,
) -> Result<(), CliError> {
    let name = name_of(view, timeline);
    let mut done = Vec::new();
    loop {
        let once = compactor.compact(timeline, Some(threshold));
        let once = watched(compactor, timeline, once).await;
        let once = once.map_err(CliError::remote(format!("compacting {name}")))?;
        let Some(once) = once else {
            break;
        };
        let line = DoneLine::new(view, &once);
        if !output.is_json() {
            output.line(&line)?;
        }
        done.push(line);
    }
    match (output.is_json(), done.is_empty()) {
        (true, _) => output.json(&done),
        (false, true) => output.line("nothing to compact"),
        (false, false) => Ok(()),
    }
}

async fn activity(view: &ClusterView, output: Output) -> Result<(), CliError> {
    let mut lines = Vec::new();
    for address in view.addresses(Role::Compactor) {
        let told = at(&address)?.activity().await;
        let (now, done) = told.map_err(CliError::remote(format!(
            "asking the compactor at {address}"
        )))?;
        let now = now.map(|work| {
            let name = name_of(view, work.timeline);
            format!("{name}: {}", step(&work).what)
        });
        lines.push(ActivityLine {
            compactor: address,
            now,
            done: done.iter().map(|done| DoneLine::new(view, done)).collect(),
        });
    }
    if output.is_json() {
        return output.json(&lines);
    }
    if lines.is_empty() {
        return Err(CliError::NoCompactor);
    }
    for line in lines {
        let now = line.now.as_deref().unwrap_or("idle");
        output.line(format!("compactor at {}: {now}", line.compactor))?;
        if !line.done.is_empty() {
            output.table(
                &DONE_COLUMNS,
                line.done.iter().map(DoneLine::cells).collect(),
            )?;
        }
    }
    Ok(())
}

fn name_of(view: &ClusterView, timeline: TimelineRef) -> String {
    let known = view.timeline(timeline);
    known.map_or_else(|| timeline.to_string(), full_name)
}

/// What a layer is.
pub(crate) const fn kind(layer: &LayerInfo) -> &'static str {
    match (layer.image, layer.level) {
        (true, 0) => "base",
        (true, _) => "image",
        (false, 0) => "L0",
        (false, 1) => "L1",
        (false, _) => "L2+",
    }
}

fn summaries(lines: &[Line]) -> Vec<String> {
    let mut kinds: BTreeMap<(u8, &str), (usize, u64)> = BTreeMap::new();
    for line in lines {
        let (count, bytes) = kinds.entry((line.level, line.kind)).or_default();
        *count += 1;
        *bytes += line.bytes;
    }
    let summary = |((_, kind), (count, bytes)): ((u8, &str), (usize, u64))| {
        let layers = if count == 1 { "layer" } else { "layers" };
        format!("{kind}: {count} {layers}, {}", ByteCount::new(bytes))
    };
    kinds.into_iter().map(summary).collect()
}

impl From<&WornInfo> for WornLine {
    fn from(worn: &WornInfo) -> Self {
        Self {
            first_key: worn.first.to_string(),
            last_key: worn.last.to_string(),
            since: worn.since,
            layers: worn.layers,
        }
    }
}

impl WornLine {
    fn cells(&self) -> Vec<String> {
        vec![
            self.layers.to_string(),
            self.since.to_string(),
            format!("{} … {}", self.first_key, self.last_key),
        ]
    }
}

impl From<&LayerInfo> for Line {
    fn from(layer: &LayerInfo) -> Self {
        Self {
            name: layer.name.clone(),
            kind: kind(layer),
            level: layer.level,
            after: layer.after,
            up_to: layer.up_to,
            first_key: layer.first.to_string(),
            last_key: layer.last.to_string(),
            bytes: layer.size.get(),
            entries: layer.entries,
            epoch: layer.epoch.get(),
        }
    }
}

impl Line {
    fn cells(&self) -> Vec<String> {
        vec![
            self.kind.to_owned(),
            self.after.to_string(),
            self.up_to.to_string(),
            ByteCount::new(self.bytes).to_string(),
            self.entries.to_string(),
            format!("{} … {}", self.first_key, self.last_key),
        ]
    }
}

impl DoneLine {
    fn new(view: &ClusterView, done: &CompactionInfo) -> Self {
        Self {
            timeline: name_of(view, done.timeline),
            layers_read: done.read.0,
            bytes_read: done.read.1.get(),
            layers_written: done.written.0,
            bytes_written: done.written.1.get(),
            took_ms: done.took.as_millis() as u64,
            ended_unix_ms: done.ended_unix_ms,
        }
    }

    fn cells(&self) -> Vec<String> {
        let counted = |layers: u32, bytes| format!("{layers}, {}", ByteCount::new(bytes));
        vec![
            self.timeline.clone(),
            counted(self.layers_read, self.bytes_read),
            counted(self.layers_written, self.bytes_written),
            format!("{:.1?}", Duration::from_millis(self.took_ms)),
            format!("{:.0?}", self.ago()),
        ]
    }

    /// How long ago, by the clock of this machine.
    fn ago(&self) -> Duration {
        let ended = std::time::UNIX_EPOCH + Duration::from_millis(self.ended_unix_ms);
        let ago = ended.elapsed().unwrap_or_default();
        Duration::from_secs(ago.as_secs())
    }
}

impl std::fmt::Display for DoneLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (read, written) = (self.layers_read, self.layers_written);
        let (bytes_read, bytes) = (self.bytes_read, self.bytes_written);
        let (bytes_read, bytes) = (ByteCount::new(bytes_read), ByteCount::new(bytes));
        let took = Duration::from_millis(self.took_ms);
        match read {
            0 => write!(f, "{written} images, {bytes}, made in {took:.1?}"),
            _ => write!(
                f,
                "{read} layers, {bytes_read}, became {written}, {bytes}, in {took:.1?}"
            ),
        }
    }
}
