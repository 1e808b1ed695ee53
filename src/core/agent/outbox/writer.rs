//! The thread castra-outbox: what was asked for, in its order, what waits together in one commit.
//!
//! Always holds: a put is answered after its commit, which is synced; when the database fails nothing is answered as
//! kept, it is said once, and every later put and tick tries it anew, so that it works again by itself; what the broker
//! acknowledged and could not be written down is kept in memory and tried again; nothing more is handed out while more
//! than [`super::marks::UNSYNCED`] marks would be lost with the machine. Owner: [`super::Outbox`].

use super::folded::Folded;
use super::folder::Folder;
use super::marks::Fate;
use super::open::BUSY;
use super::reopen::file_of;
use super::request::Request;
use super::store::{Gone, Store};
use super::trouble::{BUSY_CODE, is_full};
use super::{Bounds, Entry, OutboxError, Shared};
use crate::core::refusal::Refusal;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// So often it looks what commands and time did.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// So often the outbox's clock is written down while something is pending.
const CLOCK: Duration = Duration::from_secs(60);
/// Requests of one commit at the most.
const GROUP: usize = 1024;

/// The thread's own.
pub(super) struct Writer {
    pub(super) state_dir: PathBuf,
    /// `None` while it cannot be made on a full disk.
    pub(super) folder: Option<Folder>,
    bounds: Bounds,
    pub(super) shared: Arc<Shared>,
    /// `None` while the database has to be opened anew.
    pub(super) store: Option<Store>,
    /// The file that was opened last: device and inode.
    pub(super) file: Option<(u64, u64)>,
    /// The file that SQLite found damaged once while it worked with it …
    pub(super) suspect: Option<(u64, u64)>,
    /// … and why it is put aside, if it did so twice.
    pub(super) distrust: Option<String>,
    /// Why puts are refused.
    pub(super) ill: Option<Refusal>,
    /// When it may be opened anew.
    pub(super) retry_at: Instant,
    pub(super) last_n: u64,
    /// What became of events and is in memory alone; bounded, because nothing is handed out past [`super::marks::UNSYNCED`].
    pub(super) owed: BTreeMap<u64, Fate>,
    /// Marks that are committed and not synced.
    pub(super) unsynced: usize,
    /// Nothing is handed out because marks cannot be kept.
    pub(super) is_starved: bool,
    /// What [`super::Outbox::said`] said last, and whether it is written down.
    pub(super) said: (String, bool),
    folded: Folded,
    clock_saved: Instant,
}

impl Writer {
    pub fn new(state_dir: PathBuf, bounds: Bounds, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        Writer {
            state_dir,
            folder: None,
            bounds,
            shared,
            store: None,
            file: None,
            suspect: None,
            distrust: None,
            ill: None,
            retry_at: now,
            last_n: 0,
            owed: BTreeMap::new(),
            unsynced: 0,
            is_starved: false,
            said: (String::new(), true),
            folded: Folded::default(),
            clock_saved: now,
        }
    }

    /// Opens the database, or begins without one if that may pass; where a damaged one was put.
    pub fn start(&mut self) -> Result<Option<PathBuf>, OutboxError> {
        let opened = self.open().or_else(|error| {
            self.fall_ill(error.passing()?, true);
            Ok(None)
        });
        self.publish();
        opened
    }

    /// Works until it is closed, or every handle is gone.
    pub fn run(mut self, inbox: &Receiver<(Request, Option<OwnedSemaphorePermit>)>) {
        let mut ticked = Instant::now();
        loop {
            let (mut group, mut permits) = (Vec::new(), Vec::new());
            match inbox.recv_timeout(TICK.saturating_sub(ticked.elapsed())) {
                Ok((request, permit)) => {
                    group.push(request);
                    permits.push(permit);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.end(),
            }
            while group.len() < GROUP
                && let Ok((request, permit)) = inbox.try_recv()
            {
                group.push(request);
                permits.push(permit);
            }
            if let Some(closed) = self.round(group) {
                self.end();
                // The lock goes with it: who is told that it is closed may open it.
                drop(self);
                // Whoever asked may be gone.
                let _ = closed.send(());
                return;
            }
            drop(permits);
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.tick();
            }
        }
    }

    /// All that waits: first what changes something, in one commit, then what reads.
    fn round(&mut self, group: Vec<Request>) -> Option<oneshot::Sender<()>> {
        let (mut changes, mut reads, mut closing) = (Vec::new(), Vec::new(), None);
        for request in group {
            match request {
                Request::Close { reply } => closing = Some(reply),
                Request::Said { error, reply } => {
                    if self.said.0 != error {
                        self.said = (error, false);
                    }
                    let _ = reply.send(());
                }
                Request::Pending { .. } | Request::Cursor { .. } => reads.push(request),
                _ => changes.push(request),
            }
        }
        if !changes.is_empty() {
            self.reopen();
            // While it is ill, once a tick is enough.
            if self.ill.is_none() {
                self.write_owed();
            }
            self.change(changes);
        }
        if !reads.is_empty() {
            self.reopen();
            reads.into_iter().for_each(|request| self.read(request));
        }
        closing
    }

    fn change(&mut self, changes: Vec<Request>) {
        let durable = changes.iter().any(|c| matches!(c, Request::Put { .. } | Request::SetCursor { .. }));
        let mut kept = Vec::new();
        let done = self.transact(durable, |store, bounds, gone| {
            for change in &changes {
                match change {
                    Request::Put { events, .. } => kept.push(store.put(events, bounds, gone)?),
                    Request::Sent { acks, .. } => store.sent(acks)?,
                    Request::Failed { n, code, reason, .. } => {
                        store.failed(*n, code, reason, bounds, gone)?;
                    }
                    Request::SetCursor { name, cursor, .. } => store.set_cursor(name, cursor)?,
                    _ => {}
                }
            }
            Ok(())
        });
        let puts = changes.iter().filter(|change| matches!(change, Request::Put { .. })).count();
        let came = done.is_ok() && kept.iter().any(Result::is_ok);
        let refused = if done.is_ok() { kept.iter().filter(|kept| kept.is_err()).count() } else { puts };
        self.folded.refused += refused as u64;
        if done.is_err() {
            self.count_refused(puts as u64);
        }
        // Who has an answer sees it counted.
        self.publish();
        let mut kept = kept.into_iter();
        // Whoever asked may be gone.
        for change in changes {
            match change {
                Request::Put { reply, .. } => {
                    let answer = match &done {
                        Ok(()) => kept.next().unwrap_or_else(|| Err(super::closed())),
                        Err(refusal) => Err(refusal.clone()),
                    };
                    let _ = reply.send(answer);
                }
                Request::Sent { acks, reply } => {
                    if done.is_err() {
                        self.owed.extend(acks.into_iter().map(|ack| (ack.n, Fate::Sent(ack))));
                    } else {
                        self.marked(acks.len(), durable);
                        self.drained();
                    }
                    let _ = reply.send(());
                }
                Request::Failed { n, code, reason, reply } => {
                    if done.is_err() {
                        self.owed.insert(n, Fate::Failed(code, reason));
                    } else {
                        self.marked(1, durable);
                    }
                    let _ = reply.send(());
                }
                Request::SetCursor { reply, .. } => drop(reply.send(done.clone())),
                _ => {}
            }
        }
        if came {
            self.shared.changed.notify_one();
        }
    }

    fn count_refused(&mut self, puts: u64) {
        match &mut self.store {
            Some(store) => store.tally.counts.refused += puts,
            None => {
                self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner).refused += puts;
            }
        }
    }

    /// Something went through: what kept it from being drained is over.
    fn drained(&mut self) {
        if !self.said.0.is_empty() {
            self.said = (String::new(), false);
        }
    }

    /// One transaction. One that is not `durable` survives a crash of the agent, and may be lost with the machine.
    pub(super) fn transact(
        &mut self,
        durable: bool,
        work: impl FnOnce(&mut Store, &Bounds, &mut Gone) -> rusqlite::Result<()>,
    ) -> Result<(), Refusal> {
        let patience = self.patience();
        if self.store.is_some() && self.file != file_of(&self.state_dir) {
            let why = "outbox.db was removed or replaced while the agent ran; what was in it is lost";
            return Err(self.fall_ill(Refusal::new("outbox-failed", why), true));
        }
        let Some(store) = &mut self.store else {
            return Err(self.ill.clone().unwrap_or_else(super::closed));
        };
        let mut gone = Gone::default();
        let run = || {
            store.wait_for_lock(patience)?;
            store.set_durable(durable)?;
            store.begin()?;
            work(store, &self.bounds, &mut gone)?;
            store.commit()
        };
        match run() {
            Ok(()) => {
                self.last_n = self.last_n.max(store.tally.last_n);
                self.folded.add(&gone);
                // The log is one file: what was committed before is synced with it.
                if durable {
                    self.unsynced = 0;
                }
                if self.ill.take().is_some() {
                    tracing::info!("the outbox works again");
                    self.shared.changed.notify_one();
                }
                Ok(())
            }
            Err(error) => {
                store.undo();
                Err(self.failed(&error))
            }
        }
    }

    /// How long to wait for a lock. Once it is known that somebody has it, a look at it is enough: nobody waits for an
    /// answer, and the end of the agent does not either.
    fn patience(&self) -> Duration {
        let is_busy = self.ill.as_ref().is_some_and(|ill| ill.code == BUSY_CODE);
        if is_busy { Duration::ZERO } else { BUSY }
    }

    /// Tells the handles how it stands.
    pub(super) fn publish(&self) {
        if let Some(store) = &self.store {
            *self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner) = store.tally.counts;
        }
        *self.shared.ill.lock().unwrap_or_else(PoisonError::into_inner) = self.ill.clone();
    }

    fn read(&mut self, request: Request) {
        // Whoever asked may be gone.
        match request {
            Request::Cursor { name, reply } => drop(reply.send(self.look(|store| store.cursor(&name)))),
            Request::Pending { after, limit, bytes, reply } => {
                let may = self.may_hand_out(false);
                let found = if may { self.pending(after, limit, bytes) } else { Ok(Vec::new()) };
                // When it works again it is asked again.
                let _ = reply.send(found.unwrap_or_default());
            }
            _ => {}
        }
    }

    fn look<T>(&mut self, read: impl FnOnce(&mut Store) -> rusqlite::Result<T>) -> Result<T, Refusal> {
        let patience = self.patience();
        match &mut self.store {
            Some(store) => {
                store.wait_for_lock(patience).and_then(|()| read(store)).map_err(|error| self.failed(&error))
            }
            None => Err(self.ill.clone().unwrap_or_else(super::closed)),
        }
    }

    /// What is pending and not settled in memory already.
    fn pending(&mut self, mut after: u64, limit: usize, bytes: usize) -> Result<Vec<Entry>, Refusal> {
        loop {
            let mut found = self.look(|store| store.pending(after, limit, bytes))?;
            let Some(last) = found.last() else { return Ok(found) };
            after = last.n;
            found.retain(|entry| !self.owed.contains_key(&entry.n));
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }

    /// What time and other processes did.
    fn tick(&mut self) {
        self.reopen();
        self.write_owed();
        // What may be handed out again is asked for again.
        if self.is_starved && self.may_hand_out(true) {
            self.shared.changed.notify_one();
        }
        let bounds = self.bounds;
        let looked = self.look(|store| {
            let is_more = store.look()? && store.tally.counts.pending > 0;
            Ok((is_more, store.has_expired(&bounds)?))
        });
        let (is_more, has_expired) = looked.unwrap_or_default();
        if is_more {
            self.shared.changed.notify_one();
        }
        if has_expired {
            self.expire();
        }
        if !self.said.1 {
            let said = self.said.0.clone();
            self.said.1 = self.transact(false, |store, _, _| store.said(&said)).is_ok();
        }
        let waits = self.store.as_ref().is_some_and(|store| store.tally.counts.pending > 0);
        // It need not wait for a put to find that it works again.
        let may_work = self.ill.is_some() && !is_full(&self.state_dir);
        if may_work || waits && self.clock_saved.elapsed() >= CLOCK {
            self.clock_saved = Instant::now();
            let _ = self.transact(false, |store, _, _| store.save_clock());
        }
        self.publish();
        self.folded.say();
    }

    fn expire(&mut self) {
        let mut expired = 0;
        let done = self.transact(false, |store, bounds, gone| {
            expired = store.expire(bounds, gone)?;
            Ok(())
        });
        if done.is_ok() && expired > 0 {
            tracing::warn!(
                "{expired} events were pending for more than {:?} and are in the state error (expired) now",
                self.bounds.age
            );
        }
    }

    fn end(&mut self) {
        self.write_owed();
        let said = self.said.0.clone();
        let _ = self.transact(false, |store, _, _| {
            store.said(&said)?;
            store.save_clock()
        });
        self.folded.say_now();
        self.publish();
        // Closing writes the log back into the file.
        self.store = None;
    }
}
