//! The cluster as a whole where a timeline is taken over.

use palimpsest_read::{ReadError, Versions};
use palimpsest_types::Lsn;
use palimpsest_wal::Interpreter;

/// Tells the interpreter how the cluster as a whole is at an LSN. What the layers do not say stays
/// unknown: timelines that were attached before that was kept do not have it.
pub(super) async fn note_cluster<V: Versions>(
    interpreter: &mut Interpreter,
    versions: &V,
    lsn: Lsn,
) -> Result<(), ReadError> {
    let mut known = Vec::new();
    for key in Interpreter::CLUSTER_KEYS {
        let newest = versions.newest(key, Lsn::ZERO..=lsn).await?;
        known.extend(newest.map(|(_, value)| (key, value)));
    }
    let origins = versions.newest_in(Interpreter::origins(), lsn).await?;
    let origins = origins.versions.into_iter();
    known.extend(origins.map(|(key, (_, value))| (key, value)));
    for (key, value) in known {
        let noted = interpreter.note(key, &value);
        noted.map_err(|_| ReadError::WrongValue(key))?;
    }
    Ok(())
}
