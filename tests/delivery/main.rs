//! Delivery against what it promises: sessions, router and journal in one process, on pipes, a simulated disk and a
//! clock that the test moves.
//!
//! `world.rs` is the broker, `peer.rs` a guest, `oracle.rs` what must come out, `crowd.rs` fifty publishers and fifty
//! subscribers at random; the other files are a behaviour each. `CASTRA_CROWDS=n` runs more crowds; `CASTRA_SEED=n`
//! replays one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod clock;
mod crowd;
mod edges;
mod oracle;
mod peer;
#[path = "../journal/sim.rs"]
#[allow(dead_code)]
mod sim;
mod vanish;
mod vsock;
mod world;

use crowd::Done;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Runs so many crowds, two at a time.
fn crowds(test: &str, wanted: u64, lookups: bool) -> Done {
    if let Some(seed) = env("CASTRA_SEED") {
        let done = crowd::crowd(seed, lookups);
        println!("seed {seed}: {done:?}");
        return done;
    }
    let wanted = env("CASTRA_CROWDS").unwrap_or(wanted);
    let (next, failure, total) = (AtomicU64::new(1), Mutex::new(None), Mutex::new(Done::default()));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > wanted || failure.lock().unwrap().is_some() {
                        return;
                    }
                    match std::panic::catch_unwind(|| crowd::crowd(seed, lookups)) {
                        Ok(done) => total.lock().unwrap().add(&done),
                        Err(_) => *failure.lock().unwrap() = Some(seed),
                    }
                }
            });
        }
    });
    if let Some(seed) = failure.into_inner().unwrap() {
        panic!(
            "seed {seed}, see above\nreplay it: CASTRA_SEED={seed} cargo test --test delivery {test} -- --nocapture"
        );
    }
    let total = total.into_inner().unwrap();
    println!("{wanted} crowds in {:.1?}: {total:?}", began.elapsed());
    total
}

#[test]
fn every_subscriber_sees_exactly_what_its_patterns_select() {
    let total = crowds("every_subscriber", 200, false);
    // Nothing that the test is about was left out.
    assert!(total.delivered > total.events && total.accounts > 0 && total.refused > 0, "{total:?}");
    if env("CASTRA_SEED").is_none() {
        assert!(
            total.gaps > 0 && total.gaps_in_acks > 0 && total.resumed > 0 && total.pressed > 0,
            "{total:?}"
        );
    }
}

/// The same with subscriptions that begin at times and behind ids.
#[test]
fn every_subscriber_sees_it_from_times_and_ids_too() {
    crowds("times_and_ids", 60, true);
}
