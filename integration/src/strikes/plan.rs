//! Which step a process strikes itself at, and how, as text.

use std::{fmt, num::NonZeroU32, str::FromStr};

/// Strikes, one after the other: of one that halts somebody else may wake it.
///
/// As text they are separated by commas: `after upload 1 halt, before remove 1 kill`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan(pub Vec<Strike>);

/// A strike, as text `before publish 1 kill`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strike {
    /// On which side of the step.
    pub moment: Moment,
    /// The kind of step.
    pub step: Step,
    /// Counted from 1 in the life of the process, among the steps of its kind: before them those that
    /// begin, after them those that have taken effect.
    pub number: NonZeroU32,
    /// What happens.
    pub action: Action,
}

/// On which side of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// Nothing of it has happened yet.
    Before,
    /// It has taken effect, and nobody has heard of that.
    After,
}

/// What happens to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It dies, with SIGKILL.
    Kill,
    /// It stands still, with SIGSTOP, until somebody lets it go on.
    Halt,
}

/// One step of a compactor's or wal-ingest's work, each an operation of the object store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Lists manifests.
    Look,
    /// Creates a manifest that claims the timeline.
    Claim,
    /// Reads a part of a layer.
    Read,
    /// Creates a layer of changes.
    Upload,
    /// Creates an image.
    Image,
    /// Creates a manifest that goes on with a claim.
    Renew,
    /// Creates a manifest that goes on with a claim, and has an image more.
    Add,
    /// Creates a manifest that has the new layers in the place of the old, and no claim.
    Publish,
    /// Creates a manifest that has no claim, and the layers that there were.
    LetGo,
    /// Deletes a layer that came to nothing.
    Remove,
    /// Deletes an old manifest.
    Sweep,
    /// Creates a list of layers, for the next manifest.
    Fold,
    /// Creates a manifest under another writer.
    TakeOver,
}

/// A text is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no strike; write one as {FORM}, with commas between several")]
pub struct ParsePlanError {
    text: String,
}

const FORM: &str = "`before|after STEP NUMBER kill|halt`";

impl Moment {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Before, Self::After];

    const fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

impl Action {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Kill, Self::Halt];

    const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Halt => "halt",
        }
    }
}

impl Step {
    /// All there are.
    pub const ALL: [Self; 13] = [
        Self::Look,
        Self::Claim,
        Self::Read,
        Self::Upload,
        Self::Image,
        Self::Renew,
        Self::Add,
        Self::Publish,
        Self::LetGo,
        Self::Remove,
        Self::Sweep,
        Self::Fold,
        Self::TakeOver,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Claim => "claim",
            Self::Read => "read",
            Self::Upload => "upload",
            Self::Image => "image",
            Self::Renew => "renew",
            Self::Add => "add",
            Self::Publish => "publish",
            Self::LetGo => "let-go",
            Self::Remove => "remove",
            Self::Sweep => "sweep",
            Self::Fold => "fold",
            Self::TakeOver => "take-over",
        }
    }
}

impl Plan {
    /// Whether there is a strike at a step of this kind.
    pub(super) fn has(&self, step: Step) -> bool {
        self.0.iter().any(|strike| strike.step == step)
    }

    /// What happens at this side of the step of this number, if anything.
    pub(super) fn action(&self, moment: Moment, step: Step, number: u32) -> Option<Action> {
        let is_it =
            |it: &&Strike| it.moment == moment && it.step == step && it.number.get() == number;
        self.0.iter().find(is_it).map(|strike| strike.action)
    }
}

fn named<T: Copy>(all: &[T], name: fn(T) -> &'static str, text: &str) -> Option<T> {
    all.iter().copied().find(|it| name(*it) == text)
}

/// The moment, the step and the number at the beginning of some words.
pub(super) fn place<'a>(
    words: &mut impl Iterator<Item = &'a str>,
) -> Option<(Moment, Step, NonZeroU32)> {
    let moment = named(&Moment::ALL, Moment::name, words.next()?)?;
    let step = named(&Step::ALL, Step::name, words.next()?)?;
    let number = words.next()?;
    // Not `+1`, which the parser of numbers takes, too.
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    Some((moment, step, number.parse().ok().filter(|_| digits)?))
}

fn strike(text: &str) -> Option<Strike> {
    let mut words = text.split(' ');
    let (moment, step, number) = place(&mut words)?;
    let action = named(&Action::ALL, Action::name, words.next()?)?;
    let strike = Strike {
        moment,
        step,
        number,
        action,
    };
    words.next().is_none().then_some(strike)
}

impl FromStr for Plan {
    type Err = ParsePlanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let strikes = text.split(", ").map(|text| {
            strike(text).ok_or_else(|| ParsePlanError {
                text: text.to_owned(),
            })
        });
        strikes.collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, strike) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{strike}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            moment,
            step,
            number,
            action,
        } = self;
        write!(f, "{moment} {step} {number} {}", action.name())
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_as_it_is_written() {
        for text in [
            "before publish 1 kill",
            "after upload 12 halt, before remove 1 kill",
        ] {
            let plan: Plan = text.parse().unwrap();
            assert_eq!(plan.to_string(), text);
        }
        for moment in Moment::ALL {
            for step in Step::ALL {
                for action in Action::ALL {
                    let plan = Plan(vec![Strike::first(moment, step, action)]);
                    assert_eq!(plan.to_string().parse(), Ok(plan));
                }
            }
        }
    }

    #[test]
    fn what_is_no_plan_is_refused() {
        for text in [
            "",
            "publish",
            "before publish kill",
            "before publish 0 kill",
            "before publish +1 kill",
            "before  publish 1 kill",
            "Before publish 1 kill",
            "before publish 1 kill now",
            "before publish 1 kill,",
            "before publish 1 kill,after publish 1 kill",
        ] {
            assert!(text.parse::<Plan>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn only_the_step_of_the_plan_is_struck() {
        let plan: Plan = "after upload 2 halt".parse().unwrap();
        let met = plan.action(Moment::After, Step::Upload, 2);
        assert_eq!(met, Some(Action::Halt));
        assert_eq!(plan.action(Moment::Before, Step::Upload, 2), None);
        assert_eq!(plan.action(Moment::After, Step::Upload, 1), None);
        assert_eq!(plan.action(Moment::After, Step::Remove, 2), None);
    }
}
