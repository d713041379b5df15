//! Writes the corpora anew: small inputs from a PostgreSQL that is started for this, and from our
//! own encoders. Inputs that a fuzzer found stay; their names begin otherwise.
//!
//! `cargo run -p palimpsest-fuzz-targets --example seeds`

mod cluster;
mod made;
mod wal;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The corpora, a directory for each target.
struct Corpora(PathBuf);

/// No seed is longer: a fuzzer does more with small ones, and they stay in the repository.
const LONGEST: usize = 12 << 10;

fn main() -> Result<()> {
    let corpora = Corpora(Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus"));
    made::write(&corpora)?;
    cluster::write(&corpora)
}

impl Corpora {
    fn seed(&self, target: &str, name: &str, bytes: &[u8]) -> Result<()> {
        let directory = self.0.join(target);
        fs::create_dir_all(&directory)?;
        let path = directory.join(format!("seed-{name}"));
        let bytes = bytes.get(..LONGEST).unwrap_or(bytes);
        fs::write(&path, bytes).with_context(|| path.display().to_string())
    }
}
