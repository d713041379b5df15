//! WAL that the source has no more, from where it is archived.
//!
//! The command is PostgreSQL's `restore_command`: it puts a WAL file somewhere, or fails because there is none of that name.
//! What it gives is believed as little as what a network gives: the file has to be of the cluster and of that place, and its
//! records are checked as all are.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use palimpsest_api::broker::TimelineState;
use palimpsest_manifest::SourceCluster;
use palimpsest_postgres::Tli;
use palimpsest_types::Lsn;
use palimpsest_wal::{PageHeader, SegmentSize};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{
    arrivals::{Batch, MAX_BATCH},
    error::{IngestError, Stop},
    intake::{self, Intake},
    timeline::Timeline,
};

/// How a WAL file is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreCommand {
    command: String,
    patience: Duration,
}

/// What was fetched, which goes with this: who waits for room would wait for what it takes.
struct LeftOver<'a>(&'a Path);

/// What is to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// Where the source's own WAL ended when it was asked, or what is read of it.
    pub(super) up_to: Lsn,
    /// The PostgreSQL timeline that goes on there, if one does.
    pub(super) next: Option<Tli>,
}

/// The processes of a command, which end with this: a shell's own end with no shell.
struct Processes(Option<Pid>);

/// Why the archive gave nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restored {
    /// What it has was read, or all that was wanted: the source is to be asked again.
    AsFar,
    /// The node leaves.
    Left,
}

/// What came of a command.
enum Fetched {
    /// The file is there.
    File,
    /// There is none of that name.
    None,
}

/// A file that is to be fetched, and what it must be.
#[derive(Debug, Clone)]
struct Wanted {
    name: String,
    /// Where its first byte is.
    start: Lsn,
    size: SegmentSize,
    source: SourceCluster,
    path: PathBuf,
}

/// One file may take so long to come.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// Between two tries for a file that was not there.
const PAUSE: Duration = Duration::from_secs(1);
/// A command that ends by more has not looked: as the shell ends when it is not there, or was ended.
const LAST_MISS: i32 = 125;
/// Below the timeline's directory.
const FETCHED: &str = "restored-wal";

impl RestoreCommand {
    /// A command as a person has set it, and how long a file that it does not find is asked for before it is believed.
    pub fn new(command: String, patience: Duration) -> Self {
        Self { command, patience }
    }

    /// Whether the command is told which file, and where it is to be put.
    pub fn is_told_all(&self) -> bool {
        let line = self.line("\u{1}", Path::new("\u{2}"));
        line.contains('\u{1}') && line.contains('\u{2}')
    }

    /// For a shell: `%f`, `%p` and `%%` are replaced, as PostgreSQL does, and nothing else.
    fn line(&self, file: &str, path: &Path) -> String {
        let path = path.display().to_string();
        let mut line = String::with_capacity(self.command.len() + path.len());
        let mut rest = self.command.as_str();
        while let Some((before, after)) = rest.split_once('%') {
            line.push_str(before);
            rest = match after.chars().next() {
                Some('f') => {
                    line.push_str(file);
                    &after[1..]
                }
                Some('p') => {
                    line.push_str(&path);
                    &after[1..]
                }
                Some('%') => {
                    line.push('%');
                    &after[1..]
                }
                Some(_) | None => {
                    line.push('%');
                    after
                }
            };
        }
        line + rest
    }

    /// Runs it. What it says goes where our own log goes.
    async fn fetch(&self, timeline: &Timeline, wanted: &Wanted) -> Result<Fetched, IngestError> {
        let failed = |problem: String| IngestError::Archive {
            file: wanted.name.clone(),
            problem,
        };
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(self.line(&wanted.name, &wanted.path))
            .env("PALIMPSEST_SLOT", timeline.slot.as_str())
            .env(
                "PALIMPSEST_SYSTEM_IDENTIFIER",
                wanted.source.system_identifier.to_string(),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0);
        let ended = async {
            let mut child = command.spawn()?;
            let mut processes = Processes::of(&child);
            let status = child.wait().await?;
            processes.0 = None;
            Ok::<_, io::Error>(status)
        };
        // Cancel-safe: it is killed with all that it has started, and what it has written is written anew.
        let ended = timeout(PATIENCE, ended)
            .await
            .map_err(|_| failed(format!("restore-command takes longer than {PATIENCE:?}")))?;
        let status = ended.map_err(|error| failed(format!("restore-command: {error}")))?;
        match status.code() {
            Some(0) => Ok(Fetched::File),
            Some(1..=LAST_MISS) => wanted.expect_room(timeline).map(|()| Fetched::None),
            _ => Err(failed(format!("restore-command failed: {status}"))),
        }
    }
}

impl Timeline {
    /// How WAL is fetched that the source has no more, if it can be.
    fn restore_command(&self) -> Option<&RestoreCommand> {
        self.shared.restore_command.as_ref()
    }

    /// Whether WAL that the source has removed may be had elsewhere.
    pub(super) fn has_archive(&self) -> bool {
        self.restore_command().is_some()
    }
}

/// Removes what was fetched by one who did not live to.
pub(super) async fn tidy(timeline: &Timeline) {
    let path = timeline.directory().join(FETCHED);
    let removing = timeline.spawn_blocking(move || drop(LeftOver(&path)));
    // It tells by itself, and a runtime that ends removes nothing.
    let _ = removing.await;
}

/// Reads WAL from the archive from where `intake` ends, up to there, for as long as it has the next file.
///
/// # Errors
/// [`Stop::WalGone`] if it does not even have the first; if what it has is not what it must be, or can't be written.
pub(super) async fn restore(
    timeline: &Timeline,
    source: &SourceCluster,
    intake: &mut Option<Intake>,
    extent: Extent,
) -> Result<Restored, IngestError> {
    let Extent { up_to, .. } = extent;
    let not_open = || IngestError::Backup("the WAL files are not open");
    let begin = intake.as_ref().ok_or_else(not_open)?.end();
    let gone = || Stop::WalGone {
        slot: timeline.slot.to_string(),
        from: begin,
    };
    let Some(command) = timeline.restore_command() else {
        return Err(gone().into());
    };
    tracing::warn!(timeline = %timeline.id(), from = %begin, "the source no longer has the WAL that comes next; reading the archive");
    let path = timeline.directory().join(FETCHED);
    // Also if this is dropped, or there was room for half a file only.
    let _left_over = LeftOver(&path);
    let leaving = &timeline.shared.leaving;
    loop {
        let open = intake.as_ref().ok_or_else(not_open)?;
        open.decoder().room()?;
        let from = open.end();
        let wanted = Wanted::at(from, source, extent, &path)?;
        match from >= up_to {
            // It was asked long ago.
            true if from == begin => {
                let problem = "the source has written it since; asking it again".to_owned();
                return Err(wanted.wrong(problem));
            }
            true => return Ok(Restored::AsFar),
            false => {}
        }
        timeline.update(|status| {
            status.state = TimelineState::Disconnected;
            status.reason = format!(
                "the source no longer has the WAL from {begin} on; reading file {} of the archive",
                wanted.name
            );
        });
        // After some files it is not there because the source has it.
        let patience = match from == begin {
            true => command.patience,
            false => Duration::ZERO,
        };
        let fetching = fetch(timeline, command, &wanted, patience);
        let fetching = leaving.run_until_cancelled(fetching);
        match fetching.await {
            None => return Ok(Restored::Left),
            Some(Err(error)) => return Err(error),
            Some(Ok(Fetched::File)) => {}
            Some(Ok(Fetched::None)) if from == begin => {
                tracing::error!(timeline = %timeline.id(), file = wanted.name, "the archive does not have the WAL either");
                return Err(gone().into());
            }
            Some(Ok(Fetched::None)) => return Ok(Restored::AsFar),
        }
        if read(timeline, intake, &wanted, from..up_to).await? == Restored::Left {
            return Ok(Restored::Left);
        }
        tracing::info!(timeline = %timeline.id(), file = wanted.name, "WAL file restored");
    }
}

/// Fetches a file. One that is missing is asked for again: commands fail for other reasons as well.
async fn fetch(
    timeline: &Timeline,
    command: &RestoreCommand,
    wanted: &Wanted,
    patience: Duration,
) -> Result<Fetched, IngestError> {
    let begun = Instant::now();
    loop {
        let path = wanted.path.clone();
        // That of before, or half of it.
        let removing = timeline.spawn_blocking(move || remove(&path));
        removing
            .await
            .map_err(|error| timeline.wal_failed(error))??;
        if let Fetched::File = command.fetch(timeline, wanted).await? {
            return Ok(Fetched::File);
        }
        if begun.elapsed() >= patience {
            return Ok(Fetched::None);
        }
        timeline.update(|status| {
            status.reason = format!("the source no longer has WAL file {}, and restore-command does not find it; trying again for {patience:?}", wanted.name);
        });
        sleep(PAUSE).await;
    }
}

/// Takes a file in as WAL that has come, piece by piece.
async fn read(
    timeline: &Timeline,
    intake: &mut Option<Intake>,
    wanted: &Wanted,
    lsns: std::ops::Range<Lsn>,
) -> Result<Restored, IngestError> {
    let checked = wanted.clone();
    let opening = timeline.spawn_blocking(move || checked.open());
    let mut file = opening
        .await
        .map_err(|error| timeline.wal_failed(error))??;
    let file_end = Lsn::new(wanted.start.get() + wanted.size.bytes());
    let end = lsns.end.min(file_end);
    let mut at = lsns.start;
    while at < end {
        if timeline.shared.leaving.is_cancelled() {
            return Ok(Restored::Left);
        }
        let (offset, len) = (
            at.saturating_sub(wanted.start),
            usize::try_from(end.saturating_sub(at))
                .unwrap_or(usize::MAX)
                .min(MAX_BATCH),
        );
        let reading = timeline.spawn_blocking(move || {
            let mut bytes = vec![0; len];
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(&mut bytes)?;
            Ok::<_, io::Error>((file, bytes))
        });
        let read = reading.await.map_err(|error| timeline.wal_failed(error))?;
        let (same, bytes) = read.map_err(|source| wanted.unreadable(source))?;
        file = same;
        let batch = Batch {
            start: at,
            chunks: vec![Bytes::from(bytes)],
            len,
            source: end,
        };
        at = batch.end();
        timeline.update(|status| status.received = at);
        let taken = match intake::step(timeline, intake, Some(batch)).await {
            Ok(()) => intake::decode_rest(timeline, intake).await,
            Err(error) => Err(error),
        };
        // It is the file that is wrong, not the source: what was written of it is cut off, and it is fetched anew.
        taken.map_err(|error| match error {
            IngestError::Wal(error) => wanted.wrong(error.to_string()),
            error => error,
        })?;
    }
    Ok(Restored::AsFar)
}

fn remove(path: &Path) -> Result<(), IngestError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(IngestError::WalFile {
            path: path.to_owned(),
            source: error,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Wanted {
    /// The file that has an LSN.
    fn at(
        lsn: Lsn,
        source: &SourceCluster,
        extent: Extent,
        path: &Path,
    ) -> Result<Self, IngestError> {
        let size = SegmentSize::new(source.wal_segment_size.get());
        let size = size.map_err(|_| IngestError::Backup("its WAL files have no size"))?;
        let segment = size.number_of(lsn);
        // The last file of a PostgreSQL timeline that was left is archived as the first one of the next, which has all of it.
        let next = extent
            .next
            .filter(|_| segment == size.number_of(extent.up_to));
        Ok(Self {
            name: size.file_name(next.unwrap_or(source.pg_timeline), segment),
            start: lsn.floor_to(size.bytes()),
            size,
            source: *source,
            path: path.to_owned(),
        })
    }

    /// The file, if it is what was asked for.
    fn open(&self) -> Result<File, IngestError> {
        let mut file = File::open(&self.path).map_err(|error| self.unreadable(error))?;
        let found = file.metadata().map_err(|error| self.unreadable(error))?;
        if !found.is_file() || found.len() != self.size.bytes() {
            let (len, expected) = (found.len(), self.size.bytes());
            return Err(self.wrong(format!("it has {len} bytes, not {expected}")));
        }
        let mut header = [0; PageHeader::LONGEST];
        let read = file.read_exact(&mut header);
        read.map_err(|error| self.unreadable(error))?;
        let parsed = PageHeader::parse(&header, self.start, self.size);
        let parsed = parsed.map_err(|error| self.wrong(error.to_string()))?;
        let (found, expected) = (parsed.system_identifier, self.source.system_identifier);
        if found != Some(expected) {
            let found = found.map_or_else(|| "none".to_owned(), |found| found.to_string());
            let problem =
                format!("it is of the cluster with system identifier {found}, expected {expected}");
            return Err(self.wrong(problem));
        }
        Ok(file)
    }

    /// A command that found no room to copy to may have ended as if there was nothing to copy.
    fn expect_room(&self, timeline: &Timeline) -> Result<(), IngestError> {
        let available = timeline.shared.disk.available(&timeline.directory());
        match available {
            Ok(available) if available < self.size.bytes().saturating_mul(2) => {
                Err(IngestError::WalFile {
                    path: self.path.clone(),
                    source: io::ErrorKind::StorageFull.into(),
                })
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn unreadable(&self, error: io::Error) -> IngestError {
        self.wrong(format!(
            "what restore-command has put there can't be read: {error}"
        ))
    }

    fn wrong(&self, problem: String) -> IngestError {
        IngestError::Archive {
            file: self.name.clone(),
            problem,
        }
    }
}

impl Drop for LeftOver<'_> {
    fn drop(&mut self) {
        // Here and now, though it takes a moment: later it might be the next one.
        if let Err(error) = remove(self.0) {
            tracing::warn!(%error, "a file from the archive stays until the next is fetched");
        }
    }
}

impl Processes {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.and_then(Pid::from_raw))
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        if let Some(group) = self.0.take() {
            // They may have ended by themselves.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{ByteCount, SystemIdentifier};

    use super::*;

    #[test]
    fn a_command_has_the_name_and_the_place_of_the_file() {
        let line = |text: &str| {
            let command = RestoreCommand::new(text.to_owned(), Duration::ZERO);
            command.line("000000010000000000000003", Path::new("/d/restored"))
        };
        let file = "000000010000000000000003";
        assert_eq!(line("cp /a/%f %p"), format!("cp /a/{file} /d/restored"));
        assert_eq!(line("%f%f"), format!("{file}{file}"));
        assert_eq!(line("100%% of %p"), "100% of /d/restored");
        assert_eq!(line("%%f %x %"), "%f %x %");
        assert_eq!(line("é%é %f"), format!("é%é {file}"));
    }

    #[test]
    fn a_command_has_to_be_told_which_file_and_where() {
        let is_told = |text: &str| {
            let command = RestoreCommand::new(text.to_owned(), Duration::ZERO);
            command.is_told_all()
        };
        assert!(is_told("cp /a/%f %p"));
        assert!(!is_told("cp /a/%f /b"));
        assert!(!is_told("cp /a/%%f %%p"));
    }

    #[test]
    fn the_last_file_of_a_timeline_is_the_first_of_the_next() {
        let name = |lsn: u64, next| {
            let extent = Extent {
                up_to: Lsn::new((4 << 20) + 100),
                next,
            };
            let wanted = Wanted::at(Lsn::new(lsn), &source(), extent, Path::new("x"));
            wanted.unwrap().name
        };
        assert_eq!(name(3 << 20, Some(3)), "000000020000000000000003");
        assert_eq!(name(4 << 20, Some(3)), "000000030000000000000004");
        assert_eq!(name(4 << 20, None), "000000020000000000000004");
    }

    fn source() -> SourceCluster {
        SourceCluster {
            system_identifier: SystemIdentifier::new(7),
            pg_version: 15,
            pg_timeline: 2,
            wal_segment_size: ByteCount::mib(1),
            wal_log_hints: false,
        }
    }

    #[test]
    fn a_file_is_of_its_place_and_of_the_cluster_or_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fetched");
        let lsn = Lsn::new((3 << 20) + 8200);
        let extent = Extent {
            up_to: Lsn::new(u64::MAX),
            next: None,
        };
        let wanted = Wanted::at(lsn, &source(), extent, &path).unwrap();
        assert_eq!(wanted.name, "000000020000000000000003");
        assert_eq!(wanted.start, Lsn::new(3 << 20));
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            wanted.open().unwrap_err().to_string()
        };
        let mut good = vec![0; 1 << 20];
        good[..8].copy_from_slice(&[0x10, 0xD1, 2, 0, 2, 0, 0, 0]);
        good[8..16].copy_from_slice(&(3_u64 << 20).to_le_bytes());
        good[24..32].copy_from_slice(&7_u64.to_le_bytes());
        good[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        good[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        std::fs::write(&path, &good).unwrap();
        assert!(wanted.open().is_ok(), "{:?}", wanted.open());

        assert!(refused(&good[..1000]).contains("1000 bytes"));
        assert!(refused(&vec![0; 1 << 20]).contains("magic"));
        let mut other = good.clone();
        other[24] = 8;
        assert!(refused(&other).contains("system identifier 8"));
        let mut elsewhere = good;
        elsewhere[10] = 0x40;
        assert!(refused(&elsewhere).contains("says it is at"));
        std::fs::remove_file(&path).unwrap();
        assert!(
            wanted
                .open()
                .unwrap_err()
                .to_string()
                .contains("can't be read")
        );
    }
}
