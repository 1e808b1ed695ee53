//! Frames that are refused: an error ack with a code, the session lives, nothing is written.

use crate::support::{Broker, Guest, eventually, frame, records};
use serde_json::{Value, json};
use std::io::{Read, Write};

/// Frames, the ack's `ack`, the ack's `code`.
fn bad_frames() -> Vec<(Vec<u8>, &'static str, &'static str)> {
    let publish = |fields: &str| format!(r#"{{"type":"publish",{fields}}}"#).into_bytes();
    let deep = format!("\"payload\":{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep_unclosed = format!("\"payload\":{}", "{\"a\":".repeat(10_000));
    let quotes = "\\\"".repeat(30_000);
    let strings = |n: usize, bytes: usize| format!("{:?}", vec!["x".repeat(bytes); n]);
    let headers = |n: usize, bytes: usize| {
        let pairs: Vec<String> = (0..n).map(|i| format!("\"h{i:02}\":\"{}\"", "x".repeat(bytes))).collect();
        format!("\"headers\":{{{}}}", pairs.join(","))
    };
    let many = format!("\"events\":[{}{{}}]", "{},".repeat(1024));
    let mut frames = vec![
        (b"nonsense".to_vec(), "frame", "bad-json"),
        (b"{".to_vec(), "frame", "bad-json"),
        (b" ".to_vec(), "frame", "bad-json"),
        (b"{\"type\":\"publish\"} x".to_vec(), "frame", "bad-json"),
        (b"{\"type\":\"publish\",\"payload\":nul}".to_vec(), "frame", "bad-json"),
        (b"{\"type\":\"publish\",\"payload\":\"a\nb\"}".to_vec(), "frame", "bad-json"),
        (b"{\"type\":\"publish\",\"payload\":\"\xff\"}".to_vec(), "publish", "not-utf8"),
        (b"\xff".to_vec(), "frame", "not-utf8"),
        (b"[]".to_vec(), "frame", "not-an-object"),
        (b"7".to_vec(), "frame", "not-an-object"),
        (b"null".to_vec(), "frame", "not-an-object"),
        (b"{}".to_vec(), "frame", "no-type"),
        (b"{\"type\":null,\"topic\":\"a\"}".to_vec(), "frame", "no-type"),
        (b"{\"type\":7}".to_vec(), "frame", "bad-field"),
        (b"{\"type\":\"PUBLISH\"}".to_vec(), "frame", "unknown-type"),
        (format!("{{\"type\":\"{}\"}}", "\\\"é\\n".repeat(5000)).into_bytes(), "frame", "unknown-type"),
        (b"{\"type\":\"publish\",\"type\":\"publish\"}".to_vec(), "frame", "duplicate-field"),
        (publish(r#""topic":"a","topic":"b""#), "publish", "duplicate-field"),
        (publish(r#""payload":1,"payload":2"#), "publish", "duplicate-field"),
        (publish(&deep), "publish", "too-deep"),
        (publish(&deep_unclosed), "frame", "too-deep"),
        (publish(r#""topic":7"#), "publish", "bad-field"),
        (publish(r#""id":["x"]"#), "publish", "bad-field"),
        (publish(&format!("\"payload\":\"{}\"", "x".repeat(61_440))), "publish", "event-too-large"),
        (publish(r#""id":"""#), "publish", "bad-id"),
        (publish(r#""id":"a\u0000""#), "publish", "bad-id"),
        (publish(&format!("\"id\":\"{}\"", "x".repeat(129))), "publish", "bad-id"),
        (publish(r#""key":"""#), "publish", "bad-key"),
        (publish(&format!("\"key\":\"{}\"", "x".repeat(256))), "publish", "bad-key"),
        (publish(r#""headers":["a"]"#), "publish", "bad-headers"),
        (publish(r#""headers":{"a":1}"#), "publish", "bad-headers"),
        (publish(&headers(33, 1)), "publish", "bad-headers"),
        (publish(&headers(2, 512)), "publish", "bad-headers"),
        (publish(r#""tags":{"a":"b"}"#), "publish", "bad-tags"),
        (publish(r#""tags":[""]"#), "publish", "bad-tags"),
        (publish(r#""tags":[1]"#), "publish", "bad-tags"),
        (publish(&format!("\"tags\":{}", strings(33, 1))), "publish", "bad-tags"),
        (publish(&format!("\"tags\":{}", strings(2, 513))), "publish", "bad-tags"),
        (publish(r#""caused_by":"x""#), "publish", "bad-caused-by"),
        (publish(&format!("\"caused_by\":{}", strings(33, 1))), "publish", "bad-caused-by"),
        (publish(r#""caused_by":[""]"#), "publish", "bad-id"),
        (publish(&format!("\"events\":\"{quotes}\"")), "publish", "bad-field"),
        (publish(&format!("\"headers\":\"{quotes}\"")), "publish", "bad-headers"),
        (publish(&format!("\"tags\":\"{quotes}\"")), "publish", "bad-tags"),
        (publish(r#""events":[]"#), "publish", "bad-field"),
        (publish(r#""events":{}"#), "publish", "bad-field"),
        (publish(&many), "publish", "too-many-events"),
    ];
    let long = "x".repeat(256);
    for topic in [
        "",
        ".",
        "a..b",
        ".a",
        "a.",
        "a b",
        "a\\tb",
        "a\\u0085b",
        "a\\u00a0b",
        "a.*",
        "a.>",
        "*",
        ">",
        "vm:",
        "vm:-x",
        "vm:a/b",
        &long,
    ] {
        frames.push((publish(&format!("\"topic\":\"{topic}\"")), "publish", "bad-topic"));
    }
    frames.push((publish("\"topic\":\"$dlq.x\""), "publish", "reserved-topic"));
    frames
}

#[test]
fn an_event_of_a_group_is_an_object() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    for events in ["[[]]", "[[\"topic\",1]]"] {
        let body = format!(r#"{{"type":"publish","events":{events}}}"#).into_bytes();
        check(&guest.ask(&body), ("publish", "bad-field"), &body);
    }
}

fn check(ack: &Value, want: (&str, &str), body: &[u8]) {
    let body = String::from_utf8_lossy(&body[..body.len().min(80)]);
    assert_eq!((&ack["type"], &ack["status"]), (&json!("ack"), &json!("error")), "{body}: {ack}");
    assert_eq!((&ack["ack"], &ack["code"]), (&json!(want.0), &json!(want.1)), "{body}: {ack}");
    let reason = ack["reason"].as_str().unwrap();
    assert!(!reason.is_empty() && reason.len() <= 256, "{body}: {reason}");
    assert_eq!(ack.as_object().unwrap().len(), 5, "{ack}");
}

#[test]
fn each_bad_frame_is_answered_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    for (body, ack, code) in bad_frames() {
        check(&guest.ask(&body), (ack, code), &body);
    }
    assert_eq!(guest.ask(r#"{"type":"publish","topic":"good"}"#)["seq"], 1);
    eventually("the good one", || Some(()).filter(|()| broker.log("bus").len() == 1));
    eventually("its seq", || (broker.status()["broker"]["journal"]["head_seq"] == 1).then_some(()));
}

#[test]
fn answers_keep_the_order_of_the_frames() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let (bad, mut bytes) = (bad_frames(), Vec::new());
    for (n, (body, ..)) in bad.iter().enumerate() {
        bytes.extend(frame(format!(r#"{{"type":"publish","payload":{n}}}"#)));
        bytes.extend(frame(body));
    }
    let mut writer = guest.stream.get_ref().try_clone().unwrap();
    let sent = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
    for ((body, ack, code), seq) in bad.iter().zip(1..) {
        assert_eq!(guest.receive().unwrap()["seq"], seq);
        check(&guest.receive().unwrap(), (ack, code), body);
    }
    sent.join().unwrap();
    let log = eventually("the good ones", || Some(broker.log("dev")).filter(|log| log.len() == bad.len()));
    assert!(log.iter().zip(0..).all(|(e, n)| e["payload"] == n));
}

#[test]
fn the_largest_that_is_allowed_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let deepest = format!(r#"{{"type":"publish","payload":{}{}}}"#, "[".repeat(63), "]".repeat(63));
    let long_id = format!(r#"{{"type":"publish","id":"{}","key":"{}"}}"#, "i".repeat(128), "k".repeat(255));
    let long_topic = format!(r#"{{"type":"publish","topic":"{}"}}"#, "t".repeat(255));
    // And among others.
    let payload = format!("{{\"payload\":{}{}}}", "[".repeat(63), "]".repeat(63));
    let together = format!(r#"{{"type":"publish","events":[{payload}]}}"#);
    let too_deep = format!(r#"{{"type":"publish","events":[{{"payload":[{payload}]}}]}}"#);
    assert_eq!(guest.ask(too_deep)["code"], "too-deep");
    for body in [deepest, together, long_id, long_topic] {
        assert_eq!(guest.ask(&body)["status"], "ok", "{body}");
    }
    // The event grows until it is refused: the bound is 60 KiB of line, give or take its two numbers.
    let publish = |n: usize| format!(r#"{{"type":"publish","id":"{n:05}","payload":"{}"}}"#, "x".repeat(n));
    let (mut fits, mut refused, mut stored) = (0, 61_440, 4);
    while refused - fits > 1 {
        let n = (fits + refused) / 2;
        match guest.ask(publish(n))["status"].as_str() {
            Some("ok") => (fits, stored) = (n, stored + 1),
            _ => refused = n,
        }
    }
    let log = eventually("the lines", || Some(broker.log("dev")).filter(|log| log.len() == stored));
    let longest = log.iter().map(|e| e["payload"].as_str().map_or(0, str::len)).max().unwrap();
    assert_eq!(longest, fits);
    assert!((61_300..61_440).contains(&fits), "{fits}");
    // A frame of 65,536 bytes is no broken framing, whatever is in it.
    let padded = r#"{"type":"heartbeat"}"#.to_owned();
    let padded = format!("{padded}{}", " ".repeat(65_536 - padded.len()));
    assert_eq!(guest.ask(padded)["ack"], "heartbeat");
}

/// Everything up to the end; the last frame is apart. It must be an end, not a reset.
fn read_out(guest: &mut Guest) -> (Vec<Value>, Value) {
    let mut bytes = Vec::new();
    guest.stream.read_to_end(&mut bytes).expect("an orderly end");
    let (mut frames, mut rest) = (Vec::new(), &bytes[..]);
    while let Some((length, more)) = rest.split_first_chunk::<4>() {
        let (body, more) = more.split_at(u32::from_be_bytes(*length) as usize);
        frames.push(serde_json::from_slice(body).unwrap());
        rest = more;
    }
    let last = frames.pop().expect("a close frame");
    (frames, last)
}

#[test]
fn broken_framing_closes_behind_the_acks_that_are_owed() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    for (vm, head, reason) in [
        ("empty", 0u32, "frame-empty"),
        ("large", 65_537, "frame-too-large"),
        ("text", u32::from_be_bytes(*b"GET "), "frame-too-large"),
        ("most", u32::MAX, "frame-too-large"),
    ] {
        let mut guest = broker.guest(vm);
        let mut bytes: Vec<u8> =
            (0..500).flat_map(|n| frame(format!(r#"{{"type":"publish","payload":{n}}}"#))).collect();
        bytes.extend(head.to_be_bytes());
        // It goes on talking: what nobody reads must not cost it the reason.
        bytes.extend(vec![b'x'; 50_000]);
        guest.stream.get_mut().write_all(&bytes).unwrap();
        let (acks, close) = read_out(&mut guest);
        assert_eq!(close, json!({"type":"close","reason":reason,"retry_after_ms":0}), "{vm}");
        assert_eq!(acks.len(), 500);
        assert!(acks.iter().all(|ack| ack["status"] == "ok"));
        let log = eventually("the log", || Some(broker.log(vm)).filter(|log| log.len() == 500));
        assert_eq!(log[499]["payload"], 499);
        let record = eventually("the record", || {
            records(dir.path(), "bus-events")
                .into_iter()
                .find(|r| r["vm"] == vm && r["action"] == "disconnect")
        });
        assert_eq!(record["reason"], reason);
        let keys: Vec<&String> = record.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["action", "detail", "reason", "session", "timestamp", "vm"]);
    }
}

#[test]
fn a_guest_that_closed_its_side_gets_what_it_is_owed() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let mut bytes: Vec<u8> = (0..300).flat_map(|_| frame(r#"{"type":"publish"}"#)).collect();
    // The last one is cut short.
    bytes.truncate(bytes.len() - 1);
    guest.stream.get_mut().write_all(&bytes).unwrap();
    guest.stream.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    let (acks, close) = read_out(&mut guest);
    assert_eq!(acks.len(), 299);
    assert_eq!(close["reason"], "peer-closed");
}
