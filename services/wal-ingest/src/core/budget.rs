//! What all timelines of a node may hold together, in memory and on the local disk.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use palimpsest_telemetry::{Sample, Unit};
use palimpsest_types::{ByteCount, TenantId};

use super::{metrics::as_f64, node::Limits};

/// The node's account.
#[derive(Debug)]
pub(super) struct Budget {
    memory: Account,
    disk: Account,
    /// Memory of tenants that have timelines here.
    tenants: Mutex<HashMap<TenantId, Weak<Account>>>,
}

/// One timeline's part of it. Given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    tenant: Arc<Account>,
    memory: AtomicU64,
    wal: AtomicU64,
    layers: AtomicU64,
}

/// How short memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pressure {
    /// It is not.
    None,
    /// What nobody needs should leave it.
    Some,
    /// Soon no more WAL could be read: what can be read elsewhere has to leave it, too.
    High,
}

/// There is no room for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} is used up: {used} of {limit}; going on when layers have reached the object store")]
pub struct NoRoom {
    what: &'static str,
    used: ByteCount,
    limit: ByteCount,
}

#[derive(Debug)]
struct Account {
    what: &'static str,
    used: AtomicU64,
    limit: AtomicU64,
}

impl Budget {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            memory: Account::new("the memory for changes", limits.memory),
            disk: Account::new("the local disk allowance", limits.local_disk),
            tenants: Mutex::default(),
        }
    }

    /// A part for a timeline of a tenant, of which nothing is used yet.
    pub(super) fn share(self: &Arc<Self>, tenant: TenantId) -> Share {
        Share {
            budget: Arc::clone(self),
            tenant: self.tenant(tenant),
            memory: AtomicU64::new(0),
            wal: AtomicU64::new(0),
            layers: AtomicU64::new(0),
        }
    }

    /// The account of a tenant, which is there as long as it has a timeline here.
    fn tenant(&self, tenant: TenantId) -> Arc<Account> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.retain(|_, account| account.strong_count() > 0);
        if let Some(known) = tenants.get(&tenant).and_then(Weak::upgrade) {
            return known;
        }
        let what = "the tenant's share of the memory for changes (memory-share)";
        let account = Arc::new(Account::new(what, self.memory.limit()));
        tenants.insert(tenant, Arc::downgrade(&account));
        account
    }

    /// What is used, and how much may be.
    pub(super) fn samples(&self) -> [Sample; 4] {
        let of = |account: &Account| {
            let (used, limit) = (account.used(), account.limit());
            (as_f64(used.get()), as_f64(limit.get()))
        };
        let (memory, memory_limit) = of(&self.memory);
        let (disk, disk_limit) = of(&self.disk);
        let part = || [("part", "changes".to_owned())];
        let help = "Memory in use";
        let mut memory_used = Sample::gauge("memory_used", Some(Unit::Bytes), help);
        memory_used.push(part(), memory);
        let help = "Memory that may be used";
        let mut memory_budget = Sample::gauge("memory_budget", Some(Unit::Bytes), help);
        memory_budget.push(part(), memory_limit);
        let help = "Local disk in use for WAL and layers that the object store does not have";
        let disk_used = Sample::gauge("local_disk_used", Some(Unit::Bytes), help);
        let help = "Local disk that may be used for them; beyond it timelines pause";
        let disk_budget = Sample::gauge("local_disk_budget", Some(Unit::Bytes), help);
        [
            memory_used,
            memory_budget,
            disk_used.of(disk),
            disk_budget.of(disk_limit),
        ]
    }
}

impl Share {
    /// This timeline's changes in memory take so much now.
    pub(super) fn set_memory(&self, size: ByteCount) {
        let before = self.memory.swap(size.get(), Ordering::Relaxed);
        self.budget.memory.replace(before, size.get());
        self.tenant.replace(before, size.get());
    }

    /// The tenant's timelines may have so much memory together from now on.
    pub(super) fn set_tenant_limit(&self, limit: ByteCount) {
        self.tenant.limit.store(limit.get(), Ordering::Relaxed);
    }

    /// How short memory is, the node's or the tenant's.
    pub(super) fn pressure(&self) -> Pressure {
        self.budget.memory.pressure().max(self.tenant.pressure())
    }

    /// This timeline's WAL files take so much now.
    pub(super) fn set_wal(&self, size: ByteCount) {
        let before = self.wal.swap(size.get(), Ordering::Relaxed);
        self.budget.disk.replace(before, size.get());
    }

    /// This timeline's local layer files take so much now.
    pub(super) fn set_layers(&self, size: ByteCount) {
        let before = self.layers.swap(size.get(), Ordering::Relaxed);
        self.budget.disk.replace(before, size.get());
    }

    /// Whether more may be held.
    pub(super) fn room(&self) -> Result<(), NoRoom> {
        self.room_in_memory()?;
        self.budget.disk.room()
    }

    /// Whether WAL that is held already may be decoded. That adds no WAL, but the layers it becomes:
    /// with the allowance for the disk used up, only one after the other, which is how it becomes
    /// free again.
    pub(super) fn room_to_replay(&self) -> Result<(), NoRoom> {
        self.room_in_memory()?;
        match self.layers.load(Ordering::Relaxed) {
            0 => Ok(()),
            _ => self.budget.disk.room(),
        }
    }
}

impl Share {
    fn room_in_memory(&self) -> Result<(), NoRoom> {
        self.budget.memory.room()?;
        self.tenant.room()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set_memory(ByteCount::new(0));
        self.set_wal(ByteCount::new(0));
        self.set_layers(ByteCount::new(0));
    }
}

impl Account {
    const fn new(what: &'static str, limit: ByteCount) -> Self {
        Self {
            what,
            used: AtomicU64::new(0),
            limit: AtomicU64::new(limit.get()),
        }
    }

    fn limit(&self) -> ByteCount {
        ByteCount::new(self.limit.load(Ordering::Relaxed))
    }

    fn pressure(&self) -> Pressure {
        pressure(self.used().get(), self.limit().get())
    }

    fn used(&self) -> ByteCount {
        ByteCount::new(self.used.load(Ordering::Relaxed))
    }

    fn replace(&self, before: u64, size: u64) {
        // Wraps where it shrinks; the sum of all parts is right.
        self.used
            .fetch_add(size.wrapping_sub(before), Ordering::Relaxed);
    }

    fn room(&self) -> Result<(), NoRoom> {
        let (used, limit) = (self.used(), self.limit());
        if used < limit {
            return Ok(());
        }
        Err(NoRoom {
            what: self.what,
            used,
            limit,
        })
    }
}

fn pressure(used: u64, limit: u64) -> Pressure {
    if used > limit / 4 * 3 {
        Pressure::High
    } else if used > limit / 2 {
        Pressure::Some
    } else {
        Pressure::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: TenantId = TenantId::from_bytes([1; 16]);
    const OTHER: TenantId = TenantId::from_bytes([2; 16]);

    #[test]
    fn memory_is_short_before_it_is_used_up() {
        let known = [0, 50, 51, 75, 76, 100].map(|used| pressure(used, 100));
        use Pressure::{High, None, Some};
        assert_eq!(known, [None, None, Some, Some, High, High]);
    }

    #[test]
    fn shares_add_up_and_are_given_back() {
        let limits = Limits {
            memory: ByteCount::new(100),
            local_disk: ByteCount::new(50),
            ..Limits::default()
        };
        let budget = Arc::new(Budget::new(&limits));
        let (one, other) = (budget.share(TENANT), budget.share(OTHER));
        one.set_memory(ByteCount::new(60));
        other.set_memory(ByteCount::new(30));
        assert_eq!(one.room(), Ok(()));
        other.set_memory(ByteCount::new(40));
        let error = one.room().unwrap_err();
        assert!(error.to_string().contains("100 B of 100 B"), "{error}");
        drop(other);
        assert_eq!(one.room(), Ok(()));
        one.set_wal(ByteCount::new(30));
        one.set_layers(ByteCount::new(20));
        assert!(one.room().is_err());
        one.set_wal(ByteCount::new(0));
        assert_eq!(one.room(), Ok(()));
        assert_eq!(one.pressure(), Pressure::Some);
    }

    #[test]
    fn p7_a_tenant_has_no_more_than_its_share_and_others_the_rest() {
        let limits = Limits {
            memory: ByteCount::new(100),
            ..Limits::default()
        };
        let budget = Arc::new(Budget::new(&limits));
        let (main, branch) = (budget.share(TENANT), budget.share(TENANT));
        let other = budget.share(OTHER);
        main.set_tenant_limit(ByteCount::new(40));
        main.set_memory(ByteCount::new(25));
        assert_eq!((branch.room(), branch.pressure()), (Ok(()), Pressure::Some));
        branch.set_memory(ByteCount::new(15));
        for share in [&main, &branch] {
            let error = share.room().unwrap_err().to_string();
            assert!(
                error.contains("memory-share") && error.contains("40 B of 40 B"),
                "{error}"
            );
            assert_eq!(share.pressure(), Pressure::High);
        }
        assert_eq!((other.room(), other.pressure()), (Ok(()), Pressure::None));
        drop(branch);
        assert_eq!(main.room(), Ok(()));
        drop(main);
        // One that comes back has what there is until it is told.
        let again = budget.share(TENANT);
        again.set_memory(ByteCount::new(50));
        assert_eq!(again.room(), Ok(()));
    }

    #[test]
    fn wal_that_has_used_the_disk_up_is_decoded_a_layer_at_a_time() {
        let limits = Limits {
            memory: ByteCount::new(100),
            local_disk: ByteCount::new(50),
            ..Limits::default()
        };
        let share = Arc::new(Budget::new(&limits)).share(TENANT);
        share.set_wal(ByteCount::new(60));
        assert!(share.room().is_err());
        assert_eq!(share.room_to_replay(), Ok(()));
        share.set_layers(ByteCount::new(1));
        assert!(share.room_to_replay().is_err());
        share.set_wal(ByteCount::new(40));
        assert_eq!(share.room_to_replay(), Ok(()));
        share.set_memory(ByteCount::new(100));
        assert!(share.room_to_replay().is_err());
    }
}
