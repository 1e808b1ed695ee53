//! The way from a group to its members: deliveries are framed and put into their queues.
//!
//! Always holds: a member is told that it is one before it gets anything; one whose queue is full gets nothing until it has
//! taken something out; what nobody could handle waits for its letter. Owner: [`super::Groups`].

use super::frames::Frames;
use super::handle::{Handle, Stage, State};
use super::lines::Lines;
use super::taken::event_of;
use crate::core::delivery::group::Effect;
use crate::core::delivery::group::progress::Failure;
use crate::core::metrics::groups::What;
use crate::core::wire::group::delivery_head;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Handle {
    /// Hands out what is to be delivered by now, and says that there is something to write.
    pub(super) fn act(self: &Arc<Self>, state: &mut State) {
        let effects = state.machine.step(self.now());
        let mut frames: BTreeMap<u64, Frames> = BTreeMap::new();
        let may_expire = state.expires || !self.shared.retention.is_empty();
        let ages = may_expire.then(|| (self.shared.ages)());
        for effect in effects {
            match effect {
                Effect::Deliver { seq, .. }
                    if ages.as_ref().is_some_and(|ages| self.is_of_no_use(state, seq, ages)) =>
                {
                    self.lapse(state, seq);
                }
                Effect::Deliver { member, seq, attempt } => {
                    if let Some(counting) = &mut state.counting {
                        counting.delivered(seq, state.lines.get(seq), self.now());
                    }
                    self.frame(frames.entry(member).or_default(), attempt, seq, &state.lines);
                }
                Effect::Dead { seq, attempts } => self.give_up(state, seq, attempts),
            }
        }
        state.counting.iter_mut().for_each(|counting| counting.add(What::Delivered));
        for (number, frames) in frames {
            let Some(member) = state.members.get(&number) else { continue };
            let mut has_room = true;
            for (piece, events) in frames.take() {
                has_room = member.outlet.hold(number, piece, events);
            }
            if !has_room {
                state.machine.pause(number);
                // It may have taken everything out just now.
                if !member.outlet.is_full() && !member.drains {
                    state.machine.go_on(number);
                }
            }
        }
        let has_more = state.wants_cursor || state.machine.has_changes() || !state.dying.is_empty();
        if state.stage == Stage::Begun || has_more || !state.answers.is_empty() {
            self.list(state);
        }
    }

    /// The same, for whoever is not the task: its timers and its room may be others.
    pub(super) fn stir(self: &Arc<Self>, state: &mut State) {
        self.act(state);
        self.rouse(state);
    }

    /// There is something to write, or somebody to answer once all before it is written.
    pub(super) fn list(self: &Arc<Self>, state: &mut State) {
        if !std::mem::replace(&mut state.is_listed, true) {
            self.shared.dirty.add(self);
        }
    }

    /// A member whose queue was full takes things out again.
    pub fn go_on(self: &Arc<Self>, number: u64) {
        let mut state = self.lock();
        if state.members.get(&number).is_none_or(|member| member.drains) {
            return;
        }
        state.machine.go_on(number);
        self.stir(&mut state);
    }

    /// Nobody could handle `seq`.
    fn give_up(self: &Arc<Self>, state: &mut State, seq: u64, attempts: Vec<Failure>) {
        let event = state.lines.get(seq).and_then(event_of);
        if event.is_some_and(|event| event.topic().starts_with(b"$dlq.")) {
            let group = &self.name;
            tracing::warn!(%group, seq, "a dead letter that nobody could handle stays where it is: no letter of it is written");
            state.machine.buried(seq);
            return state.forget(seq);
        }
        state.dying.push((seq, attempts));
    }

    fn frame(&self, out: &mut Frames, attempt: u32, seq: u64, lines: &Lines) {
        if attempt == 1 {
            lines.frame(seq).iter().for_each(|frame| out.first(frame));
        } else if let Some(line) = lines.get(seq) {
            out.again(&delivery_head(&self.name, attempt, self.spec.max_attempts), line);
        }
    }
}
