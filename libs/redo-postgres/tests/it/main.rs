//! The engine against a stock PostgreSQL 15: what it rebuilds, and how it takes failures.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cluster;
mod corpus;
mod failures;
mod hostile_pages;
mod images;
mod lifecycle;
mod rebuild;
mod wal;
mod walls;

use std::path::Path;

use palimpsest_redo_postgres::{Engine, EngineSettings};

const BIN_DIR: &str = "/usr/lib/postgresql/15/bin";
const BUILD_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../compute/redo/build/15");

fn settings() -> EngineSettings {
    let mut settings = EngineSettings::discover(Path::new(BIN_DIR), Path::new(BUILD_DIR))
        .expect("run make -C compute/redo, with PostgreSQL 15 and its server headers installed");
    settings.run_as = cluster::unprivileged_user();
    settings
}

async fn engine() -> Engine {
    Engine::start(settings()).await.expect("the engine starts")
}
