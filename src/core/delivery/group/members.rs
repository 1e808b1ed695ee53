//! Who takes part in a group, what each member holds, and whose turn it is.
//!
//! Always holds: a member holds no more than it said it can, but for one event, which always fits a member that holds
//! nothing; those that have room take turns, one event each; whoever has none is not looked at until it gives
//! something back. Pure. Owner: `group.rs`.

use super::deliveries::Deliveries;
use super::ranges::Ranges;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::time::Duration;

/// A member of a group; whoever owns the group says which.
pub type MemberId = u64;

#[derive(Debug, Default)]
struct Member {
    max_in_flight: usize,
    max_bytes: usize,
    held: Ranges,
    /// How many these are.
    events: usize,
    bytes: usize,
    /// What timed out here and waits for its next member.
    late: BTreeSet<u64>,
    /// It has a turn.
    in_turn: bool,
    /// It is given nothing.
    paused: bool,
    /// It says which events it begins.
    is_telling: bool,
    /// The order in which what it holds was delivered.
    deliveries: Deliveries,
}

impl Member {
    /// Returns the delivery that it is taken to have begun, if it does not say it itself.
    fn begun(&self) -> Option<u64> {
        self.deliveries.begun().filter(|_| !self.is_telling)
    }

    fn fits(&self, bytes: usize) -> bool {
        let some = self.bytes.saturating_add(bytes) <= self.max_bytes;
        self.events == 0 || (some && self.events < self.max_in_flight)
    }
}

/// All members.
#[derive(Debug, Default)]
pub struct Members {
    all: BTreeMap<MemberId, Member>,
    /// Whoever may have room, the next one first.
    turns: VecDeque<MemberId>,
    in_flight: usize,
    places: usize,
}

impl Members {
    /// Adds a member, or says anew what it can hold: one event at least.
    pub fn join(&mut self, id: MemberId, max_in_flight: u32, max_bytes: usize) {
        let member = self.all.entry(id).or_default();
        self.places = self.places.saturating_sub(member.max_in_flight);
        member.max_in_flight = max_in_flight.max(1) as usize;
        member.max_bytes = max_bytes;
        self.places = self.places.saturating_add(member.max_in_flight);
        if !member.in_turn && !member.paused {
            member.in_turn = true;
            self.turns.push_back(id);
        }
    }

    /// A member says which events it begins.
    pub fn tells(&mut self, id: MemberId) {
        self.all.entry(id).or_default().is_telling = true;
    }

    /// Whether it does.
    pub fn is_telling(&self, id: MemberId) -> bool {
        self.all.get(&id).is_some_and(|member| member.is_telling)
    }

    /// Takes a member out. What it held, in order, and the delivery that it is taken to have begun.
    pub fn leave(&mut self, id: MemberId) -> Option<(Vec<u64>, Option<u64>)> {
        let member = self.all.remove(&id)?;
        self.turns.retain(|other| *other != id);
        self.places = self.places.saturating_sub(member.max_in_flight);
        self.in_flight = self.in_flight.saturating_sub(member.events);
        Some((member.held.through(u64::MAX).collect(), member.begun()))
    }

    /// Gives `seq` to the member whose turn it is and whom it fits, and numbers its delivery; `None` when there is none.
    pub fn give(&mut self, seq: u64, bytes: usize) -> Option<(MemberId, u64)> {
        while let Some(id) = self.turns.pop_front() {
            let Some(member) = self.all.get_mut(&id) else { continue };
            member.in_turn = false;
            if member.paused || !member.fits(bytes) {
                continue;
            }
            member.held.insert(seq, seq);
            member.events += 1;
            member.bytes = member.bytes.saturating_add(bytes);
            self.in_flight += 1;
            if member.events < member.max_in_flight {
                member.in_turn = true;
                self.turns.push_back(id);
            }
            return Some((id, member.deliveries.add()));
        }
        None
    }

    /// A member is given nothing until it is said to go on.
    pub fn pause(&mut self, id: MemberId) {
        if let Some(member) = self.all.get_mut(&id)
            && !std::mem::replace(&mut member.paused, true)
        {
            self.turns.retain(|other| *other != id);
            member.in_turn = false;
        }
    }

    /// It goes on.
    pub fn go_on(&mut self, id: MemberId) {
        if let Some(member) = self.all.get_mut(&id)
            && std::mem::take(&mut member.paused)
        {
            member.in_turn = true;
            self.turns.push_back(id);
        }
    }

    /// Whether the member is taken to have begun this delivery.
    pub fn has_begun(&self, id: MemberId, number: u64) -> bool {
        self.all.get(&id).is_some_and(|member| member.begun() == Some(number))
    }

    /// What the member is taken to have begun timed out.
    pub fn spare(&mut self, id: MemberId) {
        self.all.get_mut(&id).into_iter().for_each(|member| member.deliveries.spare());
    }

    /// The member said something: the time of its deliveries from this one on begins anew, unless it says itself what
    /// it begins.
    pub fn restart(&mut self, id: MemberId, from: u64, now: Duration) {
        if let Some(member) = self.all.get_mut(&id)
            && !member.is_telling
        {
            member.deliveries.restart(from, now);
        }
    }

    /// Returns when the time of a delivery was restarted last, if it was.
    pub fn restarted(&self, id: MemberId, number: u64) -> Option<Duration> {
        self.all.get(&id)?.deliveries.restarted(number)
    }

    /// A member does not hold `seq` any more, which was this delivery.
    pub fn release(&mut self, id: MemberId, (seq, number): (u64, u64), bytes: usize) {
        let Some(member) = self.all.get_mut(&id) else { return };
        if member.held.remove(seq) {
            member.deliveries.remove(number);
            member.events = member.events.saturating_sub(1);
            member.bytes = member.bytes.saturating_sub(bytes);
            self.in_flight = self.in_flight.saturating_sub(1);
            if !member.in_turn && !member.paused {
                member.in_turn = true;
                self.turns.push_back(id);
            }
        }
    }

    /// `seq` timed out at this member and waits.
    pub fn late(&mut self, id: MemberId, seq: u64) {
        if let Some(member) = self.all.get_mut(&id) {
            member.late.insert(seq);
        }
    }

    /// It waits no longer.
    pub fn not_late(&mut self, id: MemberId, seq: u64) {
        if let Some(member) = self.all.get_mut(&id) {
            member.late.remove(&seq);
        }
    }

    /// What a member holds or has had until its time was over, through `seq`, in order.
    pub fn held_through(&self, id: MemberId, seq: u64) -> Vec<u64> {
        let Some(member) = self.all.get(&id) else { return Vec::new() };
        let mut all: Vec<u64> = member.held.through(seq).collect();
        if !member.late.is_empty() {
            all.extend(member.late.range(..=seq));
            all.sort_unstable();
        }
        all
    }

    /// Nobody holds anything any more.
    pub fn release_all(&mut self) {
        self.turns.clear();
        for (id, member) in &mut self.all {
            (member.held, member.events) = (Ranges::default(), 0);
            member.late.clear();
            member.deliveries.clear();
            member.bytes = 0;
            member.in_turn = !member.paused;
            if member.in_turn {
                self.turns.push_back(*id);
            }
        }
        self.in_flight = 0;
    }

    /// Somebody may have room.
    pub fn have_room(&self) -> bool {
        !self.turns.is_empty()
    }

    /// How many members have a turn.
    pub fn in_turn(&self) -> usize {
        self.turns.len()
    }

    /// Events that are held.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Events that could be held besides, if bytes were no matter.
    pub fn places(&self) -> usize {
        self.places.saturating_sub(self.in_flight)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn give(members: &mut Members, seq: u64, bytes: usize) -> Option<MemberId> {
        members.give(seq, bytes).map(|(member, _)| member)
    }

    #[test]
    fn they_take_turns_as_long_as_they_have_room() {
        let mut members = Members::default();
        members.join(1, 2, 1000);
        members.join(2, 100, 50);
        members.join(3, 100, 1000);
        let given: Vec<_> = (1..=6).map(|seq| give(&mut members, seq, 20)).collect();
        assert_eq!(given, [Some(1), Some(2), Some(3), Some(1), Some(2), Some(3)]);
        // The first has two, the second 40 bytes of 50.
        let given: Vec<_> = (7..=9).map(|seq| give(&mut members, seq, 20)).collect();
        assert_eq!(given, [Some(3), Some(3), Some(3)]);
        members.release(2, (2, 0), 20);
        members.release(1, (1, 0), 20);
        let given: Vec<_> = (10..=13).map(|seq| give(&mut members, seq, 20)).collect();
        assert_eq!(given, [Some(3), Some(2), Some(1), Some(3)]);
        assert_eq!((members.in_flight(), members.places()), (11, 191));
    }

    #[test]
    fn one_event_always_fits_whoever_holds_nothing() {
        let mut members = Members::default();
        members.join(1, 0, 0);
        assert_eq!(give(&mut members, 1, 60_000), Some(1));
        assert_eq!(give(&mut members, 2, 0), None);
        members.release(1, (1, 0), 60_000);
        members.release(1, (1, 0), 60_000);
        assert_eq!((members.in_flight(), members.give(2, 1)), (0, Some((1, 1))));
        assert_eq!(members.leave(1), Some((vec![2], Some(1))));
        assert_eq!((members.leave(1), members.give(3, 1), members.places()), (None, None, 0));
        members.join(1, 1, 1);
        members.leave(1);
        members.join(1, 1, 1);
        assert_eq!(members.in_turn(), 1, "whoever comes back has one turn, not two");
    }
}
