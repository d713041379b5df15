use palimpsest_types::{SystemIdentifier, TenantId, TimelineId};
use tokio::task::JoinSet;

use super::*;
use crate::core::tenant::NewTenant;

fn attach(name: &str, number: u8) -> Change {
    Change::Attach {
        new: NewTenant::parse(name, "host=h user=u password=secret", None).unwrap(),
        ids: TimelineRef {
            tenant: TenantId::from_bytes([number; 16]),
            timeline: TimelineId::from_bytes([number; 16]),
        },
    }
}

async fn store(directory: &std::path::Path) -> CatalogStore {
    CatalogStore::new(ObjectStore::open(directory).await.unwrap())
}

#[tokio::test]
async fn the_catalog_outlives_the_broker() {
    let directory = tempfile::tempdir().unwrap();
    let first = store(directory.path()).await;
    assert_eq!(first.newest().await.unwrap().number, 0);
    let (changed, _) = first.change(&attach("a", 1)).await.unwrap();
    let (unchanged, _) = first.change(&attach("a", 2)).await.unwrap();
    assert_eq!(unchanged, changed, "a repeat writes nothing");
    assert_eq!(
        store(directory.path()).await.newest().await.unwrap(),
        changed
    );
}

#[tokio::test]
async fn brokers_that_race_lose_no_change_and_agree() {
    let directory = tempfile::tempdir().unwrap();
    let mut changes = JoinSet::new();
    for broker in 0..2_u8 {
        let store = store(directory.path()).await;
        changes.spawn(async move {
            let mut shared = Vec::new();
            for number in 0..8_u8 {
                let own = attach(&format!("own-{broker}-{number}"), 100 + broker * 8 + number);
                store.change(&own).await.unwrap();
                let same = attach(&format!("shared-{number}"), 1 + broker * 8 + number);
                shared.push(store.change(&same).await.unwrap().1);
            }
            shared
        });
    }
    let shared = changes.join_all().await;
    assert_eq!(shared[0], shared[1]);
    let newest = store(directory.path()).await.newest().await.unwrap();
    assert_eq!(newest.state.tenants().len(), 24);
    assert_eq!(newest.number, 24);
}

#[tokio::test]
async fn says_that_the_catalog_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    store.change(&attach("a", 1)).await.unwrap();
    let object = directory.path().join("catalog").join(format!("{:020}", 1));
    let mut bytes = std::fs::read(&object).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&object, bytes).unwrap();
    let error = store.newest().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[tokio::test]
async fn old_catalogs_with_their_passwords_do_not_stay() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    for number in 1..=12 {
        let name = format!("tenant-{number}");
        store.change(&attach(&name, number)).await.unwrap();
    }
    let objects = std::fs::read_dir(directory.path().join("catalog")).unwrap();
    let mut names: Vec<_> = objects
        .map(|object| object.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    let kept: Vec<_> = (5..=12).map(|number| format!("{number:020}")).collect();
    assert_eq!(names, kept);
}

#[tokio::test]
async fn a_broker_that_slept_does_not_bring_an_old_catalog_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    for number in 1..=12 {
        let name = format!("tenant-{number}");
        store.change(&attach(&name, number)).await.unwrap();
    }
    let newest = store.newest().await.unwrap();
    let late = seal(MAGIC, VERSION, &Catalog::default()).unwrap();
    let lost = store.sequence.append(1, late).await;
    assert!(matches!(lost, Err(SequenceError::Lost { .. })));
    assert_eq!(store.newest().await.unwrap(), newest);
}

#[tokio::test]
async fn of_brokers_that_claim_a_cluster_at_once_one_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let mut claims = JoinSet::new();
    for broker in 1..=4_u8 {
        let store = store(directory.path()).await;
        claims.spawn(async move {
            let attached = store
                .change(&attach(&format!("tenant-{broker}"), broker))
                .await;
            let (_, timeline) = attached.unwrap();
            let cluster = SystemIdentifier::new(7);
            store.change(&Change::Claim { timeline, cluster }).await
        });
    }
    let claims = claims.join_all().await;
    assert_eq!(claims.iter().filter(|claim| claim.is_ok()).count(), 1);
    let refused = claims.into_iter().filter_map(Result::err);
    for error in refused {
        let taken = matches!(
            error,
            CatalogStoreError::Refused(CatalogError::ClusterTaken { .. })
        );
        assert!(taken, "{error}");
    }
}

#[tokio::test]
async fn catalogs_of_before_clusters_were_claimed_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path()).await;
    let (now, _) = store.change(&attach("a", 1)).await.unwrap();
    let json = serde_json::to_string(&now.state).unwrap();
    assert!(!json.contains("cluster"), "{json}");
    let read: Catalog = serde_json::from_str(&json).unwrap();
    assert_eq!(read, now.state);
}
