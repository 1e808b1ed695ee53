//! How many files this process may have open.
//!
//! Always holds: the soft limit is the hard one, or as it was where the system does not allow that. Owner:
//! `broker.rs`, `verify/pass.rs` and `backup.rs`, which share out what there is, and `castra bench`.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What is assumed where the system does not say.
const USUAL: u64 = 1024;

/// Makes as many files openable as the system allows; how many those are.
pub fn raise_descriptors() -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((USUAL, USUAL));
    if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}
