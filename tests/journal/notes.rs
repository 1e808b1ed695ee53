//! Notes through the journal's own threads: their order, the reserve, snapshots at each rotation, retention, journals
//! that were written before there were notes.
//!
//! Always holds: a call that was told `Ok` is replayed; while there is no next segment publishers are refused and
//! notes are not, until the reserve is used up.

use crate::model::{JOURNAL, Model, draw_batch, most, open, push_note, replayed};
use crate::sim::{Cut, Lies, Rng, SimDisk};
use castra::core::event::{Batch, Publish};
use castra::core::identity::VmName;
use castra::core::journal::disk::Disk;
use castra::core::journal::notes::Trail;
use castra::core::journal::record::{self, Head, Kind};
use castra::core::journal::segment::{HEADER_BYTES, Header, VERSION, segment_name};
use castra::core::journal::writer::batch_bytes;
use castra::core::journal::{Class, Journal, NotCommitted, Note, Outcome, Reached, spare};
use castra::core::limits::{BATCH_BYTES, GROUP_EVENTS, Limits, RESERVED_BYTES, SEGMENT_MIN_BYTES};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

struct Running {
    journal: Journal,
    rotated: Arc<AtomicU64>,
}

fn start(disk: &SimDisk, limits: &Limits) -> Running {
    let rotated = Arc::new(AtomicU64::new(0));
    let told = rotated.clone();
    let count = move || {
        told.fetch_add(1, Ordering::SeqCst);
    };
    let failed = |why| panic!("{why}");
    let opened = open(disk, limits.segment_bytes).unwrap();
    let reached = Reached { views: Arc::new(AtomicU64::new(u64::MAX)), ..Reached::default() };
    let journal = opened.start(limits, |_| {}, count, failed, reached).unwrap();
    Running { journal, rotated }
}

impl Running {
    fn note(&self, notes: &[Note]) -> Result<(), NotCommitted> {
        self.journal.note(notes.to_vec()).blocking_recv().unwrap()
    }

    fn publish(&self, reserved: bool, size: usize) -> Outcome {
        let (batch, permit) = (events(1, size), Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap());
        let outcome = match reserved {
            true => self.journal.submit_reserved(2, batch, permit),
            false => self.journal.submit(1, batch, permit),
        };
        outcome.blocking_recv().unwrap()
    }

    fn rotated(&self) -> u64 {
        self.rotated.load(Ordering::SeqCst)
    }
}

fn limits(segment_bytes: u64) -> Limits {
    Limits { segment_bytes, ..Limits::default() }
}

fn events(count: usize, size: usize) -> Batch {
    let (mut batch, vm) = (Batch::default(), VmName::parse("v").unwrap());
    let payload = format!("\"{}\"", "x".repeat(size));
    for _ in 0..count {
        let publish =
            Publish { payload: Some(serde_json::from_str(&payload).unwrap()), ..Publish::default() };
        batch.push(&vm, &publish, |out| out.extend_from_slice(b"an-id")).unwrap();
    }
    batch
}

fn change(n: u64, size: usize) -> Note {
    let mut body = n.to_le_bytes().to_vec();
    body.resize(size.max(8), 1);
    Note::new(Class::Change, body).unwrap()
}

fn snapshot(n: u64, parts: usize, size: usize) -> Vec<Note> {
    let of = |class| Note::new(class, change(n, size).body().to_vec()).unwrap();
    let parts = (0..parts).map(|_| of(Class::SnapshotPart));
    std::iter::once(of(Class::SnapshotBegin)).chain(parts).chain([of(Class::SnapshotEnd)]).collect()
}

/// What the next start is told, after the power was cut.
fn told(disk: &SimDisk, bytes: u64) -> Vec<Note> {
    let mut got = Vec::new();
    let opened = open(&disk.cut(&mut Rng(5), Cut::Nothing), bytes).unwrap();
    let damage = opened.notes(|class, body| got.push(Note::new(class, body.to_vec()).unwrap()));
    assert!(damage.unwrap().is_empty());
    got
}

fn eventually(what: &str, ready: impl Fn() -> bool) {
    let begun = Instant::now();
    while !ready() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn publishers_are_refused_and_consumers_go_on() {
    let (bytes, disk) = (1 << 20, SimDisk::new(Rng(1), Lies::default()));
    let running = start(&disk, &limits(bytes));
    let mut notes = vec![change(0, 100)];
    running.note(&notes).unwrap();
    disk.room(Some(0));
    // One spare may be there; then none is.
    let mut events = 0;
    while running.publish(false, 10_000).is_ok() {
        events += 1;
        assert!(events < 400);
    }
    assert!(running.journal.is_full());
    // Publishers have left the eighth part of the segment: a letter of 10 kB and notes of 1 kB fit.
    assert_eq!(
        running.publish(false, 10).map(drop),
        Err(NotCommitted::DiskFull),
        "in the order in which it came"
    );
    let mut letters = 0;
    let refused = (1..).find(|n| {
        if n % 10 == 0 && letters < 5 {
            letters += 1;
            running.publish(true, 10_000).unwrap();
        }
        let call = [change(*n, 1000), change(*n, 8)];
        let outcome = running.note(&call);
        if outcome.is_ok() {
            notes.extend(call);
        }
        outcome == Err(NotCommitted::DiskFull)
    });
    let reserve = RESERVED_BYTES.min(bytes / 8);
    let room = reserve / (1104 + 16) - letters * 10;
    assert!(refused.is_some_and(|n| n > room - 5 && n < room + 15), "{refused:?} of {room}");
    assert_eq!(letters, 5);
    assert_eq!(running.publish(true, 10_000).map(drop), Err(NotCommitted::DiskFull));
    assert_eq!(told(&disk, bytes), notes, "what was refused left nothing");
    disk.room(None);
    eventually("room", || running.note(&[change(u64::MAX, 1000)]).is_ok());
    notes.push(change(u64::MAX, 1000));
    assert!(told(&disk, bytes).ends_with(&notes[notes.len() - 1..]));
    eventually("publishing", || running.publish(false, 10_000).is_ok());
    running.journal.stop();
    assert_eq!(told(&disk, bytes), notes);
    let head = open(&disk, bytes).unwrap().map().durable_seq();
    assert_eq!(head, events + letters + 1);
}

#[test]
fn a_snapshot_at_each_rotation_lets_the_rest_go() {
    let (bytes, disk) = (1 << 20, SimDisk::new(Rng(2), Lies::default()));
    let limits = Limits { retain_bytes: 0, ..limits(bytes) };
    let running = start(&disk, &limits);
    let map = running.journal.map().clone();
    let (mut written, mut snapshots) = (Vec::new(), 0);
    let mut write = |notes: &[Note]| {
        running.note(notes).unwrap();
        written.extend_from_slice(notes);
    };
    // Without a snapshot nothing goes: the changes are all that there is.
    write(&[change(1, 8)]);
    assert_eq!(running.rotated(), 1);
    while map.segments().len() < 5 {
        running.publish(false, 50_000).unwrap();
    }
    for n in 1..200 {
        write(&[change(n, 50)]);
        running.publish(false, 50_000).unwrap();
        if snapshots < running.rotated() {
            snapshots = running.rotated();
            write(&snapshot(n, 3, 20_000));
            assert_eq!(map.notes().open, 0);
            assert!(map.notes().from > map.segments().last().unwrap().first_lsn, "it is in the newest");
        }
        assert!(map.segments()[0].first_lsn <= map.notes().from);
    }
    assert!(snapshots > 10);
    // The keeper looks after each spare that it made.
    eventually("retention", || map.segments().len() <= 3);
    assert_eq!(told(&disk, bytes), replayed(&written));
    assert!(told(&disk, bytes).len() < 60, "one segment's");
    // With a snapshot begun and not ended, the one before it is kept.
    let whole = map.notes().from;
    running.note(&snapshot(9, 2, 100)[..3]).unwrap();
    assert!(map.notes().from == whole && map.notes().open > whole);
    let before = running.rotated();
    while running.rotated() < before + 3 {
        running.publish(false, 50_000).unwrap();
    }
    assert!(map.segments()[0].first_lsn <= whole);
    assert_eq!(told(&disk, bytes), replayed(&written), "no part of it counts");
    running.journal.stop();
    let again = start(&disk, &limits);
    assert_eq!((again.rotated(), again.journal.map().notes().from), (0, whole));
    again.publish(false, 10).unwrap();
    assert_eq!(again.rotated(), 1);
    again.journal.stop();
}

#[test]
fn a_call_larger_than_a_segment_goes_over_several() {
    let (bytes, disk) = (1 << 20, SimDisk::new(Rng(3), Lies::default()));
    let running = start(&disk, &limits(bytes));
    let small = snapshot(1, 1, 10);
    running.note(&small).unwrap();
    assert_eq!(running.rotated(), 0, "it comes with its snapshot");
    let large = snapshot(2, 60, 60_000);
    running.note(&large).unwrap();
    assert!(running.journal.map().segments().len() > 3);
    assert_eq!(running.rotated(), 0, "it would be told to write a snapshot because it writes one");
    assert_eq!(told(&disk, bytes), large);
    // Cut off anywhere, it is as if it had not been begun.
    running.note(&snapshot(3, 60, 60_000)[..50]).unwrap();
    running.note(&[change(4, 10)]).unwrap();
    assert_eq!(told(&disk, bytes), [&large[..], &[change(4, 10)]].concat());
    // One that fits a segment is not cut, and begins the next one when there is little left of this one.
    let newest = || running.journal.map().segments().last().unwrap().first_lsn;
    let before = newest();
    let fits = snapshot(5, 12, 60_000);
    running.note(&fits).unwrap();
    running.note(&fits).unwrap();
    assert!(newest() > before && running.journal.map().notes().from >= newest());
    running.journal.stop();
    assert_eq!(told(&disk, bytes), fits);
}

/// A process that goes on in the segment of a rewritten tail is told to write a snapshot there.
#[test]
fn a_rewritten_tail_has_its_notes() {
    let (bytes, mut disk) = (1 << 20, SimDisk::new(Rng(4), Lies::default()));
    let mut writer = open(&disk, bytes).unwrap().into_writer();
    writer.rotate(spare::make(&disk, bytes, 0).unwrap()).unwrap();
    let (mut model, mut rng) = (Model::new(), Rng(6));
    for n in 0..3 {
        let (batch, parts) = draw_batch(&mut rng, 2000);
        model.push(&batch, &parts, 9);
        writer.push(&batch, 9);
        snapshot(n, 1, 30).iter().chain([&change(n, 9)]).for_each(|note| {
            push_note(&mut writer, &mut model, note);
        });
        writer.commit().unwrap();
        model.ack();
    }
    for turn in 0..3 {
        disk = disk.killed(&mut rng);
        let opened = open(&disk, bytes).unwrap();
        // Header and records call what was rewritten durable: it is not rewritten again.
        assert_eq!(opened.report.rewritten > 0, turn == 0);
        model.check(&opened, &mut rng).unwrap();
    }
    let running = start(&disk.killed(&mut rng), &limits(bytes));
    assert_eq!(running.rotated(), 0, "it writes nothing yet");
    running.journal.stop();
}

/// Written before there were notes: version 1, whose header ends at byte 72.
#[test]
fn an_older_journal_is_read_and_goes_on() {
    let bytes = 64 * 1024;
    let disk = SimDisk::new(Rng(7), Lies::default());
    let notes = Trail { from: 77, open: 78 };
    let header = Header {
        journal: JOURNAL,
        first_lsn: 1,
        first_seq: 1,
        synced_lsn: 0,
        synced_seq: 0,
        ts: 0,
        notes,
        ids: notes,
    };
    let mut file = header.encode().to_vec();
    file[8] = 1;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&file[8..12]), &file[16..72]);
    file[12..16].copy_from_slice(&crc.to_le_bytes());
    file.resize(HEADER_BYTES as usize, 0);
    let batch = events(3, 20);
    for (lsn, draft) in (1..).zip(batch.drafts()) {
        let prefix = format!("{{\"seq\":{lsn},\"ts\":5,");
        let layout = castra::core::event::Layout::of(draft, prefix.len());
        let head = Head { lsn, seq: lsn, ts: 5, synced: lsn - 1, kind: Kind::Event, joined: false, layout };
        record::encode(&mut file, header.salt(), &head, [prefix.as_bytes(), batch.tail(draft)]);
    }
    disk.create(&segment_name(1)).unwrap();
    disk.overwrite(&segment_name(1), file.clone());
    let disk = disk.killed(&mut Rng(1));
    // Its events are of 1970.
    let running = start(&disk, &Limits { retain_age: Duration::MAX, ..limits(bytes) });
    assert_eq!((running.journal.map().durable_seq(), running.journal.map().notes()), (3, Trail::default()));
    running.note(&[change(1, 10)]).unwrap();
    assert_eq!(running.publish(false, 10).unwrap().last_seq(), 4);
    running.journal.stop();
    let files = disk.files();
    let left = &files[&segment_name(1)];
    assert!(left.len() > HEADER_BYTES as usize && file.starts_with(left), "nothing of it is written over");
    assert!(
        files.iter().any(|(name, bytes)| name.ends_with(".seg") && bytes[8..12] == VERSION.to_le_bytes())
    );
    assert_eq!(told(&disk, bytes), [change(1, 10)]);
    let opened = open(&disk, bytes).unwrap();
    let (mut reader, mut seqs) = (opened.reader(1), Vec::new());
    while reader.next_seq() <= 4 {
        reader.read(1000, &mut |event| seqs.push(event.seq)).unwrap();
    }
    assert_eq!(seqs, [1, 2, 3, 4]);
}

/// Any seq is found in a segment that is mostly notes.
#[test]
fn readers_find_events_among_notes() {
    let (bytes, disk) = (8 << 20, SimDisk::new(Rng(8), Lies::default()));
    let mut rng = Rng(9);
    let opened = open(&disk, bytes).unwrap();
    let readers = opened.readers();
    let mut writer = opened.into_writer();
    writer.rotate(spare::make(&disk, bytes, 0).unwrap()).unwrap();
    let mut model = Model::new();
    for n in 0..60 {
        let (batch, parts) = draw_batch(&mut rng, 3000);
        let now = model.ts + 1;
        model.push(&batch, &parts, now);
        writer.push(&batch, now);
        if n % 10 == 3 {
            for note in snapshot(n, 15, 60_000) {
                assert!(push_note(&mut writer, &mut model, &note));
            }
        }
        writer.commit().unwrap();
        model.ack();
    }
    let last = model.acked.len() as u64;
    for from in 1..=last {
        model.follow(&mut readers(from), 1, last, 1, &mut rng).unwrap();
    }
}

/// So that the reserve takes nothing that a session could send.
#[test]
fn the_largest_batch_fits_the_smallest_segment() {
    for name in ["v".to_owned(), "v".repeat(128)] {
        let vm = VmName::parse(&name).unwrap();
        for (first, then) in [(0, 0), (0, 50_000), (50_000, 0), (50_000, 50_000)] {
            let mut batch = Batch::default();
            let push = |batch: &mut Batch, size: usize| {
                let payload = format!("\"{}\"", "x".repeat(size));
                let payload = Some(serde_json::from_str(&payload).unwrap());
                let publish = Publish { payload, ..Publish::default() };
                batch.push(&vm, &publish, |out| out.extend_from_slice(&[b'i'; 36])).unwrap();
            };
            while batch.bytes() < BATCH_BYTES {
                push(&mut batch, first);
            }
            // One frame more: a large event, or as many as it may have.
            if then > 0 {
                push(&mut batch, then)
            } else {
                (0..GROUP_EVENTS).for_each(|_| push(&mut batch, 20))
            }
            let largest = most(SEGMENT_MIN_BYTES) as u64;
            assert!(batch_bytes(&batch) <= largest, "{} of {largest}", batch_bytes(&batch));
        }
    }
}

/// How long opening takes at the end of 1 GiB: run it by hand. Snapshots of 4 MiB, a change of 1 kB for each 20 events.
#[test]
#[ignore = "writes 1 GiB and prints figures"]
fn opening_at_the_end_of_a_gib() {
    for notes in [false, true] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(castra::core::journal::disk::RealDisk::new(dir.path()));
        let bytes = Limits::default().segment_bytes;
        let opened = castra::core::journal::Opened::open(disk.clone(), JOURNAL, bytes).unwrap();
        let map = opened.map().clone();
        let mut writer = opened.into_writer();
        for n in 0.. {
            let batch = events(200, 150);
            if !writer.has_room(&batch) {
                let enough = map.segments().len() > 16;
                if enough {
                    break;
                }
                writer.rotate(spare::make(&*disk, bytes, n).unwrap()).unwrap();
                let snapshot = if notes { snapshot(n as u64, 70, 60_000) } else { Vec::new() };
                snapshot.iter().for_each(|note| writer.push_note(note));
            }
            writer.push(&batch, 1);
            for n in 0..if notes { 10 } else { 0 } {
                writer.push_note(&change(n, 1000));
            }
            writer.commit().unwrap();
        }
        writer.mark().unwrap();
        drop(writer);
        for _ in 0..4 {
            let begun = Instant::now();
            let opened = castra::core::journal::Opened::open(disk.clone(), JOURNAL, bytes).unwrap();
            let (open, mut count) = (begun.elapsed(), 0);
            opened.notes(|_, _| count += 1).unwrap();
            let replay = begun.elapsed() - open;
            println!("notes {notes}: open {open:.1?}, replay {replay:.1?} of {count} notes");
        }
    }
}
