//! The allocator of every process that serves.

use tikv_jemallocator::Jemalloc;

/// Gives back to the system what is freed, whichever thread frees it, within a second (`.cargo/config.toml`). Threads of
/// its own see to that (`background_threads`): otherwise what was freed by a thread that sleeps now is kept.
///
/// Built for pages of memory of the machine that it is built on: on aarch64, where kernels differ in that, binaries for
/// other machines are built with `JEMALLOC_SYS_WITH_LG_PAGE=16`.
///
/// The allocator of the C library keeps a heap for each thread, and what is freed there is of use to that
/// thread alone. Here work goes from thread to thread, so most of what a process held was free: a compactor
/// that made images had twice the memory that it may have.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;
