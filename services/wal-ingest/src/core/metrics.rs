//! What wal-ingest counts, and what it tells about its timelines when it is asked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use palimpsest_api::{TimelineRef, broker::TimelineStatus};
use palimpsest_telemetry::{Counter, Registry, Sample, Unit};
use palimpsest_types::Lsn;
use tokio::time::{Duration, Instant};

/// What is counted as it happens, by all timelines together. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct IngestMetrics {
    pub(super) wal: Counter,
    pub(super) records: Counter,
    pub(super) layers_written: Counter,
    pub(super) layers_uploaded: Counter,
    pub(super) layer_failures: Counter,
    pub(super) pauses: Counter,
    /// Feeds that were ended because their subscriber took nothing.
    pub cut_off: Counter,
    sources: Arc<Mutex<HashMap<TimelineRef, Source>>>,
}

/// What is known of a timeline's source beside its status.
#[derive(Debug)]
struct Source {
    /// How far its WAL goes, as it last said.
    end: Lsn,
    /// When everything that it had was here.
    caught_up: Instant,
}

impl IngestMetrics {
    /// Makes them part of what the service tells.
    pub fn register(&self, registry: &mut Registry) {
        let mut counter = |name, help, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        counter("ingest_records", "WAL records decoded", &self.records);
        counter(
            "ingest_layers_written",
            "Layers written to the local disk",
            &self.layers_written,
        );
        counter(
            "ingest_layers_uploaded",
            "Layers that reached the object store and the manifest",
            &self.layers_uploaded,
        );
        counter(
            "ingest_layer_failures",
            "Attempts to write or upload layers that failed and are repeated",
            &self.layer_failures,
        );
        counter(
            "ingest_pauses",
            "Times that a timeline paused because there was no room",
            &self.pauses,
        );
        counter(
            "feed_cut_off",
            "Feeds ended because their subscriber took nothing",
            &self.cut_off,
        );
        let help = "WAL received, fsynced and decoded";
        registry.register_with_unit("ingest_wal", help, Unit::Bytes, self.wal.clone());
    }

    /// A source has WAL up to `end`; we have it up to `here`.
    pub(super) fn note_source(&self, timeline: TimelineRef, end: Lsn, here: Lsn) {
        let now = Instant::now();
        let mut sources = self.lock();
        let source = sources.entry(timeline).or_insert_with(|| Source::new(now));
        source.end = source.end.max(end);
        if here >= source.end {
            source.caught_up = now;
        }
    }

    /// What is known of these timelines; the others are forgotten.
    pub(super) fn samples(&self, statuses: &[(TimelineRef, TimelineStatus)]) -> Vec<Sample> {
        let mut sources = self.lock();
        sources.retain(|timeline, _| statuses.iter().any(|(known, _)| known == timeline));
        let mut samples = positions(statuses);
        let help = "WAL that the source has and that is not readable here yet";
        let mut behind = Sample::gauge("ingest_lag", Some(Unit::Bytes), help);
        let help = "Time since everything that the source had was readable here";
        let mut late = Sample::gauge("ingest_lag", Some(Unit::Seconds), help);
        for (timeline, status) in statuses {
            let Some(source) = sources.get(timeline) else {
                continue;
            };
            let label = || [("timeline", timeline.to_string())];
            let lag = source.end.saturating_sub(status.flushed);
            behind.push(label(), as_f64(lag));
            let since = match lag {
                0 => Duration::ZERO,
                _ => source.caught_up.elapsed(),
            };
            late.push(label(), since.as_secs_f64());
        }
        samples.extend([behind, late]);
        samples.extend(sizes(statuses));
        samples
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TimelineRef, Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    fn new(now: Instant) -> Self {
        Self {
            end: Lsn::ZERO,
            caught_up: now,
        }
    }
}

/// How far each timeline is, as its status says.
fn positions(statuses: &[(TimelineRef, TimelineStatus)]) -> Vec<Sample> {
    let help = "How far a timeline is, as the number of the LSN";
    let mut position = Sample::gauge("timeline_position_lsn", None, help);
    let help = "WAL that our slot holds back on the source's disk";
    let mut retained = Sample::gauge("slot_retained", Some(Unit::Bytes), help);
    let help = "1 for the state that a timeline is in";
    let mut state = Sample::gauge("timeline_state", None, help);
    for (timeline, status) in statuses {
        for (name, lsn) in [
            ("received", status.received),
            ("flushed", status.flushed),
            ("last-record", status.last_record),
            ("disk-consistent", status.disk_consistent),
            ("remote-consistent", status.remote_consistent),
        ] {
            let labels = [
                ("timeline", timeline.to_string()),
                ("position", name.to_owned()),
            ];
            position.push(labels, as_f64(lsn.get()));
        }
        let label = [("timeline", timeline.to_string())];
        retained.push(label, as_f64(status.slot_retained.get()));
        let labels = [
            ("timeline", timeline.to_string()),
            ("state", status.state.name().to_owned()),
        ];
        state.push(labels, 1.0);
    }
    vec![position, retained, state]
}

/// How large each timeline and its largest databases are, as its status says.
fn sizes(statuses: &[(TimelineRef, TimelineStatus)]) -> [Sample; 2] {
    let help = "Sizes of all relations of a timeline, as they are at the newest LSN";
    let mut total = Sample::gauge("timeline_logical_size", Some(Unit::Bytes), help);
    let help =
        "Sizes of all relations of a database, of the largest 100, as they are at the newest LSN";
    let mut database = Sample::gauge("database_logical_size", Some(Unit::Bytes), help);
    for (timeline, status) in statuses {
        let Some(size) = &status.logical_size else {
            continue;
        };
        let label = [("timeline", timeline.to_string())];
        total.push(label, as_f64(size.total.get()));
        for listed in &size.databases {
            let labels = [
                ("timeline", timeline.to_string()),
                ("database", listed.database.to_string()),
            ];
            database.push(labels, as_f64(listed.size.get()));
        }
    }
    [total, database]
}

/// Exact up to 2^53, which is enough for sizes and for 9 PB of WAL.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub(super) fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use palimpsest_api::broker::LogicalSize;
    use palimpsest_types::{ByteCount, TenantId, TimelineId};

    use super::*;

    fn timeline() -> TimelineRef {
        TimelineRef {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
        }
    }

    fn told(metrics: &IngestMetrics, flushed: u64) -> String {
        let status = TimelineStatus {
            flushed: Lsn::new(flushed),
            ..TimelineStatus::default()
        };
        told_of(metrics, status)
    }

    fn told_of(metrics: &IngestMetrics, status: TimelineStatus) -> String {
        let mut registry = palimpsest_telemetry::registry("wal-ingest");
        let metrics = metrics.clone();
        let sampled = palimpsest_telemetry::Sampled::new(move || {
            metrics.samples(&[(timeline(), status.clone())])
        });
        registry.register_collector(sampled);
        palimpsest_telemetry::render(&registry)
    }

    fn value(text: &str, name: &str) -> f64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn lag_is_counted_in_bytes_and_from_when_there_was_none() {
        let metrics = IngestMetrics::default();
        metrics.note_source(timeline(), Lsn::new(100), Lsn::new(100));
        tokio::time::advance(Duration::from_secs(5)).await;
        let text = told(&metrics, 100);
        assert_eq!(value(&text, "palimpsest_ingest_lag_bytes"), 0.0);
        assert_eq!(value(&text, "palimpsest_ingest_lag_seconds"), 0.0);
        metrics.note_source(timeline(), Lsn::new(130), Lsn::new(100));
        let text = told(&metrics, 100);
        assert_eq!(value(&text, "palimpsest_ingest_lag_bytes"), 30.0);
        assert_eq!(value(&text, "palimpsest_ingest_lag_seconds"), 5.0);
    }

    #[test]
    fn sizes_are_those_of_the_status() {
        let sizes = [(1, 5 * 8192), (5, 4 * 8192)].map(|(oid, size)| (oid, ByteCount::new(size)));
        let status = TimelineStatus {
            logical_size: Some(LogicalSize::of(Lsn::new(8), sizes)),
            ..TimelineStatus::default()
        };
        let text = told_of(&IngestMetrics::default(), status);
        assert_eq!(
            value(&text, "palimpsest_timeline_logical_size_bytes"),
            9.0 * 8192.0
        );
        let five = text.lines().find(|line| line.contains("database=\"5\""));
        assert!(five.unwrap().ends_with(" 32768.0"), "{text}");
    }
}
