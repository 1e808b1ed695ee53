//! When a session has been silent, or its socket stuck, for too long.
//!
//! ```text
//! heard ──20 s──▶ heartbeat (if it was asked for) ──20 s──▶ heartbeat ──▶ 60 s: silent, the end
//! stuck ──1 s──▶ retry ──3 s──▶ retry ──6 s──▶ retry ──▶ 10 s: slow, the end
//! ```
//!
//! Times are since the session began, and `now` is an argument. Always holds: silence counts only while the broker
//! reads; a step is said once each time the socket is stuck. Pure. Owner: the session, which keeps one timer for all.

use std::time::Duration;

/// A socket that takes nothing is recorded at these times before it is given up.
pub const RETRIES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(6)];

/// Something is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The peer is to be sent a heartbeat.
    Heartbeat,
    /// Nothing came from the peer for too long.
    Silent,
    /// The socket took nothing: the step, from 0, and for how long.
    Retry(u8, Duration),
    /// It took nothing for too long.
    Slow,
}

/// A session's clock.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    idle_time: Duration,
    write_time: Duration,
    /// None: the peer did not ask for heartbeats.
    heartbeat_time: Option<Duration>,
    heard: Duration,
    /// The last heartbeat that was due.
    beat: Duration,
    /// The broker does not read, since then.
    deaf: Option<Duration>,
    /// The socket is stuck, since then; and how many retries were said.
    stuck: Option<(Duration, usize)>,
}

impl Pulse {
    /// Of a session that begins at 0.
    pub fn new(idle_time: Duration, write_time: Duration, heartbeat_time: Option<Duration>) -> Self {
        let zero = Duration::ZERO;
        Pulse { idle_time, write_time, heartbeat_time, heard: zero, beat: zero, deaf: None, stuck: None }
    }

    /// A whole frame came.
    pub fn heard(&mut self, now: Duration) {
        (self.heard, self.beat) = (now, now);
        // What was silence of ours up to here is not counted again.
        self.deaf = self.deaf.map(|_| now);
    }

    /// Whether the broker reads from now on.
    pub fn reads(&mut self, reads: bool, now: Duration) {
        match (reads, self.deaf) {
            (false, None) => self.deaf = Some(now),
            (true, Some(since)) => {
                // Their silence was ours.
                let pause = now.saturating_sub(since);
                (self.heard, self.beat, self.deaf) = (self.heard + pause, self.beat + pause, None);
            }
            _ => {}
        }
    }

    /// The socket took something, or has nothing to take.
    pub fn flows(&mut self) {
        self.stuck = None;
    }

    /// The socket takes nothing just now.
    pub fn sticks(&mut self, now: Duration) {
        self.stuck.get_or_insert((now, 0));
    }

    /// When to look again.
    pub fn next(&self) -> Duration {
        let silent = || {
            let beat = self.heartbeat_time.map_or(Duration::MAX, |time| self.beat.saturating_add(time));
            self.heard.saturating_add(self.idle_time).min(beat)
        };
        let heard = if self.deaf.is_some() { Duration::MAX } else { silent() };
        let stuck = self.stuck.map_or(Duration::MAX, |(since, said)| since.saturating_add(self.step(said).0));
        heard.min(stuck)
    }

    /// After how long the next step comes, and what it is.
    fn step(&self, said: usize) -> (Duration, Due) {
        match RETRIES.get(said).filter(|retry| **retry < self.write_time) {
            Some(retry) => (*retry, Due::Retry(said as u8, *retry)),
            None => (self.write_time, Due::Slow),
        }
    }

    /// What is due, one thing at a time.
    pub fn look(&mut self, now: Duration) -> Option<Due> {
        if let Some((since, said)) = self.stuck {
            let (after, due) = self.step(said);
            if since.saturating_add(after) <= now {
                self.stuck = Some((since, said + 1));
                return Some(due);
            }
        }
        if self.deaf.is_some() {
            return None;
        }
        if self.heard.saturating_add(self.idle_time) <= now {
            return Some(Due::Silent);
        }
        if self.heartbeat_time.is_some_and(|time| self.beat.saturating_add(time) <= now) {
            self.beat = now;
            return Some(Due::Heartbeat);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// Everything that falls due up to `until`, with when.
    fn run(pulse: &mut Pulse, until: u32) -> Vec<(u64, Due)> {
        let mut all = Vec::new();
        while pulse.next() <= S * until {
            let now = pulse.next();
            all.extend(pulse.look(now).map(|due| (now.as_secs(), due)));
            if matches!(all.last(), Some((_, Due::Silent | Due::Slow))) {
                break;
            }
        }
        all
    }

    #[test]
    fn silence() {
        let mut pulse = Pulse::new(S * 60, S * 10, Some(S * 20));
        let all = [(20, Due::Heartbeat), (40, Due::Heartbeat), (60, Due::Silent)];
        assert_eq!(run(&mut pulse.clone(), 100), all);
        pulse.heard(S * 5);
        assert_eq!(run(&mut pulse, 30), [(25, Due::Heartbeat)]);
        pulse.heard(S * 30);
        assert_eq!(run(&mut pulse, 100)[..2], [(50, Due::Heartbeat), (70, Due::Heartbeat)]);
        assert_eq!(run(&mut Pulse::new(S * 60, S * 10, None), 100), [(60, Due::Silent)]);
    }

    #[test]
    fn silence_counts_only_while_the_broker_reads() {
        let mut pulse = Pulse::new(S * 60, S * 10, None);
        pulse.reads(false, S * 10);
        pulse.reads(false, S * 20);
        assert_eq!((pulse.next(), pulse.look(S * 1000)), (Duration::MAX, None));
        pulse.reads(true, S * 1000);
        pulse.reads(true, S * 1001);
        assert_eq!(run(&mut pulse.clone(), 2000), [(1050, Due::Silent)]);
        // A frame that was read before and is taken now.
        pulse.reads(false, S * 1020);
        pulse.heard(S * 1500);
        pulse.reads(true, S * 1510);
        assert_eq!(run(&mut pulse, 2000), [(1570, Due::Silent)]);
    }

    #[test]
    fn a_stuck_socket() {
        let mut pulse = Pulse::new(S * 600, S * 10, None);
        pulse.sticks(S * 100);
        pulse.sticks(S * 101);
        let retry = |i: u8| (100 + RETRIES[i as usize].as_secs(), Due::Retry(i, RETRIES[i as usize]));
        let all = [retry(0), retry(1), retry(2), (110, Due::Slow)];
        assert_eq!(run(&mut pulse.clone(), 500), all);
        assert_eq!(run(&mut pulse, 101), all[..1]);
        pulse.flows();
        assert_eq!(run(&mut pulse, 500), []);
        pulse.sticks(S * 500);
        assert_eq!(run(&mut pulse, 599)[0], (501, Due::Retry(0, S)));
        let mut short = Pulse::new(S * 600, S * 3, None);
        short.sticks(S);
        assert_eq!(run(&mut short, 500), [(2, Due::Retry(0, S)), (4, Due::Slow)]);
    }
}
