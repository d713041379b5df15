//! `pal down`.

use std::{path::Path, time::Duration};

use rustix::{
    io,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::{
    cli::Common,
    error::CliError,
    output::Output,
    place::{self, Announcement},
};

/// How long the services may take; a base backup under way is given up at once.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn run(common: &Common, output: Output) -> Result<(), CliError> {
    let dir = &common.data;
    let Some(running) = place::look(dir)? else {
        if place::is_taken(dir)? {
            return Err(failed("it is just starting or ending; try again".into()));
        }
        return output.line(format!("nothing runs in {}", dir.display()));
    };
    signal(dir, &running)?;
    if !place::wait_until_free(dir, LIMIT).await? {
        return Err(failed(format!(
            "process {} has not ended within {LIMIT:?}",
            running.pid
        )));
    }
    output.line(format!("stopped process {}", running.pid))
}

/// Asks the announced process to end, and no other that was given its number since.
fn signal(dir: &Path, running: &Announcement) -> Result<(), CliError> {
    let refused = |error: io::Errno| failed(format!("process {}: {error}", running.pid));
    let pid = i32::try_from(running.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| failed(format!("{} is no process", running.pid)))?;
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(refused)?;
    // The descriptor stays with the process that has the number now. If that one is still announced
    // and holds the lock, it had the number all the time.
    if place::look(dir)?.as_ref() != Some(running) {
        let ended = format!(
            "process {} has just ended by itself; try again",
            running.pid
        );
        return Err(failed(ended));
    }
    match pidfd_send_signal(&process, Signal::TERM) {
        Ok(()) | Err(io::Errno::SRCH) => Ok(()),
        Err(error) => Err(refused(error)),
    }
}

fn failed(what: String) -> CliError {
    CliError::Failed {
        what: format!("can't stop what runs there: {what}"),
        hint: None,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::place::Place;

    fn bystander() -> (Child, Announcement) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let announcement = Announcement {
            pid: child.id(),
            broker: "127.0.0.1:7700".into(),
            store: Path::new("/data/store").into(),
        };
        (child, announcement)
    }

    #[test]
    fn signals_the_announced_process_only_while_it_holds_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, announcement) = bystander();
        let left_over = serde_json::to_vec(&announcement).unwrap();
        std::fs::write(dir.path().join("pal.json"), left_over).unwrap();

        // Nobody is there; then somebody else is, who has not announced itself yet.
        assert!(signal(dir.path(), &announcement).is_err());
        let place = Place::claim(dir.path()).unwrap();
        assert!(signal(dir.path(), &announcement).is_err());
        assert!(child.try_wait().unwrap().is_none());

        place.announce(&announcement).unwrap();
        signal(dir.path(), &announcement).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(Signal::TERM.as_raw())
        );
    }
}
