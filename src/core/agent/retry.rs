//! How long the agent waits before it looks for a broker again.
//!
//! Always holds: a thousand agents that lose a broker in the same moment come back spread over time from their first
//! attempt on; what an operator has to mend is asked for slowly; no wait is longer than a minute. Pure: the chance is
//! an argument. Owner: the link.

use crate::core::backoff;
use std::time::Duration;

/// The first wait is this at the most, the next ones twice as long each …
const FIRST: Duration = Duration::from_millis(500);
/// … up to this.
const LONGEST: Duration = Duration::from_secs(5);
/// The same after a refusal for good …
const FIRST_REFUSED: Duration = Duration::from_secs(5);
/// … up to this; and nobody obeys a broker that asks for a longer wait.
const LONGEST_REFUSED: Duration = Duration::from_secs(60);
/// A session that lasted so long was a good one: the next wait is a short one again.
const GOOD: Duration = Duration::from_secs(5);

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// No session, or none any more; the broker asks to stay away for so long.
    Nothing(Duration),
    /// An answer that stays the same until somebody mends something.
    Refusal,
}

/// The attempts so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retry {
    attempt: u32,
    refused: u32,
}

impl Retry {
    /// There was a session, for so long; `is_useful`: something was done in it.
    pub fn lasted(&mut self, time: Duration, is_useful: bool) {
        self.refused = 0;
        if is_useful || time >= GOOD {
            self.attempt = 0;
        }
    }

    /// How long to wait now; of `chance` all values are equally likely.
    pub fn wait(&mut self, came: Came, chance: u64) -> Duration {
        match came {
            Came::Nothing(retry_after) => {
                let wait = backoff::wait_within(FIRST, LONGEST, self.attempt, chance);
                (self.attempt, self.refused) = (self.attempt.saturating_add(1), 0);
                retry_after.min(LONGEST_REFUSED) + wait
            }
            Came::Refusal => {
                let wait = backoff::wait_within(FIRST_REFUSED / 2, LONGEST_REFUSED / 2, self.refused, chance);
                let least =
                    backoff::wait_within(FIRST_REFUSED / 2, LONGEST_REFUSED / 2, self.refused, u64::MAX);
                self.refused = self.refused.saturating_add(1);
                least + wait
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Chances as a thousand machines have them.
    fn chance(machine: u64) -> u64 {
        // SplitMix64.
        let mut z = machine.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[test]
    fn a_thousand_agents_do_not_come_at_once() {
        // All lose the broker at 0; the broker takes nobody before second 3.
        let (mut first, mut back) = (vec![0; 50], vec![0; 100]);
        for machine in 0..1000 {
            let (mut retry, mut now, mut n) = (Retry::default(), Duration::ZERO, 0);
            while now < Duration::from_secs(3) {
                now += retry.wait(Came::Nothing(Duration::ZERO), chance(machine * 100 + n));
                if n == 0 {
                    first[now.as_millis() as usize / 10] += 1;
                }
                n += 1;
            }
            back[now.as_millis() as usize / 100] += 1;
        }
        assert!(first.iter().all(|n| (1..60).contains(n)), "within 10 ms each: {first:?}");
        assert!(back.iter().all(|n| *n < 120), "within 100 ms each: {back:?}");
        assert!(back[..80].iter().sum::<u32>() == 1000, "soon, all the same: {back:?}");
    }

    proptest! {
        #[test]
        fn waits_are_bounded(came in prop::collection::vec((any::<bool>(), 0u64..100_000, any::<u64>()), 1..40)) {
            let mut retry = Retry::default();
            for (refused, after, chance) in came {
                let came = if refused { Came::Refusal } else { Came::Nothing(Duration::from_millis(after)) };
                let wait = retry.wait(came, chance);
                prop_assert!(wait <= LONGEST_REFUSED + LONGEST);
                if refused {
                    prop_assert!(wait >= FIRST_REFUSED / 2, "no busy loop");
                }
            }
        }
    }

    #[test]
    fn a_good_session_begins_anew_and_a_bad_one_does_not() {
        let mut retry = Retry::default();
        let most = |retry: &Retry, came| {
            let mut retry = *retry;
            retry.wait(came, u64::MAX).as_millis()
        };
        let nothing = Came::Nothing(Duration::ZERO);
        for want in [500, 1000, 2000, 4000, 5000, 5000] {
            assert_eq!(retry.wait(nothing, u64::MAX).as_millis(), want);
        }
        retry.lasted(Duration::from_secs(1), false);
        assert_eq!(most(&retry, nothing), 5000);
        retry.lasted(Duration::from_secs(1), true);
        assert_eq!(most(&retry, nothing), 500);
        for want in [5000, 10_000, 20_000, 40_000, 60_000, 60_000] {
            assert_eq!(retry.wait(Came::Refusal, u64::MAX).as_millis(), want);
        }
        assert_eq!(retry.wait(Came::Nothing(Duration::from_secs(1)), 0).as_millis(), 1000);
        assert_eq!(retry.wait(Came::Nothing(Duration::from_secs(1000)), 0).as_secs(), 60);
    }
}
