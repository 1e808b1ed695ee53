//! A session's part in consumer groups.
//!
//! Always holds: a session is a member of a group once at the most; when this is dropped it is a member of none, and what
//! it held goes to others; nothing of a group comes behind the ack of the membership's end. Owner: the session.

use super::Session;
use crate::core::delivery::groups::Membership;
use crate::core::refusal::Refusal;
use crate::core::signals::Signal;
use crate::core::topic::Pattern;
use crate::core::wire::group::{Join, Word, ended, leave_ack, refused};
use crate::core::wire::manage::{Manage, report};
use serde_json::Value;

/// The groups that a session is a member of.
#[derive(Default)]
pub(super) struct Grouping {
    list: Vec<Membership>,
}

impl Grouping {
    /// How many.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether the membership of this number goes on.
    pub fn has(&self, number: u64) -> bool {
        // Answers have the number 0.
        number == 0 || self.list.iter().any(|membership| membership.number() == number)
    }

    /// Ends all of them.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// The session takes out of its queue again.
    pub fn go_on(&self) {
        self.list.iter().for_each(Membership::go_on);
    }

    fn find(&mut self, group: &str) -> Option<usize> {
        // A group that could not begin, or was removed, has no members: they were told.
        self.list.retain(|membership| !membership.is_gone());
        self.list.iter().position(|membership| membership.group() == group)
    }
}

impl Session<'_> {
    /// Becomes a member of a group; the answer comes when it is durable that there is one.
    pub(super) fn join(&mut self, wish: Join) {
        let group = wish.group.clone();
        if let Err(refusal) = self.try_join(wish) {
            self.output.own(|out| refused(out, "subscribe", &group, None, &refusal));
        }
    }

    fn try_join(&mut self, wish: Join) -> Result<(), Refusal> {
        if self.grouping.find(&wish.group).is_some() {
            let why = format!("the session is a member of '{}' already; unsubscribe first", wish.group);
            return Err(Refusal::new("sub-exists", why));
        }
        if self.grouping.len() + self.subscribing.patterns() >= self.bus.limits.subscriptions {
            let most = self.bus.limits.subscriptions;
            return Err(Refusal::new("too-many-subscriptions", format!("a session has at most {most}")));
        }
        self.check_rights(&wish.patterns)?;
        let outlet = &self.subscribing.outlet;
        let membership =
            self.bus.groups.join(wish, (outlet, &self.vm.name), |patterns| self.check_rights(patterns))?;
        self.grouping.list.push(membership);
        Ok(())
    }

    /// Takes what a member says of what it holds.
    pub(super) fn say(&mut self, word: Word) {
        let (kind, group) = (word.say.kind(), word.group.clone());
        let refusals = match self.grouping.find(&group) {
            Some(at) => self.grouping.list[at].say(word),
            None => {
                let why = format!("the session is no member of '{group}'; subscribe with it first");
                vec![(None, Refusal::new("not-a-member", why))]
            }
        };
        for (seq, refusal) in refusals {
            self.output.own(|out| refused(out, kind, &group, seq, &refusal));
        }
    }

    /// Answers what is asked of groups, or sees to it that it is answered.
    pub(super) fn manage(&mut self, manage: Manage) {
        let (kind, group) = (manage.kind(), manage.group().to_owned());
        match self.try_manage(manage) {
            Ok(Some(said)) => self.output.own(|out| report(out, kind, &said)),
            Ok(None) => {}
            Err(refusal) => self.output.own(|out| refused(out, kind, &group, None, &refusal)),
        }
    }

    fn try_manage(&mut self, manage: Manage) -> Result<Option<Value>, Refusal> {
        let (groups, outlet) = (&self.bus.groups, &self.subscribing.outlet);
        let may = |patterns: &[Pattern]| self.check_rights(patterns);
        match manage {
            Manage::List(after) => return Ok(Some(groups.list(after.as_deref(), may))),
            Manage::Show(group) => {
                let said = groups.show(&group, may)?;
                self.asking.add(async move {
                    let mut out = Vec::new();
                    match said.await {
                        Ok(said) => report(&mut out, "group", &said),
                        Err(refusal) => refused(&mut out, "group", &group, None, &refusal),
                    }
                    out
                });
            }
            Manage::Create(wish) => groups.create(*wish, (outlet, &self.vm.name), may)?,
            Manage::Seek(group, from) => groups.seek(&group, from, outlet, may)?,
            Manage::Remove(group) => groups.remove(&group, outlet, may)?,
        }
        Ok(None)
    }

    /// Ends a membership; or sees to it that it is handed nothing more.
    pub(super) fn quit(&mut self, group: &str, drain: bool) {
        match self.grouping.find(group) {
            Some(at) => {
                match drain {
                    true => self.grouping.list[at].drain(),
                    false => drop(self.grouping.list.swap_remove(at)),
                }
                self.output.own(|out| leave_ack(out, group, drain));
            }
            None => {
                let refusal =
                    Refusal::new("unknown-sub", format!("the session is no member of '{group:.64}'"));
                self.output.own(|out| refused(out, "unsubscribe", group, None, &refusal));
            }
        }
    }

    /// Ends memberships that a new policy does not allow.
    pub(super) fn check_memberships(&mut self) {
        let all = std::mem::take(&mut self.grouping.list);
        for membership in all {
            match self.check_rights(membership.patterns()) {
                Ok(()) => self.grouping.list.push(membership),
                Err(refusal) => {
                    let group = membership.group();
                    self.signals
                        .say(Signal::Unsubscribed, format_args!("group '{group}': {}", refusal.reason));
                    self.output.own(|out| ended(out, group, &refusal));
                }
            }
        }
    }
}
