use std::{sync::mpsc, time::Duration};

use palimpsest_store::faulty::FaultyStore;

use super::*;
use crate::core::{fixtures::timeline, node::Limits};

#[tokio::test]
async fn what_is_opened_again_waits_for_work_that_was_given_up() {
    let files = tempfile::tempdir().unwrap();
    let (_, store) = FaultyStore::in_memory().await.unwrap();
    let timeline = timeline(store, files.path(), Limits::default());
    let (go, gone) = mpsc::channel::<()>();
    // A flush that was dropped while it wrote a layer.
    drop(timeline.spawn_blocking(move || gone.recv()));
    {
        let mut finishing = pin!(timeline.work.finished());
        let soon = tokio::time::timeout(Duration::from_millis(50), &mut finishing);
        assert!(soon.await.is_err(), "something still writes");
        go.send(()).unwrap();
        finishing.await;
    }
    assert_eq!(timeline.spawn_blocking(|| 1).await.unwrap(), 1);
    timeline.work.finished().await;
    timeline.scope.stop().await;
}
