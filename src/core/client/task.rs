//! The task of a bus: one connection after the other, and all that goes over them.
//!
//! Always holds: it reads whatever else waits; a link on which nothing comes is given up and made anew, with waits that
//! grow; it ends with the last handle of the bus. Owner: [`super::Bus`].

use super::connection::{Client, ClientError};
use super::error::Error;
use super::state::State;
use super::target::Target;
use super::word::{Command, Word};
use crate::core::awake::{self, Instant, at_once, sleep_until, timeout};
use crate::core::backoff;
use crate::core::chance::chance;
use crate::core::follow::{Times, may_pass};
use bytes::{Buf, BytesMut};
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval_at, sleep};

/// A session that lasted so long was a good one: the next wait is a short one again.
const GOOD: Duration = Duration::from_secs(5);
/// A broker that asks for a longer wait than this is not obeyed.
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// What consumers said that is taken together.
const TOGETHER: usize = 1024;

/// What a bus is made of.
pub(super) struct Task {
    pub target: Target,
    pub hello: String,
    pub times: Times,
    pub commands: mpsc::Receiver<Command>,
    /// No more than consumers hold events.
    pub words: mpsc::UnboundedReceiver<Word>,
    /// Why there is no session just now.
    pub lost: watch::Sender<Option<Arc<ClientError>>>,
    /// Ends with the last handle.
    pub alive: oneshot::Receiver<Infallible>,
}

/// How a session ended.
enum Ended {
    /// There is nobody, or nothing, to go on for.
    Over,
    Lost(ClientError, Duration),
}

impl Task {
    /// Says hello.
    pub async fn connect(target: &Target, hello: &str, times: &Times) -> Result<Client, ClientError> {
        let _watch = awake::watch();
        let connected = timeout(times.connect, Client::connect(target, hello)).await;
        connected.unwrap_or_else(|_| Err(ClientError::Connect(io::ErrorKind::TimedOut.into())))
    }

    /// Goes on, beginning with the session of `client`, for as long as somebody wants it.
    pub async fn run(mut self, client: Client) {
        let _watch = awake::watch();
        let mut state = State::default();
        let why = self.all(client, &mut state).await;
        // Whoever asks from here on is told by the end of the channels.
        self.commands.close();
        self.words.close();
        state.end(&why);
    }

    async fn all(&mut self, mut client: Client, state: &mut State) -> Error {
        let mut attempt = 0;
        loop {
            let since = Instant::now();
            let (error, retry_after) = match self.serve(client, state).await {
                Ended::Over => return Error::Closed,
                Ended::Lost(error, retry_after) => (error, retry_after),
            };
            state.lost();
            if !may_pass(&error) {
                return error.into();
            }
            tracing::debug!(%error, target = %self.target, "bus: connecting again");
            self.lost.send_replace(Some(Arc::new(error)));
            if since.elapsed() >= GOOD {
                attempt = 0;
            }
            let mut wait = retry_after.min(LONGEST_RETRY);
            client = loop {
                let again = async {
                    sleep(wait + backoff::wait(attempt, chance())).await;
                    Task::connect(&self.target, &self.hello, &self.times).await
                };
                let connected = tokio::select! {
                    connected = again => connected,
                    _ = &mut self.alive => return Error::Closed,
                };
                (wait, attempt) = (Duration::ZERO, attempt + 1);
                match connected {
                    Ok(client) => {
                        self.lost.send_replace(None);
                        break client;
                    }
                    Err(error) if !may_pass(&error) => return error.into(),
                    Err(_) => {}
                }
            };
        }
    }

    async fn serve(&mut self, client: Client, state: &mut State) -> Ended {
        match self.session(client, state).await {
            Ok(()) => Ended::Over,
            // What it said before the connection broke counts for more.
            Err(error) => match state.closed.take() {
                Some((error, retry_after)) => Ended::Lost(error, retry_after),
                None => Ended::Lost(error, Duration::ZERO),
            },
        }
    }

    async fn session(&mut self, client: Client, state: &mut State) -> Result<(), ClientError> {
        let (mut sender, mut receiver) = client.split();
        let (mut out, mut words) = (BytesMut::new(), Vec::with_capacity(TOGETHER));
        // Who waits until `out` is sent.
        let mut begun = Vec::new();
        let mut heard = Instant::now();
        let mut beat = interval_at((heard + self.times.heartbeat).timer(), self.times.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        state.begin();
        loop {
            if out.is_empty() {
                std::mem::swap(&mut out, &mut state.out);
                begun.drain(..).for_each(|sent: oneshot::Sender<()>| _ = sent.send(()));
                begun.append(&mut state.begun);
            }
            if state.is_over() && out.is_empty() {
                return Ok(());
            }
            let (silence, extends_at) = (heard + self.times.silence, state.extends_at());
            tokio::select! {
                came = receiver.bodies(|body| state.take(body)) => {
                    heard = Instant::now();
                    came?;
                    state.still_open()?;
                }
                sent = sender.write_some(&out), if !out.is_empty() => out.advance(sent?),
                n = self.words.recv_many(&mut words, TOGETHER) => match n {
                    0 => return Ok(()),
                    _ => state.words(words.drain(..)),
                },
                command = self.commands.recv(), if state.has_room() => match command {
                    Some(command) => state.command(command),
                    None => return Ok(()),
                },
                _ = beat.tick() => state.beat(),
                now = at(extends_at) => state.extend(now),
                () = sleep_until(silence) => {
                    // What lies in the socket already counts before it is judged.
                    if let Some(came) = at_once(receiver.bodies(|body| state.take(body))).await {
                        heard = Instant::now();
                        came?;
                        state.still_open()?;
                        continue;
                    }
                    let time = humantime::format_duration(self.times.silence);
                    let why = format!("nothing came for {time}");
                    return Err(ClientError::Lost(io::Error::new(io::ErrorKind::TimedOut, why)));
                }
                _ = &mut self.alive => return Ok(()),
            }
        }
    }
}

async fn at(time: Option<Instant>) -> Instant {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
    Instant::now()
}
