//! The pieces that every event passes, one by one: parse a frame, encode the event, make the record, read it.
//!
//! `cargo bench --bench hot`
#![allow(missing_docs, clippy::unwrap_used)]

use castra::core::event::{Batch, Layout};
use castra::core::identity::VmName;
use castra::core::ids::IdSource;
use castra::core::journal::record::{self, Head, Kind};
use castra::core::wire::codec::first_frame;
use castra::core::wire::frame::{self, Frame};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

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
            frame::publish_ack(&mut acks, &batch, black_box(&draft), 123_456);
        });
    });
    group.finish();
}

criterion_group!(benches, hot);
criterion_main!(benches);
