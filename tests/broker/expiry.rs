//! Events that are of no use any more: nobody gets them, and what a group had not consumed is counted.

use crate::subscribe::{event, is_quiet, publish, subscribe};
use crate::support::{Broker, Guest, broker_log, eventually};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

fn publish_for(guest: &mut Guest, topic: &str, ttl_ms: u64) -> u64 {
    let ack = guest.ask(format!(r#"{{"type":"publish","topic":"{topic}","ttl_ms":{ttl_ms}}}"#));
    ack["seq"].as_u64().unwrap_or_else(|| panic!("{ack}"))
}

/// What was stored before the call has been there for so long when it returns.
fn pass(time: Duration) {
    let since = Instant::now();
    while since.elapsed() <= time {
        std::thread::yield_now();
    }
}

fn show(guest: &mut Guest, group: &str) -> Value {
    guest.ask(format!(r#"{{"type":"group","group":"{group}"}}"#))
}

fn delivery(guest: &mut Guest) -> u64 {
    let frame = guest.receive().expect("a delivery");
    assert_eq!(frame["type"], "event", "{frame}");
    frame["seq"].as_u64().unwrap()
}

#[test]
fn nobody_gets_what_its_publisher_limited_once_the_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut publisher, mut live) = (broker.guest("p"), broker.guest("l"));
    subscribe(&mut live, r#""topic":"t""#);
    let made = publisher.ask(r#"{"type":"group_create","group":"early","topic":"t","from":"earliest"}"#);
    assert_eq!(made["status"], "ok", "{made}");
    let first = publish_for(&mut publisher, "t", 1);
    let second = publish_for(&mut publisher, "t", 3_600_000);
    let third = publish(&mut publisher, "t");
    // Who was there at once had it.
    assert_eq!([(); 3].map(|()| event(&mut live, "t")), [first, second, third]);
    pass(Duration::from_millis(2));
    let mut reader = broker.guest("r");
    subscribe(&mut reader, r#""topic":"t","from":"earliest""#);
    assert_eq!([(); 2].map(|()| event(&mut reader, "t")), [second, third]);
    is_quiet(&mut reader);
    // One group had taken it in, the other reads the journal.
    for group in ["early", "late"] {
        let mut member = broker.guest("m");
        let join = format!(r#"{{"type":"subscribe","topic":"t","group":"{group}","from":"earliest"}}"#);
        assert_eq!(member.ask(join)["status"], "ok");
        assert_eq!([(); 2].map(|()| delivery(&mut member)), [second, third], "{group}");
        let said = format!(r#"{{"type":"ack","group":"{group}","through":{third},"confirm":true}}"#);
        assert_eq!(member.ask(said)["status"], "ok");
        let stands = show(&mut member, group);
        let said = ["cursor", "lag", "expired_undelivered"].map(|name| &stands[name]);
        assert_eq!(json!(said), json!([third, 0, 1]), "{stands}");
    }
    // It waited for a member that has its hands full.
    let mut busy = broker.guest("m");
    let join = r#"{"type":"subscribe","topic":"u","group":"busy","max_in_flight":1}"#;
    assert_eq!(busy.ask(join)["status"], "ok");
    let held = publish(&mut publisher, "u");
    assert_eq!(delivery(&mut busy), held);
    publish_for(&mut publisher, "u", 1);
    let last = publish(&mut publisher, "u");
    pass(Duration::from_millis(2));
    busy.send(format!(r#"{{"type":"ack","group":"busy","seq":{held}}}"#));
    assert_eq!(delivery(&mut busy), last);
    eventually("what the broker's log says of it", || {
        let is_it = |line: &String| line.contains("busy") && line.contains("expired_undelivered=1");
        broker_log(dir.path()).iter().any(is_it).then_some(())
    });
    // The log has all of them.
    let ttls = || Some(broker.log("p").iter().map(|line| line["ttl_ms"].clone()).collect::<Vec<_>>());
    assert_eq!(
        eventually("the log", || ttls().filter(|all| all.len() == 6)),
        [json!(1), json!(3_600_000), Value::Null, Value::Null, json!(1), Value::Null]
    );
}

fn broker_with(dir: &Path, topics: &str) -> Broker {
    let config = dir.join("castra.toml");
    std::fs::write(&config, topics).unwrap();
    Broker::start_args(&dir.join("root"), &["--config", config.to_str().unwrap()])
}

/// The seqs of a topic that are there for who comes now, once `is` is true of them.
fn until(broker: &Broker, topic: &str, is: impl Fn(&[u64]) -> bool) -> Vec<u64> {
    eventually("what is kept", || {
        let mut guest = broker.guest("r");
        let last = publish(&mut guest, "end");
        subscribe(&mut guest, &format!(r#""topics":["{topic}","end"],"sub":"s","from":"earliest""#));
        let all = std::iter::from_fn(|| guest.receive().filter(|event| event["seq"] != last));
        let seqs: Vec<u64> =
            all.filter(|event| event["topic"] == topic).map(|event| event["seq"].as_u64().unwrap()).collect();
        is(&seqs).then_some(seqs)
    })
}

#[test]
fn a_rule_keeps_so_many_of_the_newest_events_of_its_topics() {
    let dir = tempfile::tempdir().unwrap();
    let rules = "[[topics]]\ntopic = \"a.b\"\n\n[[topics]]\ntopic = \"a.*\"\nretention = \"3 events\"\n\n\
                 [[topics]]\ntopic = \"big\"\nretention = \"2 KiB\"\n\n\
                 [[topics]]\ntopic = \"old\"\nretention = \"1 ms\"\n";
    let broker = broker_with(dir.path(), rules);
    let mut publisher = broker.guest("p");
    let made = publisher.ask(r#"{"type":"group_create","group":"g","topic":"a.c","from":"earliest"}"#);
    assert_eq!(made["status"], "ok", "{made}");
    let all: Vec<[u64; 4]> =
        (0..10).map(|_| ["a.b", "a.c", "other", "old"].map(|topic| publish(&mut publisher, topic))).collect();
    let of = |topic: usize| all.iter().map(|seqs| seqs[topic]).collect::<Vec<_>>();
    assert_eq!(until(&broker, "a.c", |seqs| seqs.len() <= 3), of(1)[7..]);
    // The first rule that matches has no bound; what no rule matches has none either.
    assert_eq!(until(&broker, "a.b", |_| true), of(0));
    assert_eq!(until(&broker, "other", |_| true), of(2));
    assert_eq!(until(&broker, "old", |seqs| seqs.is_empty()), [0; 0]);
    let pad = "x".repeat(300);
    for _ in 0..20 {
        publisher.ask(format!(r#"{{"type":"publish","topic":"big","payload":"{pad}"}}"#));
    }
    let kept = until(&broker, "big", |seqs| seqs.len() < 10).len();
    assert!((5..=6).contains(&kept), "{kept} of about 380 bytes each");
    // The group had none of the first seven.
    let mut member = broker.guest("m");
    assert_eq!(member.ask(r#"{"type":"subscribe","topic":"a.c","group":"g"}"#)["status"], "ok");
    assert_eq!([(); 3].map(|()| delivery(&mut member)), of(1)[7..]);
    assert_eq!(show(&mut member, "g")["expired_undelivered"], 7);
}

#[test]
fn segments_without_anything_of_use_are_removed_however_young() {
    let dir = tempfile::tempdir().unwrap();
    let rules =
        "[limits]\nsegment_bytes = \"1 MiB\"\n\n[[topics]]\ntopic = \">\"\nretention = \"10 events\"\n";
    let broker = broker_with(dir.path(), rules);
    let pad = "x".repeat(30_000);
    let fill = |broker: &Broker| {
        let mut publisher = broker.guest("p");
        (0..40).for_each(|_| {
            drop(publisher.ask(format!(r#"{{"type":"publish","topic":"t","payload":"{pad}"}}"#)))
        });
    };
    fill(&broker);
    // What has no checkpoint of the logs behind it is kept; the end makes one.
    assert_eq!(broker.stop().0, Some(0));
    let broker = broker_with(dir.path(), rules);
    eventually("the first segment is gone", || {
        fill(&broker);
        (broker.status()["broker"]["journal"]["first_seq"].as_u64()? > 1).then_some(())
    });
    let kept = until(&broker, "t", |seqs| seqs.len() <= 10);
    assert!(kept.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{kept:?}");
}
