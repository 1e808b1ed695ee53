//! Groups that the journal's retention has overtaken: they say so, count what they never had, and go on behind it.

use crate::groups::{delivery, join, say};
use crate::subscribe::limited;
use crate::support::{Broker, Guest, eventually};
use serde_json::{Value, json};
use std::path::Path;

/// Segments of a MiB, and no more than that is kept of them.
fn small(dir: &Path) -> Broker {
    limited(dir, "segment_bytes = \"1 MiB\"\nretain_bytes = \"1 MiB\"")
}

/// Publishes large events of this topic until the journal has no event up to `seq`; the newest one's seq.
fn flood(broker: &Broker, guest: &mut Guest, topic: &str, seq: u64) -> u64 {
    let event = json!({"type": "publish", "topic": topic, "payload": "x".repeat(50_000)}).to_string();
    let mut last = 0;
    eventually("retention", || {
        (0..20).for_each(|_| guest.send(&event));
        for _ in 0..20 {
            let ack = guest.receive().unwrap();
            last = ack["seq"].as_u64().unwrap_or_else(|| panic!("{ack}"));
        }
        (first_seq(broker) > seq).then_some(last)
    })
}

fn first_seq(broker: &Broker) -> u64 {
    broker.status()["broker"]["journal"]["first_seq"].as_u64().unwrap()
}

/// What `castra bus group show` says.
fn shown(broker: &Broker, group: &str) -> Value {
    let output = broker.run(&["bus", "group", "show", group, "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Acknowledges the event `seq`, which it holds, and all that come up to `last`, each behind the one before: how many.
fn do_all(member: &mut Guest, mut seq: u64, last: u64) -> u64 {
    let mut had = 1;
    loop {
        say(member, "ack", &format!(r#""seq":{seq}"#));
        if seq == last {
            return had;
        }
        let (next, attempt) = delivery(member, "g");
        assert!(next > seq && attempt == 1, "{next} behind {seq}");
        (seq, had) = (next, had + 1);
    }
}

/// Why the group stands, by `castra status`.
fn stalled(broker: &Broker) -> Value {
    broker.status()["groups"][0]["stalled"].clone()
}

#[test]
fn a_group_that_nobody_serves_falls_behind_retention_and_goes_on_where_the_journal_begins() {
    let dir = tempfile::tempdir().unwrap();
    let broker = small(dir.path());
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("m"));
    let made = publisher.ask(r#"{"type":"group_create","group":"g","topic":"t","from":"earliest"}"#);
    assert_eq!(made["status"], "ok", "{made}");
    publisher.ask(r#"{"type":"publish","topic":"t"}"#);
    assert_eq!(shown(&broker, "g")["stalled"], "no members");
    let last = flood(&broker, &mut publisher, "t", 10);
    let first = first_seq(&broker);
    let said = shown(&broker, "g");
    let fields = ["stalled", "cursor", "expired_undelivered"].map(|name| &said[name]);
    assert_eq!(json!(fields), json!(["behind retention", 0, 0]), "{said}");
    let text = String::from_utf8(broker.run(&["bus", "group", "show", "g"]).stdout).unwrap();
    assert!(text.contains("stalled         behind retention\n"), "{text}");
    eventually("the status", || (stalled(&broker) == "behind retention").then_some(()));

    // Who comes has what is left of it, and what is not is counted.
    let joined = join(&mut member, r#""topic":"t","group":"g""#);
    assert_eq!((&joined["created"], &joined["cursor"]), (&json!(false), &json!(0)), "{joined}");
    let (begins, attempt) = delivery(&mut member, "g");
    assert!(begins >= first && attempt == 1, "{begins} was removed, the first one is {first}");
    let said = shown(&broker, "g");
    assert_eq!(said["cursor"], begins - 1, "{said}");
    assert!(said["expired_undelivered"].as_u64().unwrap() >= begins - 1, "{said}");
    // Retention may still be at work.
    let had = do_all(&mut member, begins, last);
    let said = shown(&broker, "g");
    let fields = ["stalled", "cursor", "expired_undelivered", "lag"].map(|name| &said[name]);
    assert_eq!(json!(fields), json!([null, last, last - had, 0]), "{said}");
    // It stays where it is when the broker begins anew; what was lost is of the one that ended.
    broker.kill();
    let broker = small(dir.path());
    let said = shown(&broker, "g");
    assert_eq!(json!([said["cursor"], said["expired_undelivered"]]), json!([last, 0]), "{said}");
}

#[test]
fn what_a_slow_member_had_is_its_own_and_what_was_removed_meanwhile_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let broker = small(dir.path());
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("m"));
    join(&mut member, r#""topic":"t","group":"g","from":"earliest","batch":1,"max_in_flight":1"#);
    let last = flood(&broker, &mut publisher, "t", 100);
    // It holds the first one, which the journal has no more.
    assert_eq!(delivery(&mut member, "g"), (1, 1));
    let said = shown(&broker, "g");
    let fields = ["stalled", "cursor", "held"].map(|name| &said[name]);
    assert_eq!(json!(fields), json!(["behind retention", 0, 1]), "{said}");
    eventually("the status", || (stalled(&broker) == "behind retention").then_some(()));
    let had = do_all(&mut member, 1, last);
    let said = shown(&broker, "g");
    assert!(last - had > 0, "nothing was lost");
    let fields = ["stalled", "cursor", "expired_undelivered"].map(|name| &said[name]);
    assert_eq!(json!(fields), json!([null, last, last - had]), "{said}");
}

#[test]
fn what_passes_by_groups_without_members_is_passed_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let broker = small(dir.path());
    let mut publisher = broker.guest("p");
    for (group, topic) in [("idle", "nothing"), ("owed", "t"), ("late", "short")] {
        let wish = json!({"type": "group_create", "group": group, "topic": topic, "from": "earliest"});
        assert_eq!(publisher.ask(wish.to_string())["status"], "ok");
    }
    let last = flood(&broker, &mut publisher, "t", 10);
    publisher.ask(r#"{"type":"publish","topic":"short","ttl_ms":1}"#);
    let wish = json!({"type": "publish", "topic": "short", "ttl_ms": 3_600_000}).to_string();
    let waits = publisher.ask(wish)["seq"].as_u64().unwrap();
    assert_eq!(waits, last + 2);
    // Every 30 s, and at a start.
    let root = broker.root.clone();
    assert_eq!(broker.stop().0, Some(0));
    let broker = Broker::start_args(&root, &["--config", dir.path().join("castra.toml").to_str().unwrap()]);
    let stands = |group: &str, is: &dyn Fn(u64) -> bool| {
        let said = eventually("the cursor", || {
            Some(shown(&broker, group)).filter(|said| is(said["cursor"].as_u64().unwrap()))
        });
        (said["cursor"].as_u64().unwrap(), said["expired_undelivered"].as_u64().unwrap())
    };
    // Of what is gone nobody knows what it was; what is there is not lost, or nobody wants it. Retention may go on.
    let (_, gone) = stands("idle", &|cursor| cursor == waits);
    let (cursor, expired) = stands("owed", &|cursor| cursor > 0);
    assert!(gone > 10 && cursor == expired && (10..last).contains(&cursor), "{gone}, {cursor}, {expired}");
    let (_, expired) = stands("late", &|cursor| cursor == waits - 1);
    assert!(expired > 11 && expired <= gone + 1, "{gone}, {expired}");
    let mut member = broker.guest("m");
    join(&mut member, r#""topic":"short","group":"late""#);
    assert_eq!(delivery(&mut member, "late"), (waits, 1));
    // What a group has passed is not before it again after a kill, for it was counted.
    let said = json!({"type": "ack", "group": "late", "seq": waits, "confirm": true}).to_string();
    assert_eq!(member.ask(said)["status"], "ok");
    broker.kill();
    let broker = Broker::start_args(&root, &["--config", dir.path().join("castra.toml").to_str().unwrap()]);
    assert_eq!(shown(&broker, "late")["cursor"], waits);
}

#[test]
fn what_had_expired_for_a_group_stays_so_after_a_restart_with_other_rules() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("castra.toml");
    let start = |text: &str| {
        std::fs::write(&config, text).unwrap();
        Broker::start_args(&dir.path().join("root"), &["--config", config.to_str().unwrap()])
    };
    let broker = start("[[topics]]\ntopic = \"cnt\"\nretention = \"10 events\"\n");
    let mut publisher = broker.guest("p");
    publisher.ask(r#"{"type":"group_create","group":"g","topic":"cnt","from":"earliest"}"#);
    // Of the same topic, with a filter that none of the events passes: none of them is its loss.
    let picky =
        r#"{"type":"group_create","group":"picky","topic":"cnt","from":"earliest","filter":{"tags":["x"]}}"#;
    assert_eq!(publisher.ask(picky)["status"], "ok");
    (0..100).for_each(|_| drop(publisher.ask(r#"{"type":"publish","topic":"cnt"}"#)));
    let first = eventually("the rule", || {
        let mut reader = broker.guest("r");
        reader.ask(r#"{"type":"subscribe","topic":"cnt","from":"earliest"}"#);
        reader.receive().unwrap()["seq"].as_u64().filter(|seq| *seq > 80)
    });
    for group in ["g", "picky"] {
        let mut member = broker.guest("m");
        join(&mut member, &format!(r#""topic":"cnt","group":"{group}""#));
        let expired = if group == "g" { first - 1 } else { 0 };
        eventually("what has expired", || {
            (shown(&broker, group)["expired_undelivered"] == expired).then_some(())
        });
    }
    eventually("their end", || (shown(&broker, "g")["members"] == 0).then_some(()));
    assert_eq!(broker.stop().0, Some(0));
    let broker = start("");
    assert_eq!(shown(&broker, "g")["cursor"], first - 1);
    let mut member = broker.guest("m");
    join(&mut member, r#""topic":"cnt","group":"g""#);
    assert_eq!(delivery(&mut member, "g").0, first);
}
