//! Calls that fail: EIO from the n-th fdatasync or fsync, ENOSPC from writes.

use crate::faults::{skip, strace};
use crate::load::{Ledger, Load, PLAN, Plan, check, logs_reach, publish_one};
use crate::support::{Broker, eventually};

const SMALL: [&str; 2] = ["--segment-bytes", "1048576"];

/// One broker whose `call` fails once, at the `n`-th time in each thread, then one without that.
fn fails(call: &str, n: usize, plan: Plan) -> Option<Ledger> {
    let inject = format!("inject={call}:error=EIO:when={n}");
    let command = strace(&["-e", &format!("trace={call}"), "-e", &inject])?;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    // The first start makes files and syncs them; it is not what is looked at here.
    assert_eq!(Broker::start_args(&root, &SMALL).stop().0, Some(0));
    let broker = Broker::start_with(&root, command, &SMALL);
    let load = Load::start(&broker, &format!("{call}{n}"), plan);
    let (code, said) = broker.wait();
    assert_eq!(code, Some(74), "{inject}: {said}");
    assert!(said.contains("could not be made durable"), "{inject}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    let ledger = load.join();
    for heard in ledger.heard.iter().filter(|heard| !heard.is_empty()) {
        // A thread beside the commits may have failed first: no room for the next segment.
        let heard: Vec<_> = heard.iter().filter(|what| *what != "disk-full").collect();
        assert!(
            heard == ["outcome-unknown", "journal-failed"] || heard == ["journal-failed"],
            "{inject}: {heard:?}"
        );
    }
    let told = |what: &str| ledger.heard.iter().any(|heard| heard.iter().any(|h| h == what));
    assert!(told("outcome-unknown") && told("journal-failed"), "{inject}: {:?}", ledger.heard);

    let broker = Broker::start_args(&root, &SMALL);
    let head = check(&root, &ledger);
    assert_eq!(broker.status()["broker"]["journal"]["damage"], serde_json::json!([]));
    assert_eq!(publish_one(&broker, "after"), head + 1);
    println!("{inject}: {} acked, {} unknown", ledger.acked.len(), ledger.unknown.len());
    Some(ledger)
}

#[test]
fn an_fdatasync_that_fails_ends_the_broker_and_loses_nothing() {
    for n in [1, 2, 3, 7, 40, 200] {
        let plan = Plan { window: if n > 100 { 4 } else { PLAN.window }, ..PLAN };
        let Some(ledger) = fails("fdatasync", n, plan) else {
            return skip(
                "an_fdatasync_that_fails_ends_the_broker_and_loses_nothing",
                "there is no strace that may trace",
            );
        };
        assert!(n < 7 || !ledger.acked.is_empty());
    }
}

#[test]
fn a_directory_fsync_that_fails_ends_the_broker_and_loses_nothing() {
    // The start makes a few; the commits' thread one a segment.
    for n in [6, 9] {
        let plan = Plan { pad: 2000, ..PLAN };
        let Some(ledger) = fails("fsync", n, plan) else {
            return skip(
                "a_directory_fsync_that_fails_ends_the_broker_and_loses_nothing",
                "there is no strace that may trace",
            );
        };
        assert!(!ledger.acked.is_empty());
    }
}

#[test]
fn writes_that_find_no_room_are_refused_and_lose_nothing() {
    let options = ["-e", "trace=pwrite64", "-e", "inject=pwrite64:error=ENOSPC:when=20+"];
    let Some(command) = strace(&options) else {
        return skip(
            "writes_that_find_no_room_are_refused_and_lose_nothing",
            "there is no strace that may trace",
        );
    };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let mut broker = Broker::start_with(&root, command, &SMALL);
    let load = Load::start(&broker, "enospc", PLAN);
    eventually("refusals", || (load.refused.load(std::sync::atomic::Ordering::SeqCst) > 500).then_some(()));
    assert!(broker.child.try_wait().unwrap().is_none(), "the broker lives");
    let ledger = load.stop();
    assert!(ledger.heard.iter().all(|heard| *heard == ["disk-full"]), "{:?}", ledger.heard);
    assert!(ledger.unknown.is_empty() && !ledger.acked.is_empty() && !ledger.refused.is_empty());
    // The session is alive, and what needs no disk works.
    assert_eq!(broker.guest("vm0").ask("{\"type\":\"heartbeat\"}")["status"], "ok");
    broker.kill();

    let broker = Broker::start_args(&root, &SMALL);
    let head = check(&root, &ledger);
    assert_eq!(publish_one(&broker, "after"), head + 1);
}

#[test]
fn no_room_for_the_next_segment_is_said_in_the_status() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    assert_eq!(Broker::start_args(&root, &SMALL).stop().0, Some(0));
    let paths = ["spare.new", "spare.0", "spare.1"].map(|name| format!("{}/journal/{name}", root.display()));
    let mut options = vec!["-e", "trace=pwrite64", "-e", "inject=pwrite64:error=ENOSPC:when=4+"];
    paths.iter().for_each(|path| options.extend(["-P", path]));
    let Some(command) = strace(&options) else {
        return skip(
            "no_room_for_the_next_segment_is_said_in_the_status",
            "there is no strace that may trace",
        );
    };
    let broker = Broker::start_with(&root, command, &SMALL);
    let load = Load::start(&broker, "spare", Plan { pad: 1000, ..PLAN });
    eventually("disk-full", || (broker.status()["broker"]["state"] == "disk-full").then_some(()));
    eventually("refusals", || (load.refused.load(std::sync::atomic::Ordering::SeqCst) > 100).then_some(()));
    assert_eq!(broker.run(&["status", "--json"]).status.code(), Some(1));
    let ledger = load.stop();
    logs_reach(&broker, ledger.head());
    check(&root, &ledger);
    assert_eq!(broker.stop().0, Some(0));
    let broker = Broker::start_args(&root, &SMALL);
    let head = check(&root, &ledger);
    assert_eq!(publish_one(&broker, "after"), head + 1);
}

/// The kernel reports a failed write-back once; a later sync of the same pages says that all is well.
#[test]
fn a_log_whose_sync_failed_is_not_vouched_for() {
    const NAME: &str = "a_log_whose_sync_failed_is_not_vouched_for";
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start_args(&root, &SMALL);
    let load = Load::start(&broker, "log", PLAN);
    load.reach(500);
    broker.kill();
    let ledger = load.join();
    let checkpoint = || std::fs::read_to_string(root.join("logs/checkpoint")).unwrap();
    let before = checkpoint();
    let log = format!("{}/logs/bus/bus.log", root.display());
    let options = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=1", "-P", &log];
    let Some(command) = strace(&options) else {
        return skip(NAME, "there is no strace that may trace");
    };
    // The start writes the log on and syncs it, which fails.
    let broker = Broker::start_with(&root, command, &SMALL);
    let head = check(&root, &ledger);
    publish_one(&broker, "after");
    assert_eq!(broker.stop().0, Some(0));
    assert_eq!(checkpoint(), before);
    let broker = Broker::start_args(&root, &SMALL);
    assert_eq!(check(&root, &ledger), head + 1);
    assert_ne!(checkpoint(), before);
    assert_eq!(broker.stop().0, Some(0));
}
