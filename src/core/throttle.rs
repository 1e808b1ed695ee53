//! Who guesses tokens is slowed down.
//!
//! Always holds: the first [`WRONG_TOKENS`] wrong tokens of a peer for a name within a minute cost nothing; from then on its
//! tokens for that name are looked at one after the other, `STEP` apart, right ones too, or a guess would be known to be wrong
//! by its answer's being late; one that would have to wait longer than `LONGEST` is refused at once. After
//! [`WRONG_TOKENS_OF_NAME`] for a name, wherever they came from, each token for it waits for `PAUSE`: nobody is refused for
//! what others said. Both tables are bounded; what had its last wrong token the longest ago gives way. Pure: `now` is an
//! argument. Owner: the door.

use super::limits::{THROTTLED_PEERS, WRONG_TOKENS, WRONG_TOKENS_OF_NAME};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Wrong tokens are counted for so long.
const MEMORY: Duration = Duration::from_secs(60);
/// The next token is looked at so much later.
const STEP: Duration = Duration::from_secs(1);
/// A token for a name that many are wrong for waits for so long.
const PAUSE: Duration = Duration::from_secs(2);
/// Nobody waits longer; shorter than a hello may take.
const LONGEST: Duration = Duration::from_secs(4);

/// What is known of one key.
#[derive(Debug, Default)]
struct Guesses {
    /// When, the oldest first; as many as make it slow.
    wrong: VecDeque<Duration>,
    /// When its next token is looked at.
    next: Duration,
}

/// Wrong tokens by some key.
#[derive(Debug)]
struct Table {
    /// So many make one slow.
    most: usize,
    known: HashMap<String, Guesses>,
}

impl Table {
    fn new(most: usize) -> Self {
        Table { most, known: HashMap::new() }
    }

    /// What is known of this one, if it is slow.
    fn slow(&mut self, key: &str, now: Duration) -> Option<&mut Guesses> {
        let guesses = self.known.get_mut(key)?;
        guesses.wrong.retain(|at| now.saturating_sub(*at) < MEMORY);
        (guesses.wrong.len() >= self.most).then_some(guesses)
    }

    /// One more; whether that makes it slow from here on.
    fn wrong(&mut self, key: &str, now: Duration) -> bool {
        if self.known.len() >= THROTTLED_PEERS && !self.known.contains_key(key) {
            let oldest = self.known.iter().min_by_key(|(_, guesses)| guesses.wrong.back().copied());
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.known.remove(&oldest);
            }
        }
        let guesses = self.known.entry(key.to_owned()).or_default();
        guesses.wrong.retain(|at| now.saturating_sub(*at) < MEMORY);
        let was_slow = guesses.wrong.len() >= self.most;
        if was_slow {
            guesses.wrong.pop_front();
        }
        guesses.wrong.push_back(now);
        let begins = !was_slow && guesses.wrong.len() >= self.most;
        if begins {
            guesses.next = now + STEP;
        }
        begins
    }
}

/// Who is slow from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slow {
    /// This peer, for this name.
    Peer,
    /// Everybody, for this name.
    Name,
}

/// Counts wrong tokens by peer and name, and by name.
#[derive(Debug)]
pub struct Throttle {
    peers: Table,
    names: Table,
}

impl Default for Throttle {
    fn default() -> Self {
        Throttle { peers: Table::new(WRONG_TOKENS), names: Table::new(WRONG_TOKENS_OF_NAME) }
    }
}

/// A name has no space.
fn key(peer: &str, name: &str) -> String {
    format!("{peer} {name}")
}

impl Throttle {
    /// How long the token that `peer` said for `name` has to wait until it is looked at; `None`: it is not looked at.
    pub fn wait(&mut self, peer: &str, name: &str, now: Duration) -> Option<Duration> {
        let pause = self.names.slow(name, now).map_or(Duration::ZERO, |_| PAUSE);
        let Some(guesses) = self.peers.slow(&key(peer, name), now) else { return Some(pause) };
        let at = guesses.next.max(now);
        let wait = at - now;
        if wait > LONGEST {
            return None;
        }
        guesses.next = at + STEP;
        Some(wait.max(pause))
    }

    /// `peer` said a wrong one for `name`; whom that makes slow from here on.
    pub fn wrong(&mut self, peer: &str, name: &str, now: Duration) -> Option<Slow> {
        let is_name = self.names.wrong(name, now);
        let is_peer = self.peers.wrong(&key(peer, name), now);
        is_name.then_some(Slow::Name).or(is_peer.then_some(Slow::Peer))
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
            assert_eq!(throttle.wait("a", "vm", at(n)), Some(Duration::ZERO));
            assert_eq!(throttle.wrong("a", "vm", at(n)), (n == 4).then_some(Slow::Peer));
        }
        assert_eq!(throttle.wait("b", "vm", at(5)), Some(Duration::ZERO));
        assert_eq!(throttle.wait("a", "other", at(5)), Some(Duration::ZERO));
        // One after the other, whoever asks at the same time.
        let waits: Vec<_> = (0..6).map(|_| throttle.wait("a", "vm", at(4))).collect();
        assert_eq!(waits, [Some(at(1000)), Some(at(2000)), Some(at(3000)), Some(at(4000)), None, None]);
        // In a minute it is forgotten.
        assert_eq!(
            throttle.wait("a", "vm", at(60_000)),
            Some(Duration::ZERO),
            "one is too old, four are left"
        );
        assert!(
            throttle.wrong("a", "vm", at(60_003)).is_some()
                || throttle.wait("a", "vm", at(60_010)) == Some(Duration::ZERO)
        );
    }

    #[test]
    fn who_goes_on_guessing_stays_slow() {
        let mut throttle = Throttle::default();
        (0..5).for_each(|n| _ = throttle.wrong("a", "vm", at(n)));
        let mut now = at(10);
        for _ in 0..100 {
            now += throttle.wait("a", "vm", now).unwrap();
            assert_ne!(throttle.wrong("a", "vm", now), Some(Slow::Peer), "said once");
        }
        assert!(now >= at(99_000), "{now:?}: one a second");
    }

    #[test]
    fn who_guesses_from_many_addresses_is_slow_and_keeps_nobody_out() {
        let mut throttle = Throttle::default();
        for n in 0..10_000 {
            let wait = throttle.wait(&format!("127.0.{n}"), "vm", at(n));
            let is_slow = n >= WRONG_TOKENS_OF_NAME as u64;
            assert_eq!(wait, Some(if is_slow { PAUSE } else { Duration::ZERO }), "{n}");
            let said = throttle.wrong(&format!("127.0.{n}"), "vm", at(n));
            assert_eq!(said, (n + 1 == WRONG_TOKENS_OF_NAME as u64).then_some(Slow::Name), "{n}");
        }
        assert_eq!(throttle.wait("its own", "vm", at(10_000)), Some(PAUSE));
        assert_eq!(throttle.wait("its own", "other", at(10_000)), Some(Duration::ZERO));
        assert_eq!(throttle.wait("its own", "vm", at(70_000)), Some(Duration::ZERO), "forgotten");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut throttle = Throttle::default();
        for n in 0..2 * THROTTLED_PEERS as u64 {
            throttle.wrong("a", &n.to_string(), at(n));
        }
        for table in [&throttle.peers, &throttle.names] {
            assert_eq!(table.known.len(), THROTTLED_PEERS);
        }
        assert!(throttle.names.known.contains_key(&(2 * THROTTLED_PEERS as u64 - 1).to_string()));
    }
}
