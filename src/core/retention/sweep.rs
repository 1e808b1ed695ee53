//! Reads the journal behind the commits, to know how far the rules have expired.
//!
//! Always holds: it reads only when there are rules, 16 MiB at a time, and is in nobody's way; it counts each
//! event once. What it knows is gone with the process: after a start it reads the journal once. Owner: `broker.rs`.

use super::Retention;
use super::tally::Tally;
use crate::core::journal::Journal;
use crate::core::journal::read::{Mark, Read};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::sleep;

/// So often.
const EVERY: Duration = Duration::from_secs(2);
/// So much is read before others have a turn, in bytes.
const STEP_BYTES: usize = 16 * 1024 * 1024;

/// The newest event of each rule in a segment.
struct Newest {
    /// The segment's first seq.
    first: u64,
    /// By rule; the last one is of what no rule matches. 0 is none.
    events: Box<[u64]>,
}

struct Sweep {
    retention: Arc<Retention>,
    journal: Arc<Journal>,
    next: u64,
    mark: Option<Mark>,
    tallies: Vec<Tally>,
    segments: VecDeque<Newest>,
}

/// Until it is dropped.
pub async fn run(retention: Arc<Retention>, journal: Arc<Journal>) {
    if retention.is_empty() {
        return;
    }
    let tallies = retention.tallies();
    let mut sweep = Sweep { retention, journal, next: 1, mark: None, tallies, segments: VecDeque::new() };
    loop {
        let step = move || {
            let is_end = sweep.step();
            (sweep, is_end)
        };
        let Ok((back, is_end)) = tokio::task::spawn_blocking(step).await else { return };
        sweep = back;
        match is_end {
            Ok(false) => {}
            Ok(true) => sleep(EVERY).await,
            Err(error) => {
                tracing::error!(%error, "journal: cannot be read for the rules of retention");
                sleep(EVERY).await;
            }
        }
    }
}

impl Sweep {
    /// Reads on, and says what has expired; whether that is all.
    fn step(&mut self) -> io::Result<bool> {
        let mut reader = self.journal.reader(self.next);
        if let Some(mark) = self.mark.take() {
            reader.resume(mark)?;
        }
        let firsts: Vec<u64> =
            self.journal.map().segments().iter().map(|segment| segment.first_seq).collect();
        let Sweep { retention, tallies, segments, .. } = self;
        let (mut topic, mut rule) = (Vec::new(), None);
        let mut each = |event: crate::core::event::Event<'_>| {
            if topic != event.topic() {
                topic = event.topic().to_vec();
                rule = retention.rule_of(&topic);
            }
            if let Some(rule) = rule {
                tallies[rule].add(event.seq, event.line.len() as u64);
            }
            let first =
                firsts[..firsts.partition_point(|first| *first <= event.seq)].last().copied().unwrap_or(1);
            if segments.back().is_none_or(|newest| newest.first < first) {
                segments.push_back(Newest { first, events: vec![0; tallies.len() + 1].into() });
            }
            if let Some(newest) = segments.back_mut() {
                newest.events[rule.unwrap_or(tallies.len())] = event.seq;
            }
        };
        let is_end = reader.read(STEP_BYTES, &mut each)? == Read::End;
        (self.next, self.mark) = (reader.next_seq(), reader.mark());
        self.tell();
        Ok(is_end)
    }

    fn tell(&mut self) {
        let (first, ages) = (self.journal.map().first_seq(), self.journal.ages());
        for (ruled, tally) in self.retention.rules.iter().zip(&mut self.tallies) {
            tally.forget(first);
            ruled.through.store(tally.through(), Relaxed);
        }
        // The last one is being written, or about to be.
        while self.segments.len() > 1 {
            let is_past = self.segments.get(1).is_some_and(|next| next.first <= first);
            let is_useless = |(rule, seq): (usize, &u64)| {
                *seq == 0
                    || self.retention.rules.get(rule).is_some_and(|ruled| {
                        let age = ruled.rule.age_ms;
                        *seq <= ruled.through.load(Relaxed) || age.is_some_and(|age| ages.is_past(*seq, age))
                    })
            };
            if !is_past && !self.segments[0].events.iter().enumerate().all(is_useless) {
                return;
            }
            self.segments.pop_front();
            self.retention.useless.store(self.segments[0].first - 1, Relaxed);
        }
    }
}
