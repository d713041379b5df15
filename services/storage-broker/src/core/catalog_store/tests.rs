use palimpsest_types::{TenantId, TimelineId};
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
