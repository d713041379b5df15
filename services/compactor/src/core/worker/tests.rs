//! Compaction of real files in a real store.

use std::time::SystemTime;

use palimpsest_api::broker::TimelineState;
use palimpsest_manifest::{CompactorClaim, InvalidManifestError, LayerKind, ManifestError};
use palimpsest_store::StorePath;
use palimpsest_types::Key;
use palimpsest_wal::Value;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{
    super::{
        fixture::{
            Fixture, TIMELINE, Versions, Written, any_layers, fill, key, layers_directory, policy,
            runtime, view,
        },
        plan::choose,
    },
    *,
};

/// Blocks count for their last key, whatever else they have: one in each layer may have most of another.
const BLOCKS: u64 = 8 * 80_000;

/// What there is of the largest key, apart from the one that is meant to be hot.
fn largest(versions: &Versions) -> u64 {
    let mut sizes: HashMap<Key, u64> = HashMap::new();
    for ((key, _), value) in versions {
        let len = match value {
            Value::Record { record, .. } => record.bytes.len(),
            Value::File(content) => content.len(),
            other => panic!("{other:?}"),
        };
        *sizes.entry(*key).or_default() += len as u64 + 100;
    }
    sizes.remove(&key(7));
    sizes.into_values().max().unwrap_or(0)
}

#[test]
fn p5_compaction_keeps_every_version_and_leaves_few_layers_for_each_key() {
    let runtime = runtime();
    let target = prop_oneof![2 => 200..60_000u64, 1 => 200_000..2_000_000u64];
    let input = (any_layers(), 2..4usize, 2..6usize, target);
    let config = Config::with_cases(48);
    let tested = TestRunner::new(config).run(&input, |(layers, threshold, at_once, target)| {
        runtime.block_on(async {
            let fixture = Fixture::new().await;
            let written = fill(&fixture, &layers).await;
            assert_eq!(fixture.versions().await, written);
            let at_once = at_once.max(threshold);
            let compactor = fixture.compactor(policy(threshold, at_once, target));
            let mut rounds = 0;
            while let Some(done) = compactor
                .compact(TIMELINE, &compactor.policy)
                .await
                .unwrap()
            {
                // Two generations at least, however large they are: else nothing would come of it.
                assert!(done.read.0 >= 2, "{done:?}");
                assert_eq!(fixture.versions().await, written);
                rounds += 1;
            }
            fixture.read_each(&written).await;
            let manifest = fixture.newest().await.state;
            let fresh = manifest.layers().iter().filter(|layer| layer.level == 0);
            assert!(fresh.count() - 1 < threshold, "but for the base");
            // Of each key the layers that a read may visit: one for each round, and what was left.
            let visits = |key| {
                let has = |layer: &&LayerEntry| layer.level > 0 && layer.keys.contains(key);
                manifest.layers().iter().filter(has).count()
            };
            let most = (0..40)
                .filter(|block| *block != 7)
                .map(|block| visits(key(block)));
            let most = most.max().unwrap_or(0);
            let is_hot = target < 2 * largest(&written) + BLOCKS;
            assert!(
                most <= rounds || is_hot,
                "{most} layers of a key after {rounds} rounds"
            );
        });
        Ok(())
    });
    tested.unwrap();
}

#[test]
fn p1_what_one_compaction_cut_by_lsn_is_not_torn_by_the_next() {
    // Of two keys, one of them so hot that it is cut by LSN; then little of both, again and again.
    let hot = |times| (0..times).map(|_| ([7].into(), true, 30_000));
    let cold = || [([3].into(), true, 30_000)].into_iter();
    let layer = |times| cold().chain(hot(times)).chain(cold()).collect();
    let little = || vec![([3].into(), true, 100), ([7].into(), true, 100)];
    let mut layers = vec![layer(13), layer(12)];
    layers.extend((0..6).map(|_| little()));
    runtime().block_on(async {
        let fixture = Fixture::new().await;
        let written = fill(&fixture, &layers).await;
        let compactor = fixture.compactor(policy(2, 2, 100_000));
        let compact = || compactor.compact(TIMELINE, &compactor.policy);
        compact().await.unwrap();
        let first = fixture.newest().await.state;
        let made = first.layers().iter().filter(|layer| layer.level == 1);
        let made: Vec<_> = made
            .map(|layer| (layer.keys, layer.kind, layer.size))
            .collect();
        let last = made.iter().max_by_key(|(_, kind, _)| match kind {
            LayerKind::Delta(lsns) => (lsns.up_to, lsns.after),
            _ => (Lsn::ZERO, Lsn::ZERO),
        });
        let is_small = last.is_some_and(|(.., size)| *size < compactor.policy.target);
        assert!(made.len() > 3 && is_small, "{made:?}");
        while compact().await.unwrap().is_some() {
            fixture.read_each(&written).await;
        }
    });
}

#[test]
fn layers_of_the_same_lsns_that_share_records_become_one_again() {
    // Of two keys that the same records change, the layers that are made first have one each.
    let both = || ([3, 7].into(), false, 30_000);
    let one = |block| ([block].into(), true, 30_000);
    let layer = || vec![one(3), both(), one(7), one(3), both(), one(7)];
    runtime().block_on(async {
        let fixture = Fixture::new().await;
        let written = fill(&fixture, &[layer(), layer(), layer(), layer()]).await;
        let small = fixture.compactor(policy(2, 2, 1_000));
        for _ in 0..2 {
            small.compact(TIMELINE, &small.policy).await.unwrap();
        }
        let apart = fixture.newest().await.state;
        assert!(apart.layers().iter().filter(|it| it.level == 1).count() > 3);
        let large = fixture.compactor(policy(2, 32, 10_000_000));
        let done = large.compact(TIMELINE, &large.policy).await.unwrap();
        assert_eq!(done.unwrap().written.0, 1);
        assert_eq!(fixture.versions().await, written);
    });
}

#[test]
fn p4_what_a_superseded_compactor_made_is_not_published() {
    runtime().block_on(async {
        let fixture = Fixture::new().await;
        let one = |block| vec![([block].into(), false, 10)];
        let written = fill(&fixture, &[one(1), one(2), one(3)]).await;
        let policy = policy(2, 8, 1 << 20);
        let (slow, quick) = (fixture.compactor(policy), fixture.compactor(policy));
        let manifests = fixture.manifests();
        let mut known = fixture.newest().await;
        let claim = slow.claimant.claim(TIMELINE, manifests.clone(), &mut known);
        let claim = claim.await.unwrap();
        let plan = choose(known.state.layers(), &policy).unwrap();
        let job = slow.shop.begin(TIMELINE, claim.epoch(), policy.target);
        let made = job.make(&plan).await.unwrap();
        // While the claim holds, others do not begin.
        let taken = quick.compact(TIMELINE, &policy).await.unwrap_err();
        assert!(taken.is_of_another(), "{taken}");
        // Then its time is up.
        let mut expired = fixture.newest().await;
        let edit = |manifest: &mut TimelineManifest| {
            let ended = CompactorClaim::new(slow.claimant.id, SystemTime::UNIX_EPOCH, policy.claim);
            manifest.compactor_claim = Some(ended);
            Ok::<_, InvalidManifestError>(true)
        };
        let renewed = manifests.update(claim.epoch(), &mut expired, edit).await;
        assert!(renewed.unwrap());
        quick.compact(TIMELINE, &policy).await.unwrap().unwrap();
        let after = fixture.newest().await;
        let late = claim.publish(&mut known, &plan.inputs, &made).await;
        assert!(matches!(
            late,
            Err(CompactError::Manifest(ManifestError::Superseded { .. }))
        ));
        assert_eq!(fixture.newest().await, after);
        assert_eq!(fixture.versions().await, written);
        assert!(
            quick.compact(TIMELINE, &policy).await.unwrap().is_none(),
            "all done"
        );
    });
}

fn of_block(block: u32) -> Vec<Written> {
    vec![([block].into(), false, 10)]
}

#[test]
fn what_the_storage_broker_does_not_tell_of_is_not_compacted() {
    runtime().block_on(async {
        let fixture = Fixture::new().await;
        fill(&fixture, &[of_block(1), of_block(2)]).await;
        let before = fixture.newest().await;
        let policy = policy(2, 8, 1 << 20);
        let compactor = Arc::new(fixture.compactor(policy));
        for cluster in [ClusterView::default(), view(TimelineState::Deleting)] {
            fixture.cluster.send_replace(cluster);
            let refused = Arc::clone(&compactor).compact_now(TIMELINE, policy).await;
            let refused = refused.unwrap_err();
            assert_eq!(refused.kind(), palimpsest_types::ErrorKind::NotFound);
            assert!(refused.is_of_another(), "{refused}");
        }
        assert_eq!(fixture.newest().await, before);
        fixture.cluster.send_replace(view(TimelineState::Streaming));
        let done = compactor.compact_now(TIMELINE, policy).await.unwrap();
        assert_eq!(done.unwrap().read.0, 2);
    });
}

#[test]
fn of_a_timeline_that_is_deleted_meanwhile_nothing_is_left() {
    runtime().block_on(async {
        let fixture = Fixture::new().await;
        fill(&fixture, &[of_block(1), of_block(2)]).await;
        let policy = Policy {
            claim: Duration::from_millis(30),
            ..policy(2, 8, 1 << 20)
        };
        let compactor = fixture.compactor(policy);
        let mut newest = fixture.newest().await;
        let claim = compactor
            .claimant
            .claim(TIMELINE, fixture.manifests(), &mut newest);
        let claim = claim.await.unwrap();
        let plan = choose(newest.state.layers(), &policy).unwrap();
        // All layers were made when it goes, and nobody has told yet.
        let job = compactor.shop.begin(TIMELINE, claim.epoch(), policy.target);
        let made = job.make(&plan).await.unwrap();
        let path = StorePath::timeline(TIMELINE.tenant, TIMELINE.timeline);
        fixture.store.delete_below(&path).await.unwrap();
        let late = claim
            .publish(&mut newest.clone(), &plan.inputs, &made)
            .await;
        assert!(late.unwrap_err().is_of_another());
        assert_eq!(fixture.store.list(&path).await.unwrap(), []);
        // Once it was told, the claim is not renewed and no layer is put there.
        fixture.cluster.send_replace(ClusterView::default());
        let known = compactor.shop.known();
        let kept = claim.keep(known, newest.clone()).await;
        assert!(matches!(kept, CompactError::NotKnown(_)), "{kept}");
        let put = job.put(&made[0], vec![1].into()).await.unwrap_err();
        assert!(matches!(put, CompactError::NotKnown(_)), "{put}");
        assert_eq!(fixture.store.list(&path).await.unwrap(), []);
    });
}

#[test]
fn layers_of_a_timeline_that_goes_are_taken_back() {
    runtime().block_on(async {
        let fixture = Fixture::new().await;
        let layer = |at: u32| {
            (0..40)
                .map(|block| ([block + at].into(), true, 20_000))
                .collect()
        };
        fill(&fixture, &[layer(0), layer(40)]).await;
        let policy = policy(2, 8, 20_000);
        let compactor = fixture.compactor(policy);
        let mut newest = fixture.newest().await;
        let list = async || fixture.store.list(&layers_directory()).await.unwrap();
        let before = list().await;
        let claim = compactor
            .claimant
            .claim(TIMELINE, fixture.manifests(), &mut newest);
        let claim = claim.await.unwrap();
        let plan = choose(newest.state.layers(), &policy).unwrap();
        let carried_out = compactor.carry_out(TIMELINE, &claim, newest.clone(), &plan);
        let goes = async {
            while list().await.len() < before.len() + 3 {
                tokio::task::yield_now().await;
            }
            fixture.cluster.send_replace(view(TimelineState::Deleted));
        };
        let (carried_out, ()) = tokio::join!(carried_out, goes);
        let error = carried_out.unwrap_err();
        assert!(matches!(error, CompactError::Deleted), "{error}");
        assert_eq!(list().await, before);
        assert_eq!(fixture.newest().await, newest, "nothing was published");
    });
}

#[test]
fn p8_a_damaged_layer_holds_up_no_others() {
    runtime().block_on(async {
        let fixture = Fixture::new().await;
        fill(&fixture, &[1, 2, 3, 4].map(of_block)).await;
        let layers = fixture.newest().await.state;
        let damaged = layers_directory().child(&layers.layers()[1].name);
        fixture.store.delete(&damaged).await.unwrap();
        let noise = vec![7_u8; 5_000];
        fixture.store.put_once(&damaged, noise).await.unwrap();
        let policy = policy(2, 2, 1 << 20);
        let compactor = fixture.compactor(policy);
        let error = compactor.compact(TIMELINE, &policy).await.unwrap_err();
        assert_eq!(error.kind(), palimpsest_types::ErrorKind::Corrupt);
        let claim = fixture.newest().await.state.compactor_claim;
        assert!(claim.is_none(), "another may try");
        let done = compactor.compact(TIMELINE, &policy).await.unwrap();
        assert_eq!(done.unwrap().read.0, 2);
        let done = compactor.compact(TIMELINE, &policy).await.unwrap();
        assert!(done.is_none(), "{done:?}");
    });
}
