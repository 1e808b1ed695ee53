//! The pieces that every event passes, one by one: parse a frame, encode the event, make the record, read it; and what a commit costs
//! the router.
//!
//! `cargo bench --bench hot`
#![allow(missing_docs, clippy::unwrap_used)]

use castra::core::delivery::interest::Interest;
use castra::core::delivery::outlet::{Outlet, Room};
use castra::core::delivery::router::Router;
use castra::core::event::{Batch, Layout, Publish, Text};
use castra::core::identity::VmName;
use castra::core::ids::IdSource;
use castra::core::journal::disk::RealDisk;
use castra::core::journal::record::{self, Head, Kind};
use castra::core::journal::writer::Committed;
use castra::core::journal::{Opened, Reached};
use castra::core::limits::Limits;
use castra::core::topic::Pattern;
use castra::core::wire::codec::first_frame;
use castra::core::wire::frame::{self, Frame};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

fn hot(c: &mut Criterion) {
    let body = format!(
        r#"{{"type":"publish","topic":"bench.hot","payload":{{"n":1,"pad":"{}"}}}}"#,
        "x".repeat(230)
    );
    let framed = [&(body.len() as u32).to_be_bytes()[..], body.as_bytes()].concat();
    let vm = VmName::parse("devbox").unwrap();
    let mut group = c.benchmark_group("event");
    group.throughput(Throughput::Elements(1));
    group.bench_function("parse", |b| {
        b.iter(|| frame::parse(first_frame(black_box(&framed)).unwrap().unwrap()).unwrap())
    });

    let Frame::Publish(publish) = frame::parse(body.as_bytes()).unwrap() else { return };
    let mut ids = IdSource::new(7);
    let mut batch = Batch::default();
    group.bench_function("encode", |b| {
        b.iter(|| {
            if batch.len() == 256 {
                batch.truncate(0);
            }
            batch.push(&vm, black_box(&publish), |out| ids.write(1_700_000_000_000, out)).unwrap();
        });
    });

    // Also when the one before was not asked for.
    batch.push(&vm, &publish, |out| ids.write(1_700_000_000_000, out)).unwrap();
    let draft = batch.drafts()[0];
    let prefix = b"{\"seq\":123456,\"ts\":1700000000000,";
    let layout = Layout::of(&draft, prefix.len());
    let head = Head { lsn: 9, seq: 8, ts: 7, synced: 6, kind: Kind::Event, joined: false, layout };
    let mut out = Vec::new();
    group.bench_function("record", |b| {
        b.iter(|| {
            out.clear();
            record::encode(&mut out, 5, black_box(&head), [prefix, batch.tail(&draft)]);
        });
    });
    group.bench_function("read", |b| {
        b.iter(|| matches!(record::decode(black_box(&out), 5), record::Decoded::Record(..)))
    });
    let mut acks = Vec::new();
    group.bench_function("ack", |b| {
        b.iter(|| {
            acks.clear();
            frame::publish_ack(&mut acks, &batch, black_box(&draft), 123_456, false);
        });
    });
    group.finish();
}

/// What it costs to hand a commit out, for the one subscriber of its topic, beside others of other topics.
fn routing(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::new(dir.path().to_owned()));
    let opened = Opened::open(disk, 7, 64 << 20).unwrap();
    let (commits, committed) = std::sync::mpsc::channel();
    let hand_over = move |commit| drop(commits.send(commit));
    let journal = opened.start(&Limits::default(), hand_over, || {}, |_| {}, Reached::default()).unwrap();
    let bytes = Arc::new(Semaphore::new(1));
    let mut next = 1;
    let mut group = c.benchmark_group("route");
    group.throughput(Throughput::Elements(1));
    for (name, count, pattern) in [
        ("10 topics", 10, "t.#.x"),
        ("10,000 topics", 10_000, "t.#.x"),
        ("10 patterns", 10, "t.#.*"),
        ("10,000 patterns", 10_000, "t.#.*"),
        ("10,000 patterns that begin with a star", 10_000, "*.#.x"),
    ] {
        let router = Router::new(next);
        let outlets: Vec<Arc<Outlet>> =
            (0..count).map(|_| Arc::new(Outlet::new(1024, 1 << 20, Room::new(1 << 30)))).collect();
        for (n, outlet) in outlets.iter().enumerate() {
            let pattern = Pattern::parse(&pattern.replace('#', &n.to_string())).unwrap();
            let interest = Arc::new(Interest::new(pattern.as_str().into(), &[pattern]));
            router.join(&interest, outlet, 1, next).unwrap();
        }
        let vm = VmName::parse("devbox").unwrap();
        let mut commit = |n: usize| {
            let topic = Some(Text(format!("t.{n}.x").into()));
            let mut batch = Batch::default();
            batch.push(&vm, &Publish { topic, ..Publish::default() }, |out| out.push(b'i')).unwrap();
            let permit = bytes.clone().try_acquire_owned().unwrap();
            journal.submit(1, batch, permit).blocking_recv().unwrap().unwrap();
            let commit: Arc<Committed> = committed.recv().unwrap();
            next = commit.last_seq().unwrap() + 1;
            commit
        };
        // Each topic in turn, so that what is remembered of them is in it as well; and always the same one.
        for (which, step) in [("", 7919), (", always the same one", 0)] {
            group.bench_function(format!("{name}{which}"), |b| {
                b.iter_custom(|times| {
                    let (mut took, mut n, mut left) = (Duration::ZERO, 5, times);
                    while left > 0 {
                        // Many at a time: a commit before each would leave nothing of the router in the CPU's cache.
                        let some = left.min(512);
                        let of = |i: u64| (n + i as usize * step) % count;
                        let commits: Vec<_> = (0..some).map(|i| [commit(of(i))]).collect();
                        let since = Instant::now();
                        commits.iter().for_each(|commit| router.route(commit));
                        took += since.elapsed();
                        (0..some).for_each(|i| assert!(outlets[of(i)].pop().is_some()));
                        (n, left) = (of(some), left - some);
                    }
                    took
                })
            });
        }
    }
    group.finish();
    journal.stop();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = hot, routing
}
criterion_main!(benches);
