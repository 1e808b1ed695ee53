//! How a group begins, goes on elsewhere, and ends; and what is said of it.
//!
//! ```text
//! Searching ─begin─▶ Begun ─writer─▶ Writing ─written─▶ Durable ─remove─▶ Removed ─writer─▶ Gone
//!     └──────fail─────────────────────────────────────────────────────────────────────────▶ Gone
//! ```
//!
//! Always holds: nothing is delivered before the journal has the group; whoever asked for a change is told when it is
//! durable. Owner: [`super::Groups`].

use super::handle::{Handle, Stage, State};
use super::lag::{Lag, Place};
use crate::core::clock::wall_ms;
use crate::core::delivery::outlet::Outlet;
use crate::core::refusal::Refusal;
use crate::core::wire::group::{Spec, ended, refused};
use crate::core::wire::manage::report;
use serde_json::{Value, json};
use std::sync::Arc;

impl Handle {
    /// Tells the session with this queue, which wished for `wish`, once the group is durable; false when it is no more.
    pub fn tell_created(self: &Arc<Self>, wish: &Spec, outlet: &Arc<Outlet>) -> bool {
        let mut state = self.lock();
        let differs = self.spec.differs(wish);
        match state.stage {
            Stage::Gone | Stage::Removed => return false,
            Stage::Durable => self.say_created(&state, outlet, false, &differs),
            Stage::Searching | Stage::Begun | Stage::Writing => {
                state.creators.push((outlet.clone(), differs))
            }
        }
        true
    }

    pub(super) fn say_created(&self, state: &State, outlet: &Outlet, is_created: bool, differs: &[&str]) {
        let mut out = Vec::new();
        let mut said =
            json!({"group": self.name, "cursor": state.machine.counts().cursor, "created": is_created});
        if !differs.is_empty() {
            said["differs"] = json!(differs);
        }
        report(&mut out, "group_create", &said);
        outlet.hold(0, out.into(), 0);
    }

    /// It is looked for where it is to go on, by one at a time.
    ///
    /// # Errors
    /// `seek-under-way`.
    pub fn begin_seek(&self) -> Result<(), Refusal> {
        let mut state = self.lock();
        if std::mem::replace(&mut state.is_seeking, true) {
            let why = format!("another session seeks the group '{}' already", self.name);
            return Err(Refusal::new("seek-under-way", why));
        }
        Ok(())
    }

    /// That is known, or cannot be: what is held is forgotten, and it goes on there. The session with this queue is told,
    /// once that is durable.
    pub fn end_seek(self: &Arc<Self>, found: Result<u64, Refusal>, outlet: &Arc<Outlet>) {
        let mut state = self.lock();
        state.is_seeking = false;
        let found = match state.stage {
            Stage::Removed | Stage::Gone => {
                Err(Refusal::new("unknown-group", "the group was removed meanwhile"))
            }
            _ => found,
        };
        let cursor = match found {
            Ok(cursor) => cursor,
            Err(why) => {
                let mut out = Vec::new();
                refused(&mut out, "group_seek", &self.name, None, &why);
                outlet.hold(0, out.into(), 0);
                return;
            }
        };
        state.machine.seek(cursor);
        state.clear();
        state.life = wall_ms().max(state.life + 1);
        state.is_life_written = false;
        // One that was looked for where it begins, begins here.
        if state.stage == Stage::Searching {
            state.stage = Stage::Begun;
        }
        state.seek = Some(cursor + 1);
        let mut out = Vec::new();
        report(&mut out, "group_seek", &json!({"group": self.name, "cursor": cursor}));
        state.answers.push((outlet.awaits(), 0, out));
        self.stir(&mut state);
    }

    /// Where the task is to go on, if somewhere else.
    pub fn take_seek(&self) -> Option<u64> {
        self.lock().seek.take()
    }

    /// The group is no more: members are told; the session with this queue is, once that is durable.
    pub fn remove(self: &Arc<Self>, outlet: &Arc<Outlet>) {
        let mut state = self.lock();
        // The journal knows nothing of one that has not begun.
        state.stage = if state.stage == Stage::Gone { Stage::Gone } else { Stage::Removed };
        self.shared.counts.iter().for_each(|counts| counts.free(&self.name));
        state.clear();
        state.machine.seek(0);
        let why = Refusal::new("group-removed", "the group was removed");
        for member in std::mem::take(&mut state.members).into_values() {
            let mut out = Vec::new();
            match member.differs {
                Some(_) => refused(&mut out, "subscribe", &self.name, None, &why),
                None => ended(&mut out, &self.name, &why),
            }
            member.outlet.hold(0, out.into(), 0);
        }
        for (outlet, _) in std::mem::take(&mut state.creators) {
            let mut out = Vec::new();
            refused(&mut out, "group_create", &self.name, None, &why);
            outlet.hold(0, out.into(), 0);
        }
        let mut out = Vec::new();
        report(&mut out, "group_remove", &json!({"group": self.name}));
        state.answers.push((outlet.awaits(), 0, out));
        self.list(&mut state);
        self.rouse(&mut state);
    }

    /// It is no more.
    pub fn is_gone(&self) -> bool {
        matches!(self.lock().stage, Stage::Gone | Stage::Removed)
    }

    /// How it stands.
    pub fn report(&self, place: Place) -> Value {
        let state = self.lock();
        let counts = state.machine.counts();
        let Lag { events, at_least } = state.lag(place);
        let stalled = state.stalled(place.first);
        let mut report = json!({
            "group": self.name, "spec": self.spec, "cursor": counts.cursor, "lag": events,
            "members": state.members.len(), "held": counts.in_flight,
            "waiting": counts.waiting + counts.behind, "delayed": counts.delayed, "dead": counts.dead,
            "stalled": stalled, "expired_undelivered": state.expired,
        });
        if at_least {
            report["lag_at_least"] = true.into();
        }
        report
    }

    /// It begins behind `cursor`.
    pub fn begin(self: &Arc<Self>, cursor: u64) {
        let mut state = self.lock();
        // It may have been removed meanwhile, or moved.
        if state.stage != Stage::Searching {
            return;
        }
        state.machine.seek(cursor);
        state.stage = Stage::Begun;
        self.stir(&mut state);
    }

    /// It cannot begin: its members are told, and it is gone; false when it has begun elsewhere.
    pub fn fail(&self, why: &Refusal) -> bool {
        let mut state = self.lock();
        if state.stage != Stage::Searching {
            return false;
        }
        state.stage = Stage::Gone;
        self.shared.counts.iter().for_each(|counts| counts.free(&self.name));
        for (outlet, _) in std::mem::take(&mut state.creators) {
            let mut out = Vec::new();
            refused(&mut out, "group_create", &self.name, None, why);
            outlet.hold(0, out.into(), 0);
        }
        for member in std::mem::take(&mut state.members).into_values() {
            let mut out = Vec::new();
            refused(&mut out, "subscribe", &self.name, None, why);
            // The session may have let go of its membership by now, and is told all the same.
            member.outlet.hold(0, out.into(), 0);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::handle::Shared;
    use super::super::intake::Came;
    use super::*;
    use crate::core::delivery::outlet::Room;
    use crate::core::topic::Pattern;
    use crate::core::wire::group::{Spec, delivery_head};
    use crate::core::wire::subscribe::event;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    fn new() -> (Arc<Handle>, Arc<Outlet>) {
        let (handle, outlet, _) = to_run();
        (handle, outlet)
    }

    /// A group that is being looked for, a queue, and the groups that are to have a task.
    fn to_run() -> (Arc<Handle>, Arc<Outlet>, UnboundedReceiver<Arc<Handle>>) {
        let (runs, to_run) = unbounded_channel();
        let spec = Spec {
            topics: vec!["t".into()],
            headers: Default::default(),
            tags: Vec::new(),
            batch: 1,
            ack_timeout_ms: 1,
            max_attempts: 5,
            ordered_by_key: false,
        };
        let patterns = [Pattern::parse("t").unwrap()];
        let shared = Arc::new(Shared {
            dirty: Arc::default(),
            retention: Arc::default(),
            held: Arc::default(),
            ends: Arc::default(),
            runs,
            counts: None,
            begun: crate::core::awake::Instant::now(),
            ages: Box::new(Default::default),
        });
        (
            Handle::begins("g".into(), spec, &patterns, "v", 1, shared),
            Arc::new(Outlet::new(9, 999, Room::new(999))),
            to_run,
        )
    }

    fn came(frames: Vec<u8>) -> Came {
        Came { frames: frames.into(), expired: 0, expires: false, through: 95, is_live: false }
    }

    #[tokio::test]
    async fn a_snapshot_in_the_call_that_begins_a_group_has_it() {
        let (group, _) = new();
        assert!(group.snapshot().is_empty() && group.unwritten().records.is_empty());
        group.begin(7);
        assert!(group.snapshot().is_empty());
        assert!(!group.unwritten().records.is_empty());
        assert!(
            !group.snapshot().is_empty(),
            "its beginning stands before the snapshot, which makes that void"
        );
        group.written();
        assert!(!group.snapshot().is_empty());
    }

    #[tokio::test]
    async fn a_group_that_was_removed_begins_no_more() {
        let (group, outlet) = new();
        assert!(group.tell_created(&group.spec, &outlet));
        group.remove(&outlet);
        assert!(!outlet.is_empty(), "whoever waited for it is told");
        group.begin(7);
        assert!(group.is_gone());
    }

    #[tokio::test]
    async fn what_was_on_its_way_when_a_group_goes_elsewhere_is_not_taken() {
        let (group, outlet) = new();
        group.begin(0);
        group.unwritten();
        group.written();
        group.end_seek(Ok(10), &outlet);
        let (mut frames, place) = (Vec::new(), Place { first: 1, head: 95, handed: 95 });
        let head = delivery_head("g", 1, 5);
        event(&mut frames, &head, b"{\"seq\":90,\"id\":\"x\"}\n");
        group.take(&came(frames.clone()), &head, &outlet);
        group.pass(99);
        assert_eq!((group.cursor(), group.report(place)["waiting"].as_u64()), (10, Some(0)));
        assert_eq!(group.take_seek(), Some(11));
        group.take(&came(frames), &head, &outlet);
        assert_eq!(group.report(place)["waiting"].as_u64(), Some(1));
    }
    #[tokio::test]
    async fn a_group_has_a_task_once_it_knows_where_it_begins_and_somebody_is_there() {
        let (group, outlet, mut to_run) = to_run();
        group.join(1, outlet.clone(), &group.spec, (1, false));
        group.join(2, outlet, &group.spec, (1, false));
        group.leave(2);
        assert!(to_run.try_recv().is_err(), "it would read the journal from its begin");
        group.begin(7);
        assert!(to_run.try_recv().is_ok() && !group.rests());
        group.unwritten();
        group.written();
        group.leave(1);
        assert!(to_run.try_recv().is_err() && group.rests());
        let outlet = Arc::new(Outlet::new(9, 999, Room::new(999)));
        group.join(3, outlet, &group.spec, (1, false));
        assert!(to_run.try_recv().is_ok() && !group.rests());
    }
}
