//! Threads that give way to others.
//!
//! A low priority alone is not enough for that. Since Linux 6.6 a thread that wakes up may have to wait until
//! the one that runs has used up its time slice, however nice that is, which is noticed at a tick: up to 4 ms
//! later, several times what a read takes. Unless the one that runs has asked for a longer slice than the one that wakes
//! up; since 6.12 it can. So who works in the background asks for the longest there is.
//!
//! No library has this system call. It is the only thing in this crate, and the only unsafe code of ours.

use std::io;

#[cfg(target_os = "linux")]
use rustix::process::getpriority_process;

/// Added to the nice value: beside a thread of usual priority such a one gets about a tenth of a CPU, and all of
/// it when nobody else wants it.
pub const NICE: i32 = 10;

/// The longest slice that Linux gives, in nanoseconds. Older kernels don't look at it.
#[cfg(target_os = "linux")]
const SLICE: u64 = 100_000_000;

/// The calling thread gives way from now on, and so do those that it starts. That can't be taken back. Where
/// there is no such call nothing happens.
///
/// # Errors
/// If the system does not let it.
#[cfg(target_os = "linux")]
pub fn give_way() -> io::Result<()> {
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

    #[test]
    fn a_thread_gives_way_with_all_that_it_starts_and_nobody_else() {
        let before = nice();
        let (own, started) = thread::spawn(|| {
            give_way().unwrap();
            (nice(), thread::spawn(nice).join().unwrap())
        })
        .join()
        .unwrap();
        let expected = NICE.max(before);
        assert_eq!((own, started), (expected, expected));
        assert_eq!(nice(), before);
    }
}
