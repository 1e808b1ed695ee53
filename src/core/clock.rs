//! The only place that asks what time it is, beside tokio's timers.
//!
//! Always holds: ages are differences of [`boot_ms`], which no clock step moves and which goes on while
//! the machine sleeps (invariant 9); [`wall_ms`] is data. Owner: the edges; pure modules get time as an argument.

use nix::time::{ClockId, clock_gettime};

fn ms(clock: ClockId) -> i64 {
    clock_gettime(clock).map_or(0, |t| t.tv_sec() * 1000 + t.tv_nsec() / 1_000_000)
}

/// Milliseconds since the machine started, CLOCK_BOOTTIME.
pub fn boot_ms() -> i64 {
    ms(ClockId::CLOCK_BOOTTIME)
}

/// Milliseconds since 1970, CLOCK_REALTIME.
pub fn wall_ms() -> u64 {
    u64::try_from(ms(ClockId::CLOCK_REALTIME)).unwrap_or(0)
}

/// Names this run of the machine: [`boot_ms`] of two different ones cannot be compared.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
