//! Events of a group that are of no use any more before a member had them: their `ttl_ms` is over, or a rule for their
//! topic has expired them.
//!
//! Always holds: nobody is handed such an event; it is counted, and the cursor passes it. What a member holds it
//! keeps. Owner: [`super::Groups`].

use super::handle::{Handle, State};
use super::taken::event_of;
use crate::core::journal::Ages;
use crate::core::retention::is_expired;
use std::sync::Arc;

impl Handle {
    /// Lets go of what waits and is of no use any more.
    pub fn sweep(self: &Arc<Self>) {
        let mut state = self.lock();
        if state.expires || !self.shared.retention.is_empty() {
            let (ages, waiting) = ((self.shared.ages)(), state.machine.waiting().collect::<Vec<_>>());
            for seq in
                waiting.into_iter().filter(|seq| self.is_of_no_use(&state, *seq, &ages)).collect::<Vec<_>>()
            {
                self.lapse(&mut state, seq);
            }
            self.act(&mut state);
        }
    }

    pub(super) fn is_of_no_use(&self, state: &State, seq: u64, ages: &Ages) -> bool {
        let event = state.lines.get(seq).and_then(event_of);
        event.is_some_and(|event| is_expired(&event, self.shared.retention.of(event.topic()), ages))
    }

    pub(super) fn lapse(&self, state: &mut State, seq: u64) {
        state.machine.lapse(seq);
        state.forget(seq);
        state.expire(1);
    }

    /// How many events have expired since the last call.
    pub fn take_unsaid(&self) -> u64 {
        std::mem::take(&mut self.lock().unsaid)
    }
}

impl State {
    /// So many events were gone or of no use before the group had them.
    pub(super) fn expire(&mut self, events: u64) {
        self.expired += events;
        self.unsaid += events;
        self.counting.iter().for_each(|counting| counting.expired(events));
    }
}
