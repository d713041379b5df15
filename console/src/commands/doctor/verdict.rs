//! What is found, judged.

use std::{
    fmt, io,
    path::Path,
    time::{Duration, SystemTime},
};

use palimpsest_api::broker::{ClusterView, Member, Role, TimelineState};
use palimpsest_redo_postgres::{Wall, Walls};
use palimpsest_settings::{Problem, Problems};
use palimpsest_store::StoreLocation;
use palimpsest_types::ByteCount;
use serde::Serialize;

use crate::{client::full_name, views::role_name};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Level {
    Ok,
    /// It works, but not as well as it should.
    Warn,
    /// It does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) level: Level,
    pub(super) what: String,
    pub(super) found: String,
    /// What to do, if anything.
    pub(super) remedy: Option<String>,
}

const MAJOR: &str = "postgres (PostgreSQL) 15.";
/// Of all services in one process.
const ADDRESS_SPACE: ByteCount = ByteCount::gib(4);
const OPEN_FILES: u64 = 1024;
/// What wal-ingest may hold unless it is told otherwise.
const MUCH_DISK: ByteCount = ByteCount::gib(20);
/// Some segments and layers.
const LITTLE_DISK: ByteCount = ByteCount::mib(256);
/// 2025 began so many seconds after 1970; no clock that works is before, or a century after.
const EARLIEST: u64 = 1_735_689_600;
const CENTURY: u64 = 3_155_760_000;

impl Check {
    pub(super) fn ok(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            what: what.into(),
            found: found.into(),
            remedy: None,
        }
    }

    pub(super) fn warn(
        what: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            level: Level::Warn,
            remedy: Some(remedy.into()),
            ..Self::ok(what, found)
        }
    }

    pub(super) fn fail(
        what: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            level: Level::Fail,
            ..Self::warn(what, found, remedy)
        }
    }
}

/// One line, as a person reads it.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        write!(f, "{level:<4}  {:<34}  {}", self.what, self.found)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

pub(super) fn programs(pg_bin: &Path, version: Result<String, String>) -> Check {
    let what = "PostgreSQL's programs";
    let remedy = "install PostgreSQL 15 (`make deps` does), or name its directory by --pg-bin";
    match version {
        Ok(version) if version.starts_with(MAJOR) => {
            Check::ok(what, format!("{version} in {}", pg_bin.display()))
        }
        Ok(version) => Check::fail(what, format!("{version} in {}", pg_bin.display()), remedy),
        Err(error) => Check::fail(what, format!("{}: {error}", pg_bin.display()), remedy),
    }
}

/// The library, and each wall around its processes.
pub(super) fn redo(build: &Path, tried: Result<Walls, String>) -> Vec<Check> {
    let what = "redo";
    let walls = match tried {
        Ok(walls) => walls,
        Err(error) => {
            let remedy = "build it by `make redo`, or name its directory by --redo-build";
            return vec![Check::fail(what, error, remedy)];
        }
    };
    let mut checks = vec![Check::ok(
        what,
        format!(
            "a record was replayed by the library in {}",
            build.display()
        ),
    )];
    let missing = walls.missing();
    for wall in Wall::REQUIRED.into_iter().chain(Wall::FURTHER) {
        let what = format!("wall: {}", wall.name());
        checks.push(if walls.stands(wall) {
            Check::ok(what, "stands")
        } else if missing.contains(&wall) {
            Check::warn(what, "missing behind the filter", how_to_build(wall))
        } else {
            Check::ok(what, "not there, and made up for by the others")
        });
    }
    checks
}

const fn how_to_build(wall: Wall) -> &'static str {
    match wall {
        Wall::OwnUser => "start the redo-worker as root, so that it can use the user postgres",
        Wall::Files | Wall::Network => {
            "use a kernel with Landlock, or allow user namespaces (sysctl user.max_user_namespaces)"
        }
        Wall::Signals => "use a kernel with Landlock of version 6 (Linux 6.12)",
        Wall::Filter | Wall::Descriptors | Wall::Limits | Wall::NoNewPrivileges | Wall::Parent => {
            "without it no process serves"
        }
    }
}

pub(super) fn writable(data: &Path, written: io::Result<()>) -> Check {
    let what = "data directory";
    match written {
        Ok(()) => Check::ok(what, format!("{} can be written", data.display())),
        Err(error) => Check::fail(
            what,
            format!("{}: {error}", data.display()),
            "make it writable for you, or choose another by --data",
        ),
    }
}

pub(super) fn free_disk(data: &Path, free: Option<ByteCount>) -> Check {
    let what = "free disk";
    let Some(free) = free else {
        let remedy = "see whether the directory can be reached";
        return Check::warn(what, format!("unknown for {}", data.display()), remedy);
    };
    let found = format!("{free} at {}", data.display());
    if free < LITTLE_DISK {
        Check::fail(what, found, "make room, or ingest pauses")
    } else if free < MUCH_DISK {
        let remedy = format!(
            "with the object store away wal-ingest may hold {MUCH_DISK} unless its local-disk says less"
        );
        Check::warn(what, found, remedy)
    } else {
        Check::ok(what, found)
    }
}

/// `None`: it does not exist yet.
pub(super) fn store(store: &StoreLocation, probed: Option<Result<(), String>>) -> Check {
    let what = "object store";
    match (probed, store) {
        (None, _) => Check::ok(what, format!("{store} is not there yet; `pal up` makes it")),
        (Some(Ok(())), _) => Check::ok(what, format!("{store} creates an object once only")),
        (Some(Err(error)), StoreLocation::Directory(_)) => Check::fail(
            what,
            format!("{store}: {error}"),
            "put it on a file system that we may write, and that makes hard links",
        ),
        (Some(Err(error)), StoreLocation::Bucket(bucket)) => Check::fail(
            what,
            error,
            format!(
                "it is reached as the {}… variables of this command's environment say; `pal up` needs the same",
                bucket.provider().variables()
            ),
        ),
    }
}

/// A store that is no directory.
pub(super) fn no_disk() -> Check {
    Check::ok("the store's disk", "none of this machine's")
}

/// The devices of the data directory and of the store.
pub(super) fn same_disk(devices: Option<(u64, u64)>) -> Check {
    let what = "the store's disk";
    match devices {
        Some((data, store)) if data != store => Check::ok(what, "another than that of the data"),
        Some(_) => Check::warn(
            what,
            "the same as that of the data",
            "what is kept is lost with that disk; put the store elsewhere",
        ),
        None => Check::warn(
            what,
            "unknown",
            "see whether the directories can be reached",
        ),
    }
}

pub(super) fn port(service: &str, address: &str, bound: io::Result<()>) -> Check {
    let what = format!("port of {service}");
    match bound {
        Ok(()) => Check::ok(what, format!("{address} is free")),
        Err(error) => Check::fail(
            what,
            format!("{address}: {error}"),
            "end what uses it, or choose other ports by --port-base",
        ),
    }
}

pub(super) fn broker(endpoint: &str) -> Check {
    Check::ok("storage-broker", format!("answers at {endpoint}"))
}

/// Whether each service has an instance.
pub(super) fn members(view: &ClusterView) -> Vec<Check> {
    let roles = [
        Role::WalIngest,
        Role::PageServe,
        Role::RedoWorker,
        Role::Compactor,
    ];
    let judge = |role| {
        let what = role_name(role);
        let addresses = view.addresses(role);
        match (addresses.is_empty(), role) {
            (false, _) => Check::ok(what, format!("at {}", addresses.join(", "))),
            (true, Role::Compactor) => Check::warn(
                what,
                "none has registered, so reads get slower as history grows",
                "start one",
            ),
            (true, _) => Check::fail(
                what,
                "none has registered",
                "start one; if it runs, look at its messages",
            ),
        }
    };
    roles.into_iter().map(judge).collect()
}

/// Whether all services are of one version, that of this program.
pub(super) fn versions(view: &ClusterView, ours: &str) -> Check {
    let what = "versions";
    let other = |member: &&Member| member.version != ours;
    let told = |member: &Member| {
        let version = match member.version.as_str() {
            "" => "of a version that it does not say",
            version => version,
        };
        format!(
            "{} at {} is {version}",
            role_name(member.role),
            member.address
        )
    };
    let others: Vec<_> = view.members.iter().filter(other).map(told).collect();
    match others.is_empty() {
        true => Check::ok(what, format!("all are {ours}")),
        false => Check::warn(
            what,
            format!("pal is {ours}, but {}", others.join(", ")),
            "install the same version everywhere, and start what is older again",
        ),
    }
}

/// Settings with which nothing would start.
pub(super) fn settings(problems: &Problems) -> Check {
    let all: Vec<_> = problems.0.iter().map(Problem::in_full).collect();
    Check::fail(
        "settings",
        all.join("; "),
        "put them right, then ask again: programs, files and ports depend on them",
    )
}

/// How each attached cluster is.
pub(super) fn sources(view: &ClusterView) -> Vec<Check> {
    let judge = |timeline: &palimpsest_api::broker::TimelineView| {
        let status = &timeline.status;
        let what = format!("source of {}", full_name(timeline));
        let name = status.state.name();
        let found = match status.reason.is_empty() {
            true => name.to_owned(),
            false => format!("{name}: {}", status.reason),
        };
        match status.state {
            TimelineState::Stopped => {
                Check::fail(what, found, "the reason says what a person has to do")
            }
            TimelineState::Disconnected | TimelineState::Paused => {
                Check::warn(what, found, "it goes on by itself when the reason is gone")
            }
            _ if !status.warnings.is_empty() => Check::warn(
                what,
                format!("{found}; {}", status.warnings.join("; ")),
                "see `pal status`",
            ),
            _ => Check::ok(what, found),
        }
    };
    let attached = view.timelines.iter().filter(|view| view.is_main());
    attached.map(judge).collect()
}

pub(super) fn address_space(limit: Option<u64>) -> Check {
    let what = "limit of address space";
    match limit.map(ByteCount::new) {
        None => Check::ok(what, "none"),
        Some(limit) if limit >= ADDRESS_SPACE => Check::ok(what, limit.to_string()),
        Some(limit) => Check::warn(
            what,
            limit.to_string(),
            format!(
                "`pal up` needs {ADDRESS_SPACE}, a service alone half of it; raise `ulimit -v`"
            ),
        ),
    }
}

pub(super) fn open_files(limit: Option<u64>) -> Check {
    let what = "limit of open files";
    match limit {
        None => Check::ok(what, "none"),
        Some(limit) if limit >= OPEN_FILES => Check::ok(what, limit.to_string()),
        Some(limit) => Check::warn(
            what,
            limit.to_string(),
            format!("many connections need more; raise `ulimit -n` to {OPEN_FILES}"),
        ),
    }
}

pub(super) fn clock(now: SystemTime) -> Check {
    let what = "clock";
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.unwrap_or(Duration::ZERO).as_secs();
    match (EARLIEST..EARLIEST + CENTURY).contains(&seconds) {
        true => Check::ok(what, "plausible"),
        false => Check::warn(
            what,
            format!("{seconds} seconds after 1970"),
            "set it, or times in messages and certificates are wrong",
        ),
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_api::{
        TimelineRef,
        broker::{TimelineStatus, TimelineView},
        tenant_settings::TenantSettings,
    };
    use palimpsest_types::{NodeId, TenantId, TimelineId};

    use super::*;

    fn level(check: &Check) -> Level {
        assert_eq!(check.remedy.is_none(), check.level == Level::Ok, "{check}");
        check.level
    }

    #[test]
    fn only_the_right_major_version_will_do() {
        let said = |text: &str| level(&programs(Path::new("/bin"), Ok(text.to_owned())));
        assert_eq!(said("postgres (PostgreSQL) 15.20 (Debian)"), Level::Ok);
        assert_eq!(said("postgres (PostgreSQL) 16.1"), Level::Fail);
        let missing = programs(Path::new("/nowhere"), Err("not found".to_owned()));
        assert_eq!(level(&missing), Level::Fail);
        assert!(missing.to_string().starts_with("FAIL"), "{missing}");
        assert!(missing.to_string().contains("/nowhere: not found; install"));
    }

    #[test]
    fn redo_that_fails_says_why_and_names_no_walls() {
        let checks = redo(Path::new("/lib"), Err("it died".to_owned()));
        assert_eq!(checks.len(), 1);
        assert!(checks[0].to_string().contains("it died; build it"));
    }

    #[test]
    fn little_disk_is_told_before_there_is_none() {
        let free = |bytes| level(&free_disk(Path::new("/"), Some(bytes)));
        assert_eq!(free(ByteCount::mib(100)), Level::Fail);
        assert_eq!(free(ByteCount::gib(19)), Level::Warn);
        assert_eq!(free(ByteCount::gib(20)), Level::Ok);
        assert_eq!(level(&free_disk(Path::new("/"), None)), Level::Warn);
    }

    #[test]
    fn a_store_on_the_datas_disk_is_no_second_copy() {
        assert_eq!(level(&same_disk(Some((1, 1)))), Level::Warn);
        assert_eq!(level(&same_disk(Some((1, 2)))), Level::Ok);
    }

    #[test]
    fn a_store_that_is_not_there_yet_is_nothing_to_do_about() {
        let place = StoreLocation::from(Path::new("/store"));
        assert_eq!(level(&store(&place, None)), Level::Ok);
        assert_eq!(level(&store(&place, Some(Ok(())))), Level::Ok);
        let refused = store(&place, Some(Err("read-only".to_owned())));
        assert_eq!(level(&refused), Level::Fail);
    }

    #[test]
    fn what_is_wrong_with_a_bucket_is_said_with_its_variables() {
        let place: StoreLocation = "gs://bucket/prefix".parse().unwrap();
        let refused = store(&place, Some(Err("no such bucket".to_owned())));
        assert_eq!(level(&refused), Level::Fail);
        assert!(refused.remedy.unwrap().contains("GOOGLE_"));
        assert_eq!(level(&no_disk()), Level::Ok);
    }

    #[test]
    fn a_service_without_an_instance_fails() {
        let checks = members(&ClusterView::default());
        let levels: Vec<_> = checks.iter().map(level).collect();
        // Without a compactor everything works, and gets slower.
        assert_eq!(levels, [Level::Fail, Level::Fail, Level::Fail, Level::Warn]);
    }

    #[test]
    fn members_of_another_version_are_named() {
        let member = |version: &str| Member {
            node: NodeId::from_bytes([1; 16]),
            role: Role::PageServe,
            address: "127.0.0.1:7702".to_owned(),
            version: version.to_owned(),
            tenant_defaults: TenantSettings::default(),
        };
        let seen = |all: &[&str]| {
            let view = ClusterView {
                members: all.iter().copied().map(member).collect(),
                ..ClusterView::default()
            };
            versions(&view, "1.2.3")
        };
        assert_eq!(level(&seen(&["1.2.3", "1.2.3"])), Level::Ok);
        let mixed = seen(&["1.2.3", "1.3.0", ""]);
        assert_eq!(level(&mixed), Level::Warn);
        assert!(
            mixed
                .found
                .contains("page-serve at 127.0.0.1:7702 is 1.3.0"),
            "{mixed}"
        );
        assert!(mixed.found.contains("does not say"), "{mixed}");
    }

    #[test]
    fn a_source_is_as_well_as_its_timeline() {
        let seen = |state, warnings: &[&str]| {
            let timeline = TimelineView {
                timeline: TimelineRef {
                    tenant: TenantId::from_bytes([1; 16]),
                    timeline: TimelineId::from_bytes([2; 16]),
                },
                tenant_name: "a".to_owned(),
                timeline_name: "main".to_owned(),
                status: TimelineStatus {
                    state,
                    warnings: warnings.iter().map(|text| (*text).to_owned()).collect(),
                    ..TimelineStatus::default()
                },
                writer: None,
                source: String::new(),
                slot: String::new(),
                branch: None,
                source_cluster: None,
            };
            let view = ClusterView {
                timelines: vec![timeline],
                ..ClusterView::default()
            };
            level(&sources(&view)[0])
        };
        assert_eq!(seen(TimelineState::Streaming, &[]), Level::Ok);
        assert_eq!(seen(TimelineState::Streaming, &["slow"]), Level::Warn);
        assert_eq!(seen(TimelineState::Paused, &[]), Level::Warn);
        assert_eq!(seen(TimelineState::Stopped, &[]), Level::Fail);
    }

    #[test]
    fn limits_are_compared_with_what_is_needed() {
        assert_eq!(level(&address_space(None)), Level::Ok);
        assert_eq!(level(&address_space(Some(4 << 30))), Level::Ok);
        assert_eq!(level(&address_space(Some(1 << 30))), Level::Warn);
        assert_eq!(level(&open_files(Some(256))), Level::Warn);
    }

    #[test]
    fn a_clock_that_begins_at_1970_is_wrong() {
        assert_eq!(level(&clock(SystemTime::UNIX_EPOCH)), Level::Warn);
        let later = SystemTime::UNIX_EPOCH + Duration::from_secs(EARLIEST + 1);
        assert_eq!(level(&clock(later)), Level::Ok);
    }
}
