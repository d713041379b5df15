//! After a start: the WAL on our own disk, decoded again from the manifest's LSN on.

use std::time::Duration;

use palimpsest_api::broker::TimelineState;
use palimpsest_types::Lsn;

use super::{
    decoder::Decoder,
    error::IngestError,
    timeline::{Resumed, Timeline},
    wal_files::WalFiles,
};

#[cfg(test)]
mod tests;

/// Decoded between two looks at how much room there is.
const PORTION: u64 = 4 << 20;
/// How often to look for room.
const ROOM_INTERVAL: Duration = Duration::from_millis(200);

/// What became of a portion.
enum Portion {
    Decoded,
    /// The files end here, or what follows is no WAL.
    End,
}

/// Decodes what is on our disk. What follows the last whole record is dropped: a crash may have
/// left anything there, and the source still has it.
pub(super) async fn replay(timeline: &Timeline, resumed: Resumed) -> Result<Resumed, IngestError> {
    let Resumed {
        manifest,
        mut files,
        mut decoder,
    } = resumed;
    let mut at = manifest.lsn;
    timeline.update(|status| {
        status.state = TimelineState::Resuming;
        status.received = files.end();
        status.flushed = files.end();
    });
    loop {
        wait_for_room(timeline, &decoder).await;
        let decoding = timeline.spawn_blocking(move || {
            let outcome = decode_portion(&files, &mut decoder, &mut at)?;
            if let Portion::End = outcome {
                files.truncate(decoder.last_record())?;
                decoder.resync();
            }
            Ok::<_, IngestError>((outcome, files, decoder, at))
        });
        let decoded = decoding
            .await
            .map_err(|error| timeline.wal_failed(error))??;
        let outcome;
        (outcome, files, decoder, at) = decoded;
        timeline.update(|status| status.last_record = decoder.last_record());
        if let Portion::End = outcome {
            break;
        }
    }
    timeline.update(|status| {
        status.received = files.end();
        status.flushed = files.end();
    });
    tracing::info!(timeline = %timeline.id(), from = %manifest.lsn, to = %files.end(), "local WAL decoded");
    Ok(Resumed {
        manifest,
        files,
        decoder,
    })
}

fn decode_portion(
    files: &WalFiles,
    decoder: &mut Decoder,
    at: &mut Lsn,
) -> Result<Portion, IngestError> {
    let stop = at.get().saturating_add(PORTION);
    while at.get() < stop {
        let Some(bytes) = files.read(*at)? else {
            return Ok(Portion::End);
        };
        let len = bytes.len() as u64;
        match decoder.decode(*at, bytes) {
            Err(IngestError::Wal(error)) => {
                tracing::warn!(%error, from = %decoder.last_record(), "the end of the local WAL is damaged; reading it again from the source");
                return Ok(Portion::End);
            }
            outcome => outcome?,
        }
        *at = Lsn::new(at.get() + len);
    }
    Ok(Portion::Decoded)
}

/// Memory empties as layers are written; the local disk as they reach the object store. So what is
/// in memory becomes a layer, however small: nothing else may be there to make room.
async fn wait_for_room(timeline: &Timeline, decoder: &Decoder) {
    while let Err(full) = decoder.room_to_replay() {
        decoder.freeze();
        timeline.update(|status| status.reason = full.to_string());
        tokio::time::sleep(ROOM_INTERVAL).await;
    }
    timeline.update(|status| status.reason.clear());
}
