//! The journal as the broker runs it: its threads, and segments of more than one window.
//!
//! Always holds: readers get what was acked, from any seq; a full disk refuses and publishing goes on by
//! itself; a failed disk says `Unknown` once and nothing is accepted after it.

use crate::model::{Model, draw_batch, open};
use crate::sim::{Call, Cut, Lies, Rng, SimDisk};
use castra::core::event::{Batch, Publish, Text};
use castra::core::identity::VmName;
use castra::core::journal::read::Read;
use castra::core::journal::{Journal, NotCommitted, Reached, spare};
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

/// After a start the ids at the journal's end are known, and those that lie further back than is read are not.
#[test]
fn ids_are_known_from_the_last_64_mib() {
    let mut rng = Rng(11);
    let bytes = 8 << 20;
    let disk = SimDisk::new(rng.fork(), Lies::default());
    let mut writer = open(&disk, bytes).unwrap().into_writer();
    let (vm, other) = (VmName::parse("quiet").unwrap(), VmName::parse("flood").unwrap());
    let pad = format!("\"{}\"", "x".repeat(60_000));
    let pad = Publish { payload: Some(serde_json::from_str(&pad).unwrap()), ..Publish::default() };
    let named = |n: usize| {
        let (mut batch, id) = (Batch::default(), n.to_string());
        let publish = Publish { id: Some(Text(id.as_str().into())), ..Publish::default() };
        batch.push(&vm, &publish, |_| {}).unwrap();
        batch
    };
    // Every MiB or so the quiet one says something; 80 times.
    let (mut seqs, mut turn) = (Vec::new(), 0);
    for n in 0..80 {
        let mut flood = Batch::default();
        (0..17).for_each(|_| flood.push(&other, &pad, |out| out.push(b'f')).unwrap());
        if !writer.has_room(&flood) {
            writer.rotate(spare::make(&disk, bytes, turn).unwrap()).unwrap();
            turn += 1;
        }
        seqs.push(writer.push(&named(n), 1).highest(1));
        writer.push(&flood, 1);
        writer.commit().unwrap();
    }
    drop(writer);
    // No power cut: the zeros at the end of a segment that was sealed and not synced would count as read.
    let writer = open(&disk, bytes).unwrap().into_writer();
    let known: Vec<Option<u64>> =
        (0..80).map(|n| writer.repeats(&named(n)).map(|seqs| seqs.highest(1))).collect();
    let first = known.iter().position(Option::is_some).unwrap();
    assert!((12..20).contains(&first), "{first}: 64 MiB are about 65 turns of 17 times 60 kB");
    assert!(known[first..].iter().zip(&seqs[first..]).all(|(known, seq)| *known == Some(*seq)));
}
