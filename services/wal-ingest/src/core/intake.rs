//! The two steps that WAL takes here: it is fsynced, and it is decoded. While one batch is decoded
//! the next is fsynced.

use palimpsest_types::Lsn;

use super::{
    arrivals::Batch,
    decoder::Decoder,
    error::IngestError,
    timeline::Timeline,
    wal_files::{WalFiles, WalTrim},
};

/// The local WAL of a timeline, and how far it is decoded.
#[derive(Debug)]
pub(super) struct Intake {
    files: WalFiles,
    decoder: Decoder,
    /// Fsynced and not decoded yet. Never more than this one: its memory is the source's to fill.
    behind: Option<Batch>,
}

/// What became of a batch that was to be written.
struct Written {
    files: WalFiles,
    /// The batch, if it is fsynced.
    outcome: Result<Option<Batch>, IngestError>,
}

impl Intake {
    /// Everything in `files` is decoded.
    pub(super) fn new(files: WalFiles, decoder: Decoder) -> Self {
        Self {
            files,
            decoder,
            behind: None,
        }
    }

    /// Where the next byte goes. Everything before survives a crash.
    pub(super) fn end(&self) -> Lsn {
        self.files.end()
    }

    /// Whether there is WAL that is fsynced and not decoded.
    pub(super) fn is_behind(&self) -> bool {
        self.behind.is_some()
    }

    /// What has come out of it.
    pub(super) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// What looks for room on the disk.
    pub(super) fn trim(&self) -> WalTrim {
        self.files.trim()
    }
}

/// Fsyncs what has arrived and decodes what was fsynced before, at the same time. Either may be
/// nothing.
///
/// If what has arrived can't be written, all is as if it had not arrived: it is asked for again.
/// After another error nothing in memory is to be trusted, and `intake` is left empty.
pub(super) async fn step(
    timeline: &Timeline,
    intake: &mut Option<Intake>,
    arrived: Option<Batch>,
) -> Result<(), IngestError> {
    let Some(Intake {
        files,
        decoder,
        behind,
    }) = intake.take()
    else {
        return Err(IngestError::Backup("the WAL files are not open"));
    };
    // Both end before anybody hears of an error of one: they are not to be left to themselves.
    let steps = tokio::join!(
        write(timeline, files, arrived),
        decode(timeline, decoder, behind),
    );
    let (Written { files, outcome }, decoder) = (steps.0?, steps.1?);
    decoder.note_wal(files.size());
    let (behind, outcome) = match outcome {
        Ok(behind) => (behind, Ok(())),
        Err(error) => {
            decoder.freeze();
            (None, Err(error))
        }
    };
    let room = decoder.room();
    *intake = Some(Intake {
        files,
        decoder,
        behind,
    });
    outcome?;
    Ok(room?)
}

/// Decodes what is fsynced, so that nothing waits for WAL that may not come.
pub(super) async fn decode_rest(
    timeline: &Timeline,
    intake: &mut Option<Intake>,
) -> Result<(), IngestError> {
    match intake.as_ref().is_some_and(Intake::is_behind) {
        true => step(timeline, intake, None).await,
        false => Ok(()),
    }
}

/// Adds up the sizes of the databases if they are due and no WAL comes that makes it happen.
pub(super) async fn note_size(
    timeline: &Timeline,
    intake: &mut Option<Intake>,
) -> Result<(), IngestError> {
    let due = |intake: &Intake| intake.decoder.is_size_due();
    match intake.as_ref().is_some_and(due) {
        true => step(timeline, intake, None).await,
        false => Ok(()),
    }
}

async fn write(
    timeline: &Timeline,
    mut files: WalFiles,
    batch: Option<Batch>,
) -> Result<Written, IngestError> {
    let Some(batch) = batch else {
        let outcome = Ok(None);
        return Ok(Written { files, outcome });
    };
    if batch.start != files.end() {
        let (expected, found) = (files.end(), batch.start);
        return Err(IngestError::WalGap { expected, found });
    }
    let awaited = files.awaited().count();
    let written = timeline.spawn_blocking(move || {
        let appended = files.append(&batch.chunks);
        let outcome = appended.map(|()| Some(batch));
        Written { files, outcome }
    });
    let written = written.await.map_err(|error| timeline.wal_failed(error))?;
    if let Ok(Some(batch)) = &written.outcome {
        timeline.shared.metrics.wal.inc_by(batch.len as u64);
        timeline.update(|status| status.flushed = batch.end());
    }
    if written.files.awaited().count() < awaited {
        timeline.warn_of_damage(&written.files);
    }
    Ok(written)
}

async fn decode(
    timeline: &Timeline,
    mut decoder: Decoder,
    batch: Option<Batch>,
) -> Result<Decoder, IngestError> {
    if batch.is_none() && !decoder.is_size_due() {
        return Ok(decoder);
    }
    let records = decoder.records();
    let decoded = timeline.spawn_blocking(move || {
        let decoded = batch.map_or(Ok(()), |batch| decode_chunks(&mut decoder, batch));
        let size = decoder.due_size();
        (decoder, decoded, size)
    });
    let decoded = decoded.await.map_err(|error| timeline.wal_failed(error))?;
    let (decoder, decoded, size) = decoded;
    let metrics = &timeline.shared.metrics;
    metrics.records.inc_by(decoder.records() - records);
    // After an error, too: what was decoded is readable, and on its way to the object store.
    timeline.note_decoded(decoder.last_record(), size);
    decoded.map(|()| decoder)
}

fn decode_chunks(decoder: &mut Decoder, batch: Batch) -> Result<(), IngestError> {
    let mut at = batch.start;
    for chunk in batch.chunks {
        let len = chunk.len() as u64;
        decoder.decode(at, chunk)?;
        at = Lsn::new(at.get() + len);
    }
    Ok(())
}
