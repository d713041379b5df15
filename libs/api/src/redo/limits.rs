//! How long redo may take, and how long a worker may say nothing. What these are for, together with the
//! limits around them, is told in ARCHITECTURE.md under "Who waits how long".

use std::time::Duration;

use palimpsest_redo::{REQUEST_LIMIT, START_LIMIT};

/// How often at least a worker that has jobs says something, if only that it is there.
pub const BEAT: Duration = Duration::from_secs(2);
/// A worker that has jobs and has said nothing for so long stands still: three beats are missing.
pub const SILENCE: Duration = BEAT.saturating_mul(3);
/// How long a job may take in all its attempts: one worker stands still, the next has to start a
/// process first, and then two processes are killed over it. So it shows that its records kill.
const ATTEMPTS: Duration = SILENCE
    .saturating_add(START_LIMIT)
    .saturating_add(REQUEST_LIMIT.saturating_mul(2));
/// How long a job may take that nobody waits for: the process that does it gives way to all that want its CPU.
pub const BACKGROUND_LIMIT: Duration = JOB_LIMIT.saturating_mul(5);
/// How long a job may take, the queue of its worker included: one that is healthy and has much to do must
/// not lose all its jobs at once.
pub const JOB_LIMIT: Duration = ATTEMPTS.saturating_mul(3);
