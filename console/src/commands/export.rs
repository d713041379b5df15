//! `pal export`.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use clap::Args;
use palimpsest_api::page::{BaseBackupFacts, BaseBackupRequest, BaseBackupStream, ReadAt};
use palimpsest_types::{ByteCount, Lsn, SystemIdentifier};
use serde::Serialize;
use tokio::{sync::mpsc, task::spawn_blocking};

use crate::{
    cli::Common,
    client::{Client, find, full_name},
    error::CliError,
    moment::Moment,
    output::Output,
    point::point,
    progress::{Progress, Step},
    unpack::{Mapping, UnpackError, Unpacker},
};

/// Writes a timeline as a data directory.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("target").required(true))]
pub struct ExportArgs {
    /// BRANCH or TENANT/TIMELINE.
    pub name: String,
    /// An LSN, or a time with its zone; the newest without it.
    #[arg(long, value_name = "LSN|TIME")]
    pub at: Option<Moment>,
    /// The data directory. It must be empty, or not there yet.
    #[arg(long, group = "target", value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// A tar archive in place of a directory, packed by zstd if the name ends in .zst; - is standard output.
    #[arg(long, group = "target", value_name = "FILE")]
    pub tar: Option<PathBuf>,
    /// Put a tablespace somewhere else: the directory's pg_tblspc has a link to that. May be repeated.
    #[arg(long, value_name = "OID=DIR", requires = "to")]
    pub tablespace_mapping: Vec<Mapping>,
    /// The PostgreSQL timeline of what the copy writes; one that nobody else is likely to have without it.
    #[arg(long, value_name = "NUMBER")]
    pub postgres_timeline: Option<u32>,
    /// Make it another cluster, so that no standby or archive of the source ever takes its log.
    #[arg(long, value_name = "NUMBER")]
    pub system_identifier: Option<u64>,
}

/// What was written, for programs.
#[derive(Debug, Serialize)]
struct Exported {
    name: String,
    lsn: Lsn,
    checkpoint: Lsn,
    system_identifier: u64,
    postgres_timeline: u32,
    files: u64,
    bytes: u64,
    to: PathBuf,
}

/// Chunks that wait to be written.
const AHEAD: usize = 4;

pub(crate) async fn run(
    common: &Common,
    arguments: ExportArgs,
    output: Output,
) -> Result<(), CliError> {
    let mut client = Client::new(common)?;
    let view = client.cluster().await?;
    let timeline = find(&view, &arguments.name)?;
    let lsn = point(&client, &view, timeline, arguments.at).await?;
    let target = Target::of(&arguments);
    let request = BaseBackupRequest {
        timeline: timeline.timeline,
        at: ReadAt {
            lsn: Some(lsn),
            ..ReadAt::default()
        },
        system_identifier: arguments.system_identifier.map(SystemIdentifier::new),
        postgres_timeline: arguments.postgres_timeline,
        is_packed: target.is_packed(),
        is_sparse: false,
    };
    let name = full_name(timeline);
    target.check()?;
    let pages = client.pages(&view).await?;
    let backup = pages.base_backup(request).await;
    let backup = backup.map_err(CliError::remote(format!(
        "asking for a base backup of {name}"
    )))?;
    let facts = backup.facts().clone();
    let writer = target.open(arguments.tablespace_mapping)?;
    // How much of it is there can't be told of what is packed.
    let total = (!target.is_packed()).then_some(facts.size);
    write(backup, writer, &name, total).await?;
    let exported = Exported::new(name, facts, target.path());
    if target.is_standard_output() {
        return Ok(());
    }
    match output.is_json() {
        true => output.json(&exported),
        false => exported.tell(output),
    }
}

/// Writes a base backup into a directory, all of it or nothing.
pub(super) async fn fetch(
    backup: BaseBackupStream,
    directory: &Path,
    name: &str,
) -> Result<(), CliError> {
    let unpacker = Unpacker::into(directory, Vec::new()).map_err(refused)?;
    let total = Some(backup.facts().size);
    write(backup, Writer::Directory(unpacker), name, total).await
}

/// Where it is to be.
#[derive(Debug, Clone)]
enum Target {
    Directory(PathBuf),
    Archive(PathBuf),
}

/// What writes it.
enum Writer {
    Directory(Unpacker),
    /// The file, if it is not standard output.
    Archive(Option<PathBuf>, Box<dyn io::Write + Send>),
}

impl Target {
    fn of(arguments: &ExportArgs) -> Self {
        match (&arguments.to, &arguments.tar) {
            (_, Some(file)) => Self::Archive(file.clone()),
            (directory, None) => Self::Directory(directory.clone().unwrap_or_default()),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Archive(path) => path,
        }
    }

    fn is_packed(&self) -> bool {
        let zst = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "zst");
        matches!(self, Self::Archive(path) if zst(path))
    }

    fn is_standard_output(&self) -> bool {
        matches!(self, Self::Archive(path) if is_standard_output(path))
    }

    /// Refuses what is there already before anything is asked for.
    fn check(&self) -> Result<(), CliError> {
        let (path, is_there) = match self {
            Self::Directory(path) => {
                let entry = path.read_dir().ok().and_then(|mut entries| entries.next());
                (path, entry.is_some())
            }
            Self::Archive(path) => (path, !self.is_standard_output() && path.exists()),
        };
        match is_there {
            false => Ok(()),
            true => Err(CliError::Failed {
                what: format!("{} is there already", path.display()),
                hint: Some("name another, or remove it".to_owned()),
            }),
        }
    }

    fn open(&self, mappings: Vec<Mapping>) -> Result<Writer, CliError> {
        match self {
            Self::Directory(path) => {
                let unpacker = Unpacker::into(path, mappings).map_err(refused)?;
                Ok(Writer::Directory(unpacker))
            }
            Self::Archive(_) if self.is_standard_output() => {
                Ok(Writer::Archive(None, Box::new(io::stdout())))
            }
            Self::Archive(path) => {
                // It has the passwords of all roles.
                let mut options = File::options();
                let file = options.write(true).create_new(true).mode(0o600).open(path);
                let file = file.map_err(CliError::file(path))?;
                Ok(Writer::Archive(Some(path.clone()), Box::new(file)))
            }
        }
    }
}

/// Writes all of it, or nothing.
async fn write(
    mut backup: BaseBackupStream,
    writer: Writer,
    name: &str,
    total: Option<ByteCount>,
) -> Result<(), CliError> {
    let (chunks, received) = mpsc::channel(AHEAD);
    let writing = spawn_blocking(move || writer.write_all(received));
    let mut progress = Progress::start();
    let sending = send(&mut backup, chunks, name, |done| {
        let share = total.map(|total| (done, total));
        let what = format!("writing {name}");
        progress.show(&Step { what, share });
    });
    // Cancel-safe: without its end what is written is removed.
    let outcome = tokio::select! {
        outcome = sending => outcome,
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted {
            what: "nothing is left of what was written".to_owned(),
        }),
    };
    progress.end();
    let written = writing.await;
    let written = written.unwrap_or_else(|error| {
        Err(CliError::Failed {
            what: error.to_string(),
            hint: None,
        })
    });
    outcome.and(written)
}

/// Hands on what comes, up to its end.
async fn send(
    backup: &mut BaseBackupStream,
    chunks: mpsc::Sender<Part>,
    name: &str,
    mut told: impl FnMut(ByteCount),
) -> Result<(), CliError> {
    let mut done = 0;
    loop {
        told(ByteCount::new(done));
        let chunk = backup.chunk().await;
        let chunk = chunk.map_err(CliError::remote(format!(
            "reading the base backup of {name}"
        )))?;
        let is_end = chunk.is_none();
        done += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        let sent = chunks.send(chunk.map_or(Part::End, Part::Chunk)).await;
        // If nobody takes it, that one says why.
        if sent.is_err() || is_end {
            return Ok(());
        }
    }
}

/// What is written next. Without an end it is not complete.
enum Part {
    Chunk(Bytes),
    End,
}

impl Writer {
    fn write_all(self, parts: mpsc::Receiver<Part>) -> Result<(), CliError> {
        match self {
            Self::Directory(unpacker) => unpack(unpacker, parts),
            Self::Archive(path, file) => save(path.as_deref(), file, parts),
        }
    }
}

fn unpack(mut unpacker: Unpacker, mut parts: mpsc::Receiver<Part>) -> Result<(), CliError> {
    loop {
        let failure = match parts.blocking_recv() {
            Some(Part::Chunk(chunk)) => match unpacker.take(chunk) {
                Ok(()) => continue,
                Err(error) => Some(error),
            },
            Some(Part::End) => match unpacker.finish() {
                Ok(()) => return Ok(()),
                Err(error) => Some(error),
            },
            // Who sent them says why.
            None => None,
        };
        let removed = unpacker.undo();
        return match failure {
            Some(error) => Err(refused(error)),
            None => removed.map_err(refused),
        };
    }
}

fn save(
    path: Option<&Path>,
    mut file: Box<dyn io::Write + Send>,
    mut parts: mpsc::Receiver<Part>,
) -> Result<(), CliError> {
    let failed = |error| match path {
        Some(path) => CliError::file(path)(error),
        None => CliError::Output(error),
    };
    loop {
        let failure = match parts.blocking_recv() {
            Some(Part::Chunk(chunk)) => match file.write_all(&chunk) {
                Ok(()) => continue,
                Err(error) => Some(error),
            },
            Some(Part::End) => match file.flush().and_then(|()| sync(path)) {
                Ok(()) => return Ok(()),
                Err(error) => Some(error),
            },
            None => None,
        };
        let removed = path.map_or(Ok(()), std::fs::remove_file);
        return failure.map_or(removed, Err).map_err(failed);
    }
}

/// Ends when a file is on disk, if it is one.
fn sync(path: Option<&Path>) -> io::Result<()> {
    path.map_or(Ok(()), |path| File::open(path)?.sync_all())
}

fn is_standard_output(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn refused(error: UnpackError) -> CliError {
    CliError::Unpack(Box::new(error))
}

impl Exported {
    fn new(name: String, facts: BaseBackupFacts, to: &Path) -> Self {
        Self {
            name,
            lsn: facts.lsn,
            checkpoint: facts.checkpoint,
            system_identifier: facts.system_identifier.get(),
            postgres_timeline: facts.postgres_timeline,
            files: facts.files,
            bytes: facts.size.get(),
            to: to.to_owned(),
        }
    }

    fn tell(&self, output: Output) -> Result<(), CliError> {
        output.line(format!(
            "{} as of {}: {} files, {}, in {}",
            self.name,
            self.lsn,
            self.files,
            ByteCount::new(self.bytes),
            self.to.display(),
        ))?;
        if self.to.is_dir() {
            output.line(format!(
                "start it: pg_ctl -D {} -o '-p 5433' start",
                self.to.display()
            ))?;
            if rustix::process::geteuid().is_root() {
                output.line(format!(
                    "    before that, as root: chown -R postgres {}",
                    self.to.display()
                ))?;
            }
        }
        Ok(())
    }
}
