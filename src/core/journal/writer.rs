//! The one writer: encodes events and notes into the newest segment and makes them durable.
//!
//! ```text
//! begin ──push*──▶ commit: write, fdatasync ──▶ durable, handed to the views as one `Committed`
//!                      │ no room: the chunk so far is committed, then the next segment begins
//!                      ├ the write found no space ──▶ refused; the segment is sealed, the next one tried
//!                      └ the write or the sync failed ──▶ poisoned: nothing is written ever again
//! ```
//!
//! Always holds: nothing is durable in the map before its fdatasync returned 0 (invariant 1); after a
//! failed fsync nothing is retried (invariant 3); a full disk refuses and changes nothing (invariant 4); the last
//! bytes of a segment, its *reserve*, hold only what was asked for with [`Share::Reserved`]; the first commit of a segment
//! begins with the *opening* (`opening.rs`).
//! No thread, no clock: `commit.rs` owns it and runs it, the model test in `tests/journal` drives it.

use super::aligned::Aligned;
pub use super::committed::Committed;
use super::committed::{Placed, free_chunk};
use super::disk::Disk;
use super::look::Next;
use super::notes::Note;
use super::opening::{Opening, head};
use super::record::{self, Head, Kind, encode, size};
use super::recover::Rewritten;
use super::repeats::Seqs;
use super::seen::Seen;
use super::segment::{HEADER_BYTES, Header, Map, Segment, activate};
use super::spare::Spare;
use crate::core::event::{Batch, Layout};
use crate::core::limits::{LETTER_BYTES, RESERVED_BYTES};
use crate::core::room::is_full;
use std::io;
use std::sync::Arc;

/// Why a batch was not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// There is no room; the batch left nothing behind.
    #[error("the disk is full")]
    DiskFull,
    /// The disk failed; whether the batch is durable is not known, and this writer writes no more.
    #[error("{0}")]
    Failed(#[from] io::Error),
}

/// How much of a segment is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All but the reserve.
    Common,
    /// All: so that consumers go on while there is no next segment and publishers are refused.
    Reserved,
}

struct Active {
    spare: Spare,
    salt: u32,
    end: u64,
    /// The bytes before `end` in its block: they are written again with what follows, the same as they are.
    rest: Vec<u8>,
}

/// Writes one journal.
pub struct Writer {
    disk: Arc<dyn Disk>,
    map: Arc<Map>,
    active: Option<Active>,
    next: Next,
    /// Behind what is durable.
    durable: Next,
    poisoned: bool,
    /// A marker says that everything is durable; nothing came after it.
    marked: bool,
    /// The ids that are durable, and those of `chunk`.
    seen: Seen,
    /// What the next write begins with, before `chunk`; the views do not get it.
    opening: Opening,
    chunk: Arc<Committed>,
    /// What is written, in whole blocks.
    blocks: Aligned,
    /// Buffers that the views may still read; reused when they are done.
    used: Vec<Arc<Committed>>,
}

impl Writer {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        map: Arc<Map>,
        next: Next,
        rewritten: Option<Rewritten>,
        seen: Seen,
    ) -> Self {
        let first_lsn = rewritten.as_ref().map_or(0, |rewritten| rewritten.segment.first_lsn);
        let active = rewritten.map(|Rewritten { spare, segment, rest }| Active {
            spare,
            salt: record::salt(map.journal, segment.first_lsn),
            end: segment.end,
            rest,
        });
        let is_whole = active.as_ref().is_some_and(|_| next.ids.from >= first_lsn);
        let mut writer = Writer {
            disk,
            map,
            active,
            next,
            durable: next,
            poisoned: false,
            marked: true,
            seen,
            opening: Opening::default(),
            chunk: Arc::default(),
            blocks: Aligned::default(),
            used: Vec::new(),
        };
        writer.map.has_ids(!writer.seen.is_empty());
        // The tail may have brought one along.
        if !is_whole {
            writer.open();
        }
        writer
    }

    /// Makes the opening of a segment. Nothing may be pushed and not committed.
    fn open(&mut self) {
        let Some(active) = self.active.as_ref().filter(|_| !self.seen.is_empty()) else { return };
        let most = Opening::most(&active.spare);
        // Where a rewritten tail fills its segment the next one is near.
        if most <= room(&active.spare, active.end, Share::Common) {
            self.opening.make(&self.seen, &self.map, &mut self.next, active.salt, most);
        }
    }

    /// The seq that the next event will get.
    pub fn next_seq(&self) -> u64 {
        self.next.seq
    }

    /// Whether `batch` fits behind what was pushed; if not, commit and begin the next segment.
    pub fn has_room(&self, batch: &Batch) -> bool {
        self.fits(batch_bytes(batch), Share::Common)
    }

    /// The same for records of so many `bytes`, in that part of the segment.
    pub fn fits(&self, bytes: u64, share: Share) -> bool {
        let pushed = (self.opening.bytes.len() + self.chunk.bytes.len()) as u64;
        let left = |active: &Active| room(&active.spare, active.end + pushed, share);
        self.active.as_ref().is_some_and(|active| bytes <= left(active))
    }

    /// Whether records of so many `bytes` would fit a segment as large as this, if there were nothing else in it.
    pub fn would_fit(&self, bytes: u64) -> bool {
        let opening = |active: &Active| if self.seen.is_empty() { 0 } else { Opening::most(&active.spare) };
        let left = |active: &Active| room(&active.spare, HEADER_BYTES + opening(active), Share::Common);
        self.active.as_ref().is_some_and(|active| bytes <= left(active))
    }

    /// Whether these `batches` do not fit behind what was pushed and would all fit a segment as large as this.
    pub fn wants_next<'a>(&self, batches: impl Iterator<Item = &'a Batch>) -> bool {
        let bytes: u64 = batches.map(batch_bytes).sum();
        self.would_fit(bytes) && !self.fits(bytes, Share::Common)
    }

    /// There is a segment that is written.
    pub fn has_segment(&self) -> bool {
        self.active.is_some()
    }

    /// Bytes pushed and not committed.
    pub fn pending_bytes(&self) -> usize {
        self.chunk.bytes.len()
    }

    /// The seqs of `batch` when it is nothing but repeats of what is durable: then nothing is to be written. `now` is
    /// wall time in milliseconds.
    pub fn repeats(&self, batch: &Batch, now: u64) -> Option<Seqs> {
        let pending = self.chunk.first_seq().unwrap_or(self.next.seq);
        Seqs::of_repeats(batch, pending, self.next.ts.max(now), &self.seen)
    }

    /// The seq of the newest durable event of this id that the table has; `now` is wall time in milliseconds.
    pub fn seen(&self, id: &[u8], vm: Option<&[u8]>, now: u64) -> Option<u64> {
        self.seen.newest(vm, id, self.next.ts.max(now), self.durable.seq)
    }

    /// Encodes `batch` behind what was pushed, but for its repeats; its seqs. `now` is wall time in milliseconds.
    ///
    /// Call only when [`Writer::has_room`].
    pub fn push(&mut self, batch: &Batch, now: u64) -> Seqs {
        let first_seq = self.next.seq;
        let Some(active) = &self.active else { return Seqs::default() };
        self.next.ts = self.next.ts.max(now);
        let seqs = Seqs::give(batch, first_seq, self.next.ts, &mut self.seen);
        let chunk = free_chunk(&mut self.chunk, &mut self.used);
        let ts_text = format!(",\"ts\":{},", self.next.ts);
        let mut number = itoa::Buffer::new();
        let mut prefix = Vec::with_capacity(64);
        for ((i, draft), (_, repeat)) in batch.drafts().iter().enumerate().zip(seqs.each()) {
            if repeat {
                continue;
            }
            let tail = batch.tail(draft);
            prefix.clear();
            prefix.extend_from_slice(b"{\"seq\":");
            prefix.extend_from_slice(number.format(self.next.seq).as_bytes());
            prefix.extend_from_slice(ts_text.as_bytes());
            let layout = Layout::of(draft, prefix.len());
            let head = Head {
                lsn: self.next.lsn,
                seq: self.next.seq,
                ts: self.next.ts,
                synced: self.durable.lsn - 1,
                kind: Kind::Event,
                joined: seqs.goes_on(batch.drafts(), i),
                layout,
            };
            let at = chunk.bytes.len() + record::HEAD_BYTES;
            encode(&mut chunk.bytes, active.salt, &head, [&prefix, tail]);
            let len = (prefix.len() + tail.len()) as u32;
            debug_assert!(len as usize <= LETTER_BYTES + 1);
            chunk.events.push(Placed { seq: head.seq, ts: head.ts, at: at as u32, len, layout });
            self.next.lsn += 1;
            self.next.seq += 1;
        }
        self.marked &= self.next.seq == first_seq;
        seqs
    }

    /// Encodes a note behind what was pushed.
    ///
    /// Call only when its [`note_bytes`] fit.
    pub fn push_note(&mut self, note: &Note) {
        let Some(active) = &self.active else { return };
        let chunk = free_chunk(&mut self.chunk, &mut self.used);
        let head = Head { synced: self.durable.lsn - 1, ..head(&self.next, Kind::Note(note.class())) };
        encode(&mut chunk.bytes, active.salt, &head, [note.body(), b""]);
        self.next = self.next.behind(&head);
        self.marked = false;
    }

    /// Writes and syncs what was pushed. On `Ok` it is durable, and comes back for the views.
    ///
    /// # Errors
    /// [`CommitError`]; what was pushed is gone from the writer either way.
    pub fn commit(&mut self) -> Result<Arc<Committed>, CommitError> {
        let chunk = std::mem::take(&mut self.chunk);
        if chunk.bytes.is_empty() {
            return Ok(chunk);
        }
        let written = self.write(&chunk.bytes);
        match written {
            Ok(()) => self.seen.keep(self.next.ts),
            Err(_) => self.seen.forget(),
        }
        if let Err(CommitError::DiskFull) = written {
            self.take_back();
        }
        written?;
        self.used.push(chunk.clone());
        Ok(chunk)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CommitError> {
        let poisoned = || io::Error::other("an earlier write of this journal failed");
        let Some(active) = self.active.as_mut().filter(|_| !self.poisoned) else {
            return Err(poisoned().into());
        };
        self.blocks.clear();
        self.blocks.push(&active.rest);
        self.blocks.push(&self.opening.bytes);
        self.blocks.push(bytes);
        let from = active.end - active.rest.len() as u64;
        match active.spare.file.write_at(self.blocks.blocks(), from) {
            Ok(()) => {}
            Err(e) if is_full(&e) => return Err(self.refuse()),
            Err(e) => {
                self.poisoned = true;
                return Err(e.into());
            }
        }
        if let Err(e) = active.spare.file.sync() {
            self.poisoned = true;
            return Err(e.into());
        }
        active.end += (self.opening.bytes.len() + bytes.len()) as u64;
        self.opening.clear();
        active.rest.clear();
        active.rest.extend_from_slice(self.blocks.rest());
        self.durable = self.next;
        self.map.advance(active.end, &self.next);
        self.map.has_ids(!self.seen.is_empty());
        Ok(())
    }

    /// What was refused leaves nothing behind but its time.
    fn take_back(&mut self) {
        self.next = Next { ts: self.next.ts, ..self.durable };
        self.opening.clear();
    }

    /// A write found no space: the segment ends before it. What reached the file must not come back after a
    /// crash, nor be stepped over by a reader and then written anew; only when that is sure it was refused.
    fn refuse(&mut self) -> CommitError {
        let Some(Active { spare, end, .. }) = self.active.take() else { return CommitError::DiskFull };
        match spare.file.set_size(end).and_then(|()| spare.file.sync()) {
            Ok(()) => CommitError::DiskFull,
            Err(e) => {
                self.poisoned = true;
                e.into()
            }
        }
    }

    /// Carries `synced` over the last batch when the journal falls idle. Does nothing a second time.
    ///
    /// # Errors
    /// As [`Writer::commit`].
    pub fn mark(&mut self) -> Result<(), CommitError> {
        debug_assert!(self.chunk.bytes.is_empty());
        let Some(active) = self
            .active
            .as_ref()
            .filter(|a| !self.marked && a.end + (self.opening.bytes.len() + size(0)) as u64 <= a.spare.bytes)
        else {
            return Ok(());
        };
        let head = Head { synced: self.durable.lsn - 1, ..head(&self.next, Kind::Marker) };
        let mut bytes = Vec::new();
        encode(&mut bytes, active.salt, &head, [b"", b""]);
        self.next.lsn += 1;
        match self.write(&bytes) {
            Ok(()) => self.marked = true,
            Err(CommitError::DiskFull) => self.take_back(),
            failed => return failed,
        }
        Ok(())
    }

    /// Makes `spare` the newest segment. Nothing may be pushed and not committed.
    ///
    /// # Errors
    /// As [`Writer::commit`]; after `DiskFull` the newest segment is what it was.
    pub fn rotate(&mut self, spare: Spare) -> Result<(), CommitError> {
        debug_assert!(self.chunk.bytes.is_empty());
        if self.poisoned {
            return Err(io::Error::other("an earlier write of this journal failed").into());
        }
        // An opening that nothing was written behind is made anew in the next segment.
        self.take_back();
        let header = Header {
            journal: self.map.journal,
            first_lsn: self.next.lsn,
            first_seq: self.next.seq,
            synced_lsn: self.next.lsn - 1,
            synced_seq: self.next.seq - 1,
            ts: self.next.ts,
            notes: self.next.notes,
            ids: self.next.ids,
        };
        match activate(&*self.disk, &*spare.file, spare.name, &header) {
            Ok(()) => {}
            Err(e) if is_full(&e) => return Err(CommitError::DiskFull),
            Err(e) => {
                self.poisoned = true;
                return Err(e.into());
            }
        }
        if let Some(sealed) = self.active.take() {
            // Gives the unused zeros back; nothing depends on it.
            let _ = sealed.spare.file.set_size(sealed.end);
        }
        self.map.push(Segment {
            first_lsn: header.first_lsn,
            first_seq: header.first_seq,
            end: HEADER_BYTES,
            ts: header.ts,
        });
        self.active = Some(Active { spare, salt: header.salt(), end: HEADER_BYTES, rest: Vec::new() });
        self.open();
        Ok(())
    }
}

/// What records behind `end` may take of a segment; a marker must fit behind them.
fn room(spare: &Spare, end: u64, share: Share) -> u64 {
    let reserve = if share == Share::Common { RESERVED_BYTES.min(spare.bytes / 8) } else { 0 };
    spare.bytes.saturating_sub(end + size(0) as u64 + reserve)
}

/// What the record of `note` takes.
pub fn note_bytes(note: &Note) -> u64 {
    size(note.body().len()) as u64
}

/// What the records of `batch` take at the most.
pub fn batch_bytes(batch: &Batch) -> u64 {
    (batch.bytes() + batch.len() * (record::HEAD_BYTES + 64)) as u64
}
