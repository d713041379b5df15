//! The handle.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use palimpsest_types::BlockNumber;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{
    ApplyRequest, EngineSettings, RedoError, StartError, Verified, Walls,
    launcher::Launcher,
    owner::{Command, Job, Owner, Vitals},
    wire::{self, Operation},
};

/// A handle to one redo process and its successors. Clones share them; the last one that is
/// dropped ends them.
#[derive(Debug, Clone)]
pub struct Engine {
    commands: mpsc::Sender<Command>,
    /// One permit per byte of request.
    budget: Arc<Semaphore>,
    budget_bytes: u32,
    vitals: Arc<Vitals>,
    /// The process runs as another user than we do.
    own_user: bool,
}

impl Engine {
    /// Starts a process and returns when it is ready, which takes about ten milliseconds.
    ///
    /// # Errors
    /// If the process cannot be started; the error carries its messages.
    pub async fn start(settings: EngineSettings) -> Result<Self, StartError> {
        let largest = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
        let wanted = u32::try_from(settings.max_in_flight_bytes.get()).unwrap_or(u32::MAX);
        let budget_bytes = wanted.clamp(1, largest);
        let (commands, inbox) = mpsc::channel(settings.max_taken.max(1));
        let vitals = Arc::new(Vitals::default());
        let own_user = settings.run_as.is_some();

        let launcher = Arc::new(Launcher::new(settings).await?);
        let process = launcher.launch(std::time::Duration::ZERO).await?;
        tokio::spawn(Owner::new(launcher, process, Arc::clone(&vitals), inbox).run());

        let budget = Arc::new(Semaphore::new(budget_bytes as usize));
        Ok(Self {
            commands,
            budget,
            budget_bytes,
            vitals,
            own_user,
        })
    }

    /// The page after the request's last record.
    ///
    /// Idempotent. Dropping the future abandons the request.
    ///
    /// # Errors
    /// See [`RedoError`]; its kind says whether another attempt makes sense.
    pub async fn apply(&self, request: ApplyRequest) -> Result<Bytes, RedoError> {
        let frame = wire::encode_apply(Operation::Apply, &request)?;
        drop(request);
        wire::decode_page(self.run(frame).await?)
    }

    /// As [`Engine::apply`], but compares the page after each record with the image of it that
    /// the record carries if it was written under `wal_consistency_checking`.
    ///
    /// # Errors
    /// As [`Engine::apply`]. A difference is not an error: look at the result.
    pub async fn apply_verify(&self, request: ApplyRequest) -> Result<Verified, RedoError> {
        let frame = wire::encode_apply(Operation::ApplyVerify, &request)?;
        drop(request);
        wire::decode_verified(self.run(frame).await?)
    }

    /// `page` without what may legitimately differ between a primary's page and a replayed one
    /// (hint bits, free space, LSN, checksum), as the resource manager `rmid` sees it.
    ///
    /// # Errors
    /// As [`Engine::apply`]; refused if the resource manager owns no pages.
    pub async fn mask(
        &self,
        rmid: u8,
        block: BlockNumber,
        page: Bytes,
    ) -> Result<Bytes, RedoError> {
        let frame = wire::encode_mask(rmid, block, &page)?;
        drop(page);
        wire::decode_page(self.run(frame).await?)
    }

    /// The walls around the process, as it says itself.
    ///
    /// # Errors
    /// As [`Engine::apply`].
    pub async fn walls(&self) -> Result<Walls, RedoError> {
        let bits = wire::decode_walls(self.run(wire::encode_walls()).await?)?;
        Ok(Walls::new(self.own_user, bits))
    }

    /// How many processes died or were killed over requests since the engine started.
    pub fn deaths(&self) -> u64 {
        self.vitals.deaths.load(Ordering::Relaxed)
    }

    /// The number of the process that serves now; none while it is being replaced.
    pub fn process_id(&self) -> Option<u32> {
        Some(self.vitals.process_id.load(Ordering::Relaxed)).filter(|id| *id != 0)
    }

    /// Answers what has been submitted through any handle, then ends the process.
    pub async fn stop(self) {
        let (stopper, stopped) = oneshot::channel();
        if self.commands.send(Command::Stop(stopper)).await.is_ok() {
            // Never sent on: it is dropped when all is done.
            let _ = stopped.await;
        }
    }

    async fn run(&self, frame: Bytes) -> Result<Bytes, RedoError> {
        // A request larger than the whole budget takes all of it, and so is served alone.
        let share = u32::try_from(frame.len())
            .unwrap_or(u32::MAX)
            .min(self.budget_bytes);
        let share = Arc::clone(&self.budget).acquire_many_owned(share).await;
        let share = share.map_err(|_| RedoError::Stopped)?;
        let (reply, answer) = oneshot::channel();
        let job = Job {
            frame,
            reply,
            _share: share,
            resubmitted: 0,
        };
        self.commands
            .send(Command::Run(job))
            .await
            .map_err(|_| RedoError::Stopped)?;
        answer.await.map_err(|_| RedoError::Stopped)?
    }
}
