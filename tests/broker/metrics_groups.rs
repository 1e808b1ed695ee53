//! What metrics say of consumer groups, and which of them have a name.

use crate::metrics::{check_with_promtool, get, metrics, start};
use crate::subscribe::publish;
use crate::support::{Broker, Guest, eventually};
use serde_json::{Value, json};

fn say(member: &mut Guest, kind: &str, seq: u64, more: &str) {
    let answer = member.ask(format!(r#"{{"type":"{kind}","group":"g","seq":{seq},"confirm":true{more}}}"#));
    assert_eq!(answer["status"], "ok", "{answer}");
}

#[test]
fn what_groups_do_is_counted_by_topic_and_group() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, at) = start(dir.path());
    let mut guest = broker.guest("web");
    // Before there is a group: it reads them in the journal.
    for topic in ["a", "a", "b"] {
        publish(&mut guest, topic);
    }
    let mut member = broker.guest("worker");
    let joined =
        member.ask(r#"{"type":"subscribe","topic":">","group":"g","from":"earliest","max_attempts":2}"#);
    assert_eq!(joined["status"], "ok");
    for seq in 1..=3 {
        assert_eq!(member.receive().unwrap()["seq"], seq);
    }
    let now = metrics(&at);
    let of = |name: &str, topic: &str| format!(r#"{name}{{topic="{topic}",group="g"}}"#);
    assert_eq!(
        (now[&of("events_delivered_total", "a")], now[&of("events_delivered_total", "b")]),
        (2.0, 1.0)
    );
    assert!(!now.contains_key(&of("events_acked_total", "a")));
    assert_eq!(now[r#"events_inflight{group="g"}"#], 3.0);
    assert_eq!(now[r#"castra_group_lag_events{group="g"}"#], 3.0);
    assert_eq!((now[r#"castra_group_members{group="g"}"#], now["castra_groups"]), (1.0, 1.0));
    assert!(now[r#"subscribe_poll_duration_seconds_count{group="g"}"#] >= 1.0);
    say(&mut member, "ack", 1, "");
    say(&mut member, "ack", 3, "");
    // What is refused counts as nothing.
    let twice = member.ask(r#"{"type":"ack","group":"g","seqs":[1,3],"confirm":true}"#);
    assert_eq!(
        (&twice["code"], &member.receive().unwrap()["code"]),
        (&json!("already-done"), &json!("already-done"))
    );
    say(&mut member, "nack", 2, r#","delay_ms":60000"#);
    assert_eq!(broker.run(&["bus", "group", "seek", "g", "seq:2"]).status.code(), Some(0));
    for seq in 2..=3 {
        assert_eq!(member.receive().unwrap()["seq"], seq);
    }
    say(&mut member, "term", 2, "");
    say(&mut member, "ack", 3, "");
    let now = eventually("the dead letter", || {
        let now = metrics(&at);
        (now[r#"castra_group_dead_letters_total{group="g"}"#] == 1.0).then_some(now)
    });
    assert_eq!(
        (now[&of("events_delivered_total", "a")], now[&of("events_delivered_total", "b")]),
        (3.0, 2.0)
    );
    assert_eq!((now[&of("events_acked_total", "a")], now[&of("events_acked_total", "b")]), (1.0, 2.0));
    assert_eq!((now[&of("events_nacked_total", "a")], now.get(&of("events_nacked_total", "b"))), (2.0, None));
    assert_eq!(now[r#"delivery_handler_duration_seconds_count{group="g"}"#], 5.0);
    assert_eq!(now[r#"events_inflight{group="g"}"#], 0.0);
    check_with_promtool("what_groups_do_is_counted_by_topic_and_group", &get(&at, "/metrics").body);
}

#[test]
fn groups_have_names_up_to_fifty() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, at) = start(dir.path());
    let mut member = broker.guest("worker");
    for n in 0..60 {
        let wish = format!(r#"{{"type":"subscribe","topic":"t","group":"g{n:02}"}}"#);
        assert_eq!(member.ask(wish)["status"], "ok");
    }
    publish(&mut broker.guest("web"), "t");
    for _ in 0..60 {
        assert_eq!(member.receive().unwrap()["seq"], 1);
    }
    let now = metrics(&at);
    let of = |name: &str| {
        now.iter().filter(|(label, _)| label.starts_with(name)).map(|(_, n)| *n).collect::<Vec<f64>>()
    };
    let delivered = of("events_delivered_total");
    assert_eq!((delivered.len(), delivered.iter().sum::<f64>()), (51, 60.0));
    assert_eq!(now[r#"events_delivered_total{topic="t",group="$other"}"#], 10.0);
    assert_eq!(now[r#"events_inflight{group="$other"}"#], 10.0);
    assert_eq!((of("castra_group_lag_events").len(), now["castra_groups"]), (51, 60.0));
}

#[test]
fn the_name_of_a_group_that_is_removed_is_free_and_no_count_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, at) = start(dir.path());
    let mut member = broker.guest("worker");
    for n in 0..50 {
        let wish = format!(r#"{{"type":"subscribe","topic":"t","group":"old{n:02}"}}"#);
        assert_eq!(member.ask(wish)["status"], "ok");
    }
    publish(&mut broker.guest("web"), "t");
    let groups: Vec<Value> = (0..50).map(|_| member.receive().unwrap()["group"].clone()).collect();
    for group in groups {
        let ack = member.ask(json!({"type": "ack", "group": group, "seq": 1, "confirm": true}).to_string());
        assert_eq!(ack["status"], "ok", "{ack}");
    }
    let sum = |name: &str| {
        metrics(&at).iter().filter(|(label, _)| label.starts_with(name)).map(|(_, n)| *n).sum::<f64>()
    };
    let names = [
        "events_acked_total",
        "delivery_handler_duration_seconds_count",
        "delivery_handler_duration_seconds_sum",
    ];
    let before = names.map(sum);
    assert_eq!(before[..2], [50.0, 50.0]);
    let mut other = broker.guest("other");
    for n in 0..50 {
        let gone = other.ask(format!(r#"{{"type":"group_remove","group":"old{n:02}"}}"#));
        assert_eq!(gone["status"], "ok", "{gone}");
    }
    let after = names.map(sum);
    assert_eq!(before[..2], after[..2]);
    assert!((before[2] - after[2]).abs() < 1e-9, "{before:?} {after:?}");
    assert_eq!(metrics(&at)[r#"events_acked_total{topic="t",group="$other"}"#], 50.0);
    let made = other.ask(r#"{"type":"group_create","topic":"t","group":"new"}"#);
    assert_eq!(made["status"], "ok", "{made}");
    assert_eq!(metrics(&at)[r#"castra_group_dead_letters_total{group="new"}"#], 0.0);
    check_with_promtool("the_name_of_a_group_that_is_removed_is_free", &get(&at, "/metrics").body);
}

#[test]
fn groups_of_the_host_have_names_before_those_of_guests() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, at) = start(dir.path());
    let mut guest = broker.guest("worker");
    for n in 0..60 {
        // They come last by their names, and after a restart as well.
        let wish = format!(r#"{{"type":"group_create","topic":"t","group":"a{n:02}"}}"#);
        assert_eq!(guest.ask(wish)["status"], "ok");
    }
    let made = broker.run(&["bus", "group", "create", "ops", "--topic", "t"]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let has = |at: &str, group: &str| {
        metrics(at).contains_key(&format!("castra_group_lag_events{{group=\"{group}\"}}"))
    };
    assert_eq!(
        ["ops", "a00", "a48", "a49", "a50"].map(|group| has(&at, group)),
        [true, true, true, false, false]
    );
    assert_eq!(broker.stop().0, Some(0));
    let (_broker, at): (Broker, String) = start(dir.path());
    assert_eq!(["ops", "$other"].map(|group| has(&at, group)), [true, true]);
}
