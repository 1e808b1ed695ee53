//! The events of one group, from the router as they are committed or from the journal when it is behind.
//!
//! ```text
//!           read to the head, joined
//! behind ───────────────────────────▶ live
//!    ▲                                  │
//!    └──────────────────────────────────┘
//!            no room in its queue
//! ```
//!
//! Always holds: what it hands out is whole and in order: each event that the group's topics match once, or the gap that
//! it is lost in; nothing is lost when a wait for more is given up. Owner: the group's task.

use super::super::Delivery;
use super::super::catch_up::Step;
use super::super::interest::{Chunk, Interest};
use super::super::outlet::{Item, Outlet};
use super::super::subscription::{Plan, Wanted};
use crate::core::journal::read::Mark;
use bytes::Bytes;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The group's number in its own queue.
const ID: u32 = 1;

/// Frames of events, and of gaps.
pub(super) struct Came {
    pub frames: Bytes,
    /// So many more have expired and are left out.
    pub expired: u64,
    /// Some of them have a `ttl_ms`.
    pub expires: bool,
    /// Everything up to this seq was looked at.
    pub through: u64,
    /// What follows comes out of the queue.
    pub is_live: bool,
}

pub(super) struct Intake {
    delivery: Arc<Delivery>,
    outlet: Arc<Outlet>,
    interest: Arc<Interest>,
    next: u64,
    is_live: bool,
    mark: Option<Mark>,
    /// When the read that runs, or the last one, began.
    since: Instant,
    /// How long a read took that was not looked at yet.
    pub read: Option<Duration>,
    reading: Option<Reading>,
    /// The bytes that all groups have, or are about to have.
    held: Arc<AtomicUsize>,
}

/// A read that stands in line or runs, counted among what groups have: many begin before the first of them ends.
struct Reading {
    step: Pin<Box<dyn Future<Output = io::Result<Step>> + Send>>,
    bytes: usize,
    held: Arc<AtomicUsize>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Relaxed);
    }
}

impl Intake {
    /// What `interest` wants from the seq `next` on.
    pub fn new(
        delivery: Arc<Delivery>,
        outlet: Arc<Outlet>,
        interest: Arc<Interest>,
        held: Arc<AtomicUsize>,
        next: u64,
    ) -> Self {
        Intake {
            delivery,
            outlet,
            interest,
            next,
            is_live: false,
            mark: None,
            reading: None,
            since: Instant::now(),
            read: None,
            held,
        }
    }

    /// Waits for more; of the journal about so many bytes are read at a time.
    ///
    /// # Errors
    /// The journal cannot be read; it may be asked again.
    pub async fn next(&mut self, bytes: usize) -> io::Result<Came> {
        loop {
            if self.is_live {
                match self.outlet.pop() {
                    Some(Item::Chunk(_, chunk)) => {
                        self.next = chunk.to + 1;
                        let Chunk { frames, expires, .. } = chunk;
                        // They may be kept for long, and have room for more behind them.
                        let frames = Bytes::copy_from_slice(&frames);
                        return Ok(Came { frames, expired: 0, expires, through: chunk.to, is_live: true });
                    }
                    Some(Item::Left(_, from)) => {
                        self.is_live = false;
                        self.next = self.next.max(from);
                        let (frames, through) = (Bytes::new(), self.next - 1);
                        return Ok(Came { frames, expired: 0, expires: false, through, is_live: false });
                    }
                    Some(Item::Held(..)) => {}
                    None => self.outlet.ready().await,
                }
                continue;
            }
            let reading = match &mut self.reading {
                Some(reading) => reading,
                None => {
                    let wanted = vec![Wanted {
                        id: ID,
                        next: self.next,
                        interest: self.interest.clone(),
                        keeps: false,
                    }];
                    let plan = Plan { at: self.next, wanted, bytes };
                    self.since = Instant::now();
                    self.held.fetch_add(bytes, Relaxed);
                    let step = Box::pin(self.delivery.read(plan, self.mark.take()));
                    self.reading.insert(Reading { step, bytes, held: self.held.clone() })
                }
            };
            let step = (&mut reading.step).await;
            self.reading = None;
            self.read = Some(self.since.elapsed());
            let step = step?;
            self.mark = step.mark;
            self.next = self.next.max(step.next);
            if step.is_end {
                let joined = self.delivery.router.join(&self.interest, &self.outlet, ID, self.next);
                self.is_live = joined.is_ok();
            }
            let Step { mut frames, expired, expires, .. } = step;
            // As above.
            frames.shrink_to_fit();
            let (frames, through, is_live) = (frames.into(), self.next - 1, self.is_live);
            return Ok(Came { frames, expired, expires, through, is_live });
        }
    }

    /// The queue that the router puts events in.
    pub fn outlet(&self) -> &Arc<Outlet> {
        &self.outlet
    }

    /// A read has begun, for which there was room.
    pub fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Up to which seq there is nothing more for the group, when nothing waits: events of other topics.
    pub fn passed(&self) -> Option<u64> {
        // What the router has handed out by now is in the queue, or was taken out of it.
        let next = self.delivery.router.next_seq();
        (self.is_live && self.outlet.is_empty()).then(|| next - 1)
    }

    /// Goes on somewhere else.
    pub fn seek(&mut self, next: u64) {
        self.delivery.router.leave(&self.interest, &self.outlet, ID);
        self.outlet.clear();
        (self.next, self.is_live, self.mark, self.reading) = (next, false, None, None);
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.delivery.router.leave(&self.interest, &self.outlet, ID);
    }
}
