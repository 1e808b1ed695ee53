//! No room for a file: a full disk, a quota, or what the system lets this process write (RLIMIT_FSIZE).
//!
//! Always holds: after [`outlive_limit`] a write beyond that bound is an error (EFBIG) and not the end of the process
//! (SIGXFSZ). Owner: whoever writes.

use nix::libc::SIGXFSZ;
use nix::sys::resource::{Resource, getrlimit};
use std::io::{self, ErrorKind};
use tokio::signal::unix::{SignalKind, signal};

/// Whether a write found no room; it may find some later.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) || is_limit(error)
}

/// Whether that is because of the bound of this process, or of the file system, for one file.
pub fn is_limit(error: &io::Error) -> bool {
    error.kind() == ErrorKind::FileTooLarge
}

/// What makes room.
pub fn advice(error: &io::Error) -> &'static str {
    if is_limit(error) { RAISE } else { "free some space" }
}

/// How the bound for one file is raised.
pub const RAISE: &str = "raise `ulimit -f`, or LimitFSIZE= of the unit";

/// The largest file that this process may write, in bytes.
pub fn largest_file() -> u64 {
    getrlimit(Resource::RLIMIT_FSIZE).map_or(u64::MAX, |(soft, _)| soft)
}

/// From here on the bound is an error of whoever writes. Commands that are begun have the signal's default action.
pub fn outlive_limit() {
    // Whoever hears of it is not needed, only that it does not end the process. Where the system has no descriptors for
    // this there are none for files either.
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
    let _within = runtime.enter();
    let _ = signal(SignalKind::from_raw(SIGXFSZ));
}
