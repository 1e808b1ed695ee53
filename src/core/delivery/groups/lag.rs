//! How many events a group has yet to do: those of its topics that pass its filter, have not expired and are not done.
//!
//! ```text
//! done … [taken in, not done] looked … [counted] through … not known … head
//!         the machine has them          `Counted`
//! ```
//!
//! Always holds: a lag is exact, or said to be a lower bound; nothing is read before somebody asks, or the pass of
//! `absent.rs` comes to the group. Events are counted as they are taken in: by the same reads and the same look at each
//! frame. Owner: [`super::Groups`].

use super::handle::{Handle, Stage, State};
use super::taken::{Found, Taken, event_of};
use super::{Groups, unknown};
use crate::core::awake::Instant;
use crate::core::delivery::catch_up::Step;
use crate::core::delivery::interest::Interest;
use crate::core::delivery::subscription::{Plan, Wanted};
use crate::core::event::Event;
use crate::core::journal::Ages;
use crate::core::journal::read::Mark;
use crate::core::limits::{GROUP_LAG_COUNT, GROUPS_COUNT_BYTES};
use crate::core::refusal::Refusal;
use crate::core::retention::Expiry;
use crate::core::topic::Pattern;
use serde_json::Value;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// So many bytes of frames are made at a time.
const STEP_BYTES: usize = 1024 * 1024;
/// A count of events that rules of retention may have expired is made anew after so long, for whoever asks.
const FRESH: Duration = Duration::from_secs(30);
/// The pass makes one anew, if some of it may have expired, after so long: it reads all of it again.
const STALE: Duration = Duration::from_secs(10 * 60);
/// A step of the pass costs so many bytes, even if it finds little.
const STEP_COST: usize = 4096;
/// The router is behind the journal for less than a millisecond, unless it is busy.
const HANDS_OUT: Duration = Duration::from_millis(1);

/// How a group stands, once that is known.
type Shown = Pin<Box<dyn Future<Output = Result<Value, Refusal>> + Send>>;

/// Where the journal and the router are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The oldest event.
    pub first: u64,
    /// The newest one.
    pub head: u64,
    /// The newest one that the router has handed out.
    pub handed: u64,
}

/// A lag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lag {
    pub events: u64,
    /// There may be more.
    pub at_least: bool,
}

/// What was counted in the journal, ahead of what the group has looked at.
#[derive(Debug)]
pub(super) struct Counted {
    /// Everything through this seq was counted.
    through: u64,
    /// Events that are not done, of those that the group has not looked at.
    pending: u64,
    /// The oldest event when it began.
    first: u64,
    since: Instant,
    /// What ends the use of that one of them which expires first.
    expiry: Option<Expiry>,
    /// Rules of retention may expire some of them before that.
    has_rules: bool,
}

/// Who has events counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// Somebody asked.
    Asker,
    /// The pass over all groups.
    Pass,
}

impl Counted {
    /// Some of these events have expired, or may have.
    fn is_old(&self, who: For, ages: &dyn Fn() -> Ages) -> bool {
        let (age, is_over) =
            (self.since.elapsed(), self.expiry.is_some_and(|expiry| expiry.is_over(&ages())));
        match who {
            For::Asker => is_over || (self.has_rules && age > FRESH),
            For::Pass => (is_over || self.has_rules) && age > STALE,
        }
    }
}

/// A step of a count: where it begins, and of which life of the group it is.
#[derive(Clone, Copy, Debug)]
struct Count {
    from: u64,
    life: u64,
}

impl State {
    /// What of the count still holds; the oldest event is `first`.
    fn counted(&self, first: u64) -> Option<&Counted> {
        let looked = self.machine.counts().looked;
        // What retention took since then is no lag.
        self.counted.as_deref().filter(|counted| first <= counted.first.max(looked.saturating_add(1)))
    }

    /// How far it is behind.
    pub(super) fn lag(&self, place: Place) -> Lag {
        let counts = self.machine.counts();
        let taken = (counts.in_flight + counts.waiting + counts.behind + counts.delayed + counts.dead) as u64;
        // Nothing waits between the router and the group.
        let is_idle = self.live.as_ref().is_some_and(|outlet| outlet.is_idle());
        if is_idle && self.seek.is_none() && place.handed >= place.head {
            return Lag { events: taken, at_least: false };
        }
        let (pending, through) =
            self.counted(place.first).map_or((0, 0), |counted| (counted.pending, counted.through));
        let is_known = !matches!(self.stage, Stage::Searching) && counts.looked.max(through) >= place.head;
        Lag { events: taken + pending, at_least: !is_known }
    }

    /// The group took in `seq`, which is not done.
    pub(super) fn count_taken(&mut self, seq: u64) {
        if let Some(counted) = &mut self.counted
            && seq <= counted.through
        {
            counted.pending = counted.pending.saturating_sub(1);
        }
    }

    /// The group has looked at more; `lost`: at events that it was not given, counted or not.
    pub(super) fn count_passed(&mut self, lost: bool) {
        if let Some(counted) = &self.counted
            && (lost || self.machine.counts().looked >= counted.through)
        {
            self.counted = None;
        }
    }
}

impl Handle {
    /// Where to count on up to the newest event; none when the lag is known, or cannot be.
    fn counts_from(&self, place: Place, who: For) -> Option<Count> {
        let mut state = self.lock();
        if state.counted.as_deref().is_some_and(|counted| counted.is_old(who, &*self.shared.ages)) {
            state.counted = None;
        }
        if matches!(state.stage, Stage::Searching | Stage::Removed | Stage::Gone)
            || !state.lag(place).at_least
        {
            return None;
        }
        let looked = state.machine.counts().looked;
        let through = state.counted(place.first).map_or(0, |counted| counted.through);
        Some(Count { from: looked.max(through) + 1, life: state.life })
    }

    /// Adds what a step came to, unless the group went elsewhere meanwhile.
    fn count_on(&self, count: Count, interest: &Interest, step: &Step, first: u64) {
        let mut seqs = Vec::new();
        let has_rules = !self.shared.retention.is_empty();
        super::taken::each(&step.frames, (interest.head(), &self.name), &self.spec, &self.keys, |found| {
            match found {
                Found::Event(Taken { place, bytes, .. }) => {
                    let end = (place.at + place.len) as usize;
                    let may_expire = step.expires || has_rules;
                    let line = step.frames.get(end - bytes..end).filter(|_| may_expire);
                    let event = line.and_then(event_of);
                    let bound = |event: &Event<'_>| self.shared.retention.of(event.topic());
                    seqs.push((place.seq, event.and_then(|event| Expiry::of(&event, bound(&event)))));
                }
                Found::Other | Found::Gap(..) => {}
            }
        });
        let mut state = self.lock();
        let looked = state.machine.counts().looked;
        let kept = state.counted(first).is_some();
        let at = if kept { state.counted.as_deref().map_or(0, |counted| counted.through) } else { 0 };
        let (at, through) = (looked.max(at), step.next.saturating_sub(1));
        if state.life != count.life || count.from > at + 1 || through <= at {
            return;
        }
        let done = state.machine.saved().done();
        let new = seqs.into_iter().filter(|(seq, _)| *seq > at && !done.contains(*seq));
        let (more, expiry) =
            new.fold((0, None), |(count, first), (_, expiry)| (count + 1, Expiry::first(first, expiry)));
        if !kept {
            let since = Instant::now();
            let counted = Counted { through, pending: 0, first, since, expiry: None, has_rules };
            state.counted = Some(Box::new(counted));
        }
        if let Some(counted) = &mut state.counted {
            counted.through = through;
            counted.pending += more;
            counted.expiry = Expiry::first(counted.expiry, expiry);
        }
    }

    /// The router has not handed out yet what the journal has, and that is all that is not known.
    fn awaits_router(&self, place: Place) -> bool {
        place.handed < place.head && self.lock().live.as_ref().is_some_and(|outlet| outlet.is_idle())
    }
}

impl Groups {
    /// How a group stands: its lag is counted for [`GROUP_LAG_COUNT`] at the most.
    ///
    /// # Errors
    /// `unknown-group`, and what `may` says of its topics.
    pub fn show(
        self: &Arc<Self>,
        group: &str,
        may: impl Fn(&[Pattern]) -> Result<(), Refusal>,
    ) -> Result<Shown, Refusal> {
        let (groups, handle) = (self.clone(), self.find(&self.lock(), group, may)?);
        Ok(Box::pin(async move {
            // What has expired by now is no lag, and makes room.
            handle.sweep();
            handle.wake.notify_one();
            let place = groups.count(&handle, Instant::now() + GROUP_LAG_COUNT).await;
            if handle.is_gone() {
                return Err(unknown(&handle.name));
            }
            Ok(handle.report(place))
        }))
    }

    /// Where the journal is, and then the router.
    pub(super) fn place(&self) -> Place {
        let map = self.journal.map();
        let (first, head) = (map.first_seq(), map.durable_seq());
        Place { first, head, handed: self.delivery.router.next_seq().saturating_sub(1) }
    }

    /// Counts on until the lag is known as of this place, which is that of now, or until then.
    pub(super) async fn count(&self, handle: &Handle, until: Instant) -> Place {
        let mut place = self.place();
        let head = place.head;
        let (mut mark, mut interest) = (None, None);
        while Instant::now() < until {
            if handle.awaits_router(place) {
                sleep(HANDS_OUT).await;
            } else {
                let Some(count) = handle.counts_from(place, For::Asker) else { break };
                let interest = interest.get_or_insert_with(|| Arc::new(handle.interest()));
                match self.count_step(handle, count, interest, (place.first, mark.take())).await {
                    Ok(step) => mark = step.mark,
                    Err(error) => {
                        tracing::error!(%error, group = %handle.name, "journal: cannot be read to count a group's lag");
                        break;
                    }
                }
            }
            place = Place { head, ..self.place() };
        }
        place
    }

    /// Counts on for all groups, as much as a pass may read; the one of the number `at` is the first. The number of the next
    /// one.
    pub(super) async fn count_all(&self, at: usize) -> io::Result<usize> {
        let all = self.all();
        let place = self.place();
        let place = Place { head: place.head.min(place.handed), ..place };
        let mut left = GROUPS_COUNT_BYTES;
        for n in (0..all.len()).map(|n| (at + n) % all.len()) {
            let (mut mark, mut interest) = (None, None);
            while let Some(count) = all[n].counts_from(place, For::Pass) {
                let interest = interest.get_or_insert_with(|| Arc::new(all[n].interest()));
                let step = self.count_step(&all[n], count, interest, (place.first, mark)).await?;
                mark = step.mark;
                left = left.saturating_sub(step.looked_at.max(STEP_COST));
                if left == 0 {
                    return Ok(n);
                }
            }
        }
        Ok(at)
    }

    async fn count_step(
        &self,
        handle: &Handle,
        count: Count,
        interest: &Arc<Interest>,
        (first, mark): (u64, Option<Mark>),
    ) -> io::Result<Step> {
        let wanted = Wanted { id: 0, next: count.from, interest: interest.clone(), keeps: false };
        let plan = Plan { at: count.from, wanted: vec![wanted], bytes: STEP_BYTES };
        let step = self.delivery.read(plan, mark).await?;
        handle.count_on(count, interest, &step, first);
        Ok(Step { frames: Vec::new(), ..step })
    }
}
