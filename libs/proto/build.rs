//! Compiles `proto/` with protox, so that nobody needs to install protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 7] = [
    "palimpsest/common/v1/common.proto",
    "palimpsest/page/v1/page.proto",
    "palimpsest/redo/v1/redo.proto",
    "palimpsest/ingest/v1/ingest.proto",
    "palimpsest/compaction/v1/compaction.proto",
    "palimpsest/broker/v1/broker.proto",
    "palimpsest/admin/v1/admin.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [&root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::BatchingCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
