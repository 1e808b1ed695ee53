//! What members of a group do: they join, say what became of what they hold, and leave.
//!
//! Always holds: a member is told that it is one before it gets anything; what it says and may not say changes nothing.
//! Owner: [`super::Membership`].

use super::handle::{Handle, Member, Stage, State};
use crate::core::clock::wall_ms;
use crate::core::delivery::group::answers::{Refused, Which as These};
use crate::core::delivery::outlet::Outlet;
use crate::core::delivery::redelivery::Delay;
use crate::core::limits::GROUP_MEMBER_BYTES;
use crate::core::metrics::groups::What;
use crate::core::refusal::Refusal;
use crate::core::wire::group::{Say, Spec, Which, Word, join_ack, refused, word_ack};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

impl Handle {
    /// Adds a member that wished for `wish`; false when the group is no more.
    pub fn join(
        self: &Arc<Self>,
        number: u64,
        outlet: Arc<Outlet>,
        wish: &Spec,
        (max_in_flight, begins): (u32, bool),
    ) -> bool {
        let mut state = self.lock();
        let differs = Some(self.spec.differs(wish));
        state.members.insert(number, Member { outlet, max_in_flight, begins, differs, drains: false });
        match state.stage {
            Stage::Durable => self.welcome(&mut state, false),
            Stage::Gone | Stage::Removed => return false,
            Stage::Searching | Stage::Begun | Stage::Writing => {}
        }
        true
    }

    /// Tells members that joined that they are, before they get anything.
    pub(super) fn welcome(self: &Arc<Self>, state: &mut State, is_created: bool) {
        let State { members, machine, .. } = &mut *state;
        for (number, member) in members {
            let Some(differs) = member.differs.take() else { continue };
            let mut out = Vec::new();
            let begins = member.begins.then_some(self.spec.ack_timeout_ms);
            let cursor = machine.counts().cursor;
            join_ack(&mut out, &self.name, (cursor, is_created), &differs, begins);
            member.outlet.hold(*number, out.into(), 0);
            machine.join(*number, member.max_in_flight, GROUP_MEMBER_BYTES);
            if member.begins {
                machine.tells(*number);
            }
            if member.drains {
                machine.pause(*number);
            }
        }
        self.stir(state);
    }

    /// A member is handed nothing more, and keeps what it holds.
    pub fn drain(self: &Arc<Self>, number: u64) {
        let mut state = self.lock();
        if let Some(member) = state.members.get_mut(&number) {
            member.drains = true;
            state.machine.pause(number);
        }
    }

    /// A member goes.
    pub fn leave(self: &Arc<Self>, number: u64) {
        let mut state = self.lock();
        let Some(member) = state.members.remove(&number) else { return };
        if member.differs.is_some() {
            let why = Refusal::new("not-begun", "the membership ended before the group had begun");
            let mut out = Vec::new();
            refused(&mut out, "subscribe", &self.name, None, &why);
            member.outlet.hold(0, out.into(), 0);
        }
        // What it holds at the broker's end was not in vain.
        if self.shared.ends.load(Relaxed) {
            return;
        }
        state.machine.leave(number, self.now());
        self.stir(&mut state);
    }

    /// Takes what a member says; the refusal of each event that it may not say that of.
    pub fn say(self: &Arc<Self>, number: u64, word: Word) -> Vec<(Option<u64>, Refusal)> {
        let now = self.now();
        let mut state = self.lock();
        let is_one = matches!(&word.which, Which::Seqs(seqs) if seqs.len() == 1);
        let is_one = is_one || matches!(word.which, Which::Id(_));
        let tells = state.members.get(&number).is_some_and(|member| member.begins);
        let seqs = match word.which {
            Which::Seqs(seqs) => seqs,
            Which::Through(seq) => match state.machine.held_through(number, seq) {
                held if held.is_empty() => vec![seq],
                held => held,
            },
            Which::Id(id) => match state.seq_of(number, &id) {
                Some(seq) => vec![seq],
                None => {
                    let why = format!("this member holds no event of the id '{id:.64}'");
                    return vec![(None, Refusal::new("not-delivered", why))];
                }
            },
        };
        let reason = word.reason.unwrap_or_default();
        let (kind, machine, mut refusals) = (word.say.kind(), &mut state.machine, Vec::new());
        let mut each = |seqs: &[u64], say: &mut dyn FnMut(u64) -> Result<(), Refused>| {
            let refused = seqs.iter().filter_map(|seq| say(*seq).err().map(|why| (*seq, why)));
            refusals.extend(refused);
        };
        match &word.say {
            Say::Ack => {
                let answered = machine.ack(number, These::Seqs(seqs.clone()), now);
                refusals = answered.refused;
                state.count_answered(What::Acked, answered.taken.iter().copied(), now);
                answered.taken.into_iter().for_each(|seq| state.forget(seq));
            }
            Say::Begin => refusals = machine.begin(number, &seqs, now).refused,
            // Who does not say what it begins, and names one event, is at that.
            Say::InProgress if is_one && !tells => refusals = machine.begin(number, &seqs, now).refused,
            Say::InProgress => refusals = machine.in_progress(number, &seqs, now).refused,
            Say::Term => each(&seqs, &mut |seq| machine.term(number, seq, &reason, now)),
            Say::Nack { delays } => {
                let delay = match delays[..] {
                    [] => Delay::Doubling,
                    [one] => Delay::One(one),
                    _ => Delay::List(delays.clone()),
                };
                let wall = wall_ms();
                each(&seqs, &mut |seq| machine.nack(number, seq, &reason, &delay, (now, wall)).map(drop));
            }
        }
        if matches!(word.say, Say::Nack { .. } | Say::Term) {
            let taken = seqs.iter().copied().filter(|seq| refusals.iter().all(|(refused, _)| refused != seq));
            state.count_answered(What::Nacked, taken, now);
        }
        let taken = seqs.len() - refusals.len();
        if word.confirm && taken > 0 {
            let mut out = Vec::new();
            word_ack(&mut out, kind, &self.name, taken);
            match state.members.get(&number).map(|member| member.outlet.clone()) {
                // Nothing of it is written: it can be said again and again, and waits for nobody.
                Some(outlet) if !word.say.is_written() => drop(outlet.hold(0, out.into(), 0)),
                // It comes also when the membership has ended by then.
                Some(outlet) => state.answers.push((outlet.awaits(), 0, out)),
                None => {}
            }
        }
        self.stir(&mut state);
        refusals.into_iter().map(|(seq, why)| (Some(seq), refusal(seq, why))).collect()
    }
}

fn refusal(seq: u64, why: Refused) -> Refusal {
    match why {
        Refused::AlreadyDone => Refusal::new("already-done", format!("event {seq} is done already")),
        Refused::GivenUp => Refusal::new("already-done", format!("event {seq} is given up: a dead letter")),
        Refused::NotHeld => Refusal::new("not-held", format!("event {seq} is not held by this member")),
        Refused::NotDelivered => {
            Refusal::new("not-delivered", format!("event {seq} was not delivered since the broker started"))
        }
        Refused::Unknown => {
            Refusal::new("not-delivered", format!("the group has not come to an event {seq} yet"))
        }
    }
}
