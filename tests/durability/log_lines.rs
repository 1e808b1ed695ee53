//! Each event once in each log that it belongs to, whatever happens to the files meanwhile.

use crate::load::{log_text, logs_reach, publish_one};
use crate::support::{Broker, castra, eventually};
use std::fs;

fn publish(broker: &Broker, vm: &str, topic: &str, payload: u32) -> u64 {
    let ack =
        broker.guest(vm).ask(format!("{{\"type\":\"publish\",\"topic\":\"{topic}\",\"payload\":{payload}}}"));
    ack["seq"].as_u64().unwrap_or_else(|| panic!("{ack}"))
}

fn seqs(broker: &Broker, log: &str) -> Vec<u64> {
    broker.log(log).iter().map(|event| event["seq"].as_u64().unwrap()).collect()
}

#[test]
fn mail_stands_once_in_each_log() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&dir.path().join("state"));
    drop(broker.guest("web"));
    // Each in a round of its own: a log that is made in a round is not there for mail of the same round.
    for (topic, n) in ["vm:web", "vm:a", "vm:nobody", "vm:bus", "vm:host", "vm:web.log", "t"].iter().zip(0..)
    {
        logs_reach(&broker, publish(&broker, "a", topic, n));
    }
    assert_eq!(seqs(&broker, "bus"), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(seqs(&broker, "a"), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(seqs(&broker, "web"), [1]);
    let names: Vec<_> =
        fs::read_dir(broker.root.join("logs/bus")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn a_log_that_is_removed_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&dir.path().join("state"));
    logs_reach(&broker, publish(&broker, "a", "t", 1));
    fs::remove_file(broker.root.join("logs/bus/a.log")).unwrap();
    logs_reach(&broker, publish(&broker, "a", "t", 2));
    assert_eq!((seqs(&broker, "a"), seqs(&broker, "bus")), (vec![2], vec![1, 2]));
    fs::remove_dir_all(broker.root.join("logs/bus")).unwrap();
    fs::create_dir(broker.root.join("logs/bus")).unwrap();
    logs_reach(&broker, publish(&broker, "a", "t", 3));
    assert_eq!((seqs(&broker, "a"), seqs(&broker, "bus")), (vec![3], vec![3]));
    broker.kill();
}

#[test]
fn logs_that_cannot_be_written_stop_no_publisher_and_go_on_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&dir.path().join("state"));
    let root = broker.root.clone();
    logs_reach(&broker, publish(&broker, "a", "t", 1));
    let wall = root.join("logs/bus/odd.log");
    fs::create_dir(&wall).unwrap();
    publish(&broker, "odd", "t", 2);
    eventually("the stall", || broker.status()["broker"]["logs_stalled"].as_str().map(str::to_owned));
    for n in 3..500 {
        publish_in(&broker, n);
    }
    let host = broker.run(&["bus", "publish", "t", "7"]);
    let said = String::from_utf8_lossy(&host.stderr).into_owned();
    assert_eq!(host.status.code(), Some(75), "{said}");
    assert!(said.contains("logs-behind") && said.contains("seq="), "{said}");
    let mut lines = castra();
    lines.arg("--state-root").arg(&root).args(["bus", "publish", "--jsonl", "--json", "--file"]);
    let file = dir.path().join("lines");
    fs::write(&file, "{}\n{\"topic\":\"..\"}\n{\"id\":\"x\"}\n").unwrap();
    let both = lines.arg(&file).output().unwrap();
    fs::write(&file, "{}\n{}\n").unwrap();
    let good = lines.output().unwrap();
    for (output, exit, stored, code, says) in [
        (both, 65, 2, "lines-refused", "2 of them not in the logs"),
        (good, 75, 2, "logs-behind", "do not send"),
    ] {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let object: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(
            (output.status.code(), &object["code"], &object["stored"]),
            (Some(exit), &code.into(), &stored.into()),
            "{said}"
        );
        assert!(said.contains(says), "{said}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).matches("\"seq\":").count(), 2);
    }
    fs::remove_dir(&wall).unwrap();
    let last = publish_one(&broker, "last");
    logs_reach(&broker, last);
    eventually("the end of the stall", || broker.status()["broker"]["logs_stalled"].is_null().then_some(()));
    assert_eq!(seqs(&broker, "bus"), (1..=last).collect::<Vec<_>>());
    assert_eq!((seqs(&broker, "odd"), seqs(&broker, "host")), (vec![2], (last - 5..last).collect()));
    assert_eq!(broker.stop().0, Some(0));
    let before = log_text(&root, "bus");
    let broker = Broker::start(&root);
    assert!(log_text(&root, "bus") == before);
    drop(broker);
}

fn publish_in(broker: &Broker, n: u32) {
    publish(broker, if n.is_multiple_of(2) { "a" } else { "b" }, "t", n);
}

/// A broker that stops while its logs cannot be written says that they have less than the journal.
#[test]
fn a_stop_during_a_stall_loses_no_line() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start(&root);
    let wall = root.join("logs/bus/odd.log");
    fs::create_dir(&wall).unwrap();
    publish(&broker, "a", "t", 1);
    publish(&broker, "odd", "t", 2);
    eventually("the stall", || broker.status()["broker"]["logs_stalled"].as_str().map(str::to_owned));
    publish(&broker, "a", "t", 3);
    assert_eq!(broker.stop().0, Some(0));
    fs::remove_dir(&wall).unwrap();
    let broker = Broker::start(&root);
    assert_eq!((seqs(&broker, "bus"), seqs(&broker, "odd")), (vec![1, 2, 3], vec![2]));
    assert_eq!(seqs(&broker, "a"), [1, 3]);
}

/// Somebody cuts a log in the middle of a line, or writes half of one: the next event begins a line of its own.
#[test]
fn half_a_line_swallows_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&dir.path().join("state"));
    let root = broker.root.clone();
    let path = |name: &str| root.join("logs/bus").join(format!("{name}.log"));
    let lines = |name: &str| fs::read_to_string(path(name)).unwrap();
    logs_reach(&broker, publish(&broker, "a", "t", 1));
    logs_reach(&broker, publish(&broker, "a", "t", 2));
    let cut =
        |path: &std::path::Path, to: u64| fs::File::options().write(true).open(path).unwrap().set_len(to);
    let whole = lines("bus");
    cut(&path("bus"), whole.len() as u64 - 10).unwrap();
    fs::write(path("a"), lines("a") + "half a li").unwrap();
    let handshakes = root.join("handshakes/handshake-events.jsonl");
    let size = fs::metadata(&handshakes).unwrap().len();
    cut(&handshakes, size - 5).unwrap();
    logs_reach(&broker, publish(&broker, "a", "t", 3));
    let third = lines("a").lines().last().unwrap().to_owned();
    assert!(third.starts_with("{\"seq\":3,"), "{third}");
    assert_eq!(lines("bus"), format!("{}\n{third}\n", &whole[..whole.len() - 10]));
    assert!(lines("a").ends_with(&format!("\nhalf a li\n{third}\n")), "{}", lines("a"));
    let record = eventually("the record of the last handshake", || {
        let text = fs::read_to_string(&handshakes).unwrap();
        let last = text.lines().last().unwrap().to_owned();
        (text.len() as u64 > size && text.ends_with('\n')).then_some(last)
    });
    assert!(serde_json::from_str::<serde_json::Value>(&record).is_ok(), "{record}");
    // It is counted, said once for each file, and a reader passes over it.
    eventually("the count", || (broker.status()["broker"]["counters"]["log_changes"] == 3).then_some(()));
    let said = eventually("the warnings", || {
        let lines = crate::support::broker_log(&root);
        let said = lines.into_iter().filter(|line| line.contains("another process changed this file"));
        let said: Vec<String> = said.collect();
        (said.len() >= 3).then_some(said)
    });
    assert!(said.len() == 3 && said.iter().all(|line| line.contains("--repair-logs")), "{said:?}");
    let tail = broker.run(&["bus", "tail", "-q", "--vm", "a", "-o", "json"]);
    assert_eq!(String::from_utf8_lossy(&tail.stdout).lines().last(), Some(&*third));
    assert_eq!(broker.run(&["verify"]).status.code(), Some(1));
    // Emptied (copytruncate): it goes on from its beginning, and nothing is damaged by that.
    cut(&path("bus"), 0).unwrap();
    cut(&path("a"), 0).unwrap();
    logs_reach(&broker, publish(&broker, "a", "t", 4));
    assert_eq!((seqs(&broker, "bus"), seqs(&broker, "a")), (vec![4], vec![4]));
    assert_eq!(broker.run(&["verify"]).status.code(), Some(0));
}
