//! One subscribing session: looks at the bytes that matter of every event that comes, and counts.
//!
//! Always holds: it costs as little as it can, for it shares the machine with the broker it measures; it waits for
//! what is still to come no longer than while something comes. Owner: the task that `load.rs` starts.

use super::histogram::Histogram;
use super::link::{Link, Said};
use super::seen::Seen;
use super::stamp::Template;
use super::{Meter, Term};
use crate::core::awake;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What events usually begin with.
const EVENT: &[u8] = b"{\"type\":\"event\"";
/// When nothing came for so long after the publisher's end, nothing will.
const QUIET: Duration = Duration::from_secs(2);

/// What a subscriber saw.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// Which events.
    pub seen: Seen,
    /// From when an event was due to its arrival, in nanoseconds.
    pub latency: Histogram,
    /// Why the session ended before its time, if it did.
    pub ended: Option<String>,
    /// When the last event came.
    pub last: Option<Instant>,
}

/// How much was published, once that is known.
pub type Total = watch::Receiver<Option<u64>>;

/// Receives until all that was published came, or nothing comes any more.
pub async fn receive(
    mut link: Link,
    template: &Template,
    mut total: Total,
    term: &Term,
    meter: &Meter,
) -> Received {
    link.expect_much();
    let mut done = Received::default();
    let (mut wanted, mut until) = (None, awake::Instant::now());
    let known = total.wait_for(Option::is_some);
    tokio::pin!(known);
    loop {
        if wanted.is_some_and(|wanted| done.seen.events >= wanted) {
            break;
        }
        let last = done.last;
        let stepped = tokio::select! {
            biased;
            stepped = link.step() => stepped,
            published = &mut known, if wanted.is_none() => {
                // A publisher that is gone without a word published nothing more.
                wanted = Some(published.ok().and_then(|total| *total).unwrap_or(0));
                until = awake::Instant::now() + QUIET;
                continue;
            }
            () = awake::sleep_until(until), if wanted.is_some() => break,
        };
        if let Err(why) = stepped.and_then(|()| take(&mut link, template, &mut done, term, meter)) {
            done.ended = Some(why);
            meter.lose(done.seen.events);
            break;
        }
        if wanted.is_some() && done.last > last {
            until = awake::Instant::now() + QUIET;
        }
    }
    done
}

fn take(
    link: &mut Link,
    template: &Template,
    done: &mut Received,
    term: &Term,
    meter: &Meter,
) -> Result<(), String> {
    let (now, before, again) = (term.now(), done.seen.events, done.seen.repeated);
    let end = link.take(|body| {
        if !body.starts_with(EVENT) && !Said::read(body).is_some_and(|said| said.is_event()) {
            return false;
        }
        // Others may publish about the same.
        if let Some((number, due)) = template.read(body) {
            done.seen.take(number);
            done.latency.record(now.saturating_sub(due));
        }
        true
    });
    let came = done.seen.events - before;
    if came + done.seen.repeated > again {
        done.last = Some(Instant::now());
    }
    meter.delivered.fetch_add(came, Relaxed);
    end
}

/// Holds a session that reads nothing, until everything is over.
pub async fn stand_still(link: Link, mut total: Total) {
    // It ends with the publisher, whatever that says.
    let _ = total.wait_for(Option::is_some).await;
    drop(link);
}
