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
//! the bus, never the journal. A line (`is_line`) is greeted for as long as it takes. Owner: `broker.rs` opens them
//! (`listen.rs`).

mod allotment;
mod greeting;
pub mod hybrid;
pub mod listen;
mod places;
pub mod serial;
pub mod tcp;
pub mod unix;
pub mod vsock;

use super::bus::{Bus, Ending};
use super::clock;
use super::events::Handshake;
use super::identity::{Identity, Peer, Role};
use super::limits::{ACCEPT_QUEUE, HELLO_BYTES};
use super::policy::{Admitted, Claim, Denied, Policy, Token};
use super::session::Session;
use super::status::Presence;
use super::stream::{Reader, Writer, linger};
use super::throttle::{Slow, Throttle};
use super::wire::handshake::{self, BUS_V1, HEARTBEAT, HOST_BUS, Hello};
use crate::core::awake::{Instant, timeout};
use greeting::{Refused, hear_hello};
use nix::sys::socket::{Backlog, listen};
pub use places::Place;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::sleep;

/// After an accept that failed (no descriptors) a door rests so long.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// That connections wait is said so often at most.
const PAUSE_SAID: Duration = Duration::from_secs(60);
/// Stands for it.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What all doors share.
pub struct Lobby {
    bus: Arc<Bus>,
    /// So that descriptors are left for journal, logs and status.
    places: places::Places,
    pending: Mutex<Pending>,
    /// The most handshakes that wait; at most half of the places, so that silence takes nobody's place.
    pending_limit: usize,
    throttle: Mutex<Throttle>,
    begun: Instant,
    /// When it was said last that connections wait.
    paused: Mutex<Option<Instant>>,
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
    /// It is a line that outlives whoever speaks at its other end: what comes may begin anywhere, and nobody may speak
    /// for a long time.
    pub is_line: bool,
}

impl Lobby {
    /// For `places` connections; `alive` is held by each.
    pub fn new(bus: Arc<Bus>, places: usize, alive: mpsc::Sender<()>) -> Arc<Self> {
        let pending_limit = bus.limits.pending_handshakes.min(places / 2);
        let places = places::Places::new(places, &bus.limits);
        let (pending, throttle, paused) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Lobby {
            bus,
            places,
            pending,
            pending_limit,
            throttle,
            begun: Instant::now(),
            paused,
            alive,
        })
    }

    /// Who may do what, as it changes.
    pub fn policy(&self) -> watch::Receiver<Arc<Policy>> {
        self.bus.policy.clone()
    }

    /// Resolves when the broker ends.
    pub async fn ended(&self) {
        let _ = self.bus.ending.clone().wait_for(|e| *e != Ending::No).await;
    }

    /// Waits until one more connection may be; `None` when the broker ends.
    pub async fn place(&self) -> Option<Place> {
        if let Some(place) = self.places.free(&self.alive) {
            return Some(place);
        }
        self.pauses(&"all connections that the descriptors allow are used");
        tokio::select! {
            () = self.ended() => None,
            place = self.places.connection(&self.alive) => place,
        }
    }

    /// Serves one connection to its end.
    pub async fn attend(&self, place: Place, connection: Connection) {
        self.welcome(connection).await;
        drop(place);
    }

    /// Serves what `accept` brings, until the broker ends.
    pub async fn serve<F>(self: Arc<Self>, mut accept: impl FnMut() -> F)
    where
        F: Future<Output = io::Result<Connection>>,
    {
        while let Some(place) = self.place().await {
            let accepted = tokio::select! {
                () = self.ended() => return,
                accepted = accept() => accepted,
            };
            match accepted {
                Ok(connection) => {
                    let lobby = self.clone();
                    tokio::spawn(async move { lobby.attend(place, connection).await });
                }
                Err(error) => {
                    self.pauses(&error);
                    sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    /// Nothing is accepted for a while: counted, and said once a minute at most.
    fn pauses(&self, why: &dyn Display) {
        self.bus.recorder.counters.accept_pauses.fetch_add(1, Relaxed);
        let mut said = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| said.elapsed() >= PAUSE_SAID) {
            *said = Some(Instant::now());
            tracing::warn!(%why, "door: connections wait; raise LimitNOFILE (ulimit -Hn), or see who holds them");
        }
    }

    fn enter(&self) -> (Option<u64>, Option<oneshot::Receiver<()>>) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.waiting.len() >= self.pending_limit {
            pending.waiting.pop_first();
        }
        let (end, ended) = oneshot::channel();
        pending.next += 1;
        let ticket = pending.next;
        pending.waiting.insert(ticket, end);
        (Some(ticket), Some(ended))
    }

    fn leave(&self, ticket: u64) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&ticket);
    }

    async fn welcome(&self, connection: Connection) {
        let Connection { mut reader, mut writer, peer, is_line } = connection;
        // Nobody may speak on a line for days: it takes no place from those who are about to.
        let (ticket, dropped) = if is_line { (None, None) } else { self.enter() };
        let mut input = Vec::with_capacity(HELLO_BYTES);
        let mut ending = self.bus.ending.clone();
        let said = tokio::select! {
            said = hear_hello(&self.bus, is_line, &mut reader, &mut writer, &mut input) => said,
            () = crowded_out(dropped) => Err(Refused::denied("too-many-handshakes")),
            why = ending.wait_for(|e| *e != Ending::No) => {
                let failed = why.is_ok_and(|why| *why == Ending::JournalFailed);
                Err(Refused::denied(if failed { "journal-failed" } else { "draining" }))
            }
        };
        ticket.into_iter().for_each(|ticket| self.leave(ticket));
        let hello = match said {
            Ok(Some(hello)) => hello,
            // Gone without a word.
            Ok(None) if is_line => return,
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
        let claim = Claim {
            peer: peer.clone(),
            name: hello.name.clone(),
            asks_host_bus: hello.has(HOST_BUS),
            token: hello.token.as_deref().map(Token::new),
        };
        let granted = match self.admit(&claim).await {
            Ok(admitted) => self.judge(claim, &hello, admitted),
            Err(reason) => Err(reason),
        };
        match granted {
            Ok(Judged::Session(session)) => {
                self.record(&peer, Some(&hello), Outcome::Granted(session.admitted.identity));
                let turn = match &hello.instance {
                    None => None,
                    Some(instance) => tokio::select! {
                        turn = self.bus.instances.enter(hello.name.clone(), instance) => Some(turn),
                        () = self.ended() => None,
                    },
                };
                let token = uuid::Uuid::new_v4().simple().to_string();
                let line = handshake::granted(&token, hello.epoch.as_deref()) + "\n";
                let sent = timeout(self.bus.limits.write_time, writer.write_all(line.as_bytes())).await;
                if matches!(sent, Ok(Ok(()))) {
                    let Granted { claim, presence, admitted, place } = *session;
                    let beats = hello.has(HEARTBEAT);
                    let session =
                        Session::new(&self.bus, presence, claim, admitted, beats, (reader, writer), input);
                    session.run(turn).await;
                    drop(place);
                } else {
                    tracing::info!(vm = %hello.name, remote = %peer.address, "session: gone before its first frame");
                }
            }
            Ok(Judged::HandshakeOnly(identity)) => {
                self.record(&peer, Some(&hello), Outcome::HandshakeOnly(identity));
                farewell(&self.bus, &mut reader, &mut writer, "ok\n").await;
            }
            Err(reason) => {
                self.record(&peer, Some(&hello), Outcome::Denied(reason));
                farewell(&self.bus, &mut reader, &mut writer, &format!("error: {reason}\n")).await;
            }
        }
    }

    /// Whether a peer is what it says. Who guesses tokens waits here.
    async fn admit(&self, claim: &Claim) -> Result<Admitted, &'static str> {
        let throttle = || self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
        // Behind one address there may be many VMs, and one that guesses must not keep out the others.
        let (source, name) = (claim.peer.source(), claim.name.as_str());
        if claim.token.is_some() {
            let wait = throttle().wait(&source, name, self.begun.elapsed()).ok_or("too-many-wrong-tokens")?;
            if !wait.is_zero() {
                tokio::select! {
                    () = sleep(wait) => {}
                    () = self.ended() => return Err("draining"),
                }
            }
        }
        let judged = self.bus.policy.borrow().judge(claim);
        if judged == Err(Denied::WrongToken) {
            let (remote, vm) = (&claim.peer.address, &claim.name);
            let slow = throttle().wrong(&source, name, self.begun.elapsed());
            match slow {
                None => {}
                Some(Slow::Peer) => {
                    tracing::warn!(%remote, %vm, "handshake: many wrong tokens; this peer's are looked at one a second now");
                }
                Some(Slow::Name) => {
                    tracing::warn!(%remote, %vm, "handshake: many wrong tokens from several peers; those for this VM wait two seconds now");
                }
            }
        }
        let counters = &self.bus.recorder.counters;
        judged
            .inspect_err(|denied| {
                counters.refused.fetch_add(1, Relaxed);
                counters.wrong_tokens.fetch_add(u64::from(*denied == Denied::WrongToken), Relaxed);
            })
            .map_err(Denied::reason)
    }

    /// What a peer that was let in gets.
    fn judge(&self, claim: Claim, hello: &Hello, admitted: Admitted) -> Result<Judged, &'static str> {
        // The host is no VM: it has a session and no place in the table.
        let vm = match admitted.role {
            Role::Host => self.bus.vms.host(),
            Role::Guest => self.bus.vms.enter(&hello.name, clock::boot_ms()).ok_or("too-many-vms")?,
        };
        vm.says(&hello.capabilities);
        vm.proved(admitted.identity);
        if !hello.has(BUS_V1) {
            return Ok(Judged::HandshakeOnly(admitted.identity));
        }
        let place = self.bus.sessions.clone().try_acquire_owned().map_err(|_| "too-many-sessions")?;
        let presence =
            vm.open_session(self.bus.limits.sessions_per_vm).ok_or("too-many-sessions-of-this-vm")?;
        presence.standing().proved(admitted.identity);
        Ok(Judged::Session(Box::new(Granted { claim, presence, admitted, place })))
    }

    fn record(&self, peer: &Peer, hello: Option<&Hello>, outcome: Outcome) {
        let (session_outcome, reason, identity) = match outcome {
            Outcome::Granted(identity) => ("granted", None, Some(identity)),
            Outcome::HandshakeOnly(identity) => ("denied", Some("missing-capability"), Some(identity)),
            Outcome::Denied(reason) => ("denied", Some(reason), None),
            Outcome::Timeout => ("timeout", Some("hello-timeout"), None),
        };
        // Who came by the way of another VM is known for that one.
        let mismatch = reason == Some(Denied::IdentityMismatch.reason());
        let identity = identity.or(peer.origin.proof().filter(|_| mismatch)).map(Identity::as_str);
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
            identity = identity.unwrap_or("-"),
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
            identity,
            remote_addr: &peer.address,
        });
    }
}

enum Judged {
    Session(Box<Granted>),
    HandshakeOnly(Identity),
}

struct Granted {
    claim: Claim,
    presence: Presence,
    admitted: Admitted,
    place: OwnedSemaphorePermit,
}

#[derive(Clone, Copy)]
enum Outcome {
    Granted(Identity),
    HandshakeOnly(Identity),
    Denied(&'static str),
    Timeout,
}

/// Resolves when this handshake has to make place for a newer one.
async fn crowded_out(dropped: Option<oneshot::Receiver<()>>) {
    match dropped {
        Some(dropped) => drop(dropped.await),
        None => std::future::pending().await,
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
