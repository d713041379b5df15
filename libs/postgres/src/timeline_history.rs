//! `0000000N.history`: how a timeline came about, one line for each ancestor.

use palimpsest_types::Lsn;

/// Number of a PostgreSQL timeline; the first is 1.
pub type Tli = u32;

/// The ancestors of a timeline, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// Name of the file at the server.
    pub file_name: String,
    /// The file as the server has it.
    pub content: String,
    /// What it says.
    pub ancestors: Vec<TimelineSwitch>,
}

/// Where one timeline was left for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The timeline that was left.
    pub timeline: Tli,
    /// Its last position that belongs to the history.
    pub end: Lsn,
}

/// A line is not part of a timeline history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the timeline history is not a timeline, a position and a reason")]
pub struct TimelineHistoryError {
    line: usize,
}

impl TimelineHistory {
    /// Reads the content of a history file. Timelines must ascend and positions must not descend.
    ///
    /// # Errors
    /// If a line is neither blank, nor a comment, nor an ancestor.
    pub fn parse(file_name: &str, content: &str) -> Result<Self, TimelineHistoryError> {
        let mut ancestors: Vec<TimelineSwitch> = Vec::new();
        for (index, line) in content.lines().enumerate() {
            let error = TimelineHistoryError { line: index + 1 };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let switch = parse_line(line).ok_or_else(|| error.clone())?;
            let follows =
                |last: &TimelineSwitch| last.timeline < switch.timeline && last.end <= switch.end;
            if !ancestors.last().is_none_or(follows) {
                return Err(error);
            }
            ancestors.push(switch);
        }
        Ok(Self {
            file_name: file_name.to_owned(),
            content: content.to_owned(),
            ancestors,
        })
    }
}

fn parse_line(line: &str) -> Option<TimelineSwitch> {
    let mut words = line.split_whitespace();
    Some(TimelineSwitch {
        timeline: words.next()?.parse().ok()?,
        end: words.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ancestors_and_refuses_disorder() {
        let text = "1\t0/3000000\tno recovery target specified\n\n# note\n2\t0/5000060\tx\n";
        let history = TimelineHistory::parse("00000003.history", text).unwrap();
        let switches: Vec<_> = history
            .ancestors
            .iter()
            .map(|s| (s.timeline, s.end))
            .collect();
        assert_eq!(
            switches,
            [(1, Lsn::new(0x300_0000)), (2, Lsn::new(0x500_0060))]
        );
        for text in ["1", "x 0/0 y", "2 0/1 a\n1 0/2 b", "1 0/2 a\n2 0/1 b"] {
            assert!(TimelineHistory::parse("f", text).is_err(), "{text}");
        }
    }
}
