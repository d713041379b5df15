use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use palimpsest_types::ByteCount;

/// What a long command does at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// In words.
    pub(crate) what: String,
    /// How much of how much, where that is known.
    pub(crate) share: Option<(ByteCount, ByteCount)>,
}

/// Shows on standard error how far a command is: as a bar on a terminal, as lines elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    last_line: String,
}

const TICK: Duration = Duration::from_millis(120);
const BAR: &str = "{spinner} {msg} [{bar:32}] {bytes} of {total_bytes}, {elapsed}";
const NO_BAR: &str = "{spinner} {msg}, {elapsed}";

impl Progress {
    /// Begins to show.
    pub(crate) fn start() -> Self {
        Self {
            bar: std::io::stderr().is_terminal().then(moving),
            last_line: String::new(),
        }
    }

    /// Begins to show if that is on a terminal.
    pub(crate) fn on_terminal() -> Option<Self> {
        let progress = Self::start();
        progress.bar.is_some().then_some(progress)
    }

    /// Shows a step.
    pub(crate) fn show(&mut self, step: &Step) {
        match &self.bar {
            Some(bar) => draw(bar, step),
            None => self.print(step.line()),
        }
    }

    /// Stops showing; what was drawn disappears.
    pub(crate) fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }

    fn print(&mut self, line: String) {
        if line != self.last_line {
            // With standard error closed there is nobody to show anything to.
            let _ = writeln!(std::io::stderr(), "{line}");
            self.last_line = line;
        }
    }
}

impl Step {
    /// A step of unknown length.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        let what = what.into();
        Self { what, share: None }
    }

    /// As a line that changes with every tenth done.
    fn line(&self) -> String {
        let what = &self.what;
        match self.share {
            Some((done, total)) if total > ByteCount::ZERO => {
                let tenths = (u128::from(done.get()) * 10 / u128::from(total.get())).min(10);
                format!("{what}: {}% of {total}", tenths * 10)
            }
            _ => what.clone(),
        }
    }
}

fn moving() -> ProgressBar {
    let bar = ProgressBar::new(0);
    bar.enable_steady_tick(TICK);
    bar
}

fn draw(bar: &ProgressBar, step: &Step) {
    let template = match step.share {
        Some((done, total)) => {
            // The total is an estimate; the bar must not overflow.
            bar.set_length(total.get().max(done.get()));
            bar.set_position(done.get());
            BAR
        }
        None => NO_BAR,
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(step.what.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_changes_with_every_tenth() {
        let line = |done| {
            let step = Step {
                what: "base backup".into(),
                share: Some((ByteCount::new(done), ByteCount::new(1000))),
            };
            step.line()
        };
        assert_eq!(line(210), line(290));
        assert_eq!(line(290), "base backup: 20% of 1000 B");
        assert_eq!(line(2000), "base backup: 100% of 1000 B");
    }
}
