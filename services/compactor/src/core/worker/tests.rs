//! Compaction of real files in a real store.

use std::time::SystemTime;

use palimpsest_api::broker::TimelineState;
use palimpsest_manifest::{CompactorClaim, InvalidManifestError};
use palimpsest_store::StorePath;
use proptest::test_runner::{Config, TestRunner};

use super::{
    super::fixture::{
        Fixture, TIMELINE, Written, any_layers, fill, key, layers_directory, policy, runtime, view,
    },
    *,
};

#[test]
fn p5_compaction_keeps_every_version_and_leaves_few_layers_for_each_key() {
    let runtime = runtime();
    let input = (any_layers(), 2..4usize, 2..6usize, 200..60_000u64);
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
            let is_hot = target < 2_000;
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
        let carried_out = compactor.carry_out(TIMELINE, &claim, newest, &plan).await;
        assert!(carried_out.is_err());
        assert_eq!(fixture.store.list(&path).await.unwrap(), []);
    });
}

#[test]
fn layers_of_a_timeline_that_goes_are_taken_back() {
    runtime().block_on(async {
        let fixture = Fixture::new().await;
        fill(&fixture, &[of_block(1), of_block(2)]).await;
        let policy = policy(2, 8, 1 << 20);
        let compactor = fixture.compactor(policy);
        let mut newest = fixture.newest().await;
        let before = fixture.store.list(&layers_directory()).await.unwrap();
        let claim = compactor
            .claimant
            .claim(TIMELINE, fixture.manifests(), &mut newest);
        let claim = claim.await.unwrap();
        let plan = choose(newest.state.layers(), &policy).unwrap();
        fixture.cluster.send_replace(view(TimelineState::Deleted));
        let carried_out = compactor.carry_out(TIMELINE, &claim, newest.clone(), &plan);
        let error = carried_out.await.unwrap_err();
        assert!(matches!(error, CompactError::Deleted), "{error}");
        let after = fixture.store.list(&layers_directory()).await.unwrap();
        assert_eq!(after, before);
        assert_eq!(fixture.newest().await, newest, "nothing was published");
    });
}
