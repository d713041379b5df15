//! Every input of the corpora, through its target: what was once found stays found.

use std::{fs, path::PathBuf};

use palimpsest_fuzz_targets::TARGETS;

fn corpus(target: &str) -> PathBuf {
    let corpora = concat!(env!("CARGO_MANIFEST_DIR"), "/../corpus");
    PathBuf::from(corpora).join(target)
}

#[test]
fn every_input_of_every_corpus_is_survived() {
    for (name, target) in TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(corpus(name)).expect(name) {
            let path = entry.expect(name).path();
            let input = fs::read(&path).expect(name);
            // What the test prints last before it fails is the input that it failed at.
            eprintln!("{}", path.display());
            target(&input);
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has no corpus");
    }
}

/// Hostile inputs are often cut or changed in one place; so are these, without a fuzzer.
#[test]
fn every_input_may_be_cut_and_flipped() {
    const PLACES: usize = 64;
    for (name, target) in TARGETS {
        for entry in fs::read_dir(corpus(name)).expect(name) {
            let input = fs::read(entry.expect(name).path()).expect(name);
            let step = input.len().div_ceil(PLACES).max(1);
            for at in (0..input.len()).step_by(step) {
                target(&input[..at]);
                let mut flipped = input.clone();
                flipped[at] ^= 0x80;
                target(&flipped);
            }
        }
    }
}
