//! `pal export`.

use std::{
    io::{self, Write as _},
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
    unpack::{UnpackError, Unpacker},
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
    };
    let name = full_name(timeline);
    let writer = target.open()?;
    let pages = client.pages(&view).await?;
    let backup = pages.base_backup(request).await;
    let backup = backup.map_err(CliError::remote(format!(
        "asking for a base backup of {name}"
    )))?;
    let facts = *backup.facts();
    write(backup, writer, &name).await?;
    let exported = Exported::new(name, facts, target.path());
    if target.is_standard_output() {
        return Ok(());
    }
    match output.is_json() {
        true => output.json(&exported),
        false => exported.tell(output),
    }
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
    Archive(PathBuf, Box<dyn io::Write + Send>),
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
        matches!(self, Self::Archive(path) if path.as_os_str() == "-")
    }

    fn open(&self) -> Result<Writer, CliError> {
        match self {
            Self::Directory(path) => Ok(Writer::Directory(Unpacker::into(path).map_err(refused)?)),
            Self::Archive(path) => {
                let file: Box<dyn io::Write + Send> = match self.is_standard_output() {
                    true => Box::new(io::stdout()),
                    false => {
                        let file = std::fs::File::create_new(path);
                        Box::new(file.map_err(CliError::file(path))?)
                    }
                };
                Ok(Writer::Archive(path.clone(), file))
            }
        }
    }
}

/// Writes all of it, or nothing.
async fn write(mut backup: BaseBackupStream, writer: Writer, name: &str) -> Result<(), CliError> {
    let total = backup.facts().size;
    let (chunks, received) = mpsc::channel(AHEAD);
    let writing = spawn_blocking(move || writer.write_all(received));
    let mut progress = Progress::start();
    let mut done = ByteCount::ZERO;
    let outcome = loop {
        progress.show(&Step {
            what: format!("writing {name}"),
            share: Some((done, total)),
        });
        // Cancel-safe: either way it is over.
        let chunk = tokio::select! {
            chunk = backup.chunk() => chunk,
            _ = tokio::signal::ctrl_c() => break Err(CliError::Interrupted {
                what: "what was written is removed".to_owned(),
            }),
        };
        match chunk {
            Ok(Some(chunk)) => {
                done = ByteCount::new(done.get().saturating_add(chunk.len() as u64));
                // If nobody takes it, that one says why.
                if chunks.send(Part::Chunk(chunk)).await.is_err() {
                    break Ok(());
                }
            }
            Ok(None) => {
                let _ = chunks.send(Part::End).await;
                break Ok(());
            }
            Err(source) => {
                break Err(CliError::Remote {
                    what: format!("reading the base backup of {name}"),
                    source,
                });
            }
        }
    };
    drop(chunks);
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

/// What is written next. Without an end it is not complete.
enum Part {
    Chunk(Bytes),
    End,
}

impl Writer {
    fn write_all(self, parts: mpsc::Receiver<Part>) -> Result<(), CliError> {
        match self {
            Self::Directory(unpacker) => unpack(unpacker, parts),
            Self::Archive(path, file) => save(&path, file, parts),
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
            Some(Part::End) => return unpacker.finish().map_err(refused),
            // Who sent them says why.
            None => None,
        };
        // Whatever is left of it can't be started: the control file comes last.
        let _ = unpacker.undo();
        return failure.map_or(Ok(()), |error| Err(refused(error)));
    }
}

fn save(
    path: &Path,
    mut file: Box<dyn io::Write + Send>,
    mut parts: mpsc::Receiver<Part>,
) -> Result<(), CliError> {
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
        let _ = std::fs::remove_file(path);
        return failure.map_or(Ok(()), |error| Err(CliError::file(path)(error)));
    }
}

/// Ends when a file is on disk, if it is one.
fn sync(path: &Path) -> io::Result<()> {
    match path.as_os_str() == "-" {
        true => Ok(()),
        false => std::fs::File::open(path)?.sync_all(),
    }
}

fn refused(error: UnpackError) -> CliError {
    let hint = match &error {
        UnpackError::NotEmpty(_) => Some("name another, or empty it".to_owned()),
        _ => None,
    };
    CliError::Unpack {
        source: Box::new(error),
        hint,
    }
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
