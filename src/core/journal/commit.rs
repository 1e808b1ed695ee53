//! The commit thread: group commit. Next: `delivery/router.rs`.
//!
//! It takes what is waiting, one write, one fdatasync, then releases the acks in order; whatever arrives
//! meanwhile is the next commit. So a commit costs the same for one VM as for a thousand. It takes whole
//! rounds (`turns.rs`), one batch of every session that waits, and begins no further one when it has
//! [`COMMIT_BYTES`]. Always holds: a reply says durable only after the fdatasync (invariant 1); after a failed
//! one every waiting publisher is told `outcome-unknown`, once, and the process ends (invariant 3); a session's
//! next batch is in the first commit that begins after it came, whatever the others send. Only a round that is
//! larger than a segment takes a commit for each segment. After a refusal for want of room everything is refused for
//! [`FULL_TIME`], so that what a publisher had under way behind a refused event is not stored before it. A repeat
//! (`seen.rs`) is answered once what it repeats is durable, and takes no room. Notes, and batches that are marked for it,
//! are not refused with the publishers: while there is no next segment they have the reserve of this one. A call of notes
//! stands in one segment if one can hold it. Owner: [`super::Journal`].

use super::inbox::{Next, Round, Rounds};
use super::notes::{Class, Note};
use super::repeats::Seqs;
use super::spare::Spares;
use super::timekeeper::Timekeeper;
use super::writer::{CommitError, Committed, Share, Writer, batch_bytes, note_bytes};
use crate::core::clock::wall_ms;
use crate::core::event::Batch;
use crate::core::limits::{COMMIT_BYTES, FULL_TIME};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// After so long without a publish the journal is idle and a marker is written.
const IDLE: Duration = Duration::from_millis(100);

/// What became of a batch.
pub type Outcome = Result<Receipt, NotCommitted>;

/// A batch that is durable.
#[derive(Debug, Default)]
pub struct Receipt {
    /// The seqs of its events, and which of them were stored before.
    pub seqs: Seqs,
    /// The batch, back for its acks.
    pub batch: Batch,
}

impl Receipt {
    /// The highest seq that it has; 0 when it has no events.
    pub fn last_seq(&self) -> u64 {
        self.seqs.highest(self.batch.len())
    }
}

/// Why a batch has no receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotCommitted {
    /// It was refused, and nothing of it is stored.
    DiskFull,
    /// The disk failed: it may be stored or not. Send it again with the same ids.
    Unknown,
}

/// A batch on its way to the disk.
pub(super) struct Submission {
    pub batch: Batch,
    pub reply: oneshot::Sender<Outcome>,
    /// Its share of the bytes that may be under way in all.
    pub permit: OwnedSemaphorePermit,
    /// How much of a segment it may take.
    pub share: Share,
}

/// Notes on their way to the disk.
pub(super) struct NoteCall {
    pub notes: Vec<Note>,
    pub reply: oneshot::Sender<Result<(), NotCommitted>>,
}

/// A question for the seq of an id that was seen, of that VM or of any; the id as it stands in events.
pub(super) struct SeenCall {
    pub id: Vec<u8>,
    pub vm: Option<Vec<u8>>,
    pub reply: oneshot::Sender<Option<u64>>,
}

/// What a commit tells the rest.
pub(super) trait Observer: Send {
    /// These events are durable. May wait when the views are too far behind.
    fn committed(&mut self, committed: Arc<Committed>);
    /// A segment begins that has no snapshot of the notes yet. Must not wait.
    fn rotated(&mut self);
    /// The journal is dead.
    fn failed(&mut self, error: &std::io::Error);
}

pub(super) struct CommitLoop<O> {
    pub writer: Writer,
    /// How old events are.
    pub time: Arc<Timekeeper>,
    pub spares: Arc<Spares>,
    pub rounds: Rounds,
    pub observer: O,
    /// Pushed and not yet committed, with the seqs each will have.
    pub waiting: Vec<(Seqs, Submission)>,
    /// The same for calls of notes, those whose last note is pushed.
    pub noted: Vec<oneshot::Sender<Result<(), NotCommitted>>>,
    pub dead: bool,
    /// A batch found no room: nothing is taken before this.
    pub full_until: Option<Instant>,
}

impl<O: Observer> CommitLoop<O> {
    /// Until the inbox ends and all that waited in it is committed.
    pub fn run(mut self) {
        let mut idle = true;
        if self.writer.has_segment() {
            // Recovery has begun it.
            self.observer.rotated();
        }
        loop {
            match self.rounds.next((!idle).then_some(IDLE)) {
                Next::Round(round) => {
                    self.take(round);
                    self.gather();
                    // Whoever waited has been told.
                    let _ = self.commit();
                    idle = false;
                }
                Next::Quiet => {
                    self.mark();
                    idle = true;
                }
                Next::End => break,
            }
        }
        self.mark();
    }

    /// Takes further rounds, up to one commit's worth.
    fn gather(&mut self) {
        while self.writer.pending_bytes() < COMMIT_BYTES
            && let Some(round) = self.rounds.try_next()
        {
            self.take(round);
        }
    }

    /// Takes a round, its batches in one segment if one can hold them: then they are in one commit.
    fn take(&mut self, round: Round) {
        let Round { batches, notes, asked } = round;
        for SeenCall { id, vm, reply } in asked {
            // Who asked may be gone.
            let _ = reply.send(self.writer.seen(&id, vm.as_deref(), wall_ms()));
        }
        let publishers = batches.iter().filter(|submission| submission.share == Share::Common);
        if !self.dead && self.writer.wants_next(publishers.map(|submission| &submission.batch)) {
            let _ = self.commit();
            if self.next_segment(true) == Err(NotCommitted::DiskFull) {
                // All of it is refused.
                self.full();
            }
        }
        batches.into_iter().for_each(|submission| self.accept(submission));
        if let Some(NoteCall { notes, reply }) = notes {
            match self.push_notes(&notes) {
                Ok(()) => self.noted.push(reply),
                Err(reason) => answer(reply, Err(reason)),
            }
        }
    }

    fn accept(&mut self, submission: Submission) {
        if self.dead {
            return refuse(submission, NotCommitted::Unknown);
        }
        let Some(mut submission) = self.answer_repeats(submission) else { return };
        let (bytes, share) = (batch_bytes(&submission.batch), submission.share);
        if share == Share::Common {
            if self.full_until.is_some_and(|until| Instant::now() < until) {
                return refuse(submission, NotCommitted::DiskFull);
            }
            self.full_until = None;
        }
        if !self.fits(bytes, share) {
            let _ = self.commit();
            // What it repeats was waiting, perhaps, and is durable now.
            match self.answer_repeats(submission) {
                Some(rest) => submission = rest,
                None => return,
            }
            if let Err(reason) = self.make_room(bytes, share, true) {
                if reason == NotCommitted::DiskFull && share == Share::Common {
                    self.full();
                }
                return refuse(submission, reason);
            }
        }
        let seqs = self.writer.push(&submission.batch, wall_ms());
        self.waiting.push((seqs, submission));
    }

    /// All of a call, or an error; what was pushed of it before that may be stored.
    fn push_notes(&mut self, notes: &[Note]) -> Result<(), NotCommitted> {
        if self.dead {
            return Err(NotCommitted::Unknown);
        }
        // Then one is on its way into the segment that begins.
        let tell = notes.iter().all(|note| note.class() != Class::SnapshotBegin);
        if !notes.is_empty() && !self.writer.has_segment() {
            self.next_segment(tell)?;
        }
        let whole: u64 = notes.iter().map(note_bytes).sum();
        let together = self.writer.would_fit(whole);
        if together && !self.fits(whole, Share::Reserved) {
            let _ = self.commit();
            self.make_room(whole, Share::Reserved, tell)?;
        }
        let mut pushed = 0;
        for (i, note) in notes.iter().enumerate() {
            let bytes = note_bytes(note);
            let fits = match together {
                true => self.writer.fits(bytes, Share::Reserved),
                false => self.fits(bytes, Share::Reserved),
            };
            if !fits || pushed >= COMMIT_BYTES as u64 {
                let committed = self.commit();
                // What was refused with others is none of it.
                if i > 0 {
                    committed?;
                }
                self.make_room(bytes, Share::Reserved, tell)?;
                pushed = 0;
            }
            pushed += bytes;
            self.writer.push_note(note);
        }
        Ok(())
    }

    /// Whether records of so many bytes fit what is pushed. The reserve is only for when there is no next segment.
    fn fits(&self, bytes: u64, share: Share) -> bool {
        self.writer.fits(bytes, Share::Common)
            || (share == Share::Reserved && self.spares.failed() && self.writer.fits(bytes, share))
    }

    /// Begins the next segment if that helps. Nothing may be pushed and not committed.
    fn make_room(&mut self, bytes: u64, share: Share, tell: bool) -> Result<(), NotCommitted> {
        let begun = if !self.dead && self.fits(bytes, share) { Ok(()) } else { self.next_segment(tell) };
        match begun {
            Err(NotCommitted::Unknown) => begun,
            _ if self.writer.fits(bytes, share) => Ok(()),
            _ => Err(NotCommitted::DiskFull),
        }
    }

    /// What repeats only what is durable needs no room and no commit; anything else comes back.
    fn answer_repeats(&mut self, submission: Submission) -> Option<Submission> {
        match self.writer.repeats(&submission.batch, wall_ms()) {
            Some(seqs) => settle(seqs, submission),
            None => return Some(submission),
        }
        None
    }

    fn next_segment(&mut self, tell: bool) -> Result<(), NotCommitted> {
        if self.dead {
            return Err(NotCommitted::Unknown);
        }
        let Some(spare) = self.spares.take() else { return Err(NotCommitted::DiskFull) };
        match self.writer.rotate(spare) {
            Ok(()) => {
                if tell {
                    self.observer.rotated();
                }
                Ok(())
            }
            Err(CommitError::DiskFull) => Err(NotCommitted::DiskFull),
            Err(CommitError::Failed(error)) => {
                self.die(&error);
                Err(NotCommitted::Unknown)
            }
        }
    }

    /// Commits what was pushed and tells whoever waits for it.
    fn commit(&mut self) -> Result<(), NotCommitted> {
        if self.dead {
            return Err(NotCommitted::Unknown);
        }
        if self.waiting.is_empty() && self.noted.is_empty() && self.writer.pending_bytes() == 0 {
            return Ok(());
        }
        match self.writer.commit() {
            Ok(committed) => {
                if let Some(last) = committed.last_seq() {
                    // Before anybody hears of them.
                    self.time.committed(last);
                }
                self.waiting.drain(..).for_each(|(seqs, submission)| settle(seqs, submission));
                self.noted.drain(..).for_each(|reply| answer(reply, Ok(())));
                if committed.first_seq().is_some() {
                    self.observer.committed(committed);
                }
                Ok(())
            }
            Err(CommitError::DiskFull) => {
                self.full();
                self.refuse_all(NotCommitted::DiskFull);
                Err(NotCommitted::DiskFull)
            }
            Err(CommitError::Failed(error)) => {
                self.die(&error);
                Err(NotCommitted::Unknown)
            }
        }
    }

    /// There is no room for publishers.
    fn full(&mut self) {
        self.full_until = Some(Instant::now() + FULL_TIME);
    }

    fn refuse_all(&mut self, reason: NotCommitted) {
        self.waiting.drain(..).for_each(|(_, submission)| refuse(submission, reason));
        self.noted.drain(..).for_each(|reply| answer(reply, Err(reason)));
    }

    fn mark(&mut self) {
        if !self.dead
            && let Err(CommitError::Failed(error)) = self.writer.mark()
        {
            self.die(&error);
        }
    }

    fn die(&mut self, error: &std::io::Error) {
        self.dead = true;
        self.refuse_all(NotCommitted::Unknown);
        self.observer.failed(error);
    }
}

fn settle(seqs: Seqs, submission: Submission) {
    let Submission { batch, reply, permit, .. } = submission;
    // A session that is gone wants no receipt.
    let _ = reply.send(Ok(Receipt { seqs, batch }));
    drop(permit);
}

fn answer(reply: oneshot::Sender<Result<(), NotCommitted>>, outcome: Result<(), NotCommitted>) {
    // Whoever asked may be gone.
    let _ = reply.send(outcome);
}

fn refuse(submission: Submission, reason: NotCommitted) {
    let _ = submission.reply.send(Err(reason));
}
