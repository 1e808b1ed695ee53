//! The journal: the only truth. One global order of events, durable before anybody else sees them.
//!
//! ```text
//! submit ─▶ inbox.rs ─▶ commit.rs (thread) ─▶ writer.rs ─▶ segment files ─▶ read.rs (any number of readers)
//!                             ▲ spare.rs (thread) keeps the next segment ready, retain.rs removes the oldest
//! ```
//!
//! `recover.rs` opens it after any stop. Always holds: invariants 1 to 5 of `core/mod.rs`. Files: `disk.rs`
//! the calls, `record.rs` and `segment.rs` the format, `scan.rs` a walk over records, `look.rs` what
//! stands in a journal, `held.rs` and `inspect.rs` the same for whoever only reads, `repeats.rs`, `seen.rs` and `window.rs`
//! which events are repeats, `opening.rs` and `snapshot.rs` what a segment begins with of that, `refill.rs` the same after a start; `lookup.rs` and `index.rs` find a time
//! or an id; `notes.rs` what others keep here, `replay.rs` the same after a
//! start; `timeline.rs` and `timekeeper.rs` how old events are, `retainer.rs` has retention done and says so. Owner:
//! `broker.rs`.

mod ages;
pub mod aligned;
mod commit;
mod committed;
mod damage;
pub mod disk;
pub mod held;
mod inbox;
mod index;
pub mod inspect;
mod look;
mod lookup;
pub mod notes;
mod opening;
pub mod read;
pub mod record;
mod recover;
mod refill;
mod repeats;
mod replay;
pub mod retain;
mod retainer;
mod scan;
mod seen;
pub mod segment;
mod snapshot;
pub mod spare;
mod timekeeper;
mod timeline;
mod turns;
mod window;
pub mod writer;

pub use ages::{Ages, Uncounted};
pub use commit::{NotCommitted, Outcome, Receipt};
pub use damage::{Damage, Found};
pub use look::OpenError;
pub use lookup::SeqAt;
pub use notes::{Class, Note, NoteTooLong};
pub use recover::Report;
pub use repeats::Seqs;

use super::clock::wall_ms;
use super::event::Batch;
use super::limits::Limits;
use commit::{CommitLoop, NoteCall, Observer, SeenCall, Submission};
use disk::Disk;
use inbox::Inbox;
use read::Reader;
pub use retain::{Reached, Removed, Without};
use retainer::Retainer;
use segment::Map;
use spare::Spares;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use timekeeper::Timekeeper;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use writer::{Committed, Share, Writer};

/// A journal that was recovered and is not written yet: the time to bring the views up to date.
pub struct Opened {
    disk: Arc<dyn Disk>,
    map: Arc<Map>,
    writer: Writer,
    time: Arc<Timekeeper>,
    /// What was found.
    pub report: Report,
}

impl Opened {
    /// Recovers the journal of that id in `disk`; an empty directory is an empty journal.
    ///
    /// # Errors
    /// [`OpenError`]: the disk fails, or a segment must not or cannot be used.
    pub fn open(disk: Arc<dyn Disk>, id: u128, segment_bytes: u64) -> Result<Self, OpenError> {
        let recover::Recovered { map, report, rewritten } = recover::recover(&*disk, id, segment_bytes)?;
        let map = Arc::new(map);
        if let Err(error) = index::clean(&*disk, &map) {
            tracing::warn!(%error, "journal: an index of ids that is of no use could not be removed");
        }
        let seen = refill::refill(&disk, &map).map_err(look::failed("read its ids"))?;
        let time = Arc::new(Timekeeper::open(&*disk, &map, report.next.ts));
        let writer = Writer::new(disk.clone(), map.clone(), report.next, rewritten, seen);
        Ok(Opened { disk, map, writer, time, report })
    }

    /// The map of segments.
    pub fn map(&self) -> &Arc<Map> {
        &self.map
    }

    /// Reads from `seq` on.
    pub fn reader(&self, seq: u64) -> Reader {
        Reader::new(self.disk.clone(), self.map.clone(), seq)
    }

    /// A maker of readers that outlives this.
    pub fn readers(&self) -> impl Fn(u64) -> Reader + Send + use<> {
        let (disk, map) = (self.disk.clone(), self.map.clone());
        move |seq| Reader::new(disk.clone(), map.clone(), seq)
    }

    /// As [`Writer::repeats`].
    pub fn repeats(&self, batch: &Batch, now: u64) -> Option<Seqs> {
        self.writer.repeats(batch, now)
    }

    /// As [`Journal::seq_at`].
    ///
    /// # Errors
    /// As there.
    pub fn seq_at(&self, ts: u64) -> io::Result<SeqAt> {
        lookup::seq_at(&self.disk, &self.map, ts)
    }

    /// As [`Journal::seq_after_id`].
    ///
    /// # Errors
    /// As there.
    pub fn seq_after_id(&self, id: &str, vm: Option<&str>) -> io::Result<Option<u64>> {
        lookup::seq_after_id(&self.disk, &self.map, id, vm, |id, vm| {
            Ok(self.writer.seen(&id, vm.map(str::as_bytes), wall_ms()))
        })
    }

    /// As [`Journal::check_sealed`].
    pub fn check_sealed(&self, pause: impl FnMut() -> bool, each: impl FnMut(Damage)) {
        damage::check_sealed(&*self.disk, &self.map, pause, each);
    }

    /// Hands out the notes that are needed, in their order: the newest whole snapshot (its begin, its parts, its end) and
    /// every change behind it; without such a snapshot every change. What of the segments that were read is damaged
    /// comes back: a note may have been there, and a snapshot that it hits is left out.
    ///
    /// # Errors
    /// A segment cannot be opened or read.
    pub fn notes(&self, mut each: impl FnMut(Class, &[u8])) -> io::Result<Vec<Damage>> {
        replay::replay(&*self.disk, &self.map, &self.report.next, &mut each)
    }

    /// The writer alone, without threads: for tests that drive it step by step.
    pub fn into_writer(self) -> Writer {
        self.writer
    }

    /// Starts the threads. `committed` gets every commit with events, in order, and may wait to slow publishers down;
    /// `rotated` is called when a segment begins, and must not wait: whoever keeps notes then writes a snapshot of all
    /// that they say, in one call (not when it began in the middle of such a call). `failed` is called once when the disk failed; `reached` says how far retention may and need go.
    ///
    /// # Errors
    /// A thread cannot be had.
    pub fn start(
        self,
        limits: &Limits,
        committed: impl FnMut(Arc<Committed>) + Send + 'static,
        rotated: impl FnMut() + Send + 'static,
        failed: impl FnOnce(String) + Send + 'static,
        reached: Reached,
    ) -> io::Result<Journal> {
        let Opened { disk, map, writer, time, .. } = self;
        let spares = Arc::new(Spares::default());
        let (inbox, rounds) = inbox::open();
        let observer = Callbacks { committed, rotated, failed: Some(failed) };
        let commit = CommitLoop {
            writer,
            time: time.clone(),
            spares: spares.clone(),
            rounds,
            observer,
            waiting: Vec::new(),
            noted: Vec::new(),
            dead: false,
            full_until: None,
        };
        let committer =
            std::thread::Builder::new().name("castra-commit".into()).spawn(move || commit.run())?;
        let retainer = Arc::new(Retainer::new(&time, &map, limits, reached));
        {
            let (spares, disk, retainer) = (spares.clone(), disk.clone(), retainer.clone());
            let segment_bytes = limits.segment_bytes;
            let run = move || spares.run(&*disk, segment_bytes, || retainer.keep(&*disk));
            std::thread::Builder::new().name("castra-keeper".into()).spawn(run)?;
        }
        let committer = Mutex::new(Some(committer));
        Ok(Journal { disk, map, time, retainer, spares, inbox, committer })
    }
}

/// A journal that is being written.
pub struct Journal {
    disk: Arc<dyn Disk>,
    map: Arc<Map>,
    time: Arc<Timekeeper>,
    retainer: Arc<Retainer>,
    spares: Arc<Spares>,
    inbox: Inbox,
    committer: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    /// Hands a batch to the commit thread; its outcome comes when it is durable or refused. The permit is
    /// given back then. Batches of one `lane` (a session's number) keep their order; the first that waits in a
    /// lane is in the next commit that begins, whatever stands in the others.
    pub fn submit(
        &self,
        lane: u64,
        batch: Batch,
        permit: OwnedSemaphorePermit,
    ) -> oneshot::Receiver<Outcome> {
        self.submit_to(Share::Common, lane, batch, permit)
    }

    /// The same for what must not be refused with the publishers while there is no next segment: it may take the end of
    /// this one that is kept for such batches and for notes.
    pub fn submit_reserved(
        &self,
        lane: u64,
        batch: Batch,
        permit: OwnedSemaphorePermit,
    ) -> oneshot::Receiver<Outcome> {
        self.submit_to(Share::Reserved, lane, batch, permit)
    }

    fn submit_to(
        &self,
        share: Share,
        lane: u64,
        batch: Batch,
        permit: OwnedSemaphorePermit,
    ) -> oneshot::Receiver<Outcome> {
        let (reply, outcome) = oneshot::channel();
        // After the end the submission is dropped with its reply, which says so.
        self.inbox.submit(lane, Submission { batch, reply, permit, share });
        outcome
    }

    /// Writes notes, in their order and behind those of the calls before; `Ok` when all of them are durable. A refused
    /// call has stored nothing, but for one larger than a segment: of that one the first notes may be stored. After the
    /// end the receiver fails. Nothing bounds what waits here: have one call under way at a time.
    pub fn note(&self, notes: Vec<Note>) -> oneshot::Receiver<Result<(), NotCommitted>> {
        let (reply, outcome) = oneshot::channel();
        self.inbox.note(NoteCall { notes, reply });
        outcome
    }

    /// Resolves when the commit thread has come round to it: a disk that hangs keeps it waiting, and after the
    /// end it is an error.
    pub fn probe(&self) -> oneshot::Receiver<()> {
        let (alive, answer) = oneshot::channel();
        self.inbox.probe(alive);
        answer
    }

    /// The map of segments.
    pub fn map(&self) -> &Arc<Map> {
        &self.map
    }

    /// Reads from `seq` on.
    pub fn reader(&self, seq: u64) -> Reader {
        Reader::new(self.disk.clone(), self.map.clone(), seq)
    }

    /// Where reading from a time on begins; `ts` is wall time in milliseconds. Blocks, for a few reads of a
    /// segment, and holds no lock meanwhile.
    ///
    /// # Errors
    /// A segment cannot be opened or read.
    pub fn seq_at(&self, ts: u64) -> io::Result<SeqAt> {
        lookup::seq_at(&self.disk, &self.map, ts)
    }

    /// The seq behind the newest event with this id, of that VM or of whatever VM; `None` when no event that can be read
    /// has it and the table of ids that were seen has it neither (then the event may be gone). Blocks: the newest segment is read, and the first time that an id is looked for in another one, that too
    /// (some seconds for a GiB). Holds no lock meanwhile. Call it for one id at a time.
    ///
    /// # Errors
    /// A segment cannot be opened or read, or the journal ends.
    pub fn seq_after_id(&self, id: &str, vm: Option<&str>) -> io::Result<Option<u64>> {
        lookup::seq_after_id(&self.disk, &self.map, id, vm, |id, vm| {
            let (reply, answer) = oneshot::channel();
            self.inbox.ask(SeenCall { id, vm: vm.map(|vm| vm.as_bytes().to_vec()), reply });
            answer.blocking_recv().map_err(|_| io::Error::other("the journal ends"))
        })
    }

    /// How old events are now.
    pub fn ages(&self) -> Ages {
        self.time.ages()
    }

    /// What retention has removed since the start.
    pub fn removed(&self) -> Removed {
        self.retainer.removed()
    }

    /// There is no room for the next segment.
    pub fn is_full(&self) -> bool {
        self.spares.failed()
    }

    /// Reads every record of the sealed segments and hands out what is damaged. Takes as long as reading
    /// them does; `pause` runs between segments and ends the check when it returns false.
    pub fn check_sealed(&self, pause: impl FnMut() -> bool, each: impl FnMut(Damage)) {
        damage::check_sealed(&*self.disk, &self.map, pause, each);
    }

    /// Commits what was submitted and says that all is durable. Blocks; the keeper ends by itself.
    pub fn stop(&self) {
        self.inbox.end();
        let committer = self.committer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = committer.map(JoinHandle::join);
        // The committer may have needed one. A spare that is just being filled is nothing to wait for.
        self.spares.stop();
        self.time.save(&*self.disk, &self.map, true);
    }
}

struct Callbacks<C, R, F: FnOnce(String)> {
    committed: C,
    rotated: R,
    failed: Option<F>,
}

/// A commit thread that panics is a journal that failed, not a broker that goes on without one.
impl<C, R, F: FnOnce(String)> Drop for Callbacks<C, R, F> {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(failed) = self.failed.take()
        {
            failed("the commit thread panicked".to_owned());
        }
    }
}

impl<C, R, F> Observer for Callbacks<C, R, F>
where
    C: FnMut(Arc<Committed>) + Send,
    R: FnMut() + Send,
    F: FnOnce(String) + Send,
{
    fn committed(&mut self, committed: Arc<Committed>) {
        (self.committed)(committed);
    }

    fn rotated(&mut self) {
        (self.rotated)();
    }

    fn failed(&mut self, error: &io::Error) {
        if let Some(failed) = self.failed.take() {
            failed(error.to_string());
        }
    }
}
