//! `pal down`.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::{cli::Common, error::CliError, output::Output, place};

/// How long the services may take; a base backup under way is given up at once.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn run(common: &Common, output: Output) -> Result<(), CliError> {
    let Some(running) = place::look(&common.data)? else {
        return output.line(format!("nothing runs in {}", common.data.display()));
    };
    // The lock on the directory is held, so its process is alive and the number is its own.
    let pid = i32::try_from(running.pid).ok().and_then(Pid::from_raw);
    let signalled = pid.map(|pid| kill_process(pid, Signal::TERM));
    if let Some(Err(error)) = signalled {
        return Err(failed(format!("process {}: {error}", running.pid)));
    }
    if !place::wait_until_free(&common.data, LIMIT).await? {
        return Err(failed(format!(
            "process {} has not ended within {LIMIT:?}",
            running.pid
        )));
    }
    output.line(format!("stopped process {}", running.pid))
}

fn failed(what: String) -> CliError {
    CliError::Failed {
        what: format!("can't stop what runs there: {what}"),
        hint: None,
    }
}
