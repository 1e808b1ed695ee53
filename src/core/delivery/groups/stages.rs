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
use crate::core::delivery::outlet::Outlet;
use crate::core::refusal::Refusal;
use crate::core::wire::group::{ended, refused};
use crate::core::wire::manage::report;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

impl Handle {
    /// Tells the session with this queue once the group is durable; false when it is no more.
    pub fn tell_created(self: &Arc<Self>, outlet: &Arc<Outlet>) -> bool {
        let mut state = self.lock();
        match state.stage {
            Stage::Gone | Stage::Removed => return false,
            Stage::Durable => self.say_created(&state, outlet, false),
            Stage::Searching | Stage::Begun | Stage::Writing => state.creators.push(outlet.clone()),
        }
        true
    }

    fn say_created(&self, state: &State, outlet: &Outlet, is_created: bool) {
        let mut out = Vec::new();
        let said =
            json!({"group": self.name, "cursor": state.machine.counts().cursor, "created": is_created});
        report(&mut out, "group_create", &said);
        outlet.hold(0, out.into(), 0);
    }

    /// Goes on behind `cursor`: what is held is forgotten. The session with this queue is told once that is durable.
    pub fn seek(self: &Arc<Self>, cursor: u64, outlet: &Arc<Outlet>) {
        let mut state = self.lock();
        state.machine.seek(cursor);
        (state.lines, state.ids, state.bytes) = (HashMap::new(), HashMap::new(), 0);
        state.expires = false;
        state.letters.clear();
        state.seek = Some(cursor + 1);
        let mut out = Vec::new();
        report(&mut out, "group_seek", &json!({"group": self.name, "cursor": cursor}));
        state.answers.push((outlet.clone(), 0, out));
        self.stir(&mut state);
    }

    /// Where the task is to go on, if somewhere else.
    pub fn take_seek(&self) -> Option<u64> {
        self.lock().seek.take()
    }

    /// The group is no more: members are told; the session with this queue is, once that is durable.
    pub fn remove(self: &Arc<Self>, outlet: &Arc<Outlet>) {
        let mut state = self.lock();
        state.stage = Stage::Removed;
        let why = Refusal::new("group-removed", "the group was removed");
        for member in std::mem::take(&mut state.members) {
            let mut out = Vec::new();
            ended(&mut out, &self.name, &why);
            member.outlet.hold(0, out.into(), 0);
        }
        for outlet in std::mem::take(&mut state.creators) {
            let mut out = Vec::new();
            refused(&mut out, "group_create", &self.name, None, &why);
            outlet.hold(0, out.into(), 0);
        }
        let mut out = Vec::new();
        report(&mut out, "group_remove", &json!({"group": self.name}));
        state.answers.push((outlet.clone(), 0, out));
        self.list(&mut state);
        self.wake.notify_one();
    }

    /// It is no more.
    pub fn is_gone(&self) -> bool {
        matches!(self.lock().stage, Stage::Gone | Stage::Removed)
    }

    /// How it stands, `head` being the newest event and `first` the oldest.
    pub fn report(&self, first: u64, head: u64) -> Value {
        let state = self.lock();
        let counts = state.machine.counts();
        let cursor = counts.cursor;
        let stalled = state.stalled(first);
        json!({
            "group": self.name, "spec": self.spec, "cursor": cursor, "lag": head.saturating_sub(cursor),
            "members": state.members.len(), "held": counts.in_flight,
            "waiting": counts.waiting + counts.behind, "delayed": counts.delayed, "dead": counts.dead,
            "stalled": stalled, "expired_undelivered": state.expired,
        })
    }

    /// It begins behind `cursor`.
    pub fn begin(self: &Arc<Self>, cursor: u64) {
        let mut state = self.lock();
        // It may have been removed meanwhile, or moved.
        if state.stage != Stage::Searching {
            return;
        }
        if state.seek.is_none() {
            state.machine.seek(cursor);
        }
        state.stage = Stage::Begun;
        self.stir(&mut state);
    }

    /// It cannot begin: its members are told, and it is gone.
    pub fn fail(&self, why: &Refusal) {
        let mut state = self.lock();
        state.stage = Stage::Gone;
        for outlet in std::mem::take(&mut state.creators) {
            let mut out = Vec::new();
            refused(&mut out, "group_create", &self.name, None, why);
            outlet.hold(0, out.into(), 0);
        }
        for member in std::mem::take(&mut state.members) {
            let mut out = Vec::new();
            refused(&mut out, "subscribe", &self.name, None, why);
            // The session may have let go of its membership by now, and is told all the same.
            member.outlet.hold(0, out.into(), 0);
        }
    }

    /// What was taken to be written is durable.
    pub fn written(self: &Arc<Self>) {
        let mut state = self.lock();
        if state.stage == Stage::Writing {
            state.stage = Stage::Durable;
            for outlet in std::mem::take(&mut state.creators) {
                self.say_created(&state, &outlet, true);
            }
            self.welcome(&mut state, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::intake::Came;
    use super::*;
    use crate::core::delivery::outlet::Room;
    use crate::core::topic::Pattern;
    use crate::core::wire::group::{Spec, delivery_head};
    use crate::core::wire::subscribe::event;

    fn new() -> (Arc<Handle>, Arc<Outlet>) {
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
        let shared = (Arc::default(), Arc::default(), tokio::time::Instant::now());
        (
            Handle::new("g".into(), spec, &patterns, None, shared),
            Arc::new(Outlet::new(9, 999, Room::new(999))),
        )
    }

    fn came(frames: Vec<u8>) -> Came {
        Came { frames: frames.into(), expired: 0, expires: false, through: 95 }
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
        assert!(group.tell_created(&outlet));
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
        group.seek(10, &outlet);
        let mut frames = Vec::new();
        event(&mut frames, &delivery_head("g", 1, 5), b"{\"seq\":90,\"id\":\"x\"}\n");
        group.take(&came(frames.clone()));
        group.pass(99);
        assert_eq!((group.cursor(), group.report(1, 95)["waiting"].as_u64()), (10, Some(0)));
        assert_eq!(group.take_seek(), Some(11));
        group.take(&came(frames));
        assert_eq!(group.report(1, 95)["waiting"].as_u64(), Some(1));
    }
}
