//! How a judge says what it has found.

use std::fmt;

/// The findings of one judge, counted.
#[derive(Debug, Clone)]
pub struct Judge {
    name: &'static str,
    promise: &'static str,
    checked: u64,
    wrong: Vec<String>,
}

/// Wrong findings that are shown in words; more are only counted.
const SHOWN: usize = 20;

impl Judge {
    /// A judge that holds one of the promises P1 to P9.
    pub fn new(name: &'static str, promise: &'static str) -> Self {
        Self {
            name,
            promise,
            checked: 0,
            wrong: Vec::new(),
        }
    }

    /// One thing was looked at; `finding` says what is wrong with it, if anything.
    pub fn check(&mut self, finding: Option<String>) {
        self.checked += 1;
        self.wrong.extend(finding);
    }

    /// Prints the line that CI reads.
    ///
    /// # Panics
    /// If anything was wrong, or nothing was checked.
    pub fn close(&self) {
        eprintln!("{self}");
        for finding in self.wrong.iter().take(SHOWN) {
            eprintln!("  {finding}");
        }
        assert!(
            self.wrong.is_empty(),
            "{self}; the first is: {}",
            self.wrong[0]
        );
        assert!(
            self.checked > 0,
            "{self}: a judge that checks nothing proves nothing"
        );
    }

    /// How many findings were wrong.
    pub fn wrong(&self) -> usize {
        self.wrong.len()
    }

    /// How many things were looked at.
    pub fn checked(&self) -> u64 {
        self.checked
    }
}

impl fmt::Display for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            promise,
            checked,
            wrong,
        } = self;
        write!(
            f,
            "judge {name}: {checked} checked, {} wrong, {promise}",
            wrong.len()
        )
    }
}
