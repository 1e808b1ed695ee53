//! The hello, its answer, and the trace it leaves.

use crate::support::{Broker, Guest, broker_log, eventually, frame, records};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The one record of the handshake from `remote`.
fn record_of(root: &Path, remote: &str) -> Value {
    let mut found = eventually("the record of a handshake", || {
        let all = records(root, "handshake-events");
        let found: Vec<Value> = all.into_iter().filter(|r| r["remote_addr"] == remote).collect();
        (!found.is_empty()).then_some(found)
    });
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// The one log line of the handshake from `remote`, from the word `handshake` on.
fn log_line_of(root: &Path, remote: &str) -> String {
    let mut found = eventually("the log line of a handshake", || {
        let all = broker_log(root);
        let found: Vec<String> =
            all.into_iter().filter(|l| l.ends_with(&format!("remote={remote}"))).collect();
        (!found.is_empty()).then_some(found)
    });
    assert_eq!(found.len(), 1, "{found:?}");
    let line = found.remove(0);
    line[line.find("handshake ").unwrap()..].to_owned()
}

fn local(guest: &Guest) -> String {
    guest.stream.get_ref().local_addr().unwrap().to_string()
}

#[test]
fn a_session_begins_with_ok_and_a_token_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut tokens = Vec::new();
    for hello in [
        "hello vm:dev capabilities=bus-v1\n",
        "hello dev capabilities=BUS-V1\n",
        "hello vm:dev capabilities=bus-v1\r\n",
        "hello   vm:dev\tcapabilities=zeta,,Bus-v1,alpha lang=go x capabilities=more token=s3cret\n",
    ] {
        let (mut guest, answer) = broker.greet(hello);
        let token = answer.strip_prefix("ok session=").expect(hello);
        assert!(token.len() >= 16 && !tokens.contains(&token.to_owned()), "{answer}");
        tokens.push(token.to_owned());
        assert_eq!(guest.ask(r#"{"type":"publish","topic":"t"}"#)["status"], "ok");
    }
    assert!(
        eventually("the log", || Some(broker.log("dev")).filter(|l| l.len() == 4))
            .iter()
            .all(|e| e["vm"] == "dev")
    );
}

#[test]
fn a_granted_handshake_is_recorded_and_logged_once() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (guest, _) = broker.greet("hello vm:dev capabilities=zeta,Bus-V1,alpha,bus-v1 token=s3cret\n");
    let remote = local(&guest);
    let mut record = record_of(dir.path(), &remote);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let said = record["timestamp"].take().as_u64().unwrap();
    assert!(said <= now && said + 30 > now, "{said} at {now}");
    assert_eq!(
        record,
        json!({"timestamp": null, "vm": "dev", "capabilities": ["alpha", "bus-v1", "zeta"], "session_kind": "bus-v1",
               "session_outcome": "granted", "reason": null, "identity": "name",
               "remote_addr": remote})
    );
    assert_eq!(
        log_line_of(dir.path(), &remote),
        format!(
            "handshake outcome=\"granted\" vm=\"dev\" kind=\"bus-v1\" capabilities=alpha,bus-v1,zeta reason=\"-\" identity=\"name\" remote={remote}"
        )
    );
    let files = ["handshakes/handshake-events.jsonl", "logs/broker.log"];
    assert!(files.iter().all(|f| !std::fs::read_to_string(dir.path().join(f)).unwrap().contains("s3cret")));
}

#[test]
fn frames_may_come_right_behind_the_hello_or_byte_by_byte() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut bytes = b"hello vm:dev capabilities=bus-v1\r\n".to_vec();
    for n in 0..100 {
        bytes.extend(frame(format!(r#"{{"type":"publish","payload":{n}}}"#)));
    }
    let (mut guest, answer) = broker.greet(&bytes);
    assert!(answer.starts_with("ok session="), "{answer}");
    assert!((1..=100).all(|seq| guest.receive().unwrap()["seq"] == seq));

    let mut slow = Guest::connect(&broker.addr);
    for byte in b"hello slow capabilities=bus-v1\n".iter().chain(&frame(r#"{"type":"heartbeat"}"#)) {
        slow.stream.get_mut().write_all(&[*byte]).unwrap();
    }
    assert!(slow.line().starts_with("ok session="));
    assert_eq!(slow.receive().unwrap()["ack"], "heartbeat");
}

#[test]
fn a_guest_without_bus_v1_is_recorded_and_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    for (vm, words, capabilities) in [
        ("none", "", json!([])),
        ("two", " capabilities=bus-v2", json!(["bus-v2"])),
        ("some", " capabilities=Zeta,alpha,Zeta", json!(["alpha", "zeta"])),
    ] {
        let (mut guest, answer) = broker.greet(format!("hello vm:{vm}{words}\n"));
        assert_eq!(answer, "ok");
        assert!(guest.receive().is_none(), "closed behind ok");
        let remote = local(&guest);
        let record = record_of(dir.path(), &remote);
        assert_eq!(record["vm"], vm);
        assert_eq!(record["capabilities"], capabilities);
        assert_eq!(record["session_kind"], "handshake-only");
        assert_eq!(
            (&record["session_outcome"], &record["reason"]),
            (&json!("denied"), &json!("missing-capability"))
        );
        let line = log_line_of(dir.path(), &remote);
        assert!(
            line.starts_with(&format!("handshake outcome=\"denied\" vm=\"{vm}\" kind=\"handshake-only\"")),
            "{line}"
        );
        let shown = eventually("the VM in status", || {
            broker.status()["vms"]
                .as_array()?
                .iter()
                .find(|v| v["name"] == vm && v["last_handshake_age_ms"].is_i64())
                .cloned()
        });
        assert_eq!((&shown["reachable"], &shown["sessions"]), (&json!(true), &json!(0)));
        assert_eq!(shown["capabilities"], capabilities);
        assert!(shown["last_handshake_age_ms"].as_i64().unwrap() < 20_000);
    }
    assert_eq!(broker.status()["last_handshake_vm"], "some");
}

#[test]
fn a_bad_hello_gets_its_reason_a_record_and_a_log_line() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let long_name = format!("hello vm:{} capabilities=bus-v1\n", "x".repeat(129));
    let long_line = format!("hello vm:a capabilities={}", "x".repeat(488));
    assert_eq!(long_line.len(), 512);
    for (hello, reason, vm) in [
        (long_line.as_bytes(), "hello-too-long", Value::Null),
        (b"\n", "hello-empty", Value::Null),
        (b" \r\n", "hello-empty", Value::Null),
        (b"hello vm:\xff\xfe capabilities=bus-v1\n", "hello-not-utf8", Value::Null),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "hello-expected", Value::Null),
        (b"HELLO vm:a capabilities=bus-v1\n", "hello-expected", Value::Null),
        (b"hello\n", "bad-name", Value::Null),
        (b"hello vm: capabilities=bus-v1\n", "bad-name", Value::Null),
        (b"hello vm:../../etc/x capabilities=bus-v1\n", "bad-name", Value::Null),
        (b"hello vm:.hidden capabilities=bus-v1\n", "bad-name", Value::Null),
        (b"hello vm:a\0b capabilities=bus-v1\n", "bad-name", Value::Null),
        ("hello vm:ä capabilities=bus-v1\n".as_bytes(), "bad-name", Value::Null),
        (long_name.as_bytes(), "bad-name", Value::Null),
        (b"hello vm:host capabilities=bus-v1\n", "reserved-identity", json!("host")),
        (b"hello vm:host capabilities=bus-v1,host-bus\n", "reserved-identity", json!("host")),
        (b"hello vm:HoSt capabilities=bus-v1\n", "reserved-identity", json!("HoSt")),
        (b"hello vm:BUS\n", "reserved-identity", json!("BUS")),
        (b"hello vm:web capabilities=bus-v1,Host-Bus\n", "reserved-identity", json!("web")),
    ] {
        let (mut guest, answer) = broker.greet(hello);
        assert_eq!(answer, format!("error: {reason}"), "{:?}", String::from_utf8_lossy(hello));
        assert!(guest.receive().is_none());
        let remote = local(&guest);
        let record = record_of(dir.path(), &remote);
        assert_eq!((&record["session_outcome"], &record["reason"]), (&json!("denied"), &json!(reason)));
        assert_eq!(record["vm"], vm);
        let name = vm.as_str().unwrap_or("-");
        let line = log_line_of(dir.path(), &remote);
        assert!(line.starts_with(&format!("handshake outcome=\"denied\" vm=\"{name}\" ")), "{line}");
        assert!(line.contains(&format!(" reason=\"{reason}\" ")), "{line}");
    }
    // The longest line that is allowed, and the longest name.
    let (_, answer) = broker.greet(format!("hello vm:a capabilities=bus-v1,{}\n", "x".repeat(480)));
    assert!(answer.starts_with("ok session="), "{answer}");
    let longest = "x".repeat(128);
    broker.guest(&longest);
    let vms = eventually("the last of them in status", || {
        Some(broker.status()["vms"].as_array()?.clone())
            .filter(|vms| vms.iter().any(|v| v["name"] == *longest))
    });
    assert!(vms.iter().all(|v| v["name"] == "a" || v["name"] == *longest), "{vms:?}");
}

#[test]
fn silence_times_out_and_delays_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let since = Instant::now();
    let mut silent = Guest::connect(&broker.addr);
    let mut half = Guest::connect(&broker.addr);
    half.stream.get_mut().write_all(b"hello vm:half capabilities=bus-v1").unwrap();
    assert_eq!(broker.guest("other").ask(r#"{"type":"publish"}"#)["seq"], 1);
    assert!(since.elapsed().as_secs() < 4, "not behind the silent ones");
    for guest in [&mut silent, &mut half] {
        assert_eq!(guest.line(), "error: hello-timeout");
        assert!((4..12).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
        let remote = local(guest);
        let record = record_of(dir.path(), &remote);
        assert_eq!(
            (&record["session_outcome"], &record["reason"]),
            (&json!("timeout"), &json!("hello-timeout"))
        );
        assert_eq!(
            log_line_of(dir.path(), &remote),
            format!(
                "handshake outcome=\"timeout\" vm=\"-\" kind=\"handshake-only\" capabilities= reason=\"hello-timeout\" identity=\"-\" remote={remote}"
            )
        );
    }
}

#[test]
fn who_leaves_without_a_hello_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let guest = Guest::connect(&broker.addr);
    let remote = local(&guest);
    drop(guest);
    let record = record_of(dir.path(), &remote);
    assert_eq!(
        (&record["session_outcome"], &record["reason"]),
        (&json!("denied"), &json!("closed-before-hello"))
    );
}

#[test]
fn a_record_file_that_was_removed_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let path = dir.path().join("handshakes/handshake-events.jsonl");
    record_of(dir.path(), &local(&broker.guest("one")));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(record_of(dir.path(), &local(&broker.guest("two")))["vm"], "two");
}
