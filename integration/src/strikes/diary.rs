//! What a process has asked of the object store, written down as it happens.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{Moment, Step, plan::place};

/// The diary of one process. It survives the process, which writes each line before it is struck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diary(PathBuf);

/// One line of a diary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whether the step was about to begin, or had taken effect.
    pub moment: Moment,
    /// The kind of step.
    pub step: Step,
    /// Counted from 1 among what there was of both.
    pub number: u32,
    /// The name of the object that it is about.
    pub object: String,
}

impl Diary {
    /// The diary in a file, which may not exist yet.
    pub fn at(file: PathBuf) -> Self {
        Self(file)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What it says so far.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn read(&self) -> Result<Vec<Entry>> {
        let text = match fs::read_to_string(&self.0) {
            // The process has not come so far.
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            outcome => outcome.with_context(|| self.0.display().to_string())?,
        };
        let entries = text
            .lines()
            .map(|line| entry(line).with_context(|| format!("{line:?} in {}", self.0.display())));
        entries.collect()
    }
}

impl Entry {
    /// Whether a step of this kind has taken effect.
    pub fn is_done(&self, step: Step) -> bool {
        self.moment == Moment::After && self.step == step
    }

    /// Adds it to a file, with one call, so that there are no half lines.
    pub(super) fn write(&self, file: &mut File) -> io::Result<()> {
        let Self {
            moment,
            step,
            number,
            object,
        } = self;
        file.write_all(format!("{moment} {step} {number} {object}\n").as_bytes())
    }
}

fn entry(line: &str) -> Option<Entry> {
    let mut words = line.split(' ');
    let (moment, step, number) = place(&mut words)?;
    let object = words.next()?.to_owned();
    let entry = Entry {
        moment,
        step,
        number: number.get(),
        object,
    };
    words.next().is_none().then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diary_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let diary = Diary::at(directory.path().join("diary"));
        assert_eq!(diary.read().unwrap(), []);
        let entry = |moment, step, number| Entry {
            moment,
            step,
            number,
            object: "delta-1".to_owned(),
        };
        let entries = [
            entry(Moment::Before, Step::Upload, 1),
            entry(Moment::After, Step::Upload, 1),
        ];
        let mut file = File::create(diary.path()).unwrap();
        for entry in &entries {
            entry.write(&mut file).unwrap();
        }
        assert_eq!(diary.read().unwrap(), entries);
        file.write_all(b"nonsense\n").unwrap();
        assert!(diary.read().is_err());
    }
}
