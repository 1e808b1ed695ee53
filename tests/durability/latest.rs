//! The newest event of each key, whatever happens to the broker, its disk and its files.

use crate::support::{Broker, Guest, LocalGuest, broker_log, castra, eventually, read_log};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

pub fn compacting(dir: &Path, args: &[&str]) -> Broker {
    configured(dir, "[[topics]]\ntopic = \"s.>\"\ncompaction = true\n", args)
}

fn configured(dir: &Path, text: &str, args: &[&str]) -> Broker {
    let config = dir.join("castra.toml");
    std::fs::write(&config, text).unwrap();
    let mut command = castra();
    command.arg("--config").arg(&config);
    Broker::start_with(&dir.join("root"), command, args)
}

fn put(guest: &mut Guest, topic: &str, key: &str, payload: Value) -> u64 {
    let ack =
        guest.ask(json!({"type": "publish", "topic": topic, "key": key, "payload": payload}).to_string());
    ack["seq"].as_u64().unwrap_or_else(|| panic!("{ack}"))
}

/// Keys of a topic, and the seqs of their newest events.
fn latest(guest: &mut Guest, topic: &str) -> BTreeMap<String, u64> {
    let (mut all, mut after) = (BTreeMap::new(), String::new());
    loop {
        let ack = guest.ask(json!({"type": "latest", "topic": topic, "after": after}).to_string());
        // It may be reading the journal.
        if ack["code"] == "view-behind" {
            continue;
        }
        for event in ack["events"].as_array().unwrap_or_else(|| panic!("{ack}")) {
            after = event["key"].as_str().unwrap().to_owned();
            all.insert(after.clone(), event["seq"].as_u64().unwrap());
        }
        if ack["more"] == false {
            return all;
        }
    }
}

/// What the log of all events says.
fn model(root: &Path, topic: &str) -> BTreeMap<String, u64> {
    let mut model = BTreeMap::new();
    for line in read_log(root, "bus").iter().filter(|line| line["topic"] == topic) {
        let key = line["key"].as_str().unwrap().to_owned();
        match &line["payload"] {
            Value::Null => _ = model.remove(&key),
            _ => _ = model.insert(key, line["seq"].as_u64().unwrap()),
        }
    }
    model
}

/// Fills the journal until its first event is behind this one.
pub fn flood(broker: &Broker, guest: &mut Guest, seq: u64) {
    eventually("retention", || {
        for _ in 0..20 {
            guest.send(
                json!({"type": "publish", "topic": "flood", "payload": "x".repeat(50_000)}).to_string(),
            );
        }
        for _ in 0..20 {
            guest.receive().unwrap();
        }
        let first = broker.status()["broker"]["journal"]["first_seq"].as_u64().unwrap();
        (first > seq).then_some(())
    });
}

pub const SMALL: [&str; 4] = ["--segment-bytes", "1MiB", "--retain-bytes", "1MiB"];

#[test]
fn after_a_kill_it_is_what_the_journal_says() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    for round in 0..3 {
        let broker = compacting(dir.path(), &[]);
        let mut guests: Vec<Guest> = (0..4).map(|n| broker.guest(&format!("vm{n}"))).collect();
        for n in 0..300 {
            for (i, guest) in guests.iter_mut().enumerate() {
                let payload = if n % 7 == 3 { Value::Null } else { json!([round, n]) };
                let frame = json!({"type": "publish", "topic": "s.a", "key": format!("k{}", (n * 5 + i) % 90), "payload": payload});
                guest.send(frame.to_string());
            }
        }
        // Some of it was acknowledged, some is under way.
        guests.iter_mut().for_each(|guest| drop(guest.receive()));
        broker.kill();
        let broker = compacting(dir.path(), &[]);
        let mut guest = broker.guest("asks");
        let seen = latest(&mut guest, "s.a");
        assert!(!seen.is_empty());
        assert_eq!(seen, model(&root, "s.a"), "round {round}");
        assert_eq!(broker.stop().0, Some(0));
    }
}

#[test]
fn what_retention_removes_stays_and_is_in_a_backup() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &SMALL);
    let mut guest = broker.guest("web");
    let seqs: BTreeMap<String, u64> =
        (0..50).map(|n| (format!("k{n}"), put(&mut guest, "s.a", &format!("k{n}"), json!(n)))).collect();
    flood(&broker, &mut guest, 100);
    assert_eq!(latest(&mut guest, "s.a"), seqs);
    let copy = dir.path().join("copy");
    let done = broker.run(&["backup", copy.to_str().unwrap()]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    broker.kill();
    let broker = compacting(dir.path(), &SMALL);
    assert_eq!(latest(&mut broker.guest("web"), "s.a"), seqs);
    assert_eq!(broker.stop().0, Some(0));
    // A broker on the copy has it, too.
    let mut command = castra();
    command.arg("--config").arg(dir.path().join("castra.toml"));
    let restored = Broker::start_with(&copy, command, &SMALL);
    assert_eq!(latest(&mut restored.guest("web"), "s.a"), seqs);
    drop(restored);
    // Without the file only what the journal has comes back, and that is said.
    std::fs::remove_file(dir.path().join("root/latest.db")).unwrap();
    let broker = compacting(dir.path(), &SMALL);
    assert_eq!(latest(&mut broker.guest("web"), "s.a"), BTreeMap::new());
    let log = broker_log(&broker.root).join("\n");
    assert!(log.contains("keys are missing whose newest event retention has removed"), "{log}");
}

/// Keys `k<from>` to before `k<to>` of `s.a`, of 4 KB each, as fast as they are taken.
fn fill(guest: &mut Guest, from: usize, to: usize) {
    for n in from..to {
        let frame =
            json!({"type": "publish", "topic": "s.a", "key": format!("k{n}"), "payload": "x".repeat(4000)});
        guest.send(frame.to_string());
        if n % 64 == 63 || n + 1 == to {
            (from.max(n - n % 64)..=n).for_each(|_| assert_eq!(guest.receive().unwrap()["status"], "ok"));
        }
    }
}

pub fn remove_view(root: &Path) {
    for end in ["", "-wal", "-shm"] {
        match std::fs::remove_file(root.join(format!("latest.db{end}"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }
}

#[test]
fn what_the_journal_has_when_the_view_is_lost_comes_back_though_it_is_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    // The logs hold the journal for longer than this test publishes.
    let args = ["--segment-bytes", "1MiB", "--retain-bytes", "2MiB"];
    let broker = compacting(dir.path(), &args);
    fill(&mut broker.guest("web"), 0, 1320);
    assert_eq!(broker.stop().0, Some(0));
    let segments = std::fs::read_dir(root.join("journal")).unwrap().map(|entry| entry.unwrap());
    let segments = segments.filter(|entry| entry.file_name().to_string_lossy().ends_with(".seg"));
    let bytes: u64 = segments.map(|entry| entry.metadata().unwrap().len()).sum();
    assert!(bytes > 2 * 2 * 1024 * 1024, "{bytes}");
    remove_view(&root);
    let broker = compacting(dir.path(), &args);
    assert_eq!(latest(&mut broker.guest("web"), "s.a").len(), 1320);
    assert_eq!(broker.status()["broker"]["latest"]["lost"], 0);
    let log = broker_log(&root).join("\n");
    assert!(!log.contains("larger than it may be") && !log.contains("are gone"), "{log}");
}

#[test]
fn a_topic_that_becomes_compacted_has_all_that_the_journal_has_and_nothing_is_said_to_be_lost() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--segment-bytes", "1MiB", "--retain-bytes", "2MiB"];
    let other = "[[topics]]\ntopic = \"other\"\ncompaction = true\n";
    let broker = configured(dir.path(), other, &args);
    fill(&mut broker.guest("web"), 0, 1320);
    broker.kill();
    let mut keys = 1320;
    for _ in 0..3 {
        let broker = compacting(dir.path(), &args);
        assert_eq!(latest(&mut broker.guest("web"), "s.a").len(), keys);
        fill(&mut broker.guest("web"), keys, keys + 1500);
        keys += 1500;
        broker.kill();
    }
    let log = broker_log(&dir.path().join("root")).join("\n");
    assert!(!log.contains("larger than it may be") && !log.contains("are gone"), "{log}");
}

#[test]
fn what_was_compacted_before_is_not_shown_as_the_newest_when_it_is_again() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &SMALL);
    let mut guest = broker.guest("web");
    put(&mut guest, "s.a", "gone", json!(1));
    put(&mut guest, "s.a", "changed", json!("old"));
    let other = put(&mut guest, "s.b", "stays", json!(1));
    assert_eq!(latest(&mut guest, "s.a").len(), 2);
    assert_eq!(broker.stop().0, Some(0));
    let broker = configured(dir.path(), "[[topics]]\ntopic = \"s.b\"\ncompaction = true\n", &SMALL);
    let mut guest = broker.guest("web");
    put(&mut guest, "s.a", "gone", Value::Null);
    let seq = put(&mut guest, "s.a", "changed", json!("new"));
    flood(&broker, &mut guest, seq);
    assert_eq!(broker.stop().0, Some(0));
    let broker = compacting(dir.path(), &SMALL);
    let mut guest = broker.guest("web");
    assert_eq!(latest(&mut guest, "s.a"), BTreeMap::new());
    assert_eq!(latest(&mut guest, "s.b"), BTreeMap::from([("stays".to_owned(), other)]));
}

#[test]
fn what_is_missing_of_a_file_that_is_lost_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &SMALL);
    let mut guest = broker.guest("web");
    let seq = put(&mut guest, "s.a", "k", json!(1));
    flood(&broker, &mut guest, seq);
    remove_view(&broker.root);
    put(&mut guest, "s.a", "other", json!(1));
    let lost = eventually("what is lost", || {
        broker.status()["broker"]["latest"]["lost"].as_u64().filter(|lost| *lost > 0)
    });
    assert!(lost >= seq, "{lost}");
    assert_eq!(latest(&mut guest, "s.a").keys().collect::<Vec<_>>(), ["other"]);
    let shown = String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    assert!(shown.contains(&format!("events lost to the newest per key {lost}")), "{shown}");
    assert_eq!(broker.stop().0, Some(0));
    // One that is new to this process may never have been there.
    remove_view(&dir.path().join("root"));
    let broker = compacting(dir.path(), &SMALL);
    eventually("its log", || broker_log(&broker.root).join("\n").contains("that is not known").then_some(()));
    assert_eq!(broker.status()["broker"]["latest"]["lost"], 0);
}

#[test]
fn one_that_cannot_be_written_holds_nobody_up_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("root")).unwrap();
    let broker = compacting(dir.path(), &SMALL);
    assert_eq!(broker.stop().0, Some(0));
    let path = dir.path().join("root/latest.db");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let broker = compacting(dir.path(), &SMALL);
    let mut guest = broker.guest("web");
    let early = put(&mut guest, "s.a", "early", json!(1));
    let stalled = || broker.status()["broker"]["latest"]["stalled"].as_str().map(str::to_owned);
    eventually("the stall", stalled);
    let ack = guest.ask(r#"{"type":"latest","topic":"s.a"}"#);
    assert_eq!(ack["code"], "view-behind", "{ack}");
    let shown = broker.run(&["status"]);
    assert!(
        String::from_utf8_lossy(&shown.stdout).contains("the newest events per key are not being written")
    );
    // Retention waits for it, and not for ever.
    flood(&broker, &mut guest, early);
    let late = put(&mut guest, "s.a", "late", json!(1));
    std::fs::remove_dir(&path).unwrap();
    let status = || broker.status()["broker"]["latest"]["stalled"].is_null().then_some(());
    eventually("the end of the stall", status);
    assert_eq!(latest(&mut guest, "s.a"), BTreeMap::from([("late".to_owned(), late)]));
    let log = broker_log(&broker.root).join("\n");
    for words in [
        "latest: the newest events per key cannot be written",
        "larger than it may be",
        "latest: written again",
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
}

#[test]
fn the_longest_event_has_a_dead_letter_that_a_kill_leaves_whole() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &[]);
    let (mut guest, mut member) = (broker.guest("web"), broker.guest("member"));
    let joined = member.ask(r#"{"type":"subscribe","topic":"jobs","group":"g"}"#);
    assert_eq!(joined["status"], "ok", "{joined}");
    let payload =
        "x".repeat(61_440 - 54 - "\"id\":\"i\",\"vm\":\"web\",\"topic\":\"jobs\",\"payload\":\"\"}".len());
    let ack =
        guest.ask(json!({"type": "publish", "topic": "jobs", "id": "i", "payload": payload}).to_string());
    assert_eq!(ack["seq"], 1, "{ack}");
    assert_eq!(member.receive().unwrap()["seq"], 1);
    member.send(format!(r#"{{"type":"term","group":"g","seq":1,"reason":"{}"}}"#, "\\\"".repeat(200)));
    let (mut host, _) =
        LocalGuest::greet(&broker.root.join("castra.sock"), "hello vm:host capabilities=bus-v1,host-bus\n");
    let letter = eventually("the letter", || {
        let ack = host.ask(r#"{"type":"latest","topic":"$dlq.g"}"#);
        ack["events"].as_array().unwrap().first().cloned()
    });
    assert_eq!((&letter["key"], &letter["payload"]["event"]["payload"]), (&json!("1"), &json!(payload)));
    let after = put(&mut guest, "s.a", "k", json!(1));
    broker.kill();
    let broker = compacting(dir.path(), &[]);
    // Nothing of the journal is damaged, and nothing behind the letter is cut off.
    assert_eq!(broker.status()["broker"]["journal"]["damage"], json!([]));
    assert_eq!(latest(&mut broker.guest("web"), "s.a"), BTreeMap::from([("k".to_owned(), after)]));
    let (mut host, _) =
        LocalGuest::greet(&broker.root.join("castra.sock"), "hello vm:host capabilities=bus-v1,host-bus\n");
    assert_eq!(host.ask(r#"{"type":"latest","topic":"$dlq.g"}"#)["events"], json!([letter]));
}
