//! How long a page-serve may take for an answer, and who gives up when. What these are for, together with
//! the limits around them, is told in ARCHITECTURE.md under "Who waits how long".

use std::time::Duration;

use super::PagesRequest;
use crate::redo::JOB_LIMIT;

/// How long a request waits for its LSN, unless it or the page-serve says something else.
pub const LSN_PATIENCE: Duration = Duration::from_secs(10);
/// How long a page-serve may take for an answer once its LSN is there, and there is room for it. That may be
/// many reads of the store and many jobs one after the other, each with a limit of its own, so this is
/// not for whoever is slow: it is far more than any answer takes, and all that is left for what hangs.
pub const ANSWER_LIMIT: Duration = JOB_LIMIT.saturating_mul(4);

/// What the outer of two limits has more than the inner one.
const MARGIN: Duration = Duration::from_secs(2);

/// The request, which says now how long to wait for its LSN, and how long to wait for its answer: a
/// page-serve that has none by then does not keep to its own limits.
pub(super) fn limited(mut request: PagesRequest) -> (PagesRequest, Duration) {
    let patience = *request.at.patience.get_or_insert(LSN_PATIENCE);
    let answer = ANSWER_LIMIT.saturating_add(MARGIN);
    (request, patience.saturating_add(answer))
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{BlockNumber, TenantId, TimelineId};

    use super::*;
    use crate::{TimelineRef, page::ReadAt, redo::SILENCE};

    fn deadline(patience: Option<Duration>) -> (Option<Duration>, Duration) {
        let request = PagesRequest {
            timeline: TimelineRef {
                tenant: TenantId::from_bytes([1; 16]),
                timeline: TimelineId::from_bytes([2; 16]),
            },
            at: ReadAt {
                patience,
                ..ReadAt::default()
            },
            rel: "1663/5/16384".parse().unwrap(),
            blocks: vec![BlockNumber::ZERO],
        };
        let (request, deadline) = limited(request);
        (request.at.patience, deadline)
    }

    #[test]
    fn whoever_waits_for_another_waits_longer() {
        assert!(SILENCE < JOB_LIMIT && JOB_LIMIT < ANSWER_LIMIT);
        let patiences = [1, 10, 600].map(Duration::from_secs);
        for patience in patiences {
            let (said, deadline) = deadline(Some(patience));
            assert_eq!(said, Some(patience));
            assert!(deadline > patience + ANSWER_LIMIT);
        }
        // Else a page-serve that is set to wait longer would.
        let (said, longest) = deadline(None);
        assert!(longest > said.unwrap() + ANSWER_LIMIT);
        assert_eq!(deadline(Some(Duration::MAX)).1, Duration::MAX);
    }
}
