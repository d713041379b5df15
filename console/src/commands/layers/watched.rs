//! Showing how far a compaction is while it goes on.

use std::{convert::Infallible, time::Duration};

use palimpsest_api::{
    TimelineRef,
    compaction::{CompactorClient, WorkInfo},
};
use palimpsest_types::ByteCount;
use tokio::time::sleep;

use crate::progress::{Progress, Step};

/// How often the compactor is asked.
const POLL: Duration = Duration::from_millis(500);

/// Waits for a compaction. On a terminal it shows how far that is; elsewhere nobody would see it move.
pub(super) async fn watched<T>(
    compactor: &CompactorClient,
    timeline: TimelineRef,
    compaction: impl Future<Output = T>,
) -> T {
    let Some(mut progress) = Progress::on_terminal() else {
        return compaction.await;
    };
    progress.show(&Step::new("compacting"));
    // Cancel-safe: what is cancelled only asks.
    let outcome = tokio::select! {
        outcome = compaction => outcome,
        never = show(compactor, timeline, &mut progress) => match never {},
    };
    progress.end();
    outcome
}

async fn show(
    compactor: &CompactorClient,
    timeline: TimelineRef,
    progress: &mut Progress,
) -> Infallible {
    loop {
        sleep(POLL).await;
        // If it does not answer, the compaction itself will say so.
        if let Ok((Some(work), _)) = compactor.activity().await
            && work.timeline == timeline
        {
            progress.show(&step(&work));
        }
    }
}

/// As if each layer to write were made of as many bytes.
pub(super) fn step(work: &WorkInfo) -> Step {
    let (layers, bytes) = work.read;
    let (written, all) = (work.written, work.to_write);
    if layers == 0 {
        return Step::new(format!("making images, {written} of at most {all} made"));
    }
    if work.to_write == 0 {
        return Step::new(format!("reading the indexes of {layers} layers"));
    }
    let done = u128::from(bytes.get()) * u128::from(work.written) / u128::from(work.to_write);
    let done = ByteCount::new(u64::try_from(done).unwrap_or(u64::MAX).min(bytes.get()));
    Step {
        what: format!("compacting {layers} layers, {written} of {all} written"),
        share: Some((done, bytes)),
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_types::{TenantId, TimelineId};

    use super::*;

    #[test]
    fn a_step_is_as_far_as_layers_are_written() {
        let of_layers = |layers, written, to_write| {
            step(&WorkInfo {
                timeline: TimelineRef {
                    tenant: TenantId::from_bytes([1; 16]),
                    timeline: TimelineId::from_bytes([2; 16]),
                },
                read: (layers, ByteCount::mib(90)),
                written,
                to_write,
            })
        };
        let of = |written, to_write| of_layers(7, written, to_write);
        assert_eq!(of(0, 0), Step::new("reading the indexes of 7 layers"));
        let some = of(2, 9);
        assert_eq!(some.what, "compacting 7 layers, 2 of 9 written");
        let share = |done| Some((ByteCount::mib(done), ByteCount::mib(90)));
        assert_eq!(some.share, share(20));
        assert_eq!(of(9, 9).share, share(90));
        assert_eq!(of(10, 9).share, share(90), "more than was planned");
        let images = of_layers(0, 3, 40);
        assert_eq!(images, Step::new("making images, 3 of at most 40 made"));
    }
}
