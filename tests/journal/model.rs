//! What the journal must hold, and the check of a crashed disk against it.
//!
//! Always holds: the lines of the model are made here, from what was published, not by the journal; which of them
//! are repeats is found by looking through all of them.

use crate::sim::{Cut, Rng, SimDisk};
use castra::core::event::{Batch, Publish, Text};
use castra::core::identity::VmName;
use castra::core::journal::read::{Read, Reader};
use castra::core::journal::record::size;
use castra::core::journal::writer::{Share, Writer, note_bytes};
use castra::core::journal::{Class, Note, Opened, Seqs};
use castra::core::limits::{RESERVED_BYTES, SEEN_IDS, SEEN_SHARE};
use std::collections::BTreeSet;
use std::sync::Arc;

pub const JOURNAL: u128 = 0xca57_4a00_1234_5678_9abc_def0_1122_3344;

/// One event as it must come back.
#[derive(Clone, Debug)]
pub struct Line {
    pub text: Arc<[u8]>,
    pub vm: String,
    pub topic: String,
    pub ts: u64,
    /// The id that its publisher gave.
    pub own_id: Option<String>,
    /// One publish with the next.
    pub joined: bool,
}

/// One event as it is sent.
#[derive(Clone, Debug)]
pub struct Part {
    pub vm: String,
    pub topic: String,
    pub own_id: Option<String>,
    /// One publish with the next.
    pub joined: bool,
}

/// VMs and ids that were sent, whatever became of them; the newest last. Some are sent again.
pub type Sent = Vec<(String, String)>;

/// What was acked, and what is under way.
#[derive(Clone, Default)]
pub struct Model {
    /// Seq 1 is the first.
    pub acked: Vec<Line>,
    /// Pushed, neither acked nor refused.
    pub in_flight: Vec<Line>,
    /// The notes that were acked, in order.
    pub notes: Vec<Note>,
    /// Those that were pushed, each with how many of `in_flight` stand before it.
    pub notes_in_flight: Vec<(Note, usize)>,
    /// A crash was before anybody was told about `in_flight`, and it did not come back. It may one crash
    /// later, as long as nothing was pushed since: the cut that took it out was not durable itself.
    pub stale: bool,
    /// The oldest event that must be there, and the oldest that may be the oldest.
    pub first: (u64, u64),
    pub ts: u64,
    /// Events that were gone when the journal was opened, and whose ids no snapshot had room for.
    pub unknown: BTreeSet<u64>,
}

/// Some publishes of random VMs: single events and groups.
pub fn draw_batch(rng: &mut Rng, most: usize) -> (Batch, Vec<Part>) {
    draw_repeats(rng, most, None)
}

/// The same, and some of them are sent again.
pub fn draw_repeats(rng: &mut Rng, most: usize, mut sent: Option<&mut Sent>) -> (Batch, Vec<Part>) {
    let mut batch = Batch::default();
    let mut parts: Vec<Part> = Vec::new();
    // Often an agent sends all that it saw no ack of.
    let again = if sent.is_some() { [0, 4, 4, 20][rng.below(4) as usize] } else { 0 };
    while parts.is_empty() || rng.one_in(3) {
        let (from, count) = (batch.len(), if rng.one_in(3) { 2 + rng.below(3) } else { 1 });
        let before = parts.len();
        for _ in 0..count {
            let repeated = match sent.as_deref() {
                Some(sent) if !sent.is_empty() && rng.below(24) < again => {
                    let back = rng.below(sent.len().min(12) as u64) as usize;
                    Some(sent[sent.len() - 1 - back].clone())
                }
                _ => None,
            };
            let (vm, own_id) = match repeated {
                Some((vm, id)) => (vm, Some(id)),
                None => (format!("vm{}", rng.below(5)), rng.one_in(2).then(|| format!("{:x}\"", rng.next()))),
            };
            let topic =
                if rng.one_in(4) { format!("vm:vm{}", rng.below(5)) } else { format!("t.{}", rng.below(9)) };
            let size = match rng.below(12) {
                0 => rng.below(most as u64 / 3) as usize,
                1..4 => rng.below(700) as usize,
                _ => rng.below(90) as usize,
            };
            // No two payloads are alike: a wrong event is seen to be wrong.
            let payload = format!("\"{:016x}{}\"", rng.next(), "x".repeat(size));
            let publish = Publish {
                topic: Some(Text(topic.as_str().into())),
                payload: Some(serde_json::from_str(&payload).unwrap()),
                id: own_id.as_deref().map(|id| Text(id.into())),
                ..Publish::default()
            };
            let id = rng.next();
            let id = |out: &mut Vec<u8>| out.extend_from_slice(format!("{id:x}").as_bytes());
            batch.push(&VmName::parse(&vm).unwrap(), &publish, id).unwrap();
            if let (Some(sent), Some(id)) = (&mut sent, &own_id) {
                sent.push((vm.clone(), id.clone()));
            }
            parts.push(Part { vm, topic, own_id, joined: true });
        }
        if batch.bytes() + 120 * batch.len() > most {
            batch.truncate(from);
            parts.truncate(before);
            continue;
        }
        batch.join(from);
        parts.last_mut().unwrap().joined = false;
    }
    (batch, parts)
}

/// What the largest batch of a segment of so many bytes takes at the most, with its estimate, behind a snapshot of ids.
pub fn most(bytes: u64) -> usize {
    (bytes - 4096 - 48 - RESERVED_BYTES.min(bytes / 8) - bytes / SEEN_SHARE) as usize
}

/// A call of notes: some changes, or a snapshot, or a part of one. No two bodies are alike.
pub fn draw_notes(rng: &mut Rng, most: usize) -> Vec<Note> {
    use Class::{Change, SnapshotBegin, SnapshotEnd, SnapshotPart};
    let classes = match rng.below(12) {
        0..7 => vec![Change; 1 + rng.below(3) as usize],
        7..11 => {
            let parts = [0, 1, 1, 2, 4, 9][rng.below(6) as usize];
            [vec![SnapshotBegin], vec![SnapshotPart; parts], vec![SnapshotEnd]].concat()
        }
        // Nobody does that; it must do no harm. Only how a call begins is promised: not in the middle of a snapshot.
        _ => {
            let first = if rng.one_in(2) { Change } else { SnapshotBegin };
            let others = (0..rng.below(4)).filter_map(|_| Class::from_byte(1 + rng.below(4) as u8));
            std::iter::once(first).chain(others).collect()
        }
    };
    let mut body = |_| {
        let size = if rng.one_in(4) { rng.below(most as u64 / 2) } else { rng.below(60) };
        [&rng.next().to_le_bytes()[..], &vec![7; size as usize]].concat()
    };
    classes.into_iter().map(|class| Note::new(class, body(class)).unwrap()).collect()
}

/// What of these notes a start hands out: the newest whole snapshot, and the changes behind it.
pub fn replayed(notes: &[Note]) -> Vec<Note> {
    let is = |at: usize, class| notes[at].class() == class;
    let whole = (0..notes.len()).rev().filter(|end| is(*end, Class::SnapshotEnd)).find_map(|end| {
        let begin = (0..end).rev().find(|at| !is(*at, Class::SnapshotPart))?;
        is(begin, Class::SnapshotBegin).then_some((begin, end + 1))
    });
    let (begin, end) = whole.unwrap_or((0, 0));
    let changes = notes[end..].iter().filter(|note| note.class() == Class::Change);
    notes[begin..end].iter().chain(changes).cloned().collect()
}

impl Model {
    pub fn new() -> Self {
        Model { first: (1, 1), ..Model::default() }
    }

    /// The batch is under way, pushed at `now`; the seq of each event, and whether it is a repeat.
    pub fn push(&mut self, batch: &Batch, parts: &[Part], now: u64) -> Vec<(u64, bool)> {
        self.begin();
        self.ts = self.ts.max(now);
        let (mut seqs, mut group) = (Vec::new(), self.in_flight.len());
        for (draft, part) in batch.drafts().iter().zip(parts) {
            let Part { vm, topic, own_id, joined } = part.clone();
            if let Some(first) = self.repeated(&part.vm, part.own_id.as_deref()) {
                seqs.push((first, true));
            } else {
                let seq = self.acked.len() + self.in_flight.len() + 1;
                let mut text = format!("{{\"seq\":{seq},\"ts\":{},", self.ts).into_bytes();
                text.extend_from_slice(batch.tail(draft));
                self.in_flight.push(Line { text: text.into(), vm, topic, ts: self.ts, own_id, joined: true });
                seqs.push((seq as u64, false));
            }
            if !joined {
                // The last of the group that is written is its end.
                if let Some(last) = self.in_flight[group..].last_mut() {
                    last.joined = false;
                }
                group = self.in_flight.len();
            }
        }
        seqs
    }

    /// The note is under way.
    pub fn push_note(&mut self, note: &Note) {
        self.begin();
        self.notes_in_flight.push((note.clone(), self.in_flight.len()));
    }

    /// What did not come back is gone for good once something is pushed.
    fn begin(&mut self) {
        if std::mem::take(&mut self.stale) {
            self.refuse();
        }
    }

    /// What was under way was refused.
    pub fn refuse(&mut self) {
        self.in_flight.clear();
        self.notes_in_flight.clear();
    }

    /// The event that this id was first given to, among the last that its VM gave.
    fn repeated(&self, vm: &str, own_id: Option<&str>) -> Option<u64> {
        let lines = (1..).zip(self.acked.iter().chain(&self.in_flight).filter(|_| own_id.is_some()));
        let known: Vec<(u64, &Line)> = lines
            .filter(|(seq, line)| line.vm == vm && line.own_id.is_some() && !self.unknown.contains(seq))
            .collect();
        let mut last = known.iter().rev().take(SEEN_IDS);
        last.find(|(_, line)| line.own_id.as_deref() == own_id).map(|(seq, _)| *seq)
    }

    /// What a writer says of a batch before it is pushed: it is all repeats of what was acked, or not.
    pub fn check_repeats(&self, said: Option<Seqs>, parts: &[Part]) -> Result<bool, String> {
        let mut acked = self.clone();
        acked.refuse();
        let all: Option<Vec<(u64, bool)>> = parts
            .iter()
            .map(|part| acked.repeated(&part.vm, part.own_id.as_deref()).map(|seq| (seq, true)))
            .collect();
        let said = said.map(|seqs| seqs.each().take(parts.len()).collect::<Vec<_>>());
        match said == all {
            true => Ok(all.is_some()),
            false => Err(format!("said to repeat {said:?}, it repeats {all:?}: {parts:?}")),
        }
    }

    /// What was under way is acked.
    pub fn ack(&mut self) {
        if !self.stale {
            self.acked.append(&mut self.in_flight);
            self.notes.extend(self.notes_in_flight.drain(..).map(|(note, _)| note));
        }
    }

    /// A recovery served events up to `last`, and so many of the notes that were under way: from now on they count as
    /// acked.
    pub fn adopt(&mut self, opened: &Opened, (last, notes): (u64, usize), bytes: u64) -> Result<(), String> {
        let more = (last as usize).saturating_sub(self.acked.len());
        self.stale = more == 0 && notes == 0;
        if !self.stale {
            self.acked.extend(self.in_flight.drain(..).take(more));
            self.notes.extend(self.notes_in_flight.drain(..).take(notes).map(|(note, _)| note));
        }
        self.forget(opened, bytes)
    }

    /// Asks which ids of events that are gone are known. All of them, when the snapshots had room for all that there were.
    fn forget(&mut self, opened: &Opened, bytes: u64) -> Result<(), String> {
        let lines = (1..).zip(self.acked.iter());
        let own: Vec<(u64, &Line, &str)> =
            lines.filter_map(|(seq, line)| Some((seq, line, line.own_id.as_deref()?))).collect();
        let vms: BTreeSet<&str> = own.iter().map(|(_, line, _)| line.vm.as_str()).collect();
        let body = vms.iter().map(|vm| 3 + vm.len()).sum::<usize>() + 24 * own.len();
        let has_room = (size(20) + size(body) + size(0)) as u64 <= bytes / SEEN_SHARE;
        let mut unknown = BTreeSet::new();
        for (seq, line, id) in own.iter().take_while(|(seq, ..)| *seq < opened.map().first_seq()) {
            let mut batch = Batch::default();
            let publish = Publish { id: Some(Text((*id).into())), ..Publish::default() };
            batch.push(&VmName::parse(&line.vm).unwrap(), &publish, |_| {}).unwrap();
            let said = opened.repeats(&batch, self.ts).and_then(|seqs| seqs.each().next());
            let is_right =
                |said: u64| own.iter().any(|own| own.0 == said && own.1.vm == line.vm && own.2 == *id);
            match said {
                Some((said, _)) if said == *seq => {}
                Some((said, _)) if !is_right(said) => {
                    return Err(format!("{id} of {seq} is known as that of {said}"));
                }
                None if has_room => {
                    return Err(format!("the id {id} of {seq} is not known, and there was room for it"));
                }
                _ => {
                    unknown.insert(*seq);
                }
            }
        }
        self.unknown = unknown;
        Ok(())
    }

    /// How many of the notes under way were recovered beside the events up to `last`: those of the longest beginning
    /// of what was pushed that explains what is replayed; of two that do the shorter, for what shows nowhere may not be
    /// there.
    fn check_notes(&self, opened: &Opened, last: u64) -> Result<usize, String> {
        let (mut got, events) = (Vec::new(), last as usize - self.acked.len());
        let damage = opened.notes(|class, body| got.push(Note::new(class, body.to_vec()).unwrap()));
        if !damage.map_err(|e| format!("reading the notes: {e}"))?.is_empty() {
            return Err("damage among the notes".into());
        }
        // A note before an event that came back came back, and one behind an event that did not did not.
        let before = self.notes_in_flight.iter().filter(|(_, at)| *at < events).count();
        let through = self.notes_in_flight.iter().filter(|(_, at)| *at <= events).count();
        let said = |count: usize| {
            let under_way = self.notes_in_flight[..count].iter().map(|(note, _)| note.clone());
            replayed(&self.notes.iter().cloned().chain(under_way).collect::<Vec<_>>())
        };
        let explains = (before..=through).rev().find(|count| said(*count) == got);
        let Some(longest) = explains else {
            let show = |notes: &[Note]| {
                notes.iter().map(|n| format!("{:?} {:02x?}", n.class(), &n.body()[..4])).collect::<Vec<_>>()
            };
            let (got, least, most) = (show(&got), show(&said(before)), show(&said(through)));
            return Err(format!("the notes are {got:?}, they should be from {least:?} to {most:?}"));
        };
        Ok((before..=longest).find(|count| said(*count) == got).unwrap_or(longest))
    }

    fn line(&self, seq: u64) -> Option<&Line> {
        let i = (seq as usize).checked_sub(1)?;
        self.acked.get(i).or_else(|| self.in_flight.get(i - self.acked.len()))
    }

    /// Reads on to `last`, or until about `most` events were seen. Only what is before `first` may be missing.
    pub fn follow(
        &self,
        reader: &mut Reader,
        first: u64,
        last: u64,
        most: u64,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let (mut nothing, mut seen) = (0, 0);
        loop {
            let mut wrong = None;
            let expected = reader.next_seq();
            let mut next = expected;
            let read = reader.read(1 + rng.below(3000) as usize, &mut |event| {
                let line = self.line(event.seq).filter(|_| event.seq == next && event.seq <= last);
                next += 1;
                let right = line.is_some_and(|line| {
                    *line.text == *event.line
                        && line.ts == event.ts
                        && line.vm.as_bytes() == event.vm()
                        && line.topic.as_bytes() == event.topic()
                });
                if !right && wrong.is_none() {
                    let got = String::from_utf8_lossy(event.line).into_owned();
                    let want = line.map(|line| String::from_utf8_lossy(&line.text).into_owned());
                    wrong =
                        Some(format!("seq {} of {last} is {got:.120}, should be {want:.120?}", event.seq));
                }
            });
            if let Some(wrong) = wrong {
                return Err(wrong);
            }
            match read.map_err(|e| format!("reading {expected}: {e}"))? {
                Read::End if expected > last => return Ok(()),
                Read::Gap { from, to } if from == expected && to >= from && to < first => {}
                Read::Events(0) if nothing < 20 => nothing += 1,
                Read::Events(n) if n > 0 && next == expected + n as u64 && reader.next_seq() == next => {
                    (nothing, seen) = (0, seen + n as u64);
                    if seen > most {
                        return Ok(());
                    }
                }
                other => return Err(format!("reading {expected} of {first}..={last}: {other:?}")),
            }
        }
    }

    /// What `opened` serves is what it must; the last seq, and how many of the notes under way it has.
    pub fn check(&self, opened: &Opened, rng: &mut Rng) -> Result<(u64, usize), String> {
        if !opened.report.damage.is_empty() {
            return Err(format!("damage is reported: {:?}", opened.report.damage));
        }
        let (first, last) = (opened.map().first_seq(), opened.map().durable_seq());
        let acked = self.acked.len() as u64;
        if last < acked {
            return Err(format!("acked up to {acked}, recovered up to {last}"));
        }
        if last > acked + self.in_flight.len() as u64 {
            return Err(format!(
                "recovered up to {last}, but only {acked} and {} were sent",
                self.in_flight.len()
            ));
        }
        if last > acked && self.line(last).is_some_and(|line| line.joined) {
            return Err(format!("{last} came back without the rest of its publish"));
        }
        if first < self.first.0 || first > self.first.1 {
            return Err(format!("the oldest is {first}, it should be in {:?}", self.first));
        }
        self.follow(&mut opened.reader(1), first, last, u64::MAX, rng).map_err(|e| format!("from 1: {e}"))?;
        for _ in 0..2 {
            let from = 1 + rng.below(last + 2);
            let mut reader = opened.reader(from);
            self.follow(&mut reader, first, last, 4, rng).map_err(|e| format!("from {from}: {e}"))?;
        }
        Ok((last, self.check_notes(opened, last)?))
    }
}

/// Opens it.
pub fn open(disk: &SimDisk, segment_bytes: u64) -> Result<Opened, String> {
    Opened::open(Arc::new(disk.clone()), JOURNAL, segment_bytes).map_err(|e| e.to_string())
}

/// A crashed disk recovers to what the model says, for good; how many crashes were tried.
pub fn survives(disk: &SimDisk, model: &Model, bytes: u64, rng: &mut Rng, depth: u32) -> Result<u64, String> {
    let mut tried = 1;
    // Crashes in the middle of this recovery.
    let again = Arc::new(std::sync::Mutex::new(Vec::new()));
    if depth < 2 && rng.one_in(6) {
        let (again, mut rng) = (again.clone(), rng.fork());
        disk.hook(Box::new(move |disk, _| {
            let crashed = if rng.one_in(4) { disk.killed(&mut rng) } else { disk.cut(&mut rng, Cut::Any) };
            again.lock().unwrap().push(crashed);
        }));
    }
    let opened = open(disk, bytes);
    disk.unhook();
    for crashed in again.lock().unwrap().drain(..) {
        if rng.one_in(3) {
            tried += survives(&crashed, model, bytes, rng, depth + 1)
                .map_err(|e| format!("crash in recovery: {e}"))?;
        }
    }
    let opened = opened?;
    let last = model.check(&opened, rng)?;
    let mut model = model.clone();
    let sent: Vec<Line> = model.acked.iter().chain(&model.in_flight).cloned().collect();
    model.adopt(&opened, last, bytes)?;
    model.first = (opened.map().first_seq(), opened.map().first_seq());
    if depth == 0 && rng.one_in(8) {
        write_on(disk, opened, &mut model, bytes, &sent, rng).map_err(|e| format!("going on: {e}"))?;
    }
    let second = disk.cut(rng, Cut::Nothing);
    let opened = open(&second, bytes).map_err(|e| format!("the second time: {e}"))?;
    let served = model.check(&opened, rng).map_err(|e| format!("the second time: {e}"))?;
    match served == (model.acked.len() as u64, 0) || model.stale {
        true => Ok(tried),
        false => Err("the second time more is served".into()),
    }
}

/// A recovered journal takes the next batch.
fn write_on(
    disk: &SimDisk,
    opened: Opened,
    model: &mut Model,
    bytes: u64,
    sent: &[Line],
    rng: &mut Rng,
) -> Result<(), String> {
    let mut reader = opened.reader(1 + rng.below(model.acked.len() as u64 + 1));
    let first = opened.map().first_seq();
    let mut writer = opened.into_writer();
    let (batch, parts) = match rng.one_in(2) {
        true => sent_again(sent, most(bytes)),
        false => draw_batch(rng, most(bytes)),
    };
    if model.check_repeats(writer.repeats(&batch, model.ts), &parts)? {
        return Ok(());
    }
    if !writer.has_room(&batch) {
        let spare =
            castra::core::journal::spare::find_or_make(disk, bytes, 4096).map_err(|e| e.to_string())?;
        writer.rotate(spare).map_err(|e| e.to_string())?;
    }
    let notes = if rng.one_in(2) { draw_notes(rng, 300) } else { Vec::new() };
    for note in &notes {
        push_note(&mut writer, model, note);
    }
    if !writer.has_room(&batch) {
        writer.commit().map_err(|e| e.to_string())?;
        model.ack();
        return Ok(());
    }
    let now = model.ts + 1;
    let seqs = model.push(&batch, &parts, now);
    if !writer.push(&batch, now).each().take(seqs.len()).eq(seqs.iter().copied()) {
        return Err(format!("pushed as something else than {seqs:?}: {parts:?}"));
    }
    writer.commit().map_err(|e| e.to_string())?;
    model.ack();
    if rng.one_in(2) {
        writer.mark().map_err(|e| e.to_string())?;
    }
    let last = model.acked.len() as u64;
    model.follow(&mut reader, first, last, u64::MAX, rng)
}

/// Pushes the note where there is room for it.
pub fn push_note(writer: &mut Writer, model: &mut Model, note: &Note) -> bool {
    let fits = writer.fits(note_bytes(note), Share::Reserved);
    if fits {
        model.push_note(note);
        writer.push_note(note);
    }
    fits
}

/// The newest events that have ids of their own, of one publisher after the other, as if none had been acked.
fn sent_again(sent: &[Line], most: usize) -> (Batch, Vec<Part>) {
    let (mut batch, mut parts) = (Batch::default(), Vec::new());
    let from = sent.len().saturating_sub(12);
    for line in sent[from..].iter().filter(|line| line.own_id.is_some()) {
        let Line { vm, topic, own_id, .. } = line.clone();
        let publish = Publish {
            topic: Some(Text(topic.as_str().into())),
            id: own_id.as_deref().map(|id| Text(id.into())),
            ..Publish::default()
        };
        batch.push(&VmName::parse(&vm).unwrap(), &publish, |_| {}).unwrap();
        if batch.bytes() + 120 * batch.len() > most {
            batch.truncate(parts.len());
            break;
        }
        parts.push(Part { vm, topic, own_id, joined: false });
    }
    (batch, parts)
}
