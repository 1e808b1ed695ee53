//! Reads the journal for subscriptions that are behind.
//!
//! Always holds: a step is bounded in what it reads and in what it makes; a seq that cannot be read is said, to each
//! subscription that was owed it. Whoever keeps the state is not read for past such a hole. Blocks, for files do. Owner: [`super::Delivery`], which runs a few at a time.

use super::subscription::{Plan, Wanted};
use crate::core::event::Event;
use crate::core::journal::Ages;
use crate::core::journal::read::{Mark, Read, Reader};
use crate::core::latest::compaction::Compaction;
use crate::core::latest::is_change;
use crate::core::limits::CATCH_UP_BYTES;
use crate::core::retention::{Retention, is_expired};
use crate::core::wire::subscribe::{event, gap};
use std::io;

/// What a step came to.
#[derive(Debug, Default)]
pub struct Step {
    /// Frames, in order.
    pub frames: Vec<u8>,
    /// How many of them are events.
    pub events: u64,
    /// How many of them say that something is gone.
    pub gaps: u64,
    /// How many events were left out because they have expired, once for each subscription that wanted them.
    pub expired: u64,
    /// Some of the events have a `ttl_ms`.
    pub expires: bool,
    /// The events that were looked at have so many bytes.
    pub looked_at: usize,
    /// Everything before this seq was looked at.
    pub next: u64,
    /// First and last seq that are gone; those who keep the state are sent what is newest of them next.
    pub hole: Option<(u64, u64)>,
    /// The state of what is before is not known any more: it has to begin anew.
    pub is_expired: bool,
    /// It is the end of what is durable.
    pub is_end: bool,
    /// Where to go on.
    pub mark: Option<Mark>,
}

/// Reads on for `plan`, and makes about as many bytes of frames as it says. What has expired, now
/// that events are so old, is left out.
///
/// # Errors
/// The journal cannot be read.
pub fn read(
    reader: &mut Reader,
    plan: &Plan,
    retention: &Retention,
    compaction: &Compaction,
    ages: &Ages,
) -> io::Result<Step> {
    let mut step = Step { next: plan.at, ..Step::default() };
    let mut looked_at = 0;
    // Each event may be wanted by all of them.
    let share = (plan.bytes / plan.wanted.len().max(1)).max(1);
    while step.frames.len() < plan.bytes && looked_at < CATCH_UP_BYTES {
        // Events of one topic come one behind the other.
        let (mut topic, mut wanted, mut bound) = (Vec::new(), Vec::<usize>::new(), None);
        let Step { frames, events, expired, expires, .. } = &mut step;
        let mut each = |found: Event<'_>| {
            looked_at += found.line.len();
            if topic != found.topic() || topic.is_empty() {
                topic = found.topic().to_vec();
                let text = std::str::from_utf8(&topic).unwrap_or_default();
                wanted.clear();
                wanted.extend((0..plan.wanted.len()).filter(|i| plan.wanted[*i].interest.wants(text)));
                bound = if wanted.is_empty() { None } else { retention.of(&topic) };
            }
            let is_over = !wanted.is_empty() && is_expired(&found, bound, ages);
            // What changes the state is never out of date for those who keep it.
            let stays = is_over && is_change(compaction, &found);
            *expires |= found.layout.expires && !is_over;
            for Wanted { next, interest, keeps, .. } in wanted.iter().map(|i| &plan.wanted[*i]) {
                if found.seq < *next || !interest.may_pass(found.line) {
                    continue;
                }
                if is_over && !(stays && *keeps) {
                    *expired += 1;
                    continue;
                }
                event(frames, interest.head(), found.line);
                *events += 1;
            }
        };
        match reader.read(share, &mut each)? {
            Read::Events(_) => {}
            Read::Gap { from, to } => {
                for Wanted { next, interest, keeps, .. } in plan.wanted.iter().filter(|one| one.next <= to) {
                    gap(&mut step.frames, interest.head(), from.max(*next), to);
                    step.gaps += 1;
                    if *keeps {
                        step.hole = Some((from, to));
                    }
                }
                if step.hole.is_some() {
                    break;
                }
            }
            Read::End => {
                step.is_end = true;
                break;
            }
        }
    }
    (step.next, step.mark, step.looked_at) = (reader.next_seq(), reader.mark(), looked_at);
    Ok(step)
}
