//! What all programs here share.

pub use libfuzzer_sys;
pub use palimpsest_fuzz_targets as targets;

/// All that a target may have allocated at one time. The largest input is 64 KiB and unpacks to at
/// most 255 times as much; whoever takes more has believed a length.
const MEMORY: usize = 64 << 20;

#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, MEMORY);

/// Makes a program of a target.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        $crate::libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::targets::$name(data));
    };
}
