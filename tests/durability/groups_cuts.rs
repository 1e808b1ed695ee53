//! The broker is killed at every point between an event's last attempt, its dead letter, and that it is done: one letter.
//!
//! A kill leaves the records that were written by then: so each beginning of a whole journal is what some kill leaves.

use crate::faults::copy;
use crate::support::{Broker, Guest, LocalGuest, eventually};
use castra::core::journal::notes::Class;
use castra::core::journal::record::{Decoded, Kind, decode};
use castra::core::journal::segment::{HEADER_BYTES, Header};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SMALL: [&str; 2] = ["--segment-bytes", "1048576"];
const JOIN: &str = r#"{"type":"subscribe","topic":"job","group":"g","from":"earliest","max_attempts":2}"#;

/// What the journal says of the group up to some record.
#[derive(Clone, Debug, Default)]
struct Known {
    events: Vec<u64>,
    letters: BTreeSet<u64>,
    done: BTreeSet<u64>,
    /// Attempts in vain of each event, and whether there may be no more.
    failed: BTreeMap<u64, (usize, bool)>,
}

impl Known {
    fn note(&mut self, body: &[u8]) {
        let note: Value = serde_json::from_slice(body).unwrap();
        let Some(change) = note.get("changed") else { return };
        let number = |value: &Value| value.as_u64().unwrap();
        let list = |name: &str| change[name].as_array().cloned().unwrap_or_default();
        self.done.extend(1..=number(&change["cursor"]));
        for range in list("done") {
            self.done.extend(number(&range[0])..=number(&range[1]));
        }
        for one in list("failed") {
            let failures = one[1].as_array().unwrap();
            let is_last = failures.len() == 2 || failures.last().unwrap()["cause"] == "term";
            self.failed.insert(number(&one[0]), (failures.len(), is_last));
        }
    }

    fn is_dead(&self, seq: u64) -> bool {
        self.failed.get(&seq).is_some_and(|(_, is_last)| *is_last)
    }
}

fn segment(root: &Path) -> PathBuf {
    let entries = fs::read_dir(root.join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let all: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

/// Where each record ends, and what is known by then.
fn boundaries(root: &Path) -> Vec<(u64, Known)> {
    let bytes = fs::read(segment(root)).unwrap();
    let salt = Header::decode(&bytes).unwrap().salt();
    let (mut at, mut known) = (HEADER_BYTES as usize, Known::default());
    let mut all = vec![(HEADER_BYTES, known.clone())];
    while let Decoded::Record(head, body, size) = decode(&bytes[at..], salt) {
        match head.kind {
            Kind::Event => {
                let event: Value = serde_json::from_slice(body).unwrap();
                match event["topic"].as_str().unwrap() {
                    "job" => known.events.push(head.seq),
                    "$dlq.g" => {
                        let key: u64 = event["key"].as_str().unwrap().parse().unwrap();
                        assert!(known.is_dead(key), "a letter before its attempts: {event}");
                        assert!(known.letters.insert(key), "a second letter: {event}");
                    }
                    other => panic!("{other}"),
                }
            }
            Kind::Note(Class::Change) => known.note(body),
            _ => {}
        }
        at += size;
        all.push((at as u64, known.clone()));
    }
    all
}

/// What is done with an event, by its id.
fn handle(member: &mut Guest, event: &Value) {
    assert_eq!((&event["type"], &event["group"]), (&json!("event"), &json!("g")), "{event}");
    let kind = match event["id"].as_str().unwrap() {
        "vain" => "nack",
        "poison" => "term",
        _ => "ack",
    };
    let said = json!({"type": kind, "group": "g", "seq": event["seq"], "delay_ms": 0, "reason": "no"});
    member.send(said.to_string());
}

fn publish(guest: &mut Guest, topic: &str, id: &str) -> u64 {
    let ack = guest.ask(json!({"type": "publish", "topic": topic, "id": id}).to_string());
    ack["seq"].as_u64().unwrap_or_else(|| panic!("{ack}"))
}

/// The group has done all up to this event.
fn settles(broker: &Broker, seq: u64) {
    let mut asks = broker.guest("asks");
    eventually("the group at its end", || {
        let stands = asks.ask(r#"{"type":"group","group":"g"}"#);
        let left = ["held", "waiting", "delayed", "dead"].map(|name| &stands[name]);
        (stands["cursor"].as_u64()? >= seq && json!(left) == json!([0, 0, 0, 0])).then_some(())
    });
}

/// Runs the whole of it, and kills the broker behind it.
fn run(root: &Path) {
    let broker = Broker::start_args(root, &SMALL);
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("m"));
    assert_eq!(member.ask(JOIN)["status"], "ok");
    let mut last = 0;
    for id in ["done", "vain", "poison", "last"] {
        last = publish(&mut publisher, "job", id);
        let event = member.receive().unwrap();
        handle(&mut member, &event);
        if id == "vain" {
            let event = member.receive().unwrap();
            assert_eq!(event["attempt"], 2, "{event}");
            handle(&mut member, &event);
        }
    }
    settles(&broker, last);
    // All of it is durable when this is.
    let seq = publish(&mut publisher, "job", "behind");
    let event = member.receive().unwrap();
    assert_eq!(event["seq"], seq);
    member.send(json!({"type": "ack", "group": "g", "seq": seq, "confirm": true}).to_string());
    assert_eq!(member.receive().unwrap()["ack"], "ack");
    broker.kill();
}

#[test]
fn wherever_the_broker_is_killed_what_is_given_up_has_one_letter_and_comes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    run(&whole);
    // What is made of the journal again.
    fs::remove_dir_all(whole.join("logs")).unwrap();
    for entry in fs::read_dir(&whole).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.file_name().unwrap().to_str().unwrap().starts_with("latest.db") {
            fs::remove_file(entry).unwrap();
        }
    }
    let cuts = boundaries(&whole);
    // There are places between each two of these: the attempts, the letter, that it is done.
    let between = |is: &dyn Fn(&Known, u64) -> bool| {
        [2, 3].iter().all(|seq| cuts.iter().any(|(_, known)| known.is_dead(*seq) && is(known, *seq)))
    };
    assert!(between(&|known, seq| !known.letters.contains(&seq) && !known.done.contains(&seq)));
    assert!(between(&|known, seq| known.letters.contains(&seq) && !known.done.contains(&seq)));
    assert!(between(&|known, seq| known.letters.contains(&seq) && known.done.contains(&seq)));
    println!("{} cuts", cuts.len());
    for (n, (end, known)) in cuts.iter().enumerate() {
        let root = dir.path().join(format!("cut{n}"));
        copy(&whole, &root);
        let path = segment(&root);
        let size = fs::metadata(&path).unwrap().len();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&vec![0; (size - end) as usize], *end).unwrap();
        check(&root, known);
        fs::remove_dir_all(&root).unwrap();
    }
}

/// A broker that goes on there: what is left is handled as it was, and no more.
fn check(root: &Path, known: &Known) {
    let broker = Broker::start_args(root, &SMALL);
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("m"));
    assert_eq!(member.ask(JOIN)["status"], "ok");
    let end = publish(&mut publisher, "job", "end");
    let mut vain = BTreeSet::new();
    let mut left: BTreeSet<u64> = known.events.iter().copied().chain([end]).collect();
    left.retain(|seq| !known.done.contains(seq) && !known.is_dead(*seq));
    while !left.is_empty() {
        let event = member.receive().expect("a delivery");
        let seq = event["seq"].as_u64().unwrap();
        assert!(left.contains(&seq), "{event} is done: {known:?}");
        let before = known.failed.get(&seq).map_or(0, |(failures, _)| *failures);
        let attempt = 1 + before + usize::from(vain.contains(&seq));
        assert_eq!(event["attempt"], attempt, "{event}: {known:?}");
        if event["id"] != "vain" || attempt == 2 {
            left.remove(&seq);
        }
        vain.insert(seq);
        handle(&mut member, &event);
    }
    settles(&broker, end);
    assert_eq!(member.ask(r#"{"type":"heartbeat"}"#)["ack"], "heartbeat", "nothing came again");
    // The letters that there are, each behind the other, and then something else.
    let (mut host, _) =
        LocalGuest::greet(&broker.root.join("castra.sock"), "hello vm:host capabilities=bus-v1,host-bus\n");
    let joined = host.ask(r#"{"type":"subscribe","topics":["$dlq.g","fin"],"sub":"s","from":"earliest"}"#);
    assert_eq!(joined["status"], "ok", "{joined}");
    publish(&mut publisher, "fin", "fin");
    let mut letters = Vec::new();
    loop {
        let event = host.receive();
        if event["topic"] == "fin" {
            break;
        }
        letters.push(event["key"].as_str().unwrap().parse::<u64>().unwrap());
    }
    letters.sort_unstable();
    let want: Vec<u64> = known.events.iter().copied().filter(|seq| is_hopeless(&broker, *seq)).collect();
    assert_eq!(letters, want, "{known:?}");
    assert_eq!(broker.status()["broker"]["journal"]["damage"], json!([]));
}

fn is_hopeless(broker: &Broker, seq: u64) -> bool {
    let line = eventually("its line", || broker.log("bus").into_iter().find(|line| line["seq"] == seq));
    matches!(line["id"].as_str().unwrap(), "vain" | "poison")
}
