//! The program `pal`, as a person uses it: its help, its mistakes, and a whole life of an attachment
//! under the limit of address space that `pal up` keeps.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use clap::CommandFactory as _;
use palimpsest_console::Cli;
use palimpsest_testkit::{Cluster, ClusterOptions};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PAL: &str = env!("CARGO_BIN_EXE_pal");
/// 4 GiB, in the unit of `ulimit -v`.
const ADDRESS_SPACE: &str = "4194304";
const PATIENCE: Duration = Duration::from_secs(120);
/// A Ctrl-C that takes longer is no Ctrl-C.
const END: Duration = Duration::from_secs(30);
const FAILED: i32 = 1;
/// Of the command line's parser.
const USAGE: i32 = 2;
const UNREACHABLE: i32 = 69;

/// A data directory of its own.
struct Place {
    files: TempDir,
}

/// A `pal up`; killed when dropped.
struct Up(Child);

/// What a command said.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    errors: String,
}

impl Place {
    fn new() -> Self {
        Self {
            files: tempfile::tempdir().unwrap(),
        }
    }

    fn data(&self) -> PathBuf {
        self.files.path().join("data")
    }

    /// Runs `pal` with these words.
    fn pal(&self, words: &[&str]) -> Said {
        let output = command(PAL, &self.data()).args(words).output().unwrap();
        Said::from(output)
    }

    /// Runs it and expects it to work.
    fn works(&self, words: &[&str]) -> String {
        let said = self.pal(words);
        assert_eq!(said.code, 0, "{words:?}: {said:?}");
        said.out
    }

    /// The answer as JSON.
    fn json(&self, words: &[&str]) -> serde_json::Value {
        let text = self.works(&[words, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap()
    }

    /// Runs it and expects a mistake to be told.
    fn fails(&self, words: &[&str], code: i32, told: &[&str]) {
        let said = self.pal(words);
        assert_eq!(said.code, code, "{words:?}: {said:?}");
        for text in told {
            assert!(said.errors.contains(text), "{words:?}, {text:?}: {said:?}");
        }
        assert!(!said.errors.contains("panicked"), "{said:?}");
    }

    /// All services, within the limit.
    fn up(&self) -> Up {
        let script = format!("ulimit -v {ADDRESS_SPACE}; exec \"$0\" \"$@\"");
        let log = fs::File::create(self.files.path().join("up.log")).unwrap();
        let child = command("sh", &self.data())
            .args(["-c", &script, PAL, "up", "--port-base", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let up = Up(child);
        let begun = Instant::now();
        let registered = |said: &Said| {
            let services = ["wal-ingest", "page-serve", "redo-worker"];
            services.iter().all(|name| said.out.contains(name))
        };
        while !registered(&self.pal(&["status"])) {
            let log = fs::read_to_string(self.files.path().join("up.log"));
            assert!(begun.elapsed() < PATIENCE, "{log:?}");
            pause(Duration::from_millis(100));
        }
        up
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "no runtime here whose threads it could block"
)]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

impl Up {
    /// As Ctrl-C does; how it ended.
    fn interrupt(mut self) -> i32 {
        kill_process(Pid::from_child(&self.0), Signal::INT).unwrap();
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code().unwrap();
            }
            assert!(begun.elapsed() < END, "it does not end");
            pause(Duration::from_millis(20));
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A program that knows of this data directory, and of no setting of whoever runs the tests.
fn command(program: &str, data: &Path) -> Command {
    let mut command = Command::new(program);
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours.filter(|name| name.as_encoded_bytes().starts_with(b"PALIMPSEST_")) {
        command.env_remove(name);
    }
    command.env("PALIMPSEST_DATA", data);
    command
}

/// The words of every command and of every command of a family.
fn all_commands() -> Vec<Vec<String>> {
    fn walk(command: &clap::Command, words: &[String], all: &mut Vec<Vec<String>>) {
        for sub in command.get_subcommands() {
            let words = [words, &[sub.get_name().to_owned()]].concat();
            walk(sub, &words, all);
            all.push(words);
        }
    }
    let mut all = vec![Vec::new()];
    walk(&Cli::command(), &[], &mut all);
    all
}

#[test]
fn every_command_has_help() {
    let place = Place::new();
    let all = all_commands();
    assert!(all.len() > 15, "{all:?}");
    for words in all {
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        words.push("--help");
        let help = place.works(&words);
        assert!(help.contains("Usage: pal"), "{words:?}: {help}");
    }
}

#[test]
fn completions_are_scripts() {
    let place = Place::new();
    let bash = place.files.path().join("pal.bash");
    fs::write(&bash, place.works(&["completions", "bash"])).unwrap();
    let checked = Command::new("bash").arg("-n").arg(&bash).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    let zsh = place.works(&["completions", "zsh"]);
    assert!(zsh.starts_with("#compdef pal"), "{zsh}");
    let fish = place.works(&["completions", "fish"]);
    assert!(fish.contains("complete -c pal"), "{fish}");
    for script in [fs::read_to_string(&bash).unwrap(), zsh, fish] {
        assert!(script.contains("doctor") && script.contains("timeline"));
    }
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    let place = Place::new();
    place.fails(&["statsu"], USAGE, &["statsu", "status"]);
    place.fails(&["up", "--port-base", "99999"], USAGE, &["99999"]);
    let page = ["page", "get", "demo", "1663/5/1259", "0"];
    place.fails(&[&page[..], &["--lsn", "12"]].concat(), USAGE, &["12"]);
    let name = ["page", "get", "demo", "pg_class", "0"];
    place.fails(&name, USAGE, &["SPC/DB/REL"]);
    // Nobody listens on port 1.
    let nobody = ["--endpoint", "127.0.0.1:1"];
    let told = ["127.0.0.1:1", "can't be reached", "pal up"];
    for words in [
        &["status"][..],
        &page,
        &["tenant", "list"],
        &["rel", "list", "demo"],
    ] {
        place.fails(&[words, &nobody].concat(), UNREACHABLE, &told);
    }
    let nothing = place.works(&["down"]);
    assert!(nothing.contains("nothing runs"), "{nothing}");
}

#[test]
fn doctor_says_what_is_missing() {
    let place = Place::new();
    let doctor = ["doctor", "--port-base", "0"];
    let said = place.works(&doctor);
    for text in [
        "PostgreSQL) 15.",
        "a record was replayed",
        "system call filter",
        "free",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    let report = place.json(&doctor);
    assert_eq!(report["healthy"], true);
    assert!(report["checks"].as_array().unwrap().len() > 15, "{report}");
    let wrong = [&doctor[..], &["--pg-bin", "/nonexistent"]].concat();
    let said = place.pal(&wrong);
    assert_eq!(said.code, FAILED);
    assert!(
        said.out.contains("FAIL") && said.out.contains("--pg-bin"),
        "{said:?}"
    );
    let file = place.files.path().join("p.toml");
    let with_file = ["doctor", "--config", file.to_str().unwrap()];
    for (text, told) in [
        ("[redo-worker]\npg-bin = '/nonexistent'\n", "/nonexistent"),
        ("[redo-worker]\nnonsense = 1\n", "p.toml:2"),
    ] {
        fs::write(&file, text).unwrap();
        let said = place.pal(&with_file);
        assert_eq!(said.code, FAILED);
        assert!(said.out.contains(told), "{said:?}");
    }
    assert!(!place.data().exists(), "looking changes nothing");
}

#[test]
fn an_attachment_lives_and_ends_as_a_person_wants() {
    let mut cluster = Cluster::temporary(ClusterOptions::default()).unwrap();
    cluster.start().unwrap();
    let sql = |sql: &str| cluster.psql("postgres", sql).unwrap();
    let place = Place::new();
    let up = place.up();
    place.fails(
        &["up", "--port-base", "0"],
        FAILED,
        &["already", "pal down"],
    );
    place.fails(&["rel", "list", "mine"], FAILED, &["mine", "pal attach"]);

    let source = cluster.conninfo("postgres");
    let wrong = ["attach", "mine", "--source", "host=127.0.0.1 port=1"];
    assert_ne!(place.pal(&wrong).code, 0);
    place.works(&["attach", "mine", "--source", &source]);
    sql("CREATE TABLE notes (t text); INSERT INTO notes VALUES ('before')");
    let before = cluster.flush_lsn().unwrap().to_string();
    sql("INSERT INTO notes VALUES ('after')");
    let after = cluster.flush_lsn().unwrap().to_string();

    let notes = ["mine", "postgres.public.notes"];
    let page = |lsn: &str| {
        let words = [&["page", "get"], &notes[..], &["0", "--hex", "--lsn", lsn]].concat();
        place.works(&words)
    };
    assert_ne!(page(&before), page(&after));
    let words = [
        &["page", "diff"],
        &notes[..],
        &["0", "--lsn", &before, "--lsn", &after],
    ];
    assert!(!place.works(&words.concat()).is_empty());
    let file = place.files.path().join("page");
    let out = ["0", "--lsn", &before, "--out", file.to_str().unwrap()];
    place.works(&[&["page", "get"], &notes[..], &out].concat());
    let bytes = fs::read(&file).unwrap();
    assert!(bytes.windows(6).any(|part| part == b"before"));
    assert!(!bytes.windows(5).any(|part| part == b"after"));
    place.works(&[&["rel", "size"], &notes[..]].concat());
    assert!(place.works(&["rel", "list", "mine"]).contains("1663/"));
    let database = ["rel", "database", "mine", "postgres"];
    assert!(place.works(&database).contains("MiB"));
    let missing = ["rel", "database", "mine", "nowhere"];
    place.fails(&missing, FAILED, &["there is no database \"nowhere\""]);
    let shown = place.works(&["timeline", "show", "mine"]);
    assert!(shown.contains("streaming"), "{shown}");
    let status = place.json(&["status"]);
    assert_eq!(status["timelines"].as_array().unwrap().len(), 1);
    assert!(place.works(&["status"]).contains("lost with its disk"));
    let members = status["members"].as_array().unwrap();
    let same = |member: &serde_json::Value| member["version"] == env!("CARGO_PKG_VERSION");
    assert!(members.len() == 4 && members.iter().all(same), "{status}");
    layers(&place);
    let doctor = place.works(&["doctor"]);
    assert!(doctor.contains("source of mine/main"), "{doctor}");
    assert!(doctor.contains("all are"), "{doctor}");

    let nothing = [
        &["page", "get"],
        &["mine", "postgres.public.nothing"][..],
        &["0"],
    ];
    place.fails(&nothing.concat(), FAILED, &["nothing"]);
    let beyond = [&["page", "get"], &notes[..], &["77"]].concat();
    assert_eq!(place.pal(&beyond).code, FAILED);
    place.fails(
        &["timeline", "show", "yours"],
        FAILED,
        &["yours", "there are: mine"],
    );

    place.works(&["tenant", "delete", "mine", "--yes"]);
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(cluster.psql("postgres", slots).unwrap(), "0");
    assert!(!place.works(&["tenant", "list"]).contains("mine"));
    assert_eq!(up.interrupt(), 0);
    assert_eq!(
        place.pal(&["status", "--endpoint", "127.0.0.1:1"]).code,
        UNREACHABLE
    );
    cluster.stop().unwrap();
}

/// Everything about layers, of a timeline that has those of its base backup.
fn layers(place: &Place) {
    let listed = place.json(&["layers", "list", "mine"]);
    let listed = listed.as_array().unwrap();
    assert!(
        listed.iter().any(|layer| layer["kind"] == "base"),
        "{listed:?}"
    );
    let table = place.works(&["layers", "list", "mine"]);
    assert!(table.contains("base: "), "{table}");
    let plan = place.json(&["layers", "plan", "mine"]);
    assert_eq!(plan["claimed_for_ms"], 0, "{plan}");
    assert!(
        place
            .works(&["layers", "compact", "mine"])
            .contains("nothing to compact")
    );
    let activity = place.works(&["layers", "activity"]);
    assert!(activity.contains(": idle"), "{activity}");
    let picture = place.works(&["layers", "draw", "mine"]);
    assert!(picture.starts_with("<svg"), "{picture}");
    place.fails(
        &["layers", "list", "none"],
        FAILED,
        &["there is no timeline"],
    );
}
