//! Where to begin reading, at a time or behind an id, beside a walk over everything.
//!
//! Journals of several segments and several processes, with times that stand still and jump, ids that repeat and
//! need escapes, retention, and damage before or after they were opened. Always holds: the seq is the one that the
//! walk finds; every lost event that was at or after that time, before the seq, is in the gap; the gap names only
//! events that cannot be read, and none where nothing that was meant is lost.

use crate::model::{JOURNAL, open};
use crate::sim::{Cut, Lies, Rng, SimDisk};
use castra::core::event::{Batch, Publish, string_body};
use castra::core::identity::VmName;
use castra::core::journal::disk::Disk;
use castra::core::journal::read::Read;
use castra::core::journal::{Opened, Reached, SeqAt, retain, spare};
use castra::core::limits::Limits;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// What was published: seq 1 is the first.
#[derive(Clone, Debug)]
struct Published {
    ts: u64,
    id: String,
    vm: String,
}

const IDS: [&str; 6] = ["a", "b\"c", "c", "x\\", "\",\"id\":\"a", "\u{1f980} é"];

fn draw_id(rng: &mut Rng) -> String {
    match rng.below(40) {
        n if n < 6 => IDS[n as usize].to_owned(),
        _ => format!("{:x}", rng.next()),
    }
}

fn draw(rng: &mut Rng, most: usize, published: &mut Vec<Published>, ts: u64) -> Batch {
    let mut batch = Batch::default();
    while batch.is_empty() || rng.one_in(3) {
        let (id, size) = (draw_id(rng), rng.below(most as u64 / 4) as usize);
        let payload = format!("\"{}\"", "x".repeat(size));
        let publish =
            Publish { payload: Some(serde_json::from_str(&payload).unwrap()), ..Publish::default() };
        let name = ["web", "db"][rng.below(2) as usize];
        let vm = VmName::parse(name).unwrap();
        // Given by nobody, so that it may stand twice.
        batch.push(&vm, &publish, |out| string_body(out, &id)).unwrap();
        published.push(Published { ts, id, vm: name.to_owned() });
        if batch.bytes() > most / 2 {
            break;
        }
    }
    batch
}

struct Case {
    disk: SimDisk,
    opened: Opened,
    published: Vec<Published>,
    retained: bool,
    damaged: bool,
}

/// A journal in segments of so many bytes; `None` when what is left of it must not be opened.
fn case(rng: &mut Rng, bytes: u64, turns: u64, blows: u64) -> Option<Case> {
    let mut disk = SimDisk::new(rng.fork(), Lies::default());
    let (mut published, mut now, mut retained) = (Vec::new(), 1000, false);
    let most = (bytes as usize - 4096 - 48).min(100_000);
    for _ in 0..1 + rng.below(3) {
        let opened = open(&disk, bytes).unwrap();
        let map = opened.map().clone();
        let mut writer = opened.into_writer();
        for turn in 0..turns / 2 + rng.below(turns) {
            now = match rng.below(6) {
                0 => now + 1 + rng.below(5),
                1 => now + 1000,
                // The clock goes back, and ts does not.
                2 => now - rng.below(50),
                _ => now,
            };
            let newest = published.last().map_or(0, |last: &Published| last.ts);
            let first = published.len();
            let batch = draw(rng, most, &mut published, now.max(newest));
            if !writer.has_room(&batch) {
                writer.commit().unwrap();
                writer.rotate(spare::make(&disk, bytes, turn as usize).unwrap()).unwrap();
            }
            assert_eq!(writer.push(&batch, now).each().next(), Some((first as u64 + 1, false)));
            if rng.one_in(3) {
                writer.commit().unwrap();
                writer.mark().unwrap();
            }
        }
        writer.commit().unwrap();
        if rng.one_in(3) {
            let gone = map.segments().len() / 2;
            retained |= gone > 0;
            retain::apply(&disk, &map, gone).unwrap();
        }
        disk = disk.cut(rng, Cut::Nothing);
    }
    let before = rng.one_in(2);
    if before {
        (0..blows).for_each(|_| strike(rng, &disk, true));
    }
    let opened = open(&disk, bytes).ok()?;
    if !before {
        (0..blows).for_each(|_| strike(rng, &disk, false));
    }
    Some(Case { disk, opened, published, retained, damaged: blows > 0 })
}

fn strike(rng: &mut Rng, disk: &SimDisk, reopened: bool) {
    let files: Vec<(String, Vec<u8>)> =
        disk.files().into_iter().filter(|(name, _)| name.ends_with(".seg")).collect();
    let i = rng.below(files.len() as u64) as usize;
    let (name, mut bytes) = files[i].clone();
    if bytes.len() < 100 {
        return;
    }
    let at = rng.below(bytes.len() as u64) as usize;
    let at = if reopened && rng.one_in(6) { at % 72 } else { at };
    let long = [1, 100, 5000, 400_000][rng.below(4) as usize];
    let to = (at + 1 + rng.below(long) as usize).min(bytes.len());
    match rng.below(7) {
        0 => return disk.unreadable(&name, at as u64 / 4096 * 4096..to as u64),
        1 if i > 0 && i + 1 < files.len() => return disk.remove(&name).unwrap(),
        2 => bytes.truncate(at),
        3 => bytes[at..to].fill(0),
        _ => bytes[at] ^= 1 << rng.below(8),
    }
    disk.overwrite(&name, bytes);
}

/// Seq, ts, VM and id.
type Seen = (u64, u64, String, String);

/// All that can be read, and all that is said to be missing.
fn walk(opened: &Opened) -> (Vec<Seen>, BTreeSet<u64>) {
    #[derive(serde::Deserialize)]
    struct Line {
        seq: u64,
        id: String,
        vm: String,
    }
    let (mut events, mut missing, mut reader) = (Vec::new(), BTreeSet::new(), opened.reader(1));
    loop {
        let read = reader.read(10_000, &mut |event| {
            let line: Line = serde_json::from_slice(event.line).unwrap();
            assert_eq!(line.seq, event.seq);
            events.push((event.seq, event.ts, line.vm, line.id));
        });
        match read.unwrap() {
            Read::End => return (events, missing),
            Read::Gap { from, to } => missing.extend(from..=to),
            Read::Events(_) => {}
        }
    }
}

fn check(case: &Case, rng: &mut Rng, times: usize) -> Result<(), String> {
    let (events, missing) = walk(&case.opened);
    let head = case.opened.map().durable_seq();
    let mut asked: BTreeSet<u64> = case.published.iter().flat_map(|p| [p.ts - 1, p.ts, p.ts + 1]).collect();
    while asked.len() > times {
        let any = asked.iter().nth(rng.below(asked.len() as u64) as usize).copied().unwrap();
        asked.remove(&any);
    }
    for ts in asked.into_iter().chain([0, 1, u64::MAX]) {
        let want = events.iter().find(|(_, at, ..)| *at >= ts).map_or(head + 1, |(seq, ..)| *seq);
        let got = case.opened.seq_at(ts).map_err(|e| e.to_string())?;
        let wrong = |why: &str| Err(format!("{why}: at {ts} {got:?}, should be {want}"));
        if got.seq != want {
            return wrong("the seq");
        }
        let (from, to) = got.gap.unwrap_or((want, want - 1));
        if to + 1 != want || !(from..=to).all(|seq| missing.contains(&seq)) {
            return wrong("the gap names what can be read");
        }
        let lost = (1..want).filter(|seq| case.published.get(*seq as usize - 1).is_some_and(|p| p.ts >= ts));
        let lost: Vec<u64> = lost.collect();
        if lost.iter().any(|seq| !(from..=to).contains(seq)) {
            return wrong("an event that was meant is lost, and not said to be");
        }
        if got.gap.is_some() && lost.is_empty() && !case.damaged {
            return wrong("a gap without an event that was meant");
        }
        if got.gap.is_some() && !case.damaged && !case.retained {
            return wrong("a gap and nothing is missing");
        }
    }
    let some = (0..4).filter_map(|_| events.get(rng.below(events.len() as u64) as usize));
    let ids = some.map(|(.., id)| id.as_str()).chain(IDS).chain(["", "\"", "nowhere"]);
    for id in ids {
        for vm in [None, Some("web"), Some("db"), Some("nobody")] {
            let is_it = |(_, _, of, at): &&Seen| at == id && vm.is_none_or(|vm| vm == of);
            let want = events.iter().rev().find(is_it).map(|(seq, ..)| *seq + 1);
            let got = case.opened.seq_after_id(id, vm).map_err(|e| e.to_string())?;
            if got != want {
                return Err(format!("behind {id:?} of {vm:?}: {got:?}, should be {want:?}"));
            }
        }
    }
    Ok(())
}

fn indexes(disk: &SimDisk) -> Vec<(String, Vec<u8>)> {
    disk.files().into_iter().filter(|(name, _)| name.ends_with(".ids")).collect()
}

/// Damages indexes; no answer may depend on them.
fn strike_indexes(rng: &mut Rng, disk: &SimDisk) {
    let all = indexes(disk);
    for (name, mut bytes) in all.clone() {
        let at = rng.below(bytes.len() as u64) as usize;
        match rng.below(8) {
            0 => disk.remove(&name).unwrap(),
            1 => bytes[at] ^= 1 << rng.below(8),
            2 => bytes.truncate(at),
            3 => bytes.truncate(at / 4096 * 4096),
            4 => bytes.fill(0),
            5 => bytes = all[rng.below(all.len() as u64) as usize].1.clone(),
            6 => bytes.extend_from_within(..4096),
            _ => {}
        }
        disk.overwrite(&name, bytes);
    }
}

fn seeds(count: u64, bytes: impl Fn(&mut Rng) -> u64, turns: u64, times: usize) {
    let one = std::env::var("CASTRA_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    let (mut opened, mut gaps, mut made) = (0, 0, 0);
    for seed in one.map_or(1..count + 1, |seed| seed..seed + 1) {
        let mut rng = Rng(seed);
        let (bytes, blows) = (bytes(&mut rng), rng.below(4).saturating_sub(1));
        let Some(case) = case(&mut rng, bytes, turns, blows) else { continue };
        check(&case, &mut rng, times).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        strike_indexes(&mut rng, &case.disk);
        check(&case, &mut rng, 5).unwrap_or_else(|why| panic!("seed {seed}, other indexes: {why}"));
        made += indexes(&case.disk).len();
        opened += 1;
        gaps += u64::from(case.opened.seq_at(0).unwrap().gap.is_some());
        drop(case.disk);
    }
    assert!(one.is_some() || (opened * 10 > count * 8 && gaps > 0), "{opened} of {count}, {gaps} with a gap");
    assert!(one.is_some() || made > count as usize, "{made} indexes");
}

#[test]
fn times_and_ids_are_found_in_small_segments() {
    seeds(1200, |rng| 4096 + [2048, 4096, 12_288][rng.below(3) as usize], 24, usize::MAX);
}

/// Larger than a window: there is something to bisect, and damage larger than a window too.
#[test]
fn times_and_ids_are_found_in_large_segments() {
    seeds(24, |_| 1536 * 1024, 120, 200);
}

/// An index is made once, goes with its segment, is of sealed segments only, and on a full disk there is none.
#[test]
fn indexes_come_and_go() {
    let (mut rng, bytes) = (Rng(3), 1 << 20);
    let disk = SimDisk::new(rng.fork(), Lies::default());
    let opened = open(&disk, bytes).unwrap();
    let (map, readers) = (opened.map().clone(), opened.readers());
    let mut writer = opened.into_writer();
    let mut published = Vec::new();
    for turn in 0..4 {
        writer.rotate(spare::make(&disk, bytes, turn).unwrap()).unwrap();
        for _ in 0..30 {
            let batch = draw(&mut rng, 20_000, &mut published, 1);
            writer.push(&batch, 1);
        }
        writer.commit().unwrap();
    }
    writer.mark().unwrap();
    drop((writer, readers));
    let disk = disk.cut(&mut rng, Cut::Nothing);
    let opened = open(&disk, bytes).unwrap();
    let (sealed, names) = (map.segments()[..3].to_vec(), || indexes(&disk).into_iter().map(|(name, _)| name));
    let name = |first_lsn: u64| format!("{first_lsn:020}.ids");
    // The newest is in the segment that is read in any case.
    opened.seq_after_id(&published.last().unwrap().id, None).unwrap();
    assert_eq!(names().count(), 0);
    // Full: no index, and an answer.
    disk.room(Some(3 << 20));
    assert_eq!(opened.seq_after_id("nowhere", None).unwrap(), None);
    assert_eq!(names().count(), 0);
    disk.room(None);
    disk.fail(crate::sim::Call::Write, 0, 28);
    assert_eq!(opened.seq_after_id("nowhere", None).unwrap(), None);
    // The newest sealed one had the failing write.
    assert!(names().eq(sealed[..2].iter().map(|segment| name(segment.first_lsn))));
    assert!(disk.files().keys().all(|name| !name.ends_with(".new")), "nothing is left of it");
    assert_eq!(opened.seq_after_id("nowhere", None).unwrap(), None);
    assert!(names().eq(sealed.iter().map(|segment| name(segment.first_lsn))));
    let writes = disk.writes();
    for event in &published {
        assert!(opened.seq_after_id(&event.id, Some(&event.vm)).unwrap().is_some());
    }
    assert_eq!(disk.writes(), writes, "they are made once");
    // What a crash left, what is of no segment, and that of one that is written.
    let newest = map.segments()[3].first_lsn;
    for left in [name(1).replace("ids", "ids.new"), name(77_777), name(newest)] {
        disk.create(&left).unwrap();
    }
    retain::apply(&disk, opened.map(), 1).unwrap();
    drop(opened);
    drop(open(&disk, bytes).unwrap());
    assert!(names().eq(sealed[1..].iter().map(|segment| name(segment.first_lsn))));
    assert!(disk.files().keys().all(|name| !name.ends_with(".new")));
}

/// While it is written: what is durable is found, and nothing beyond it.
#[test]
fn a_running_journal_is_asked() {
    let disk = SimDisk::new(Rng(5), Lies::default());
    let opened = Opened::open(Arc::new(disk), JOURNAL, 1 << 20).unwrap();
    assert_eq!(opened.seq_at(0).unwrap(), SeqAt { seq: 1, gap: None });
    let journal = opened
        .start(&Limits::default(), |_| {}, || {}, |error| panic!("{error}"), Reached::default())
        .unwrap();
    assert_eq!(journal.seq_at(u64::MAX).unwrap(), SeqAt { seq: 1, gap: None });
    assert_eq!(journal.seq_after_id("a", None).unwrap(), None);
    let (mut rng, mut published) = (Rng(6), Vec::new());
    for _ in 0..50 {
        let batch = draw(&mut rng, 4000, &mut published, 0);
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        journal.submit(1, batch, permit).blocking_recv().unwrap().unwrap();
        let (head, last) = (published.len() as u64, published.last().unwrap());
        let newest = journal.map().newest_ts();
        assert_eq!(journal.seq_at(newest + 1).unwrap(), SeqAt { seq: head + 1, gap: None });
        assert!(journal.seq_at(newest).unwrap().seq <= head);
        assert_eq!(journal.seq_at(1).unwrap(), SeqAt { seq: 1, gap: None });
        assert_eq!(journal.seq_after_id(&last.id, None).unwrap(), Some(head + 1));
    }
    journal.stop();
}
