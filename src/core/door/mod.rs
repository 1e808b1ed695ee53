//! Doors: ways in. A door accepts connections; what follows is the same for all of them, and here.
//!
//! ```text
//! accept ─▶ banner ─▶ hello within 5 s ─┬ bus-v1 ─▶ `ok session=…` ─▶ session ─▶ over
//!                                       ├ no bus-* ─▶ recorded, `ok` ─▶ over
//!                                       └ anything else ─▶ recorded, `error: …` ─▶ over
//! ```
//!
//! Always holds: handshakes run side by side, and one that says nothing delays nobody; so many wait at
//! most, the oldest is dropped for a new one; every handshake leaves one record and one log line. Doors use
//! the bus, never the journal. Owner: `broker.rs` opens them (`listen.rs`).

pub mod listen;
pub mod tcp;
pub mod unix;

use super::bus::{Bus, Ending};
use super::clock;
use super::events::Handshake;
use super::identity::{Peer, ReservedIdentity, Role, admit};
use super::limits::{ACCEPT_QUEUE, HELLO_BYTES};
use super::session::Session;
use super::status::Presence;
use super::stream::{Reader, Writer, linger};
use super::wire::handshake::{BUS_V1, HEARTBEAT, HOST_BUS, Hello, HelloError, parse_hello, take_line};
use nix::sys::socket::{Backlog, listen};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// After an accept that failed (no descriptors) a door rests so long.
const ACCEPT_REST: Duration = Duration::from_millis(100);
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What all doors share.
pub struct Lobby {
    bus: Arc<Bus>,
    /// Places for connections, so that descriptors are left for journal, logs and status.
    places: Arc<Semaphore>,
    pending: Mutex<Pending>,
    /// The most handshakes that wait; at most half of the places, so that silence takes nobody's place.
    pending_limit: usize,
    /// Held by every connection; the broker waits until all are gone.
    alive: mpsc::Sender<()>,
}

#[derive(Default)]
struct Pending {
    next: u64,
    /// Dropping the sender ends that handshake.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A connection, before its first byte.
pub struct Connection {
    /// Its reading half.
    pub reader: Reader,
    /// Its writing half.
    pub writer: Writer,
    /// Who it is, as far as the door can tell.
    pub peer: Peer,
}

impl Lobby {
    /// For `places` connections; `alive` is held by each.
    pub fn new(bus: Arc<Bus>, places: usize, alive: mpsc::Sender<()>) -> Arc<Self> {
        let pending_limit = bus.limits.pending_handshakes.min(places / 2);
        let places = Arc::new(Semaphore::new(places));
        Arc::new(Lobby { bus, places, pending: Mutex::default(), pending_limit, alive })
    }

    /// Serves what `accept` brings, until the broker ends.
    pub async fn serve<F>(self: Arc<Self>, mut accept: impl FnMut() -> F)
    where
        F: Future<Output = io::Result<Connection>>,
    {
        let mut ending = self.bus.ending.clone();
        loop {
            let place = tokio::select! {
                _ = ending.wait_for(|e| *e != Ending::No) => return,
                place = self.places.clone().acquire_owned() => place,
            };
            let accepted = tokio::select! {
                _ = ending.wait_for(|e| *e != Ending::No) => return,
                accepted = accept() => accepted,
            };
            match accepted {
                Ok(connection) => {
                    let (lobby, alive) = (self.clone(), self.alive.clone());
                    tokio::spawn(async move {
                        lobby.welcome(connection).await;
                        drop((place, alive));
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    fn enter(&self) -> (u64, oneshot::Receiver<()>) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.waiting.len() >= self.pending_limit {
            pending.waiting.pop_first();
        }
        let (end, ended) = oneshot::channel();
        pending.next += 1;
        let ticket = pending.next;
        pending.waiting.insert(ticket, end);
        (ticket, ended)
    }

    fn leave(&self, ticket: u64) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&ticket);
    }

    async fn welcome(&self, connection: Connection) {
        let Connection { mut reader, mut writer, peer } = connection;
        let (ticket, dropped) = self.enter();
        let mut input = Vec::with_capacity(HELLO_BYTES);
        let mut ending = self.bus.ending.clone();
        let said = tokio::select! {
            said = hear_hello(&self.bus, &mut reader, &mut writer, &mut input) => said,
            _ = dropped => Err(Refused::denied("too-many-handshakes")),
            why = ending.wait_for(|e| *e != Ending::No) => {
                let failed = why.is_ok_and(|why| *why == Ending::JournalFailed);
                Err(Refused::denied(if failed { "journal-failed" } else { "draining" }))
            }
        };
        self.leave(ticket);
        let hello = match said {
            Ok(Some(hello)) => hello,
            // Gone without a word.
            Ok(None) => return self.record(&peer, None, Outcome::Denied("closed-before-hello")),
            Err(refused) => {
                self.record(&peer, None, refused.outcome);
                return farewell(
                    &self.bus,
                    &mut reader,
                    &mut writer,
                    &format!("error: {}\n", refused.reason),
                )
                .await;
            }
        };
        let granted = self.judge(&peer, &hello);
        match granted {
            Ok(Judged::Session(session)) => {
                self.record(&peer, Some(&hello), Outcome::Granted);
                let line = format!("ok session={}\n", uuid::Uuid::new_v4().simple());
                let sent = timeout(self.bus.limits.write_time, writer.write_all(line.as_bytes())).await;
                if matches!(sent, Ok(Ok(()))) {
                    let Granted { presence, role, place } = *session;
                    let beats = hello.has(HEARTBEAT);
                    Session::new(&self.bus, presence, role, beats, (reader, writer), input).run().await;
                    drop(place);
                } else {
                    tracing::info!(vm = %hello.name, remote = %peer.address, "session: gone before its first frame");
                }
            }
            Ok(Judged::HandshakeOnly) => {
                self.record(&peer, Some(&hello), Outcome::Denied("missing-capability"));
                farewell(&self.bus, &mut reader, &mut writer, "ok\n").await;
            }
            Err(reason) => {
                self.record(&peer, Some(&hello), Outcome::Denied(reason));
                farewell(&self.bus, &mut reader, &mut writer, &format!("error: {reason}\n")).await;
            }
        }
    }

    /// What a peer that said hello gets.
    fn judge(&self, peer: &Peer, hello: &Hello) -> Result<Judged, &'static str> {
        let role =
            admit(peer, &hello.name, hello.has(HOST_BUS)).map_err(|ReservedIdentity| "reserved-identity")?;
        // The host is no VM: it has a session and no place in the table.
        let vm = match role {
            Role::Host => self.bus.vms.host(),
            Role::Guest => self.bus.vms.enter(&hello.name, clock::boot_ms()).ok_or("too-many-vms")?,
        };
        vm.says(&hello.capabilities);
        if !hello.has(BUS_V1) {
            return Ok(Judged::HandshakeOnly);
        }
        let place = self.bus.sessions.clone().try_acquire_owned().map_err(|_| "too-many-sessions")?;
        let presence =
            vm.open_session(self.bus.limits.sessions_per_vm).ok_or("too-many-sessions-of-this-vm")?;
        Ok(Judged::Session(Box::new(Granted { presence, role, place })))
    }

    fn record(&self, peer: &Peer, hello: Option<&Hello>, outcome: Outcome) {
        let (session_outcome, reason) = match outcome {
            Outcome::Granted => ("granted", None),
            Outcome::Denied(reason) => ("denied", Some(reason)),
            Outcome::Timeout => ("timeout", Some("hello-timeout")),
        };
        let vm = hello.map(|hello| hello.name.as_str());
        let capabilities = hello.map_or(&[][..], |hello| &hello.capabilities);
        let session_kind = if capabilities.iter().any(|c| c == BUS_V1) { BUS_V1 } else { "handshake-only" };
        // A guest's own words: they end up on terminals.
        let said = capabilities.join(",");
        tracing::info!(
            outcome = session_outcome,
            vm = vm.unwrap_or("-"),
            kind = session_kind,
            capabilities = %said.escape_debug(),
            reason = reason.unwrap_or("-"),
            remote = %peer.address,
            "handshake"
        );
        self.bus.recorder.handshake(&Handshake {
            timestamp: clock::wall_ms() / 1000,
            vm,
            capabilities,
            session_kind,
            session_outcome,
            reason,
            remote_addr: &peer.address,
        });
    }
}

enum Judged {
    Session(Box<Granted>),
    HandshakeOnly,
}

struct Granted {
    presence: Presence,
    role: Role,
    place: OwnedSemaphorePermit,
}

#[derive(Clone, Copy)]
enum Outcome {
    Granted,
    Denied(&'static str),
    Timeout,
}

/// A handshake that came to no hello.
struct Refused {
    reason: String,
    outcome: Outcome,
}

impl Refused {
    fn denied(reason: &'static str) -> Self {
        Refused { reason: reason.to_owned(), outcome: Outcome::Denied(reason) }
    }
}

impl From<HelloError> for Refused {
    fn from(error: HelloError) -> Self {
        Refused::denied(error.reason())
    }
}

/// Says the banner and reads the hello; what was sent behind it stays in `input`. `None`: gone.
async fn hear_hello(
    bus: &Bus,
    reader: &mut Reader,
    writer: &mut Writer,
    input: &mut Vec<u8>,
) -> Result<Option<Hello>, Refused> {
    let until = Instant::now() + bus.limits.hello_time;
    let late = |_| Refused { reason: "hello-timeout".to_owned(), outcome: Outcome::Timeout };
    let banner = format!("castra-broker {VERSION} ready\n");
    if timeout_at(until, writer.write_all(banner.as_bytes())).await.map_err(late)?.is_err() {
        return Ok(None);
    }
    loop {
        if let Some((line, taken)) = take_line(input)? {
            let hello = parse_hello(line)?;
            input.drain(..taken);
            return Ok(Some(hello));
        }
        match timeout_at(until, reader.read_buf(input)).await.map_err(late)? {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
}

/// Gives a listener the queue that a burst of connections needs.
fn widen(listener: &impl AsFd) -> io::Result<()> {
    listen(listener, Backlog::new(ACCEPT_QUEUE)?)?;
    Ok(())
}

/// The last line of a connection that becomes no session.
async fn farewell(bus: &Bus, reader: &mut Reader, writer: &mut Writer, line: &str) {
    let sent = timeout(bus.limits.linger_time, writer.write_all(line.as_bytes())).await;
    if matches!(sent, Ok(Ok(()))) {
        linger(&bus.limits, reader, writer).await;
    }
}
