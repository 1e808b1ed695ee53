//! A load generator for any broker that speaks bus-v1.
//!
//! [`load`]: publishers, with subscribers or without. [`idle`]: sessions that only are. One task a session:
//! [`publisher`], [`subscriber`], over a [`link`]. [`stamp`], [`seen`] and [`histogram`] are pure, [`pace`] says when an
//! event is due. Always holds: no load but what was asked for, and none after the end of the [`Term`]; memory is
//! bounded by the sessions and their windows, however long it takes. Owner: `castra bench`.

pub mod histogram;
pub mod idle;
pub mod link;
pub mod load;
pub mod pace;
pub mod publisher;
pub mod seen;
pub mod stamp;
pub mod subscriber;

use super::client::Target;
use link::{Link, LinkError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// So many sessions are opened side by side.
const AT_ONCE: usize = 32;
/// So many subscribers are of one VM: half of what a broker gives one, and few VMs to remember.
const OF_A_VM: u64 = 32;

/// Whom to load, and until when.
#[derive(Clone)]
pub struct Plan {
    /// The broker.
    pub target: Target,
    /// What the events are about.
    pub topic: String,
    /// For so long.
    pub duration: Duration,
    /// Becomes true when it is to end earlier.
    pub stop: watch::Receiver<bool>,
    /// What it counts while it runs.
    pub meter: Arc<Meter>,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A session could not be had; so many could.
    #[error("{1} (after {0} sessions)")]
    Link(usize, LinkError),
    /// It was to end before it began.
    #[error("interrupted before the load began")]
    Interrupted,
    /// A task of it ended without a word.
    #[error("a task of the load generator ended early")]
    Broken,
}

/// What is counted while it runs, for whoever watches.
#[derive(Debug, Default)]
pub struct Meter {
    /// Sessions opened.
    pub connected: AtomicU64,
    /// Events acknowledged.
    pub acked: AtomicU64,
    /// Events delivered, to all subscribers together.
    pub delivered: AtomicU64,
    /// Subscribers that publishers wait for.
    subscribers: AtomicU64,
    /// Of those deliveries the ones to subscribers that are gone.
    gone: AtomicU64,
}

impl Meter {
    /// How far the subscribers' average is behind a publisher that sent so many events: endlessly when none is left.
    fn behind(&self, sent: u64) -> u64 {
        let (subscribers, gone) = (self.subscribers.load(Relaxed), self.gone.load(Relaxed));
        let received = self.delivered.load(Relaxed).saturating_sub(gone);
        received.checked_div(subscribers).map_or(u64::MAX, |average| sent.saturating_sub(average))
    }

    /// A subscriber is gone that received so many.
    fn lose(&self, received: u64) {
        self.gone.fetch_add(received, Relaxed);
        let _ = self.subscribers.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
    }
}

/// When it began, and when it is over.
#[derive(Clone)]
pub struct Term {
    begun: Instant,
    until: Instant,
    stop: watch::Receiver<bool>,
}

impl Term {
    /// Begins now.
    fn begin(plan: &Plan) -> Self {
        let begun = Instant::now();
        Term { begun, until: begun + plan.duration, stop: plan.stop.clone() }
    }

    /// Nanoseconds since it began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// How long it is, in nanoseconds.
    pub fn length(&self) -> u64 {
        u64::try_from((self.until - self.begun).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Waits for the end, or to be told so.
    pub async fn over(&mut self) {
        tokio::select! {
            () = sleep_until(self.until) => {}
            // The other branch goes on when nobody can say it any more.
            Ok(_) = self.stop.wait_for(|stop| *stop) => {}
        }
    }
}

/// The VMs of so many subscribers.
fn subscriber_names(count: u64) -> Vec<String> {
    (0..count).map(|i| format!("bench-{}", i / OF_A_VM + 1)).collect()
}

/// Opens sessions, some at a time, in the order of `names`.
async fn connect_all(plan: &Plan, names: Vec<String>, subscribe: bool) -> Result<Vec<Link>, BenchError> {
    let (turns, mut opening) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
    let mut links: Vec<Option<Link>> = names.iter().map(|_| None).collect();
    for (place, name) in names.into_iter().enumerate() {
        let (plan, turns) = (plan.clone(), turns.clone());
        opening.spawn(async move {
            let _turn = turns.acquire().await;
            let mut link = Link::connect(&plan.target, &name).await?;
            if subscribe {
                link.subscribe(&plan.topic).await?;
            }
            plan.meter.connected.fetch_add(1, Relaxed);
            Ok((place, link))
        });
    }
    let mut stop = plan.stop.clone();
    let told = stop.wait_for(|stop| *stop);
    tokio::pin!(told);
    let mut opened = 0;
    loop {
        let next = tokio::select! {
            next = opening.join_next() => next,
            Ok(_) = &mut told => return Err(BenchError::Interrupted),
        };
        match next {
            None => return Ok(links.into_iter().flatten().collect()),
            Some(Err(_)) => return Err(BenchError::Broken),
            Some(Ok(Err(error))) => return Err(BenchError::Link(opened, error)),
            Some(Ok(Ok((place, link)))) => {
                opened += 1;
                links[place] = Some(link);
            }
        }
    }
}
