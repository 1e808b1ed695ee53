//! Dead letters have a bound: which go, what is said of them, and that what is purged frees its room.

use crate::metrics::metrics;
use crate::support::{Broker, Guest, broker_log, castra, eventually};
use serde_json::{Value, json};
use std::path::Path;

/// A payload that makes a large letter.
const LARGE: usize = 60_000;

fn member(broker: &Broker, group: &str) -> Guest {
    let mut member = broker.guest("worker");
    let join = json!({"type": "subscribe", "topic": group, "group": group, "max_attempts": 1});
    assert_eq!(member.ask(join.to_string())["status"], "ok");
    member
}

/// Makes dead letters of a group, each of so many bytes and more; the seqs of the events.
fn give_up(publisher: &mut Guest, member: &mut Guest, group: &str, letters: usize, bytes: usize) -> Vec<u64> {
    let publish = json!({"type": "publish", "topic": group, "payload": "y".repeat(bytes)}).to_string();
    let each = (0..letters).map(|_| {
        assert_eq!(publisher.ask(&publish)["status"], "ok");
        let seq = member.receive().unwrap()["seq"].as_u64().unwrap();
        member.send(json!({"type": "term", "group": group, "seq": seq}).to_string());
        seq
    });
    each.collect()
}

/// The seqs of the events of all letters of a group.
fn letters(broker: &Broker, group: &str) -> Vec<u64> {
    let output = broker.run(&["bus", "dlq", "ls", group, "--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let seq = |line: &str| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap();
    text.lines().map(seq).collect()
}

/// Waits until the newest letter is there; all of them.
fn through(broker: &Broker, group: &str, last: u64) -> Vec<u64> {
    eventually("the last letter", || Some(letters(broker, group)).filter(|seqs| seqs.last() == Some(&last)))
}

/// What the view takes on the disk.
fn bytes(root: &Path) -> u64 {
    let file = |name: &str| std::fs::metadata(root.join(name)).map_or(0, |meta| meta.len());
    file("latest.db") + file("latest.db-wal")
}

fn bounded(root: &Path) -> (Broker, String) {
    let args = ["--segment-bytes", "1MiB", "--retain-bytes", "4MiB", "--metrics", "127.0.0.1:0"];
    let broker = Broker::start_with(root, castra(), &args);
    let status = broker.status();
    let mut listeners = status["broker"]["listeners"].as_array().unwrap().iter();
    let at = listeners.find_map(|listener| listener.as_str()?.strip_prefix("metrics:")).unwrap().to_owned();
    (broker, at)
}

#[test]
fn a_group_that_floods_loses_its_oldest_letters_and_no_other_group_does() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, at) = bounded(dir.path());
    let mut publisher = broker.guest("p");
    let (mut quiet, mut flood) = (member(&broker, "quiet"), member(&broker, "flood"));
    let one = give_up(&mut publisher, &mut quiet, "quiet", 1, 10);
    through(&broker, "quiet", one[0]);
    let all = give_up(&mut publisher, &mut flood, "flood", 120, LARGE);
    let last = *all.last().unwrap();
    through(&broker, "flood", last);
    let kept =
        eventually("the oldest to go", || Some(letters(&broker, "flood")).filter(|seqs| seqs.len() <= 17));
    // All of the newest that there is room for: 1 MiB.
    assert!(kept.len() >= 15 && all.ends_with(&kept), "{kept:?}");
    assert_eq!(letters(&broker, "quiet"), one);
    let dropped = all.len() - kept.len();
    let ls = String::from_utf8(broker.run(&["bus", "dlq", "ls"]).stdout).unwrap();
    let want =
        format!("flood  {} dead letters, {dropped} older ones dropped\nquiet  1 dead letter\n", kept.len());
    assert_eq!(ls, want);
    let latest = eventually("the status of that", || {
        let latest = broker.status()["broker"]["latest"].clone();
        (latest["letters_dropped"] == dropped).then_some(latest)
    });
    assert_eq!(latest["letters"], kept.len() + 1);
    let held = latest["letters_bytes"].as_u64().unwrap();
    assert!((15 * LARGE as u64..=1024 * 1024).contains(&held), "{held}");
    let text = String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    assert!(text.contains(&format!("dead letters dropped {dropped}")), "{text}");
    let now = metrics(&at);
    assert_eq!(now["castra_dead_letters"], kept.len() as f64 + 1.0);
    assert_eq!(now["castra_dead_letters_dropped_total"], dropped as f64);
    assert_eq!(now["castra_dead_letters_bytes"], held as f64);
    let said = broker_log(&broker.root);
    let said = said.iter().filter(|line| line.contains("the oldest dead letters were dropped")).count();
    assert_eq!(said, 1, "the first is said at once, the others a minute later");
    eventually("a small file", || (bytes(&broker.root) <= 4 * 1024 * 1024).then_some(()));

    // A view that is made anew from the journal comes to the same.
    assert_eq!(broker.stop().0, Some(0));
    std::fs::remove_file(dir.path().join("latest.db")).unwrap();
    let (broker, _) = bounded(dir.path());
    let again = eventually("the view anew", || Some(letters(&broker, "flood")).filter(|seqs| *seqs == kept));
    assert_eq!(again, kept);

    // A group that is removed leaves its letters, until the operator says so.
    let gone = broker.run(&["bus", "group", "rm", "quiet"]);
    assert_eq!(gone.status.code(), Some(0), "{gone:?}");
    let gone = broker.run(&["bus", "group", "rm", "flood", "--dead-letters"]);
    let text = format!("flood is removed, and {} dead letters of it\n", kept.len());
    assert_eq!((gone.status.code(), String::from_utf8(gone.stdout).unwrap()), (Some(0), text));
    assert!(letters(&broker, "flood").is_empty());
}

#[test]
fn letters_that_are_purged_free_their_room() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut publisher, mut group) = (broker.guest("p"), member(&broker, "g"));
    let all = give_up(&mut publisher, &mut group, "g", 150, LARGE);
    through(&broker, "g", *all.last().unwrap());
    assert!(bytes(&broker.root) > 8 * 1024 * 1024, "{}", bytes(&broker.root));
    let gone = broker.run(&["bus", "dlq", "purge", "g", "--all", "--json"]);
    let said: Value = serde_json::from_slice(&gone.stdout).unwrap();
    assert_eq!((gone.status.code(), &said["purged"]), (Some(0), &json!(all)));
    let left = eventually("its room", || Some(bytes(&broker.root)).filter(|bytes| *bytes <= 2 * 1024 * 1024));
    assert!(left > 0);
    assert_eq!(broker.run(&["bus", "dlq", "ls"]).status.code(), Some(1));
    assert_eq!(broker.run(&["verify"]).status.code(), Some(0));
}
