//! The task that owns the process: it alone knows what is in flight.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::Instant,
};

use crate::{
    RedoError, StartError,
    conversation::{Conversation, Progress},
    launcher::Launcher,
    process::{Obituary, Process},
    wire::Answer,
};

/// How often a request is given to a fresh process because the one before died over another.
const RESUBMISSIONS: u32 = 2;

/// Setbacks (failed starts, deaths) since the last answer that do not delay the next start.
const FREE_SETBACKS: u32 = 3;
const FIRST_DELAY: Duration = Duration::from_millis(10);
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// How long a process may take to notice the end of its input.
const DISMISSAL: Duration = Duration::from_secs(1);

/// What handles send to the owner.
pub(crate) enum Command {
    Run(Job),
    /// Serve what has been submitted, then end; the sender is dropped after that.
    Stop(oneshot::Sender<()>),
}

/// One request, on its way to an answer.
pub(crate) struct Job {
    pub(crate) frame: Bytes,
    pub(crate) reply: oneshot::Sender<Result<Bytes, RedoError>>,
    /// Its share of the byte budget; given back with the answer.
    pub(crate) _share: OwnedSemaphorePermit,
    pub(crate) resubmitted: u32,
}

/// What handles may look at.
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    pub(crate) deaths: AtomicU64,
    /// 0 while no process runs.
    pub(crate) process_id: AtomicU32,
}

pub(crate) struct Owner {
    launcher: Arc<Launcher>,
    vitals: Arc<Vitals>,
    commands: mpsc::Receiver<Command>,
    accepting: bool,
    /// Dropped at the very end; see [`Command::Stop`].
    stoppers: Vec<oneshot::Sender<()>>,
    phase: Phase,
    /// Not given to a process yet, or no longer.
    waiting: VecDeque<Job>,
    /// Given to the running process, in that order.
    in_flight: VecDeque<Job>,
    /// Since when the process has had nothing to work on but the first request in flight.
    first_since: Instant,
    setbacks: u32,
}

/// What becomes of a process.
enum Phase {
    Starting(BoxFuture<Result<Process, StartError>>),
    Running(Box<Conversation>),
    Burying(Cause, BoxFuture<Obituary>),
    /// Between two of the others, within one event.
    Changing,
}

/// Why a process was given up.
#[derive(Debug, Clone, Copy)]
enum Cause {
    Died,
    Overdue,
}

enum Event {
    Submitted(Option<Command>),
    Started(Result<Box<Conversation>, StartError>),
    Progressed(Progress),
    Buried(Obituary),
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Owner {
    /// An owner of a process that is ready.
    pub(crate) fn new(
        launcher: Arc<Launcher>,
        process: Process,
        vitals: Arc<Vitals>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let conversation = Box::new(Conversation::new(process));
        vitals.set_process(conversation.process_id());
        Self {
            launcher,
            vitals,
            commands,
            accepting: true,
            stoppers: Vec::new(),
            phase: Phase::Running(conversation),
            waiting: VecDeque::new(),
            in_flight: VecDeque::new(),
            first_since: Instant::now(),
            setbacks: 0,
        }
    }

    /// Serves until every handle is gone or one asked to stop, and every request is answered.
    pub(crate) async fn run(mut self) {
        while self.accepting || !self.waiting.is_empty() || !self.in_flight.is_empty() {
            let event = self.next_event().await;
            self.apply(event);
        }
        self.vitals.set_process(None);
        if let Phase::Running(conversation) = self.phase {
            conversation.into_process().dismiss(DISMISSAL).await;
        }
        // Whoever asked to stop may expect the process's directory to be gone.
        drop(self.launcher);
        drop(self.stoppers);
    }

    /// Cancel-safe in each branch: receiving is, the futures of a phase are kept in it, and so is
    /// [`Conversation::progress`].
    async fn next_event(&mut self) -> Event {
        let room =
            self.waiting.len() + self.in_flight.len() < self.launcher.settings().max_taken.max(1);
        let timeout = self.launcher.settings().request_timeout;
        let deadline = (!self.in_flight.is_empty()).then(|| self.first_since + timeout);
        tokio::select! {
            command = self.commands.recv(), if self.accepting && room => Event::Submitted(command),
            event = self.phase.next_event(deadline) => event,
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Submitted(Some(Command::Run(job))) => {
                self.waiting.push_back(job);
                self.submit_waiting();
            }
            Event::Submitted(Some(Command::Stop(stopper))) => {
                // What is in the channel already is still received.
                self.commands.close();
                self.stoppers.push(stopper);
            }
            Event::Submitted(None) => self.accepting = false,
            Event::Started(Ok(conversation)) => {
                self.vitals.set_process(conversation.process_id());
                self.phase = Phase::Running(conversation);
                self.submit_waiting();
            }
            Event::Started(Err(error)) => self.start_failed(error),
            Event::Progressed(Progress::Wrote(Ok(_))) => {}
            Event::Progressed(Progress::Read(Ok(1..))) => self.deliver(),
            Event::Progressed(Progress::DeadlinePassed) => self.give_up(Cause::Overdue),
            Event::Progressed(Progress::Wrote(Err(_)) | Progress::Read(Ok(0) | Err(_))) => {
                self.give_up(Cause::Died);
            }
            Event::Buried(obituary) => self.start_again(obituary),
        }
    }

    /// Gives waiting requests to the process, as many as it may have, if one runs.
    fn submit_waiting(&mut self) {
        let Phase::Running(conversation) = &mut self.phase else {
            return;
        };
        let most = self.launcher.settings().max_in_flight.max(1);
        while self.in_flight.len() < most {
            let Some(job) = self.waiting.pop_front() else {
                return;
            };
            // Nobody waits for the answer any more.
            if job.reply.is_closed() {
                continue;
            }
            if self.in_flight.is_empty() {
                self.first_since = Instant::now();
            }
            conversation.say(job.frame.clone());
            self.in_flight.push_back(job);
        }
    }

    /// Hands out the answers that have arrived.
    fn deliver(&mut self) {
        let Phase::Running(conversation) = &mut self.phase else {
            return;
        };
        loop {
            let answer = match conversation.next_answer() {
                Ok(Some(answer)) => answer,
                Ok(None) => return self.submit_waiting(),
                Err(error) => {
                    tracing::warn!(%error, "the redo process sent no answer");
                    return self.give_up(Cause::Died);
                }
            };
            let Some(job) = self.in_flight.pop_front() else {
                tracing::warn!("the redo process answered without having been asked");
                return self.give_up(Cause::Died);
            };
            self.first_since = Instant::now();
            self.setbacks = 0;
            job.answer(match answer {
                Answer::Done(body) => Ok(body),
                Answer::Refused(message) => Err(RedoError::Refused { message }),
            });
        }
    }

    fn give_up(&mut self, cause: Cause) {
        let Phase::Running(conversation) = std::mem::replace(&mut self.phase, Phase::Changing)
        else {
            return;
        };
        self.vitals.deaths.fetch_add(1, Ordering::Relaxed);
        self.vitals.set_process(None);
        self.phase = Phase::Burying(cause, Box::pin(conversation.into_process().bury()));
    }

    /// Fails the suspect, saves the others, and starts the next process.
    fn start_again(&mut self, obituary: Obituary) {
        let cause = match self.phase {
            Phase::Burying(cause, _) => cause,
            _ => Cause::Died,
        };
        let saved = self.in_flight.len().saturating_sub(1);
        tracing::warn!(?cause, %obituary, saved, "a redo process ended; starting another");
        if let Some(suspect) = self.in_flight.pop_front() {
            let limit = self.launcher.settings().request_timeout;
            suspect.answer(Err(match cause {
                Cause::Died => RedoError::Died {
                    obituary: obituary.clone(),
                },
                Cause::Overdue => RedoError::Overdue { limit },
            }));
        }
        // Back in front, in their order: they are older than what waits.
        for mut job in std::mem::take(&mut self.in_flight).into_iter().rev() {
            if job.resubmitted == RESUBMISSIONS {
                job.answer(Err(RedoError::Disturbed {
                    obituary: obituary.clone(),
                }));
            } else {
                job.resubmitted += 1;
                self.waiting.push_front(job);
            }
        }
        self.start();
    }

    fn start_failed(&mut self, error: StartError) {
        let source = Arc::new(error);
        tracing::error!(error = %source, "no redo process could be started");
        for job in self.waiting.drain(..) {
            job.answer(Err(RedoError::Unavailable {
                source: Arc::clone(&source),
            }));
        }
        self.start();
    }

    fn start(&mut self) {
        let delay = start_delay(self.setbacks);
        self.setbacks = self.setbacks.saturating_add(1);
        let launcher = Arc::clone(&self.launcher);
        self.phase = Phase::Starting(Box::pin(async move { launcher.launch(delay).await }));
    }
}

impl Vitals {
    fn set_process(&self, id: Option<u32>) {
        self.process_id
            .store(id.unwrap_or_default(), Ordering::Relaxed);
    }
}

impl Phase {
    async fn next_event(&mut self, deadline: Option<Instant>) -> Event {
        match self {
            Self::Starting(start) => Event::Started(
                start
                    .await
                    .map(|process| Box::new(Conversation::new(process))),
            ),
            Self::Running(conversation) => Event::Progressed(conversation.progress(deadline).await),
            Self::Burying(_, burial) => Event::Buried(burial.await),
            Self::Changing => std::future::pending().await,
        }
    }
}

impl Job {
    fn answer(self, result: Result<Bytes, RedoError>) {
        // The caller may have gone away meanwhile.
        let _ = self.reply.send(result);
    }
}

/// Doubles with each setback past the free ones.
fn start_delay(setbacks: u32) -> Duration {
    match setbacks.checked_sub(FREE_SETBACKS) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_DELAY
            .saturating_mul(1 << doublings.min(16))
            .min(LONGEST_DELAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_delayed_only_after_repeated_setbacks_and_never_for_long() {
        assert_eq!(start_delay(0), Duration::ZERO);
        assert_eq!(start_delay(2), Duration::ZERO);
        assert_eq!(start_delay(3), Duration::from_millis(10));
        assert_eq!(start_delay(5), Duration::from_millis(40));
        assert_eq!(start_delay(u32::MAX), LONGEST_DELAY);
    }
}
