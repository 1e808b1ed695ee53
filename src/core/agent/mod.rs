//! The guest's side: a program that loses nothing while the host is away.
//!
//! ```text
//! local programs ──agent.sock──▶ local ──▶ outbox (SQLite, durable before the answer) ──▶ session ──▶ broker
//! discover ─▶ dial ─▶ greeting ─▶ link (one session at a time: pulse, drain, feed) ◀── events ──┘
//!                                   feed ──▶ handler (a command for each event, a cursor in the outbox)
//! ```
//!
//! Always holds: what was answered `ok` is in the outbox until the broker acknowledged it; no failure of the host, the
//! way to it or a handler ends the agent. Owner: `app/agent`.

pub mod dial;
pub mod discover;
mod drain;
mod feed;
mod greeting;
mod handler;
mod link;
pub mod local;
pub mod outbox;
mod pipe;
mod port;
mod pulse;
mod retry;
mod session;

use super::follow::{Begin, Room};
use super::topic::Pattern;
use dial::Dial;
use discover::{Place, Ways};
use feed::Feed;
use handler::Handler;
pub use handler::Tally;
use link::Link;
pub use link::{Identity, Standing};
use outbox::Outbox;
pub use pulse::Times;
use tokio::sync::{mpsc, watch};

/// What is subscribed, and what is done with it.
pub struct Subscribe {
    /// An event that matches any of these.
    pub patterns: Vec<Pattern>,
    /// Where to begin, where there is no cursor yet.
    pub begin: Begin,
    /// What `sh -c` runs for each event.
    pub command: String,
}

/// What an agent does.
pub struct Plan {
    /// Where the broker is.
    pub place: Place,
    /// Who this guest says it is.
    pub identity: Identity,
    /// What is subscribed, if anything.
    pub subscribe: Option<Subscribe>,
    /// How long to wait for the host.
    pub times: Times,
}

/// Holds the link and handles events until `stop` says true; what it does is told through `standing` and `tally`.
pub async fn run(
    plan: Plan,
    dial: impl Dial,
    outbox: &Outbox,
    standing: watch::Sender<Standing>,
    tally: &Tally,
    stop: watch::Receiver<bool>,
) {
    let (mut feed, mut handling) = (None, None);
    if let Some(Subscribe { patterns, begin, command }) = plan.subscribe {
        let (room, (lines, to_do)) = (Room::default(), mpsc::unbounded_channel());
        let begun = Feed::new(patterns, begin, room.clone(), lines);
        let cursor = begun.name().to_owned();
        let handler = Handler { command, cursor, outbox: outbox.clone(), room, tally: tally.clone() };
        (feed, handling) = (Some(begun), Some(handler.run(to_do, stop.clone())));
    }
    let (ways, outbox, times) = (Ways::new(&plan.place), outbox.clone(), plan.times);
    let link = Link {
        dial,
        ways,
        identity: plan.identity,
        instance: link::instance(),
        outbox,
        feed,
        times,
        standing,
    };
    match handling {
        Some(handling) => _ = tokio::join!(link.run(stop), handling),
        None => link.run(stop).await,
    }
}
