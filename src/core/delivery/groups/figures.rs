//! How groups stand, for whoever looks at all of them: status and metrics.
//!
//! Always holds: a look costs each group the same, however much it has. Owner: [`super::Groups`].

use super::Groups;
use super::handle::{Handle, State};
use super::lag::{Lag, Place};
use crate::core::delivery::group::figures::Stall;
use crate::core::journal::Without;
use crate::core::status::VmTable;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock, Weak};

/// Says who had not had all of some events.
pub type AsksWithout = Box<dyn Fn(u64, u64) -> Without + Send>;

/// What retention asks when it removes events, and where the groups are to be put: they are there only after the journal.
pub fn asks_without(vms: Arc<VmTable>) -> (Arc<OnceLock<Weak<Groups>>>, AsksWithout) {
    let owners = Arc::new(OnceLock::<Weak<Groups>>::new());
    let groups = owners.clone();
    let asks = move |first, through| {
        let groups = groups.get().and_then(Weak::upgrade);
        let groups = groups.map_or_else(Vec::new, |groups| groups.without(first, through));
        Without { groups, sessions: vms.behind(through) }
    };
    (owners, Box::new(asks))
}

/// A group in figures.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Figures {
    /// Its name.
    pub name: String,
    /// Events that it has yet to do.
    pub lag: u64,
    /// There may be more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lag_at_least: bool,
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
    fn figures(&self, place: Place) -> Figures {
        let state = self.lock();
        let counts = state.machine.counts();
        let Lag { events, at_least } = state.lag(place);
        Figures {
            name: self.name.to_string(),
            lag: events,
            lag_at_least: at_least,
            members: state.members.len() as u64,
            in_flight: counts.in_flight as u64,
            dead: counts.dead as u64,
            expired_undelivered: state.expired,
            stalled: state.stalled(place.first).map(str::to_owned),
        }
    }
}

impl Groups {
    /// All of them, in the order of their names.
    pub fn figures(&self) -> Vec<Figures> {
        let place = self.place();
        self.all().iter().map(|handle| handle.figures(place)).collect()
    }

    /// The groups that had not done all of these events, and how many of them each lacked at the most.
    pub fn without(&self, first: u64, through: u64) -> Vec<(String, u64)> {
        let lacks = |handle: &Arc<Handle>| {
            let done = handle.cursor().max(first.saturating_sub(1));
            (done < through).then(|| (handle.name.to_string(), through - done))
        };
        self.all().iter().filter_map(lacks).collect()
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
