//! What systemd is told of the agent: that programs can publish, how it stands with the broker, that it lives.
//!
//! Always holds: without a service manager nothing is sent and no thread is there; one that does not read delays nobody
//! but that thread. Owner: `mod.rs`.

use crate::core::agent::outbox::Outbox;
use crate::core::agent::{Standing, Tally};
use sd_notify::NotifyState;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// The words of the status are looked at so often; they are sent when they are others.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// What may wait to be told.
const QUEUED: usize = 16;

enum Told {
    Ready,
    Status(String),
    Alive,
    Stopping,
}

/// What stands between the agent and its service manager, if it has one.
pub struct Service {
    queue: Option<SyncSender<Told>>,
    patience: Option<Duration>,
}

impl Service {
    /// Looks in the environment for a service manager.
    ///
    /// # Errors
    /// There is one, and no thread to be had.
    pub fn start() -> io::Result<Self> {
        if std::env::var_os("NOTIFY_SOCKET").is_none_or(|path| path.is_empty()) {
            return Ok(Service { queue: None, patience: None });
        }
        let (queue, told) = sync_channel(QUEUED);
        std::thread::Builder::new().name("castra-notify".into()).spawn(move || tell(&told))?;
        Ok(Service { queue: Some(queue), patience: sd_notify::watchdog_enabled() })
    }

    /// Programs can publish from now on.
    pub fn ready(&self) {
        self.tell(Told::Ready);
    }

    /// The agent ends.
    pub fn stopping(&self) {
        self.tell(Told::Stopping);
    }

    fn tell(&self, told: Told) {
        if let Some(queue) = &self.queue {
            // A service manager that does not read misses something.
            let _ = queue.try_send(told);
        }
    }

    /// Tells how it stands, for as long as it is polled.
    pub async fn report(&self, mut standing: watch::Receiver<Standing>, outbox: Outbox, tally: &Tally) {
        if self.queue.is_none() {
            return std::future::pending().await;
        }
        let every = self.patience.map_or(STATUS_EVERY, |patience| STATUS_EVERY.min(patience / 2));
        let mut ticks = interval(every.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = String::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => if self.patience.is_some() {
                    self.tell(Told::Alive);
                },
                changed = standing.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
            }
            let text = words(&standing.borrow_and_update(), &outbox, tally);
            if text != said {
                self.tell(Told::Status(text.clone()));
                said = text;
            }
        }
    }
}

/// What `systemctl status` shows.
fn words(standing: &Standing, outbox: &Outbox, tally: &Tally) -> String {
    let counts = outbox.counts();
    let mut text = match standing {
        Standing::Connected(way) => format!("connected over {way}"),
        Standing::Away(why) => format!("not connected: {why}"),
    };
    text.push_str(&format!("; outbox: {} pending, {} in error", counts.pending, counts.error));
    if let Some(ill) = outbox.ill() {
        text.push_str(&format!(", new events are refused: {ill}"));
    }
    if tally.handled() + tally.passed_over() > 0 {
        text.push_str(&format!("; handled {}, passed over {}", tally.handled(), tally.passed_over()));
    }
    text
}

fn tell(told: &Receiver<Told>) {
    for told in told {
        let status;
        let what = match &told {
            Told::Ready => NotifyState::Ready,
            Told::Alive => NotifyState::Watchdog,
            Told::Stopping => NotifyState::Stopping,
            Told::Status(text) => {
                status = text.as_str();
                NotifyState::Status(status)
            }
        };
        // Who is not there needs not be told.
        let _ = sd_notify::notify(&[what]);
    }
}
