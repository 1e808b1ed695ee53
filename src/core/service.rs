//! What whoever supervises the broker is told: systemd, or nobody.
//!
//! Always holds: core says what is so and knows of no socket or variable of a service manager; a supervisor is fed
//! only after the commit thread came round, or while the logs that it waits for come on, so a disk that hangs starves
//! it. Owner: `broker.rs` calls;
//! `app/service.rs` is one.

use super::journal::Journal;
use super::logs::Logs;
use super::status::Snapshot;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Is told how the broker is. None of these may wait for anything.
pub trait Supervisor: Send + Sync {
    /// The doors are open, once.
    fn ready(&self, listeners: &[String]);
    /// The status as it was just written: on every change, and about once a second.
    fn status(&self, snapshot: &Snapshot);
    /// How long it bears to hear nothing of [`Supervisor::alive`]; `None`: for ever.
    fn patience(&self) -> Option<Duration>;
    /// The commit thread goes round.
    fn alive(&self);
}

/// Feeds the supervisor twice as often as it needs it, until the journal ends. A commit thread that waits for logs
/// which are far behind does not come round, and is well as long as they come on.
pub async fn feed(journal: Arc<Journal>, logs: Arc<Logs>, supervisor: Arc<dyn Supervisor>) {
    let Some(patience) = supervisor.patience().filter(|patience| !patience.is_zero()) else { return };
    let mut ticks = interval((patience / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = logs.seq();
    loop {
        ticks.tick().await;
        let mut probe = journal.probe();
        loop {
            tokio::select! {
                answer = &mut probe => match answer {
                    Ok(()) => break,
                    Err(_) => return,
                },
                _ = ticks.tick() => if logs.seq() > seen {
                    seen = logs.seq();
                    supervisor.alive();
                },
            }
        }
        supervisor.alive();
    }
}
