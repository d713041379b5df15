//! The manifests of one timeline in the object store.

mod update;

#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use palimpsest_store::{ObjectStore, StorePath};
use palimpsest_types::{ErrorKind, TenantId, TimelineId};

use crate::{
    envelope::{open, seal},
    error::ManifestError,
    fold::fold,
    layer_list::{LayerList, ObsoleteList},
    list_store::ListStore,
    sequence::{Sequence, SequenceError, Versioned, floor, state_of},
    timeline::TimelineManifest,
};

/// The manifests of one timeline. Keep it: it remembers the lists it has read. Clones share them.
#[derive(Debug, Clone)]
pub struct TimelineManifests {
    sequence: Sequence,
    lists: ListStore,
}

const MAGIC: [u8; 4] = *b"PALM";
const VERSION: u32 = 2;
/// Manifests read until one has all its lists.
const LOADS: usize = 8;
/// Tries to create one object; a repeat finds out whether a failure was one.
const APPENDS: usize = 3;
/// Obsolete lists deleted in one publish. A publish makes at most a few obsolete.
const DELETED_AT_ONCE: usize = 32;
/// Before something is tried again, growing from the first to the last, with jitter.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

impl TimelineManifests {
    /// Those of this timeline.
    pub fn new(store: ObjectStore, tenant: TenantId, timeline: TimelineId) -> Self {
        let path = StorePath::timeline(tenant, timeline);
        Self {
            sequence: Sequence::new(store.clone(), path.child("manifest")),
            lists: ListStore::new(store, path.child("lists")),
        }
    }

    /// The newest manifest; `None` until the base backup is complete.
    ///
    /// # Errors
    /// If it can't be read.
    pub async fn newest(&self) -> Result<Option<Versioned<TimelineManifest>>, ManifestError> {
        let mut incomplete = None;
        for _ in 0..LOADS {
            let Some(Versioned { number, state }) = self.sequence.newest().await? else {
                return Ok(None);
            };
            let mut manifest: TimelineManifest = open(MAGIC, VERSION, &state)
                .map_err(|source| ManifestError::Damaged { number, source })?;
            let lists = match self.lists.load(&manifest.lists).await {
                // So many were published since that this one's lists are deleted: the next time
                // there must be a newer one.
                Err(ManifestError::MissingList { .. }) if incomplete != Some(number) => {
                    incomplete = Some(number);
                    continue;
                }
                outcome => outcome?,
            };
            let contradiction = |source| ManifestError::Contradiction { number, source };
            manifest.assemble(&lists).map_err(contradiction)?;
            manifest.check().map_err(contradiction)?;
            self.lists.forget_but(&manifest.lists);
            return Ok(Some(Versioned {
                number,
                state: manifest,
            }));
        }
        Err(ManifestError::Contended)
    }

    /// What an object below `manifest` says by itself, without the layers that its lists have. None
    /// if it is no manifest.
    pub fn of_object(object: &Bytes) -> Option<TimelineManifest> {
        open(MAGIC, VERSION, &state_of(object).ok()?).ok()
    }

    /// Publishes `manifest` in the place of number `after` (0 for none), and gives it back as it is
    /// in the store now. Who may publish is not asked here: see [`TimelineManifests::update`].
    ///
    /// # Errors
    /// If it contradicts itself, another publisher was first, or the timeline was deleted, of which then
    /// nothing is left. After an error of the store it is open whether it was published.
    pub async fn publish(
        &self,
        after: u64,
        mut manifest: TimelineManifest,
    ) -> Result<Versioned<TimelineManifest>, ManifestError> {
        manifest.check().map_err(ManifestError::Refused)?;
        self.delete_obsolete(after, &mut manifest).await;
        let list = self.fold(after.saturating_add(1), &mut manifest).await?;
        manifest.nonce = rand::random();
        let object = seal(MAGIC, VERSION, &manifest).map_err(ManifestError::Encode)?;
        match self.append(after, object).await {
            Ok(number) => {
                self.lists.forget_but(&manifest.lists);
                Ok(Versioned {
                    number,
                    state: manifest,
                })
            }
            Err(error) => {
                match (&error, list) {
                    (SequenceError::Lost { .. }, Some(list)) => self.discard(after, &list).await,
                    (SequenceError::Emptied { .. }, Some(list)) => {
                        // That the timeline is gone is the news; whoever deletes it comes by again.
                        if let Err(error) = self.lists.delete(&list).await {
                            let error = &error as &dyn std::error::Error;
                            tracing::debug!(
                                error,
                                "a list of layers that nobody refers to is left"
                            );
                        }
                    }
                    _ => {}
                }
                Err(error.into())
            }
        }
    }

    async fn append(&self, after: u64, object: Bytes) -> Result<u64, SequenceError> {
        let mut attempt = 1;
        loop {
            match self.sequence.append(after, object.clone()).await {
                Err(error) if error.kind() == ErrorKind::NotReady && attempt < APPENDS => {
                    back_off(attempt).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// Moves the edits to a list once they are many. Gives the name of the list if there is one.
    async fn fold(
        &self,
        number: u64,
        manifest: &mut TimelineManifest,
    ) -> Result<Option<String>, ManifestError> {
        let sizes: Vec<_> = manifest.lists.iter().map(|list| list.edits).collect();
        let Some(merged) = fold(manifest.edits.len(), &sizes) else {
            return Ok(None);
        };
        let kept = manifest.lists.len() - merged;
        let lists = self
            .lists
            .load(manifest.lists.get(kept..).unwrap_or_default())
            .await?;
        let list = LayerList::merge(lists.iter().map(AsRef::as_ref), &manifest.edits);
        let created = if list.is_empty() {
            None
        } else {
            Some(self.lists.create(list).await?)
        };
        let obsolete = manifest.lists.drain(kept..).map(|list| ObsoleteList {
            name: list.name,
            since: number,
        });
        manifest.obsolete.extend(obsolete);
        manifest.edits.clear();
        let name = created.as_ref().map(|list| list.name.clone());
        manifest.lists.extend(created);
        Ok(name)
    }

    /// Deletes lists that no manifest refers to which may still exist. What fails stays noted.
    async fn delete_obsolete(&self, after: u64, manifest: &mut TimelineManifest) {
        // Number `after` exists, so its floor holds whether or not we come to publish.
        let floor = floor(after);
        let due = |list: &&ObsoleteList| list.since <= floor;
        let due = manifest.obsolete.iter().filter(due).take(DELETED_AT_ONCE);
        let mut deleted = Vec::new();
        for list in due {
            match self.lists.delete(&list.name).await {
                Ok(()) => deleted.push(list.name.clone()),
                Err(error) => {
                    tracing::debug!(
                        list = list.name,
                        error = &error as &dyn std::error::Error,
                        "an obsolete layer list is not deleted yet"
                    );
                    break;
                }
            }
        }
        manifest
            .obsolete
            .retain(|list| !deleted.contains(&list.name));
    }

    /// Deletes the list of a manifest that has lost, unless it is in use nevertheless: a loss is
    /// also reported when an answer came too late. If this fails, an object is left that nobody
    /// refers to.
    async fn discard(&self, after: u64, list: &str) {
        let Ok(Some(newest)) = self.sequence.newest().await else {
            return;
        };
        let Ok(manifest) = open::<TimelineManifest>(MAGIC, VERSION, &newest.state) else {
            return;
        };
        let used = manifest.lists.iter().any(|used| used.name == list)
            || manifest.obsolete.iter().any(|used| used.name == list);
        if newest.number > after
            && !used
            && let Err(error) = self.lists.delete(list).await
        {
            tracing::debug!(
                list,
                error = &error as &dyn std::error::Error,
                "an unused layer list is left over"
            );
        }
    }
}

/// Waits before the next attempt, a random part of a time that doubles with each.
async fn back_off(attempt: usize) {
    let (first, last) = BACK_OFF;
    let full = first.saturating_mul(1 << attempt.min(16)).min(last);
    tokio::time::sleep(full.mul_f64(rand::random_range(0.5..1.0))).await;
}
