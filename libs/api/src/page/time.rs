//! Which LSN a time means.

use std::time::{SystemTime, UNIX_EPOCH};

use palimpsest_proto::page::v1 as wire;
use palimpsest_types::Lsn;

use super::{PageClient, malformed};
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
    use std::time::Duration;

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
    }
}
