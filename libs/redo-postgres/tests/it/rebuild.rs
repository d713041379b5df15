//! Pages come out as PostgreSQL itself left them.

use std::collections::BTreeMap;

use bytes::Bytes;
use palimpsest_redo_postgres::{ApplyRequest, RedoError};
use palimpsest_types::{BlockNumber, ErrorKind, Fork};

use crate::{
    corpus::{Chain, Corpus},
    engine,
};

const HEAP2: u8 = 9;
const HEAP: u8 = 10;
const BTREE: u8 = 11;
const HASH: u8 = 12;
const GIN: u8 = 13;
const GIST: u8 = 14;
const SPGIST: u8 = 16;
const BRIN: u8 = 17;

/// Whether the page's file holds just what was logged. Not so for what PostgreSQL changes without
/// logging it: the value a sequence has reached within what it logged ahead, the cache in the
/// metapage of an SP-GiST index, and the LSN of an init fork's page.
fn is_logged_exactly(corpus: &Corpus, chain: &Chain) -> bool {
    let is = |relation: &str| chain.rel == corpus.relations[relation];
    let is_spgist_metapage = is("plain_spgist") && chain.block.get() == 0;
    chain.rel.fork == Fork::Main && !is("counter") && !is_spgist_metapage
}

fn lsn(page: &Bytes) -> &[u8] {
    &page[..8]
}

#[tokio::test]
async fn an_insert_chain_gives_the_page_in_the_file() {
    let (corpus, engine) = (Corpus::get(), engine().await);
    let chain = corpus.chain("appended", 0);
    assert!(chain.records.len() >= 200, "one record for each row");

    let page = engine.apply(chain.request()).await.unwrap();
    let file = corpus.page(chain.rel, chain.block).unwrap();
    assert_eq!(lsn(&page), lsn(&file));
    let ours = engine.mask(HEAP, chain.block, page).await.unwrap();
    let theirs = engine.mask(HEAP, chain.block, file).await.unwrap();
    assert!(ours == theirs);
    engine.stop().await;
}

#[tokio::test]
async fn every_page_of_every_access_method_is_rebuilt() {
    let (corpus, engine) = (Corpus::get(), engine().await);
    let mut compared = BTreeMap::new();
    for chain in corpus
        .chains
        .iter()
        .filter(|chain| is_logged_exactly(corpus, chain))
    {
        let Some(file) = corpus.page(chain.rel, chain.block) else {
            continue;
        };
        let page = engine.apply(chain.request()).await.unwrap();
        assert_eq!(
            lsn(&page),
            lsn(&file),
            "{} block {}",
            chain.rel,
            chain.block
        );
        // Full-page images belong to the manager that masks nothing.
        let rmid = chain
            .records
            .iter()
            .map(|record| record.rmid())
            .find(|rmid| *rmid != 0);
        let Some(rmid) = rmid else {
            assert!(
                page == file,
                "{} block {} {:?}",
                chain.rel,
                chain.block,
                corpus.relations
            );
            continue;
        };
        let ours = engine.mask(rmid, chain.block, page).await.unwrap();
        let theirs = engine.mask(rmid, chain.block, file).await.unwrap();
        assert!(ours == theirs, "{} block {}", chain.rel, chain.block);
        *compared.entry(rmid).or_insert(0) += 1;
    }
    for rmid in [HEAP, BTREE, HASH, GIN, GIST, SPGIST, BRIN] {
        assert!(
            compared.contains_key(&rmid),
            "resource manager {rmid} is not in {compared:?}"
        );
    }
    println!("pages compared by resource manager: {compared:?}");
    assert_eq!(engine.deaths(), 0);
    engine.stop().await;
}

#[tokio::test]
async fn every_record_agrees_with_its_consistency_image() {
    let (corpus, engine) = (Corpus::get(), engine().await);
    let (mut compared, mut applied) = (0, 0);
    for chain in &corpus.chains {
        let verified = engine.apply_verify(chain.request()).await.unwrap();
        assert_eq!(verified.differing, 0, "{} block {}", chain.rel, chain.block);
        compared += verified.compared as usize;
        applied += chain.records.len();
    }
    println!(
        "{applied} applications to {} pages, {compared} compared",
        corpus.chains.len()
    );
    assert!(compared > 5000, "{compared} of {applied}");
    engine.stop().await;
}

#[tokio::test]
async fn a_chain_applied_in_two_steps_gives_the_same_page() {
    let (corpus, engine) = (Corpus::get(), engine().await);
    for chain in corpus
        .chains
        .iter()
        .filter(|chain| chain.records.len() > 1)
        .step_by(7)
    {
        let whole = engine.apply(chain.request()).await.unwrap();
        let (first, second) = chain.records.split_at(chain.records.len() / 2);
        let middle = engine.apply(chain.part(None, first)).await.unwrap();
        let page = engine
            .apply(chain.part(Some(middle), second))
            .await
            .unwrap();
        assert!(whole == page, "{} block {}", chain.rel, chain.block);
    }
    engine.stop().await;
}

#[tokio::test]
async fn a_visibility_map_follows_heap_records_that_do_not_name_it() {
    let (corpus, engine) = (Corpus::get(), engine().await);
    let heap = corpus.relations["mapped"];
    let map = heap.with_fork(Fork::VisibilityMap);
    let of_heap = |rmid| rmid == HEAP || rmid == HEAP2;
    let records: Vec<_> = corpus
        .records
        .iter()
        .filter(|record| of_heap(record.rmid()))
        .filter(|record| record.blocks.iter().any(|block| block.rel == heap))
        .map(|record| record.redo.clone())
        .collect();
    let request = |records| ApplyRequest {
        rel: map,
        block: BlockNumber::ZERO,
        base: None,
        records,
    };

    let page = engine.apply(request(records.clone())).await.unwrap();
    let file = corpus.page(map, BlockNumber::ZERO).unwrap();
    assert!(page[24..] == file[24..], "the bits are those of the file");

    // The delete at the end cleared bits without registering the map's page.
    let before = engine
        .apply(request(records[..records.len() - 1].to_vec()))
        .await
        .unwrap();
    assert!(before[24..] != page[24..]);
    engine.stop().await;
}

#[tokio::test]
async fn a_gap_in_a_chain_is_seen_by_verification() {
    let (corpus, engine) = (Corpus::get(), engine().await);
    let chain = corpus.chain("hot", 0);
    let mut records = chain.records.clone();
    records.remove(records.len() / 2);
    match engine.apply_verify(chain.part(None, &records)).await {
        Ok(verified) => assert!(verified.differing > 0),
        Err(error) => assert!(
            matches!(error, RedoError::Died { .. } | RedoError::Refused { .. }),
            "{error:?}"
        ),
    }
    engine.stop().await;
}

#[tokio::test]
async fn a_chain_without_a_beginning_is_refused() {
    let (corpus, engine) = (Corpus::get(), engine().await);
    let chain = corpus.chain("appended", 0);
    let error = engine
        .apply(chain.part(None, &chain.records[1..]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let text = error.to_string();
    let name = format!(
        "{}/{}/{} fork 0 block 0",
        chain.rel.spc, chain.rel.db, chain.rel.rel
    );
    assert!(text.contains("base page") && text.contains(&name), "{text}");
    engine.stop().await;
}

#[tokio::test]
async fn a_record_of_another_page_is_refused() {
    let (corpus, engine) = (Corpus::get(), engine().await);
    let (chain, other) = (corpus.chain("appended", 0), corpus.chain("hot", 0));
    let request = ApplyRequest {
        records: other.request().records,
        ..chain.request()
    };
    let error = engine.apply(request).await.unwrap_err();
    assert!(
        error.to_string().contains("does not refer to the page"),
        "{error}"
    );
    engine.stop().await;
}

#[tokio::test]
async fn masking_as_a_manager_without_pages_is_refused() {
    let engine = engine().await;
    let page = Bytes::from(vec![0; 8192]);
    for rmid in [1, 200] {
        let error = engine
            .mask(rmid, BlockNumber::ZERO, page.clone())
            .await
            .unwrap_err();
        assert!(matches!(error, RedoError::Refused { .. }), "{error:?}");
    }
    engine.stop().await;
}
