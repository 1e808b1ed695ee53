//! A publish and its ack; what stands in the logs afterwards.

use crate::support::{Broker, eventually, frame, read_log};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

fn log_of(broker: &Broker, name: &str, lines: usize) -> Vec<Value> {
    let log = eventually("lines in a log", || {
        let text =
            std::fs::read_to_string(broker.root.join(format!("logs/bus/{name}.log"))).unwrap_or_default();
        (text.matches('\n').count() >= lines).then(|| broker.log(name))
    });
    assert_eq!(log.len(), lines, "{name}");
    log
}

fn raw(root: &Path, name: &str) -> String {
    std::fs::read_to_string(root.join(format!("logs/bus/{name}.log"))).unwrap()
}

#[test]
fn an_ack_says_topic_seq_and_id_and_the_line_is_in_both_logs() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let ack = guest.ask(r#"{"type":"publish","topic":"build.done","payload":{"n": 1},"id":"my-id"}"#);
    assert_eq!(
        ack,
        json!({"type":"ack","ack":"publish","status":"ok","topic":"build.done","seq":1,"id":"my-id"})
    );
    let since = Instant::now();
    let log = log_of(&broker, "dev", 1);
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    let ts = log[0]["ts"].as_u64().unwrap();
    assert_eq!(
        raw(dir.path(), "dev"),
        format!(
            "{{\"seq\":1,\"ts\":{ts},\"id\":\"my-id\",\"vm\":\"dev\",\"topic\":\"build.done\",\"payload\":{{\"n\": 1}}}}\n"
        )
    );
    assert_eq!(raw(dir.path(), "dev"), raw(dir.path(), "bus"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    assert!(ts <= now && ts + 60_000 > now, "{ts} at {now}");
}

#[test]
fn topic_payload_and_id_may_be_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let mut ids = Vec::new();
    for body in
        [r#"{"type":"publish"}"#, r#"{"type":"publish","topic":null,"payload":null,"id":null,"later":[{}]}"#]
    {
        let ack = guest.ask(body);
        assert_eq!((&ack["topic"], &ack["status"]), (&json!("broadcast"), &json!("ok")));
        let id = uuid::Uuid::parse_str(ack["id"].as_str().unwrap()).unwrap();
        assert_eq!(id.get_version_num(), 7);
        ids.push(ack["id"].clone());
    }
    let log = log_of(&broker, "dev", 2);
    assert_ne!(ids[0], ids[1]);
    for (event, id) in log.iter().zip(&ids) {
        let keys: Vec<&String> = event.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["id", "payload", "seq", "topic", "ts", "vm"]);
        assert_eq!(
            (&event["id"], &event["payload"], &event["topic"]),
            (id, &Value::Null, &json!("broadcast"))
        );
    }
}

#[test]
fn what_was_said_is_what_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let said = json!({
        "type": "publish", "topic": "überblick.日本\"\\", "id": "id \"q\" \\ é", "key": "k\n\t\u{1}\"",
        "headers": {"b": "2\r\n", "a": "ü"}, "tags": ["x", "y\"", "x"], "caused_by": ["one", "two"],
        "payload": {"text": "a\nb\r\n\t\"q\" \\ / \u{2028} \u{7f} \u{1F600}", "n": [1, -2.5e-3, true, null, {}], "": []}
    });
    let mut bodies =
        vec![serde_json::to_string_pretty(&said).unwrap(), serde_json::to_string(&said).unwrap()];
    // The same once more, with every character escaped that can be, and carriage returns between tokens.
    let escaped: String = bodies[1].chars().fold(String::new(), |mut out, c| {
        if c.is_ascii() {
            out.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|u| out.push_str(&format!("\\u{u:04X}")));
        }
        out
    });
    bodies.push(escaped.replace(",\"", " ,\r\n\t\""));
    for (vm, body) in ["one", "two", "three"].into_iter().zip(&bodies) {
        // The same id from one VM would be a repeat.
        assert_eq!(broker.guest(vm).ask(body)["status"], "ok", "{body}");
    }
    for event in log_of(&broker, "bus", bodies.len()) {
        for field in ["topic", "id", "key", "headers", "tags", "caused_by", "payload"] {
            assert_eq!(event[field], said[field], "{field}");
        }
    }
    let raw = raw(dir.path(), "bus");
    assert_eq!(raw.lines().count(), bodies.len());
    assert!(!raw.contains('\r'));
    // A payload is passed on as it was written.
    assert!(raw.lines().nth(1).unwrap().contains(&serde_json::to_string(&said["payload"]).unwrap()));
}

#[test]
fn thousands_of_pipelined_publishes_are_acked_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    const N: u64 = 10_000;
    std::thread::scope(|scope| {
        for vm in ["one", "two"] {
            let mut guest = broker.guest(vm);
            scope.spawn(move || {
                let mut writer = guest.stream.get_ref().try_clone().unwrap();
                let bytes: Vec<u8> = (0..N)
                    .flat_map(|n| {
                        frame(format!(r#"{{"type":"publish","topic":"t.{n}","id":"{n}","payload":{n}}}"#))
                    })
                    .collect();
                let sent = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
                let mut last = 0;
                for n in 0..N {
                    let ack = guest.receive().unwrap();
                    assert_eq!(
                        (&ack["status"], &ack["id"], &ack["topic"]),
                        (&json!("ok"), &json!(n.to_string()), &json!(format!("t.{n}")))
                    );
                    let seq = ack["seq"].as_u64().unwrap();
                    assert!(seq > last);
                    last = seq;
                }
                sent.join().unwrap();
            });
        }
    });
    let all = log_of(&broker, "bus", 2 * N as usize);
    assert!(all.iter().zip(1u64..).all(|(e, seq)| e["seq"] == seq));
    for vm in ["one", "two"] {
        let log = log_of(&broker, vm, N as usize);
        assert!(log.iter().zip(0..N).all(|(e, n)| e["payload"] == n && e["vm"] == vm));
    }
}

#[test]
fn events_in_one_frame_are_stored_together_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let ack =
        guest.ask(r#"{"type":"publish","events":[{"topic":"a","payload":1},{},{"topic":"c","id":"x"}]}"#);
    assert_eq!(ack, json!({"type":"ack","ack":"publish","status":"ok","seqs":[1,2,3]}));
    for (bad, code) in [
        (r#"{"topic":"no good"}"#.to_owned(), "bad-topic"),
        (r#"{"id":""}"#.to_owned(), "bad-id"),
        (format!(r#"{{"payload":"{}"}}"#, "x".repeat(62_000)), "event-too-large"),
        ("7".to_owned(), "bad-field"),
    ] {
        let ack =
            guest.ask(format!(r#"{{"type":"publish","events":[{{"topic":"a"}},{bad},{{"topic":"c"}}]}}"#));
        assert_eq!(
            (&ack["ack"], &ack["status"], &ack["code"]),
            (&json!("publish"), &json!("error"), &json!(code))
        );
    }
    let many = format!(r#"{{"type":"publish","events":[{}{{}}]}}"#, "{},".repeat(1023));
    let seqs: Vec<u64> = (4..4 + 1024).collect();
    assert_eq!(guest.ask(many)["seqs"], json!(seqs));
    let log = log_of(&broker, "dev", 3 + 1024);
    let topics: Vec<&str> = log.iter().take(4).map(|e| e["topic"].as_str().unwrap()).collect();
    assert_eq!(topics, ["a", "broadcast", "c", "broadcast"]);
    assert_eq!(log.last().unwrap()["seq"], 1027);
}

#[test]
fn a_refused_group_names_the_bad_event_by_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let ack = broker.guest("dev").ask(r#"{"type":"publish","events":[{},{"topic":"no good"},{}]}"#);
    let reason = ack["reason"].as_str().unwrap();
    assert!(reason.starts_with("event 2 of 3: "), "{reason}");
}

#[test]
fn a_mailbox_stands_in_its_owners_log_when_it_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    broker.greet("hello vm:web.1\n");
    for (topic, n) in [("vm:web.1", 1), ("vm:stranger", 2), ("vm:dev", 3), ("vm:web.1", 4), ("vm:host", 5)] {
        assert_eq!(
            guest.ask(format!(r#"{{"type":"publish","topic":"{topic}","payload":{n}}}"#))["status"],
            "ok"
        );
    }
    log_of(&broker, "dev", 5);
    log_of(&broker, "bus", 5);
    let web = log_of(&broker, "web.1", 2);
    assert_eq!(
        (&web[0]["payload"], &web[1]["payload"], &web[1]["vm"]),
        (&json!(1), &json!(4), &json!("dev"))
    );
    assert!(raw(dir.path(), "dev").contains(raw(dir.path(), "web.1").lines().next().unwrap()));
    let names: Vec<String> = std::fs::read_dir(dir.path().join("logs/bus"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!names.iter().any(|n| n.contains("stranger") || n.starts_with("host")), "{names:?}");
}

#[test]
fn a_mailbox_called_bus_is_no_way_into_the_shared_log() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    guest.ask(r#"{"type":"publish"}"#);
    log_of(&broker, "bus", 1);
    guest.ask(r#"{"type":"publish","topic":"vm:bus"}"#);
    guest.ask(r#"{"type":"publish"}"#);
    log_of(&broker, "dev", 3);
    log_of(&broker, "bus", 3);
}

#[test]
fn a_vm_may_have_several_sessions() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut sessions: Vec<_> = (0..3).map(|_| broker.guest("dev")).collect();
    for n in 0..9 {
        assert_eq!(sessions[n % 3].ask(format!(r#"{{"type":"publish","payload":{n}}}"#))["seq"], n + 1);
    }
    let shown = |n: u64| {
        eventually("the number of sessions", || {
            Some(broker.status()["vms"][0].clone()).filter(|vm| vm["sessions"] == n)
        })
    };
    assert_eq!(shown(3)["reachable"], true);
    sessions.pop();
    assert_eq!(shown(2)["name"], "dev");
    assert_eq!(sessions[0].ask(r#"{"type":"publish"}"#)["seq"], 10);
    assert!(log_of(&broker, "dev", 10).iter().zip(1..).all(|(e, seq)| e["seq"] == seq));
}

#[test]
fn a_heartbeat_is_acked_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    eventually("the VM", || broker.status()["vms"][0]["last_heartbeat_age_ms"].is_null().then_some(()));
    for _ in 0..3 {
        let ack = guest.ask(r#"{"type":"heartbeat","at":7}"#);
        assert_eq!(ack, json!({"type":"ack","ack":"heartbeat","status":"ok"}));
    }
    eventually("the heartbeat in status", || broker.status()["vms"][0]["last_heartbeat_age_ms"].as_i64());
    assert!(broker.log("bus").is_empty());
}

#[test]
fn seq_and_logs_go_on_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut seq = 0u64;
    for round in 0..4 {
        let broker = Broker::start(dir.path());
        let mut guest = broker.guest("dev");
        for _ in 0..50 {
            seq += 1;
            assert_eq!(guest.ask(format!(r#"{{"type":"publish","payload":{seq}}}"#))["seq"], seq);
        }
        if round % 2 == 0 {
            assert_eq!(broker.stop().0, Some(0));
        } else {
            broker.kill();
        }
    }
    // The last one was killed: what its logs lack comes with the next start, before its doors open.
    let _broker = Broker::start(dir.path());
    for name in ["dev", "bus"] {
        let log = read_log(dir.path(), name);
        assert_eq!(log.len() as u64, seq);
        assert!(log.iter().zip(1u64..).all(|(e, n)| e["seq"] == n && e["payload"] == n));
        let stamps: Vec<u64> = log.iter().map(|e| e["ts"].as_u64().unwrap()).collect();
        assert!(stamps.is_sorted());
    }
}

#[test]
fn a_log_that_was_removed_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    guest.ask(r#"{"type":"publish","payload":1}"#);
    log_of(&broker, "dev", 1);
    std::fs::remove_file(dir.path().join("logs/bus/dev.log")).unwrap();
    guest.ask(r#"{"type":"publish","payload":2}"#);
    assert_eq!(log_of(&broker, "dev", 1)[0]["payload"], 2);
    assert_eq!(log_of(&broker, "bus", 2)[1]["payload"], 2);
}
