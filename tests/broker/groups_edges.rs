//! Consumer groups at their edges: what must not be lost, taken twice, or grow.

use crate::groups::{ack, code, delivery, join, say};
use crate::subscribe::{is_quiet, publish};
use crate::support::{Broker, Guest, LocalGuest, eventually, rss_kib};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn letters(broker: &Broker, group: &str) -> Vec<Value> {
    let topic = format!("$dlq.{group}");
    broker.log("host").into_iter().filter(|line| line["topic"] == topic).collect()
}

fn show(guest: &mut Guest, group: &str) -> Value {
    guest.ask(format!(r#"{{"type":"group","group":"{group}"}}"#))
}

#[test]
fn the_letter_of_the_largest_event_is_there_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("a"));
    join(&mut member, r#""topic":"t","group":"g""#);
    let mut size = 61_400;
    // The largest that there is.
    let seq = loop {
        let pad = "x".repeat(size);
        let ack = publisher.ask(format!(r#"{{"type":"publish","topic":"t","payload":"{pad}"}}"#));
        match ack["seq"].as_u64() {
            Some(seq) => break seq,
            None => assert_eq!(code(&ack), "event-too-large"),
        }
        size -= 1;
    };
    assert_eq!(delivery(&mut member, "g"), (seq, 1));
    let reason = "\\\"".repeat(120);
    member.send(format!(r#"{{"type":"term","group":"g","seq":{seq},"reason":"{reason}"}}"#));
    eventually("the letter", || letters(&broker, "g").pop());
    let behind = publish(&mut publisher, "u");
    broker.kill();
    let broker = Broker::start(dir.path());
    let (mut host, _) =
        LocalGuest::greet(&broker.root.join("castra.sock"), "hello vm:host capabilities=bus-v1,host-bus\n");
    let joined = host.ask(r#"{"type":"subscribe","topics":["$dlq.g","u"],"sub":"s","from":"earliest"}"#);
    assert_eq!(joined["status"], "ok", "{joined}");
    let letter = host.receive();
    assert_eq!(letter["payload"]["event"]["payload"].as_str().unwrap().len(), size);
    assert_eq!(host.receive()["seq"], behind);
    assert_eq!(broker.status()["broker"]["journal"]["damage"], json!([]));
}

#[test]
fn the_delay_of_a_nack_goes_on_in_the_next_broker() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path());
    let mut member = broker.guest("a");
    join(&mut member, r#""topic":"t","group":"g""#);
    for seq in 1..=4 {
        assert_eq!(publish(&mut broker.guest("p"), "t"), seq);
        assert_eq!(delivery(&mut member, "g"), (seq, 1));
    }
    let nacked = Instant::now();
    for (seq, delay) in [(1, r#","delay_ms":3600000"#), (2, r#","delay_ms":1500"#), (3, "")] {
        assert_eq!(say(&mut member, "nack", &format!(r#""seq":{seq}{delay}"#))["events"], 1);
    }
    // A member that went before the broker would have spent an attempt.
    let mut members = Vec::new();
    for is_killed in [true, false] {
        match is_killed {
            true => broker.kill(),
            false => _ = broker.stop(),
        }
        broker = Broker::start(dir.path());
        let mut member = broker.guest("a");
        join(&mut member, r#""topic":"t","group":"g""#);
        let mut came: Vec<(u64, u64)> = (0..3).map(|_| delivery(&mut member, "g")).collect();
        came.sort_unstable();
        // The third waits as long as it does without a delay_ms.
        assert_eq!(came, [(2, 2), (3, 2), (4, 1)]);
        assert!(nacked.elapsed() >= Duration::from_millis(1500));
        let now = show(&mut member, "g");
        assert_eq!((&now["delayed"], &now["held"]), (&json!(1), &json!(3)), "{now}");
        members.push(member);
    }
}

#[test]
fn a_group_that_cannot_begin_takes_no_other_of_its_name_along() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("a");
    publish(&mut guest, "t");
    guest.send(r#"{"type":"group_create","group":"g","topic":"t","from":{"id":"nope"}}"#);
    guest.send(r#"{"type":"group_remove","group":"g"}"#);
    guest.send(r#"{"type":"group_create","group":"g","topic":"t","from":"earliest"}"#);
    let mut said: Vec<Value> = (0..3).map(|_| guest.receive().unwrap()).collect();
    said.sort_by_key(|ack| ack["created"] == true);
    let last = said.pop().unwrap();
    assert_eq!(
        (&last["ack"], &last["status"], &last["created"]),
        (&json!("group_create"), &json!("ok"), &json!(true))
    );
    // Whatever becomes of the search for the first one.
    for _ in 0..2 {
        let mut other = broker.guest("b");
        let joined = join(&mut other, r#""topic":"t","group":"g""#);
        assert_eq!((&joined["created"], &joined["cursor"]), (&json!(false), &json!(0)));
        assert_eq!(delivery(&mut other, "g").0, 1);
    }
    broker.kill();
    let broker = Broker::start(dir.path());
    assert_eq!(show(&mut broker.guest("a"), "g")["cursor"], 0);
}

#[test]
fn an_id_means_the_event_that_the_member_holds() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut member = broker.guest("m");
    join(&mut member, r#""topic":"t","group":"g""#);
    for vm in ["a", "b"] {
        broker.guest(vm).ask(r#"{"type":"publish","topic":"t","id":"x"}"#);
    }
    assert_eq!([delivery(&mut member, "g").0, delivery(&mut member, "g").0], [1, 2]);
    assert_eq!(say(&mut member, "ack", r#""id":"x""#)["events"], 1);
    assert_eq!(show(&mut member, "g")["cursor"], 1);
    assert_eq!(say(&mut member, "ack", r#""id":"x""#)["events"], 1);
    assert_eq!(show(&mut member, "g")["cursor"], 2);
    assert_eq!(code(&say(&mut member, "ack", r#""id":"x""#)), "not-delivered");
}

#[test]
fn an_orderly_end_of_the_broker_is_no_attempt_and_loses_no_ack() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("a"));
    join(&mut member, r#""topic":"t","group":"g","max_attempts":1"#);
    for _ in 0..50 {
        publish(&mut publisher, "t");
    }
    for _ in 0..50 {
        delivery(&mut member, "g");
    }
    for seq in 1..=40 {
        member.send(format!(r#"{{"type":"ack","group":"g","seq":{seq}}}"#));
    }
    // It was read by the broker when this is answered.
    assert_eq!(member.ask(r#"{"type":"heartbeat"}"#)["ack"], "heartbeat");
    assert_eq!(broker.stop().0, Some(0));
    let broker = Broker::start(dir.path());
    let mut member = broker.guest("a");
    let joined = join(&mut member, r#""topic":"t","group":"g""#);
    assert_eq!(joined["cursor"], 40);
    for seq in 41..=50 {
        assert_eq!(delivery(&mut member, "g"), (seq, 1));
    }
    is_quiet(&mut member);
    assert_eq!(letters(&broker, "g"), [Value::Null; 0]);
}

#[test]
fn what_is_given_up_again_after_a_seek_has_a_letter_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("a"));
    join(&mut member, r#""topic":"t","group":"g""#);
    publish(&mut publisher, "t");
    for n in 1..=2 {
        assert_eq!(delivery(&mut member, "g"), (1, 1));
        member.send(r#"{"type":"term","group":"g","seq":1}"#);
        let ids = eventually("a letter", || {
            let ids: Vec<Value> = letters(&broker, "g").into_iter().map(|line| line["id"].clone()).collect();
            (ids.len() == n).then_some(ids)
        });
        assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "{ids:?}");
        if n == 1 {
            let sought = publisher.ask(r#"{"type":"group_seek","group":"g","from":"earliest"}"#);
            assert_eq!((&sought["status"], &sought["cursor"]), (&json!("ok"), &json!(0)));
        }
    }
}

#[test]
fn a_dead_letter_that_nobody_can_handle_has_no_letter() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("a"));
    join(&mut member, r#""topic":"t","group":"g""#);
    publish(&mut publisher, "t");
    let (mut host, _) =
        LocalGuest::greet(&broker.root.join("castra.sock"), "hello vm:host capabilities=bus-v1,host-bus\n");
    assert_eq!(host.ask(r#"{"type":"subscribe","topic":"$dlq.>","group":"h"}"#)["status"], "ok");
    assert_eq!(delivery(&mut member, "g"), (1, 1));
    member.send(r#"{"type":"term","group":"g","seq":1}"#);
    let letter = host.receive();
    assert_eq!(letter["topic"], "$dlq.g");
    let seq = letter["seq"].as_u64().unwrap();
    host.ask(&format!(r#"{{"type":"term","group":"h","seq":{seq},"confirm":true}}"#));
    let stands = host.ask(r#"{"type":"group","group":"h"}"#);
    assert!(stands["cursor"].as_u64().unwrap() >= seq, "{stands}");
    assert_eq!(letters(&broker, "h"), [Value::Null; 0]);
}

#[test]
fn sessions_of_one_vm_begin_so_many_groups() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut guest, mut other) = (broker.guest("a"), broker.guest("b"));
    for n in 0..256 {
        guest.send(format!(r#"{{"type":"group_create","group":"g{n}","topic":"t"}}"#));
    }
    for _ in 0..256 {
        assert_eq!(guest.receive().unwrap()["created"], true);
    }
    let more = r#"{"type":"group_create","group":"more","topic":"t"}"#;
    assert_eq!(code(&guest.ask(more)), "too-many-groups");
    // One that is there is no new one; others have their own; one that is gone leaves its place.
    assert_eq!(guest.ask(r#"{"type":"group_create","group":"g0","topic":"t"}"#)["created"], false);
    assert_eq!(other.ask(r#"{"type":"group_create","group":"other","topic":"t"}"#)["created"], true);
    assert_eq!(guest.ask(r#"{"type":"group_remove","group":"g7"}"#)["status"], "ok");
    assert_eq!(guest.ask(more)["created"], true);
    // And after a restart.
    broker.kill();
    let broker = Broker::start(dir.path());
    let refused = broker.guest("a").ask(r#"{"type":"group_create","group":"again","topic":"t"}"#);
    assert_eq!(code(&refused), "too-many-groups");
}

#[test]
fn a_member_that_does_not_read_costs_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("a"));
    let options = r#""topic":"t","group":"g","ack_timeout_ms":1,"max_attempts":100,"batch":1000"#;
    join(&mut member, &format!(r#"{options},"max_in_flight":10000"#));
    let pad = "x".repeat(50_000);
    let before = rss_kib(broker.pid());
    for _ in 0..100 {
        publisher.ask(format!(r#"{{"type":"publish","topic":"t","payload":"{pad}"}}"#));
    }
    // A megabyte again and again, a thousand times a second.
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        assert_eq!(publisher.ask(r#"{"type":"heartbeat"}"#)["ack"], "heartbeat");
    }
    let more = rss_kib(broker.pid()).saturating_sub(before);
    assert!(more < 60 * 1024, "{more} KiB");
    // It reads, and has what there is.
    let (seq, _) = delivery(&mut member, "g");
    ack(&mut member, seq);
}
