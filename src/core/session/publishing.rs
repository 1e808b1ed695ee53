//! The publishing side of a session: frames to rounds, rounds to the journal, outcomes to acks.
//!
//! Always holds: acks of publishes come in the order of their frames; what is not acked yet is bounded, and the session
//! is not read on while it is at its bound (invariant 6). Owner: the session.

use super::Session;
use crate::core::awake::Instant;
use crate::core::clock;
use crate::core::end::End;
use crate::core::event::Batch;
use crate::core::identity::Role;
use crate::core::instances::Place;
use crate::core::journal::{NotCommitted, Outcome, Receipt};
use crate::core::limits::{BATCH_BYTES, OUTPUT_BYTES};
use crate::core::owed::{Answer, Aside, Round, answer, answer_behind, answer_not_committed};
use crate::core::status::Vm;
use crate::core::wire::codec::{LENGTH_BYTES, first_frame};
use crate::core::wire::subscribe::{Unsubscribe, refused_ack};
use crate::core::wire::{frame, group};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::oneshot;
use tokio::task::coop::consume_budget;

/// A round stops growing at so many frames, however small they are.
const ROUND_EVENTS: usize = 512;

/// A round whose events are on the way to the disk.
pub(super) struct Owed {
    answers: Vec<Answer>,
    /// Events on the way to the disk.
    in_flight: usize,
    /// What the round takes of the window.
    events: usize,
    bytes: usize,
    outcome: Option<oneshot::Receiver<Outcome>>,
}

/// What of a session's publishes is not acked yet.
pub(super) struct Publishing {
    vm: Arc<Vm>,
    pub owed: VecDeque<Owed>,
    /// A batch that came back, for its memory.
    pub unused: Option<Batch>,
    events: usize,
    bytes: usize,
    /// Until when a host's acks wait for the logs, while some do.
    patience: Option<Instant>,
}

impl Publishing {
    pub fn new(vm: Arc<Vm>) -> Self {
        Publishing { vm, owed: VecDeque::new(), unused: None, events: 0, bytes: 0, patience: None }
    }

    /// The outcome of the oldest round, which there is; `None` when it waits for none.
    pub async fn outcome(&mut self) -> Option<Outcome> {
        match self.owed.front_mut().and_then(|owed| owed.outcome.as_mut()) {
            Some(outcome) => Some(outcome.await.unwrap_or(Err(NotCommitted::Unknown))),
            None => None,
        }
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        // What is still owed is owed to nobody.
        self.vm.answered(self.owed.iter().map(|owed| owed.in_flight).sum());
    }
}

impl Session<'_> {
    /// Whether a frame may be taken: the window is open, the peer takes its answers, and none before it waits.
    pub(super) fn may_take(&self) -> bool {
        self.has_window()
            && !self.is_output_full()
            && !self.subscribing.outlet.is_stuffed()
            && !self.subscribing.outlet.awaits_enough()
            && !self.subscribing.is_looking_up()
            && !self.asking.is_full()
    }

    /// Whether so much waits for the peer that nothing more is taken from it.
    fn is_output_full(&self) -> bool {
        self.output.len() >= 2 * OUTPUT_BYTES
    }

    fn has_window(&self) -> bool {
        self.publishing.events < self.bus.limits.unacked_events && self.publishing.bytes < self.most_bytes()
    }

    /// What may be under way: the session's own limit, and its share of what is free for all.
    fn most_bytes(&self) -> usize {
        self.bus.limits.unacked_bytes.min(self.bus.window_bytes())
    }

    fn fits(&self, round: &Round) -> bool {
        self.publishing.events + round.events() < self.bus.limits.unacked_events
            && self.publishing.bytes + round.bytes() < self.most_bytes()
    }

    /// Turns what was read into rounds, as far as the window goes.
    ///
    /// # Errors
    /// The framing is broken, or the session may not go on: whoever sends without end is looked at as well.
    pub(super) async fn take_frames(&mut self, turn: Option<&Place>) -> Result<(), End> {
        self.check(turn)?;
        let input = std::mem::take(&mut self.input);
        let (mut taken, mut broken) = (0, None);
        while self.may_take() && broken.is_none() {
            // A peer that sends without end has its turn like the others.
            consume_budget().await;
            broken = self.check(turn).err();
            if broken.is_some() {
                break;
            }
            let before = taken;
            let now = clock::wall_ms();
            let mut round = Round::reusing(self.publishing.unused.take());
            let mut aside = None;
            while round.bytes() < BATCH_BYTES
                && round.events() < ROUND_EVENTS
                && self.fits(&round)
                && aside.is_none()
            {
                match first_frame(&input[taken..]) {
                    Ok(Some(body)) => {
                        aside = round.take(body, &self.vm.name, &self.rights.rules, &mut self.ids, now);
                        taken += LENGTH_BYTES + body.len();
                    }
                    Ok(None) => break,
                    Err(error) => {
                        broken = Some(End::from(error));
                        break;
                    }
                }
            }
            if taken == before {
                self.publishing.unused = Some(round.batch);
                break;
            }
            self.pulse.heard(self.now());
            self.send_round(round).await;
            if let Some(aside) = aside {
                self.answer_aside(aside);
            }
        }
        self.is_held = broken.is_none() && matches!(first_frame(&input[taken..]), Ok(Some(_)) | Err(_));
        self.input = input;
        self.input.drain(..taken);
        broken.map_or(Ok(()), Err)
    }

    /// Whether the session may go on, and as what.
    fn check(&mut self, turn: Option<&Place>) -> Result<(), End> {
        if turn.is_some_and(Place::is_ended) {
            return Err(End::Replaced);
        }
        if self.rights.is_stale() { self.take_policy() } else { Ok(()) }
    }

    fn answer_aside(&mut self, aside: Aside) {
        match aside {
            Aside::Heartbeat => {
                self.vm.heartbeat(clock::boot_ms());
                self.output.own(frame::heartbeat_ack);
            }
            Aside::Forget(name) => {
                let forgotten = self.bus.forget(self.rights.role, &name);
                self.output.own(|out| match forgotten {
                    Ok(()) => frame::forget_ack(out),
                    Err(refusal) => frame::error_ack(out, "forget", &refusal, None),
                });
            }
            Aside::Subscribe(wish) => self.subscribe(wish),
            Aside::Refused(kind, sub, refusal) => {
                self.output.own(|out| refused_ack(out, kind, sub.as_deref(), &refusal));
            }
            Aside::RefusedGroup(kind, group, refusal) => {
                self.output.own(|out| group::refused(out, kind, &group, None, &refusal));
            }
            Aside::Unsubscribe(Unsubscribe::Sub(sub)) => self.unsubscribe(&sub),
            Aside::Unsubscribe(Unsubscribe::Group { group, drain }) => self.quit(&group, drain),
            Aside::Join(wish) => self.join(*wish),
            Aside::Manage(manage) => self.manage(manage),
            Aside::Word(word) => self.say(*word),
            Aside::Ask(ask) => self.ask(ask),
        }
    }

    async fn send_round(&mut self, round: Round) {
        let (events, bytes) = (round.events(), round.bytes());
        let Round { batch, answers, .. } = round;
        if answers.is_empty() {
            self.publishing.unused = Some(batch);
            return;
        }
        let in_flight = batch.len();
        let outcome = if batch.is_empty() {
            None
        } else {
            self.vm.published(in_flight, clock::boot_ms());
            Some(self.bus.publish(self.id, batch).await)
        };
        let publishing = &mut self.publishing;
        publishing.events += events;
        publishing.bytes += bytes;
        if publishing.owed.is_empty() {
            publishing.patience = None;
        }
        publishing.owed.push_back(Owed { answers, in_flight, events, bytes, outcome });
        self.answer_ready().await;
    }

    /// Answers every round whose outcome is known, in order.
    pub(super) async fn answer_ready(&mut self) {
        while let Some(front) = self.publishing.owed.front_mut() {
            let outcome = match &mut front.outcome {
                None => None,
                Some(receiver) => match receiver.try_recv() {
                    Ok(outcome) => Some(outcome),
                    Err(oneshot::error::TryRecvError::Empty) => return,
                    Err(oneshot::error::TryRecvError::Closed) => Some(Err(NotCommitted::Unknown)),
                },
            };
            self.answer_front(outcome).await;
        }
    }

    /// Answers the oldest round.
    pub(super) async fn answer_front(&mut self, outcome: Option<Outcome>) {
        let Some(owed) = self.publishing.owed.pop_front() else { return };
        self.publishing.events -= owed.events;
        self.publishing.bytes -= owed.bytes;
        self.vm.answered(owed.in_flight);
        let receipt = match outcome {
            None => Receipt::default(),
            Some(Ok(receipt)) => receipt,
            Some(Err(why)) => return self.output.own(|out| answer_not_committed(out, owed.answers, why)),
        };
        self.bus.recorder.counters.duplicates.fetch_add(receipt.seqs.repeats() as u64, Relaxed);
        if self.rights.role == Role::Host {
            // One wait for all that is owed: the logs are behind for all of it or for none.
            let until =
                *self.publishing.patience.get_or_insert(Instant::now() + self.bus.limits.host_log_time);
            if !self
                .bus
                .logs
                .wait_for(receipt.last_seq(), until.saturating_duration_since(Instant::now()))
                .await
            {
                return self.output.own(|out| answer_behind(out, owed.answers, &receipt));
            }
            self.publishing.patience = None;
        }
        self.output.own(|out| answer(out, owed.answers, &receipt));
        self.publishing.unused = receipt.batch.emptied();
    }
}
