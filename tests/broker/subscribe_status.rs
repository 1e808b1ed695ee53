//! What status, records and counters say of subscribers: who keeps up, who does not, who is gone.

use crate::subscribe::{limited, subscribe};
use crate::support::{Broker, Guest, eventually, frame, records};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use std::io::Write;

/// The VM `web` as status shows it.
fn web(broker: &Broker) -> Value {
    let status = broker.status();
    let vms = status["vms"].as_array().unwrap();
    vms.iter().find(|vm| vm["name"] == "web").cloned().unwrap_or_default()
}

fn flood(broker: &Broker, events: usize) {
    let mut guest = broker.guest("flood");
    let pad = "x".repeat(1000);
    for _ in 0..events / 100 {
        let some: Vec<u8> = (0..100)
            .flat_map(|_| frame(format!(r#"{{"type":"publish","topic":"t.x","payload":"{pad}"}}"#)))
            .collect();
        guest.stream.get_mut().write_all(&some).unwrap();
        assert!((0..100).all(|_| guest.receive().unwrap()["status"] == "ok"));
    }
}

/// So that the broker has to keep what is not read.
fn small_window(guest: &Guest) {
    setsockopt(guest.stream.get_ref(), sockopt::RcvBuf, &(64 * 1024)).unwrap();
}

#[test]
fn who_falls_behind_is_seen_and_so_is_that_it_caught_up() {
    let dir = tempfile::tempdir().unwrap();
    let broker = limited(dir.path(), "write_time = \"1h\"");
    let mut guest = broker.guest("web");
    small_window(&guest);
    subscribe(&mut guest, r#""topics":["t.*","vm:web"],"sub":"s""#);
    let vm = eventually("the topics", || Some(web(&broker)).filter(|vm| vm["bus_subscribed"] == true));
    assert_eq!((&vm["topics"], &vm["lag"], &vm["queued"]), (&json!(["t.*", "vm:web"]), &json!(0), &json!(0)));
    const N: usize = 20_000;
    flood(&broker, N);
    let vm = eventually("the lag", || Some(web(&broker)).filter(|vm| vm["lag"].as_u64() > Some(1000)));
    assert!(vm["queued"].as_u64().unwrap() <= 1024, "{vm}");
    let pressed = |action: &str| {
        let all = records(&broker.root, "bus-events");
        all.into_iter().find(|r| r["reason"] == "back-pressure" && r["action"] == action && r["vm"] == "web")
    };
    eventually("the record", || pressed("entered"));
    assert!(pressed("left").is_none());
    for seq in 1..=N {
        assert_eq!(guest.receive().unwrap()["seq"], seq);
    }
    eventually("the record of the end", || pressed("left"));
    let vm = eventually("no lag", || Some(web(&broker)).filter(|vm| vm["lag"] == 0));
    assert_eq!(vm["queued"], 0);
    let counters = eventually("the counters", || {
        let counters = broker.status()["broker"]["counters"].take();
        (counters["back_pressure_left"] == counters["back_pressure_entered"]).then_some(counters)
    });
    let count = |name: &str| counters[name].as_u64().unwrap();
    assert_eq!(count("delivered_live") + count("delivered_from_journal"), N as u64, "{counters}");
    assert!(count("delivered_from_journal") > 0 && count("delivered_live") > 0, "{counters}");
    // Live again: what comes now does not come from the journal.
    let from_journal = count("delivered_from_journal");
    flood(&broker, 100);
    (1..=100).for_each(|n| assert_eq!(guest.receive().unwrap()["seq"], N + n));
    assert_eq!(broker.status()["broker"]["counters"]["delivered_from_journal"], from_journal);
    assert_eq!(guest.ask(r#"{"type":"unsubscribe","sub":"s"}"#)["status"], "ok");
    eventually("no topics", || {
        Some(web(&broker)).filter(|vm| vm["bus_subscribed"] == false && vm["topics"] == json!([]))
    });
}

/// The peer takes nothing, so it cannot be told; nobody else waits for that.
#[test]
fn who_timed_out_is_gone_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let broker = limited(dir.path(), "idle_time = \"2s\"\nwrite_time = \"15s\"");
    let mut guest = broker.guest("web");
    small_window(&guest);
    subscribe(&mut guest, r#""topic":"t.*""#);
    flood(&broker, 20_000);
    let vm = eventually("the end", || Some(web(&broker)).filter(|vm| vm["sessions"] == 0));
    assert_eq!(
        (&vm["bus_subscribed"], &vm["topics"], &vm["queued"], &vm["lag"]),
        (&json!(false), &json!([]), &json!(0), &json!(0))
    );
    // It is still connected: the end is not recorded before it was told, or could not be.
    let ended = |r: &Value| r["action"] == "disconnect" && r["vm"] == "web";
    assert!(!records(&broker.root, "bus-events").iter().any(ended));
    drop(guest);
    let record = eventually("the record", || records(&broker.root, "bus-events").into_iter().find(ended));
    assert_eq!(record["reason"], "heartbeat-timeout", "{record}");
}

#[test]
fn refusals_come_in_the_order_of_their_frames_and_say_which() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("web");
    let wishes = [
        (r#"{"type":"subscribe","topic":"a..b"}"#, "a..b", Some("bad-pattern")),
        (r#"{"type":"subscribe","topic":"good","from":{"id":"nowhere"}}"#, "good", Some("unknown-id")),
        (r#"{"type":"subscribe","topic":"good"}"#, "good", None),
        (r#"{"type":"subscribe","topic":"vm:other","sub":"theirs"}"#, "theirs", Some("forbidden-topic")),
        (r#"{"type":"unsubscribe","sub":"gone"}"#, "gone", Some("unknown-sub")),
        (r#"{"type":"subscribe","topic":"x","from":7}"#, "x", Some("bad-from")),
        (r#"{"type":"subscribe","topic":"*.*.*.*.*"}"#, "*.*.*.*.*", Some("bad-pattern")),
    ];
    let all: Vec<u8> = wishes.iter().flat_map(|(body, ..)| frame(body)).collect();
    guest.stream.get_mut().write_all(&all).unwrap();
    for (body, sub, code) in wishes {
        let ack = guest.receive().unwrap();
        assert_eq!((ack["sub"].as_str(), ack["code"].as_str()), (Some(sub), code), "{body}: {ack}");
    }
}
