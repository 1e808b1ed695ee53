//! The newest event of each key through real sockets: `latest`, `from: "state"`, snapshots; and what they refuse.

use crate::subscribe::{event, is_quiet, subscribe};
use crate::support::{Broker, Guest, LocalGuest, broker_log, castra, eventually};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

const HOST: &str = "hello vm:host capabilities=bus-v1,host-bus\n";

/// A broker that compacts these topics.
pub fn compacting(dir: &Path, topics: &[&str]) -> Broker {
    let text: String =
        topics.iter().map(|topic| format!("[[topics]]\ntopic = {topic:?}\ncompaction = true\n")).collect();
    configured(dir, &text)
}

/// A broker with this castra.toml.
pub fn configured(dir: &Path, text: &str) -> Broker {
    let config = dir.join("castra.toml");
    std::fs::write(&config, text).unwrap();
    let mut command = castra();
    command.arg("--config").arg(&config);
    Broker::start_with(&dir.join("root"), command, &[])
}

/// Publishes and returns the seq.
fn put(guest: &mut Guest, topic: &str, key: &str, payload: Value) -> u64 {
    let ack =
        guest.ask(json!({"type": "publish", "topic": topic, "key": key, "payload": payload}).to_string());
    ack["seq"].as_u64().unwrap_or_else(|| panic!("{ack}"))
}

/// Asks for all of a topic, page by page: keys and payloads, in their order.
pub fn latest(guest: &mut Guest, topic: &str) -> Vec<(String, Value)> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let ack = guest.ask(json!({"type": "latest", "topic": topic, "after": after}).to_string());
        assert_eq!((&ack["ack"], &ack["status"]), (&json!("latest"), &json!("ok")), "{ack}");
        for event in ack["events"].as_array().unwrap() {
            assert_eq!(event["topic"], topic, "{event}");
            after = event["key"].as_str().unwrap().to_owned();
            all.push((after.clone(), event["payload"].clone()));
        }
        if ack["more"] == false {
            return all;
        }
    }
}

#[test]
fn the_newest_of_each_key_is_answered_whole() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &["cfg.>", "one"]);
    let mut guest = broker.guest("web");
    put(&mut guest, "cfg.a", "x", json!(1));
    put(&mut guest, "cfg.a", "\"ü\\", json!({"payload": null}));
    put(&mut guest, "cfg.b", "x", json!("other"));
    let seq = put(&mut guest, "cfg.a", "x", json!({"n": 2}));
    put(&mut guest, "cfg.a", "gone", json!(1));
    put(&mut guest, "cfg.a", "gone", json!(null));
    // What has no key is no state.
    guest.ask(r#"{"type":"publish","topic":"cfg.a","payload":9}"#);
    let want = [("\"ü\\".to_owned(), json!({"payload": null})), ("x".to_owned(), json!({"n": 2}))];
    assert_eq!(latest(&mut guest, "cfg.a"), want);
    // The whole event, as it stands in the log.
    let ack = guest.ask(r#"{"type":"latest","topic":"cfg.a","keys":["x","nobody","gone","x"]}"#);
    let line = eventually("its line", || broker.log("bus").into_iter().find(|line| line["seq"] == seq));
    assert_eq!(
        (&ack["events"], &ack["more"], &ack["through"]),
        (&json!([line]), &json!(false), &json!(7)),
        "{ack}"
    );
    let ack = guest.ask(r#"{"type":"latest","topic":"cfg.a","keys":["x"],"after":"x"}"#);
    assert_eq!(ack["events"], json!([]), "{ack}");
    assert_eq!(latest(&mut guest, "one"), []);
    assert_eq!(latest(&mut guest, "$dlq.g".replace('$', "cfg.").as_str()), []);
    let ack = guest.ask(r#"{"type":"latest_topics","topic":">"}"#);
    let want = json!([{"topic":"cfg.a","keys":2,"changed":6},{"topic":"cfg.b","keys":1,"changed":3}]);
    assert_eq!((&ack["topics"], &ack["more"]), (&want, &json!(false)), "{ack}");
    // After a restart as well.
    assert_eq!(broker.stop().0, Some(0));
    let broker = compacting(dir.path(), &["cfg.>", "one"]);
    assert_eq!(latest(&mut broker.guest("web"), "cfg.a").len(), 2);
}

#[test]
fn what_cannot_be_answered_has_its_code() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &["cfg.>"]);
    let mut guest = broker.guest("web");
    let keys = vec!["k"; 1025];
    for (fields, code) in [
        (json!({"type":"latest"}), "bad-field"),
        (json!({"type":"latest","topic":7}), "bad-field"),
        (json!({"type":"latest","topic":"a..b"}), "bad-topic"),
        (json!({"type":"latest","topic":"cfg.*"}), "bad-topic"),
        (json!({"type":"latest","topic":"other"}), "not-compacted"),
        (json!({"type":"latest","topic":"cfg.a.snapshot"}), "not-compacted"),
        (json!({"type":"latest","topic":"cfg.a","keys":"x"}), "bad-field"),
        (json!({"type":"latest","topic":"cfg.a","keys":keys}), "too-many-keys"),
        (json!({"type":"latest","topic":"$dlq.g"}), "forbidden-topic"),
        (json!({"type":"latest","topic":"vm:db"}), "forbidden-topic"),
        (json!({"type":"latest_topics","topic":"$dlq.>"}), "forbidden-topic"),
        (json!({"type":"latest_topics","topic":"a.>.b"}), "bad-pattern"),
        (json!({"type":"snapshot","topic":"cfg.a"}), "host-only"),
        (json!({"type":"subscribe","topic":"other","from":"state"}), "not-compacted"),
        (json!({"type":"subscribe","topic":"cfg.a","group":"g","from":"state"}), "bad-from"),
        (json!({"type":"group_create","topic":"cfg.a","group":"g","from":"state"}), "bad-from"),
        (json!({"type":"group_seek","group":"g","from":"state"}), "bad-from"),
    ] {
        let ack = guest.ask(fields.to_string());
        assert_eq!((&ack["status"], &ack["code"]), (&json!("error"), &json!(code)), "{fields:.100}: {ack}");
        assert_eq!(ack["ack"], fields["type"], "{ack}");
    }
    let ack = guest.ask(r#"{"type":"latest","topic":"other"}"#);
    assert!(ack["reason"].as_str().unwrap().contains("[[topics]]"), "{ack}");
    is_quiet(&mut guest);
    let (mut host, _) = LocalGuest::greet(&broker.root.join("castra.sock"), HOST);
    for (topic, code) in [("other", "not-compacted"), ("$dlq.g", "bad-topic"), ("a.>", "bad-topic")] {
        let ack = host.ask(&json!({"type": "snapshot", "topic": topic}).to_string());
        assert_eq!(ack["code"], code, "{ack}");
    }
}

#[test]
fn without_compacted_topics_there_is_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let broker = configured(dir.path(), "");
    let mut guest = broker.guest("web");
    put(&mut guest, "a", "k", json!(1));
    let threads = std::fs::read_dir(format!("/proc/{}/task", broker.pid())).unwrap();
    let names: Vec<String> =
        threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).unwrap()).collect();
    assert!(names.iter().any(|name| name.starts_with("castra-logs")), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("castra-latest")), "{names:?}");
    assert!(!broker.root.join("latest.db").exists());
    // A pattern begins live.
    let ack = subscribe(&mut guest, r#""topic":">","from":"state""#);
    assert_eq!((&ack["next_seq"], &ack["state"]), (&json!(1), &json!(1)), "{ack}");
    assert_eq!(guest.receive().unwrap(), json!({"type":"state","sub":">","through":1}));
    is_quiet(&mut guest);
}

/// A number of its own for each step.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

#[test]
fn it_is_what_a_map_would_be_whatever_happens() {
    let dir = tempfile::tempdir().unwrap();
    let topics = ["s.a", "s.b.c", "plain", "other", "s.x.snapshot"];
    let mut model: BTreeMap<(&str, String), Value> = BTreeMap::new();
    let mut rng = Rng(7);
    for round in 0..4 {
        let broker = compacting(dir.path(), &["s.>", "plain"]);
        let mut guest = broker.guest("web");
        for step in 0..400u64 {
            let topic = topics[rng.below(5) as usize];
            let key = format!("k{}", rng.below(40));
            // Some are so large that a topic does not fit a frame.
            let payload = match rng.below(4) {
                0 => Value::Null,
                1 => json!("x".repeat(rng.below(20_000) as usize)),
                _ => json!({"round": round, "step": step}),
            };
            put(&mut guest, topic, &key, payload.clone());
            match payload {
                Value::Null => _ = model.remove(&(topic, key)),
                payload => _ = model.insert((topic, key), payload),
            }
            if rng.below(60) == 0 {
                for topic in &topics[..3] {
                    let own = model.iter().filter(|((of, _), _)| of == topic);
                    let want: Vec<_> =
                        own.map(|((_, key), payload)| (key.clone(), payload.clone())).collect();
                    assert_eq!(latest(&mut guest, topic), want, "{topic}, step {step}");
                }
            }
        }
        // Whatever way it ended.
        if round % 2 == 0 {
            broker.kill()
        } else {
            assert_eq!(broker.stop().0, Some(0))
        }
        if round == 1 {
            std::fs::remove_file(dir.path().join("root/latest.db")).unwrap();
        }
        if round == 2 {
            // What SQLite has beside it would put it right again.
            std::fs::remove_file(dir.path().join("root/latest.db-wal")).unwrap();
            std::fs::write(
                dir.path().join("root/latest.db"),
                "no database, and long enough for a header".repeat(99),
            )
            .unwrap();
        }
    }
    let log = broker_log(&dir.path().join("root")).join("\n");
    assert!(log.contains("it was put aside"), "{log}");
}

#[test]
fn a_subscription_from_state_goes_on_live_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &["s.>"]);
    let mut guest = broker.guest("web");
    let mut want = BTreeMap::new();
    for n in 0..3000u64 {
        let key = format!("k{}", n % 1000);
        want.insert(key.clone(), put(&mut guest, "s.a", &key, json!({"n": n, "fill": "x".repeat(200)})));
    }
    put(&mut guest, "s.a", "k7", json!(null));
    want.remove("k7");
    let through = put(&mut guest, "elsewhere", "k1", json!(0));
    let mut other = broker.guest("other");
    let ack = subscribe(&mut other, r#""topic":">","from":"state","sub":"all""#);
    assert_eq!(ack["state"], through, "{ack}");
    // Changed while it is being read, or not yet: each key is as new as it was, or comes again with its change.
    put(&mut guest, "s.a", "k3", json!("new"));
    put(&mut guest, "s.a", "new", json!("new"));
    let mut seen = BTreeMap::new();
    let (mut last, mut is_live) = (0, false);
    while !seen.contains_key("new") {
        let frame = other.receive().unwrap();
        if frame["type"] == "state" {
            assert_eq!(frame, json!({"type":"state","sub":"all","through":through}));
            is_live = true;
            continue;
        }
        let seq = frame["seq"].as_u64().unwrap();
        assert!(seq > last, "{frame}");
        assert_eq!(is_live, seq > through, "{frame}");
        last = seq;
        seen.insert(frame["key"].as_str().unwrap().to_owned(), seq);
    }
    want.insert("k3".into(), through + 1);
    want.insert("new".into(), through + 2);
    assert_eq!(seen, want);
    assert_eq!(put(&mut guest, "s.b", "k", json!(1)), event(&mut other, "all"));
    // A slow one is sent it in pieces, and may end it.
    let mut slow = broker.guest("slow");
    subscribe(&mut slow, r#""topic":"s.*","from":"state","sub":"slow""#);
    slow.send(r#"{"type":"unsubscribe","sub":"slow"}"#);
    while slow.receive().unwrap()["ack"] != "unsubscribe" {}
    is_quiet(&mut slow);
}

#[test]
fn a_snapshot_is_published_when_it_is_asked_for_and_when_it_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[[topics]]\ntopic = \"s.>\"\ncompaction = true\nsnapshot_every = \"1s\"\n\
                [[topics]]\ntopic = \"t\"\ncompaction = true\n";
    let broker = configured(dir.path(), text);
    let mut guest = broker.guest("web");
    for n in 0..300 {
        put(&mut guest, "t", &format!("k{n:03}"), json!({"n": n, "fill": "x".repeat(1000)}));
    }
    put(&mut guest, "t", "k000", json!(null));
    let mut other = broker.guest("other");
    subscribe(&mut other, r#""topic":"t.snapshot""#);
    let (mut host, _) = LocalGuest::greet(&broker.root.join("castra.sock"), HOST);
    let ack = host.ask(r#"{"type":"snapshot","topic":"t"}"#);
    let (first, last) = (ack["first_seq"].as_u64().unwrap(), ack["last_seq"].as_u64().unwrap());
    assert_eq!((&ack["keys"], &ack["through"], last - first), (&json!(299), &json!(301), 299), "{ack}");
    for n in 1..300 {
        let event = other.receive().unwrap();
        let want = json!({"key": format!("k{n:03}"), "seq": n + 1, "ts": event["payload"]["ts"],
                          "payload": {"n": n, "fill": "x".repeat(1000)}});
        assert_eq!((&event["payload"], &event["vm"]), (&want, &json!("host")), "{event}");
        assert_eq!((&event["key"], &event["seq"]), (&want["key"], &json!(first + n - 1)), "{event}");
    }
    let end = other.receive().unwrap();
    assert_eq!(
        (&end["payload"], &end["seq"]),
        (&json!({"end": true, "keys": 299, "through": 301}), &json!(last))
    );
    assert_eq!(end.get("key"), None);
    // On the schedule: once, as nothing changes.
    subscribe(&mut other, r#""topic":"s.>""#);
    put(&mut guest, "s.a", "k", json!(7));
    assert_eq!(other.receive().unwrap()["topic"], "s.a");
    let event = other.receive().unwrap();
    assert_eq!(
        (&event["topic"], &event["payload"]["payload"]),
        (&json!("s.a.snapshot"), &json!(7)),
        "{event}"
    );
    assert_eq!(other.receive().unwrap()["payload"]["keys"], 1);
    put(&mut guest, "s.b", "k", json!(8));
    let topics: Vec<Value> = (0..3).map(|_| other.receive().unwrap()["topic"].clone()).collect();
    assert_eq!(topics, ["s.b", "s.b.snapshot", "s.b.snapshot"]);
    // A topic that is too long for one is passed by without a word, though it comes before the next by its name.
    put(&mut guest, &format!("s.{}", "c".repeat(250)), "k", json!(9));
    put(&mut guest, "s.d", "k", json!(9));
    let topics: Vec<Value> = (0..4).map(|_| other.receive().unwrap()["topic"].clone()).collect();
    assert_eq!(topics[1..], ["s.d", "s.d.snapshot", "s.d.snapshot"]);
    let log = broker_log(&broker.root);
    assert!(!log.iter().any(|line| line.contains("no snapshot")), "{log:?}");
    // An empty topic has an end, too.
    let ack = host.ask(r#"{"type":"snapshot","topic":"s.none"}"#);
    assert_eq!((&ack["keys"], &ack["first_seq"]), (&json!(0), &ack["last_seq"]), "{ack}");
}

#[test]
fn more_topics_are_read_for_and_fewer_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &["a"]);
    let mut guest = broker.guest("web");
    for topic in ["a", "b", "c"] {
        put(&mut guest, topic, "k", json!(topic));
        put(&mut guest, topic, "gone", json!(topic));
    }
    put(&mut guest, "b", "gone", json!(null));
    assert_eq!(broker.stop().0, Some(0));
    let broker = compacting(dir.path(), &["a", "b"]);
    let mut guest = broker.guest("web");
    assert_eq!(latest(&mut guest, "b"), [("k".to_owned(), json!("b"))]);
    assert_eq!(latest(&mut guest, "a").len(), 2);
    let refused = guest.ask(r#"{"type":"latest","topic":"c"}"#);
    assert_eq!(refused["code"], "not-compacted");
    assert_eq!(broker.stop().0, Some(0));
    let broker = compacting(dir.path(), &["b"]);
    let mut guest = broker.guest("web");
    assert_eq!(guest.ask(r#"{"type":"latest","topic":"a"}"#)["code"], "not-compacted");
    put(&mut guest, "a", "gone", json!(null));
    assert_eq!(broker.stop().0, Some(0));
    // It is what it would be if it had never been left out.
    let broker = compacting(dir.path(), &["*"]);
    let mut guest = broker.guest("web");
    assert_eq!(latest(&mut guest, "a"), [("k".to_owned(), json!("a"))]);
    assert_eq!(latest(&mut guest, "c").len(), 2);
    let log = broker_log(&broker.root).join("\n");
    eventually("words", || log.contains("more topics are compacted").then_some(()));
}

#[test]
fn the_commands_print_what_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &["cfg"]);
    let mut guest = broker.guest("web");
    put(&mut guest, "cfg", "b", json!({"n": 1}));
    put(&mut guest, "cfg", "a", json!("x"));
    let run = |args: &[&str]| {
        let output = broker.run(args);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let raw = |args: &[&str]| run(&[&["bus", "latest", "cfg", "-o", "raw"], args].concat());
    assert_eq!(raw(&[]), (Some(0), "\"x\"\n{\"n\":1}\n".into(), String::new()));
    assert_eq!(raw(&["b", "nobody"]), (Some(0), "{\"n\":1}\n".into(), String::new()));
    assert_eq!(raw(&["nobody"]), (Some(1), String::new(), String::new()));
    let (code, out, _) = run(&["bus", "latest", "cfg", "a", "--utc"]);
    assert!(code == Some(0) && out.ends_with("Z 2 web a \"x\"\n"), "{out}");
    let (_, out, _) = run(&["bus", "latest", "cfg", "a", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["key"], "a");
    let (code, _, err) = run(&["bus", "latest", "other"]);
    assert!(code == Some(78) && err.starts_with("castra: not-compacted: "), "{err}");
    let (code, _, err) = run(&["bus", "latest", "a.*", "--json"]);
    let error: Value = serde_json::from_str(&err).unwrap();
    assert_eq!((code, &error["code"]), (Some(65), &json!("bad-topic")), "{err}");
    let (code, out, _) = run(&["bus", "snapshot", "cfg"]);
    assert_eq!((code, &*out), (Some(0), "2 keys published to cfg.snapshot, as events 3 to 5\n"));
    let (code, out, _) = run(&["bus", "snapshot", "cfg", "--json"]);
    let want = json!({"schema":1,"topic":"cfg.snapshot","keys":2,"through":5,"first_seq":6,"last_seq":8});
    assert_eq!((code, serde_json::from_str::<Value>(&out).unwrap()), (Some(0), want));
    let (code, out, _) = run(&["bus", "subscribe", "cfg", "--from", "state", "-c", "2", "-o", "raw"]);
    assert_eq!((code, &*out), (Some(0), "{\"n\":1}\n\"x\"\n"));
    assert_eq!(broker.stop().0, Some(0));
    let output =
        castra().arg("--state-root").arg(dir.path().join("root")).args(["bus", "latest", "cfg"]).output();
    assert_eq!(output.unwrap().status.code(), Some(69));
}

/// What version 2 of the tables has and version 1 had not.
const BACK_TO_1: &str = "
DROP TABLE ended;
DROP INDEX topic_forgotten;
ALTER TABLE topic DROP COLUMN forgotten;
DELETE FROM fact WHERE name = 'since';
PRAGMA auto_vacuum = NONE;
PRAGMA user_version = 1;
VACUUM;
";

#[test]
fn a_file_of_version_1_is_migrated_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root/latest.db");
    let broker = compacting(dir.path(), &["cfg.>"]);
    let mut guest = broker.guest("web");
    guest.ask(r#"{"type":"publish","topic":"cfg.a","payload":1}"#);
    put(&mut guest, "cfg.a", "new", json!(2));
    assert_eq!(broker.stop().0, Some(0));
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch(BACK_TO_1).unwrap();
    // Retention took its event: it stands nowhere else.
    let line = br#"{"seq":1,"ts":1,"id":"x","vm":"web","topic":"cfg.a","key":"old","payload":1}"#;
    db.execute(
        "INSERT INTO latest SELECT 1, topic, 'old', ?1, ?2 FROM latest WHERE key = 'new'",
        rusqlite::params![line, crc32c::crc32c(line)],
    )
    .unwrap();
    drop(db);
    let broker = compacting(dir.path(), &["cfg.>"]);
    let mut guest = broker.guest("web");
    let want = [("new".to_owned(), json!(2)), ("old".to_owned(), json!(1))];
    assert_eq!(latest(&mut guest, "cfg.a"), want);
    // Its pages can be given back, and a backup of it is one as well.
    let number = |path: &Path, pragma: &str| {
        let db = rusqlite::Connection::open(path).unwrap();
        db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).unwrap()
    };
    let backup = dir.path().join("backup");
    let mut command = castra();
    command.arg("backup").arg(&backup).arg("--state-root").arg(dir.path().join("root"));
    assert!(command.status().unwrap().success());
    assert_eq!(broker.stop().0, Some(0));
    for path in [path, backup.join("latest.db")] {
        assert_eq!((number(&path, "user_version"), number(&path, "auto_vacuum")), (2, 2), "{path:?}");
    }
}

#[test]
fn a_backup_of_a_file_of_version_1_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &["cfg.>"]);
    put(&mut broker.guest("web"), "cfg.a", "k", json!(2));
    assert_eq!(broker.stop().0, Some(0));
    let db = rusqlite::Connection::open(dir.path().join("root/latest.db")).unwrap();
    db.execute_batch(BACK_TO_1).unwrap();
    drop(db);
    let backup = dir.path().join("backup");
    let mut command = castra();
    command.arg("backup").arg(&backup).arg("--state-root").arg(dir.path().join("root"));
    assert!(command.status().unwrap().success());
    let db = rusqlite::Connection::open(backup.join("latest.db")).unwrap();
    let rows: i64 = db.query_row("SELECT count(*) FROM latest", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1);
}

/// A `sqlite3` shell or a backup tool: it is said, the rest goes on, and the broker ends in time.
#[test]
fn a_file_that_somebody_else_has_locked_is_said_and_holds_up_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &["s.>"]);
    let mut guest = broker.guest("p");
    put(&mut guest, "s.a", "k", json!(1));
    assert_eq!(latest(&mut guest, "s.a").len(), 1);
    let lock = rusqlite::Connection::open(broker.root.join("latest.db")).unwrap();
    lock.busy_timeout(crate::support::PATIENCE).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    put(&mut guest, "s.a", "k", json!(2));
    let shown = |broker: &Broker| broker.status()["broker"]["latest"]["stalled"].clone();
    let why = eventually("it is said", || Some(shown(&broker)).filter(|why| !why.is_null()));
    assert!(why.as_str().unwrap().contains("locked"), "{why}");
    // Publishing goes on, and so does everything else that needs no newest event.
    put(&mut guest, "s.a", "k", json!(3));
    let (code, time) = broker.stop();
    assert!(code == Some(0) && time < std::time::Duration::from_secs(5), "{code:?} {time:?}");
    drop(lock);
    let broker = compacting(dir.path(), &["s.>"]);
    let newest = latest(&mut broker.guest("q"), "s.a");
    assert_eq!(newest, [("k".to_owned(), json!(3))]);
}

/// Whoever asks meanwhile hears all of it or that it is not there yet; and what was found of the old file is not held
/// against the new one.
#[test]
fn a_view_that_is_made_anew_is_not_taken_for_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &["s.>"]);
    let mut guest = broker.guest("p");
    for i in 0..50 {
        put(&mut guest, "s.a", &format!("k{i}"), json!(i));
    }
    let stop = AtomicBool::new(false);
    let asides = || {
        let names = std::fs::read_dir(&broker.root).unwrap().map(|one| one.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().starts_with("latest.db.aside-")).count() / 3
    };
    std::thread::scope(|scope| {
        let askers = (0..4).map(|n| {
            let (stop, mut guest) = (&stop, broker.guest(&format!("q{n}")));
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    let ack = guest.ask(r#"{"type":"latest","topic":"s.a"}"#);
                    match ack["status"] == "ok" {
                        true => assert_eq!(ack["events"].as_array().unwrap().len(), 50, "{ack}"),
                        false => assert_eq!(ack["code"], "view-behind", "{ack}"),
                    }
                }
            })
        });
        let askers: Vec<_> = askers.collect();
        for round in 1..=3 {
            let db = rusqlite::Connection::open(broker.root.join("latest.db")).unwrap();
            db.busy_timeout(crate::support::PATIENCE).unwrap();
            db.execute("UPDATE latest SET crc = crc + 1 WHERE key = 'k7'", []).unwrap();
            drop(db);
            eventually("it is put aside", || (asides() >= round).then_some(()));
            put(&mut guest, "s.a", "k7", json!(round));
            eventually("it is there again", || {
                (guest.ask(r#"{"type":"latest","topic":"s.a"}"#)["status"] == "ok").then_some(())
            });
            assert_eq!(asides(), round);
        }
        stop.store(true, SeqCst);
        askers.into_iter().for_each(|asker| asker.join().unwrap());
    });
}

/// A subscriber waits for a state that cannot be read, and the broker does not turn in circles for it.
#[test]
fn a_state_that_cannot_be_read_is_not_tried_without_a_pause() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &["s.>"]);
    let mut guest = broker.guest("p");
    put(&mut guest, "s.a", "k", json!(1));
    let path = broker.root.join("latest.db");
    eventually("it is written", || path.exists().then_some(()));
    std::fs::rename(&path, dir.path().join("gone.db")).unwrap();
    let mut reader = broker.guest("r");
    reader.ask(r#"{"type":"subscribe","topic":"s.>","sub":"s","from":"state"}"#);
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", broker.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (before, begun) = (ticks(), std::time::Instant::now());
    // As long as the time is: a broker that waits needs next to none.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let spent = std::time::Duration::from_millis(10 * (ticks() - before));
    assert!(spent < begun.elapsed() / 5, "{spent:?} of {:?}", begun.elapsed());
    // When it is there again the state comes.
    put(&mut guest, "s.a", "k", json!(2));
    let newest = std::iter::from_fn(|| reader.receive()).find(|frame| frame["seq"] == 2);
    assert_eq!(newest.expect("the newest event")["key"], "k");
}
