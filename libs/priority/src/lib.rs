//! Threads that give way to others.
//!
//! A low priority alone is not enough for that. Since Linux 6.6 a thread that wakes up may have to wait until
//! the one that runs has used up its time slice, however nice that is, which is noticed at a tick: up to 4 ms
//! later, several times what a read takes. Unless the one that runs has asked for a longer slice than the one that wakes
//! up; since 6.12 it can. So who works in the background asks for the longest there is.
//!
//! Nor are both enough. Who wakes up another is about to sleep, but its CPU is not idle yet; so the other is put where it ran
//! last, be it behind a thread in the background that the kernel owes something, and there it stays though a CPU is idle a
//! moment later. So all background work of a machine keeps to the same few CPUs, and the others are always free of it.
//!
//! No library has the system call for slices. It is the only thing in this crate that is unsafe, and the only unsafe code of ours.

use std::io;
#[cfg(target_os = "linux")]
use std::sync::OnceLock;

#[cfg(target_os = "linux")]
use rustix::{
    process::getpriority_process,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// Added to the nice value: beside a thread of usual priority such a one gets about a tenth of a CPU, and all of
/// it when nobody else wants it.
pub const NICE: i32 = 10;

/// The longest slice that Linux gives, in nanoseconds. Older kernels don't look at it.
#[cfg(target_os = "linux")]
const SLICE: u64 = 100_000_000;
/// One of so many CPUs is for the background, but at least one.
#[cfg(target_os = "linux")]
const ONE_OF: u32 = 4;

/// The calling thread gives way from now on, and so do those threads and processes that it starts. That can't be taken back.
/// Where there is no such call nothing happens.
///
/// It keeps to the last quarter of the CPUs that this process may use, of seven or fewer to the last: processes that may use the
/// same ones agree without talking.
///
/// # Errors
/// If the system does not let it.
#[cfg(target_os = "linux")]
pub fn give_way() -> io::Result<()> {
    let lowered = lower();
    // Either is of use without the other.
    keep_to_few_cpus().and(lowered)
}

#[cfg(target_os = "linux")]
fn keep_to_few_cpus() -> io::Result<()> {
    // Found out once, or a thread that was started by such a one would take a quarter of its CPUs.
    static CPUS: OnceLock<CpuSet> = OnceLock::new();
    let cpus = match CPUS.get() {
        Some(cpus) => cpus,
        None => {
            let allowed = sched_getaffinity(None)?;
            CPUS.get_or_init(|| for_background(&allowed))
        }
    };
    Ok(sched_setaffinity(None, cpus)?)
}

/// Those of the allowed CPUs that background work keeps to.
#[cfg(target_os = "linux")]
fn for_background(allowed: &CpuSet) -> CpuSet {
    let most = (allowed.count() / ONE_OF).max(1);
    let mut cpus = CpuSet::new();
    let last = (0..CpuSet::MAX_CPU)
        .rev()
        .filter(|cpu| allowed.is_set(*cpu));
    for cpu in last.take(most as usize) {
        cpus.set(cpu);
    }
    cpus
}

#[cfg(target_os = "linux")]
fn lower() -> io::Result<()> {
    let attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).unwrap_or_default(),
        sched_policy: u32::try_from(libc::SCHED_OTHER).unwrap_or_default(),
        sched_flags: 0,
        // Who is nicer already stays so, and may not become less nice.
        sched_nice: getpriority_process(None).map_or(NICE, |nice| nice.max(NICE)),
        sched_priority: 0,
        sched_runtime: SLICE,
        sched_deadline: 0,
        sched_period: 0,
    };
    let own: libc::pid_t = 0;
    let flags: libc::c_uint = 0;
    #[expect(unsafe_code, reason = "no library has this call")]
    // SAFETY: the kernel reads as many bytes at the pointer as `size` says, which lie there, and writes none.
    let outcome =
        unsafe { libc::syscall(libc::SYS_sched_setattr, own, &raw const attributes, flags) };
    match outcome {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The same where there is no such call.
///
/// # Errors
/// Never.
#[cfg(not(target_os = "linux"))]
pub fn give_way() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::{fs, thread};

    use super::*;

    /// The nice value of the calling thread (`proc_pid_stat`).
    fn nice() -> i32 {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').nth(16).unwrap().parse().unwrap()
    }

    fn cpus() -> CpuSet {
        sched_getaffinity(None).unwrap()
    }

    fn set(cpus: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        for cpu in cpus {
            set.set(*cpu);
        }
        set
    }

    #[test]
    fn the_last_quarter_of_the_cpus_is_for_the_background() {
        let of = |allowed: &[usize]| for_background(&set(allowed));
        assert_eq!(of(&[0]), set(&[0]));
        assert_eq!(of(&[0, 1]), set(&[1]));
        assert_eq!(of(&[2, 5, 6]), set(&[6]));
        let eight: Vec<_> = (4..12).collect();
        assert_eq!(of(&eight[1..]), set(&[11]));
        assert_eq!(of(&eight), set(&[10, 11]));
    }

    #[test]
    fn a_thread_gives_way_with_all_that_it_starts_and_nobody_else() {
        let before = nice();
        let allowed = cpus();
        let (own, started) = thread::spawn(|| {
            give_way().unwrap();
            let started = thread::spawn(|| {
                give_way().unwrap();
                (nice(), cpus())
            });
            ((nice(), cpus()), started.join().unwrap())
        })
        .join()
        .unwrap();
        let expected = (NICE.max(before), for_background(&allowed));
        assert_eq!((own, started), (expected, expected));
        assert_eq!((nice(), cpus()), (before, allowed));
    }
}
