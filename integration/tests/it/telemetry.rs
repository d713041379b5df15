//! What the services tell about themselves, and how they end, as processes.

mod readiness;
mod traces;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// One service as a process, killed when dropped.
struct Running {
    child: Child,
    port: u16,
}

/// Processes start and end within this time, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
const MARK: &str = "<!-- From here on made from the code; see the end. -->\n";
const END: &str = "Written anew by `PALIMPSEST_BLESS=1 cargo test -p palimpsest-integration --test it \
                   telemetry::every_metric`.\n";
const BLESS: &str = "PALIMPSEST_BLESS";

/// A port that is free, as is the one of the side port.
fn free_port() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut ports = std::iter::repeat_with(|| rand::random_range(15_000..30_000));
    ports
        .find(|port| is_free(*port) && is_free(*port + 100))
        .unwrap()
}

/// The answer of the side port of the service at a port, if there is one.
fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port + 100)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

impl Running {
    fn start(service: &str, directory: &Path, more: &[&str]) -> Self {
        let mut running = Self::spawn(service, free_port(), directory, more);
        running.until("it is ready", Self::is_ready);
        running
    }

    fn spawn(service: &str, port: u16, directory: &Path, more: &[&str]) -> Self {
        let log = fs::File::create(directory.join(service).with_extension("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_service"));
        command
            .args([service, "--listen", &format!("127.0.0.1:{port}")])
            .args(more)
            .stdin(Stdio::null())
            .stderr(log);
        Self {
            child: command.spawn().unwrap(),
            port,
        }
    }

    fn is_ready(&self) -> bool {
        let answer = get(self.port, "/readyz").unwrap_or_default();
        answer.starts_with("HTTP/1.1 200")
    }

    fn get(&self, path: &str) -> Option<String> {
        get(self.port, path)
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(begun.elapsed() < PATIENCE, "waiting until {what}");
            assert!(
                self.child.try_wait().unwrap().is_none(),
                "it has ended before {what}"
            );
            std::thread::park_timeout(LOOK);
        }
    }

    fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::park_timeout(LOOK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn all_services(directory: &Path) -> Vec<(&'static str, Running)> {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let store = path("store");
    let broker = Running::start("storage-broker", directory, &["--store", &store]);
    let at = format!("127.0.0.1:{}", broker.port);
    let data = path("wal-ingest");
    let ingest = ["--broker", &at, "--store", &store, "--data", &data];
    let bin = palimpsest_testkit::cluster::pg_bin();
    let redo = [
        "--broker",
        &at,
        "--pg-bin",
        bin.to_str().unwrap(),
        "--redo-build",
        palimpsest_integration::embedded::REDO_BUILD,
    ];
    let serve = Running::start(
        "page-serve",
        directory,
        &["--broker", &at, "--store", &store],
    );
    let ingest = Running::start("wal-ingest", directory, &ingest);
    let compact = ["--broker", &at, "--store", &store];
    let compactor = Running::start("compactor", directory, &compact);
    let redo = Running::start("redo-worker", directory, &redo);
    vec![
        ("storage-broker", broker),
        ("wal-ingest", ingest),
        ("page-serve", serve),
        ("redo-worker", redo),
        ("compactor", compactor),
    ]
}

/// Of each metric its type, its help, and whose it is.
type Told = BTreeMap<String, (String, String, BTreeSet<&'static str>)>;

fn take_in(told: &mut Told, service: &'static str, metrics: &str) {
    let words = |line: &str, what: &str| {
        let (name, rest) = line.strip_prefix(what)?.split_once(' ')?;
        Some((name.to_owned(), rest.trim_end_matches('.').to_owned()))
    };
    for line in metrics.lines() {
        if let Some((name, help)) = words(line, "# HELP ") {
            let entry = told.entry(name).or_default();
            entry.1 = help;
            entry.2.insert(service);
        }
        if let Some((name, kind)) = words(line, "# TYPE ") {
            told.entry(name).or_default().0 = kind;
        }
    }
}

#[test]
fn every_metric_is_explained_where_it_is_told_and_in_the_documentation() {
    let directory = tempfile::tempdir().unwrap();
    let mut told = Told::new();
    for (name, running) in all_services(directory.path()) {
        let answer = running.get("/metrics").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("# EOF\n"), "{answer}");
        take_in(&mut told, name, &answer);
        assert!(running.get("/livez").unwrap().starts_with("HTTP/1.1 200"));
        assert!(running.get("/nothing").unwrap().starts_with("HTTP/1.1 404"));
    }
    assert!(told.len() > 30, "{told:#?}");
    let mut table = "| metric | type | of | what it is |\n|---|---|---|---|\n".to_owned();
    for (name, (kind, help, services)) in &told {
        assert!(
            !kind.is_empty() && !help.is_empty(),
            "{name} is not explained"
        );
        let of: Vec<_> = services.iter().copied().collect();
        table.push_str(&format!(
            "| `{name}` | {kind} | {} | {help} |\n",
            of.join(", ")
        ));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = fs::read_to_string(&path).unwrap();
    let (prose, written) = text.split_once(MARK).expect("the mark is there");
    let generated = format!("{table}\n{END}");
    if env::var_os(BLESS).is_some() {
        fs::write(&path, format!("{prose}{MARK}\n{generated}")).unwrap();
        return;
    }
    assert_eq!(
        written.trim(),
        generated.trim(),
        "docs/metrics.md is not as the code is"
    );
}

#[tokio::test]
async fn a_shutdown_drains_unless_it_is_told_twice() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let arguments = ["--store", store.to_str().unwrap()];
    let start = || Running::start("storage-broker", directory.path(), &arguments);

    let mut alone = start();
    alone.terminate();
    assert_eq!(alone.end().code(), Some(0), "nobody holds it up");

    let mut busy = start();
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{}", busy.port));
    let channel = endpoint.unwrap().connect().await.unwrap();
    let mut client = HealthClient::new(channel);
    let watch = client.watch(HealthCheckRequest::default());
    // A call that never ends by itself.
    let mut statuses = watch.await.unwrap().into_inner();
    statuses.message().await.unwrap();
    busy.terminate();
    busy.until("it drains", |busy| {
        let answer = busy.get("/readyz").unwrap_or_default();
        answer.starts_with("HTTP/1.1 503") && answer.contains("draining")
    });
    assert!(busy.get("/livez").unwrap().starts_with("HTTP/1.1 200"));
    busy.terminate();
    assert_eq!(
        busy.end().code(),
        Some(130),
        "the second signal ends it at once"
    );
    let log = fs::read_to_string(directory.path().join("storage-broker.log")).unwrap();
    assert!(
        log.contains("exiting without finishing the shutdown"),
        "{log}"
    );
}
