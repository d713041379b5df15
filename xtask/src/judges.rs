//! Whether every judge has spoken, and looked at enough.
//!
//! A judge is a test that holds one of the project's promises. It prints
//! `judge NAME: N checked, 0 wrong, P1`, in as many lines as it likes, or
//! `judge NAME: skipped, because …` where the machine cannot run it. A test that silently does
//! nothing passes; a judge that does nothing is found here.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::counts::Counts;

/// A judge that must speak.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Judge {
    pub(crate) name: String,
    /// Part of its test's name, which no other test's name has. Judges may share a test.
    pub(crate) test: String,
    promise: String,
    quick_minimum: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    judge: Vec<Judge>,
}

/// What the judges' words amount to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    passed: u64,
    skipped: u64,
    pub(crate) failures: Vec<String>,
}

/// The sum of one judge's lines.
#[derive(Debug, Default)]
struct Said {
    checked: u64,
    wrong: u64,
    promises: Vec<String>,
    skipped: bool,
}

impl Verdict {
    pub(crate) fn counts(&self) -> Counts {
        let failed = self.failures.len().try_into().unwrap_or(u64::MAX);
        Counts {
            passed: self.passed,
            failed,
            skipped: self.skipped,
        }
    }
}

#[cfg(test)]
impl Judge {
    /// One of this name and test.
    pub(crate) fn of(name: &str, test: &str) -> Self {
        Self {
            name: name.to_owned(),
            test: test.to_owned(),
            promise: "P1".to_owned(),
            quick_minimum: 1,
        }
    }
}

/// Reads the list of judges.
pub(crate) fn read_list(root: &Path) -> Result<Vec<Judge>> {
    let path = root.join("integration/judges.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let list: List = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    Ok(list.judge)
}

/// Compares what the judges said in `output` with what they must.
pub(crate) fn check(judges: &[Judge], output: &str) -> Verdict {
    let (mut said, mut failures) = collect(output);
    let mut verdict = Verdict::default();
    for judge in judges {
        match said.remove(&judge.name) {
            None => failures.push(format!("judge {} did not speak", judge.name)),
            Some(said) if said.skipped && said.checked == 0 => verdict.skipped += 1,
            Some(said) => match complaint(judge, &said) {
                None => verdict.passed += 1,
                Some(complaint) => failures.push(format!("judge {}: {complaint}", judge.name)),
            },
        }
    }
    let unlisted = said
        .keys()
        .map(|name| format!("judge {name} is not in integration/judges.toml"));
    failures.extend(unlisted);
    Verdict {
        failures,
        ..verdict
    }
}

fn complaint(judge: &Judge, said: &Said) -> Option<String> {
    if said.wrong > 0 {
        return Some(format!("{} of {} are wrong", said.wrong, said.checked));
    }
    if said.checked < judge.quick_minimum {
        return Some(format!(
            "checked {}, fewer than {}",
            said.checked, judge.quick_minimum
        ));
    }
    let other = said
        .promises
        .iter()
        .find(|promise| **promise != judge.promise)?;
    Some(format!(
        "speaks of {other}, the list says {}",
        judge.promise
    ))
}

/// The words of every judge, and the lines that are almost such words.
fn collect(output: &str) -> (BTreeMap<String, Said>, Vec<String>) {
    let mut all: BTreeMap<String, Said> = BTreeMap::new();
    let mut malformed = Vec::new();
    for line in output.lines() {
        let Some(rest) = line.trim().strip_prefix("judge ") else {
            continue;
        };
        let Some((name, words)) = rest.split_once(": ") else {
            continue;
        };
        let said = all.entry(name.to_owned()).or_default();
        if words.starts_with("skipped") {
            said.skipped = true;
        } else if let Some((checked, wrong, promise)) = parse(words) {
            said.checked = said.checked.saturating_add(checked);
            said.wrong = said.wrong.saturating_add(wrong);
            said.promises.push(promise.to_owned());
        } else {
            malformed.push(format!("cannot read {:?}", line.trim()));
        }
    }
    (all, malformed)
}

/// `N checked, N wrong, P1`.
fn parse(words: &str) -> Option<(u64, u64, &str)> {
    let mut parts = words.split(", ");
    let checked = parts.next()?.strip_suffix(" checked")?.parse().ok()?;
    let wrong = parts.next()?.strip_suffix(" wrong")?.parse().ok()?;
    let promise = parts.next()?;
    parts.next().is_none().then_some((checked, wrong, promise))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(minimum: u64) -> Vec<Judge> {
        vec![Judge {
            name: "pages".into(),
            test: "pages::".into(),
            promise: "P1".into(),
            quick_minimum: minimum,
        }]
    }

    fn failure(minimum: u64, output: &str) -> String {
        check(&pages(minimum), output).failures.join("; ")
    }

    #[test]
    fn adds_the_lines_of_a_judge_wherever_they_stand() {
        let output = "running 1 test\n    judge pages: 60 checked, 0 wrong, P1\nok\n\
            judge pages: 40 checked, 0 wrong, P1\n";
        let verdict = check(&pages(100), output);
        assert_eq!(
            verdict,
            Verdict {
                passed: 1,
                ..Verdict::default()
            }
        );
    }

    #[test]
    fn fails_a_judge_that_is_silent_lazy_wrong_unlisted_or_about_something_else() {
        assert_eq!(failure(1, ""), "judge pages did not speak");
        let lazy = failure(10, "judge pages: 9 checked, 0 wrong, P1");
        assert_eq!(lazy, "judge pages: checked 9, fewer than 10");
        let wrong = failure(1, "judge pages: 9 checked, 2 wrong, P1");
        assert_eq!(wrong, "judge pages: 2 of 9 are wrong");
        let other = failure(1, "judge pages: 9 checked, 0 wrong, P2");
        assert_eq!(other, "judge pages: speaks of P2, the list says P1");
        let unlisted = failure(
            1,
            "judge pages: 9 checked, 0 wrong, P1\njudge x: 1 checked, 0 wrong, P1",
        );
        assert_eq!(unlisted, "judge x is not in integration/judges.toml");
        assert!(failure(1, "judge pages: many checked").contains("cannot read"));
    }

    #[test]
    fn a_skipped_judge_is_counted_as_such() {
        let verdict = check(&pages(1), "judge pages: skipped, because there is no tmpfs");
        assert_eq!(
            verdict.counts(),
            Counts {
                skipped: 1,
                ..Counts::default()
            }
        );
    }
}
