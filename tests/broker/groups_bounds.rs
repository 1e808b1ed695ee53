//! What all groups have together is bounded: how many there are, and the memory that they hold.

use crate::groups::{code, join};
use crate::support::{Broker, Guest, LocalGuest, eventually, frame, rss_kib, skip, slow_disk};
use castra::core::limits::{CATCH_UP_BYTES, GROUP_BYTES_HELD, GROUPS, GROUPS_BYTES_HELD};
use serde_json::{Value, json};
use std::io::Write;
use std::time::Duration;

const HOST: &str = "hello vm:host capabilities=bus-v1,host-bus\n";

#[test]
fn there_are_so_many_groups_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut host, _) = LocalGuest::greet(&broker.root.join("castra.sock"), HOST);
    let create = |n: usize| format!(r#"{{"type":"group_create","group":"g{n}","topic":"t{n}"}}"#);
    for from in (0..GROUPS).step_by(500) {
        let frames: Vec<u8> = (from..from + 500).flat_map(|n| frame(create(n))).collect();
        host.stream.get_mut().write_all(&frames).unwrap();
        for _ in 0..500 {
            let answer = host.receive();
            assert_eq!((&answer["status"], &answer["created"]), (&json!("ok"), &json!(true)), "{answer}");
        }
    }
    // One more: neither for the host, nor for a VM that has begun none, nor by joining it.
    assert_eq!(code(&host.ask(&create(GROUPS))), "too-many-groups");
    let mut guest = broker.guest("a");
    let refused = guest.ask(create(GROUPS));
    assert_eq!(code(&refused), "too-many-groups");
    assert!(refused["reason"].as_str().unwrap().contains("10000"), "{refused}");
    let wish = r#"{"type":"subscribe","group":"more","topic":"t"}"#;
    assert_eq!(code(&guest.ask(wish)), "too-many-groups");
    assert_eq!(code(&guest.ask(r#"{"type":"group","group":"more"}"#)), "unknown-group");
    // Those that are there go on, one that is removed leaves its place, and a start has all of them.
    assert_eq!(guest.ask(r#"{"type":"publish","topic":"t7"}"#)["status"], "ok");
    join(&mut guest, r#""topic":"t7","group":"g7""#);
    assert_eq!(guest.receive().unwrap()["group"], "g7");
    assert_eq!(host.ask(r#"{"type":"group_remove","group":"g8"}"#)["status"], "ok");
    assert_eq!(guest.ask(wish)["status"], "ok");
    broker.kill();
    let broker = Broker::start(dir.path());
    let (mut host, _) = LocalGuest::greet(&broker.root.join("castra.sock"), HOST);
    assert_eq!(code(&host.ask(&create(GROUPS))), "too-many-groups");
    assert_eq!(host.ask(r#"{"type":"group","group":"g9"}"#)["spec"]["topics"], json!(["t9"]));
}

/// Deliveries, each of which is acknowledged, until this many came.
fn do_all(member: &mut Guest, group: &str, events: usize) {
    for n in 1..=events {
        let event = member.receive().unwrap();
        assert_eq!((&event["group"], &event["attempt"]), (&json!(group), &json!(1)), "{n}");
        member.send(format!(r#"{{"type":"ack","group":"{group}","seq":{}}}"#, event["seq"]));
    }
}

#[test]
fn what_all_groups_hold_together_is_bounded_and_each_one_gets_on() {
    const MANY: usize = 36;
    const EVENTS: usize = 400;
    // With what members' queues have, and what is being read; without the bound it were more than twice as much.
    const MOST_KIB: u64 = (GROUPS_BYTES_HELD as u64 + (96 << 20)) / 1024;
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut publisher = broker.guest("p");
    let publish = json!({"type": "publish", "topic": "t", "payload": "x".repeat(55_000)}).to_string();
    for _ in 0..EVENTS / 10 {
        (0..10).for_each(|_| publisher.send(&publish));
        (0..10).for_each(|_| assert_eq!(publisher.receive().unwrap()["status"], "ok"));
    }
    let line = 55_000;
    assert!(EVENTS * line > GROUP_BYTES_HELD && MANY * GROUP_BYTES_HELD > 2 * GROUPS_BYTES_HELD);
    let before = rss_kib(broker.pid());
    // Each has a member that takes as much as it may, reads nothing, and never acknowledges.
    let wish = |n: usize| {
        format!(
            r#""topic":"t","group":"g{n:02}","from":"earliest","max_in_flight":10000,"batch":1000,"ack_timeout_ms":86400000"#
        )
    };
    let mut members: Vec<Guest> = (0..MANY).map(|n| broker.guest(&format!("vm{n}"))).collect();
    for (n, member) in members.iter_mut().enumerate() {
        join(member, &wish(n));
    }
    let held = |asks: &mut Guest| -> Vec<u64> {
        let each = |n: usize| -> Value { asks.ask(format!(r#"{{"type":"group","group":"g{n:02}"}}"#)) };
        let all: Vec<Value> = (0..MANY).map(each).collect();
        all.iter().map(|group| group["held"].as_u64().unwrap() + group["waiting"].as_u64().unwrap()).collect()
    };
    let bound = (GROUPS_BYTES_HELD + MANY * CATCH_UP_BYTES) as u64;
    let bytes = |all: &[u64]| all.iter().sum::<u64>() * line as u64;
    let look = |asks: &mut Guest| {
        let all = held(asks);
        assert!(bytes(&all) <= bound, "{} bytes are held, {bound} may be: {all:?}", bytes(&all));
        let grown = rss_kib(broker.pid()).saturating_sub(before);
        assert!(grown < MOST_KIB, "the process grew by {grown} KiB: {all:?}");
        all
    };
    eventually("groups that hold what they may", || {
        let all = look(&mut publisher);
        (bytes(&all) > GROUPS_BYTES_HELD as u64 / 10 * 9 && all.iter().all(|held| *held > 0)).then_some(())
    });
    // One that comes now gets all of it, bit by bit, while the others hold what they have: they would take more if they might.
    let mut late = broker.guest("late");
    join(&mut late, &wish(MANY));
    do_all(&mut late, &format!("g{MANY:02}"), EVENTS);
    let all = look(&mut publisher);
    println!("{MANY} groups hold {} MiB", bytes(&all) >> 20);
    assert!(bytes(&all) > GROUPS_BYTES_HELD as u64 / 10 * 8, "{all:?}");
}

#[test]
fn acks_that_are_sent_ahead_of_a_slow_disk_are_all_taken() {
    const EVENTS: usize = 8000;
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        return skip("acks_that_are_sent_ahead_of_a_slow_disk_are_all_taken", "needs strace");
    }
    let dir = tempfile::tempdir().unwrap();
    // The broker takes all of them in much less time than the disk takes for one.
    let broker = Broker::start_with(dir.path(), slow_disk("fdatasync", Duration::from_secs(1), "1+"), &[]);
    let mut guest = broker.guest("dev");
    let events = vec![r#"{"topic":"t"}"#; 1000].join(",");
    for _ in 0..8 {
        guest.send(format!(r#"{{"type":"publish","events":[{events}]}}"#));
    }
    (0..8).for_each(|_| assert_eq!(guest.receive().unwrap()["status"], "ok"));
    join(&mut guest, r#""topic":"t","group":"g","from":"earliest","batch":1000,"max_in_flight":8000"#);
    (0..EVENTS).for_each(|_| assert_eq!(guest.receive().unwrap()["group"], "g"));
    let ack = |seq: usize| frame(format!(r#"{{"type":"ack","group":"g","seq":{seq},"confirm":true}}"#));
    let acks: Vec<u8> = (1..=EVENTS).flat_map(ack).collect();
    guest.stream.get_mut().write_all(&acks).unwrap();
    for n in 1..=EVENTS {
        let answer = guest.receive().unwrap();
        assert_eq!((&answer["ack"], &answer["status"]), (&json!("ack"), &json!("ok")), "{n}: {answer}");
    }
    // What comes behind them is taken as before.
    assert_eq!(guest.ask(r#"{"type":"group","group":"g"}"#)["cursor"], EVENTS);
}

#[test]
fn a_seek_that_is_sent_behind_another_one_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    (0..3).for_each(|n| drop(guest.ask(format!(r#"{{"type":"publish","topic":"t","id":"e{n}"}}"#))));
    assert_eq!(guest.ask(r#"{"type":"group_create","group":"g","topic":"t"}"#)["status"], "ok");
    let seek = |id: &str| frame(format!(r#"{{"type":"group_seek","group":"g","from":{{"id":"{id}"}}}}"#));
    guest.stream.get_mut().write_all(&[seek("e2"), seek("e0"), seek("e1")].concat()).unwrap();
    let cursors = [(); 3].map(|()| {
        let answer = guest.receive().unwrap();
        assert_eq!(answer["status"], "ok", "{answer}");
        answer["cursor"].as_u64().unwrap()
    });
    assert_eq!(cursors, [3, 1, 2]);
}
