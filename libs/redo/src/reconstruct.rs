use bytes::Bytes;
use palimpsest_types::{ErrorKind, Reason};
use palimpsest_wal::truncate_visibility_map_page;

use crate::{
    chain::{Chain, InvalidChainError},
    engine::{ApplyRequest, Engine, EngineError},
    plan::{Limits, Step, plan},
};

/// A page could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ReconstructError {
    /// Its history is incomplete.
    #[error(transparent)]
    Chain(#[from] InvalidChainError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl ReconstructError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Chain(_) => ErrorKind::Corrupt,
            Self::Engine(error) => error.kind,
        }
    }

    /// What is so.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Chain(_) => Reason::Damaged,
            Self::Engine(error) => error.reason,
        }
    }
}

/// The page that a chain leads to.
///
/// # Errors
/// If the chain is incomplete or the engine can't replay it. Never a page of zeros instead.
pub async fn reconstruct<E: Engine>(engine: &E, chain: Chain) -> Result<Bytes, ReconstructError> {
    let (rel, block) = (chain.rel, chain.block);
    let missing = chain.no_base();
    let mut page = None;
    for step in plan(chain, Limits::default())? {
        page = Some(match step {
            Step::Start(start) => start,
            Step::Replay(records) => {
                engine
                    .apply(ApplyRequest {
                        rel,
                        block,
                        base: page,
                        records,
                    })
                    .await?
            }
            Step::TruncateVisibilityMap(heap_blocks) => {
                let mut bytes = Vec::from(page.ok_or_else(|| missing.clone())?);
                truncate_visibility_map_page(&mut bytes, heap_blocks);
                bytes.into()
            }
        });
    }
    page.ok_or_else(|| missing.into())
}
