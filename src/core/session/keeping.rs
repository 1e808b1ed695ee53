//! Subscriptions of somebody who keeps the state: the newest event of each key.
//!
//! Always holds: such a subscription ends with `state-expired` before it is sent an event that the broker's state has
//! not seen whole. Owner: the session.

use super::Session;
use crate::core::delivery::Beginning;
use crate::core::delivery::interest::Interest;
use crate::core::delivery::subscription::Source;
use crate::core::latest::state::{Begun, expired};
use crate::core::signals::Signal;
use crate::core::topic::Pattern;
use crate::core::wire::subscribe::{state_ack, unsubscribed};
use std::sync::Arc;

/// Patterns that take more bytes are not named in an ack.
const NAMED_BYTES: usize = 32 * 1024;

/// Where a subscription begins.
pub(super) enum Found {
    InJournal(Beginning),
    InState(Begun),
}

impl Session<'_> {
    /// Acks a subscription to `patterns` that keeps the state, and begins it.
    pub(super) fn begin_state(&mut self, interest: Interest, patterns: &[Pattern], begun: Begun) {
        let state = match begun.source {
            Source::State { through, .. } => Some(through),
            _ => None,
        };
        let compacted = self.bus.latest.compaction().meeting(patterns);
        let bytes: usize = compacted.iter().map(|pattern| pattern.len()).sum();
        let compacted = (bytes <= NAMED_BYTES).then_some(&*compacted);
        self.output.own(|out| state_ack(out, interest.sub(), begun.next, state, compacted));
        let subscribing = &mut self.subscribing;
        // What was lost while it was looked up is not passed over.
        subscribing.losses = subscribing.losses.min(begun.losses);
        let id = subscribing.table.add(Arc::new(interest), begun.next);
        if let Some(subscription) = subscribing.table.get_mut(id) {
            (subscription.source, subscription.keeps) = (begun.source, Some(begun.losses));
        }
        if state.is_none() {
            subscribing.join(id);
        }
        subscribing.changed = true;
    }

    /// Ends subscriptions that began before keys were lost.
    pub(super) fn end_expired(&mut self) {
        let losses = self.bus.latest.losses();
        if self.subscribing.losses == losses {
            return;
        }
        self.subscribing.losses = losses;
        let began_before = |keeps: Option<u64>| keeps.is_some_and(|began| began < losses);
        let table = self.subscribing.table.iter();
        let ended = table.filter(|one| began_before(one.keeps)).map(|one| one.interest.sub().into());
        let ended: Vec<Box<str>> = ended.collect();
        ended.iter().for_each(|sub| self.expire(sub));
    }

    /// Ends the subscription `sub`: it has to begin anew.
    pub(super) fn expire(&mut self, sub: &str) {
        let refusal = expired();
        self.signals.say(Signal::StateExpired, format_args!("'{sub}': {}", refusal.reason));
        self.drop_subscription(sub);
        self.output.own(|out| unsubscribed(out, sub, &refusal));
    }
}
