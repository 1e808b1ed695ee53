//! The thread castra-outbox: what was asked for, in its order, what waits together in one commit.
//!
//! Always holds: a put is answered after its commit, which is synced; when the database fails nothing is answered as
//! kept, it is said once, and every later put tries it anew, so that it works again by itself; what the broker
//! acknowledged and could not be written down is kept in memory and tried again. Owner: [`super::Outbox`].

use super::folder::Folder;
use super::open;
use super::store::{Gone, Store, trouble};
use super::{Bounds, Cursor, Entry, Kept, Put, Sent, Shared};
use crate::core::refusal::Refusal;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// So often it looks what commands and time did.
const TICK: Duration = Duration::from_secs(1);
/// So often the outbox's clock is written down while something is pending.
const CLOCK: Duration = Duration::from_secs(60);
/// What is refused or dropped again and again is said so often.
const FOLD: Duration = Duration::from_secs(60);
/// Requests of one commit at the most.
const GROUP: usize = 1024;

/// What is asked of the thread.
pub(super) enum Request {
    Put { events: Vec<Put>, reply: oneshot::Sender<Result<Vec<Kept>, Refusal>> },
    Sent { acks: Vec<Sent>, reply: oneshot::Sender<()> },
    Failed { n: u64, code: String, reason: String, reply: oneshot::Sender<()> },
    Said { error: String, reply: oneshot::Sender<()> },
    SetCursor { name: String, cursor: Cursor, reply: oneshot::Sender<Result<(), Refusal>> },
    Cursor { name: String, reply: oneshot::Sender<Result<Option<Cursor>, Refusal>> },
    Pending { after: u64, limit: usize, bytes: usize, reply: oneshot::Sender<Result<Vec<Entry>, Refusal>> },
    Close { reply: oneshot::Sender<()> },
}

/// What the broker said of an event and is not written down yet.
enum Fate {
    Sent(Sent),
    Failed(String, String),
}

/// What waits between two times that it is said.
#[derive(Default)]
struct Folded {
    gone: Gone,
    refused: u64,
    said: Option<Instant>,
}

/// The thread's own.
pub(super) struct Writer {
    folder: Folder,
    bounds: Bounds,
    shared: Arc<Shared>,
    /// `None` while the database has to be opened anew.
    store: Option<Store>,
    /// The file that is open: device and inode.
    file: Option<(u64, u64)>,
    /// Why puts are refused.
    ill: Option<Refusal>,
    /// When it may be opened anew.
    retry_at: Instant,
    last_n: u64,
    owed: BTreeMap<u64, Fate>,
    /// What [`super::Outbox::said`] said last, and whether it is written down.
    said: (String, bool),
    folded: Folded,
    clock_saved: Instant,
}

impl Writer {
    pub fn new(folder: Folder, store: Store, bounds: Bounds, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        let mut writer = Writer {
            folder,
            bounds,
            shared,
            store: Some(store),
            file: None,
            ill: None,
            retry_at: now,
            last_n: 0,
            owed: BTreeMap::new(),
            said: (String::new(), true),
            folded: Folded::default(),
            clock_saved: now,
        };
        writer.opened();
        writer
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
            self.write_owed();
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
        let mut kept = kept.into_iter();
        let mut came = false;
        // Whoever asked may be gone.
        for change in changes {
            match change {
                Request::Put { reply, .. } => {
                    let answer = match &done {
                        Ok(()) => kept.next().unwrap_or_else(|| Err(super::closed())),
                        Err(refusal) => {
                            self.count_refused();
                            Err(refusal.clone())
                        }
                    };
                    came |= answer.is_ok();
                    self.folded.refused += u64::from(answer.is_err());
                    let _ = reply.send(answer);
                }
                Request::Sent { acks, reply } => {
                    if done.is_err() {
                        self.owed.extend(acks.into_iter().map(|ack| (ack.n, Fate::Sent(ack))));
                    } else {
                        self.drained();
                    }
                    let _ = reply.send(());
                }
                Request::Failed { n, code, reason, reply } => {
                    if done.is_err() {
                        self.owed.insert(n, Fate::Failed(code, reason));
                    }
                    let _ = reply.send(());
                }
                Request::SetCursor { reply, .. } => drop(reply.send(done.clone())),
                _ => {}
            }
        }
        self.publish_counts();
        if came {
            self.shared.changed.notify_one();
        }
    }

    fn count_refused(&mut self) {
        match &mut self.store {
            Some(store) => store.tally.counts.refused += 1,
            None => {
                self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner).refused += 1;
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
    fn transact(
        &mut self,
        durable: bool,
        work: impl FnOnce(&mut Store, &Bounds, &mut Gone) -> rusqlite::Result<()>,
    ) -> Result<(), Refusal> {
        if self.store.is_some() && self.file != file_of(&self.folder) {
            let why = "outbox.db was removed or replaced while the agent ran; what was in it is lost";
            return Err(self.fall_ill(Refusal::new("outbox-failed", why), true));
        }
        let Some(store) = &mut self.store else {
            return Err(self.ill.clone().unwrap_or_else(super::closed));
        };
        let mut gone = Gone::default();
        let run = || {
            store.set_durable(durable)?;
            store.begin()?;
            work(store, &self.bounds, &mut gone)?;
            store.commit()
        };
        match run() {
            Ok(()) => {
                self.last_n = self.last_n.max(store.tally.last_n);
                self.folded.gone.pending += gone.pending;
                self.folded.gone.error += gone.error;
                if self.ill.take().is_some() {
                    tracing::info!("the outbox works again");
                }
                Ok(())
            }
            Err(error) => {
                store.undo();
                let anew = !is_passing(&error);
                Err(self.fall_ill(trouble(&error), anew))
            }
        }
    }

    /// Says once what is wrong. `anew`: the database has to be opened again.
    fn fall_ill(&mut self, refusal: Refusal, anew: bool) -> Refusal {
        if self.ill.as_ref().is_none_or(|ill| ill.code != refusal.code) {
            tracing::error!("{refusal}; new events are refused until it works again");
        }
        if anew {
            self.store = None;
            self.retry_at = Instant::now() + TICK;
        }
        self.ill = Some(refusal.clone());
        refusal
    }

    /// Opens the database again, if it has to be and it is time to.
    fn reopen(&mut self) {
        if self.store.is_some() || Instant::now() < self.retry_at {
            return;
        }
        match open::open(&self.folder, self.last_n) {
            Ok((mut store, _)) => {
                let counts = *self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
                store.keep_counting(&counts);
                self.store = Some(store);
                self.opened();
                if self.ill.take().is_some() {
                    tracing::info!("the outbox works again");
                }
            }
            Err(error) => {
                let refusal = match error {
                    super::OutboxError::Failed(refusal) => refusal,
                    other => Refusal::new("outbox-failed", other.to_string()),
                };
                self.fall_ill(refusal, true);
            }
        }
    }

    fn opened(&mut self) {
        self.file = file_of(&self.folder);
        // A full disk: the next put says so.
        let _ = self.transact(false, |store, _, _| store.save_clock());
        if let Some(store) = &self.store {
            self.last_n = self.last_n.max(store.tally.last_n);
        }
        self.publish_counts();
        self.shared.changed.notify_one();
    }

    fn publish_counts(&self) {
        if let Some(store) = &self.store {
            *self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner) = store.tally.counts;
        }
    }

    fn write_owed(&mut self) {
        if self.owed.is_empty() || self.store.is_none() {
            return;
        }
        let owed = std::mem::take(&mut self.owed);
        let written = self.transact(false, |store, bounds, gone| {
            owed.iter().try_for_each(|(n, fate)| match fate {
                Fate::Sent(ack) => store.sent(&[*ack]),
                Fate::Failed(code, reason) => store.failed(*n, code, reason, bounds, gone),
            })
        });
        if written.is_err() {
            self.owed = owed;
        }
    }

    fn read(&mut self, request: Request) {
        let store = self.store.as_ref().ok_or_else(|| self.ill.clone().unwrap_or_else(super::closed));
        let failed = match request {
            Request::Cursor { name, reply } => {
                let found = store.and_then(|store| store.cursor(&name).map_err(|e| trouble(&e)));
                let failed = found.as_ref().err().cloned();
                let _ = reply.send(found);
                failed
            }
            Request::Pending { after, limit, bytes, reply } => {
                let found = store.and_then(|store| self.pending(store, after, limit, bytes));
                let failed = found.as_ref().err().cloned();
                let _ = reply.send(found);
                failed
            }
            _ => None,
        };
        if let Some(refusal) = failed.filter(|_| self.store.is_some()) {
            self.fall_ill(refusal, true);
        }
    }

    /// What is pending and not settled in memory already.
    fn pending(
        &self,
        store: &Store,
        mut after: u64,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<Entry>, Refusal> {
        loop {
            let mut found = store.pending(after, limit, bytes).map_err(|e| trouble(&e))?;
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
        let Some(store) = &mut self.store else { return };
        let looked = store.look().and_then(|changed| Ok((changed, store.has_expired(&self.bounds)?)));
        match looked {
            Ok((changed, expired)) => {
                if changed && store.tally.counts.pending > 0 {
                    self.shared.changed.notify_one();
                }
                if expired {
                    self.expire();
                }
            }
            Err(error) => drop(self.fall_ill(trouble(&error), !is_passing(&error))),
        }
        if !self.said.1 {
            let said = self.said.0.clone();
            self.said.1 = self.transact(false, |store, _, _| store.said(&said)).is_ok();
        }
        let waits = self.store.as_ref().is_some_and(|store| store.tally.counts.pending > 0);
        if waits && self.clock_saved.elapsed() >= CLOCK {
            self.clock_saved = Instant::now();
            let _ = self.transact(false, |store, _, _| store.save_clock());
        }
        self.publish_counts();
        self.say_folded();
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

    fn say_folded(&mut self) {
        let Folded { gone, refused, said } = &self.folded;
        if *gone == Gone::default() && *refused == 0 || said.is_some_and(|said| said.elapsed() < FOLD) {
            return;
        }
        if gone.pending > 0 {
            tracing::warn!("the outbox is full: its {} oldest pending events were dropped", gone.pending);
        }
        if gone.error > 0 {
            tracing::warn!("{} old events in the state error were dropped to keep their bound", gone.error);
        }
        if *refused > 0 {
            tracing::warn!("{refused} puts were refused");
        }
        self.folded = Folded { said: Some(Instant::now()), ..Folded::default() };
    }

    fn end(&mut self) {
        self.write_owed();
        let said = self.said.0.clone();
        let _ = self.transact(false, |store, _, _| {
            store.said(&said)?;
            store.save_clock()
        });
        self.folded.said = None;
        self.say_folded();
        self.publish_counts();
        // Closing writes the log back into the file.
        self.store = None;
    }
}

/// Whether the same connection may go on: another one held the database, or the disk is full.
fn is_passing(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked | DiskFull))
}

fn file_of(folder: &Folder) -> Option<(u64, u64)> {
    std::fs::metadata(folder.database()).ok().map(|file| (file.dev(), file.ino()))
}
