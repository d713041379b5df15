//! Strikes at any step of a compactor's or wal-ingest's work: a process that kills or halts itself right before or
//! right after what it asks of the object store.
//!
//! From outside a process can only be struck at random. In here its object store is one that counts
//! what is asked, writes a diary of it, and strikes as a [`Plan`] says. Only the judges' own binary
//! `service` has it, and only if it is told to: see [`Orders`].

mod diary;
mod plan;
mod steps;
mod store;

use std::{env, num::NonZeroU32, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use palimpsest_store::{ObjectStore, StoreLocation, faulty::FaultyStore};

pub use diary::{Diary, Entry};
pub use plan::{Action, Moment, ParsePlanError, Plan, Step, Strike};

use store::StruckStore;

/// What a process is told by its environment: where its diary is, and how it strikes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orders {
    diary: PathBuf,
    plan: Plan,
}

/// The file that the diary is written to.
pub const DIARY_VARIABLE: &str = "PALIMPSEST_JUDGE_DIARY";
/// The strikes, as [`Plan`] is written; none if it is not set.
pub const STRIKES_VARIABLE: &str = "PALIMPSEST_JUDGE_STRIKES";

impl Orders {
    /// Those of this process, if it has any.
    ///
    /// # Errors
    /// If they can't be understood, or there are strikes without a diary.
    pub fn from_env() -> Result<Option<Self>> {
        let plan = match env::var(STRIKES_VARIABLE) {
            Ok(text) => Some(text.parse().with_context(|| STRIKES_VARIABLE.to_owned())?),
            Err(env::VarError::NotPresent) => None,
            Err(error) => return Err(error).context(STRIKES_VARIABLE),
        };
        match (env::var_os(DIARY_VARIABLE), plan) {
            (Some(diary), plan) => Ok(Some(Self {
                diary: diary.into(),
                plan: plan.unwrap_or_default(),
            })),
            (None, None) => Ok(None),
            (None, Some(_)) => anyhow::bail!("{STRIKES_VARIABLE} is set, {DIARY_VARIABLE} is not"),
        }
    }

    /// The object store at a place, as one that strikes.
    ///
    /// # Errors
    /// If it is no directory, or that or the diary can't be used.
    pub async fn open(&self, location: &StoreLocation) -> Result<ObjectStore> {
        let directory = location.directory();
        let directory = directory.context("only a process on a directory strikes itself")?;
        // It never fails: it is how a test gets at the store below the interface that is used.
        let (files, _) = FaultyStore::in_directory(directory).await?;
        let store = StruckStore::new(files, &self.diary, self.plan.clone())?;
        Ok(ObjectStore::with(Arc::new(store)).await?)
    }
}

impl Strike {
    /// At the first step of a kind.
    pub fn first(moment: Moment, step: Step, action: Action) -> Self {
        Self {
            moment,
            step,
            number: NonZeroU32::MIN,
            action,
        }
    }
}
