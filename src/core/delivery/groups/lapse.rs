//! Events of a group that are of no use any more before a member had them: their `ttl_ms` is over, or a rule for their
//! topic has expired them.
//!
//! Always holds: nobody is handed such an event; it is counted, and the cursor passes it. What a member holds it
//! keeps. Owner: [`super::Groups`].

use super::handle::{Handle, State};
use super::taken::event_of;
use crate::core::clock::wall_ms;
use crate::core::retention::is_expired;
use std::sync::Arc;

impl Handle {
    /// Lets go of what waits and is of no use any more; how many events.
    pub fn sweep(self: &Arc<Self>) -> u64 {
        let mut state = self.lock();
        let before = state.expired;
        if state.expires || !self.shared.retention.is_empty() {
            let (now, waiting) = (wall_ms(), state.machine.waiting().collect::<Vec<_>>());
            for seq in
                waiting.into_iter().filter(|seq| self.is_of_no_use(&state, *seq, now)).collect::<Vec<_>>()
            {
                self.lapse(&mut state, seq);
            }
            self.act(&mut state);
        }
        state.expired - before
    }

    pub(super) fn is_of_no_use(&self, state: &State, seq: u64, now: u64) -> bool {
        let event = state.lines.get(seq).and_then(event_of);
        event.is_some_and(|event| is_expired(&event, self.shared.retention.of(event.topic()), now))
    }

    pub(super) fn lapse(&self, state: &mut State, seq: u64) {
        state.machine.lapse(seq);
        state.forget(seq);
        state.expired += 1;
        state.counting.iter().for_each(|counting| counting.expired(1));
    }
}
