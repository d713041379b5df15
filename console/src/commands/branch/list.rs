//! `pal branch list`.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use futures::{StreamExt as _, stream};
use palimpsest_api::{
    TimelineRef,
    admin::{StoredSize, TimelineSize},
    broker::{ClusterView, TimelineView},
    page::{PageClient, ReadAt},
};
use palimpsest_types::{ByteCount, Lsn, unix_ms};
use serde::Serialize;

use super::parent_of;
use crate::{
    branch_tree::tree,
    client::{Client, full_name},
    error::CliError,
    moment::shown,
    output::{Column, Output},
};

/// A timeline as what others begin on, and as a branch if it is one; for people and programs.
#[derive(Debug, Serialize)]
pub(super) struct BranchLine {
    pub(super) name: String,
    tenant_id: String,
    timeline_id: String,
    pub(super) begins_on: Option<String>,
    lsn: Option<Lsn>,
    created: Option<String>,
    expires: Option<String>,
    is_protected: bool,
    state: &'static str,
    /// Whether what it shares is in the object store.
    pub(super) durable: bool,
    /// How the PostgreSQL that writes it is reached.
    written_by: Option<String>,
}

/// The same, with what has to be asked for.
#[derive(Debug, Serialize)]
struct TreeLine {
    #[serde(flatten)]
    line: BranchLine,
    /// The latest time at which a transaction had ended where it begins.
    last_commit: Option<String>,
    own_bytes: Option<u64>,
    shared_bytes: Option<u64>,
    /// What goes from the object store if it is deleted.
    freed_bytes: Option<u64>,
    lag_bytes: u64,
    /// Why its sizes can't be told.
    problem: Option<String>,
}

/// What is asked for to make [`TreeLine`]s.
#[derive(Debug, Default)]
struct Asked {
    sizes: HashMap<TimelineRef, Result<StoredSize, String>>,
    last_commits: HashMap<TimelineRef, SystemTime>,
}

const COLUMNS: [Column; 8] = [
    Column::Left("BRANCH"),
    Column::Left("BEGINS ON"),
    Column::Left("AT"),
    Column::Left("MADE"),
    Column::Left("STATE"),
    Column::Left("DURABLE"),
    Column::Left("EXPIRES"),
    Column::Left("WRITTEN BY"),
];

const TREE_COLUMNS: [Column; 11] = [
    Column::Left("BRANCH"),
    Column::Left("AT"),
    Column::Left("LAST COMMIT"),
    Column::Right("OWN"),
    Column::Right("SHARED"),
    Column::Right("FREED"),
    Column::Right("LAG"),
    Column::Left("STATE"),
    Column::Left("DURABLE"),
    Column::Left("EXPIRES"),
    Column::Left("WRITTEN BY"),
];

/// Times that are asked for at once.
const AT_ONCE: usize = 32;
/// For an LSN that has not come to page-serve the list does not wait.
const PATIENCE: Duration = Duration::from_millis(200);

/// Lists the branches.
pub(super) fn as_table(view: &ClusterView, output: Output) -> Result<(), CliError> {
    let branches = sorted(view).into_iter();
    let branches = branches.filter(|timeline| timeline.branch.is_some());
    let lines = branches.map(|branch| BranchLine::of(view, branch));
    if output.is_json() {
        return output.json(&lines.collect::<Vec<_>>());
    }
    output.table(&COLUMNS, lines.map(BranchLine::cells).collect())
}

/// Shows the timelines as a tree, with what they take.
pub(super) async fn as_tree(
    client: &Client,
    view: &ClusterView,
    output: Output,
) -> Result<(), CliError> {
    // The rest is worth showing, too.
    let (sizes, problem) = match sizes(client).await {
        Ok(sizes) => (sizes, None),
        Err(error) => (HashMap::new(), Some(error.in_full())),
    };
    let asked = Asked {
        sizes,
        last_commits: last_commits(client, view).await,
    };
    let rows = tree(&sorted(view)).into_iter();
    let rows: Vec<_> = rows
        .map(|(place, timeline)| (place, TreeLine::of(view, timeline, &asked)))
        .collect();
    if output.is_json() {
        let lines: Vec<_> = rows.into_iter().map(|(_, line)| line).collect();
        return output.json(&lines);
    }
    let remarks = rows.iter().filter_map(|(_, line)| line.remark());
    let problems: Vec<_> = problem.into_iter().chain(remarks).collect();
    let rows = rows.into_iter().map(|(place, line)| line.cells(place));
    output.table(&TREE_COLUMNS, rows.collect())?;
    problems.into_iter().try_for_each(|line| output.line(line))
}

fn sorted(view: &ClusterView) -> Vec<&TimelineView> {
    let mut timelines: Vec<_> = view.timelines.iter().collect();
    timelines.sort_by_key(|view| full_name(view));
    timelines
}

async fn sizes(
    client: &Client,
) -> Result<HashMap<TimelineRef, Result<StoredSize, String>>, CliError> {
    let sizes = client.admin()?.sizes(None).await;
    let sizes = sizes.map_err(|error| client.refused("asking what the branches take", error))?;
    let sizes = sizes
        .into_iter()
        .map(|TimelineSize { timeline, stored }| (timeline, stored));
    Ok(sizes.collect())
}

/// How late it was where branches begin, as far as a page-serve is there that can tell.
async fn last_commits(client: &Client, view: &ClusterView) -> HashMap<TimelineRef, SystemTime> {
    let Ok(pages) = client.pages(view).await else {
        return HashMap::new();
    };
    let asking = stream::iter(&view.timelines).map(async |branch| {
        let time = last_commit(&pages, branch).await;
        time.map(|time| (branch.timeline, time))
    });
    let told = asking.buffer_unordered(AT_ONCE);
    told.filter_map(async |told| told).collect().await
}

async fn last_commit(pages: &PageClient, branch: &TimelineView) -> Option<SystemTime> {
    // Many begin on the same one: that is open already.
    let (parent, lsn) = branch.begins_on()?;
    let at = ReadAt {
        patience: Some(PATIENCE),
        ..lsn.into()
    };
    pages.time_at_lsn(parent, at).await.ok().flatten()
}

impl BranchLine {
    pub(super) fn of(view: &ClusterView, branch: &TimelineView) -> Self {
        let point = branch.branch;
        let begins_on = branch.begins_on().map(|(parent, _)| {
            let known = view.timeline(parent);
            known.map_or_else(|| parent.timeline.to_string(), full_name)
        });
        Self {
            name: full_name(branch),
            tenant_id: branch.timeline.tenant.to_string(),
            timeline_id: branch.timeline.timeline.to_string(),
            begins_on,
            lsn: point.map(|point| point.lsn),
            created: point.map(|point| shown(point.created_unix_ms)),
            expires: point.and_then(|point| point.expires_unix_ms).map(shown),
            is_protected: point.is_some_and(|point| point.is_protected),
            state: branch.status.state.name(),
            durable: is_durable(view, branch),
            written_by: Some(branch.source.clone()).filter(|source| !source.is_empty()),
        }
    }

    /// In the order of [`COLUMNS`].
    fn cells(self) -> Vec<String> {
        let mut cells = vec![
            self.name.clone(),
            or_none(self.begins_on.clone()),
            or_none(self.lsn),
            or_none(self.created.clone()),
        ];
        cells.extend(self.last_cells());
        cells
    }

    /// Those with which a row ends.
    fn last_cells(self) -> [String; 4] {
        let expires = match self.is_protected {
            true => Some("protected".to_owned()),
            false => self.expires,
        };
        [
            self.state.to_owned(),
            if self.durable { "yes" } else { "no" }.to_owned(),
            or_none(expires),
            or_none(self.written_by),
        ]
    }
}

impl TreeLine {
    fn of(view: &ClusterView, branch: &TimelineView, asked: &Asked) -> Self {
        // One that was made in between is told of the next time.
        let (stored, problem) = match asked.sizes.get(&branch.timeline) {
            Some(Ok(stored)) => (Some(*stored), None),
            Some(Err(problem)) => (None, Some(problem.clone())),
            None => (None, None),
        };
        let last_commit = asked.last_commits.get(&branch.timeline);
        Self {
            line: BranchLine::of(view, branch),
            last_commit: last_commit.map(|time| shown(unix_ms(*time))),
            own_bytes: stored.map(|stored| stored.own.get()),
            shared_bytes: stored.map(|stored| stored.shared.get()),
            freed_bytes: stored.and_then(|stored| stored.freed).map(ByteCount::get),
            lag_bytes: branch.status.lag().get(),
            problem,
        }
    }

    /// In the order of [`TREE_COLUMNS`], behind the lines that show what it begins on.
    fn cells(self, place: String) -> Vec<String> {
        let bytes = |bytes: Option<u64>| or_none(bytes.map(ByteCount::new));
        // Who nobody writes is not behind.
        let lag = self.line.written_by.as_ref().map(|_| self.lag_bytes);
        let mut cells = vec![
            place,
            or_none(self.line.lsn),
            or_none(self.last_commit),
            bytes(self.own_bytes),
            bytes(self.shared_bytes),
            bytes(self.freed_bytes),
            bytes(lag),
        ];
        cells.extend(self.line.last_cells());
        cells
    }

    fn remark(&self) -> Option<String> {
        let problem = self.problem.as_ref()?;
        Some(format!(
            "what {} takes can't be told: {problem}",
            self.line.name
        ))
    }
}

fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Whether all that a branch shares is in the object store.
fn is_durable(view: &ClusterView, branch: &TimelineView) -> bool {
    let mut branch = branch;
    while let Some(point) = branch.branch {
        let parent = parent_of(branch).and_then(|parent| view.timeline(parent));
        match parent {
            Some(parent) if parent.status.remote_consistent >= point.lsn => branch = parent,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::{super::tests::view, *};

    #[test]
    fn a_branch_is_durable_when_all_that_it_shares_is() {
        let durable = |remote| {
            let view = view(remote);
            view.timelines
                .iter()
                .map(|branch| is_durable(&view, branch))
                .collect::<Vec<_>>()
        };
        assert_eq!(durable(99), [true, false, false]);
        assert_eq!(durable(100), [true, true, true]);
    }

    #[test]
    fn a_row_tells_what_a_branch_takes_or_why_that_is_not_known() {
        let view = view(100);
        let [main, a, b] = view.timelines.as_slice() else {
            panic!("{view:?}");
        };
        let stored = StoredSize {
            own: ByteCount::kib(1),
            shared: ByteCount::kib(2),
            freed: Some(ByteCount::kib(1)),
        };
        let of_main = StoredSize {
            freed: None,
            ..stored
        };
        let asked = Asked {
            sizes: HashMap::from([
                (main.timeline, Ok(of_main)),
                (a.timeline, Ok(stored)),
                (b.timeline, Err("the store is away".to_owned())),
            ]),
            last_commits: HashMap::from([(a.timeline, UNIX_EPOCH + Duration::from_secs(1))]),
        };
        let row = |timeline| {
            let line = TreeLine::of(&view, timeline, &asked);
            let remark = line.remark();
            let cells = line.cells("place".to_owned());
            assert_eq!(cells.len(), TREE_COLUMNS.len());
            (cells[1..7].to_vec(), remark)
        };
        let (cells, remark) = row(main);
        assert_eq!(cells, ["-", "-", "1.0 KiB", "2.0 KiB", "-", "-"]);
        assert_eq!(remark, None);
        let (cells, _) = row(a);
        let at = Lsn::new(100).to_string();
        let second = shown(1000);
        assert_eq!(
            cells,
            [at.as_str(), &second, "1.0 KiB", "2.0 KiB", "1.0 KiB", "-"]
        );
        let (cells, remark) = row(b);
        assert_eq!(cells, [at.as_str(), "-", "-", "-", "-", "-"]);
        let expected = "what shop/b takes can't be told: the store is away";
        assert_eq!(remark.as_deref(), Some(expected));
    }
}
