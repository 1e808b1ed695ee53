//! Publishers, with subscribers or without: starts a task for each, and puts together what they say.
//!
//! Always holds: subscribers are subscribed before the first event is due. Owner: `castra bench publish`, `deliver` and
//! `fanout`.

use super::pace::Pace;
use super::publisher::{Job, Published, publish};
use super::stamp::Template;
use super::subscriber::{Received, receive, stand_still};
use super::{BenchError, Plan, Term, connect_all, subscriber_names};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What publishers are to do.
#[derive(Clone)]
pub struct Load {
    /// What they publish.
    pub template: Arc<Template>,
    /// How many there are.
    pub publishers: u64,
    /// Events in flight for each.
    pub window: usize,
    /// Events a second, all together; as fast as it goes without.
    pub rate: Option<u64>,
}

/// Who is to receive it.
#[derive(Clone, Copy, Debug)]
pub struct Audience {
    /// How many.
    pub subscribers: u64,
    /// Of these, the ones that read nothing; fewer than all.
    pub stopped: u64,
    /// How many events the publisher may be ahead of the average of the others.
    pub lead: Option<u64>,
}

/// What was published.
#[derive(Clone, Debug)]
pub struct Figures {
    /// All publishers together.
    pub published: Published,
    /// From the first moment to the last ack, and not less than was asked for unless it was ended.
    pub elapsed: Duration,
}

/// What was delivered.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// Each subscriber that reads.
    pub received: Vec<Received>,
    /// From the first moment to the last delivery, and not less than the publisher took.
    pub elapsed: Duration,
}

/// Publishes.
///
/// # Errors
/// [`BenchError`]: a session could not be had, and no load began.
pub async fn load(plan: &Plan, load: &Load) -> Result<Figures, BenchError> {
    let names = (1..=load.publishers).map(|i| format!("bench-{i}")).collect();
    let (links, mut tasks) = (connect_all(plan, names, false).await?, JoinSet::new());
    let term = Term::begin(plan);
    for (place, link) in (0..).zip(links) {
        let pace = load.rate.map(|rate| Pace { rate, publishers: load.publishers, place });
        let job = Job { template: load.template.clone(), window: load.window, pace, lead: None };
        let (mut term, meter) = (term.clone(), plan.meter.clone());
        tasks.spawn(async move { publish(link, job, &mut term, &meter).await });
    }
    let mut published = Published::default();
    while let Some(done) = tasks.join_next().await {
        published.merge(done.map_err(|_| BenchError::Broken)?);
    }
    let elapsed = published.last.map_or(Duration::ZERO, |last| last - term.begun);
    Ok(Figures { published, elapsed })
}

/// Publishes with one publisher, and receives.
///
/// # Errors
/// As [`load`], and when the broker refuses to subscribe.
pub async fn deliver(
    plan: &Plan,
    load: &Load,
    audience: Audience,
) -> Result<(Figures, Delivered), BenchError> {
    let names = subscriber_names(audience.subscribers);
    let mut subscribers = connect_all(plan, names, true).await?;
    let mut publishers = connect_all(plan, vec!["bench-publisher".to_owned()], false).await?;
    let Some(publisher) = publishers.pop() else { return Err(BenchError::Broken) };
    let reading = subscribers.len().saturating_sub(audience.stopped as usize);
    plan.meter.subscribers.store(reading as u64, Relaxed);
    let (say_total, total) = watch::channel(None);
    let (mut term, mut tasks, mut still) = (Term::begin(plan), JoinSet::new(), JoinSet::new());
    for link in subscribers.split_off(reading) {
        still.spawn(stand_still(link, total.clone()));
    }
    for link in subscribers {
        let (template, total, term, meter) =
            (load.template.clone(), total.clone(), term.clone(), plan.meter.clone());
        tasks.spawn(async move { receive(link, &template, total, &term, &meter).await });
    }
    let pace = load.rate.map(|rate| Pace { rate, publishers: 1, place: 0 });
    let job = Job { template: load.template.clone(), window: load.window, pace, lead: audience.lead };
    let meter = plan.meter.clone();
    let publishing = async {
        let done = publish(publisher, job, &mut term, &meter).await;
        let _ = say_total.send(Some(done.acked));
        done
    };
    let published = publishing.await;
    let mut received = Vec::new();
    while let Some(done) = tasks.join_next().await {
        received.push(done.map_err(|_| BenchError::Broken)?);
    }
    let elapsed = published.last.map_or(Duration::ZERO, |last| last - term.begun);
    let last = received.iter().filter_map(|done| done.last).max().map(|last| last - term.begun);
    let delivered = Delivered { received, elapsed: last.unwrap_or_default().max(elapsed) };
    Ok((Figures { published, elapsed }, delivered))
}
