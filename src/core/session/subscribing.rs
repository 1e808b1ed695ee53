//! The subscribing side of a session: wishes to subscriptions, deliveries to the output.
//!
//! Always holds: the ack of a subscription stands before its first event, and nothing of it behind the ack of its end;
//! what waits for the peer is bounded (invariant 6); when this is dropped, the router knows the session no longer.
//! Owner: the session.

use super::Session;
use crate::core::delivery::Delivery;
use crate::core::delivery::catch_up::Step;
use crate::core::delivery::interest::Interest;
use crate::core::delivery::outlet::{Item, Outlet};
use crate::core::delivery::subscription::{Source, Subscriptions};
use crate::core::end::End;
use crate::core::identity::may_subscribe;
use crate::core::journal::read::Mark;
use crate::core::limits::{Limits, OUTPUT_BYTES};
use crate::core::refusal::Refusal;
use crate::core::signals::Signal;
use crate::core::standing::Standing;
use crate::core::wire::frame::error_ack;
use crate::core::wire::subscribe::{Subscribe, subscribe_ack, unsubscribe_ack};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The journal being read for some subscriptions.
struct Reading {
    ids: Vec<u32>,
    step: Pin<Box<dyn Future<Output = io::Result<Step>> + Send>>,
}

/// What a session is sent.
pub(super) struct Subscribing {
    delivery: Arc<Delivery>,
    pub outlet: Arc<Outlet>,
    table: Subscriptions,
    reading: Option<Reading>,
    /// Where the last reading ended.
    mark: Option<Mark>,
    /// Back-pressure was signalled, and not its end.
    pressed: bool,
    /// Something found no room at this seq, and its subscription is not seen to have left yet.
    overflow: Option<u64>,
    /// What status shows.
    standing: Arc<Standing>,
}

impl Subscribing {
    pub fn new(delivery: Arc<Delivery>, standing: Arc<Standing>, limits: &Limits) -> Self {
        Subscribing {
            delivery,
            outlet: Arc::new(Outlet::new(limits.queue_events, limits.queue_bytes)),
            table: Subscriptions::default(),
            reading: None,
            mark: None,
            pressed: false,
            overflow: None,
            standing,
        }
    }

    /// Ends all subscriptions; what was not handed to the output is not sent.
    pub fn clear(&mut self) {
        self.reading = None;
        for subscription in std::mem::take(&mut self.table).iter() {
            self.delivery.router.leave(&subscription.interest, &self.outlet, subscription.id);
        }
    }

    pub fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// What the reading under way, which there is, comes to.
    pub async fn step(&mut self) -> Option<io::Result<Step>> {
        match &mut self.reading {
            Some(reading) => Some(reading.step.as_mut().await),
            None => None,
        }
    }

    /// Begins to read the journal for those that are behind.
    pub fn read_on(&mut self) {
        if self.reading.is_none()
            && let Some(plan) = self.table.plan()
        {
            let ids = plan.wanted.iter().map(|(id, ..)| *id).collect();
            let step = Box::pin(self.delivery.read(plan, self.mark.take()));
            self.reading = Some(Reading { ids, step });
        }
    }

    /// Says what waits and how far it is behind.
    fn show(&self) {
        self.standing.queued(self.outlet.events() as u64);
        self.standing.behind(self.table.behind().into_iter().chain(self.overflow).min());
    }

    /// Makes a subscription live, if nothing was handed out that it was not sent.
    fn join(&mut self, id: u32) {
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
    pub(super) async fn subscribe(&mut self, wish: Subscribe) {
        match self.begin(wish).await {
            Ok(Some(id)) => {
                self.subscribing.join(id);
                self.show_topics();
            }
            Ok(None) => {}
            Err(refusal) => self.output.own(|out| error_ack(out, "subscribe", &refusal, None)),
        }
    }

    /// Acks a new subscription and returns its number; an old one is acked again.
    async fn begin(&mut self, wish: Subscribe) -> Result<Option<u32>, Refusal> {
        let vm = &self.presence.vm().name;
        for pattern in &wish.patterns {
            may_subscribe(self.role, vm, pattern)?;
        }
        let interest = Interest::new(wish.sub, &wish.patterns);
        let table = &mut self.subscribing.table;
        if let Some(next) = table.check(&interest, self.bus.limits.subscriptions)? {
            self.output.own(|out| subscribe_ack(out, interest.sub(), next, None));
            return Ok(None);
        }
        let beginning = self.subscribing.delivery.begin(&wish.from).await?;
        self.output.own(|out| subscribe_ack(out, interest.sub(), beginning.next, beginning.gap));
        Ok(Some(self.subscribing.table.add(Arc::new(interest), beginning.next)))
    }

    pub(super) fn unsubscribe(&mut self, sub: &str) {
        let subscribing = &mut self.subscribing;
        let Some(gone) = subscribing.table.remove(sub) else {
            let refusal = Refusal::new("unknown-sub", format!("the session has no subscription '{sub:.64}'"));
            return self.output.own(|out| error_ack(out, "unsubscribe", &refusal, None));
        };
        subscribing.delivery.router.leave(&gone.interest, &subscribing.outlet, gone.id);
        // What is being read may be of this one as well.
        subscribing.reading = None;
        self.release();
        self.output.own(|out| unsubscribe_ack(out, sub));
        self.show_topics();
    }

    /// Moves what waits into the output, as far as it has room.
    pub(super) fn deliver(&mut self) {
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
        self.release();
        if events > 0 {
            self.bus.recorder.counters.delivered_live.fetch_add(events, Relaxed);
        }
        self.subscribing.show();
    }

    /// Takes in what was read from the journal.
    pub(super) fn take_step(&mut self, step: io::Result<Step>) -> Result<(), End> {
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
        subscribing.mark = step.mark;
        for id in reading.ids {
            let Some(subscription) = subscribing.table.get_mut(id) else { continue };
            subscription.next = subscription.next.max(step.next);
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
