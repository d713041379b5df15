//! Records that killed redo processes, and are left alone for a while.

use std::{collections::HashMap, ops::Range, time::Duration};

use palimpsest_redo::ApplyRequest;
use palimpsest_types::{BlockNumber, Lsn, RelTag, TenantId};
use tokio::time::Instant;

/// Chains of records that nobody is asked to replay for now. Pure: the time is passed in.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    killers: HashMap<Page, Killer>,
}

/// The records of one page that a request has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suspect {
    page: Page,
    records: Range<Lsn>,
}

type Page = (TenantId, RelTag, BlockNumber);

#[derive(Debug)]
struct Killer {
    records: Range<Lsn>,
    until: Instant,
}

/// How long such records are left alone: a process that ran out of memory by chance may do better
/// then, and one that dies each time costs little.
const TERM: Duration = Duration::from_secs(60);
/// Pages whose killers are remembered, at most.
const PAGES: usize = 1024;

impl Suspect {
    /// What a request asks for; `None` if it has no records.
    pub(super) fn of(tenant: TenantId, request: &ApplyRequest) -> Option<Self> {
        let (first, last) = (request.records.first()?, request.records.last()?);
        Some(Self {
            page: (tenant, request.rel, request.block),
            records: first.start_lsn..last.end_lsn,
        })
    }
}

impl Quarantine {
    /// For how long a request is refused yet: it has all the records of one that killed.
    pub(super) fn holds(&self, suspect: &Suspect, now: Instant) -> Option<Duration> {
        let killer = self.killers.get(&suspect.page)?;
        let contained = suspect.records.start <= killer.records.start
            && killer.records.end <= suspect.records.end;
        let left = killer.until.checked_duration_since(now)?;
        (contained && !left.is_zero()).then_some(left)
    }

    /// Remembers records that killed as often as they may.
    pub(super) fn add(&mut self, suspect: Suspect, now: Instant) {
        self.killers.retain(|_, killer| killer.until > now);
        if self.killers.len() >= PAGES {
            let oldest = self.killers.iter().min_by_key(|(_, killer)| killer.until);
            if let Some(page) = oldest.map(|(page, _)| *page) {
                self.killers.remove(&page);
            }
        }
        let killer = Killer {
            records: suspect.records,
            until: now + TERM,
        };
        self.killers.insert(suspect.page, killer);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use palimpsest_wal::RawRecord;

    use super::*;

    fn suspect(tenant: u8, block: u32, records: Range<u64>) -> Suspect {
        let record = |start: u64| RawRecord {
            start_lsn: Lsn::new(start),
            end_lsn: Lsn::new(start + 1),
            bytes: Bytes::new(),
        };
        let request = ApplyRequest {
            rel: "1663/5/16384".parse().unwrap(),
            block: BlockNumber::new(block),
            base: None,
            records: records.map(record).collect(),
        };
        Suspect::of(TenantId::from_bytes([tenant; 16]), &request).unwrap()
    }

    #[test]
    fn whatever_contains_the_killer_is_refused_and_nothing_else() {
        let (mut quarantine, now) = (Quarantine::default(), Instant::now());
        quarantine.add(suspect(1, 0, 20..30), now);
        let held = |suspect: Suspect| quarantine.holds(&suspect, now).is_some();
        assert!(held(suspect(1, 0, 20..30)));
        assert!(held(suspect(1, 0, 10..40)));
        assert!(!held(suspect(1, 0, 10..29)), "the last record may be it");
        assert!(!held(suspect(1, 0, 21..40)), "the first record may be it");
        assert!(!held(suspect(1, 1, 20..30)), "another page");
        assert!(!held(suspect(2, 0, 20..30)), "another tenant");
    }

    #[test]
    fn the_term_ends() {
        let (mut quarantine, now) = (Quarantine::default(), Instant::now());
        let killer = suspect(1, 0, 20..30);
        quarantine.add(killer.clone(), now);
        let left = quarantine.holds(&killer, now + TERM / 2);
        assert_eq!(left, Some(TERM / 2));
        assert_eq!(quarantine.holds(&killer, now + TERM), None);
    }

    #[test]
    fn only_so_many_are_remembered_and_the_newest_among_them() {
        let (mut quarantine, mut now) = (Quarantine::default(), Instant::now());
        for block in 0..2000 {
            now += Duration::from_millis(1);
            quarantine.add(suspect(1, block, 20..30), now);
        }
        assert_eq!(quarantine.killers.len(), PAGES);
        assert!(quarantine.holds(&suspect(1, 1999, 20..30), now).is_some());
        assert!(quarantine.holds(&suspect(1, 0, 20..30), now).is_none());
    }
}
