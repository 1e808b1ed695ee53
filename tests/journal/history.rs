//! One random life of a journal, with crashes at the calls on its way.
//!
//!     open ─▶ publish | commit | mark | rotate | retain | full disk | failing call ─▶ stop | kill | power cut
//!       ▲                                                                                      │
//!       └──────────────────────────────────────────────────────────────────────────────────────┘
//!
//! Always holds: the model is told what is under way before the journal is, and what is acked only after
//! `commit` returned `Ok`; a batch that was refused is forgotten by the model at once, so it must never
//! appear, not even after a crash. While `commit` runs, before it says `DiskFull`, it may.

use crate::model::{
    Model, Part, Sent, draw_batch, draw_notes, draw_repeats, most, open, push_note, survives,
};
use crate::sim::{Call, Cut, Hook, Lies, Rng, SimDisk};
use castra::core::event::Batch;
use castra::core::journal::read::Reader;
use castra::core::journal::segment::Map;
use castra::core::journal::spare::{self, Spare};
use castra::core::journal::writer::{CommitError, Share, Writer, note_bytes};
use castra::core::journal::{Opened, retain};
use std::sync::{Arc, Mutex};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[derive(Clone, Copy, Default)]
pub struct Plan {
    pub lies: Lies,
}

/// What a history came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    pub points: u64,
    pub acked: u64,
    pub refused: u64,
    pub failed: u64,
    pub retained: u64,
    pub lives: u64,
    pub rotations: u64,
    /// Events that were sent again and not written again.
    pub repeats: u64,
    /// Notes that were acked.
    pub notes: u64,
    /// Notes that were acked in the reserve, where a publisher had no room.
    pub reserved: u64,
    pub trace: u64,
}

impl Done {
    pub fn add(&mut self, other: &Done) {
        self.points += other.points;
        self.acked += other.acked;
        self.refused += other.refused;
        self.failed += other.failed;
        self.retained += other.retained;
        self.lives += other.lives;
        self.rotations += other.rotations;
        self.repeats += other.repeats;
        self.notes += other.notes;
        self.reserved += other.reserved;
    }
}

/// Shared with the hook.
struct Context {
    model: Model,
    readers: Vec<Reader>,
    rng: Rng,
    /// One call in so many is a crash point.
    every: u64,
    bytes: u64,
    points: u64,
    failure: Option<String>,
}

impl Context {
    fn crash(&mut self, disk: &SimDisk, call: Call) {
        if self.failure.is_some() || !self.rng.one_in(self.every) {
            return;
        }
        let result = self.peek().and_then(|()| {
            let rng = &mut self.rng;
            let crashed = if rng.one_in(4) { disk.killed(rng) } else { disk.cut(rng, Cut::Any) };
            self.points += survives(&crashed, &self.model, self.bytes, rng, 0)?;
            Ok(())
        });
        self.failure = result.err().map(|why| format!("crash after {call:?}: {why}"));
    }

    /// What live readers see in the middle of a call: nothing that was not acked.
    fn peek(&mut self) -> Result<(), String> {
        if let Some(reader) = self.readers.last_mut()
            && self.rng.one_in(8)
        {
            let (model, rng) = (&self.model, &mut self.rng);
            model
                .follow(reader, model.first.1, model.acked.len() as u64, 6, rng)
                .map_err(|e| format!("live: {e}"))?;
            self.readers.rotate_right(1);
        }
        Ok(())
    }
}

struct Life {
    disk: SimDisk,
    context: Arc<Mutex<Context>>,
    writer: Writer,
    map: Arc<Map>,
    spare: Option<Spare>,
    turn: Option<usize>,
    bytes: u64,
    now: u64,
    fresh: bool,
    sent: Sent,
    done: Done,
}

/// Runs the history of `seed`.
pub fn history(seed: u64, plan: Plan) -> Result<Done, String> {
    let mut rng = Rng(seed);
    let bytes = 4096 + [2048, 2560, 4096, 8192, 16384][rng.below(5) as usize];
    let every = [1, 1, 2, 5][rng.below(4) as usize];
    let mut disk = SimDisk::new(rng.fork(), plan.lies);
    let context = Context {
        model: Model::new(),
        readers: Vec::new(),
        rng: rng.fork(),
        every,
        bytes,
        points: 0,
        failure: None,
    };
    let context = Arc::new(Mutex::new(context));
    let (mut done, mut sent) = (Done::default(), Sent::new());
    let mut trace = seed;
    for _ in 0..2 + rng.below(4) {
        disk.hook(hook(&context));
        let opened = start(&disk, &context, bytes, &mut rng, &mut done)?;
        let now = 1_000 * (1 + rng.below(50));
        let mut life = live(&disk, &context, opened, bytes, now, std::mem::take(&mut done));
        // Publishers outlive the broker.
        life.sent = std::mem::take(&mut sent);
        let result = life.run(&mut rng);
        sent = std::mem::take(&mut life.sent);
        done = std::mem::take(&mut life.done);
        done.lives += 1;
        drop(life);
        trace = trace.rotate_left(9) ^ disk.trace();
        if let Some(why) = context.lock().unwrap().failure.take() {
            return Err(why);
        }
        result?;
        disk.unhook();
        context.lock().unwrap().readers.clear();
        disk = match rng.below(3) {
            0 => disk.killed(&mut rng),
            _ => disk.cut(&mut rng, Cut::Any),
        };
    }
    let context = context.lock().unwrap();
    (done.points, done.trace) = (context.points, trace ^ context.rng.0);
    Ok(done)
}

fn hook(context: &Arc<Mutex<Context>>) -> Hook {
    let context = context.clone();
    Box::new(move |disk, call| context.lock().unwrap().crash(disk, call))
}

/// Opens the journal, now and then with calls that fail; at last it must work.
fn start(
    disk: &SimDisk,
    context: &Mutex<Context>,
    bytes: u64,
    rng: &mut Rng,
    done: &mut Done,
) -> Result<Opened, String> {
    while rng.one_in(4) {
        let call =
            [Call::Write, Call::Sync, Call::SyncDir, Call::Rename, Call::SetSize, Call::Create, Call::Remove];
        let call = call[rng.below(7) as usize];
        let errno = if call == Call::Write && rng.one_in(2) { ENOSPC } else { EIO };
        disk.fail(call, rng.below(2), errno);
        let opened = open(disk, bytes);
        let unused = disk.heal();
        match opened {
            // What is served after that must last as if nothing had happened.
            Ok(opened) => return adopt(context, opened, bytes, rng),
            Err(why) if unused > 0 => return Err(format!("opening failed by itself: {why}")),
            Err(_) => done.failed += 1,
        }
    }
    adopt(context, open(disk, bytes)?, bytes, rng)
}

fn adopt(context: &Mutex<Context>, opened: Opened, bytes: u64, rng: &mut Rng) -> Result<Opened, String> {
    let mut context = context.lock().unwrap();
    let last = context.model.check(&opened, rng).map_err(|e| format!("opened: {e}"))?;
    context.model.adopt(&opened, last, bytes)?;
    let first = opened.map().first_seq();
    context.model.first = (first, first);
    Ok(opened)
}

fn live(
    disk: &SimDisk,
    context: &Arc<Mutex<Context>>,
    opened: Opened,
    bytes: u64,
    now: u64,
    done: Done,
) -> Life {
    let map = opened.map().clone();
    let mut shared = context.lock().unwrap();
    let last = shared.model.acked.len() as u64;
    for _ in 0..4 {
        let from = shared.rng.below(last + 2);
        shared.readers.push(opened.reader(from));
    }
    drop(shared);
    let (disk, context, writer) = (disk.clone(), context.clone(), opened.into_writer());
    let sent = Sent::new();
    Life { disk, context, writer, map, spare: None, turn: None, bytes, now, fresh: true, sent, done }
}

/// Why a life ends early.
enum End {
    /// The disk failed, as planned.
    Failed,
    Wrong(String),
}

impl Life {
    fn model<T>(&self, f: impl FnOnce(&mut Model) -> T) -> T {
        f(&mut self.context.lock().unwrap().model)
    }

    fn run(&mut self, rng: &mut Rng) -> Result<(), String> {
        for _ in 0..4 + rng.below(24) {
            match self.step(rng) {
                Ok(()) => {}
                Err(End::Failed) => {
                    self.done.failed += 1;
                    self.disk.heal();
                    self.disk.room(None);
                    return self.is_poisoned();
                }
                Err(End::Wrong(why)) => return Err(why),
            }
            let mut context = self.context.lock().unwrap();
            if context.failure.is_some() {
                return Ok(());
            }
            context.peek()?;
        }
        self.disk.heal();
        if rng.one_in(2) {
            self.commit().and_then(|_| self.mark()).map_err(|end| match end {
                End::Failed => "a clean stop failed".to_owned(),
                End::Wrong(why) => why,
            })?;
        }
        Ok(())
    }

    fn step(&mut self, rng: &mut Rng) -> Result<(), End> {
        self.now = (self.now + rng.below(40)).saturating_sub(rng.below(30));
        match rng.below(24) {
            0..8 => self.publish(rng).map(drop),
            8..10 => self.note(rng).map(drop),
            10..16 => self.commit().map(drop),
            16..18 => self.commit().and_then(|_| self.mark()),
            18 => self.prepare(),
            19 => self.retain(rng),
            20 => self.full(rng),
            21 => {
                self.disk.fail(Call::Write, rng.below(3), ENOSPC);
                Ok(())
            }
            22 if rng.one_in(2) => {
                let call = [
                    Call::Write,
                    Call::Sync,
                    Call::Sync,
                    Call::SyncDir,
                    Call::Rename,
                    Call::SetSize,
                    Call::Remove,
                ];
                let call = call[rng.below(7) as usize];
                let errno = if rng.one_in(2) { ENOSPC } else { EIO };
                self.disk.fail(call, rng.below(3), errno);
                Ok(())
            }
            22 => {
                self.disk.heal();
                Ok(())
            }
            _ => {
                self.commit()?;
                self.prepare()?;
                self.rotate().map(drop)
            }
        }
    }

    /// As `CommitLoop::accept` does it; false when it was refused.
    fn publish(&mut self, rng: &mut Rng) -> Result<bool, End> {
        let (batch, parts) = draw_repeats(rng, most(self.bytes), Some(&mut self.sent));
        if self.is_answered(&batch, &parts)? {
            return Ok(true);
        }
        if !self.writer.has_room(&batch) {
            self.commit()?;
            if self.is_answered(&batch, &parts)? {
                return Ok(true);
            }
            self.prepare()?;
            if !self.rotate()? || !self.writer.has_room(&batch) {
                self.done.refused += 1;
                return Ok(false);
            }
        }
        self.push(&batch, &parts)?;
        Ok(true)
    }

    /// As `CommitLoop::push_notes` does it, but for calls that fit a segment; false when it was refused.
    fn note(&mut self, rng: &mut Rng) -> Result<bool, End> {
        let notes = draw_notes(rng, most(self.bytes));
        for (i, note) in notes.iter().enumerate() {
            let bytes = note_bytes(note);
            let mut fits = self.writer.fits(bytes, Share::Common);
            if !fits || rng.one_in(12) {
                let stored = self.commit()?;
                if i > 0 && !stored {
                    return Ok(false);
                }
                if !fits && self.prepare_and_rotate()? {
                    fits = self.writer.fits(bytes, Share::Common);
                }
            }
            let reserved = !fits && self.writer.fits(bytes, Share::Reserved);
            if !self.model_note(note) {
                self.done.refused += 1;
                return Ok(false);
            }
            self.done.reserved += u64::from(reserved);
        }
        Ok(true)
    }

    fn model_note(&mut self, note: &castra::core::journal::Note) -> bool {
        // The model is told before the journal is.
        push_note(&mut self.writer, &mut self.context.lock().unwrap().model, note)
    }

    fn prepare_and_rotate(&mut self) -> Result<bool, End> {
        self.prepare()?;
        self.rotate()
    }

    /// It repeats what is acked and nothing else: the answer needs no commit and no room.
    fn is_answered(&mut self, batch: &Batch, parts: &[Part]) -> Result<bool, End> {
        let said = self.writer.repeats(batch, self.now);
        let answered = self.model(|model| model.check_repeats(said, parts)).map_err(End::Wrong)?;
        self.done.repeats += if answered { batch.len() as u64 } else { 0 };
        Ok(answered)
    }

    fn push(&mut self, batch: &Batch, parts: &[Part]) -> Result<(), End> {
        // Which ts a lost batch had, a new process cannot know: its first is not before any.
        let (known, fresh) = (self.model(|model| model.ts), std::mem::take(&mut self.fresh));
        let now = if fresh { self.now.max(known) } else { self.now };
        let expected = self.model(|model| model.push(batch, parts, now));
        let seqs = self.writer.push(batch, now);
        self.done.repeats += seqs.repeats() as u64;
        let highest = expected.iter().map(|(seq, _)| *seq).max();
        match seqs.each().take(batch.len()).eq(expected.iter().copied()) {
            true if highest == Some(seqs.highest(batch.len())) => Ok(()),
            _ => Err(End::Wrong(format!("pushed as {seqs:?}, expected {expected:?}"))),
        }
    }

    /// False when it was refused.
    fn commit(&mut self) -> Result<bool, End> {
        match self.writer.commit() {
            Ok(committed) => {
                self.done.notes += self.model(|model| model.notes_in_flight.len() as u64);
                self.model(Model::ack);
                let (durable, acked) = (self.map.durable_seq(), self.model(|m| m.acked.len() as u64));
                self.done.acked = acked;
                if durable != acked || committed.last_seq().is_some_and(|seq| seq != acked) {
                    return Err(End::Wrong(format!("acked {acked}, durable {durable}")));
                }
                Ok(true)
            }
            Err(CommitError::DiskFull) => {
                self.model(Model::refuse);
                self.done.refused += 1;
                let (next, acked) = (self.writer.next_seq(), self.model(|m| m.acked.len() as u64));
                if next != acked + 1 {
                    return Err(End::Wrong(format!("refused, and {next} comes after {acked}")));
                }
                Ok(false)
            }
            Err(CommitError::Failed(_)) => Err(End::Failed),
        }
    }

    fn mark(&mut self) -> Result<(), End> {
        self.writer.mark().map_err(|e| match e {
            CommitError::DiskFull => End::Wrong("a marker was refused".into()),
            CommitError::Failed(_) => End::Failed,
        })
    }

    /// As `Spares::run` does it.
    fn prepare(&mut self) -> Result<(), End> {
        if self.spare.is_none() {
            let made = match self.turn {
                None => spare::find_or_make(&self.disk, self.bytes, 4096),
                Some(turn) => spare::make(&self.disk, self.bytes, turn),
            };
            self.turn = Some(self.turn.map_or(1, |turn| turn + 1));
            if let Ok(spare) = made {
                self.turn = Some(usize::from(spare.name == "spare.0"));
                self.spare = Some(spare);
            }
        }
        Ok(())
    }

    fn rotate(&mut self) -> Result<bool, End> {
        let Some(spare) = self.spare.take() else { return Ok(false) };
        self.done.rotations += 1;
        match self.writer.rotate(spare) {
            Ok(()) => Ok(true),
            Err(CommitError::DiskFull) => Ok(false),
            Err(CommitError::Failed(_)) => Err(End::Failed),
        }
    }

    fn retain(&mut self, rng: &mut Rng) -> Result<(), End> {
        let segments = self.map.segments();
        let keep = rng.below(5 * self.bytes);
        let floor =
            if rng.one_in(4) { rng.below(self.map.durable_seq() + 1) } else { self.map.durable_seq() };
        let bounds = retain::Bounds { bytes: keep, floor, notes: self.map.needed(), ..Default::default() };
        let gone = retain::expired(&segments, &bounds).len();
        if gone == 0 {
            return Ok(());
        }
        let first = segments[gone].first_seq;
        self.done.retained += gone as u64;
        self.model(|model| model.first.1 = first);
        let applied = retain::apply(&self.disk, &self.map, gone);
        let oldest = self.map.first_seq();
        if applied.is_ok() {
            self.model(|model| model.first.0 = first);
        }
        if oldest > first || (oldest < first && applied.is_ok()) {
            return Err(End::Wrong(format!("retention kept {oldest}, not {first}")));
        }
        Ok(())
    }

    /// A full disk refuses; when there is room again, publishing goes on by itself.
    fn full(&mut self, rng: &mut Rng) -> Result<(), End> {
        self.disk.room(Some(rng.below(2 * self.bytes)));
        self.spare = self.spare.take().filter(|_| rng.one_in(2));
        let mut refused = false;
        for _ in 0..rng.below(12) {
            refused |= !self.publish(rng)?;
            if rng.one_in(3) {
                self.note(rng)?;
            }
            if rng.one_in(2) {
                self.commit()?;
            }
        }
        self.commit()?;
        self.disk.room(None);
        self.disk.heal();
        // Whatever was sent before, this was not.
        self.sent.clear();
        if refused && !(self.publish(rng)? && self.commit()?) {
            return Err(End::Wrong("there is room again and it still refuses".into()));
        }
        Ok(())
    }

    /// After the disk failed nothing is written and nothing accepted (invariant 3).
    fn is_poisoned(&mut self) -> Result<(), String> {
        let durable = self.map.durable_seq();
        self.prepare().map_err(|_| "prepare")?;
        let writes = self.disk.writes();
        let rotated = self.spare.take().map(|spare| self.writer.rotate(spare));
        let mut rng = Rng(durable);
        let (batch, _) = draw_batch(&mut rng, 1500);
        let pushed = self.writer.has_room(&batch);
        if pushed {
            self.writer.push(&batch, self.now);
        }
        draw_notes(&mut rng, 300).iter().for_each(|note| self.writer.push_note(note));
        let committed = self.writer.commit();
        let marked = self.writer.mark();
        let ok = rotated.is_some_and(|r| r.is_ok()) || (pushed && committed.is_ok());
        let failed = matches!(marked, Err(CommitError::Failed(_)) | Ok(()));
        if ok || !failed || writes != self.disk.writes() || durable != self.map.durable_seq() {
            return Err("a writer whose disk failed goes on".into());
        }
        Ok(())
    }
}
