//! `castra bus publish`, seen by an operator.

use crate::support::{Broker, LocalGuest, castra, eventually};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

fn publish(root: &Path, args: &[&str], stdin: &[u8]) -> Output {
    let mut command = castra();
    command.arg("--state-root").arg(root).args(["bus", "publish"]).args(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

fn refused(root: &Path, args: &[&str], stdin: &[u8], code: i32) -> String {
    let output = publish(root, args, stdin);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:.80?}: {said}");
    assert!(output.stdout.is_empty());
    assert!(said.starts_with("castra: ") && said.lines().count() == 1, "{said}");
    said
}

#[test]
fn every_way_to_say_topic_and_payload() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let pretty = b"{\n  \"n\": 1\n}\n";
    let ways: [(&[&str], &[u8], &str, Value); 12] = [
        (&[], b"", "broadcast", Value::Null),
        (&["t"], b"", "t", Value::Null),
        (&["t", "{\"n\":1}"], b"", "t", json!({"n": 1})),
        (&["t", "-"], pretty, "t", json!({"n": 1})),
        (&["--topic", "t", "--payload", "[1]"], b"", "t", json!([1])),
        (&["--payload", "\"x\""], b"", "broadcast", json!("x")),
        (&["--payload=-", "--topic=t"], b" 7 ", "t", json!(7)),
        (&["t", "--payload", "-1"], b"", "t", json!(-1)),
        (&["t", "-1.5"], b"", "t", json!(-1.5)),
        (&["t", "1", "--id", "my id"], b"", "t", json!(1)),
        (&["vm:web", " null "], b"", "vm:web", Value::Null),
        (&["überblick.日本", "\"\\u00e9\""], b"", "überblick.日本", json!("é")),
    ];
    for ((args, stdin, ..), seq) in ways.iter().zip(1..) {
        let output = publish(dir.path(), args, stdin);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        let id = said.strip_prefix(&format!("seq={seq} id=")).expect(&said);
        assert!(id.ends_with('\n') && id.len() > 5, "{said}");
        // The line is there when the command ends: nothing to wait for.
        let event = broker.log("host").pop().unwrap();
        assert_eq!((&event["seq"], &event["id"]), (&json!(seq), &json!(id.trim_end())));
    }
    for (event, (args, _, topic, payload)) in broker.log("host").iter().zip(&ways) {
        assert_eq!(
            (&event["topic"], &event["payload"], &event["vm"]),
            (&json!(topic), payload, &json!("host")),
            "{args:?}"
        );
    }
    assert_eq!(broker.log("host")[9]["id"], "my id");
}

#[test]
fn a_publish_is_there_for_the_tail_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    for n in 0..20 {
        let text = format!("{n}");
        assert!(broker.run(&["bus", "publish", "t", &text]).status.success());
        let tail = broker.run(&["bus", "tail", "-n", "1", "-o", "raw"]);
        assert_eq!(String::from_utf8(tail.stdout).unwrap(), format!("{n}\n"));
    }
}

#[test]
fn a_refused_publish_says_why_and_with_which_code() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let root = dir.path();
    for bad in ["nonsense", "{", "", "1 2", "'x'"] {
        let said = refused(root, &["t", bad], b"", 65);
        assert!(said.contains("not JSON"), "{said}");
    }
    refused(root, &["t", "-"], b"\xff", 65);
    let deep = format!("{}{}", "[".repeat(70), "]".repeat(70));
    assert!(refused(root, &["t", &deep], b"", 65).contains("too-deep"));
    // Over the bound of an event, over that of a frame, and far over.
    for bytes in [62_000, 65_536, 70_000, 500_000] {
        let text = format!("\"{}\"", "é".repeat(bytes / 2));
        assert!(refused(root, &["t", "-"], text.as_bytes(), 65).contains("event-too-large"), "{bytes}");
    }
    for topic in ["no good", "a..b", "a.*", "$dlq.x", "vm:a/b"] {
        assert!(
            refused(root, &[topic, "1"], b"", if topic.starts_with('$') { 77 } else { 65 })
                .contains("-topic"),
            "{topic}"
        );
    }
    refused(root, &["t", "1", "--id", ""], b"", 65);
    assert_eq!(broker.status()["broker"]["journal"]["head_seq"], 0);
    assert!(!root.join("logs/bus/host.log").exists());
}

#[test]
fn without_a_broker_it_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refused(&dir.path().join("none"), &["t"], b"", 69).contains("castra broker"));
    // The socket of a broker that was killed.
    Broker::start(dir.path()).kill();
    assert!(dir.path().join("castra.sock").exists());
    assert!(refused(dir.path(), &["t"], b"", 69).contains("castra broker"));
}

#[test]
fn a_broker_that_does_not_answer_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    broker.signal(nix::sys::signal::Signal::SIGSTOP);
    let said = refused(dir.path(), &["t", "--timeout", "200ms"], b"", 124);
    assert!(said.contains("nothing was sent") && said.contains("castra status"), "{said}");
}

#[test]
fn too_many_sessions_of_the_host_is_try_again() {
    let dir = tempfile::tempdir().unwrap();
    let _broker = Broker::start(dir.path());
    let hello = "hello vm:host capabilities=bus-v1,host-bus\n";
    let mut sessions: Vec<LocalGuest> = Vec::new();
    for _ in 0..64 {
        let (guest, answer) = LocalGuest::greet(&dir.path().join("castra.sock"), hello);
        assert!(answer.starts_with("ok session="), "{answer}");
        sessions.push(guest);
    }
    assert!(refused(dir.path(), &["t"], b"", 75).contains("too-many-sessions-of-this-vm"));
    sessions.pop();
    eventually("a place", || publish(dir.path(), &["t"], b"").status.success().then_some(()));
}
