//! Timelines as a tree, drawn with lines.

use std::collections::HashMap;

use palimpsest_api::{TimelineRef, broker::TimelineView};

use crate::client::full_name;

/// The timelines, those that begin on another below it, each with its name behind lines that show so.
/// In the order given where the tree leaves it open.
pub(crate) fn tree<'a>(timelines: &[&'a TimelineView]) -> Vec<(String, &'a TimelineView)> {
    let mut children: HashMap<Option<TimelineRef>, Vec<&TimelineView>> = HashMap::new();
    for view in timelines {
        let parent = view.begins_on().map(|(parent, _)| parent);
        children.entry(parent).or_default().push(view);
    }
    let mut rows = Vec::new();
    // What is still to be drawn, the next one last: with the lines of its place, and before its children's.
    let roots = children.remove(&None).unwrap_or_default().into_iter().rev();
    let mut open: Vec<_> = roots
        .map(|view| (view, String::new(), String::new()))
        .collect();
    while let Some((view, lines, below)) = open.pop() {
        let name = match view.branch {
            Some(_) => view.timeline_name.clone(),
            None => full_name(view),
        };
        rows.push((lines + &name, view));
        let next = children.remove(&Some(view.timeline)).unwrap_or_default();
        for (from_last, child) in next.into_iter().rev().enumerate() {
            let (turn, line) = match from_last {
                0 => ("└─ ", "   "),
                _ => ("├─ ", "│  "),
            };
            open.push((child, format!("{below}{turn}"), format!("{below}{line}")));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use palimpsest_api::broker::{BranchView, TimelineStatus};
    use palimpsest_types::{Lsn, TenantId, TimelineId};

    use super::*;

    fn view(name: &str, number: u8, parent: u8) -> TimelineView {
        TimelineView {
            timeline: TimelineRef {
                tenant: TenantId::from_bytes([1; 16]),
                timeline: TimelineId::from_bytes([number; 16]),
            },
            tenant_name: "shop".to_owned(),
            timeline_name: name.to_owned(),
            status: TimelineStatus::default(),
            writer: None,
            source: String::new(),
            slot: String::new(),
            branch: (parent > 0).then(|| BranchView {
                timeline: TimelineId::from_bytes([parent; 16]),
                lsn: Lsn::new(8),
                created_unix_ms: 0,
                expires_unix_ms: None,
                is_protected: false,
            }),
            source_cluster: None,
        }
    }

    #[test]
    fn branches_stand_below_what_they_begin_on() {
        let all = [
            view("main", 1, 0),
            view("a", 2, 1),
            view("b", 3, 2),
            view("c", 4, 2),
            view("d", 5, 1),
            view("e", 6, 5),
        ];
        let all: Vec<_> = all.iter().collect();
        let names: Vec<_> = tree(&all).into_iter().map(|(name, _)| name).collect();
        let expected = ["shop/main", "├─ a", "│  ├─ b", "│  └─ c", "└─ d", "   └─ e"];
        assert_eq!(names, expected);
    }
}
