//! Whether the host is still there, for one session.
//!
//! ```text
//! nothing sent for `beat`: a heartbeat, which is answered
//! nothing heard for `silence`: the host is gone
//! the clocks went apart: a heartbeat at once, and `hurry` to answer it
//! ```
//!
//! A guest that was stopped and goes on, from a snapshot even, has a connection that nobody holds at the other end, and
//! reading it may wait for ever. Its monotonic clock did not count; clocks that did have gone on. Always holds: times
//! are since the session began, and `now` is an argument. Pure. Owner: the session.

use std::time::Duration;

/// Clocks that go apart by so much, in milliseconds, tell of a stop.
const APART_MS: i64 = 2000;
/// The clocks are compared so often.
const COMPARE: Duration = Duration::from_secs(5);

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A session that sent nothing for so long sends a heartbeat.
    pub beat: Duration,
    /// A host that was not heard for so long is gone.
    pub silence: Duration,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// A heartbeat is to be sent.
    Beat,
    /// Nothing was heard for so long.
    Gone(Duration),
}

/// What other clocks than the monotonic one say, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// CLOCK_BOOTTIME, which counts while the machine sleeps.
    pub boot: i64,
    /// CLOCK_REALTIME.
    pub wall: i64,
}

/// The clock of a session that began at 0.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    times: Times,
    heard: Duration,
    sent: Duration,
    compared: Duration,
    clocks: Clocks,
    /// Something has to be heard by then.
    hurry: Option<Duration>,
}

impl Pulse {
    /// Of a session that begins now.
    pub fn new(times: Times, clocks: Clocks) -> Self {
        let zero = Duration::ZERO;
        Pulse { times, heard: zero, sent: zero, compared: zero, clocks, hurry: None }
    }

    /// Something came.
    pub fn heard(&mut self, now: Duration) {
        (self.heard, self.hurry) = (now, None);
    }

    /// A frame was sent.
    pub fn sent(&mut self, now: Duration) {
        self.sent = now;
    }

    /// When to look again.
    pub fn next(&self) -> Duration {
        let gone = (self.heard + self.times.silence).min(self.hurry.unwrap_or(Duration::MAX));
        gone.min(self.sent + self.times.beat).min(self.compared + COMPARE)
    }

    /// What is due, one thing at a time.
    pub fn look(&mut self, now: Duration, clocks: Clocks) -> Option<Due> {
        let passed = i64::try_from(now.saturating_sub(self.compared).as_millis()).unwrap_or(i64::MAX);
        let apart =
            |now: i64, before: i64| (now.saturating_sub(before).saturating_sub(passed)).abs() >= APART_MS;
        let stopped = apart(clocks.boot, self.clocks.boot) || apart(clocks.wall, self.clocks.wall);
        (self.compared, self.clocks) = (now, clocks);
        if stopped && self.hurry.is_none() {
            // As long as an idle session may take to be heard again, and no longer.
            self.hurry = Some(now + (self.times.silence / 3));
            self.sent = now;
            return Some(Due::Beat);
        }
        if self.heard + self.times.silence <= now || self.hurry.is_some_and(|hurry| hurry <= now) {
            return Some(Due::Gone(now.saturating_sub(self.heard)));
        }
        if self.sent + self.times.beat <= now {
            self.sent = now;
            return Some(Due::Beat);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const TIMES: Times = Times { beat: Duration::from_secs(10), silence: Duration::from_secs(30) };

    fn at(now: Duration) -> Clocks {
        let ms = now.as_millis() as i64;
        Clocks { boot: 1000 + ms, wall: 5_000_000 + ms }
    }

    /// Everything that falls due up to `until`, with when.
    fn run(pulse: &mut Pulse, until: u32, clocks: impl Fn(Duration) -> Clocks) -> Vec<(u64, Due)> {
        let mut all = Vec::new();
        while pulse.next() <= S * until {
            let now = pulse.next();
            all.extend(pulse.look(now, clocks(now)).map(|due| (now.as_secs(), due)));
            if matches!(all.last(), Some((_, Due::Gone(_)))) {
                break;
            }
        }
        all
    }

    #[test]
    fn silence() {
        let mut pulse = Pulse::new(TIMES, at(Duration::ZERO));
        let all = [(10, Due::Beat), (20, Due::Beat), (30, Due::Gone(S * 30))];
        assert_eq!(run(&mut pulse.clone(), 100, at), all);
        pulse.heard(S * 12);
        pulse.sent(S * 5);
        assert_eq!(
            run(&mut pulse, 100, at),
            [(15, Due::Beat), (25, Due::Beat), (35, Due::Beat), (42, Due::Gone(S * 30))]
        );
    }

    #[test]
    fn a_session_that_sends_is_as_dead_as_one_that_does_not() {
        let mut pulse = Pulse::new(TIMES, at(Duration::ZERO));
        for second in 1..30 {
            pulse.sent(S * second);
            assert_eq!(pulse.look(S * second, at(S * second)), None);
        }
        assert_eq!(pulse.look(S * 30, at(S * 30)), Some(Due::Gone(S * 30)));
    }

    #[test]
    fn a_stop_is_looked_at_at_once() {
        // The monotonic clock stood still for an hour at second 7.
        for (boot, wall) in [(3_600_000, 3_600_000), (0, 3_600_000), (3_600_000, 0), (0, -3_600_000)] {
            let clocks = |now: Duration| {
                let Clocks { boot: b, wall: w } = at(now);
                if now > S * 7 {
                    Clocks { boot: b + boot, wall: w + wall }
                } else {
                    Clocks { boot: b, wall: w }
                }
            };
            let mut pulse = Pulse::new(TIMES, at(Duration::ZERO));
            assert_eq!(run(&mut pulse.clone(), 100, clocks), [(10, Due::Beat), (20, Due::Gone(S * 20))]);
            // It was answered.
            assert_eq!(run(&mut pulse, 11, clocks), [(10, Due::Beat)]);
            pulse.heard(S * 11);
            assert_eq!(run(&mut pulse, 40, clocks)[..2], [(20, Due::Beat), (30, Due::Beat)]);
        }
    }
}
