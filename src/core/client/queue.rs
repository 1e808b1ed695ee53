//! What was delivered and is not taken yet, between the connection's task and a consumer.
//!
//! Always holds: it has no more than the broker lets a member hold; behind its end there is nothing; who waits for the
//! end of all answers can see how many are left. Owner: [`super::member`].

use super::error::Error;
use super::event::Event;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, OwnedSemaphorePermit};

/// A delivery.
#[derive(Debug)]
pub(super) struct Arrived {
    pub event: Event,
    pub attempt: u32,
    pub max_attempts: u32,
}

impl Arrived {
    /// The delivery of this line; `None` when that is no event.
    pub fn of(line: &[u8], attempt: u32, max_attempts: u32) -> Option<Self> {
        Some(Arrived { event: Event::of(line)?, attempt, max_attempts })
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    /// One waits at the most.
    changed: Notify,
    /// Last words that the broker has not answered, …
    unanswered: AtomicUsize,
    /// … and those that were in doubt when a connection was lost, and still are.
    in_doubt: AtomicUsize,
}

/// Something was said of an event and is not answered yet: until this is dropped.
#[derive(Debug)]
pub(super) struct Unanswered {
    /// Room for another event.
    _permit: Option<OwnedSemaphorePermit>,
    counted: Option<Arc<Queue>>,
}

impl Unanswered {
    /// It counts if it is the last word.
    pub fn new(permit: Option<OwnedSemaphorePermit>, queue: &Arc<Queue>, is_last: bool) -> Self {
        let counted = is_last.then(|| queue.clone());
        counted.iter().for_each(|queue| _ = queue.unanswered.fetch_add(1, SeqCst));
        Unanswered { _permit: permit, counted }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.counted.iter().for_each(|queue| _ = queue.unanswered.fetch_sub(1, SeqCst));
    }
}

#[derive(Debug, Default)]
struct Inner {
    arrived: VecDeque<Arrived>,
    ended: Option<Error>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, arrived: Arrived) {
        self.lock().arrived.push_back(arrived);
        self.changed.notify_one();
    }

    /// Forgets what was not taken; the seqs.
    pub fn clear(&self) -> Vec<u64> {
        self.lock().arrived.drain(..).map(|arrived| arrived.event.seq).collect()
    }

    /// So many last words are in doubt.
    pub fn set_in_doubt(&self, count: usize) {
        self.in_doubt.store(count, SeqCst);
    }

    /// Last words of which nobody knows whether they reached the broker.
    pub fn unconfirmed(&self) -> usize {
        self.unanswered.load(SeqCst) + self.in_doubt.load(SeqCst)
    }

    /// There is nothing more, for this reason.
    pub fn end(&self, why: Error) {
        let mut inner = self.lock();
        inner.arrived.clear();
        inner.ended.get_or_insert(why);
        drop(inner);
        self.changed.notify_one();
    }

    /// Waits for the next one. When it is dropped before it is done, nothing is lost.
    pub async fn next(&self) -> Result<Arrived, Error> {
        loop {
            {
                let mut inner = self.lock();
                if let Some(arrived) = inner.arrived.pop_front() {
                    return Ok(arrived);
                }
                if let Some(why) = &inner.ended {
                    return Err(why.clone());
                }
            }
            self.changed.notified().await;
        }
    }
}
