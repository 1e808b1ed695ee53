//! `castra bus publish --jsonl` with a broker that can take no more: what is stored, what is not, where to go on.

use crate::fake_broker::{Session, play};
use crate::publish_cli::{command, failure, publish};
use crate::support::{Broker, eventually};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Output, Stdio};

/// Publishes `input` to a broker that plays `script`; stdin stays open until the end.
fn against<T: Send + 'static>(
    input: &str,
    args: &[&str],
    script: impl FnOnce(Session) -> T + Send + 'static,
) -> (Output, Value, T) {
    let dir = tempfile::tempdir().unwrap();
    let broker = play(dir.path(), script);
    let mut child = command(dir.path(), &[&["--jsonl", "--json"], args].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // It stops reading.
        let stdin = scope.spawn(move || (stdin.write_all(input.as_bytes()), stdin).1);
        let output = child.wait_with_output().unwrap();
        drop(stdin.join());
        output
    });
    let object = failure(&output);
    (output, object, broker.join().unwrap())
}

/// Events of the lines 1, 3, 4, 6, 7.
const INPUT: &str = "{\"id\":\"1\"}\n\n{\"id\":\"3\"}\n{\"id\":\"4\"}\nbad\n{\"id\":\"6\"}\n{\"id\":\"7\"}\n";

fn stored(output: &Output) -> Vec<u64> {
    let lines = std::str::from_utf8(&output.stdout).unwrap().lines();
    lines.map(|line| serde_json::from_str::<Value>(line).unwrap()["line"].as_u64().unwrap()).collect()
}

#[test]
fn a_lost_connection_names_the_lines_that_nobody_knows_of() {
    let (output, object, ()) = against(INPUT, &[], |mut session| {
        let sent = session.receive_all(5);
        session.ack(&sent[0], 11);
        session.ack(&sent[1], 12);
    });
    assert_eq!((&object["code"], &object["exit"]), (&json!("outcome-unknown"), &json!(75)), "{object}");
    assert_eq!(object["unknown"], json!({"lines": [4, 7], "first_id": "4", "last_id": "7"}));
    assert_eq!((&object["resume_line"], &object["stored"]), (&json!(8), &json!(2)));
    assert_eq!(stored(&output), [1, 3]);
    let said = object["reason"].as_str().unwrap();
    assert!(said.contains("lines 4-7") && said.contains("--grep 4") && said.contains("tail -n +8"), "{said}");
}

#[test]
fn a_broker_that_ends_in_order_leaves_nothing_open() {
    let (output, object, ()) = against(INPUT, &[], |mut session| {
        let sent = session.receive_all(5);
        session.ack(&sent[0], 11);
        session.ack(&sent[1], 12);
        session.close("draining");
    });
    assert_eq!((&object["code"], &object["exit"]), (&json!("draining"), &json!(75)), "{object}");
    assert_eq!(
        (&object["resume_line"], &object["unknown"], &object["not_stored"]),
        (&json!(4), &Value::Null, &json!([]))
    );
    assert_eq!(stored(&output), [1, 3]);
}

#[test]
fn a_disk_that_is_full_for_some_lines_says_for_which() {
    let (output, object, ()) = against(INPUT, &[], |mut session| {
        let sent = session.receive_all(5);
        session.ack(&sent[0], 1);
        session.refuse("disk-full");
        session.refuse("disk-full");
        session.ack(&sent[3], 2);
        session.refuse("disk-full");
        assert_eq!(session.receive(), None, "it sends no more, and goes");
    });
    assert_eq!((&object["code"], &object["exit"]), (&json!("disk-full"), &json!(75)), "{object}");
    assert_eq!((&object["not_stored"], &object["resume_line"]), (&json!([[3, 4]]), &json!(7)));
    assert_eq!((stored(&output), &object["refused"]), (vec![1, 6], &json!(1)));
    let said = object["reason"].as_str().unwrap();
    assert!(
        said.contains("line 3-4") && said.contains("tail -n +7") && said.contains("free space"),
        "{said}"
    );
}

#[test]
fn a_failed_disk_leaves_some_open() {
    let (output, object, ()) = against(INPUT, &[], |mut session| {
        let sent = session.receive_all(5);
        session.ack(&sent[0], 1);
        session.refuse("outcome-unknown");
        session.refuse("outcome-unknown");
        session.close("journal-failed");
    });
    assert_eq!((&object["code"], &object["exit"]), (&json!("outcome-unknown"), &json!(75)), "{object}");
    assert_eq!(object["unknown"]["lines"], json!([3, 4]));
    assert_eq!((&object["resume_line"], stored(&output)), (&json!(6), vec![1]));
}

#[test]
fn a_broker_that_says_nothing_is_given_up_and_gets_no_more_than_the_window() {
    let input = "{\"payload\":1}\n".repeat(10_000);
    let (_, object, frames) = against(&input, &["--timeout", "400ms"], |mut session| {
        std::iter::from_fn(|| session.receive()).count()
    });
    assert_eq!((&object["code"], &object["exit"]), (&json!("timeout"), &json!(124)), "{object}");
    assert!((1_000..=3_072).contains(&frames), "{frames} events under way");
    assert_eq!(object["unknown"]["lines"], json!([1, frames]));
    assert_eq!(object["resume_line"], frames + 1);

    let input = format!("{{\"payload\":\"{}\"}}\n", "x".repeat(60_000)).repeat(40);
    let (_, object, bytes) = against(&input, &["--timeout", "400ms"], |mut session| {
        std::iter::from_fn(|| session.receive()).map(|frame| frame.to_string().len()).sum::<usize>()
    });
    assert_eq!(object["code"], "timeout");
    assert!((300_000..=786_432).contains(&bytes), "{bytes} bytes under way");
}

/// Publishes numbers from 1 on while `end` ends the broker; what it said.
fn interrupted(end: impl FnOnce(Broker)) -> (tempfile::TempDir, Value) {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut child = command(dir.path(), &["--jsonl", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let mut n = 0;
        while stdin.write_all(numbers(n + 1, n + 100).as_bytes()).is_ok() {
            n += 100;
        }
    });
    eventually("some events", || {
        (broker.status()["broker"]["journal"]["head_seq"].as_u64() > Some(1_000)).then_some(())
    });
    end(broker);
    let object = failure(&child.wait_with_output().unwrap());
    writer.join().unwrap();
    (dir, object)
}

fn numbers(from: u64, to: u64) -> String {
    (from..=to).map(|n| format!("{{\"payload\":{n}}}\n")).collect()
}

fn payloads(broker: &Broker) -> Vec<u64> {
    broker.log("bus").iter().map(|event| event["payload"].as_u64().unwrap()).collect()
}

#[test]
fn after_a_stop_it_goes_on_where_it_said() {
    let (dir, object) = interrupted(|broker| assert_eq!(broker.stop().0, Some(0)));
    assert_eq!((&object["code"], &object["exit"]), (&json!("draining"), &json!(75)), "{object}");
    assert!(object["unknown"].is_null(), "{object}");
    let resume = object["resume_line"].as_u64().unwrap();
    let broker = Broker::start(dir.path());
    assert!(payloads(&broker) == (1..resume).collect::<Vec<_>>(), "{object}");
    let last = resume + 10_000;
    assert!(publish(dir.path(), &["--jsonl"], numbers(resume, last).as_bytes()).status.success());
    assert!(payloads(&broker) == (1..=last).collect::<Vec<_>>(), "each once, in order");
}

#[test]
fn after_a_kill_only_what_it_named_is_open() {
    let (dir, object) = interrupted(Broker::kill);
    assert_eq!((&object["code"], &object["exit"]), (&json!("outcome-unknown"), &json!(75)), "{object}");
    let resume = object["resume_line"].as_u64().unwrap();
    let first = object["unknown"]["lines"][0].as_u64().unwrap();
    let broker = Broker::start(dir.path());
    let found = payloads(&broker);
    assert!(found == (1..=found.len() as u64).collect::<Vec<_>>());
    assert!((first - 1..resume).contains(&(found.len() as u64)), "{} stored: {object}", found.len());
}

#[test]
fn without_a_session_nothing_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let object = failure(&publish(dir.path(), &["--jsonl", "--json"], b"{}\n"));
    assert_eq!((&object["code"], &object["exit"]), (&json!("no-broker"), &json!(69)), "{object}");
    let broker = Broker::start(dir.path());
    broker.signal(nix::sys::signal::Signal::SIGSTOP);
    let object = failure(&publish(dir.path(), &["--jsonl", "--json", "--timeout", "200ms"], b"{}\n"));
    assert_eq!((&object["code"], &object["exit"]), (&json!("timeout"), &json!(124)), "{object}");
    assert!(object["reason"].as_str().unwrap().contains("nothing was sent"), "{object}");
}
