//! What was delivered and is not taken yet, between the connection's task and a consumer.
//!
//! Always holds: it has no more than the broker lets a member hold; behind its end there is nothing. Owner:
//! [`super::member`].

use super::error::Error;
use super::event::Event;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// A delivery.
#[derive(Debug)]
pub(super) struct Arrived {
    pub event: Event,
    pub attempt: u32,
    pub max_attempts: u32,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    /// One waits at the most.
    changed: Notify,
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
