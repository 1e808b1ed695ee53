//! How groups stand, for whoever looks at all of them: status and metrics.
//!
//! Always holds: a look costs each group the same, however much it has. Owner: [`super::Groups`].

use super::Groups;
use super::handle::{Handle, State};
use crate::core::delivery::group::figures::Stall;
use serde::{Deserialize, Serialize};

/// A group in figures.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Figures {
    /// Its name.
    pub name: String,
    /// Seqs between what is done and the newest event.
    pub lag: u64,
    /// How many members.
    pub members: u64,
    /// Events that they hold.
    pub in_flight: u64,
    /// Events whose dead letter is not durable yet.
    pub dead: u64,
    /// Events that expired before the group had them, since the broker started.
    pub expired_undelivered: u64,
    /// Why nothing is delivered, if so.
    pub stalled: Option<String>,
}

impl State {
    /// Why nothing is delivered, `first` being the oldest event.
    pub(super) fn stalled(&self, first: u64) -> Option<&'static str> {
        match self.machine.stalled() {
            _ if self.machine.counts().cursor + 1 < first => Some("behind retention"),
            Some(Stall::NoMembers) => Some("no members"),
            Some(Stall::InFlightFull) => Some("in-flight full"),
            Some(Stall::WaitingFull) => Some("waiting full"),
            None if !self.lines.have_room() => Some("waiting full"),
            None => None,
        }
    }
}

impl Handle {
    fn figures(&self, first: u64, head: u64) -> Figures {
        let state = self.lock();
        let counts = state.machine.counts();
        Figures {
            name: self.name.to_string(),
            lag: head.saturating_sub(counts.cursor),
            members: state.members.len() as u64,
            in_flight: counts.in_flight as u64,
            dead: counts.dead as u64,
            expired_undelivered: state.expired,
            stalled: state.stalled(first).map(str::to_owned),
        }
    }
}

impl Groups {
    /// All of them, in the order of their names.
    pub fn figures(&self) -> Vec<Figures> {
        let map = self.journal.map();
        let (first, head) = (map.first_seq(), map.durable_seq());
        self.all().iter().map(|handle| handle.figures(first, head)).collect()
    }

    /// How many there are, and those that are furthest behind, `most` of them, the worst first.
    pub fn worst(&self, most: usize) -> (u64, Vec<Figures>) {
        let mut all = self.figures();
        let count = all.len() as u64;
        all.sort_by(|a, b| b.lag.cmp(&a.lag).then_with(|| a.name.cmp(&b.name)));
        all.truncate(most);
        (count, all)
    }
}
