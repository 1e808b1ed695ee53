//! The outbox on its way to the broker: what is under way, and what each answer means.
//!
//! ```text
//! fetched, sent ──▶ under way ── ok ─────────────────▶ sent
//!                       │ ─── refused for good ──────▶ failed
//!                       └─── refused for now ────────▶ held: the answers to the rest are awaited, then all of it is
//!                                                      sent again from there on, one at a time until one is stored
//! ```
//!
//! Always holds: events are sent in the order of the outbox, and none that is refused for now is passed over; at most
//! [`WINDOW`] are under way, so a broker that remembers a VM's last 256 ids knows every one that is sent again. Pure:
//! times are arguments. Owner: the session.

use super::outbox::Sent;
use crate::core::backoff;
pub use crate::core::limits::DRAIN_EVENTS as WINDOW;
use crate::core::wire::received::Ack;
use std::collections::VecDeque;
use std::time::Duration;

/// Refusals for now: nothing was stored, or nobody knows. All others are for good.
const FOR_NOW: [&str; 5] =
    ["disk-full", "outcome-unknown", "journal-unreadable", "draining", "journal-failed"];
/// The first wait after a refusal for now is this at the most, the next ones twice as long each …
const FIRST: Duration = Duration::from_millis(250);
/// … up to this.
const LONGEST: Duration = Duration::from_secs(10);

/// What an answer means for the event that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is stored.
    Sent(Sent),
    /// It is refused for good: its place, a code and why.
    Failed(u64, String, String),
    /// It is refused for now, with this code and why, and will be sent again.
    Held(String, String),
}

/// An answer that belongs to nothing that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the broker acknowledged an event that was not the next one")]
pub struct OutOfStep;

#[derive(Debug)]
struct Flying {
    n: u64,
    id: String,
    bytes: usize,
}

/// What is under way in one session.
#[derive(Debug, Default)]
pub struct Drain {
    under_way: VecDeque<Flying>,
    /// The bytes of their frames.
    bytes: usize,
    /// The last that was sent.
    last: u64,
    /// The first that was refused for now.
    held: Option<u64>,
    /// Nothing is sent before this time.
    until: Duration,
    /// Refusals for now since something was stored.
    refusals: u32,
}

impl Drain {
    /// Of a session that begins.
    pub fn new() -> Self {
        Drain::default()
    }

    /// What to fetch now, if anything: what is behind this place, and so many.
    pub fn wants(&self, now: Duration) -> Option<(u64, usize)> {
        let window = if self.refusals > 0 { 1 } else { WINDOW };
        let room = window.saturating_sub(self.under_way.len());
        (room > 0 && self.held.is_none() && self.until <= now).then_some((self.last, room))
    }

    /// When there is something to fetch again after a refusal.
    pub fn next(&self) -> Option<Duration> {
        (self.held.is_none() && self.refusals > 0 && self.under_way.is_empty()).then_some(self.until)
    }

    /// How many are under way.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// The bytes of their frames.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// This one was sent, in a frame of so many bytes.
    pub fn sent(&mut self, n: u64, id: String, bytes: usize) {
        self.last = n;
        self.bytes += bytes;
        self.under_way.push_back(Flying { n, id, bytes });
    }

    /// Takes the answer to the oldest event under way; the wait after a refusal is picked by `chance`.
    ///
    /// # Errors
    /// It is the answer to something else.
    pub fn answered(&mut self, ack: &Ack<'_>, now: Duration, chance: u64) -> Result<Fate, OutOfStep> {
        let flying = self.under_way.pop_front().ok_or(OutOfStep)?;
        self.bytes -= flying.bytes;
        // A refusal of what could not be read has no id.
        if ack.id.as_ref().is_some_and(|id| id.0 != flying.id) {
            return Err(OutOfStep);
        }
        let text = |text: &Option<crate::core::event::Text<'_>>, none: &str| {
            text.as_ref().map_or_else(|| none.to_owned(), |text| text.0.clone().into_owned())
        };
        let (code, reason) = (text(&ack.code, "refused"), text(&ack.reason, "no reason given"));
        // `logs-behind` says that it is stored.
        let fate = match ack.seq {
            Some(seq) if ack.is_ok() || code == "logs-behind" => {
                self.refusals = 0;
                Fate::Sent(Sent { n: flying.n, seq, duplicate: ack.duplicate })
            }
            _ if ack.is_ok() => return Err(OutOfStep),
            _ if FOR_NOW.contains(&code.as_str()) => {
                if self.held.is_none() {
                    self.held = Some(flying.n);
                    self.until = now + backoff::wait_within(FIRST, LONGEST, self.refusals, chance);
                    self.refusals += 1;
                }
                Fate::Held(code, reason)
            }
            _ => Fate::Failed(flying.n, code, reason),
        };
        if self.under_way.is_empty()
            && let Some(n) = self.held.take()
        {
            self.last = n - 1;
            self.refusals = self.refusals.max(1);
        }
        Ok(fate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(drain: &mut Drain, json: &str, now: Duration) -> Result<Fate, OutOfStep> {
        drain.answered(&serde_json::from_str(json).unwrap(), now, u64::MAX)
    }

    fn ok(id: &str, seq: u64) -> String {
        format!(r#"{{"type":"ack","ack":"publish","status":"ok","topic":"t","seq":{seq},"id":"{id}"}}"#)
    }

    fn refused(code: &str) -> String {
        format!(r#"{{"type":"ack","ack":"publish","status":"error","code":"{code}","reason":"r"}}"#)
    }

    #[test]
    fn answers() {
        let zero = Duration::ZERO;
        let mut drain = Drain::new();
        assert_eq!(drain.wants(zero), Some((0, WINDOW)));
        for n in [4, 5, 6, 7] {
            drain.sent(n, format!("i{n}"), 10);
        }
        assert_eq!((drain.wants(zero), drain.under_way()), (Some((7, WINDOW - 4)), 4));
        assert_eq!(drain.bytes(), 40);
        let sent = |n, seq, duplicate| Ok(Fate::Sent(Sent { n, seq, duplicate }));
        assert_eq!(answer(&mut drain, &ok("i4", 10), zero), sent(4, 10, false));
        let again = r#"{"type":"ack","ack":"publish","status":"ok","seq":3,"id":"i5","duplicate":true}"#;
        assert_eq!(answer(&mut drain, again, zero), sent(5, 3, true));
        let failed = Ok(Fate::Failed(6, "bad-topic".into(), "r".into()));
        assert_eq!(answer(&mut drain, &refused("bad-topic"), zero), failed);
        let stored =
            r#"{"type":"ack","ack":"publish","status":"error","code":"logs-behind","seq":12,"id":"i7"}"#;
        assert_eq!(answer(&mut drain, stored, zero), sent(7, 12, false));
        assert_eq!(drain.bytes(), 0);
        assert_eq!(answer(&mut drain, &ok("i8", 13), zero), Err(OutOfStep), "nothing is under way");
        drain.sent(8, "i8".into(), 10);
        assert_eq!(answer(&mut drain, &ok("i9", 13), zero), Err(OutOfStep));
    }

    #[test]
    fn nothing_overtakes_what_is_refused_for_now() {
        let (zero, second) = (Duration::ZERO, Duration::from_secs(1));
        let mut drain = Drain::new();
        for n in 1..=3 {
            drain.sent(n, format!("i{n}"), 10);
        }
        assert!(matches!(answer(&mut drain, &refused("disk-full"), zero), Ok(Fate::Held(..))));
        assert_eq!(drain.wants(second), None, "the rest is not answered yet");
        assert!(matches!(answer(&mut drain, &refused("disk-full"), zero), Ok(Fate::Held(..))));
        assert!(matches!(answer(&mut drain, &refused("disk-full"), zero), Ok(Fate::Held(..))));
        assert_eq!((drain.wants(zero), drain.next()), (None, Some(FIRST)));
        assert_eq!(drain.wants(FIRST), Some((0, 1)), "from there on, one at a time");
        drain.sent(1, "i1".into(), 10);
        assert_eq!(drain.wants(second), None);
        let _ = answer(&mut drain, &refused("disk-full"), second);
        assert_eq!(drain.next(), Some(second + 2 * FIRST));
        drain.sent(1, "i1".into(), 10);
        assert!(matches!(answer(&mut drain, &ok("i1", 1), second), Ok(Fate::Sent(_))));
        assert_eq!((drain.wants(2 * second), drain.next()), (Some((1, WINDOW)), None));
    }

    proptest! {
        /// A broker that refuses now and then, for good or for now, and nothing in its pipeline behind a refusal for now:
        /// all that is stored is in order, and each is stored or failed, once.
        #[test]
        fn order_is_kept(whims in prop::collection::vec(0u8..10, 1..400)) {
            let all: Vec<u64> = (1..=300).collect();
            let (mut drain, mut pending, mut now) = (Drain::new(), all.clone(), Duration::ZERO);
            let (mut stored, mut failed, mut whims) = (Vec::new(), Vec::new(), whims.iter().cycle());
            let mut wire: VecDeque<u64> = VecDeque::new();
            let (mut full, mut rounds) = (false, 0);
            while !pending.is_empty() {
                rounds += 1;
                if rounds > 100_000 {
                    // A broker whose whim it is to be full for ever.
                    break;
                }
                if let Some((after, room)) = drain.wants(now) {
                    for n in pending.iter().copied().filter(|n| *n > after).take(room) {
                        drain.sent(n, n.to_string(), 10);
                        wire.push_back(n);
                    }
                }
                prop_assert!(drain.under_way() <= WINDOW);
                let Some(n) = wire.pop_front() else {
                    now = drain.next().unwrap_or(now + FIRST).max(now);
                    full = false;
                    continue;
                };
                let whim = whims.next().unwrap();
                full |= *whim == 0;
                let json = match whim {
                    _ if full => refused("disk-full"),
                    1 => refused("event-too-large"),
                    _ => ok(&n.to_string(), stored.len() as u64 + 1),
                };
                match answer(&mut drain, &json, now).unwrap() {
                    Fate::Sent(sent) => {
                        stored.push(sent.n);
                        pending.retain(|n| *n != sent.n);
                    }
                    Fate::Failed(n, ..) => {
                        failed.push(n);
                        pending.retain(|m| *m != n);
                    }
                    Fate::Held(..) => {}
                }
            }
            prop_assert!(stored.is_sorted() && stored.windows(2).all(|w| w[0] != w[1]));
            let mut done = [stored, failed, pending].concat();
            done.sort_unstable();
            prop_assert_eq!(done, all);
        }
    }
}
