//! The archive compressed, chunk by chunk.

use std::io::{self, Write as _};

use bytes::Bytes;
use tokio::{sync::mpsc, task::spawn_blocking};
use zstd::stream::write::Encoder;

use crate::error::BackupError;

/// Fast: a network is seldom slower than this compresses.
const LEVEL: i32 = 1;
/// Compressed chunks are put together until there is so much.
const CHUNK: usize = 256 << 10;

/// Packs what comes into one zstd frame.
///
/// # Errors
/// If nobody takes it any more, or it can't be packed.
pub async fn zstd_frame(
    mut from: mpsc::Receiver<Bytes>,
    to: mpsc::Sender<Bytes>,
) -> Result<(), BackupError> {
    let mut encoder = Encoder::new(Vec::new(), LEVEL).map_err(BackupError::Zstd)?;
    while let Some(chunk) = from.recv().await {
        let packed;
        // Longer than a thread of the runtime should be kept.
        (encoder, packed) = blocking(move || {
            encoder.write_all(&chunk)?;
            let is_enough = encoder.get_ref().len() >= CHUNK;
            let packed = is_enough.then(|| std::mem::take(encoder.get_mut()));
            Ok((encoder, packed))
        })
        .await?;
        if let Some(packed) = packed {
            send(&to, packed).await?;
        }
    }
    let rest = blocking(move || encoder.finish()).await?;
    send(&to, rest).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, BackupError> {
    let done = spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(BackupError::Zstd)
}

async fn send(to: &mpsc::Sender<Bytes>, packed: Vec<u8>) -> Result<(), BackupError> {
    let sent = to.send(packed.into()).await;
    sent.map_err(|_| BackupError::Abandoned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_packed_comes_back() {
        let (chunks, from) = mpsc::channel(1);
        let (to, mut packed) = mpsc::channel::<Bytes>(1);
        // Bytes that don't compress well, so that there are several chunks.
        let sent: Vec<u8> = (0..3_000_000u32)
            .map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[0])
            .collect();
        let feed = async {
            for chunk in sent.chunks(100_000) {
                chunks.send(Bytes::copy_from_slice(chunk)).await.unwrap();
            }
            drop(chunks);
        };
        let collect = async {
            let mut all = Vec::new();
            while let Some(chunk) = packed.recv().await {
                all.extend_from_slice(&chunk);
            }
            all
        };
        let (outcome, (), all) = tokio::join!(zstd_frame(from, to), feed, collect);
        outcome.unwrap();
        assert_eq!(zstd::decode_all(&all[..]).unwrap(), sent);
    }
}
