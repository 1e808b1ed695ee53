//! Fair turns into the commit, on a disk whose commits wait until the test lets them go.
//!
//! A commit is stuck in its sync; sessions flood the journal with MiBs; one session submits one event somewhere
//! among them. Then syncs are let go one by one and counted. Always holds: the event is durable after two, the one
//! that was stuck and its own; a lane's batches get seqs in their order. Only where a round is larger than a
//! segment does every segment that it goes into take one more.

use crate::model::{JOURNAL, most};
use crate::sim::{Lies, Rng, SimDisk};
use castra::core::event::{Batch, Publish};
use castra::core::identity::VmName;
use castra::core::journal::disk::{Disk, DiskFile};
use castra::core::journal::segment::HEADER_BYTES;
use castra::core::journal::{Class, Journal, Note, Opened, Outcome, Reached};
use castra::core::limits::Limits;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tokio::sync::oneshot::Receiver;
use tokio::sync::{Semaphore, oneshot};

const SLOW: u64 = 999;

/// Lets syncs of records through, as many as it is told.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<Syncs>, Condvar)>);

#[derive(Default)]
struct Syncs {
    /// That came to the gate.
    begun: u64,
    /// That may pass it.
    allowed: u64,
    /// Whose acks are out.
    done: u64,
}

impl Gate {
    fn change(&self, f: impl FnOnce(&mut Syncs)) {
        f(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.1.notify_all();
    }

    fn wait_until(&self, ready: impl Fn(&Syncs) -> bool) {
        let syncs = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_while(syncs, |syncs| !ready(syncs)).unwrap_or_else(PoisonError::into_inner));
    }

    fn pass(&self) {
        let mut mine = 0;
        self.change(|syncs| {
            syncs.begun += 1;
            mine = syncs.begun;
        });
        self.wait_until(|syncs| syncs.allowed >= mine);
    }
}

struct GatedDisk(SimDisk, Gate);

struct GatedFile {
    file: Box<dyn DiskFile>,
    gate: Gate,
    /// Records were written since the last sync, and not a header or a spare's zeros.
    records: AtomicBool,
}

impl GatedDisk {
    fn gated(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(GatedFile { file, gate: self.1.clone(), records: AtomicBool::new(false) })
    }
}

impl Disk for GatedDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.0.create(name)
    }
    fn create_zeros(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.gated(self.0.create_zeros(name, bytes)?))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.0.open(name)
    }
    fn open_blocks(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.gated(self.0.open_blocks(name)?))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.0.sync_dir()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }
}

impl DiskFile for GatedFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.records.store(offset >= HEADER_BYTES, Ordering::SeqCst);
        self.file.write_at(buf, offset)
    }
    fn sync(&self) -> io::Result<()> {
        if self.records.swap(false, Ordering::SeqCst) {
            self.gate.pass();
        }
        self.file.sync()
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_size(size)
    }
}

struct Gated {
    journal: Journal,
    gate: Gate,
}

/// A journal whose first commit, of so many events of 40 kB, is stuck in its sync.
fn stuck(segment_bytes: u64, events: usize) -> (Gated, Receiver<Outcome>) {
    let gate = Gate::default();
    let disk = GatedDisk(SimDisk::new(Rng(1), Lies::default()), gate.clone());
    let limits = Limits { segment_bytes, ..Limits::default() };
    let done = gate.clone();
    let journal = Opened::open(Arc::new(disk), JOURNAL, segment_bytes)
        .unwrap()
        .start(
            &limits,
            move |_| done.change(|syncs| syncs.done += 1),
            || {},
            |error| panic!("{error}"),
            Reached::default(),
        )
        .unwrap();
    let gated = Gated { journal, gate };
    let first = gated.submit(0, batch(&vec![40_000; events]));
    gated.gate.wait_until(|syncs| syncs.begun == 1);
    (gated, first)
}

impl Gated {
    fn submit(&self, lane: u64, batch: Batch) -> Receiver<Outcome> {
        self.journal.submit(lane, batch, Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap())
    }

    /// Lets one commit go, and waits until its acks are out.
    fn release(&self) {
        let mut mine = 0;
        self.gate.change(|syncs| {
            syncs.allowed += 1;
            mine = syncs.allowed;
        });
        self.gate.wait_until(|syncs| syncs.done >= mine);
    }

    /// Lets all go.
    fn open(&self) {
        self.gate.change(|syncs| syncs.allowed = u64::MAX);
    }
}

/// Events with payloads of these sizes.
fn batch(sizes: &[usize]) -> Batch {
    let (mut batch, vm) = (Batch::default(), VmName::parse("flood").unwrap());
    for size in sizes {
        let payload = format!("\"{}\"", "x".repeat(*size));
        let payload = Some(serde_json::from_str(&payload).unwrap());
        let publish = Publish { payload, ..Publish::default() };
        batch.push(&vm, &publish, |out| out.extend_from_slice(b"an-id")).unwrap();
    }
    batch
}

/// One schedule of floods, drawn from a seed.
fn schedule(seed: u64) -> Result<(), TestCaseError> {
    let mut rng = Rng(seed);
    let segment = [1 << 20, 3 << 20, 12 << 20][rng.below(3) as usize];
    let room = most(segment) as u64;
    // Often there is little left of the segment, so that a round comes to its end.
    let (journal, _first) = stuck(segment, 1 + rng.below(room / 40_400 - 1) as usize);
    let (lanes, most) = (1 + rng.below(24), 1 + rng.below(4) as usize);
    let batches = rng.below(120);
    let slow_at = rng.below(batches + 1);
    let (mut outcomes, mut slow, mut waiting) = (Vec::new(), None, BTreeMap::new());
    let mut submit = |rng: &mut Rng| {
        let sizes: Vec<usize> = (0..1 + rng.below(most as u64)).map(|_| rng.below(40_000) as usize).collect();
        let (lane, batch) = (1 + rng.below(lanes), batch(&sizes));
        *waiting.entry(lane).or_insert(0) += 1;
        outcomes.push((lane, journal.submit(lane, batch)));
    };
    for i in 0..=batches {
        if i == slow_at {
            slow = Some(journal.submit(SLOW, batch(&[10])));
        }
        if i < batches {
            submit(&mut rng);
        }
    }
    let mut slow = slow.unwrap();
    let begun_at = journal.journal.map().segments().len();
    let mut syncs = 0;
    let receipt = loop {
        journal.release();
        syncs += 1;
        match slow.try_recv() {
            Ok(outcome) => break outcome.unwrap(),
            Err(oneshot::error::TryRecvError::Closed) => panic!("seed {seed}: no outcome"),
            Err(oneshot::error::TryRecvError::Empty) => {
                // They go on while the next commit is stuck.
                journal.gate.wait_until(|gate| gate.begun > syncs);
                (0..rng.below(20)).for_each(|_| submit(&mut rng));
            }
        }
    };
    // The first round, whole, is in one segment unless it is larger than one.
    let largest = lanes * most as u64 * 40_200 + 10_000 > room;
    let more = if largest { journal.journal.map().segments().len() - begun_at } else { 0 };
    prop_assert!(syncs <= 2 + more as u64, "seed {seed}: durable after {syncs} syncs");
    journal.open();
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    for (lane, outcome) in outcomes {
        let receipt = outcome.blocking_recv().unwrap().unwrap();
        let before = last.insert(lane, receipt.last_seq());
        prop_assert!(before.is_none_or(|before| before < receipt.last_seq()), "lane {lane} is out of order");
        prop_assert!(receipt.batch.len() <= most);
    }
    prop_assert_eq!(receipt.batch.len(), 1);
    journal.journal.stop();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn one_event_waits_for_two_commits_at_most(seed in any::<u64>()) {
        schedule(seed)?;
    }
}

/// The plain case, far from every boundary: 32 MiB stand before it, which are eight commits.
#[test]
fn one_event_behind_a_flood_is_in_the_next_commit() {
    let (journal, _first) = stuck(12 << 20, 1);
    let mut flood: Vec<_> =
        (0..256).map(|i| journal.submit(1 + i % 16, batch(&[40_000, 40_000, 40_000]))).collect();
    let mut slow = journal.submit(SLOW, batch(&[10]));
    journal.release();
    assert!(slow.try_recv().is_err(), "the commit that was stuck began before it came");
    journal.gate.wait_until(|syncs| syncs.begun == 2);
    journal.release();
    assert_eq!(slow.try_recv().unwrap().unwrap().batch.len(), 1);
    let with_it: Vec<usize> = (0..256).filter(|i| flood[*i].try_recv().is_ok()).collect();
    let last = with_it.last().unwrap();
    assert!(
        with_it.len().is_multiple_of(16) && with_it.len() < 256 && *last == with_it.len() - 1,
        "{with_it:?}"
    );
    journal.open();
    journal.journal.stop();
}

/// Notes and events that wait together are one commit; each round takes one call, in their order.
#[test]
fn notes_are_in_the_next_commit() {
    let (journal, _first) = stuck(12 << 20, 1);
    let note = |n: u8| vec![Note::new(Class::Change, vec![n; 1000]).unwrap()];
    let mut flood: Vec<_> = (0..64).map(|i| journal.submit(1 + i % 16, batch(&[40_000; 3]))).collect();
    let mut calls: Vec<_> = (0..3).map(|n| journal.journal.note(note(n))).collect();
    let mut slow = journal.submit(SLOW, batch(&[10]));
    journal.release();
    assert!(calls[0].try_recv().is_err(), "the commit that was stuck began before it came");
    journal.gate.wait_until(|syncs| syncs.begun == 2);
    journal.release();
    assert_eq!(calls[0].try_recv().unwrap(), Ok(()));
    assert_eq!(slow.try_recv().unwrap().unwrap().batch.len(), 1);
    let rounds = flood.iter_mut().map(|outcome| outcome.try_recv().is_ok()).filter(|ok| *ok).count() / 16;
    let noted = 1 + calls[1..].iter_mut().map(|call| call.try_recv().is_ok()).filter(|ok| *ok).count();
    assert_eq!((rounds, noted), (3, 3), "4 MiB are reached in the third round");
    journal.open();
    journal.journal.stop();
    assert!(journal.journal.note(note(9)).blocking_recv().is_err(), "after the end");
}

/// What was submitted before the end is committed; what comes after it is dropped with its reply.
#[test]
fn the_end_commits_what_waits_and_drops_what_comes_after() {
    let (journal, first) = stuck(12 << 20, 1);
    let before: Vec<_> = (0..40).map(|i| journal.submit(i % 3, batch(&[100]))).collect();
    let probe = journal.journal.probe();
    let journal = &journal;
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| journal.journal.stop());
        journal.open();
        stopping.join().unwrap();
    });
    let after = journal.submit(7, batch(&[100]));
    assert!(after.blocking_recv().is_err());
    assert!(journal.journal.probe().blocking_recv().is_err());
    assert!(probe.blocking_recv().is_ok());
    for outcome in std::iter::once(first).chain(before) {
        outcome.blocking_recv().unwrap().unwrap();
    }
    assert_eq!(journal.journal.map().durable_seq(), 41);
}
