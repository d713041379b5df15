use std::{
    pin::pin,
    task::{Context, Waker},
};

use palimpsest_read::KeyBounds;
use palimpsest_types::WriterEpoch;

use super::{
    super::{
        fixture::{Fixture, fill, policy, runtime},
        plan::choose,
    },
    *,
};

#[test]
fn what_is_cancelled_ends_at_the_next_read() {
    runtime().block_on(async {
        let fixture = Fixture::new().await;
        let one = |block| vec![([block].into(), false, 10)];
        fill(&fixture, &[one(1), one(2)]).await;
        let manifest = fixture.newest().await.state;
        let plan = choose(manifest.layers(), &policy(2, 8, 1 << 20)).unwrap();
        let mut scans = Vec::new();
        for entry in &plan.inputs {
            let LayerKind::Delta(lsns) = entry.kind else {
                panic!("{entry:?} is planned");
            };
            scans.push(
                LayerScan::open(&fixture.files(), entry, lsns)
                    .await
                    .unwrap(),
            );
        }
        let cell = Cell {
            keys: KeyBounds::default(),
            lsns: plan.lsns,
        };
        let making = Making {
            epoch: WriterEpoch::FIRST,
            most: ByteCount::mib(1),
        };
        let token = CancellationToken::new();
        let mut merged = pin!(merge_until(&token, &scans, &cell, making));
        let mut context = Context::from_waker(Waker::noop());
        // It waits for what it reads first, and is asked whether to go on when that comes.
        assert!(merged.as_mut().poll(&mut context).is_pending());
        token.cancel();
        let outcome = merged.await;
        assert!(matches!(outcome, Err(CompactError::Stopped)), "{outcome:?}");
    });
}
