//! Whoever takes over a redo process gets nowhere, and harms nobody who reads its answers.
//!
//! The attacker is a library that has the real one's sandbox and in place of its server one that
//! does what the block number of a request says: see `compute/redo/tests/hostile.c`.

use std::{
    fs::File, os::unix::process::CommandExt as _, path::Path, process::Command, sync::OnceLock,
    time::Duration,
};

use bytes::Bytes;
use palimpsest_redo_postgres::{
    ApplyRequest, Engine, EngineSettings, RedoError, RunAs, Wall, probe,
};
use palimpsest_types::{BlockNumber, Fork, RelTag};
use tokio::task::JoinSet;

use crate::{BUILD_DIR, cluster, settings};

/// What to try, by number, and what must stand for it to fail without the filter: the limits alone,
/// or a wall that not every machine has. `None` is forbidden by the filter only.
const ATTEMPTS: [(u32, &str, Option<Wall>); 20] = [
    (1, "open a file", Some(Wall::Limits)),
    (2, "make a file", Some(Wall::Limits)),
    (3, "make a directory", Some(Wall::Files)),
    (4, "run a program", Some(Wall::Files)),
    (5, "make a process", Some(Wall::Limits)),
    (6, "make an internet socket", Some(Wall::Limits)),
    (7, "make a local socket", Some(Wall::Limits)),
    (8, "signal its parent", Some(Wall::Signals)),
    (9, "trace its parent", Some(Wall::Signals)),
    (10, "read its parent's memory", Some(Wall::Signals)),
    (11, "copy a descriptor", Some(Wall::Limits)),
    (12, "make a file in memory", Some(Wall::Limits)),
    (13, "raise a limit", Some(Wall::NoNewPrivileges)),
    (14, "become root", Some(Wall::NoNewPrivileges)),
    (15, "change its root directory", Some(Wall::NoNewPrivileges)),
    (16, "make a link", Some(Wall::Files)),
    (GREED, "take more memory than it may", Some(Wall::Limits)),
    (18, "map memory to execute", None),
    (19, "make its memory executable", None),
    (20, "enter a namespace", None),
];
/// The one that the filter allows, up to a limit.
const GREED: u32 = 17;
const LOOP: u32 = 100;
const CRASH: u32 = 101;
const TWICE: u32 = 107;
const LEFT_OVER: Duration = Duration::from_millis(100);
/// Only who does nothing may miss it, however busy the machine is.
const DEADLINE: Duration = Duration::from_secs(2);
/// The user's own part of the tests, which root runs as somebody else.
const OWN_TESTS: &str = "walls::whoever_";

/// Settings of a process that was taken over, with or without the filter.
fn hostile(library: &str) -> EngineSettings {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let directory = Path::new(BUILD_DIR).join("../..");
        // Other tests may be processes of their own, and build it as well.
        let one_at_a_time = File::open(&directory).unwrap();
        one_at_a_time.lock().unwrap();
        let make = Command::new("make")
            .args(["--silent", "hostile", "--directory"])
            .arg(directory)
            .output()
            .unwrap();
        assert!(make.status.success(), "{make:?}");
    });
    let path = Path::new(BUILD_DIR).join("tests").join(library);
    let mut settings = settings();
    settings.library = path.canonicalize().unwrap();
    settings.request_timeout = DEADLINE;
    settings
}

/// A request to try something.
fn order(number: u32) -> ApplyRequest {
    let rel = RelTag {
        spc: 1663,
        db: 5,
        rel: 16384,
        fork: Fork::Main,
    };
    ApplyRequest {
        rel,
        block: BlockNumber::new(number),
        base: None,
        records: Vec::new(),
    }
}

/// The `errno` of an attempt that returned.
fn errno(page: &Bytes) -> i32 {
    i32::from_le_bytes(page[..4].try_into().unwrap())
}

#[tokio::test]
async fn whoever_takes_over_a_process_is_killed_for_trying_to_leave() {
    let engine = Engine::start(hostile("hostile.so")).await.unwrap();
    let mut killed = 0;
    for (number, name, _) in ATTEMPTS {
        match engine.apply(order(number)).await {
            Err(RedoError::Died { obituary }) => {
                let words = obituary.to_string();
                assert!(words.contains("SIGSYS"), "{name}: {words}");
                killed += 1;
            }
            Ok(page) => {
                assert_eq!(number, GREED, "{name}: errno {}", errno(&page));
                assert_ne!(errno(&page), 0, "{name}");
            }
            Err(error) => panic!("{name}: {error:?}"),
        }
    }
    assert_eq!(killed, ATTEMPTS.len() as u64 - 1);
    assert_eq!(engine.deaths(), killed);
    engine.stop().await;
}

#[tokio::test]
async fn whoever_finds_a_hole_in_the_filter_faces_the_other_walls() {
    let settings = hostile("hostile_unfiltered.so");
    let engine = Engine::start(settings).await.unwrap();
    let walls = engine.walls().await.unwrap();
    println!("{walls}");
    let mut refused = 0;
    for (number, name, wall) in ATTEMPTS {
        match wall {
            Some(wall) if walls.stands(wall) => {
                let page = engine.apply(order(number)).await.unwrap();
                assert_ne!(errno(&page), 0, "it could {name}");
                refused += 1;
            }
            Some(wall) => println!("not tried, because this machine has no {wall:?}: {name}"),
            None => {}
        }
    }
    assert!(refused >= 11, "{refused}");
    assert_eq!(engine.deaths(), 0, "the filter was not there");
    engine.stop().await;
}

#[tokio::test]
async fn whoever_starts_the_real_one_gets_a_page_and_hears_of_the_walls() {
    let walls = probe(settings()).await.unwrap();
    assert!(
        Wall::REQUIRED.into_iter().all(|wall| walls.stands(wall)),
        "{walls}"
    );
    let root = rustix::process::geteuid().is_root();
    assert_eq!(walls.stands(Wall::OwnUser), root, "{walls}");
    println!("{walls}; missing: {:?}", walls.missing());
}

#[test]
fn an_ordinary_user_is_as_safe_as_root() {
    let Some(RunAs { uid, gid }) = cluster::unprivileged_user() else {
        println!("run by an ordinary user: the tests themselves are the proof");
        return;
    };
    drop(hostile("hostile.so"));
    // Where that user can reach it.
    let place = tempfile::tempdir().unwrap();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.path(), permissions).unwrap();
    let program = place.path().join("it");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new(&program)
        .args([OWN_TESTS, "--nocapture"])
        .current_dir("/")
        .uid(uid)
        .gid(gid)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("3 passed"), "{said}");
}

#[tokio::test]
async fn a_loop_or_a_crash_costs_one_request_once() {
    let engine = Engine::start(hostile("hostile.so")).await.unwrap();
    let mut tasks = JoinSet::new();
    for number in [GREED, LOOP, GREED, GREED, CRASH, GREED] {
        let engine = engine.clone();
        tasks.spawn(async move { (number, engine.apply(order(number)).await) });
    }
    for (number, outcome) in tasks.join_all().await {
        match (number, outcome) {
            (LOOP, Err(RedoError::Overdue { limit })) => assert_eq!(limit, DEADLINE),
            (CRASH, Err(RedoError::Died { obituary })) => {
                assert!(obituary.to_string().contains("SIGSEGV"), "{obituary}");
            }
            (GREED, Ok(_)) => {}
            (number, outcome) => panic!("{number}: {outcome:?}"),
        }
    }
    // Neither of the two is tried again behind our back: that would come before this one's turn.
    engine.apply(order(GREED)).await.unwrap();
    assert_eq!(engine.deaths(), 2);
    engine.stop().await;
}

#[tokio::test]
async fn answers_of_any_kind_are_taken() {
    let engine = Engine::start(hostile("hostile.so")).await.unwrap();
    let lies: [(u32, &str); 8] = [
        (102, "no end of the stack"),
        (103, "all memory"),
        (104, "no answer at all"),
        (105, "an answer of four gigabytes"),
        (106, "a short answer"),
        (108, "eight megabytes of last words"),
        (109, "half an answer, then nothing"),
        (LOOP, "nothing"),
    ];
    for (number, name) in lies {
        let before = engine.deaths();
        let outcome = engine.apply(order(number)).await;
        if let Err(error) = &outcome {
            let words = error.to_string().len();
            assert!(words < 16 << 10, "{name}: {words} bytes of words");
        }
        println!(
            "{name}: {}",
            if outcome.is_ok() {
                "a page"
            } else {
                "an error"
            }
        );
        // What is left of the lie comes when nobody has asked.
        tokio::time::sleep(LEFT_OVER).await;
        let page = engine.apply(order(GREED)).await.unwrap();
        assert_ne!(errno(&page), 0, "{name}");
        assert!(engine.deaths() <= before + 1, "{name}");
    }
    assert!(engine.deaths() >= 7);
    engine.stop().await;
}

#[tokio::test]
async fn a_process_that_answers_unasked_is_given_up() {
    let engine = Engine::start(hostile("hostile.so")).await.unwrap();
    engine.apply(order(TWICE)).await.unwrap();
    while engine.deaths() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let page = engine.apply(order(GREED)).await.unwrap();
    assert_ne!(errno(&page), 0);
    engine.stop().await;
}
