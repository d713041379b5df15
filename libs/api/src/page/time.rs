//! Which LSN a time means.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use palimpsest_proto::page::v1 as wire;
use palimpsest_types::Lsn;

use super::{PageClient, ReadAt, malformed};
use crate::{
    convert::{InvalidMessageError, TimelineRef},
    status::RemoteError,
};

/// Which LSN a time means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LsnAtTime {
    /// Here; the next record is of a transaction that ended later.
    Exact(Lsn),
    /// The newest LSN: nothing that has arrived ended later.
    Newest(Lsn),
    /// It is before what can be read.
    BeforeOldest,
}

impl PageClient {
    /// Which LSN of a timeline a time means, as `recovery_target_time` would.
    ///
    /// # Errors
    /// What page-serve says.
    pub async fn lsn_at_time(
        &self,
        timeline: TimelineRef,
        time: SystemTime,
    ) -> Result<LsnAtTime, RemoteError> {
        let request = wire::GetLsnAtTimeRequest {
            timeline: Some(timeline.into()),
            unix_us: unix_us(time),
        };
        let answer = self.unary.clone().get_lsn_at_time(request).await?;
        answer.into_inner().try_into().map_err(malformed)
    }

    /// The latest time at which a transaction of a timeline had ended at an LSN; `None` if none has since the base
    /// backup.
    ///
    /// # Errors
    /// What page-serve says.
    pub async fn time_at_lsn(
        &self,
        timeline: TimelineRef,
        at: ReadAt,
    ) -> Result<Option<SystemTime>, RemoteError> {
        let request = wire::GetTimeAtLsnRequest {
            timeline: Some(timeline.into()),
            read_lsn: Some(at.into()),
        };
        let answer = self.unary.clone().get_time_at_lsn(request).await?;
        Ok(answer.into_inner().unix_us.and_then(time_of))
    }
}

/// The time so many microseconds after 1970, if the clocks of this system go so far.
fn time_of(unix_us: i64) -> Option<SystemTime> {
    let apart = Duration::from_micros(unix_us.unsigned_abs());
    match unix_us {
        0.. => UNIX_EPOCH.checked_add(apart),
        _ => UNIX_EPOCH.checked_sub(apart),
    }
}

/// Microseconds since 1970, before which they are negative.
fn unix_us(time: SystemTime) -> i64 {
    let limited = |micros| i64::try_from(micros).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => limited(after.as_micros()),
        Err(before) => -limited(before.duration().as_micros()),
    }
}

impl From<LsnAtTime> for wire::GetLsnAtTimeResponse {
    fn from(answer: LsnAtTime) -> Self {
        let (answer, lsn) = match answer {
            LsnAtTime::Exact(lsn) => (wire::TimeAnswer::Exact, lsn),
            LsnAtTime::Newest(lsn) => (wire::TimeAnswer::Newest, lsn),
            LsnAtTime::BeforeOldest => (wire::TimeAnswer::BeforeOldest, Lsn::ZERO),
        };
        Self {
            answer: answer.into(),
            lsn: lsn.get(),
        }
    }
}

impl TryFrom<wire::GetLsnAtTimeResponse> for LsnAtTime {
    type Error = InvalidMessageError;

    fn try_from(message: wire::GetLsnAtTimeResponse) -> Result<Self, Self::Error> {
        let lsn = Lsn::new(message.lsn);
        match message.answer() {
            wire::TimeAnswer::Exact => Ok(Self::Exact(lsn)),
            wire::TimeAnswer::Newest => Ok(Self::Newest(lsn)),
            wire::TimeAnswer::BeforeOldest => Ok(Self::BeforeOldest),
            wire::TimeAnswer::Unspecified => Err(InvalidMessageError::missing("answer")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_survive_the_wire() {
        let lsn = Lsn::new(8);
        for answer in [
            LsnAtTime::Exact(lsn),
            LsnAtTime::Newest(lsn),
            LsnAtTime::BeforeOldest,
        ] {
            let message = wire::GetLsnAtTimeResponse::from(answer);
            assert_eq!(LsnAtTime::try_from(message).unwrap(), answer);
        }
    }

    #[test]
    fn times_before_1970_are_negative() {
        let second = Duration::from_secs(1);
        assert_eq!(unix_us(UNIX_EPOCH + second), 1_000_000);
        assert_eq!(unix_us(UNIX_EPOCH - second), -1_000_000);
        for time in [UNIX_EPOCH + second, UNIX_EPOCH - second] {
            assert_eq!(time_of(unix_us(time)), Some(time));
        }
    }
}
