//! Looks after groups that have no members, so that their cursors come along and what they missed is known; and counts on
//! how far all of them are behind.
//!
//! Always holds: a group that has members, or was moved meanwhile, is left alone; what only passed by is not worth a
//! record: a snapshot has it, and the end of the broker. Owner: [`super::Groups`].

use super::Groups;
use super::handle::{Handle, Stage};
use super::passing::{Passed, Passing};
use super::task::say_expired;
use crate::core::delivery::when_free;
use crate::core::journal::read::{Mark, Read};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// So often.
const EVERY: Duration = Duration::from_secs(30);
/// So much is read before others have a turn, in bytes: little where it may be enough.
const STEPS: [usize; 2] = [4 * 1024, 1024 * 1024];

/// A group, and where its cursor was.
type Absent = (Arc<Handle>, u64);

impl Handle {
    /// Its cursor, and where there may be something to pass, if it has no members; the oldest event is `first`, the newest
    /// one `head`.
    fn passes_from(&self, first: u64, head: u64) -> Option<(u64, u64)> {
        let state = self.lock();
        let cursor = state.machine.counts().cursor;
        if state.is_running || state.stage != Stage::Durable || cursor >= head {
            return None;
        }
        match state.awaited {
            Some(awaited) if awaited.seq >= first && awaited.seq > cursor => {
                let may_expire = awaited.expires || !self.shared.retention.is_empty();
                may_expire.then_some((cursor, awaited.seq))
            }
            _ => Some((cursor, cursor + 1)),
        }
    }

    /// Passes what was found from `cursor` on, unless it is elsewhere by now.
    fn pass_by(self: &Arc<Self>, cursor: u64, passed: &Passed) {
        let mut state = self.lock();
        if state.is_running || state.stage != Stage::Durable || state.machine.counts().cursor != cursor {
            return;
        }
        state.machine.pass(passed.through);
        state.awaited = passed.awaited;
        state.count_passed(passed.expired > 0);
        if passed.expired > 0 {
            state.expire(passed.expired);
            state.wants_cursor = true;
            self.list(&mut state);
        }
        drop(state);
        say_expired(self);
    }
}

/// For as long as the broker runs.
pub(super) async fn run(groups: Arc<Groups>) {
    let mut counted = 0;
    loop {
        if let Err(error) = turn(&groups).await {
            tracing::error!(%error, "journal: cannot be read for groups without members");
        }
        match groups.count_all(counted).await {
            Ok(next) => counted = next,
            Err(error) => {
                tracing::error!(%error, "journal: cannot be read to count how far groups are behind")
            }
        }
        sleep(EVERY).await;
    }
}

async fn turn(groups: &Groups) -> io::Result<()> {
    let map = groups.journal.map();
    let (first, head) = (map.first_seq(), map.durable_seq());
    let mut absent = Vec::new();
    for handle in groups.all() {
        if let Some((cursor, next)) = handle.passes_from(first, head) {
            absent.push((next, (handle, cursor)));
        }
    }
    absent.sort_unstable_by_key(|(next, _)| *next);
    let passing = Passing::new(absent.iter().map(|(next, (handle, _))| (handle.interest(), *next)).collect());
    let absent: Arc<[Absent]> = absent.into_iter().map(|(_, absent)| absent).collect();
    let mut at = At { passing, next: 0, mark: None, is_far: false };
    while !at.is_end(head) {
        at = step(groups, at, absent.clone()).await?;
    }
    let through = at.next.saturating_sub(1);
    at.passing.end(through).for_each(|(n, passed)| absent[n].0.pass_by(absent[n].1, &passed));
    Ok(())
}

/// How far a turn is.
struct At {
    passing: Passing,
    next: u64,
    mark: Option<Mark>,
    /// The last step was not enough.
    is_far: bool,
}

impl At {
    fn is_end(&self, head: u64) -> bool {
        self.passing.from(self.next).is_none_or(|next| next > head)
    }
}

/// Reads on.
fn step(groups: &Groups, mut at: At, absent: Arc<[Absent]>) -> impl Future<Output = io::Result<At>> + use<> {
    let (journal, retention) = (groups.journal.clone(), groups.delivery.retention.clone());
    when_free(&groups.delivery.reads, move || {
        let Some(from) = at.passing.from(at.next) else { return Ok(at) };
        at.is_far &= from == at.next;
        let mut reader = journal.reader(from);
        if let Some(mark) = at.mark.take().filter(|_| from == at.next) {
            reader.resume(mark)?;
        }
        let (ages, bytes) = (journal.ages(), STEPS[usize::from(at.is_far)]);
        let passing = &mut at.passing;
        let mut each = |event: crate::core::event::Event<'_>| {
            let over = |n: usize, passed: Passed| absent[n].0.pass_by(absent[n].1, &passed);
            passing.event(&event, || retention.of(event.topic()), &ages, over);
        };
        if let Read::Gap { from, to } = reader.read(bytes, &mut each)? {
            at.passing.gap(from, to);
        }
        (at.next, at.mark, at.is_far) = (reader.next_seq(), reader.mark(), true);
        Ok(at)
    })
}
