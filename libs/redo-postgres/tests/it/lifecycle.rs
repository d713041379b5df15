//! Starting, confinement and ending.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use palimpsest_redo_postgres::{Engine, EngineSettings, RedoError, StartError};
use palimpsest_types::{BlockNumber, ByteCount};
use tempfile::TempDir;

use crate::{BUILD_DIR, engine, settings};

fn scratch() -> (TempDir, EngineSettings) {
    let scratch = tempfile::tempdir().unwrap();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(scratch.path(), permissions).unwrap();
    let mut settings = settings();
    settings.scratch = scratch.path().to_owned();
    (scratch, settings)
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

fn proc_file(engine: &Engine, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{name}", engine.process_id().unwrap()))
}

async fn until_gone(path: &Path) {
    for _ in 0..1000 {
        if !path.exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{} is still there", path.display());
}

#[tokio::test]
async fn starts_well_below_a_tenth_of_a_second() {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        let engine = engine().await;
        best = best.min(started.elapsed());
        engine.stop().await;
    }
    println!("started in {best:?}");
    assert!(best < Duration::from_millis(100), "{best:?}");
}

#[tokio::test]
async fn the_process_is_confined() {
    let engine = engine().await;
    let status = std::fs::read_to_string(proc_file(&engine, "status")).unwrap();
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{status}");
    }
    let limits = std::fs::read_to_string(proc_file(&engine, "limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..]
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max file size"), "0");
    assert_eq!(
        limit("Max address space"),
        ByteCount::mib(384).get().to_string()
    );
    if rustix::process::geteuid().is_root() {
        assert_eq!(
            entries(&proc_file(&engine, "fd")),
            3,
            "nothing but its pipes is open"
        );
        assert!(!status.contains("Uid:\t0"), "{status}");
    }
    engine.stop().await;
}

#[tokio::test]
async fn what_works_in_the_background_has_low_priority() {
    let mut background = settings();
    background.in_background = true;
    let own = rustix::process::getpriority_process(None).unwrap();
    for (settings, expected) in [(settings(), own), (background, own.max(10))] {
        let engine = Engine::start(settings).await.unwrap();
        let process = rustix::process::Pid::from_raw(engine.process_id().unwrap().cast_signed());
        assert_eq!(
            rustix::process::getpriority_process(process).unwrap(),
            expected
        );
        engine.stop().await;
    }
}

#[tokio::test]
async fn stopping_leaves_nothing_behind() {
    let (scratch, settings) = scratch();
    let engine = Engine::start(settings).await.unwrap();
    assert_eq!(entries(scratch.path()), 1);
    let (other, process) = (engine.clone(), proc_file(&engine, ""));
    engine.stop().await;
    assert_eq!(entries(scratch.path()), 0);
    assert!(!process.exists());

    let page = bytes::Bytes::from(vec![0; 8192]);
    let error = other.mask(10, BlockNumber::ZERO, page).await.unwrap_err();
    assert!(matches!(error, RedoError::Stopped));
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_process() {
    let (scratch, settings) = scratch();
    let engine = Engine::start(settings).await.unwrap();
    let process = proc_file(&engine, "");
    let clone = engine.clone();
    drop(engine);
    assert!(process.exists());
    drop(clone);
    until_gone(&process).await;
    while entries(scratch.path()) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_start_removes_what_a_killed_owner_left_and_nothing_else() {
    let (scratch, settings) = scratch();
    let first = Engine::start(settings.clone()).await.unwrap();
    let left = scratch.path().join("palimpsest-redo-left");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("palimpsest.lock"), "").unwrap();
    let second = Engine::start(settings).await.unwrap();
    until_gone(&left).await;
    assert_eq!(entries(scratch.path()), 2, "one for each engine");
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_failed_start_says_what_postgres_said() {
    let (scratch, mut settings) = scratch();
    settings.memory_limit = ByteCount::ZERO;
    settings.library = Path::new(BUILD_DIR)
        .join("mkcontrol")
        .canonicalize()
        .unwrap();
    let error = Engine::start(settings).await.unwrap_err();
    assert!(matches!(error, StartError::NotReady { .. }), "{error:?}");
    assert!(error.to_string().contains("FATAL"), "{error}");
    assert_eq!(entries(scratch.path()), 0);
}

#[test]
fn discovery_names_what_is_missing() {
    let error = EngineSettings::discover(Path::new("/nonexistent"), Path::new(BUILD_DIR));
    let text = error.unwrap_err().to_string();
    assert!(
        text.contains("/nonexistent/postgres") && text.contains("make -C"),
        "{text}"
    );
}
