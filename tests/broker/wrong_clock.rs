//! A wall clock that is wrong: it makes no event older than it is, and none younger.

use crate::subscribe::{event, is_quiet, publish, subscribe};
use crate::support::{Broker, Guest, broker_log, castra, eventually, skip};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// A castra whose wall clock is so far off; its monotonic clocks are right.
fn off(by: &str) -> Command {
    let mut command = castra();
    command.env("LD_PRELOAD", LIBRARY).env("FAKETIME", by).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command
}

fn is_missing(test: &str) -> bool {
    let is_missing = !Path::new(LIBRARY).exists();
    if is_missing {
        skip(test, "libfaketime is not installed");
    }
    is_missing
}

const SMALL: [&str; 4] = ["--segment-bytes", "1MiB", "--retain-bytes", "6MiB"];

fn fill(broker: &Broker, events: usize) {
    let mut publisher = broker.guest("p");
    let body = format!(r#"{{"type":"publish","topic":"job.a","payload":"{}"}}"#, "x".repeat(30_000));
    (0..events).for_each(|_| assert_eq!(publisher.ask(&body)["status"], "ok"));
}

fn journal(broker: &Broker) -> Value {
    broker.status()["broker"]["journal"].clone()
}

fn member_begins_at(broker: &Broker) -> u64 {
    let mut member = broker.guest("m");
    assert_eq!(member.ask(r#"{"type":"subscribe","topic":"job.*","group":"todo"}"#)["status"], "ok");
    member.receive().unwrap()["seq"].as_u64().unwrap()
}

/// Publishes until something was removed as there was too much, which is when old events would have gone, too: they have
/// not, and what went is said.
fn only_size_counts(broker: &Broker, root: &Path) {
    let said = eventually("a segment that is removed", || {
        fill(broker, 20);
        let said = journal(broker);
        (said["removed"]["size"].as_u64()? > 0).then_some(said)
    });
    assert_eq!((&said["removed"]["age"], &said["removed"]["topics"]), (&json!(0), &json!(0)), "{said}");
    let first = said["first_seq"].as_u64().unwrap();
    assert!(said["bytes"].as_u64().unwrap() > 4 << 20 && first > 1, "{said}");
    let lines = eventually("what was removed, in the log", || {
        let lines = broker_log(root);
        lines.iter().any(|line| line.contains("journal: segments removed")).then_some(lines)
    });
    let line = lines.iter().find(|line| line.contains("journal: segments removed")).unwrap();
    for part in ["first=1 ", "through=", "reason=size", "group todo (at most "] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let gone = format!("at most {}", line.split("through=").nth(1).unwrap().split(' ').next().unwrap());
    assert!(line.contains(&gone), "the group had nothing: {line}");
    assert!(member_begins_at(broker) >= first);
}

fn group(broker: &Broker) {
    let wish = r#"{"type":"group_create","group":"todo","topic":"job.*","from":"earliest"}"#;
    assert_eq!(broker.guest("m").ask(wish)["status"], "ok");
}

#[test]
fn a_clock_that_leaps_ahead_removes_nothing() {
    if is_missing("a_clock_that_leaps_ahead_removes_nothing") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // A machine whose clock was never set, …
    let broker = Broker::start_with(dir.path(), off("@1970-01-01 00:01:00"), &SMALL);
    group(&broker);
    fill(&broker, 100);
    assert_eq!(broker.stop().0, Some(0));
    // … and one whose clock is far ahead; the views have everything, so nothing else holds retention back.
    let broker = Broker::start_with(dir.path(), off("+30d"), &SMALL);
    fill(&broker, 20);
    assert_eq!(journal(&broker)["grace"], Value::Null, "the machine knows how long no broker ran");
    only_size_counts(&broker, dir.path());
}

#[test]
fn a_backup_that_is_old_is_kept_for_a_while_and_that_is_said() {
    if is_missing("a_backup_that_is_old_is_kept_for_a_while_and_that_is_said") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (root, copy) = (dir.path().join("root"), dir.path().join("copy"));
    let broker = Broker::start_args(&root, &SMALL);
    group(&broker);
    fill(&broker, 120);
    assert_eq!(broker.stop().0, Some(0));
    let made = castra().args(["backup", "--state-root"]).args([&root, &copy]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let broker = Broker::start_with(&copy, off("+30d"), &SMALL);
    let line = eventually("that it is kept", || {
        broker_log(&copy).into_iter().find(|line| line.contains("journal: no broker ran for a while"))
    });
    assert!(
        line.contains("WARN") && line.contains("first=1 ") && line.contains("raise retain_age"),
        "{line}"
    );
    let grace = journal(&broker)["grace"].clone();
    assert_eq!(grace["through"], 120, "{grace}");
    assert!(grace["left_ms"].as_u64().unwrap() > 3 * 3_600_000, "{grace}");
    let shown = castra().args(["status", "--state-root"]).arg(&copy).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("events up to 120 do not age by that before"));
    only_size_counts(&broker, &copy);
}

fn publish_for(guest: &mut Guest, ttl_ms: u64) -> u64 {
    let ack = guest.ask(format!(r#"{{"type":"publish","topic":"t","ttl_ms":{ttl_ms}}}"#));
    ack["seq"].as_u64().unwrap_or_else(|| panic!("{ack}"))
}

fn pass(time: Duration) {
    let since = Instant::now();
    while since.elapsed() <= time {
        std::thread::yield_now();
    }
}

fn gets(broker: &Broker, wanted: &[u64]) {
    let mut reader = broker.guest("r");
    subscribe(&mut reader, r#""topic":"t","from":"earliest""#);
    let all: Vec<u64> = wanted.iter().map(|_| event(&mut reader, "t")).collect();
    assert_eq!(all, wanted);
    is_quiet(&mut reader);
}

#[test]
fn a_ttl_goes_by_the_time_that_passes() {
    if is_missing("a_ttl_goes_by_the_time_that_passes") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start_with(dir.path(), off("+1h"), &[]);
    let ahead = publish(&mut broker.guest("p"), "t");
    assert_eq!(broker.stop().0, Some(0));

    // The ts of all events is that of the first one.
    let broker = Broker::start(dir.path());
    let mut publisher = broker.guest("p");
    let (short, long) = (publish_for(&mut publisher, 1), publish_for(&mut publisher, 3_600_000));
    assert!(short < long);
    pass(Duration::from_millis(3));
    gets(&broker, &[ahead, long]);
    assert_eq!(broker.stop().0, Some(0));

    // No hour has passed, whatever the clock says; and what is over stays over.
    let broker = Broker::start_with(dir.path(), off("+30d"), &[]);
    gets(&broker, &[ahead, long]);
    let last = publish_for(&mut broker.guest("p"), 3_600_000);
    broker.kill();
    let broker = Broker::start_with(dir.path(), off("+90d"), &[]);
    gets(&broker, &[ahead, long, last]);
}

#[test]
fn a_broker_that_is_killed_forgets_little_and_makes_nothing_older() {
    if is_missing("a_broker_that_is_killed_forgets_little_and_makes_nothing_older") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let age = ["--segment-bytes", "1MiB", "--retain-age", "3s"];
    let broker = Broker::start_args(dir.path(), &age);
    fill(&broker, 80);
    assert_eq!(broker.stop().0, Some(0));
    let broker = Broker::start_with(dir.path(), off("+30d"), &["--segment-bytes", "1MiB"]);
    fill(&broker, 80);
    let since = Instant::now();
    broker.kill();

    // What the file has ages on, also while no broker runs; what came since begins anew.
    let broker = Broker::start_args(dir.path(), &age);
    let first = eventually("the first ones to be too old", || {
        fill(&broker, 1);
        journal(&broker)["first_seq"].as_u64().filter(|first| *first > 1)
    });
    assert!(first <= 81 || since.elapsed() >= Duration::from_secs(3), "{first}");
    let first = eventually("the others, too", || {
        fill(&broker, 35);
        let said = journal(&broker);
        assert_eq!(said["removed"]["size"], 0);
        said["first_seq"].as_u64().filter(|first| *first > 120)
    });
    assert!(since.elapsed() >= Duration::from_secs(3), "{first}");
}
