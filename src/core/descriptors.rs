//! How many files this process may have open.
//!
//! Always holds: the soft limit is the hard one, or as it was where the system does not allow that. Owner:
//! `broker.rs`, `verify/pass.rs` and `backup.rs`, which share out what there is, and `castra bench`.

use super::limits::Limits;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What is assumed where the system does not say.
const USUAL: u64 = 1024;

/// Makes as many files openable as the system allows; how many those are.
pub fn raise_descriptors() -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((USUAL, USUAL));
    if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// Raises the soft limit of descriptors to the hard one; returns how many of them connections may have. Logs get a
/// quarter at most. Sessions that do not fit are said.
pub fn share(limits: &mut Limits) -> usize {
    let have = raise_descriptors();
    limits.open_logs = limits.open_logs.min(usize::try_from(have / 4).unwrap_or(usize::MAX)).max(1);
    let kept = limits.reserved_descriptors + limits.open_logs as u64;
    let wanted = (limits.sessions + limits.pending_handshakes) as u64;
    let places = have.saturating_sub(kept).clamp(16, wanted);
    if places < limits.sessions as u64 {
        tracing::warn!(
            descriptors = have,
            connections = places,
            sessions = limits.sessions,
            "descriptors: fewer connections fit than sessions may be; raise LimitNOFILE (ulimit -Hn) to {}, or lower sessions",
            kept + wanted
        );
    }
    usize::try_from(places).unwrap_or(16)
}
