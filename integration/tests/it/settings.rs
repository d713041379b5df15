//! The programs and their settings, as processes.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

/// `service NAME ARGUMENTS…` with these variables and no others of ours.
fn service(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_service"))
        .args(arguments)
        .env_remove("PALIMPSEST_CONFIG")
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn file(directory: &Path, text: &str) -> String {
    let path = directory.join("palimpsest.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn prints_what_holds_and_where_it_comes_from() {
    let directory = tempfile::tempdir().unwrap();
    let text = "port-base = 8800\n[page-serve]\npage-cache = '1GiB'\nblock-cache = '2GiB'\n\
                [wal-ingest]\nmemory = '3GiB'\n";
    let file = file(directory.path(), text);
    let variables = [
        ("PALIMPSEST_CONFIG", file.as_str()),
        ("PALIMPSEST_PAGE_SERVE__BLOCK_CACHE", "4GiB"),
        ("PALIMPSEST_PAGE_SERVE__TAIL_MEMORY", "5GiB"),
    ];
    let arguments = ["page-serve", "--print-config", "--tail-memory", "6GiB"];
    let output = service(&arguments, &variables);
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let from_file = format!("page-cache = \"1GiB\" # {file}:3");
    for line in [
        "listen = \"127.0.0.1:8802\" # default",
        "broker = \"127.0.0.1:8800\" # default",
        from_file.as_str(),
        "block-cache = \"4GiB\" # PALIMPSEST_PAGE_SERVE__BLOCK_CACHE",
        "tail-memory = \"6GiB\" # --tail-memory",
        "lsn-patience = \"10s\" # default",
    ] {
        assert!(printed.contains(line), "{line:?} in {printed}");
    }
    assert!(!printed.contains("3GiB"), "another service's: {printed}");
}

#[test]
fn says_all_that_is_wrong_and_where() {
    let directory = tempfile::tempdir().unwrap();
    let text = "[page-serve]\npage-cash = '1GiB'\nblock-cache = 'much'\n";
    let file = file(directory.path(), text);
    let variables = [
        ("PALIMPSEST_PAGE_SERVE__LISTENN", "x"),
        ("PALIMPSEST_PAGE_SERVER__LISTEN", "x"),
    ];
    let check = ["page-serve", "--config", &file, "--check-config"];
    let output = service(&check, &variables);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    for part in [
        format!("{file}:2: page-serve has no setting \"page-cash\"; it has listen"),
        format!("{file}:3: block-cache: \"much\" is not a size; write for example"),
        "PALIMPSEST_PAGE_SERVE__LISTENN: page-serve has no setting".to_owned(),
        "PALIMPSEST_PAGE_SERVER__LISTEN: there is no service \"page-server\"".to_owned(),
    ] {
        assert!(said.contains(&part), "{part:?} in {said}");
    }
    let output = service(&check[..3], &variables);
    assert_eq!(output.status.code(), Some(64), "a start fails: {output:?}");
}

#[test]
fn checks_what_can_be_known_without_starting() {
    let code = |arguments: &[&str]| service(arguments, &[]).status.code();
    assert_eq!(code(&["wal-ingest", "--check-config"]), Some(0));
    assert_eq!(code(&["wal-ingest", "--memory", "lots"]), Some(64));
    let open = ["redo-worker", "--check-config", "--listen", "0.0.0.0:1"];
    assert_eq!(code(&open), Some(2), "others could reach it");
    let lost = ["page-serve", "--check-config", "--port-base", "0"];
    let output = service(&lost, &[]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("say where the storage-broker is"), "{said}");
    assert_eq!(
        code(&["storage-broker", "--check-config", "--port-base", "0"]),
        Some(0)
    );
    assert_eq!(
        code(&["page-serve", "--check-config", "--config", "/nonexistent"]),
        Some(2)
    );
}
