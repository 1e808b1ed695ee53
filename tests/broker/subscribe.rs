//! Subscriptions through real sockets: what is delivered, what is refused, where a subscription begins.

use crate::support::{Broker, Guest, LocalGuest, castra, eventually, frame};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

const HOST: &str = "hello vm:host capabilities=bus-v1,host-bus\n";

/// A broker with these lines below `[limits]`.
pub fn limited(dir: &Path, limits: &str) -> Broker {
    let config = dir.join("castra.toml");
    std::fs::write(&config, format!("[limits]\n{limits}\n")).unwrap();
    let mut command = castra();
    command.arg("--config").arg(&config);
    Broker::start_with(&dir.join("root"), command, &[])
}

/// Subscribes and returns the ack, which must be the next frame.
pub fn subscribe(guest: &mut Guest, fields: &str) -> Value {
    let ack = guest.ask(format!(r#"{{"type":"subscribe",{fields}}}"#));
    assert_eq!((&ack["ack"], &ack["status"]), (&json!("subscribe"), &json!("ok")), "{fields}: {ack}");
    ack
}

/// The seq of the next frame, an event of that subscription.
pub fn event(guest: &mut Guest, sub: &str) -> u64 {
    let event = guest.receive().expect("an event");
    assert_eq!((&event["type"], &event["sub"]), (&json!("event"), &json!(sub)), "{event}");
    event["seq"].as_u64().unwrap()
}

/// Nothing else came up to here.
pub fn is_quiet(guest: &mut Guest) {
    let answer = guest.ask(r#"{"type":"heartbeat"}"#);
    assert_eq!(answer["ack"], "heartbeat", "{answer}");
}

pub fn publish(guest: &mut Guest, topic: &str) -> u64 {
    let ack = guest.ask(json!({"type": "publish", "topic": topic}).to_string());
    ack["seq"].as_u64().unwrap_or_else(|| panic!("{ack}"))
}

#[test]
fn an_event_is_its_log_line_and_says_its_subscription() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let ack = subscribe(&mut guest, r#""topic":"überblick.\"\\*\"""#.replace("\\\\*", "x").as_str());
    assert_eq!(
        ack,
        json!({"type":"ack","ack":"subscribe","status":"ok","sub":"überblick.\"x\"","next_seq":1})
    );
    let mut other = broker.guest("other");
    let said = json!({
        "type": "publish", "topic": "überblick.\"x\"", "key": "k", "headers": {"a": "b"}, "tags": ["t"],
        "caused_by": ["c"], "payload": {"n": [1, -2.5e-3, null]}
    });
    assert_eq!(other.ask(said.to_string())["status"], "ok");
    let mut event = guest.receive().unwrap();
    for (name, want) in [("type", "event"), ("sub", "überblick.\"x\"")] {
        assert_eq!(event.as_object_mut().unwrap().remove(name), Some(json!(want)));
    }
    let line = eventually("its line", || broker.log("bus").pop());
    assert_eq!((&event, &event["vm"]), (&line, &json!("other")));
    // Unasked for: nothing.
    publish(&mut other, "überblick");
    is_quiet(&mut guest);
}

#[test]
fn every_bad_wish_has_its_code_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("web");
    subscribe(&mut guest, r#""topic":"mine.>","sub":"mine""#);
    let many = format!(r#""sub":"many","topics":[{}"a"]"#, "\"a\",".repeat(64));
    let long = |n: usize| format!(r#""topic":"a","sub":"{}""#, "x".repeat(n));
    let wishes = [
        ("", "bad-field"),
        (r#""topic":7"#, "bad-field"),
        (r#""topic":["a"]"#, "bad-field"),
        (r#""topics":"a","sub":"s""#, "bad-field"),
        (r#""topics":[],"sub":"s""#, "bad-field"),
        (r#""topics":[7],"sub":"s""#, "bad-field"),
        (r#""topic":"a","topics":["b"],"sub":"s""#, "bad-field"),
        (r#""topic":"a","topic":"b""#, "duplicate-field"),
        (r#""topics":["a"]"#, "bad-sub"),
        (r#""topic":"a","sub":"""#, "bad-sub"),
        (r#""topic":"a","sub":"a\u0000""#, "bad-sub"),
        (r#""topic":"a","sub":"a\nb""#, "bad-sub"),
        (r#""topic":"a","sub":7"#, "bad-field"),
        (&long(256), "bad-sub"),
        (r#""topic":"""#, "bad-pattern"),
        (r#""topic":".""#, "bad-pattern"),
        (r#""topic":"a..b""#, "bad-pattern"),
        (r#""topic":"a.""#, "bad-pattern"),
        (r#""topic":"a b""#, "bad-pattern"),
        (r#""topic":"a.>.b""#, "bad-pattern"),
        (r#""topic":">.a""#, "bad-pattern"),
        (r#""topic":"a*""#, "bad-pattern"),
        (r#""topic":"a.*b""#, "bad-pattern"),
        (r#""topic":"**""#, "bad-pattern"),
        (r#""topic":"vm:""#, "bad-pattern"),
        (r#""topic":"vm:>""#, "bad-pattern"),
        (r#""topic":"vm:a/b""#, "bad-pattern"),
        (r#""topic":"a\u0007""#, "bad-pattern"),
        (r#""topics":["a","b..c"],"sub":"s""#, "bad-pattern"),
        (&many, "too-many-subscriptions"),
        (r#""topic":"a","from":"newest""#, "bad-from"),
        (r#""topic":"a","from":"""#, "bad-from"),
        (r#""topic":"a","from":7"#, "bad-from"),
        (r#""topic":"a","from":true"#, "bad-from"),
        (r#""topic":"a","from":[]"#, "bad-from"),
        (r#""topic":"a","from":{}"#, "bad-from"),
        (r#""topic":"a","from":{"seq":0}"#, "bad-from"),
        (r#""topic":"a","from":{"seq":-1}"#, "bad-from"),
        (r#""topic":"a","from":{"seq":1.5}"#, "bad-from"),
        (r#""topic":"a","from":{"seq":"1"}"#, "bad-from"),
        (r#""topic":"a","from":{"seq":null}"#, "bad-from"),
        (r#""topic":"a","from":{"seq":99999999999999999999}"#, "bad-from"),
        (r#""topic":"a","from":{"seq":1,"ts":1}"#, "bad-from"),
        (r#""topic":"a","from":{"ts":-1}"#, "bad-from"),
        (r#""topic":"a","from":{"ts":"now"}"#, "bad-from"),
        (r#""topic":"a","from":{"id":""}"#, "bad-from"),
        (r#""topic":"a","from":{"id":7}"#, "bad-from"),
        (r#""topic":"a","from":{"id":"x","vm":"a b"}"#, "bad-from"),
        (r#""topic":"a","from":{"seq":2}"#, "seq-ahead"),
        (r#""topic":"a","from":{"seq":18446744073709551615}"#, "seq-ahead"),
        (r#""topic":"mine.*","sub":"mine""#, "sub-exists"),
        (r#""topics":["mine.>","x"],"sub":"mine""#, "sub-exists"),
        (r#""topic":"vm:db""#, "forbidden-topic"),
        (r#""topic":"vm:we""#, "forbidden-topic"),
        (r#""topic":"vm:web.1""#, "forbidden-topic"),
        (r#""topic":"vm:*""#, "forbidden-topic"),
        (r#""topic":"$dlq.>""#, "forbidden-topic"),
        (r#""topics":["a","vm:db"],"sub":"s""#, "forbidden-topic"),
    ];
    for (fields, code) in wishes {
        let comma = if fields.is_empty() { "" } else { "," };
        refused(&mut guest, "subscribe", &format!(r#"{{"type":"subscribe"{comma}{fields}}}"#), code);
    }
    for (fields, code) in [
        ("", "bad-field"),
        (r#","sub":7"#, "bad-field"),
        (r#","sub":"""#, "bad-sub"),
        (r#","sub":"nobody""#, "unknown-sub"),
        (r#","topic":"mine.>""#, "unknown-sub"),
        (r#","sub":"s""#, "unknown-sub"),
    ] {
        refused(&mut guest, "unsubscribe", &format!(r#"{{"type":"unsubscribe"{fields}}}"#), code);
    }
    // None of them left anything behind: 63 more, and no other.
    for n in 1..64 {
        subscribe(&mut guest, &format!(r#""topic":"more.{n}""#));
    }
    refused(&mut guest, "subscribe", r#"{"type":"subscribe","topic":"one.more"}"#, "too-many-subscriptions");
    guest.send(r#"{"type":"publish","topic":"mine.x"}"#);
    guest.send(r#"{"type":"publish","topic":"a"}"#);
    let mut frames: Vec<Value> = (0..3).map(|_| guest.receive().unwrap()).collect();
    frames.sort_by_key(|frame| (frame["type"].to_string(), frame["seq"].as_u64()));
    let seen: Vec<_> =
        frames.iter().map(|f| (f["type"].as_str().unwrap(), f["seq"].as_u64().unwrap())).collect();
    assert_eq!(seen, [("ack", 1), ("ack", 2), ("event", 1)]);
    is_quiet(&mut guest);
}

fn refused(guest: &mut Guest, kind: &str, body: &str, code: &str) {
    let ack = guest.ask(body);
    assert_eq!(
        (&ack["ack"], &ack["status"], &ack["code"]),
        (&json!(kind), &json!("error"), &json!(code)),
        "{body}: {ack}"
    );
    let reason = ack["reason"].as_str().unwrap();
    assert!(!reason.is_empty() && !reason.contains('\n'), "{body}: {ack}");
}

#[test]
fn an_unknown_id_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("web");
    publish(&mut guest, "a");
    refused(
        &mut guest,
        "subscribe",
        r#"{"type":"subscribe","topic":"a","from":{"id":"nobody's"}}"#,
        "unknown-id",
    );
    subscribe(&mut guest, r#""topic":"a""#);
}

#[test]
fn overlapping_subscriptions_deliver_once_each() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("web");
    let mut other = broker.guest("other");
    publish(&mut other, "b.c");
    for from in ["latest", "earliest"] {
        for wish in [
            r#""topic":"a.b""#,
            r#""topic":"a.b","sub":"again""#,
            r#""topic":"a.*""#,
            r#""topic":">""#,
            r#""topics":["a.b","a.*",">","a.b"],"sub":"list""#,
            r#""topic":"b""#,
        ] {
            // The same again is ok, and is one.
            for _ in 0..2 {
                guest.send(format!(r#"{{"type":"subscribe",{wish},"from":"{from}"}}"#));
            }
        }
        let mut subs = Vec::new();
        let mut acks = 0;
        while acks < 12 {
            let frame = guest.receive().unwrap();
            match frame["type"].as_str() {
                Some("ack") => acks += 1,
                _ => subs.push(event_of(Some(frame))),
            }
        }
        let seq = if from == "latest" { publish(&mut other, "a.b") } else { 2 };
        let want = [(">", seq), ("a.*", seq), ("a.b", seq), ("again", seq), ("list", seq)];
        let old = [(">", 1), ("list", 1)];
        let mut want: Vec<_> = want.iter().chain(if from == "latest" { &[][..] } else { &old }).collect();
        want.sort();
        while subs.len() < want.len() {
            subs.push(event_of(guest.receive()));
        }
        subs.sort();
        assert_eq!(subs, want.iter().map(|(sub, seq)| (sub.to_string(), *seq)).collect::<Vec<_>>());
        is_quiet(&mut guest);
        guest = broker.guest("web");
    }
}

#[test]
fn mailboxes_are_for_their_vm_and_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut web, mut db) = (broker.guest("web"), broker.guest("db"));
    let (mut host, _) = LocalGuest::greet(&dir.path().join("castra.sock"), HOST);
    // Neither the host's rights nor its own come from the socket alone.
    let (mut guest, _) =
        LocalGuest::greet(&dir.path().join("castra.sock"), "hello vm:x capabilities=bus-v1\n");
    assert_eq!(guest.ask(r#"{"type":"subscribe","topic":"vm:*"}"#)["code"], "forbidden-topic");
    for pattern in ["vm:web", ">", "*"] {
        subscribe(&mut web, &format!(r#""topic":"{pattern}""#));
    }
    for pattern in ["vm:*", "vm:db", ">", "$own.>"] {
        assert_eq!(
            host.ask(&format!(r#"{{"type":"subscribe","topic":"{pattern}"}}"#))["status"],
            "ok",
            "{pattern}"
        );
    }
    assert_eq!(publish(&mut db, "vm:web"), 1);
    assert_eq!(publish(&mut db, "vm:db"), 2);
    assert_eq!(publish(&mut db, "plain"), 3);
    assert_eq!(event(&mut web, "vm:web"), 1);
    let mut plain = [event_of(web.receive()), event_of(web.receive())];
    plain.sort();
    assert_eq!(plain, [("*".to_owned(), 3), (">".to_owned(), 3)]);
    is_quiet(&mut web);
    let mut seen: Vec<_> = (0..4).map(|_| event_of(Some(host.receive()))).collect();
    seen.sort();
    let want = [(">", 3), ("vm:*", 1), ("vm:*", 2), ("vm:db", 2)];
    assert_eq!(seen, want.map(|(sub, seq)| (sub.to_owned(), seq)));
    assert_eq!(host.ask(r#"{"type":"heartbeat"}"#)["ack"], "heartbeat");
}

fn event_of(frame: Option<Value>) -> (String, u64) {
    let frame = frame.expect("an event");
    assert_eq!(frame["type"], "event", "{frame}");
    (frame["sub"].as_str().unwrap().to_owned(), frame["seq"].as_u64().unwrap())
}

#[test]
fn where_a_subscription_begins() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut other = broker.guest("other");
    for _ in 0..5 {
        publish(&mut other, "a");
        publish(&mut other, "b");
    }
    for (from, next, first) in [
        (r#""latest""#, 11, None),
        ("null", 11, None),
        (r#""earliest""#, 1, Some(1)),
        (r#"{"seq":1}"#, 1, Some(1)),
        (r#"{"seq":4}"#, 4, Some(5)),
        (r#"{"seq":5,"and":"more"}"#, 5, Some(5)),
        (r#"{"seq":10}"#, 10, None),
        (r#"{"seq":11}"#, 11, None),
    ] {
        let mut guest = broker.guest("web");
        let ack = subscribe(&mut guest, &format!(r#""topic":"a","from":{from}"#));
        assert_eq!((&ack["next_seq"], &ack["gap"]), (&json!(next), &Value::Null), "{from}");
        let mut seq = first;
        while let Some(want) = seq {
            assert_eq!(event(&mut guest, "a"), want, "{from}");
            seq = Some(want + 2).filter(|next| *next < 11);
        }
        is_quiet(&mut guest);
    }
    // Nothing before what it begins with, and nothing twice: all of them together in one session.
    let mut guest = broker.guest("web");
    for seq in 1..=11 {
        subscribe_unread(&mut guest, seq);
    }
    let last = publish(&mut other, "a");
    let mut seen = vec![Vec::new(); 12];
    let want = |from: u64| (from..=10).filter(|seq| seq % 2 == 1).chain([last]).collect::<Vec<u64>>();
    while seen.iter().map(Vec::len).sum::<usize>() < (1..=11).map(|from| want(from).len()).sum() {
        let frame = guest.receive().unwrap();
        if frame["type"] == "event" {
            let from: usize = frame["sub"].as_str().unwrap().parse().unwrap();
            seen[from].push(frame["seq"].as_u64().unwrap());
        }
    }
    (1..=11).for_each(|from| assert_eq!(seen[from as usize], want(from), "from {from}"));
    is_quiet(&mut guest);
}

fn subscribe_unread(guest: &mut Guest, seq: u64) {
    guest.send(format!(r#"{{"type":"subscribe","topic":"a","sub":"{seq}","from":{{"seq":{seq}}}}}"#));
}

#[test]
fn a_subscription_may_begin_at_a_time_or_behind_an_id() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut other, mut third) = (broker.guest("other"), broker.guest("third"));
    for n in 1..=20 {
        // Two VMs gave the same id; the newest counts.
        let (guest, id) = if n == 3 { (&mut third, 9) } else { (&mut other, n) };
        guest.ask(format!(r#"{{"type":"publish","topic":"a","id":"e{id}"}}"#));
        if n % 4 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(3));
        }
    }
    let log = eventually("the log", || Some(broker.log("bus")).filter(|log| log.len() == 20));
    let ts: Vec<u64> = log.iter().map(|event| event["ts"].as_u64().unwrap()).collect();
    let first_at = |time: u64| ts.iter().position(|ts| *ts >= time).unwrap_or(20) as u64 + 1;
    let mut cases = vec![(r#"{"ts":0}"#.to_owned(), 1), (r#"{"ts":99999999999999}"#.to_owned(), 21)];
    for time in ts[0] - 1..=ts[19] + 1 {
        cases.push((format!(r#"{{"ts":{time}}}"#), first_at(time)));
    }
    for n in (1..=20).filter(|n| *n != 3) {
        cases.push((format!(r#"{{"id":"e{n}"}}"#), n + 1));
    }
    for (vm, next) in [("other", 10), ("third", 4)] {
        cases.push((format!(r#"{{"id":"e9","vm":"{vm}"}}"#), next));
    }
    let ack = subscribe(&mut broker.guest("web"), r#""topic":"a","from":{"id":"e9","vm":"web"}"#);
    assert_eq!(
        (&ack["code"], ack["reason"].as_str()),
        (&json!("unknown-id"), Some("the journal has no event of web with the id 'e9'"))
    );
    for (from, next) in cases {
        let mut guest = broker.guest("web");
        let ack = subscribe(&mut guest, &format!(r#""topic":"a","from":{from}"#));
        assert_eq!((&ack["next_seq"], &ack["gap"]), (&json!(next), &Value::Null), "{from}, {ts:?}");
        (next..=20).for_each(|want| assert_eq!(event(&mut guest, "a"), want, "{from}"));
        is_quiet(&mut guest);
    }
}

#[test]
fn the_end_of_a_subscription() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut guest, mut other) = (broker.guest("web"), broker.guest("other"));
    subscribe(&mut guest, r#""topic":"a""#);
    subscribe(&mut guest, r#""topic":"a","sub":"b""#);
    assert_eq!(publish(&mut other, "a"), 1);
    assert_eq!(event_of(guest.receive()).1 + event_of(guest.receive()).1, 2);
    // The word `topic` is the name as well.
    for (word, sub) in [("topic", "a"), ("sub", "b")] {
        let ack = guest.ask(format!(r#"{{"type":"unsubscribe","{word}":"{sub}"}}"#));
        assert_eq!(ack, json!({"type":"ack","ack":"unsubscribe","status":"ok","sub":sub}));
    }
    (2..4).for_each(|seq| assert_eq!(publish(&mut other, "a"), seq));
    is_quiet(&mut guest);
    // The name is free again, and what was missed can be had.
    let ack = subscribe(&mut guest, r#""topic":">","sub":"a","from":{"seq":2}"#);
    assert_eq!(ack["next_seq"], 2);
    assert_eq!((event(&mut guest, "a"), event(&mut guest, "a")), (2, 3));
    // In one go, with a flood of events on the way: the ack of the end is the last of it.
    let many: Vec<u8> = (0..3000).flat_map(|_| frame(r#"{"type":"publish","topic":"a"}"#)).collect();
    let writer = std::thread::spawn(move || {
        other.stream.get_mut().write_all(&many).unwrap();
        (0..3000).for_each(|_| assert_eq!(other.receive().unwrap()["status"], "ok"));
    });
    for n in 0..20 {
        for _ in 0..10 {
            assert_eq!(event_of(guest.receive()).0, "a", "{n}");
        }
        guest.send(r#"{"type":"unsubscribe","sub":"a"}"#);
        let mut frame = guest.receive().unwrap();
        while frame["type"] == "event" {
            frame = guest.receive().unwrap();
        }
        assert_eq!(frame["ack"], "unsubscribe", "{frame}");
        let next = subscribe(&mut guest, r#""topic":">","sub":"a","from":"earliest""#)["next_seq"].clone();
        assert_eq!(next, 1);
    }
    writer.join().unwrap();
}

/// Five that begin at the oldest event while events are published as fast as it goes, and some that begin at the newest:
/// the ack is the first frame, and then everything comes, in order, once.
#[test]
fn replay_joins_live_while_a_publisher_floods() {
    const EVENTS: u64 = 40_000;
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut publisher = broker.guest("p");
    let body = frame(format!(r#"{{"type":"publish","topic":"a","payload":"{}"}}"#, "x".repeat(100)));
    let window: Vec<u8> = body.repeat(500);
    let flood = std::thread::spawn(move || {
        for _ in 0..EVENTS / 500 {
            publisher.stream.get_mut().write_all(&window).unwrap();
            (0..500).for_each(|_| assert_eq!(publisher.receive().unwrap()["status"], "ok"));
        }
    });
    let head = || broker.status()["broker"]["journal"]["head_seq"].as_u64();
    eventually("a thousand events", || head().filter(|head| *head > 1000));
    std::thread::scope(|scope| {
        for n in 0..8 {
            let mut guest = broker.guest("web");
            let broker = &broker;
            scope.spawn(move || {
                let from = if n < 5 { "earliest" } else { "latest" };
                let next =
                    subscribe(&mut guest, &format!(r#""topic":"a","from":"{from}""#))["next_seq"].clone();
                let next = next.as_u64().unwrap();
                assert!(if n < 5 { next == 1 } else { next > 1000 });
                for want in next..=EVENTS {
                    assert_eq!(event(&mut guest, "a"), want, "{n}, on {}", broker.pid());
                }
                is_quiet(&mut guest);
            });
        }
    });
    flood.join().unwrap();
}

#[test]
fn what_retention_took_is_said() {
    const OLD: u64 = 240;
    let dir = tempfile::tempdir().unwrap();
    let payload = "x".repeat(50_000);
    let fill = |broker: &Broker, events| {
        let mut publisher = broker.guest("p");
        let body = format!(r#"{{"type":"publish","topic":"a","payload":"{payload}"}}"#);
        (0..events).for_each(|_| assert_eq!(publisher.ask(&body)["status"], "ok"));
    };
    let limits = "segment_bytes = \"1 MiB\"\nwrite_time = \"1min\"";
    let broker = limited(dir.path(), limits);
    fill(&broker, OLD);
    assert_eq!(broker.stop().0, Some(0));

    // The logs have all that is old: nothing holds retention back.
    let broker = limited(dir.path(), &format!("{limits}\nretain_age = \"6s\""));
    let mut slow = broker.guest("slow");
    assert_eq!(subscribe(&mut slow, r#""topic":"a","from":"earliest""#)["next_seq"], 1);
    // A new segment makes it look.
    std::thread::sleep(std::time::Duration::from_secs(6));
    fill(&broker, 25);
    let first_seq = || broker.status()["broker"]["journal"]["first_seq"].as_u64().filter(|seq| *seq > 200);
    let first = eventually("retention", first_seq);
    let last = OLD + 25;

    // One that asks for what is gone.
    let mut late = broker.guest("late");
    let ack = subscribe(&mut late, r#""topic":"a","from":{"seq":3}"#);
    let next = ack["next_seq"].as_u64().unwrap();
    assert!(next >= first && ack["gap"] == json!({"from": 3, "to": next - 1}), "{ack}");
    (next..=last).for_each(|want| assert_eq!(event(&mut late, "a"), want));
    // One that asks for the oldest there is.
    let mut oldest = broker.guest("late");
    let ack = subscribe(&mut oldest, r#""topic":"nobody","from":"earliest""#);
    assert!(ack["next_seq"].as_u64().unwrap() >= first && ack["gap"] == Value::Null, "{ack}");
    is_quiet(&mut oldest);
    // And one that was there and did not read.
    let (mut want, mut gaps) = (1, 0);
    while want <= last {
        let frame = slow.receive().unwrap();
        assert_eq!(frame["sub"], "a");
        if frame["type"] == "gap" {
            assert_eq!(frame["from"], want);
            want = frame["to"].as_u64().unwrap() + 1;
            eventually("the gap to be one", || first_seq().filter(|first| *first >= want));
            gaps += 1;
        } else {
            assert_eq!((&frame["type"], &frame["seq"]), (&json!("event"), &json!(want)));
            want += 1;
        }
    }
    assert_eq!(gaps, 1);
    is_quiet(&mut slow);
}
