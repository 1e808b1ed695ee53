//! How long to wait before connecting again: exponential, with full jitter.
//!
//! Always holds: a thousand clients that lose a broker in the same moment come back spread over time, each of
//! them soon; the chance is an argument. Pure. Owner: whoever reconnects.

use std::time::Duration;

/// The first wait is this at the most …
pub const FIRST: Duration = Duration::from_millis(50);
/// … the next ones twice as long each time, up to this.
pub const LONGEST: Duration = Duration::from_secs(5);

/// The wait before attempt `attempt` (the first is 0): any time up to its bound, picked by `chance`, of which all
/// values are equally likely.
pub fn wait(attempt: u32, chance: u64) -> Duration {
    wait_within(FIRST, LONGEST, attempt, chance)
}

/// The same with bounds of one's own.
pub fn wait_within(first: Duration, longest: Duration, attempt: u32, chance: u64) -> Duration {
    let bound = first.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(longest);
    let nanos = bound.as_nanos() * u128::from(chance) / u128::from(u64::MAX);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bound_doubles() {
        let bounds: Vec<u128> = (0..9).map(|attempt| wait(attempt, u64::MAX).as_millis()).collect();
        assert_eq!(bounds, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(wait(u32::MAX, u64::MAX), LONGEST);
    }

    proptest! {
        #[test]
        fn chance_picks_all_of_it(attempt in any::<u32>(), chance in any::<u64>()) {
            prop_assert_eq!(wait(attempt, 0), Duration::ZERO);
            let (low, high) = (wait(attempt, chance), wait(attempt, u64::MAX - chance));
            let bound = wait(attempt, u64::MAX);
            prop_assert!(low <= bound && high <= bound);
            prop_assert!((low + high).abs_diff(bound) < Duration::from_micros(1), "evenly");
        }
    }
}
