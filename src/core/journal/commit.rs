//! The commit thread: group commit. Next: `delivery/router.rs`.
//!
//! It takes what is waiting, one write, one fdatasync, then releases the acks in order; whatever arrives
//! meanwhile is the next commit. So a commit costs the same for one VM as for a thousand. It takes whole
//! rounds (`turns.rs`), one batch of every session that waits, and begins no further one when it has
//! [`COMMIT_BYTES`]. Always holds: a reply says durable only after the fdatasync (invariant 1); after a failed
//! one every waiting publisher is told `outcome-unknown`, once, and the process ends (invariant 3); a session's
//! next batch is in the first commit that begins after it came, whatever the others send. Only a round that is
//! larger than a segment takes a commit for each segment. After a refusal for want of room everything is refused for
//! [`FULL_TIME`], so that what a publisher had under way behind a refused event is not stored before it. A repeat (`seen.rs`) is answered once what it repeats is
//! durable, and takes no room. Owner: [`super::Journal`].

use super::inbox::{Next, Rounds};
use super::repeats::Seqs;
use super::spare::Spares;
use super::writer::{CommitError, Committed, Writer};
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
}

/// What a commit tells the rest.
pub(super) trait Observer: Send {
    /// These events are durable. May wait when the views are too far behind.
    fn committed(&mut self, committed: Arc<Committed>);
    /// The journal is dead.
    fn failed(&mut self, error: &std::io::Error);
}

pub(super) struct CommitLoop<O> {
    pub writer: Writer,
    pub spares: Arc<Spares>,
    pub rounds: Rounds,
    pub observer: O,
    /// Pushed and not yet committed, with the seqs each will have.
    pub waiting: Vec<(Seqs, Submission)>,
    pub dead: bool,
    /// A batch found no room: nothing is taken before this.
    pub full_until: Option<Instant>,
}

impl<O: Observer> CommitLoop<O> {
    /// Until the inbox ends and all that waited in it is committed.
    pub fn run(mut self) {
        let mut idle = true;
        loop {
            match self.rounds.next((!idle).then_some(IDLE)) {
                Next::Round(round) => {
                    self.take(round);
                    self.gather();
                    self.commit();
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

    /// Takes a round, in one segment if one can hold it: then it is in one commit.
    fn take(&mut self, round: Vec<Submission>) {
        if !self.dead && self.writer.wants_next(round.iter().map(|submission| &submission.batch)) {
            self.commit();
            // Without a spare all of it is refused.
            let _ = self.next_segment();
        }
        round.into_iter().for_each(|submission| self.accept(submission));
    }

    fn accept(&mut self, submission: Submission) {
        if self.dead {
            return refuse(submission, NotCommitted::Unknown);
        }
        let Some(mut submission) = self.answer_repeats(submission) else { return };
        if self.full_until.is_some_and(|until| Instant::now() < until) {
            return refuse(submission, NotCommitted::DiskFull);
        }
        self.full_until = None;
        if !self.writer.has_room(&submission.batch) {
            self.commit();
            // What it repeats was waiting, perhaps, and is durable now.
            match self.answer_repeats(submission) {
                Some(rest) => submission = rest,
                None => return,
            }
            if let Err(reason) = self.next_segment() {
                return refuse(submission, reason);
            }
            if !self.writer.has_room(&submission.batch) {
                return refuse(submission, self.full());
            }
        }
        let seqs = self.writer.push(&submission.batch, wall_ms());
        self.waiting.push((seqs, submission));
    }

    /// What repeats only what is durable needs no room and no commit; anything else comes back.
    fn answer_repeats(&mut self, submission: Submission) -> Option<Submission> {
        match self.writer.repeats(&submission.batch) {
            Some(seqs) => settle(seqs, submission),
            None => return Some(submission),
        }
        None
    }

    fn next_segment(&mut self) -> Result<(), NotCommitted> {
        if self.dead {
            return Err(NotCommitted::Unknown);
        }
        let Some(spare) = self.spares.take() else { return Err(self.full()) };
        match self.writer.rotate(spare) {
            Ok(()) => Ok(()),
            Err(CommitError::DiskFull) => Err(self.full()),
            Err(CommitError::Failed(error)) => {
                self.die(&error);
                Err(NotCommitted::Unknown)
            }
        }
    }

    fn commit(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        match self.writer.commit() {
            Ok(committed) => {
                self.waiting.drain(..).for_each(|(seqs, submission)| settle(seqs, submission));
                self.observer.committed(committed);
            }
            Err(CommitError::DiskFull) => {
                let reason = self.full();
                self.waiting.drain(..).for_each(|(_, submission)| refuse(submission, reason));
            }
            Err(CommitError::Failed(error)) => self.die(&error),
        }
    }

    /// There is no room.
    fn full(&mut self) -> NotCommitted {
        self.full_until = Some(Instant::now() + FULL_TIME);
        NotCommitted::DiskFull
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
        self.waiting.drain(..).for_each(|(_, submission)| refuse(submission, NotCommitted::Unknown));
        self.observer.failed(error);
    }
}

fn settle(seqs: Seqs, submission: Submission) {
    let Submission { batch, reply, permit } = submission;
    // A session that is gone wants no receipt.
    let _ = reply.send(Ok(Receipt { seqs, batch }));
    drop(permit);
}

fn refuse(submission: Submission, reason: NotCommitted) {
    let _ = submission.reply.send(Err(reason));
}
