//! The subscribing side of a session: wishes to subscriptions, deliveries to the output.
//!
//! Always holds: the ack of a subscription stands before its first event, and nothing of it behind the ack of its end;
//! what waits for the peer is bounded (invariant 6); when this is dropped, the router knows the session no longer.
//! Owner: the session.

use super::Session;
use super::keeping::Found;
use crate::core::delivery::catch_up::Step;
use crate::core::delivery::interest::Interest;
use crate::core::delivery::outlet::{Item, Outlet};
use crate::core::delivery::subscription::{Source, Subscriptions};
use crate::core::delivery::{Beginning, Delivery};
use crate::core::end::End;
use crate::core::journal::read::Mark;
use crate::core::latest::Latest;
use crate::core::limits::{Limits, OUTPUT_BYTES};
use crate::core::refusal::Refusal;
use crate::core::signals::Signal;
use crate::core::standing::Standing;
use crate::core::topic::Pattern;
use crate::core::wire::subscribe::{From, Subscribe, refused_ack, state_end, subscribe_ack, unsubscribe_ack};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

/// The journal being read for some subscriptions.
struct Reading {
    ids: Vec<u32>,
    step: Pin<Box<dyn Future<Output = io::Result<Step>> + Send>>,
}

/// A subscription that is asked for, while it is looked for where it begins.
struct Lookup {
    interest: Interest,
    patterns: Vec<Pattern>,
    beginning: Pin<Box<dyn Future<Output = Result<Found, Refusal>> + Send>>,
}

/// Something came from the disk.
pub(super) enum Done {
    Read(io::Result<Step>),
    Found(Result<Found, Refusal>),
}

/// What a session is sent.
pub(super) struct Subscribing {
    delivery: Arc<Delivery>,
    pub outlet: Arc<Outlet>,
    pub(super) table: Subscriptions,
    reading: Option<Reading>,
    lookup: Option<Lookup>,
    /// The topics are not those that status shows.
    pub(super) changed: bool,
    /// Where the last reading ended.
    mark: Option<Mark>,
    /// The last reading was of a state: it is the journal's turn.
    is_states_turn_over: bool,
    /// Back-pressure was signalled, and not its end.
    pressed: bool,
    /// How often keys had been lost when it was last looked at.
    pub(super) losses: u64,
    /// Something found no room at this seq, and its subscription is not seen to have left yet.
    overflow: Option<u64>,
    /// What status shows.
    standing: Arc<Standing>,
}

impl Subscribing {
    pub fn new(delivery: Arc<Delivery>, standing: Arc<Standing>, limits: &Limits) -> Self {
        Subscribing {
            outlet: delivery.outlet(limits),
            delivery,
            table: Subscriptions::default(),
            reading: None,
            lookup: None,
            changed: false,
            mark: None,
            is_states_turn_over: false,
            pressed: false,
            losses: 0,
            overflow: None,
            standing,
        }
    }

    /// Ends all subscriptions; what was not handed to the output is not sent.
    pub fn clear(&mut self) {
        (self.reading, self.lookup, self.overflow) = (None, None, None);
        for subscription in std::mem::take(&mut self.table).iter() {
            self.delivery.router.leave(&subscription.interest, &self.outlet, subscription.id);
        }
        self.outlet.clear();
        self.standing.topics(Vec::new());
        self.show();
    }

    /// Ends the search for where this subscription begins; whether there was one.
    pub fn drop_lookup(&mut self, sub: &str) -> bool {
        self.lookup.take_if(|lookup| lookup.interest.sub() == sub).is_some()
    }

    /// Whether it is being looked for where a subscription begins: frames behind it wait.
    pub fn is_looking_up(&self) -> bool {
        self.lookup.is_some()
    }

    /// Resolves when a reading or a lookup that is under way is done.
    pub async fn done(&mut self) -> Done {
        poll_fn(|cx| {
            if let Some(lookup) = &mut self.lookup
                && let Poll::Ready(found) = lookup.beginning.as_mut().poll(cx)
            {
                return Poll::Ready(Done::Found(found));
            }
            match &mut self.reading {
                Some(reading) => reading.step.as_mut().poll(cx).map(Done::Read),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Begins to read the journal for those that are behind, or the state for one that begins with it, in turns.
    pub fn read_on(&mut self, latest: &Arc<Latest>) {
        if self.reading.is_some() {
            return;
        }
        let (plan, state) = (self.table.plan(), self.table.state());
        self.is_states_turn_over = match (plan, state) {
            (plan, Some(state)) if plan.is_none() || !self.is_states_turn_over => {
                let ids = vec![state.id];
                self.reading = Some(Reading { ids, step: Box::pin(latest.clone().step(state)) });
                true
            }
            (Some(plan), _) => {
                let ids = plan.wanted.iter().map(|wanted| wanted.id).collect();
                let step = Box::pin(self.delivery.read(plan, self.mark.take()));
                self.reading = Some(Reading { ids, step });
                false
            }
            _ => false,
        };
    }

    /// The name and the patterns of each subscription, also of the one that is being looked up.
    pub fn interests(&self) -> Vec<(Box<str>, Vec<Pattern>)> {
        let own = self.table.iter().map(|subscription| &*subscription.interest);
        let all = own.chain(self.lookup.iter().map(|lookup| &lookup.interest));
        let typed =
            |interest: &Interest| interest.topics().iter().filter_map(|t| Pattern::parse(t).ok()).collect();
        all.map(|interest| (interest.sub().into(), typed(interest))).collect()
    }

    /// How many patterns are subscribed.
    pub fn patterns(&self) -> usize {
        self.table.iter().map(|subscription| subscription.interest.patterns().len()).sum()
    }

    /// Says what waits and how far it is behind.
    fn show(&self) {
        self.standing.queued(self.outlet.events() as u64);
        self.standing.behind(self.table.behind().into_iter().chain(self.overflow).min());
    }

    /// Makes a subscription live, if nothing was handed out that it was not sent.
    pub(super) fn join(&mut self, id: u32) {
        if let Some(subscription) = self.table.get_mut(id)
            && self.delivery.router.join(&subscription.interest, &self.outlet, id, subscription.next).is_ok()
        {
            subscription.source = Source::Live;
        }
    }
}

impl Drop for Subscribing {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Session<'_> {
    /// Acks a subscription and begins it, or looks for where it begins.
    pub(super) fn subscribe(&mut self, wish: Subscribe) {
        let sub = wish.sub.clone();
        if let Err(refusal) = self.try_subscribe(wish) {
            self.output.own(|out| refused_ack(out, "subscribe", Some(&sub), &refusal));
        }
    }

    fn try_subscribe(&mut self, wish: Subscribe) -> Result<(), Refusal> {
        self.check_rights(&wish.patterns)?;
        let interest = Interest::new(wish.sub, &wish.patterns);
        // A membership is one of the session's patterns.
        let most = self.bus.limits.subscriptions.saturating_sub(self.grouping.len());
        let subscribing = &mut self.subscribing;
        if let Some(next) = subscribing.table.check(&interest, most)? {
            self.output.own(|out| subscribe_ack(out, interest.sub(), next, None));
            return Ok(());
        }
        match (subscribing.delivery.begin(&wish.from)?, wish.from) {
            (Some(beginning), _) => self.begin(interest, beginning),
            (None, from @ (From::State { .. } | From::Compacted(_))) => {
                let begun = self.bus.latest.clone().begin_state(wish.patterns.clone(), from);
                let beginning = Box::pin(async { begun.await.map(Found::InState) });
                subscribing.lookup = Some(Lookup { interest, patterns: wish.patterns, beginning });
            }
            (None, from) => {
                let begun = subscribing.delivery.look_up(from);
                let beginning = Box::pin(async { begun.await.map(Found::InJournal) });
                subscribing.lookup = Some(Lookup { interest, patterns: wish.patterns, beginning });
            }
        }
        Ok(())
    }

    fn begin(&mut self, interest: Interest, beginning: Beginning) {
        self.output.own(|out| subscribe_ack(out, interest.sub(), beginning.next, beginning.gap));
        let id = self.subscribing.table.add(Arc::new(interest), beginning.next);
        self.subscribing.join(id);
        self.subscribing.changed = true;
    }

    /// Takes in what came from the disk.
    pub(super) fn take_done(&mut self, done: Done) -> Result<(), End> {
        match done {
            Done::Read(step) => return self.take_step(step),
            Done::Found(found) => {
                let Some(Lookup { interest, patterns, .. }) = self.subscribing.lookup.take() else {
                    return Ok(());
                };
                match found {
                    Ok(Found::InState(begun)) => self.begin_state(interest, &patterns, begun),
                    Ok(Found::InJournal(beginning)) => self.begin(interest, beginning),
                    Err(refusal) => {
                        self.output.own(|out| refused_ack(out, "subscribe", Some(interest.sub()), &refusal));
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, sub: &str) {
        if self.drop_subscription(sub) {
            return self.output.own(|out| unsubscribe_ack(out, sub));
        }
        let refusal = Refusal::new("unknown-sub", format!("the session has no subscription '{sub:.64}'"));
        self.output.own(|out| refused_ack(out, "unsubscribe", Some(sub), &refusal));
    }

    /// Ends a subscription; whether there was one.
    pub(super) fn drop_subscription(&mut self, sub: &str) -> bool {
        let subscribing = &mut self.subscribing;
        let Some(gone) = subscribing.table.remove(sub) else { return false };
        subscribing.delivery.router.leave(&gone.interest, &subscribing.outlet, gone.id);
        // What is being read is not to be sent when it is of this one as well.
        if subscribing.reading.as_ref().is_some_and(|reading| reading.ids.contains(&gone.id)) {
            subscribing.reading = None;
        }
        self.release();
        self.subscribing.changed = true;
        true
    }

    /// Moves what waits into the output, as far as it has room.
    pub(super) fn deliver(&mut self) {
        self.end_expired();
        if std::mem::take(&mut self.subscribing.changed) {
            self.show_topics();
        }
        if self.subscribing.table.is_empty() && self.subscribing.outlet.is_empty() {
            return;
        }
        if let Some(seq) = self.subscribing.outlet.take_overflow() {
            self.subscribing.overflow = Some(seq);
            self.press(seq);
        }
        let mut events = 0;
        while self.output.len() < OUTPUT_BYTES
            && let Some(item) = self.subscribing.outlet.pop()
        {
            let table = &mut self.subscribing.table;
            match item {
                Item::Chunk(id, chunk) => {
                    if let Some(subscription) = table.get_mut(id) {
                        subscription.next = chunk.to + 1;
                        self.output.share(chunk.frames);
                        events += chunk.events as u64;
                    }
                }
                Item::Held(number, frames, delivered) => {
                    if self.grouping.has(number) {
                        self.output.share(frames);
                        events += delivered as u64;
                    }
                }
                Item::Left(id, from) => {
                    self.subscribing.overflow = None;
                    if let Some(subscription) = table.get_mut(id) {
                        subscription.source = Source::Behind { pressed: true };
                        subscription.next = subscription.next.max(from);
                        self.press(from);
                    }
                }
            }
        }
        if self.subscribing.outlet.take_relief() {
            self.grouping.go_on();
        }
        self.release();
        if events > 0 {
            self.bus.recorder.counters.delivered_live.fetch_add(events, Relaxed);
        }
        self.subscribing.show();
    }

    fn take_step(&mut self, step: io::Result<Step>) -> Result<(), End> {
        self.end_expired();
        let Some(reading) = self.subscribing.reading.take() else { return Ok(()) };
        let step = match step {
            Ok(step) => step,
            Err(error) => {
                tracing::error!(%error, session = self.id, "journal: cannot be read for a subscriber");
                return Err(End::ReadFailed);
            }
        };
        let counters = &self.bus.recorder.counters;
        counters.delivered_from_journal.fetch_add(step.events, Relaxed);
        counters.gaps.fetch_add(step.gaps, Relaxed);
        if !step.frames.is_empty() {
            self.output.share(step.frames.into());
        }
        let subscribing = &mut self.subscribing;
        // A state has no place in the journal.
        subscribing.mark = step.mark.or(subscribing.mark.take());
        for id in reading.ids {
            let Some(subscription) = subscribing.table.get_mut(id) else { continue };
            match (step.hole, subscription.source) {
                (Some((from, to)), _) if subscription.keeps.is_some() && subscription.next <= to => {
                    subscription.next = subscription.next.max(from);
                    subscription.source = Source::State { through: to, ended: true };
                    continue;
                }
                (_, Source::State { .. }) if step.is_expired => {
                    let sub: Box<str> = subscription.interest.sub().into();
                    self.expire(&sub);
                    return Ok(());
                }
                _ => subscription.next = subscription.next.max(step.next),
            }
            if let Source::State { through, .. } = subscription.source {
                if !step.is_end {
                    continue;
                }
                subscription.next = through + 1;
                subscription.source = Source::Behind { pressed: false };
                self.output.own(|out| state_end(out, subscription.interest.sub(), through));
            }
            if step.is_end {
                subscribing.join(id);
            }
        }
        self.release();
        self.subscribing.show();
        Ok(())
    }

    /// Something found no room at `seq`.
    fn press(&mut self, seq: u64) {
        if !self.subscribing.pressed {
            self.subscribing.pressed = true;
            let detail = format_args!("the queue is full; from seq {seq} on the journal is read");
            self.signals.say(Signal::BackPressureEntered, detail);
        }
    }

    /// Says so when nothing is behind any more for want of room.
    fn release(&mut self) {
        let subscribing = &mut self.subscribing;
        if subscribing.pressed && subscribing.overflow.is_none() && !subscribing.table.is_pressed() {
            subscribing.pressed = false;
            self.signals.say(Signal::BackPressureLeft, "events come as they are committed again");
        }
    }

    fn show_topics(&self) {
        let subscribing = &self.subscribing;
        subscribing.standing.topics(subscribing.table.topics());
        subscribing.show();
    }
}
