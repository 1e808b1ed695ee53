//! The journal against a model, on a disk that loses power between any two calls.
//!
//! A history is drawn from a seed: publishes, commits, rotations, retention, full disks, failing calls,
//! stops, kills, power cuts. After any call that changes the disk a copy of it may crash and be recovered.
//! Always holds, for every such copy (`survives`): what was acked is there once, in order, byte for byte;
//! behind it stand at most the first of the batch under way, whole publishes only, and nothing that was
//! refused; what was served once is served again after the next crash. Live readers never pass the acks. What is sent
//! again with an id of its publisher's, to the same process or the next, has the first seq and is there once, if the
//! first was stored; else it is new. Notes stand among the events: those that were acked are replayed in their order, from
//! the newest whole snapshot on.
//!
//! `sim.rs` is the disk, `model.rs` the check, `history.rs` the lives; `damage.rs`, `lookup.rs`, `notes.rs`, `turns.rs` and
//! `whole.rs` are tests of their own. `CASTRA_CRASH_POINTS=n` checks more; `CASTRA_SEED=n` replays one history (or damaged journal).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod damage;
mod history;
mod lookup;
mod model;
mod notes;
mod sim;
mod turns;
mod whole;

use history::{Plan, history};
use sim::Lies;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn acked_is_never_lost_and_refused_never_comes_back() {
    if let Some(seed) = env("CASTRA_SEED") {
        let done = history(seed, Plan::default()).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        println!("seed {seed}: {done:?}");
        return;
    }
    let wanted = env("CASTRA_CRASH_POINTS").unwrap_or(250_000);
    let (next, points, failure) = (AtomicU64::new(1), AtomicU64::new(0), Mutex::new(None));
    let total = Mutex::new(history::Done::default());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while points.load(Ordering::Relaxed) < wanted && failure.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let result = std::panic::catch_unwind(|| history(seed, Plan::default()));
                    match result.unwrap_or_else(|_| Err("it panicked".into())) {
                        Ok(done) => {
                            points.fetch_add(done.points, Ordering::Relaxed);
                            total.lock().unwrap().add(&done);
                        }
                        Err(why) => *failure.lock().unwrap() = Some((seed, why)),
                    }
                }
            });
        }
    });
    if let Some((seed, why)) = failure.into_inner().unwrap() {
        panic!(
            "seed {seed}: {why}\nreplay it: CASTRA_SEED={seed} cargo test --test journal acked -- --nocapture"
        );
    }
    let (total, histories) = (total.into_inner().unwrap(), next.load(Ordering::Relaxed) - 1);
    println!("{histories} histories in {:.1?}: {total:?}", began.elapsed());
    assert!(total.acked > 0 && total.refused > 0 && total.failed > 0 && total.retained > 0);
    assert!(total.notes > total.acked / 20 && total.reserved > 0, "{} notes", total.notes);
    assert!(total.repeats > total.acked / 20, "{} repeats of {} events", total.repeats, total.acked);
}

#[test]
fn the_same_seed_is_the_same_history() {
    for seed in 1..=12 {
        let done = history(seed, Plan::default()).unwrap();
        assert_eq!(done, history(seed, Plan::default()).unwrap(), "{seed}");
        assert_ne!(done.trace, history(seed + 100, Plan::default()).unwrap().trace);
    }
}

/// A disk that breaks its promise must be found out, or the test is blind.
#[test]
fn a_lying_disk_is_found_out() {
    let lies = [
        Lies { sync: true, ..Lies::default() },
        Lies { sync_dir: true, ..Lies::default() },
        Lies { garble: true, ..Lies::default() },
    ];
    for lies in lies {
        let found = (1..=40).filter(|seed| history(*seed, Plan { lies }).is_err()).count();
        assert!(found >= 20, "{lies:?}: found by {found} of 40 histories");
    }
    // And one that keeps them passes where the liars did not.
    assert!((1..=40).all(|seed| history(seed, Plan::default()).is_ok()));
}
