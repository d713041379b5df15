//! After a start: the WAL on our own disk, decoded again from the manifest's LSN on.

use std::{path::PathBuf, time::Duration};

use palimpsest_api::broker::TimelineState;
use palimpsest_types::{ByteCount, Lsn};
use palimpsest_wal::WalError;

use super::{
    arrivals::MAX_BATCH,
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

/// A crash leaves no more than this behind the last fsync, with room to spare: beyond, a byte that
/// was acknowledged is not what it was.
const TORN: u64 = 4 * MAX_BATCH as u64;

/// What became of a portion.
enum Portion {
    Decoded,
    /// The files end here, or what follows is no WAL.
    End(Option<Damage>),
}

/// WAL that is not what was received.
struct Damage {
    error: WalError,
    /// Bytes behind it.
    behind: ByteCount,
}

/// Decodes what is on our disk. What follows the last whole record is dropped: a crash may have
/// left anything there, and the source still has it. More than a crash can leave is kept aside
/// until the source has sent it again.
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
            let outcome = decode_portion(&files, &mut decoder, &mut at);
            let size = decoder.due_size();
            (outcome, files, decoder, at, size)
        });
        let decoded = decoding.await;
        let (outcome, size);
        (outcome, files, decoder, at, size) =
            decoded.map_err(|error| timeline.wal_failed(error))?;
        // After an error, too: what was decoded is readable, and on its way to the object store.
        timeline.note_decoded(decoder.last_record(), size);
        if let Portion::End(damage) = outcome? {
            (files, decoder) = end(timeline, files, decoder, damage).await?;
            break;
        }
    }
    timeline.update(|status| {
        status.received = files.end();
        status.flushed = files.end();
    });
    timeline.warn_of_damage(&files);
    tracing::info!(timeline = %timeline.id(), from = %manifest.lsn, to = %files.end(), "local WAL decoded");
    Ok(Resumed {
        manifest,
        files,
        decoder,
    })
}

/// Goes on after the last whole record, whatever follows it.
async fn end(
    timeline: &Timeline,
    mut files: WalFiles,
    mut decoder: Decoder,
    mut damage: Option<Damage>,
) -> Result<(WalFiles, Decoder), IngestError> {
    loop {
        let ending = timeline.spawn_blocking(move || {
            let ended = cut(&mut files, &mut decoder, damage.as_ref());
            (files, decoder, damage, ended)
        });
        let ended;
        (files, decoder, damage, ended) =
            ending.await.map_err(|error| timeline.wal_failed(error))?;
        match ended {
            // The copy has no room until layers have made some.
            Err(error) if error.is_full_disk() => {
                decoder.freeze();
                timeline.update(|status| status.reason = error.in_words());
                tokio::time::sleep(ROOM_INTERVAL).await;
            }
            Err(error) => return Err(error),
            Ok(set_aside) => {
                timeline.update(|status| status.reason.clear());
                if let Some((directory, damage)) = set_aside.zip(damage) {
                    let Damage { error, behind } = damage;
                    let (from, directory) = (files.end(), directory.display());
                    tracing::error!(timeline = %timeline.id(), %from, %behind, %directory, %error, "the local WAL is damaged, by more than a crash can leave; look at this disk");
                }
                return Ok((files, decoder));
            }
        }
    }
}

/// Cuts the files after the last whole record, and says where what followed is kept, if it is.
fn cut(
    files: &mut WalFiles,
    decoder: &mut Decoder,
    damage: Option<&Damage>,
) -> Result<Option<PathBuf>, IngestError> {
    let from = decoder.last_record();
    let aside = match damage {
        Some(damage) if damage.behind.get() > TORN || files.is_setting_aside(from) => {
            Some(files.set_aside(from)?)
        }
        Some(_) | None => {
            files.truncate(from)?;
            None
        }
    };
    decoder.resync();
    Ok(aside)
}

fn decode_portion(
    files: &WalFiles,
    decoder: &mut Decoder,
    at: &mut Lsn,
) -> Result<Portion, IngestError> {
    let stop = at.get().saturating_add(PORTION);
    while at.get() < stop {
        let Some(bytes) = files.read(*at)? else {
            return Ok(Portion::End(None));
        };
        let len = bytes.len() as u64;
        match decoder.decode(*at, bytes) {
            Err(IngestError::Wal(error)) => {
                tracing::warn!(%error, from = %decoder.last_record(), "the end of the local WAL is damaged; reading it again from the source");
                let behind = ByteCount::new(files.end().saturating_sub(*at));
                return Ok(Portion::End(Some(Damage { error, behind })));
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
