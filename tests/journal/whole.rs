//! The journal as the broker runs it: its threads, and segments of more than one window.
//!
//! Always holds: readers get what was acked, from any seq; a full disk refuses and publishing goes on by
//! itself; a failed disk says `Unknown` once and nothing is accepted after it.

use crate::model::{Model, draw_batch, open};
use crate::sim::{Call, Cut, Lies, Rng, SimDisk};
use castra::core::event::{Batch, Publish, Text};
use castra::core::identity::VmName;
use castra::core::journal::read::Read;
use castra::core::journal::{Journal, NotCommitted, Reached, retain, spare};
use castra::core::limits::Limits;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Bisection, windows and resync in segments much larger than a window.
#[test]
fn any_seq_is_found_in_large_segments() {
    let mut rng = Rng(7);
    let bytes = 1536 * 1024;
    let disk = SimDisk::new(rng.fork(), Lies::default());
    let opened = open(&disk, bytes).unwrap();
    let mut live = opened.reader(1);
    let mut model = Model::new();
    let mut writer = opened.into_writer();
    for turn in 0..1200 {
        let (batch, parts) = draw_batch(&mut rng, if turn % 2 == 0 { 120_000 } else { 4000 });
        if !writer.has_room(&batch) {
            writer.rotate(spare::make(&disk, bytes, turn).unwrap()).unwrap();
        }
        let now = model.ts + 1;
        model.push(&batch, &parts, now);
        writer.push(&batch, now);
        writer.commit().unwrap();
        model.ack();
        if turn % 7 == 0 {
            writer.mark().unwrap();
            model.follow(&mut live, 1, model.acked.len() as u64, u64::MAX, &mut rng).unwrap();
        }
    }
    drop(writer);
    let disk = disk.cut(&mut rng, Cut::Nothing);
    let opened = open(&disk, bytes).unwrap();
    let (last, _) = model.check(&opened, &mut rng).unwrap();
    assert_eq!(last, model.acked.len() as u64);
    assert!(opened.map().segments().len() > 3, "{}", opened.map().segments().len());
    for _ in 0..1500 {
        let mut reader = opened.reader(1 + rng.below(last));
        model.follow(&mut reader, 1, last, 3, &mut rng).unwrap();
    }
    // Every flipped bit costs one event and hides no other.
    let name = "00000000000000000001.seg";
    let mut bytes = disk.files()[name].clone();
    for at in (5000..bytes.len() - 600_000).step_by(50_000) {
        bytes[at] ^= 4;
    }
    disk.overwrite(name, bytes.clone());
    let end = opened.map().segments()[1].first_seq;
    let mut lost = Vec::new();
    opened.check_sealed(|| true, |damage| lost.extend(damage.seqs));
    assert!(!lost.is_empty() && lost.len() <= bytes.len() / 50_000, "{lost:?}");
    for from in 1..end {
        let mut reader = opened.reader(from);
        let next = loop {
            match reader
                .read(1, &mut |event| assert_eq!(*event.line, *model.acked[from as usize - 1].text))
                .unwrap()
            {
                Read::Events(0) => {}
                read => break read,
            }
        };
        assert_eq!(next == Read::Events(1), !lost.contains(&from), "{from}: {next:?}");
    }
}

struct Running {
    journal: Journal,
    committed: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
}

fn start(disk: &SimDisk, bytes: u64) -> Running {
    let (committed, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let limits = Limits { segment_bytes: bytes, ..Limits::default() };
    let (c, f) = (committed.clone(), failed.clone());
    let journal = open(disk, bytes).unwrap().start(
        &limits,
        move |batch| {
            c.fetch_add(batch.events().count(), Ordering::SeqCst);
        },
        || {},
        move |_| {
            f.fetch_add(1, Ordering::SeqCst);
        },
        Reached { views: Arc::new(AtomicU64::new(u64::MAX)), ..Reached::default() },
    );
    Running { journal: journal.unwrap(), committed, failed }
}

/// Submits a batch and waits; its first seq and its events.
fn publish(journal: &Journal, rng: &mut Rng) -> Result<(u64, usize), NotCommitted> {
    let (batch, _) = draw_batch(rng, 2000);
    let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let outcome = journal.submit(rng.below(3), batch, permit).blocking_recv();
    outcome.unwrap_or(Err(NotCommitted::Unknown)).map(|receipt| {
        let count = receipt.batch.len();
        (receipt.last_seq() + 1 - count as u64, count)
    })
}

#[test]
fn threads_commit_refuse_go_on_and_stop() {
    let disk = SimDisk::new(Rng(3), Lies::default());
    let running = start(&disk, 12_288);
    let acked = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (journal, acked) = (&running.journal, &acked);
            scope.spawn(move || {
                let mut rng = Rng(seed);
                for _ in 0..60 {
                    let (first, count) = publish(journal, &mut rng).unwrap();
                    acked.lock().unwrap().extend(first..first + count as u64);
                }
            });
        }
    });
    let mut acked = acked.into_inner().unwrap();
    acked.sort_unstable();
    assert!(acked.iter().copied().eq(1..=acked.len() as u64));

    let mut rng = Rng(9);
    disk.room(Some(0));
    let began = Instant::now();
    while publish(&running.journal, &mut rng) != Err(NotCommitted::DiskFull) {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    assert!(running.journal.is_full());
    disk.room(None);
    while publish(&running.journal, &mut rng).is_err() {
        assert!(began.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    // Twice, and from two threads: no submission is half done.
    std::thread::scope(|scope| {
        scope.spawn(|| running.journal.stop());
        running.journal.stop();
    });
    assert_eq!(publish(&running.journal, &mut rng), Err(NotCommitted::Unknown));
    let last = running.journal.map().durable_seq();
    assert_eq!(running.committed.load(Ordering::SeqCst) as u64, last);
    assert_eq!(open(&disk.cut(&mut rng, Cut::Nothing), 12_288).unwrap().map().durable_seq(), last);

    let running = start(&disk, 12_288);
    publish(&running.journal, &mut rng).unwrap();
    disk.fail(Call::Sync, 0, 5);
    let began = Instant::now();
    // The keeper's own failures only cost a spare.
    while publish(&running.journal, &mut rng) != Err(NotCommitted::Unknown) {
        disk.fail(Call::Sync, 0, 5);
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    disk.heal();
    assert_eq!(publish(&running.journal, &mut rng), Err(NotCommitted::Unknown));
    running.journal.stop();
    assert_eq!(running.failed.load(Ordering::SeqCst), 1);
}

/// After a start each VM's last 256 ids are known however far back they lie, and whatever retention removed; and of all
/// together those in the last 64 MiB, as long as they are young.
#[test]
fn ids_are_known_across_restarts() {
    let mut rng = Rng(11);
    let bytes = 8 << 20;
    let disk = SimDisk::new(rng.fork(), Lies::default());
    let opened = open(&disk, bytes).unwrap();
    let map = opened.map().clone();
    let mut writer = opened.into_writer();
    let [quiet, busy, flood] = ["quiet", "busy", "flood"].map(|name| VmName::parse(name).unwrap());
    let pad = format!("\"{}\"", "x".repeat(60_000));
    let pad = Publish { payload: Some(serde_json::from_str(&pad).unwrap()), ..Publish::default() };
    let named = |vm: &VmName, ids: std::ops::Range<usize>| {
        let mut batch = Batch::default();
        for n in ids {
            let id = n.to_string();
            let publish = Publish { id: Some(Text(id.as_str().into())), ..Publish::default() };
            batch.push(vm, &publish, |_| {}).unwrap();
        }
        batch
    };
    // First 256 of the quiet one, then a MiB of others, a hundred times.
    let quiets = named(&quiet, 0..256);
    writer.rotate(spare::make(&disk, bytes, 0).unwrap()).unwrap();
    assert_eq!(writer.push(&quiets, 1000).highest(256), 256);
    let mut last = 256;
    for n in 0..100 {
        let mut others = named(&busy, 10 * n..10 * n + 10);
        (0..17).for_each(|_| others.push(&flood, &pad, |out| out.push(b'f')).unwrap());
        if !writer.has_room(&others) {
            assert!(writer.commit().is_ok());
            writer.rotate(spare::make(&disk, bytes, n).unwrap()).unwrap();
            let gone = map.segments().len().saturating_sub(10);
            let gone =
                map.segments()[1..].iter().take(gone).filter(|next| next.first_lsn <= map.needed()).count();
            retain::apply(&disk, &map, gone).unwrap();
        }
        last = writer.push(&others, 1000).highest(27);
        writer.commit().unwrap();
    }
    assert!(map.first_seq() > 500, "retention removed nothing");
    drop(writer);
    for turn in 0..3 {
        // No power cut: the zeros at the end of a segment that was sealed and not synced would count as read.
        let mut writer = open(&disk, bytes).unwrap().into_writer();
        assert_eq!(writer.next_seq(), last + 1 + turn);
        assert_eq!(writer.repeats(&quiets, u64::MAX).unwrap().highest(256), 256);
        let known = |now: u64| {
            let known =
                (0..1000).map(|n| writer.repeats(&named(&busy, n..n + 1), now).map(|seqs| seqs.highest(1)));
            let known: Vec<Option<u64>> = known.collect();
            let first = known.iter().position(Option::is_some).unwrap();
            let seqs = (0..1000).map(|n| 257 + n / 10 * 27 + n % 10);
            assert!(known.iter().zip(seqs).skip(first).all(|(known, seq)| *known == Some(seq)));
            first
        };
        assert!(
            (300..400).contains(&known(121_000)),
            "{}: 64 MiB are about 65 turns of 17 times 60 kB",
            known(1000)
        );
        assert_eq!(known(121_001), 744);
        // The next one has more to read: what it writes begins with a snapshot, or does not.
        writer.rotate(spare::find_or_make(&disk, bytes, 4096).unwrap()).unwrap();
        writer.push(&named(&flood, turn as usize..turn as usize + 1), 1000);
        writer.commit().unwrap();
    }
}

/// How many nanoseconds an event takes the commit thread, with an id of its publisher's or not: run it by hand.
#[test]
#[ignore = "prints figures"]
fn what_ids_cost() {
    use castra::core::journal::Opened;
    use castra::core::journal::disk::RealDisk;
    let pad = format!("\"{}\"", "x".repeat(150));
    for (name, vms, own) in [("none", 64, false), ("64 VMs", 64, true), ("10,000 VMs", 10_000, true)] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Arc::new(RealDisk::new(dir.path()));
        let mut writer = Opened::open(disk.clone(), crate::model::JOURNAL, 1 << 30).unwrap().into_writer();
        let names: Vec<VmName> = (0..vms).map(|n| VmName::parse(&format!("vm{n}")).unwrap()).collect();
        let (mut batches, mut n) = (Vec::new(), 0);
        for _ in 0..4000 {
            let mut batch = Batch::default();
            for _ in 0..250 {
                let id = format!("0199-{n:016x}-cafe");
                let id = Some(Text(id.as_str().into())).filter(|_| own);
                let payload = Some(serde_json::from_str(&pad).unwrap());
                let publish = Publish { id, payload, ..Publish::default() };
                batch.push(&names[n % vms], &publish, |out| out.extend_from_slice(&[b'i'; 26])).unwrap();
                n += 1;
            }
            batches.push(batch);
        }
        let (mut pushing, mut committing) = (Duration::ZERO, Duration::ZERO);
        for (turn, batch) in batches.iter().enumerate() {
            if !writer.has_room(batch) {
                writer.commit().unwrap();
                writer.rotate(spare::make(&*disk, 64 << 20, turn).unwrap()).unwrap();
            }
            let begun = Instant::now();
            writer.push(batch, turn as u64 / 4);
            pushing += begun.elapsed();
            if turn % 20 == 19 {
                let begun = Instant::now();
                writer.commit().unwrap();
                committing += begun.elapsed();
            }
        }
        let per = |time: Duration| time.as_nanos() as f64 / n as f64;
        println!("{name}: push {:.0} ns, commit {:.0} ns an event", per(pushing), per(committing));
    }
}

/// How long a start takes, and finding an id, at the end of 1 GiB: run it by hand.
#[test]
#[ignore = "writes 1 GiB and prints figures"]
fn ids_of_a_gib() {
    use castra::core::journal::Opened;
    use castra::core::journal::disk::RealDisk;
    let pad = format!("\"{}\"", "x".repeat(150));
    for (vms, own) in [(100, false), (100, true), (10_000, true)] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = Arc::new(RealDisk::new(dir.path()));
        let bytes = Limits::default().segment_bytes;
        let opened = Opened::open(disk.clone(), crate::model::JOURNAL, bytes).unwrap();
        let map = opened.map().clone();
        let mut writer = opened.into_writer();
        let mut n = 0;
        let mut worst = Duration::ZERO;
        for turn in 0.. {
            let mut batch = Batch::default();
            for _ in 0..2000 {
                let id = format!("0199-{n:016x}-cafe");
                let text = Some(Text(id.as_str().into())).filter(|_| own);
                let payload = Some(serde_json::from_str(&pad).unwrap());
                let publish = Publish { id: text, payload, ..Publish::default() };
                let vm = VmName::parse(&format!("vm{}", n % vms)).unwrap();
                batch.push(&vm, &publish, |out| out.extend_from_slice(id.as_bytes())).unwrap();
                n += 1;
            }
            if !writer.has_room(&batch) {
                if map.segments().len() > 16 {
                    break;
                }
                let spare = spare::make(&*disk, bytes, turn).unwrap();
                let begun = Instant::now();
                writer.rotate(spare).unwrap();
                writer.push(&batch, 1 + turn as u64);
                writer.commit().unwrap();
                worst = worst.max(begun.elapsed());
                continue;
            }
            writer.push(&batch, 1 + turn as u64);
            writer.commit().unwrap();
        }
        writer.mark().unwrap();
        drop(writer);
        println!("{vms} VMs, own ids {own}: {n} events, the longest rotation with its commit {worst:.1?}");
        for _ in 0..3 {
            let begun = Instant::now();
            drop(Opened::open(disk.clone(), crate::model::JOURNAL, bytes).unwrap());
            println!("  start {:.1?}", begun.elapsed());
        }
        let opened = Opened::open(disk.clone(), crate::model::JOURNAL, bytes).unwrap();
        let names = || std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let indexes = || names().filter(|path| path.extension().is_some_and(|end| end == "ids"));
        for id in [format!("0199-{:016x}-cafe", 7), "nowhere".into(), format!("0199-{:016x}-cafe", 8)] {
            let begun = Instant::now();
            let found = opened.seq_after_id(&id, None).unwrap();
            println!("  {id}: {found:?} in {:.1?}", begun.elapsed());
        }
        println!("  indexes: {} bytes", indexes().map(|path| path.metadata().unwrap().len()).sum::<u64>());
        indexes().for_each(|path| std::fs::remove_file(path).unwrap());
        let begun = Instant::now();
        opened.seq_after_id("nowhere", None).unwrap();
        println!("  made anew, the segments in the page cache, in {:.1?}", begun.elapsed());
    }
}
