//! Reading a base backup from the source.

use palimpsest_api::broker::TimelineStatus;
use palimpsest_manifest::LayerEntry;
use palimpsest_postgres::{BackupEvent, BackupOptions, BackupStart, Connection, ControlFile};
use palimpsest_types::{ByteCount, Lsn};

use super::{BackupLayers, Form};
use crate::core::{error::IngestError, timeline::Timeline};

/// A base backup that was read to its end.
pub(in crate::core) struct Backup {
    /// WAL is applied from here on.
    pub(in crate::core) start: Lsn,
    /// From here on it can be read.
    pub(in crate::core) end: Lsn,
    /// All of it.
    pub(in crate::core) layers: Vec<LayerEntry>,
    /// What its control file says.
    pub(in crate::core) control: ControlFile,
}

/// Reads a base backup into the form that `form` gives it once it is known where it begins.
pub(in crate::core) async fn read<F: Form>(
    timeline: &Timeline,
    connection: Connection,
    relation_segment_blocks: u32,
    form: impl FnOnce(&BackupStart) -> Result<F, IngestError>,
) -> Result<Backup, IngestError> {
    let label = format!("palimpsest {}", timeline.slot);
    let mut events = connection.base_backup(&BackupOptions::new(label)).await?;
    let mut form = Some(form);
    let mut begun: Option<(Lsn, BackupLayers<F>)> = None;
    let incomplete = || IngestError::Backup("it has no beginning");
    loop {
        let event = events.next().await?.ok_or_else(incomplete)?;
        match event {
            BackupEvent::Start(start) => {
                let total = start.total.unwrap_or_default();
                timeline.update(|status| {
                    status.backup_done = ByteCount::ZERO;
                    status.backup_total = total;
                });
                let form = form.take().ok_or_else(incomplete)?;
                let layers = BackupLayers::new(form(&start)?, relation_segment_blocks);
                begun = Some((start.lsn, layers));
            }
            BackupEvent::ArchiveStart { tablespace_oid, .. } => {
                let (_, layers) = begun.as_mut().ok_or_else(incomplete)?;
                layers.begin_archive(tablespace_oid)?;
            }
            BackupEvent::Data(data) => {
                timeline.update(|status| count_progress(status, data.len()));
                begun.as_mut().ok_or_else(incomplete)?.1.data(data).await?;
            }
            BackupEvent::Progress(_) => {}
            BackupEvent::End { lsn, .. } => {
                let (start, layers) = begun.ok_or_else(incomplete)?;
                let (layers, control) = layers.finish().await?;
                return Ok(Backup {
                    start,
                    end: lsn,
                    layers,
                    control,
                });
            }
        }
    }
}

fn count_progress(status: &mut TimelineStatus, bytes: usize) {
    let done = ByteCount::new(status.backup_done.get() + bytes as u64);
    // The total is the source's estimate; it may grow meanwhile.
    status.backup_total = status.backup_total.max(done);
    status.backup_done = done;
}
