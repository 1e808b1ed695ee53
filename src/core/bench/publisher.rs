//! One publishing session: as much in flight as its window allows, each ack checked.
//!
//! With a rate, an event counts from the moment it was due and not from when it could be sent: a broker that stalls
//! has all the events that it held up against it (no coordinated omission). Always holds: nothing is sent after the
//! end; memory is the window and 64 KiB. Owner: the task that `load.rs` starts.

use super::histogram::Histogram;
use super::link::{Link, Said};
use super::pace::{Alarm, Pace};
use super::stamp::Template;
use super::{Meter, Term};
use crate::core::awake;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// So much is gathered at the most before it is written, in bytes.
const GATHER: usize = 64 * 1024;
/// Acks that are still owed at the end are waited for so long.
const DRAIN: Duration = Duration::from_secs(3);
/// A publisher that is too far ahead looks again after so long.
const LOOK: Duration = Duration::from_millis(1);
/// Codes of refusals that are told apart; further ones count as `other`.
const CODES: usize = 32;

/// What a publisher is to do.
#[derive(Clone)]
pub struct Job {
    /// What it publishes.
    pub template: Arc<Template>,
    /// Events in flight at the most.
    pub window: usize,
    /// When they are due; as fast as it goes without.
    pub pace: Option<Pace>,
    /// How many events it may be ahead of the subscribers' average.
    pub lead: Option<u64>,
}

/// What became of it.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Events sent.
    pub sent: u64,
    /// Events acknowledged as stored.
    pub acked: u64,
    /// Events refused, by their codes.
    pub refused: BTreeMap<String, u64>,
    /// Acks whose seq was not above the one before.
    pub out_of_order: u64,
    /// Events sent and never answered.
    pub unanswered: u64,
    /// Events that were due and could not be sent.
    pub unsent: u64,
    /// From when it was due (without a rate: sent) to its ack, in nanoseconds.
    pub latency: Histogram,
    /// Sessions that ended before their time, by their reasons.
    pub ended: BTreeMap<String, u64>,
    /// When the last ack came, or sending ended.
    pub last: Option<Instant>,
}

impl Published {
    /// Adds what another publisher did.
    pub fn merge(&mut self, other: Published) {
        self.sent += other.sent;
        self.acked += other.acked;
        self.out_of_order += other.out_of_order;
        self.unanswered += other.unanswered;
        self.unsent += other.unsent;
        self.latency.merge(&other.latency);
        self.last = self.last.max(other.last);
        for (sum, counts) in [(&mut self.refused, other.refused), (&mut self.ended, other.ended)] {
            counts.into_iter().for_each(|(why, n)| *sum.entry(why).or_default() += n);
        }
    }

    fn refuse(&mut self, code: &str) {
        let code = if self.refused.len() < CODES { code } else { "other" };
        *self.refused.entry(code.to_owned()).or_default() += 1;
    }
}

/// What a publisher waits for before it can send on.
enum Wait {
    /// An ack, or room in the socket.
    Peer,
    /// The moment that the next event is due.
    Due(u64),
    /// The subscribers.
    Lead,
}

/// A publisher at work.
struct Publisher<'a> {
    job: Job,
    term: &'a Term,
    meter: &'a Meter,
    done: Published,
    /// Since when each event in flight counts.
    in_flight: VecDeque<u64>,
    last_seq: u64,
    stopped: bool,
}

/// Publishes until the term is over, and waits for what is owed then.
pub async fn publish(mut link: Link, job: Job, term: &mut Term, meter: &Meter) -> Published {
    let watched = term.clone();
    let over = term.over();
    tokio::pin!(over);
    let (done, in_flight) = (Published::default(), VecDeque::with_capacity(job.window));
    let mut at_work = Publisher { job, term: &watched, meter, done, in_flight, last_seq: 0, stopped: false };
    let why = match Alarm::new() {
        Ok(mut alarm) => at_work.run(&mut link, &mut alarm, over.as_mut()).await,
        Err(error) => Some(format!("timer: {error}")),
    };
    at_work.end(why)
}

impl Publisher<'_> {
    /// Why the session ended before its time, if so.
    async fn run<F: Future<Output = ()>>(
        &mut self,
        link: &mut Link,
        alarm: &mut Alarm,
        mut over: std::pin::Pin<&mut F>,
    ) -> Option<String> {
        let mut drained: Option<awake::Instant> = None;
        loop {
            let wait = match drained {
                None if link.is_written() => self.fill(link.out()),
                None => Wait::Peer,
                Some(_) if self.in_flight.is_empty() => return None,
                Some(_) => Wait::Peer,
            };
            let stepped = tokio::select! {
                biased;
                () = &mut over, if drained.is_none() => {
                    self.stop();
                    drained = Some(awake::Instant::now() + DRAIN);
                    continue;
                }
                stepped = link.step() => stepped,
                rung = alarm.wait(due(&wait), self.term.now()), if matches!(wait, Wait::Due(_)) => {
                    match rung {
                        Ok(()) => continue,
                        Err(error) => Err(format!("timer: {error}")),
                    }
                }
                () = sleep(LOOK), if matches!(wait, Wait::Lead) => continue,
                () = awake::sleep_until(drained.unwrap_or_else(awake::Instant::now)), if drained.is_some() => return None,
            };
            if let Err(why) = stepped.and_then(|()| self.take_acks(link)) {
                return Some(why);
            }
        }
    }

    /// Puts the frames that may be sent now behind each other.
    fn fill(&mut self, out: &mut Vec<u8>) -> Wait {
        let (now, length) = (self.term.now(), self.term.length());
        while self.in_flight.len() < self.job.window && out.len() < GATHER {
            let since = match self.job.pace {
                None => now,
                Some(pace) => {
                    let due = pace.due(self.done.sent);
                    if due > now && due < length {
                        return if out.is_empty() { Wait::Due(due) } else { Wait::Peer };
                    }
                    due
                }
            };
            // The timer that ends it may be late.
            if since >= length {
                return Wait::Peer;
            }
            if let Some(lead) = self.job.lead
                && self.meter.behind(self.done.sent) >= lead
            {
                return if out.is_empty() { Wait::Lead } else { Wait::Peer };
            }
            self.job.template.write(out, self.done.sent, since);
            self.in_flight.push_back(since);
            self.done.sent += 1;
        }
        Wait::Peer
    }

    fn take_acks(&mut self, link: &mut Link) -> Result<(), String> {
        let (now, acked) = (self.term.now(), self.done.acked);
        let end = link.take(|body| self.take_ack(body, now));
        let more = self.done.acked - acked;
        if more > 0 {
            self.meter.acked.fetch_add(more, Relaxed);
            self.done.last = Some(Instant::now());
        }
        end
    }

    /// Whether it was an ack of a publish.
    fn take_ack(&mut self, body: &[u8], now: u64) -> bool {
        let seq = match self.job.template.acked_seq(body) {
            Some(seq) => seq,
            None => {
                let Some(said) = Said::read(body).filter(|said| said.answers("publish")) else {
                    return false;
                };
                if let Some((code, _)) = said.refused() {
                    self.in_flight.pop_front();
                    self.done.refuse(code);
                    return true;
                }
                said.seq.unwrap_or(0)
            }
        };
        // An ack of nothing is one too many.
        let since = self.in_flight.pop_front();
        if seq <= self.last_seq || since.is_none() {
            self.done.out_of_order += 1;
        }
        self.last_seq = seq;
        if let Some(since) = since {
            self.done.latency.record(now.saturating_sub(since));
            self.done.acked += 1;
        }
        true
    }

    /// Nothing is sent any more.
    fn stop(&mut self) {
        if std::mem::replace(&mut self.stopped, true) {
            return;
        }
        let due = self.job.pace.map_or(0, |pace| pace.due_before(self.term.now().min(self.term.length())));
        self.done.unsent = due.saturating_sub(self.done.sent);
        self.done.last = Some(Instant::now());
    }

    fn end(mut self, why: Option<String>) -> Published {
        self.done.unanswered = self.in_flight.len() as u64;
        if let Some(why) = why {
            self.stop();
            *self.done.ended.entry(why).or_default() += 1;
        }
        self.done
    }
}

fn due(wait: &Wait) -> u64 {
    match wait {
        Wait::Due(moment) => *moment,
        _ => 0,
    }
}
