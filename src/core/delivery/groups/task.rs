//! The task of a group that has members, or events: takes events in while there is room, does what is due, and buries the dead.
//!
//! Always holds: it takes in no more than its members may soon take; an event that is given up is done only once its
//! dead letter is durable; on a full disk it waits with it. Owner: [`super::Groups`].

use super::Groups;
use super::handle::Handle;
use super::intake::Intake;
use crate::core::awake::{Instant, sleep_until};
use crate::core::journal::Outcome;
use crate::core::wire::subscribe::From;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval_at};

/// So often it is looked whether events of other topics have passed.
const QUIET: Duration = Duration::from_secs(30);
/// What failed is tried again, and what happens often said again, after so long.
const AGAIN: Duration = Duration::from_secs(1);

/// Looks for where a new group begins.
pub(super) async fn search(groups: Arc<Groups>, handle: Arc<Handle>, from: From) {
    match groups.delivery.look_up(from).await {
        Ok(beginning) => handle.begin(beginning.next - 1),
        // It may have been moved meanwhile.
        Err(refusal) => drop(groups.fail(&handle, &refusal)),
    }
}

/// Runs groups that have something to do.
pub(super) async fn run_all(groups: Arc<Groups>, mut runs: UnboundedReceiver<Arc<Handle>>) {
    while let Some(handle) = runs.recv().await {
        tokio::spawn(run(groups.clone(), handle));
    }
}

/// Runs a group until it has nothing to do, and nobody.
async fn run(groups: Arc<Groups>, handle: Arc<Handle>) {
    let interest = Arc::new(handle.interest());
    let mut intake = Intake::new(
        groups.delivery.clone(),
        groups.delivery.groups_outlet(&groups.limits),
        interest.clone(),
        handle.shared.held.clone(),
        handle.cursor() + 1,
    );
    let mut quiet = interval_at((Instant::now() + QUIET).timer(), QUIET);
    quiet.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut letter: Option<(u64, oneshot::Receiver<Outcome>)> = None;
    // After a failure the same is not tried before this: a letter, and reading; what has expired is said once a while.
    let (mut no_letter, mut no_reading) = (Instant::now(), Instant::now());
    let mut no_saying = Instant::now();
    loop {
        if handle.is_gone() || handle.rests() {
            say_expired(&handle);
            return;
        }
        if let Some(next) = handle.take_seek() {
            intake.seek(next);
            letter = None;
        }
        let due = handle.look();
        let now = Instant::now();
        let room = if no_reading <= now { handle.room() } else { 0 };
        if no_letter <= now && letter.is_none() {
            letter = handle.letter().map(|(seq, batch)| (seq, groups.publish(batch)));
        }
        if no_saying <= now && say_expired(&handle) {
            no_saying = now + AGAIN;
        }
        let holds = [no_letter, no_reading, no_saying].into_iter().filter(|at| *at > now);
        let due = due.into_iter().chain(holds).min();
        tokio::select! {
            biased;
            () = handle.wake.notified() => {}
            outcome = buried(&mut letter) => match (outcome, letter.take()) {
                (Ok(Ok(_)), Some((seq, _))) => handle.buried(seq),
                _ => no_letter = Instant::now() + AGAIN,
            },
            came = intake.next(room), if room > 0 || intake.is_reading() => match came {
                Ok(came) => {
                    intake.read.take().into_iter().for_each(|time| handle.polled(time));
                    handle.take(&came, interest.head(), intake.outlet());
                }
                Err(error) => {
                    tracing::error!(%error, group = %handle.name, "journal: cannot be read for a group");
                    no_reading = Instant::now() + AGAIN;
                }
            },
            _ = quiet.tick() => {
                handle.sweep();
                if room > 0 && let Some(through) = intake.passed() {
                    handle.pass(through);
                }
            }
            () = until(due) => {}
        }
    }
}

/// Says how many events have expired since it was said last, if any.
pub(super) fn say_expired(handle: &Handle) -> bool {
    let expired = handle.take_unsaid();
    if expired > 0 {
        let group = &handle.name;
        tracing::warn!(%group, expired_undelivered = expired, "events expired before the group had them");
    }
    expired > 0
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn buried(
    letter: &mut Option<(u64, oneshot::Receiver<Outcome>)>,
) -> Result<Outcome, oneshot::error::RecvError> {
    match letter {
        Some((_, outcome)) => outcome.await,
        None => std::future::pending().await,
    }
}
