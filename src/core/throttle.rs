//! Who guesses tokens is slowed down.
//!
//! Always holds: the first [`WRONG_TOKENS`] wrong tokens of a peer within a minute cost nothing; from then on its tokens
//! are looked at one after the other, `STEP` apart, right ones too, or a guess would be known to be wrong by
//! its answer's being late; one that would have to wait longer than `LONGEST` is refused at once. Peers that are
//! remembered are bounded; the one whose last wrong token is the oldest gives way. Pure: `now` is an argument. Owner: the door.

use super::limits::{THROTTLED_PEERS, WRONG_TOKENS};
use std::collections::HashMap;
use std::time::Duration;

/// Wrong tokens are counted for so long.
const MEMORY: Duration = Duration::from_secs(60);
/// The next token is looked at so much later.
const STEP: Duration = Duration::from_secs(1);
/// Nobody waits longer; shorter than a hello may take.
const LONGEST: Duration = Duration::from_secs(4);

/// What is known of one peer.
#[derive(Debug, Default)]
struct Guesses {
    /// When, the oldest first; as many as make a peer slow.
    wrong: Vec<Duration>,
    /// When its next token is looked at.
    next: Duration,
}

/// Counts wrong tokens by peer.
#[derive(Debug, Default)]
pub struct Throttle {
    peers: HashMap<String, Guesses>,
}

impl Throttle {
    /// How long the token that `peer` said has to wait until it is looked at; `None`: it is not looked at.
    pub fn wait(&mut self, peer: &str, now: Duration) -> Option<Duration> {
        let Some(guesses) = self.peers.get_mut(peer) else { return Some(Duration::ZERO) };
        guesses.wrong.retain(|at| now.saturating_sub(*at) < MEMORY);
        if guesses.wrong.len() < WRONG_TOKENS {
            return Some(Duration::ZERO);
        }
        let at = guesses.next.max(now);
        let wait = at - now;
        if wait > LONGEST {
            return None;
        }
        guesses.next = at + STEP;
        Some(wait)
    }

    /// `peer` said a wrong one; whether that makes it slow from here on.
    pub fn wrong(&mut self, peer: &str, now: Duration) -> bool {
        if self.peers.len() >= THROTTLED_PEERS && !self.peers.contains_key(peer) {
            let oldest = self.peers.iter().min_by_key(|(_, guesses)| guesses.wrong.last().copied());
            if let Some(oldest) = oldest.map(|(peer, _)| peer.clone()) {
                self.peers.remove(&oldest);
            }
        }
        let guesses = self.peers.entry(peer.to_owned()).or_default();
        guesses.wrong.retain(|at| now.saturating_sub(*at) < MEMORY);
        let was_slow = guesses.wrong.len() >= WRONG_TOKENS;
        if was_slow {
            guesses.wrong.remove(0);
        }
        guesses.wrong.push(now);
        let is_slow = guesses.wrong.len() >= WRONG_TOKENS;
        if is_slow && !was_slow {
            guesses.next = now + STEP;
        }
        is_slow && !was_slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn five_wrong_ones_in_a_minute_slow_a_peer_and_nobody_else() {
        let mut throttle = Throttle::default();
        for n in 0..5 {
            assert_eq!(throttle.wait("a", at(n)), Some(Duration::ZERO));
            assert_eq!(throttle.wrong("a", at(n)), n == 4);
        }
        assert_eq!(throttle.wait("b", at(5)), Some(Duration::ZERO));
        // One after the other, whoever asks at the same time.
        let waits: Vec<_> = (0..6).map(|_| throttle.wait("a", at(4))).collect();
        assert_eq!(waits, [Some(at(1000)), Some(at(2000)), Some(at(3000)), Some(at(4000)), None, None]);
        // In a minute it is forgotten.
        assert_eq!(throttle.wait("a", at(60_000)), Some(Duration::ZERO), "one is too old, four are left");
        assert!(throttle.wrong("a", at(60_003)) || throttle.wait("a", at(60_010)) == Some(Duration::ZERO));
    }

    #[test]
    fn who_goes_on_guessing_stays_slow() {
        let mut throttle = Throttle::default();
        (0..5).for_each(|n| _ = throttle.wrong("a", at(n)));
        let mut now = at(10);
        for _ in 0..100 {
            now += throttle.wait("a", now).unwrap();
            assert!(!throttle.wrong("a", now), "said once");
        }
        assert!(now >= at(99_000), "{now:?}: one a second");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut throttle = Throttle::default();
        for n in 0..2 * THROTTLED_PEERS as u64 {
            throttle.wrong(&n.to_string(), at(n));
        }
        assert_eq!(throttle.peers.len(), THROTTLED_PEERS);
        assert!(throttle.peers.contains_key(&(2 * THROTTLED_PEERS as u64 - 1).to_string()));
    }
}
