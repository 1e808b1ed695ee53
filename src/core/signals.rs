//! What a session signals beside its work, and how often it is said.
//!
//! ```text
//! session ──Signal──▶ Limiter ──say it, so many were folded──▶ log line, record    (events.rs)
//!                        └────── fold it ─────────────────────▶ counted, said later
//! ```
//!
//! Always holds: every signal has one reason and one action, in logs and records alike; the same signal of a
//! session is said at most once in [`SIGNAL_FOLD`]; what was folded is said with the next of its kind, at the
//! latest with the session's end, which is always said and is the last. Pure: time is an argument. Owner: the
//! session, by its `events::Signals`.

use super::end::End;
use super::limits::SIGNAL_FOLD;
use std::time::Duration;

/// What a session may signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The broker asked a silent peer for a sign of life.
    HeartbeatSent,
    /// A subscription reads from the journal: its queue was full.
    BackPressureEntered,
    /// It has caught up and is live again.
    BackPressureLeft,
    /// The socket takes nothing; the step of the series, from 0. A later step is another signal: it says that the
    /// socket stood still for longer.
    WriteRetry(u8),
    /// The operator does not let it subscribe something any more.
    Unsubscribed,
    /// The state that it keeps cannot be brought up to date.
    StateExpired,
    /// The session ended.
    Ended(End),
}

impl Signal {
    /// Stable, kebab-case.
    pub fn reason(self) -> &'static str {
        match self {
            Signal::HeartbeatSent => "heartbeat",
            Signal::BackPressureEntered | Signal::BackPressureLeft => "back-pressure",
            Signal::WriteRetry(_) => End::SlowConsumer.reason(),
            Signal::Unsubscribed => "forbidden-topic",
            Signal::StateExpired => "state-expired",
            Signal::Ended(end) => end.reason(),
        }
    }

    /// What was done: one word, stable.
    pub fn action(self) -> &'static str {
        match self {
            Signal::HeartbeatSent => "sent",
            Signal::BackPressureEntered => "entered",
            Signal::BackPressureLeft => "left",
            Signal::WriteRetry(_) => "retry",
            Signal::Unsubscribed | Signal::StateExpired => "unsubscribed",
            Signal::Ended(_) => "disconnect",
        }
    }
}

/// What becomes of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is said, and that so many before it were not.
    Say {
        /// Of the same kind; of every kind when it is the session's end.
        folded: u64,
    },
    /// It is counted, and said with a later one.
    Fold,
    /// The session's end was said: it signals no more.
    Over,
}

/// Keeps the signals of one session rare.
#[derive(Debug, Default)]
pub struct Limiter {
    /// As many as there are different signals; none for a session that is quiet.
    kinds: Vec<Kind>,
    over: bool,
}

#[derive(Debug)]
struct Kind {
    signal: Signal,
    said: Duration,
    folded: u64,
}

impl Limiter {
    /// Whether to say a signal, `now` after some moment that stays the same.
    pub fn judge(&mut self, signal: Signal, now: Duration) -> Verdict {
        if self.over {
            return Verdict::Over;
        }
        if let Signal::Ended(_) = signal {
            self.over = true;
            let folded = std::mem::take(&mut self.kinds).iter().map(|kind| kind.folded).sum();
            return Verdict::Say { folded };
        }
        let Some(kind) = self.kinds.iter_mut().find(|kind| kind.signal == signal) else {
            self.kinds.push(Kind { signal, said: now, folded: 0 });
            return Verdict::Say { folded: 0 };
        };
        if now.saturating_sub(kind.said) < SIGNAL_FOLD {
            kind.folded += 1;
            return Verdict::Fold;
        }
        kind.said = now;
        Verdict::Say { folded: std::mem::take(&mut kind.folded) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn any_signal() -> impl Strategy<Value = Signal> {
        prop_oneof![
            Just(Signal::HeartbeatSent),
            Just(Signal::BackPressureEntered),
            Just(Signal::BackPressureLeft),
            Just(Signal::Unsubscribed),
            Just(Signal::StateExpired),
            (0u8..3).prop_map(Signal::WriteRetry),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_and_what_was_folded_is_all(
            signals in prop::collection::vec((any_signal(), 0u64..400_000), 0..200),
        ) {
            let (mut limiter, mut now) = (Limiter::default(), Duration::ZERO);
            let (mut said, mut told) = (0u64, 0u64);
            let mut last: HashMap<String, (Duration, u64)> = HashMap::new();
            for (signal, wait) in &signals {
                now += Duration::from_millis(*wait);
                let of_kind = last.get_mut(&format!("{signal:?}"));
                match (limiter.judge(*signal, now), of_kind) {
                    (Verdict::Fold, Some((at, unsaid))) => {
                        prop_assert!(now - *at < SIGNAL_FOLD, "folded though the last was long ago");
                        *unsaid += 1;
                    }
                    (Verdict::Say { folded }, kind) => {
                        if let Some((at, unsaid)) = kind {
                            prop_assert!(now - *at >= SIGNAL_FOLD, "said twice in the window");
                            prop_assert_eq!(folded, *unsaid);
                        }
                        last.insert(format!("{signal:?}"), (now, 0));
                        (said, told) = (said + 1, told + folded);
                    }
                    (verdict, _) => prop_assert!(false, "{verdict:?} of a first {signal:?}"),
                }
            }
            let Verdict::Say { folded } = limiter.judge(Signal::Ended(End::PeerClosed), now) else {
                return Err(TestCaseError::fail("the end was not said"));
            };
            prop_assert_eq!(said + told + folded, signals.len() as u64, "nothing is left unsaid");
            // The end is said once, and nothing behind it.
            for signal in [Signal::Ended(End::IoError), Signal::HeartbeatSent, Signal::WriteRetry(0)] {
                prop_assert_eq!(limiter.judge(signal, now + SIGNAL_FOLD), Verdict::Over);
            }
        }
    }
}
