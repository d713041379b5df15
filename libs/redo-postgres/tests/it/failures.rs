//! Damage, hangs and killings cost the request that is to blame, and no other.

use std::time::Duration;

use bytes::Bytes;
use palimpsest_redo_postgres::{ApplyRequest, Engine, RedoError, RedoRecord};
use palimpsest_types::{BlockNumber, ErrorKind};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;

use crate::{corpus::Corpus, engine, settings};

fn signal(engine: &Engine, signal: Signal) {
    let id = i32::try_from(engine.process_id().expect("a process runs")).unwrap();
    kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
}

/// Applies a request whose answer is known.
async fn assert_serves(engine: &Engine) {
    let corpus = Corpus::get();
    let chain = corpus.chain("appended", 0);
    let page = engine.apply(chain.request()).await.unwrap();
    assert_eq!(page[..8], corpus.page(chain.rel, chain.block).unwrap()[..8]);
}

fn damaged(request: &ApplyRequest, record: usize, byte: usize, flip: u8) -> ApplyRequest {
    let mut request = request.clone();
    let mut bytes = request.records[record].bytes.to_vec();
    let byte = byte % bytes.len();
    bytes[byte] ^= flip;
    request.records[record].bytes = Bytes::from(bytes);
    request
}

#[tokio::test]
async fn garbage_is_refused_or_kills_and_harms_nobody_else() {
    let engine = engine().await;
    let good = Corpus::get().chain("hot", 0).request();
    let (mut refused, mut died) = (0, 0);
    for step in 0..330_usize {
        let flip = 1 << (step / 110 * 3);
        let request = damaged(&good, step % good.records.len(), step % 110, flip);
        match engine.apply(request).await {
            Ok(_) => {}
            Err(error @ RedoError::Refused { .. }) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                refused += 1;
            }
            Err(RedoError::Died { .. }) => died += 1,
            Err(error) => panic!("{error:?}"),
        }
        assert_serves(&engine).await;
    }
    println!("{refused} refused, {died} died");
    assert!(refused > 20, "{refused}");
    assert_eq!(engine.deaths(), died);
    engine.stop().await;
}

#[tokio::test]
async fn noise_and_empty_records_are_refused() {
    let engine = engine().await;
    let good = Corpus::get().chain("appended", 0).request();
    for bytes in [
        Bytes::new(),
        Bytes::from_static(&[0xA5; 23]),
        Bytes::from(vec![0x5A; 300]),
    ] {
        let record = RedoRecord {
            bytes,
            ..good.records[0].clone()
        };
        let request = ApplyRequest {
            records: vec![record],
            ..good.clone()
        };
        let error = engine.apply(request).await.unwrap_err();
        assert!(
            error.to_string().contains("are not one WAL record"),
            "{error}"
        );
    }
    let request = ApplyRequest {
        block: BlockNumber::new(u32::MAX),
        ..good
    };
    assert!(matches!(
        engine.apply(request).await,
        Err(RedoError::Refused { .. })
    ));
    assert_serves(&engine).await;
    assert_eq!(engine.deaths(), 0);
    engine.stop().await;
}

#[tokio::test]
async fn a_kill_costs_one_request_in_flight_and_the_others_survive() {
    let engine = engine().await;
    let corpus = Corpus::get();
    let chain = corpus.chain("appended", 0);
    let expected = engine.apply(chain.request()).await.unwrap();

    // Stopped, it answers nothing, so that all of them are in flight when it is killed.
    signal(&engine, Signal::STOP);
    let mut tasks = JoinSet::new();
    for _ in 0..64 {
        let (engine, request) = (engine.clone(), chain.request());
        tasks.spawn(async move { engine.apply(request).await });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    signal(&engine, Signal::KILL);

    let mut failed = 0;
    for result in tasks.join_all().await {
        match result {
            Ok(page) => assert!(page == expected),
            Err(RedoError::Died { obituary }) => {
                assert!(obituary.to_string().contains("signal: 9"), "{obituary}");
                failed += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!((failed, engine.deaths()), (1, 1));
    engine.stop().await;
}

/// A request over which the process panics: a row is inserted far beyond the last one.
async fn poison(engine: &Engine) -> ApplyRequest {
    let chain = Corpus::get().chain("appended", 0);
    let base = engine
        .apply(chain.part(None, &chain.records[..2]))
        .await
        .unwrap();
    chain.part(Some(base), &chain.records[9..10])
}

#[tokio::test]
async fn a_death_is_reported_with_its_last_words() {
    let engine = engine().await;
    let error = engine.apply(poison(&engine).await).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("PANIC:  invalid max offset number"),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Internal);
    engine.stop().await;
}

#[tokio::test]
async fn a_request_outlives_two_deaths_but_not_three() {
    let engine = engine().await;
    let poison = poison(&engine).await;
    let good = Corpus::get().chain("appended", 0).request();
    let bad = || engine.apply(poison.clone());

    // All of them are in flight before the first is read.
    let (first, second, survivor) = tokio::join!(bad(), bad(), engine.apply(good.clone()));
    assert!(first.is_err() && second.is_err());
    survivor.unwrap();
    assert_eq!(engine.deaths(), 2);

    let (.., victim) = tokio::join!(bad(), bad(), bad(), engine.apply(good));
    assert!(
        matches!(victim, Err(RedoError::Disturbed { .. })),
        "{victim:?}"
    );
    assert_eq!(engine.deaths(), 5);
    assert_serves(&engine).await;
    engine.stop().await;
}

#[tokio::test]
async fn a_hang_is_ended_by_the_deadline() {
    let mut settings = settings();
    settings.request_timeout = Duration::from_secs(1);
    let engine = Engine::start(settings).await.unwrap();
    let request = Corpus::get().chain("appended", 0).request();
    signal(&engine, Signal::STOP);
    let (first, second) = tokio::join!(engine.apply(request.clone()), engine.apply(request));
    let errors: Vec<_> = [first, second]
        .into_iter()
        .filter_map(Result::err)
        .collect();
    assert!(
        matches!(errors[..], [RedoError::Overdue { .. }]),
        "{errors:?}"
    );
    assert_serves(&engine).await;
    assert_eq!(engine.deaths(), 1);
    engine.stop().await;
}

#[tokio::test]
async fn an_idle_death_costs_nothing() {
    let engine = engine().await;
    signal(&engine, Signal::KILL);
    while engine.deaths() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_serves(&engine).await;
    engine.stop().await;
}

#[tokio::test]
async fn a_process_that_is_given_one_at_a_time_answers_all() {
    let mut settings = settings();
    settings.max_in_flight = 1;
    let engine = Engine::start(settings).await.unwrap();
    let chain = Corpus::get().chain("appended", 0);
    let expected = engine.apply(chain.request()).await.unwrap();
    let mut tasks = JoinSet::new();
    for index in 0..200 {
        let (engine, request) = (engine.clone(), chain.request());
        tasks.spawn(async move {
            if index % 50 == 0 {
                signal(&engine, Signal::KILL);
            }
            engine.apply(request).await
        });
    }
    let answers = tasks.join_all().await;
    let answered = answers
        .iter()
        .filter(|it| it.as_ref().is_ok_and(|page| *page == expected));
    // One is lost with each process, at most.
    assert!(answered.count() >= 196, "{answers:?}");
    engine.stop().await;
}

#[tokio::test]
async fn full_pipes_do_not_lock_up() {
    let mut settings = settings();
    settings.max_taken = 1000;
    settings.max_in_flight = 1000;
    let engine = Engine::start(settings).await.unwrap();
    let chain = Corpus::get().chain("hot", 0);
    let expected = engine.apply(chain.request()).await.unwrap();
    // One megabyte each: several times what the pipe and the budget hold.
    assert!(
        chain
            .records
            .iter()
            .map(|record| record.redo.bytes.len())
            .sum::<usize>()
            > 100_000
    );
    let mut tasks = JoinSet::new();
    for index in 0..400 {
        let (engine, request) = (engine.clone(), chain.request());
        tasks.spawn(async move {
            match index % 2 {
                0 => engine.apply(request).await.unwrap(),
                _ => engine.apply_verify(request).await.unwrap().page,
            }
        });
    }
    assert!(tasks.join_all().await.iter().all(|page| *page == expected));
    engine.stop().await;
}
