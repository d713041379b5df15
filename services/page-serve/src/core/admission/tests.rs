use futures::FutureExt as _;
use palimpsest_api::page::MAX_BLOCKS;
use palimpsest_types::ErrorKind;

use super::*;

fn pages(count: u64) -> ByteCount {
    ByteCount::new(count * PAGE_SIZE as u64)
}

/// The least there may be, of which each share has room for one request of the largest sort.
fn least() -> Admission {
    Admission::new(AnswerMemory::LEAST)
}

fn in_use(admission: &Admission) -> ByteCount {
    admission.in_use().0
}

#[tokio::test(start_paused = true)]
async fn p7_a_stream_that_is_not_read_takes_no_more_than_its_share() {
    let admission = least();
    let stuck = admission.open().unwrap();
    let held = stuck.enter(MAX_BLOCKS).await.unwrap();
    assert!(stuck.enter(1).now_or_never().is_none(), "beyond its share");
    let all = AnswerMemory::LEAST.get();
    assert_eq!(admission.in_use(), (pages(MAX_BLOCKS as u64), all));
    let other = admission.open().unwrap();
    other.enter(MAX_BLOCKS).await.unwrap();
    drop(held);
    stuck.enter(MAX_BLOCKS).await.unwrap();
    assert_eq!(in_use(&admission), pages(0));
}

#[tokio::test(start_paused = true)]
async fn p7_with_no_room_left_a_request_is_refused_after_a_while() {
    let admission = least();
    let lanes: Vec<_> = (0..9).map(|_| admission.open().unwrap()).collect();
    let mut rooms = Vec::new();
    for lane in &lanes[..8] {
        rooms.push(lane.enter(MAX_BLOCKS).await.unwrap());
    }
    let error = lanes[8].enter(1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Throttled);
    let error = admission.call(Call::Small).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Throttled);
    rooms.pop();
    lanes[8].enter(1).await.unwrap();
    admission.call(Call::Small).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn p7_calls_together_take_no_more_than_a_stream_and_are_refused_after_a_while() {
    let admission = least();
    let listing = admission.call(Call::Listing).await.unwrap();
    assert_eq!(in_use(&admission), pages(LISTING.into()));
    for call in [Call::Small, Call::SlruSegment, Call::Listing] {
        let begun = Instant::now();
        let error = admission.call(call).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Throttled);
        assert_eq!(begun.elapsed(), PATIENCE);
    }
    let stream = admission.open().unwrap();
    stream.enter(MAX_BLOCKS).await.unwrap();
    drop(listing);
    let _segment = admission.call(Call::SlruSegment).await.unwrap();
    assert_eq!(in_use(&admission), pages(32));
}

#[tokio::test(start_paused = true)]
async fn p7_only_so_many_calls_are_worked_on_at_once() {
    let admission = Admission::new(ByteCount::gib(1).try_into().unwrap());
    let mut rooms = Vec::new();
    for _ in 0..SLOTS {
        rooms.push(admission.call(Call::Small).await.unwrap());
    }
    let error = admission.call(Call::Small).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Throttled);
    rooms.pop();
    admission.call(Call::Small).await.unwrap();
}

#[tokio::test]
async fn small_requests_wait_for_a_slot() {
    let admission = Admission::new(ByteCount::gib(1).try_into().unwrap());
    let lane = admission.open().unwrap();
    let mut rooms = Vec::new();
    for _ in 0..SLOTS {
        rooms.push(lane.enter(1).await.unwrap());
    }
    assert!(lane.enter(1).now_or_never().is_none());
    rooms.pop();
    lane.enter(1).await.unwrap();
}

#[test]
fn p7_there_are_only_so_many_streams() {
    let admission = least();
    let mut lanes: Vec<_> = (0..STREAMS).map(|_| admission.open().unwrap()).collect();
    let error = admission.open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Throttled);
    lanes.pop();
    admission.open().unwrap();
}

#[test]
fn a_client_is_stuck_since_it_last_took_an_answer() {
    let lane = least().open().unwrap();
    let (begun, second) = (Instant::now(), Duration::from_secs(1));
    assert_eq!(lane.stuck_for(begun), Duration::ZERO);
    lane.ready(begun);
    lane.ready(begun + second);
    assert_eq!(lane.stuck_for(begun + 3 * second), 3 * second);
    lane.sent(begun + 3 * second);
    assert_eq!(lane.stuck_for(begun + 5 * second), 2 * second);
    lane.sent(begun + 5 * second);
    assert_eq!(lane.stuck_for(begun + 9 * second), Duration::ZERO);
}
