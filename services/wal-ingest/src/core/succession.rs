//! Which PostgreSQL timeline comes after the one that we have, when the source is on another: a standby was promoted,
//! or the source was recovered in place.

use palimpsest_manifest::PgTimelineBegin;
use palimpsest_postgres::{TimelineHistory, Tli};
use palimpsest_types::Lsn;

/// How the timeline that the source is on came about, seen from one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Succession {
    /// The one that we have was left for another, and nothing of ours comes after that.
    Follows(Switch),
    /// It was left before the end of what we have, which is of no history that goes on.
    Leaves(Switch),
    /// It is no ancestor.
    Foreign,
}

/// Where one timeline was left for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Switch {
    /// The last position that the two have in common.
    pub(super) at: Lsn,
    /// What comes after it.
    pub(super) next: Tli,
}

/// Whether a server's history is the one that we have, as far as that goes. Numbers alone don't tell: two standbys that
/// don't know of each other choose the same one when they are promoted.
pub(super) fn is_of(history: &TimelineHistory, begun: &[PgTimelineBegin]) -> bool {
    // One that was left where it began has left no trace: nothing of it was read.
    let next = |at: usize| begun.get(at + 1);
    let is_empty = |(at, one): &(usize, &PgTimelineBegin)| {
        next(*at).is_some_and(|next| next.begin == one.begin)
    };
    let begun: Vec<_> = begun
        .iter()
        .enumerate()
        .filter(|one| !is_empty(one))
        .collect();
    let switches = begun.iter().zip(begun.iter().skip(1));
    let mut known = switches.map(|((_, one), (_, next))| (one.pg_timeline, next.begin));
    let newest = known.next_back();
    let end_of = |timeline| {
        let mut ancestors = history.ancestors.iter();
        let left = ancestors.find(|ancestor| ancestor.timeline == timeline);
        left.map(|left| left.end)
    };
    // Base backups of ours named only the last one once.
    known.all(|(timeline, at)| end_of(timeline).is_none_or(|end| end == at))
        && newest.is_none_or(|(timeline, at)| end_of(timeline) == Some(at))
}

/// What the history of the timeline `found` says to one who has all records of the timeline `ours` up to `end`.
pub(super) fn succession(
    history: &TimelineHistory,
    (ours, end): (Tli, Lsn),
    found: Tli,
) -> Succession {
    let mut ancestors = history.ancestors.iter();
    let Some(left) = ancestors.find(|ancestor| ancestor.timeline == ours) else {
        return Succession::Foreign;
    };
    let switch = Switch {
        at: left.end,
        next: ancestors.next().map_or(found, |next| next.timeline),
    };
    match end <= switch.at {
        true => Succession::Follows(switch),
        false => Succession::Leaves(switch),
    }
}

/// The PostgreSQL timelines that a server has begun since ours was left, each with where, up to the one that it is on.
/// None if ours is no ancestor.
pub(super) fn since(
    history: &TimelineHistory,
    ours: Tli,
    found: Tli,
) -> Option<Vec<PgTimelineBegin>> {
    let ancestors = &history.ancestors;
    let left = ancestors.iter().position(|one| one.timeline == ours)?;
    let left = ancestors.get(left..)?;
    let next = left.iter().skip(1).map(|one| one.timeline).chain([found]);
    let begun = left
        .iter()
        .zip(next)
        .map(|(one, pg_timeline)| PgTimelineBegin {
            pg_timeline,
            begin: one.end,
        });
    Some(begun.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTORY: &str = "1\t0/3000060\tno recovery target specified\n3\t0/5000028\tpromoted\n";

    fn seen(ours: Tli, end: u64) -> Succession {
        let history = TimelineHistory::parse("00000004.history", HISTORY).unwrap();
        succession(&history, (ours, Lsn::new(end)), 4)
    }

    #[test]
    fn each_timeline_is_followed_by_the_next_and_the_last_by_the_source_s() {
        let first = Switch {
            at: Lsn::new(0x300_0060),
            next: 3,
        };
        assert_eq!(seen(1, 0x300_0060), Succession::Follows(first));
        assert_eq!(seen(1, 0x200_0000), Succession::Follows(first));
        let second = Switch {
            at: Lsn::new(0x500_0028),
            next: 4,
        };
        assert_eq!(seen(3, 0x400_0000), Succession::Follows(second));
    }

    #[test]
    fn the_same_number_is_not_the_same_timeline() {
        let history = TimelineHistory::parse("00000004.history", HISTORY).unwrap();
        let begun = |switches: &[(Tli, u64)]| {
            let begun = switches.iter().map(|(pg_timeline, begin)| PgTimelineBegin {
                pg_timeline: *pg_timeline,
                begin: Lsn::new(*begin),
            });
            is_of(&history, &begun.collect::<Vec<_>>())
        };
        assert!(begun(&[(1, 0x100_0000)]) && begun(&[(3, 0x400_0000)]));
        assert!(begun(&[(1, 0x100_0000), (3, 0x300_0060)]));
        assert!(begun(&[(1, 0x100_0000), (3, 0x300_0060), (4, 0x500_0028)]));
        // Another standby was promoted to 3, or to 4.
        assert!(!begun(&[(1, 0x100_0000), (3, 0x300_0068)]));
        assert!(!begun(&[(1, 0x100_0000), (3, 0x300_0068), (4, 0x500_0028)]));
        assert!(!begun(&[(1, 0x100_0000), (3, 0x300_0060), (4, 0x500_0030)]));
        assert!(!begun(&[(2, 0x100_0000), (4, 0x500_0028)]));
        // Of 2 nothing was ever read.
        assert!(begun(&[(1, 0x100_0000), (2, 0x300_0060), (3, 0x300_0060)]));
    }

    #[test]
    fn what_is_not_in_the_history_is_not_followed() {
        assert_eq!(seen(2, 0x200_0000), Succession::Foreign);
        let first = Switch {
            at: Lsn::new(0x300_0060),
            next: 3,
        };
        assert_eq!(seen(1, 0x300_0068), Succession::Leaves(first));
    }
}
