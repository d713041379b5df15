//! The two byte streams of a running process, moved forward independently of each other.

use std::{collections::VecDeque, io};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep_until},
};

use crate::{
    process::Process,
    wire::{self, Answer, AnswerError},
};

/// Read at once: eight pages with their headers.
const READ_BYTES: usize = 72 << 10;

#[derive(Debug)]
pub(crate) struct Conversation {
    process: Process,
    outgoing: VecDeque<Bytes>,
    incoming: BytesMut,
}

/// Something happened on the pipes.
#[derive(Debug)]
pub(crate) enum Progress {
    Wrote(io::Result<usize>),
    Read(io::Result<usize>),
    DeadlinePassed,
}

impl Conversation {
    pub(crate) fn new(process: Process) -> Self {
        Self {
            process,
            outgoing: VecDeque::new(),
            incoming: BytesMut::new(),
        }
    }

    pub(crate) fn process_id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Queues a request behind those not yet written.
    pub(crate) fn say(&mut self, frame: Bytes) {
        self.outgoing.push_back(frame);
    }

    /// Waits for whichever pipe can move, at most until `deadline`.
    ///
    /// Cancel-safe: both operations either happen and are reported, or do not happen.
    pub(crate) async fn progress(&mut self, deadline: Option<Instant>) -> Progress {
        self.incoming.reserve(READ_BYTES);
        let overdue = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let write = async {
            match self.outgoing.front_mut() {
                Some(frame) => self.process.stdin.write_buf(frame).await,
                None => std::future::pending().await,
            }
        };
        // The deadline last: when this side is what was held up, the answer is there already.
        let progress = tokio::select! {
            biased;
            read = self.process.stdout.read_buf(&mut self.incoming) => Progress::Read(read),
            written = write => Progress::Wrote(written),
            () = overdue => Progress::DeadlinePassed,
        };
        if self
            .outgoing
            .front()
            .is_some_and(|frame| !frame.has_remaining())
        {
            self.outgoing.pop_front();
        }
        progress
    }

    /// The next answer that has arrived as a whole.
    pub(crate) fn next_answer(&mut self) -> Result<Option<Answer>, AnswerError> {
        wire::decode_answer(&mut self.incoming)
    }

    pub(crate) fn into_process(self) -> Process {
        self.process
    }
}
