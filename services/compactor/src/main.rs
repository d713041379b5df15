//! The compactor's process.

use std::{env, process::ExitCode};

use palimpsest_compactor::{ABOUT, Settings, run};
use palimpsest_service_kit::{configure, process};

fn main() -> ExitCode {
    process::block_on(serve())
}

async fn serve() -> ExitCode {
    let (settings, telemetry) = match configure::<Settings>(ABOUT, env::args_os()).await {
        Ok(configured) => configured,
        Err(code) => return code,
    };
    let code = process::run(async |scope| run(settings, &scope).await).await;
    telemetry.finish().await;
    code
}
