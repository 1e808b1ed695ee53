//! Damage to what was durable: flipped bits, lost sectors, cut and removed files, pages that cannot be read.
//!
//! Always holds (invariant 5): every event that was not hit is read, byte for byte; every event that was
//! hit is in a gap of the reader and in a range of the report or of `check_sealed`, and no other event is;
//! no seq is used twice afterwards. *Known durable* in the newest segment is what its header or a record
//! that can still be read says was synced: beyond that a hit cannot be told from a torn tail.

use crate::model::{JOURNAL, Model, draw_batch, draw_notes, most, open, push_note, replayed};
use crate::sim::{Cut, Lies, PAGE, Rng, SECTOR, SimDisk};
use castra::core::journal::read::Read;
use castra::core::journal::record::{Decoded, HEAD_BYTES, Head, Kind, decode, salt};
use castra::core::journal::segment::{HEADER_BYTES, Header, parse_name, segment_name};
use castra::core::journal::{Class, Note, Opened};
use castra::core::journal::{Damage, retain, spare};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What is written of a header, in bytes.
const HEADER: u64 = 108;

/// A journal that was written by several processes, and what it holds.
fn build(rng: &mut Rng) -> (SimDisk, Model, u64) {
    let bytes = 4096 + [2048, 4096, 12288][rng.below(3) as usize];
    let mut disk = SimDisk::new(rng.fork(), Lies::default());
    let mut model = Model::new();
    for _ in 0..1 + rng.below(3) {
        let opened = open(&disk, bytes).unwrap();
        let map = opened.map().clone();
        let mut writer = opened.into_writer();
        for turn in 0..3 + rng.below(25) {
            let (batch, parts) = draw_batch(rng, most(bytes));
            if !writer.has_room(&batch) {
                writer.commit().unwrap();
                model.ack();
                writer.rotate(spare::make(&disk, bytes, turn as usize).unwrap()).unwrap();
            }
            let now = model.ts + 1;
            model.push(&batch, &parts, now);
            writer.push(&batch, now);
            if rng.one_in(3) {
                draw_notes(rng, 200).iter().all(|note| push_note(&mut writer, &mut model, note));
            }
            if rng.one_in(2) {
                writer.commit().unwrap();
                model.ack();
                if rng.one_in(3) {
                    writer.mark().unwrap();
                }
            }
        }
        writer.commit().unwrap();
        model.ack();
        if rng.one_in(2) {
            writer.mark().unwrap();
        }
        if rng.one_in(4) {
            let (segments, from) = (map.segments(), map.needed());
            let free = segments.iter().skip(1).filter(|next| from == 0 || next.first_lsn <= from).count();
            let gone = free.min(segments.len() / 3);
            retain::apply(&disk, &map, gone).unwrap();
        }
        model.first = (map.first_seq(), map.first_seq());
        disk = disk.cut(rng, Cut::Nothing);
    }
    (disk, model, bytes)
}

struct Written {
    head: Head,
    range: Range<usize>,
}

struct File {
    name: String,
    first_lsn: u64,
    header: Header,
    bytes: Vec<u8>,
    records: Vec<Written>,
    /// Behind its records stand those that recovery wrote anew into the next segment.
    leftover: bool,
}

/// The segments, record by record.
fn files(disk: &SimDisk) -> Vec<File> {
    let mut files = Vec::new();
    for (name, bytes) in disk.files() {
        let Some(first_lsn) = parse_name(&name) else { continue };
        let (header, mut at, mut records) =
            (Header::decode(&bytes).unwrap(), HEADER_BYTES as usize, Vec::new());
        while let Decoded::Record(head, body, size) = decode(&bytes[at..], salt(JOURNAL, first_lsn)) {
            records.push(Written { head, range: at..at + HEAD_BYTES + body.len() });
            at += size;
        }
        files.push(File { name, first_lsn, header, bytes, records, leftover: false });
    }
    let starts: Vec<u64> = files.iter().skip(1).map(|file| file.first_lsn).collect();
    for (file, end) in files.iter_mut().zip(starts) {
        let all = file.records.len();
        file.records.retain(|record| record.head.lsn < end);
        file.leftover = file.records.len() < all;
    }
    files
}

/// What one blow did to a file.
#[derive(Debug)]
enum Blow {
    Bytes(Vec<u8>),
    Unreadable(Range<u64>),
    Removed,
}

fn strike(rng: &mut Rng, file: &File, keep: bool) -> Blow {
    let end = file.records.last().map_or(HEADER_BYTES as usize, |record| record.range.end);
    let at = if rng.one_in(5) { rng.below(HEADER) as usize } else { rng.below(end as u64) as usize };
    let at = if rng.one_in(2) || at < HEADER as usize { at } else { at.max(HEADER_BYTES as usize) };
    let mut bytes = file.bytes.clone();
    let long = [1, 8, 100, 600, 5000][rng.below(5) as usize];
    let to = (at + 1 + rng.below(long) as usize).min(bytes.len());
    if rng.one_in(8) {
        bytes[rng.below(HEADER) as usize] ^= 16;
    }
    match rng.below(8) {
        0..2 => bytes[at] ^= 1 << rng.below(8),
        2 => bytes[at..to].fill(0),
        3 => {
            let (at, to) =
                (at / SECTOR as usize * SECTOR as usize, (to / SECTOR as usize + 1) * SECTOR as usize);
            let to = to.min(bytes.len());
            bytes[at..to].fill(0);
        }
        4 => bytes[at..to].iter_mut().for_each(|byte| *byte = rng.next() as u8),
        5 => bytes.truncate(at),
        6 => {
            let (at, to) = (at as u64 / PAGE * PAGE, (to as u64).div_ceil(PAGE) * PAGE);
            return Blow::Unreadable(at..to);
        }
        _ if !keep && rng.one_in(4) => return Blow::Removed,
        _ => bytes[at..to].rotate_left(1),
    }
    Blow::Bytes(bytes)
}

impl Blow {
    fn hits(&self, file: &File, range: &Range<usize>) -> bool {
        match self {
            Blow::Bytes(bytes) => bytes.get(range.clone()) != file.bytes.get(range.clone()),
            Blow::Unreadable(bad) => bad.start < range.end as u64 && (range.start as u64) < bad.end,
            Blow::Removed => true,
        }
    }
}

/// What must be read, and what is lost and must be said to be.
#[derive(Default)]
struct Expected {
    read: BTreeSet<u64>,
    lost: BTreeSet<u64>,
    /// These headers are damaged.
    headers: Vec<String>,
    /// Nothing says where the journal ends: it is not opened.
    unusable: bool,
}

fn expect(files: &[File], blows: &BTreeMap<usize, Blow>) -> Expected {
    let mut expected = Expected::default();
    for (i, file) in files.iter().enumerate() {
        let blow = blows.get(&i);
        let hit = |range: &Range<usize>| blow.is_some_and(|blow| blow.hits(file, range));
        let seq = |record: &Written| (record.head.kind == Kind::Event).then_some(record.head.seq);
        let (lost, kept): (Vec<_>, Vec<_>) = file.records.iter().partition(|record| hit(&record.range));
        let header = !hit(&(0..HEADER as usize));
        if !header && !matches!(blow, Some(Blow::Removed)) {
            expected.headers.push(file.name.clone());
        }
        if i + 1 < files.len() {
            expected.read.extend(kept.into_iter().filter_map(seq));
            expected.lost.extend(lost.into_iter().filter_map(seq));
            continue;
        }
        expected.unusable = !header && kept.is_empty();
        // Whatever record is left says at least what the header said.
        let said = kept.iter().map(|record| record.head.synced).max().unwrap_or(0);
        let known = said.max(file.header.synced_lsn);
        let mut tail = Vec::new();
        let torn = lost.iter().map(|record| record.head.lsn).find(|lsn| *lsn > known).unwrap_or(u64::MAX);
        for record in &file.records {
            match record.head.lsn {
                lsn if lsn <= known && hit(&record.range) => expected.lost.extend(seq(record)),
                lsn if lsn <= known => expected.read.extend(seq(record)),
                lsn if lsn < torn => tail.push(record),
                _ => {}
            }
        }
        while tail.last().is_some_and(|record| record.head.joined) {
            tail.pop();
        }
        expected.read.extend(tail.into_iter().filter_map(seq));
    }
    expected
}

fn all(damage: &[Damage]) -> BTreeSet<u64> {
    damage.iter().flat_map(|damage| damage.seqs.clone()).collect()
}

/// What a reader gets, and its gaps.
fn read_all(opened: &Opened, from: u64, model: &Model) -> Result<(BTreeSet<u64>, BTreeSet<u64>), String> {
    let (mut read, mut gaps, mut wrong) = (BTreeSet::new(), BTreeSet::new(), None);
    let mut reader = opened.reader(from);
    for _ in 0..10_000 {
        let result = reader.read(2000, &mut |event| {
            let line = &model.acked[event.seq as usize - 1];
            if *line.text != *event.line || !read.insert(event.seq) {
                wrong = Some(format!("{} is wrong", event.seq));
            }
        });
        match result.map_err(|e| e.to_string())? {
            Read::End => return wrong.map_or(Ok((read, gaps)), Err),
            Read::Gap { from, to } => gaps.extend(from..=to),
            Read::Events(_) => {}
        }
    }
    Err("reading does not end".into())
}

fn same(what: &str, got: &BTreeSet<u64>, want: &BTreeSet<u64>) -> Result<(), String> {
    let (more, fewer): (Vec<_>, Vec<_>) = (got.difference(want).collect(), want.difference(got).collect());
    if more.is_empty() && fewer.is_empty() {
        Ok(())
    } else {
        Err(format!("{what}: {more:?} too many, {fewer:?} too few"))
    }
}

/// What is replayed was written, in that order, and no snapshot lacks a note; nothing is missing where nothing that
/// it needs was hit.
fn check_notes(
    opened: &Opened,
    model: &Model,
    files: &[File],
    blows: &BTreeMap<usize, Blow>,
) -> Result<(), String> {
    let mut got = Vec::new();
    let lost = opened.notes(|class, body| got.push(Note::new(class, body.to_vec()).unwrap()));
    let lost = lost.map_err(|e| e.to_string())?;
    let mut rest = model.notes.iter();
    if let Some(note) = got.iter().find(|note| !rest.any(|written| written == *note)) {
        return Err(format!("{:?} is replayed, and no note or not in its place", note.class()));
    }
    for pair in got.windows(2) {
        use Class::{Change, SnapshotBegin, SnapshotEnd, SnapshotPart};
        let open = matches!(pair[0].class(), SnapshotBegin | SnapshotPart);
        let fits = match pair[1].class() {
            Change | SnapshotBegin => !open,
            SnapshotPart | SnapshotEnd => open,
        };
        if !fits {
            return Err(format!("{:?} follows {:?}", pair[1].class(), pair[0].class()));
        }
    }
    let is_open = |note: &Note| matches!(note.class(), Class::SnapshotBegin | Class::SnapshotPart);
    if got.last().is_some_and(is_open) {
        return Err("a snapshot has no end".into());
    }
    let hit = |(i, file): (usize, &File)| {
        let blow = blows.get(&i);
        file.records.iter().any(|record| blow.is_some_and(|blow| blow.hits(file, &record.range)))
    };
    let whole = !files.iter().enumerate().any(hit);
    if whole && (got != replayed(&model.notes) || !lost.is_empty()) {
        return Err("no record was hit, and a note is missing".into());
    }
    Ok(())
}

fn case(seed: u64) -> Result<bool, String> {
    let mut rng = Rng(seed);
    let (disk, mut model, bytes) = build(&mut rng);
    let files = files(&disk);
    let mut blows = BTreeMap::new();
    for _ in 0..1 + rng.below(2) {
        let i = if rng.one_in(3) { files.len() - 1 } else { rng.below(files.len() as u64) as usize };
        // The first one's absence is retention; what stands twice is not lost with one of them.
        let keep = i + 1 == files.len() || i == 0 || files[i - 1].leftover;
        blows.insert(i, strike(&mut rng, &files[i], keep));
    }
    for (i, blow) in &blows {
        match blow {
            Blow::Bytes(bytes) => disk.overwrite(&files[*i].name, bytes.clone()),
            Blow::Unreadable(range) => disk.unreadable(&files[*i].name, range.clone()),
            Blow::Removed => castra::core::journal::disk::Disk::remove(&disk, &files[*i].name).unwrap(),
        }
    }
    let expected = expect(&files, &blows);
    let opened = match open(&disk, bytes) {
        Ok(_) if expected.unusable => return Err("it was opened".into()),
        Err(_) if expected.unusable => return Ok(false),
        opened => opened?,
    };
    let last = expected.read.last().max(expected.lost.last()).copied().unwrap_or(0);
    let oldest = model.first.0;
    let check = |opened: &Opened, model: &Model, end: u64, found: &[Damage], who: &str| {
        let durable = opened.map().durable_seq();
        if durable < last.max(end) {
            return Err(format!("{who}: it ends at {durable}, not {last}"));
        }
        // Below the oldest, and between the last that can be said to be lost and the next: given up.
        let ours = |seqs: BTreeSet<u64>| {
            seqs.into_iter().filter(|seq| (oldest..=last).contains(seq)).collect::<BTreeSet<u64>>()
        };
        let (read, gaps) = read_all(opened, 1, model)?;
        same(&format!("{who}: read"), &ours(read), &expected.read)?;
        same(&format!("{who}: gaps"), &ours(gaps), &expected.lost)?;
        same(&format!("{who}: reported"), &ours(all(found)), &expected.lost)
    };
    let mut found = opened.report.damage.clone();
    opened.check_sealed(|| true, |damage| found.push(damage));
    check(&opened, &model, 0, &found, "first")?;
    check_notes(&opened, &model, &files, &blows)?;
    for name in &expected.headers {
        if !found.iter().any(|damage| damage.segment == *name) {
            return Err(format!("the header of {name} is not reported"));
        }
    }
    for from in 1..=last {
        let (read, gaps) = if rng.one_in(6) { read_all(&opened, from, &model)? } else { continue };
        let behind =
            |seqs: &BTreeSet<u64>| seqs.range(from.max(oldest)..).copied().collect::<BTreeSet<u64>>();
        let gaps = gaps.into_iter().filter(|seq| *seq >= oldest && *seq <= last).collect();
        same(&format!("read from {from}"), &read, &behind(&expected.read))?;
        same(&format!("gaps from {from}"), &gaps, &behind(&expected.lost))?;
    }
    // Killed at once, opened again: the same; then it goes on behind all that.
    let again = if rng.one_in(2) { disk.killed(&mut rng) } else { disk.cut(&mut rng, Cut::Nothing) };
    drop(opened);
    let opened = open(&again, bytes).map_err(|e| format!("again: {e}"))?;
    let mut found = opened.report.damage.clone();
    opened.check_sealed(|| true, |damage| found.push(damage));
    check(&opened, &model, 0, &found, "again")?;
    check_notes(&opened, &model, &files, &blows).map_err(|e| format!("again: {e}"))?;
    let durable = opened.map().durable_seq();
    let mut writer = opened.into_writer();
    model.acked.truncate(durable as usize);
    while (model.acked.len() as u64) < durable {
        // Given up: never read, so it does not matter which.
        model.acked.push(model.acked[0].clone());
    }
    let (batch, parts) = draw_batch(&mut rng, most(bytes));
    if !writer.has_room(&batch) {
        writer.rotate(spare::find_or_make(&again, bytes, 4096).unwrap()).unwrap();
    }
    let now = model.ts + 1;
    model.push(&batch, &parts, now);
    writer.push(&batch, now);
    writer.commit().unwrap();
    writer.mark().unwrap();
    model.ack();
    let third = again.cut(&mut rng, Cut::Nothing);
    let opened = open(&third, bytes).map_err(|e| format!("third: {e}"))?;
    let mut found = opened.report.damage.clone();
    opened.check_sealed(|| true, |damage| found.push(damage));
    check(&opened, &model, durable + batch.len() as u64, &found, "third")?;
    let (read, _) = read_all(&opened, durable + 1, &model)?;
    same("new", &read, &(durable + 1..=durable + batch.len() as u64).collect())?;
    Ok(true)
}

#[test]
fn damage_is_said_and_nothing_else_is_lost() {
    let one = std::env::var("CASTRA_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    let (seeds, mut usable) = (one.map_or(1..5_001, |seed| seed..seed + 1), 0);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let result = std::panic::catch_unwind(|| case(seed)).unwrap_or_else(|_| Err("it panicked".into()));
        usable += u64::from(result.unwrap_or_else(|why| {
            panic!("seed {seed}: {why}\nreplay it: CASTRA_SEED={seed} cargo test --test journal damage -- --nocapture")
        }));
    }
    println!("{count} damaged journals, {usable} of them opened");
    assert!(usable * 10 > count * 9 || one.is_some());
    assert_eq!(segment_name(1).len(), 24);
}
