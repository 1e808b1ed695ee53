//! What the broker counts since its start.
//!
//! Always holds: a count never goes back; counting is one relaxed addition, and whoever has many to count adds them
//! at once; the names are those of `castra status --json` and stay. Pure. Owner: `bus.rs` shares them, the status
//! shows them.

use super::end::End;
use super::signals::Signal;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The counters, as they count ([`Counting`]) or as they stood at one moment. `castra status --help` documents
/// each. What an older broker did not count is 0.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, bound(deserialize = "N: Default + Deserialize<'de>"))]
pub struct Counters<N = u64> {
    /// Handshakes, by their outcome.
    pub handshakes: Handshakes<N>,
    /// Sessions that began.
    pub sessions_opened: N,
    /// Sessions that ended, by reason.
    pub disconnects: Disconnects<N>,
    /// Heartbeats of the broker's own.
    pub heartbeats_sent: N,
    /// Subscriptions that left live delivery for the journal …
    pub back_pressure_entered: N,
    /// … and came back.
    pub back_pressure_left: N,
    /// Times that a socket which takes nothing was recorded.
    pub write_retries: N,
    /// Subscriptions that a change of castra.toml ended.
    pub unsubscribed: N,
    /// Hellos that were refused for who said them.
    pub refused: N,
    /// … and those of them whose token was wrong.
    pub wrong_tokens: N,
    /// Times that a door accepted nothing, because connections or descriptors were used up.
    pub accept_pauses: N,
    /// Signals that were not said at once.
    pub signals_folded: N,
    /// Warnings and errors that were not written to stderr, because nobody read it.
    pub stderr_dropped: N,
    /// Events that went to a subscriber as they were published.
    pub delivered_live: N,
    /// Events that went to a subscriber from the journal.
    pub delivered_from_journal: N,
    /// Ranges that a subscriber was told are gone.
    pub gaps: N,
    /// Publishes of an event that was stored before, by its publisher's id.
    pub duplicates: N,
    /// Times that a log or record file was not as the broker had left it.
    pub log_changes: N,
}

/// One count per outcome of a handshake, as its record has it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, bound(deserialize = "N: Default + Deserialize<'de>"))]
#[allow(missing_docs, reason = "each is the outcome of its name")]
pub struct Handshakes<N = u64> {
    pub granted: N,
    pub denied: N,
    pub timeout: N,
}

/// One count per [`End`], by its reason.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, rename_all = "kebab-case", bound(deserialize = "N: Default + Deserialize<'de>"))]
#[allow(missing_docs, reason = "each is the End of its name")]
pub struct Disconnects<N = u64> {
    pub peer_closed: N,
    pub frame_empty: N,
    pub frame_too_large: N,
    pub io_error: N,
    pub heartbeat_timeout: N,
    pub slow_consumer: N,
    pub replaced: N,
    pub identity_revoked: N,
    pub read_failed: N,
    pub draining: N,
    pub journal_failed: N,
}

/// The counters that count.
pub type Counting = Counters<AtomicU64>;

impl<N> Disconnects<N> {
    /// That of this end.
    pub fn of(&self, end: End) -> &N {
        match end {
            End::PeerClosed => &self.peer_closed,
            End::FrameEmpty => &self.frame_empty,
            End::FrameTooLarge => &self.frame_too_large,
            End::IoError => &self.io_error,
            End::HeartbeatTimeout => &self.heartbeat_timeout,
            End::SlowConsumer => &self.slow_consumer,
            End::Replaced => &self.replaced,
            End::IdentityRevoked => &self.identity_revoked,
            End::ReadFailed => &self.read_failed,
            End::Draining => &self.draining,
            End::JournalFailed => &self.journal_failed,
        }
    }
}

impl Counting {
    /// Counts a signal, whether it is said or not.
    pub fn signal(&self, signal: Signal) {
        let counter = match signal {
            Signal::HeartbeatSent => &self.heartbeats_sent,
            Signal::BackPressureEntered => &self.back_pressure_entered,
            Signal::BackPressureLeft => &self.back_pressure_left,
            Signal::WriteRetry(_) => &self.write_retries,
            Signal::Unsubscribed | Signal::StateExpired => &self.unsubscribed,
            Signal::Ended(end) => self.disconnects.of(end),
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Counts a handshake, by the word that its record has.
    pub fn handshake(&self, outcome: &str) {
        let counter = match outcome {
            "granted" => &self.handshakes.granted,
            "timeout" => &self.handshakes.timeout,
            _ => &self.handshakes.denied,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// As they stand now.
    pub fn read(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let (ends, handshakes) = (&self.disconnects, &self.handshakes);
        Counters {
            handshakes: Handshakes {
                granted: read(&handshakes.granted),
                denied: read(&handshakes.denied),
                timeout: read(&handshakes.timeout),
            },
            sessions_opened: read(&self.sessions_opened),
            disconnects: Disconnects {
                peer_closed: read(&ends.peer_closed),
                frame_empty: read(&ends.frame_empty),
                frame_too_large: read(&ends.frame_too_large),
                io_error: read(&ends.io_error),
                heartbeat_timeout: read(&ends.heartbeat_timeout),
                slow_consumer: read(&ends.slow_consumer),
                replaced: read(&ends.replaced),
                identity_revoked: read(&ends.identity_revoked),
                read_failed: read(&ends.read_failed),
                draining: read(&ends.draining),
                journal_failed: read(&ends.journal_failed),
            },
            heartbeats_sent: read(&self.heartbeats_sent),
            back_pressure_entered: read(&self.back_pressure_entered),
            back_pressure_left: read(&self.back_pressure_left),
            write_retries: read(&self.write_retries),
            unsubscribed: read(&self.unsubscribed),
            refused: read(&self.refused),
            wrong_tokens: read(&self.wrong_tokens),
            signals_folded: read(&self.signals_folded),
            accept_pauses: read(&self.accept_pauses),
            stderr_dropped: read(&self.stderr_dropped),
            delivered_live: read(&self.delivered_live),
            delivered_from_journal: read(&self.delivered_from_journal),
            gaps: read(&self.gaps),
            duplicates: read(&self.duplicates),
            log_changes: read(&self.log_changes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeMap;

    /// What is not 0, by name.
    fn counted(counters: &Counters) -> BTreeMap<String, u64> {
        let Value::Object(all) = serde_json::to_value(counters).unwrap() else { panic!("no object") };
        let inner = |name: &str| all[name].as_object().unwrap().clone();
        let (ends, handshakes) = (inner("disconnects"), inner("handshakes"));
        all.into_iter()
            .chain(ends)
            .chain(handshakes)
            .filter_map(|(name, n)| Some((name, n.as_u64().filter(|n| *n > 0)?)))
            .collect()
    }

    #[test]
    fn each_signal_has_its_counter() {
        let ends = End::ALL;
        let names = serde_json::to_value(Disconnects::<u64>::default()).unwrap();
        assert_eq!(names.as_object().unwrap().len(), ends.len());
        let others = [
            (Signal::HeartbeatSent, "heartbeats_sent"),
            (Signal::BackPressureEntered, "back_pressure_entered"),
            (Signal::BackPressureLeft, "back_pressure_left"),
            (Signal::Unsubscribed, "unsubscribed"),
            (Signal::WriteRetry(2), "write_retries"),
        ];
        for (signal, name) in ends.map(|end| (Signal::Ended(end), end.reason())).into_iter().chain(others) {
            let counting = Counting::default();
            counting.signal(signal);
            counting.signal(signal);
            assert_eq!(counted(&counting.read()), [(name.to_owned(), 2)].into());
        }
    }

    #[test]
    fn each_outcome_of_a_handshake_has_its_counter() {
        for outcome in ["granted", "denied", "timeout"] {
            let counting = Counting::default();
            counting.handshake(outcome);
            assert_eq!(counted(&counting.read()), [(outcome.to_owned(), 1)].into());
        }
    }

    #[test]
    fn every_counter_is_read_under_its_own_name() {
        let counting = Counting::default();
        for (n, counter) in [
            &counting.sessions_opened,
            &counting.signals_folded,
            &counting.delivered_live,
            &counting.delivered_from_journal,
            &counting.gaps,
            &counting.duplicates,
            &counting.log_changes,
        ]
        .into_iter()
        .enumerate()
        {
            counter.fetch_add(n as u64 + 1, Relaxed);
        }
        let names = [
            "sessions_opened",
            "signals_folded",
            "delivered_live",
            "delivered_from_journal",
            "gaps",
            "duplicates",
            "log_changes",
        ];
        let want = names.into_iter().zip(1..).map(|(name, n)| (name.to_owned(), n)).collect();
        assert_eq!(counted(&counting.read()), want);
    }
}
