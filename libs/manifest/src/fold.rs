//! When the edits of a manifest move to a list object, and which lists they take along. Pure.

/// Edits that a manifest holds itself. Beyond that they are folded into a list.
pub(crate) const INLINE_EDITS: usize = 512;

/// How many of the newest lists become one with the edits; `None` while the edits may stay inline.
/// `lists` are the numbers of edits in each list, oldest first.
///
/// A list stays as it is if it is at least twice as big as all that is newer. So each list is at
/// least twice as big as the next one, and there are O(log n). A list that is merged grows by half
/// or more, so an edit is written O(log n) times in its life.
pub(crate) fn fold(edits: usize, lists: &[usize]) -> Option<usize> {
    if edits <= INLINE_EDITS {
        return None;
    }
    let mut total = edits;
    let mut merged = 0;
    for size in lists.iter().rev() {
        if *size >= total.saturating_mul(2) {
            break;
        }
        total = total.saturating_add(*size);
        merged += 1;
    }
    Some(merged)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Adds edits in steps of these sizes. Gives the lists, how many edits were written to lists
    /// in all, and how many were added.
    fn grow(steps: impl Iterator<Item = usize>) -> (Vec<usize>, usize, usize) {
        let (mut lists, mut inline, mut written, mut added) = (Vec::new(), 0, 0, 0);
        for step in steps {
            inline += step;
            added += step;
            if let Some(merged) = fold(inline, &lists) {
                let kept = lists.len() - merged;
                let size = inline + lists.drain(kept..).sum::<usize>();
                written += size;
                lists.push(size);
                inline = 0;
            }
        }
        (lists, written, added)
    }

    #[test]
    fn a_few_edits_stay_inline() {
        assert_eq!(fold(INLINE_EDITS, &[100_000, 3]), None);
        assert_eq!(fold(INLINE_EDITS + 1, &[]), Some(0));
    }

    #[test]
    fn only_lists_that_are_not_twice_as_big_are_merged() {
        assert_eq!(fold(600, &[10_000, 1_200]), Some(0));
        assert_eq!(fold(600, &[10_000, 1_199]), Some(1));
        assert_eq!(fold(600, &[3_500, 1_199]), Some(2));
    }

    #[test]
    fn a_hundred_thousand_layers_take_few_lists_and_few_writes() {
        let (lists, written, added) = grow(std::iter::repeat_n(1, 100_000));
        assert_eq!(added, 100_000);
        assert!(lists.len() <= 9, "{lists:?}");
        // log to the base 1.5 of 100,000 / 513.
        assert!(written <= added * 13, "{written}");
    }

    proptest! {
        #[test]
        fn lists_are_few_and_an_edit_is_rarely_rewritten(
            steps in prop::collection::vec(1_usize..3_000, 1..400),
        ) {
            let (lists, written, added) = grow(steps.into_iter());
            for pair in lists.windows(2) {
                prop_assert!(pair[0] >= 2 * pair[1], "{lists:?}");
            }
            let folds = (added / INLINE_EDITS).max(1);
            let growths = (folds as f64).ln() / 1.5_f64.ln();
            prop_assert!(written <= added * (growths as usize + 2), "{written} of {added}");
        }
    }
}
