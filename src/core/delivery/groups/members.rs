//! What members of a group do: they join, say what became of what they hold, and leave.
//!
//! Always holds: a member is told that it is one before it gets anything; what it says and may not say changes nothing.
//! Owner: [`super::Membership`].

use super::handle::{Handle, Member, Stage, State};
use crate::core::delivery::group::answers::{Refused, Which as These};
use crate::core::delivery::outlet::Outlet;
use crate::core::delivery::redelivery::Delay;
use crate::core::limits::GROUP_MEMBER_BYTES;
use crate::core::metrics::groups::What;
use crate::core::refusal::Refusal;
use crate::core::wire::group::{Say, Spec, Which, Word, join_ack, word_ack};
use std::sync::Arc;

impl Handle {
    /// Adds a member that wished for `wish`; false when the group is no more.
    pub fn join(self: &Arc<Self>, number: u64, outlet: Arc<Outlet>, wish: &Spec, max_in_flight: u32) -> bool {
        let mut state = self.lock();
        let differs = Some(self.spec.differs(wish));
        state.members.push(Member { number, outlet, max_in_flight, differs });
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
        for member in members {
            let Some(differs) = member.differs.take() else { continue };
            let mut out = Vec::new();
            join_ack(&mut out, &self.name, machine.counts().cursor, is_created, &differs);
            member.outlet.hold(member.number, out.into(), 0);
            machine.join(member.number, member.max_in_flight, GROUP_MEMBER_BYTES);
        }
        self.stir(state);
    }

    /// A member goes.
    pub fn leave(self: &Arc<Self>, number: u64) {
        let mut state = self.lock();
        state.members.retain(|member| member.number != number);
        state.machine.leave(number, self.now());
        self.stir(&mut state);
    }

    /// Takes what a member says; the refusal of each event that it may not say that of.
    pub fn say(self: &Arc<Self>, number: u64, word: Word) -> Vec<(Option<u64>, Refusal)> {
        let now = self.now();
        let mut state = self.lock();
        let seqs = match word.which {
            Which::Seqs(seqs) => seqs,
            Which::Through(seq) => match state.machine.held_through(number, seq) {
                held if held.is_empty() => vec![seq],
                held => held,
            },
            Which::Id(id) => match state.seq_of(&self.keys, &id) {
                Some(seq) => vec![seq],
                None => {
                    let why = format!("the group has no event of the id '{id:.64}' that waits for an answer");
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
                answered.taken.into_iter().for_each(|seq| state.forget(&self.keys, seq));
            }
            Say::InProgress => refusals = machine.in_progress(number, &seqs, now).refused,
            Say::Term => each(&seqs, &mut |seq| machine.term(number, seq, &reason, now)),
            Say::Nack { delays } => {
                let delay = match delays[..] {
                    [] => Delay::Doubling,
                    [one] => Delay::One(one),
                    _ => Delay::List(delays.clone()),
                };
                each(&seqs, &mut |seq| machine.nack(number, seq, &reason, &delay, now).map(drop));
            }
        }
        if matches!(word.say, Say::Nack { .. } | Say::Term) {
            let taken = seqs.iter().copied().filter(|seq| refusals.iter().all(|(refused, _)| refused != seq));
            state.count_answered(What::Nacked, taken, now);
        }
        if word.confirm && refusals.len() < seqs.len() {
            let mut out = Vec::new();
            word_ack(&mut out, kind, &self.name, seqs.len() - refusals.len());
            let member = state.members.iter().find(|member| member.number == number);
            match member.map(|member| member.outlet.clone()) {
                // Nothing of it is written: it can be said again and again, and waits for nobody.
                Some(outlet) if word.say == Say::InProgress => outlet.hold(number, out.into(), 0),
                Some(outlet) => state.answers.push((outlet, number, out)),
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
