//! Lone surrogates (`"\ud800"`) in payloads: refused at every way in, and passed on by every reader of a journal that has
//! one of before.

use crate::support::{Broker, castra, eventually};
use castra::core::journal::record::{HEAD_BYTES, salt};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

const LONE: [&str; 4] = [r#""\ud800""#, r#"{"\ud83d":1}"#, r#"[{"a":["\udc00\ud800"]}]"#, r#""x\uDBFF""#];

fn piped(broker: &Broker, args: &[&str], input: &str) -> Output {
    let mut command = castra();
    command.arg("--state-root").arg(&broker.root).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn half_a_character_is_refused_at_every_way_in() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    for payload in LONE {
        let at = payload.find('\\').unwrap();
        let ack = guest.ask(format!(r#"{{"type":"publish","topic":"t","payload":{payload}}}"#));
        assert_eq!((&ack["ack"], &ack["code"]), (&json!("publish"), &json!("bad-json")), "{ack}");
        assert!(ack["reason"].as_str().unwrap().contains(&format!(" at byte {at}, ")), "{ack}");
        let events = format!(r#"{{"type":"publish","events":[{{"payload":1}},{{"payload":{payload}}}]}}"#);
        assert_eq!(guest.ask(events)["code"], "bad-json");
        for args in [&["bus", "publish", "t", payload][..], &["bus", "publish", "--dry-run", "t", payload]] {
            let output = broker.run(args);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(65), "{said}");
            assert!(said.contains("bad-json") && said.contains(&format!(" at byte {at}, ")), "{said}");
        }
    }
    // One line of many is refused, and the others are published.
    let line = format!("{{\"topic\":\"t\",\"payload\":1}}\n{{\"topic\":\"t\",\"payload\":{}}}\n", LONE[0]);
    let output = piped(&broker, &["bus", "publish", "--jsonl"], &line);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(65), "{said}");
    assert!(said.contains("bad-json") && said.contains(" at byte 1, "), "{said}");
    // Both halves are a character.
    assert_eq!(guest.ask(r#"{"type":"publish","payload":"\ud83d\ude00\\ud800"}"#)["seq"], 2);
}

#[test]
fn half_a_character_is_refused_by_an_agent() {
    let dir = tempfile::tempdir().unwrap();
    let (state, socket) = (dir.path().join("state"), dir.path().join("socket"));
    let mut command = castra();
    command.args(["agent", "--vm", "web", "--broker", "unix:/nowhere", "--state-dir"]).arg(&state);
    command.arg("--socket").arg(&socket).stdin(Stdio::null()).stderr(Stdio::null());
    let mut agent = command.spawn().unwrap();
    eventually("its socket", || socket.exists().then_some(()));
    let answers = LONE.map(|payload| {
        let mut publish = castra();
        publish.args(["agent", "publish", "t", payload, "--socket"]).arg(&socket);
        publish.output().unwrap()
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent.id() as i32), Signal::SIGTERM).unwrap();
    agent.wait().unwrap();
    for Output { status, stderr, .. } in answers {
        let said = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(65), "{said}");
        assert!(said.contains("bad-json") && said.contains(" at byte "), "{said}");
    }
}

/// Makes every `\ue8..` of a journal that is closed a `\ud8..`, which an older broker stored, and its logs the same.
fn spoil(root: &Path) {
    let swap = |bytes: &mut [u8]| {
        let places: Vec<usize> = memchr::memmem::find_iter(bytes, br"\ue8").collect();
        places.iter().for_each(|at| bytes[at + 2] = b'd');
        !places.is_empty()
    };
    let format: Value = serde_json::from_slice(&std::fs::read(root.join("format")).unwrap()).unwrap();
    let id = format["journal"].as_str().unwrap().replace('-', "");
    let salt = salt(u128::from_str_radix(&id, 16).unwrap(), 1);
    let path = root.join("journal/00000000000000000001.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    let mut at = 4096;
    while let length @ 1.. = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize {
        let record = &mut bytes[at..at + HEAD_BYTES + length];
        if swap(record) {
            let crc = crc32c::crc32c_append(salt, &record[4..]);
            record[..4].copy_from_slice(&crc.to_le_bytes());
        }
        at += (HEAD_BYTES + length).next_multiple_of(8);
    }
    std::fs::write(path, bytes).unwrap();
    for log in std::fs::read_dir(root.join("logs/bus")).unwrap() {
        let path = log.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        swap(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn what_an_older_broker_stored_stops_no_reader() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    for payload in [r#""before""#, r#"{"\ue83d":["\ue800"]}"#, r#""behind""#] {
        guest.ask(format!(r#"{{"type":"publish","topic":"t","payload":{payload}}}"#));
    }
    drop(guest);
    assert_eq!(broker.stop().0, Some(0));
    spoil(dir.path());
    let broker = Broker::start(dir.path());
    let lines = |args: &[&str]| {
        let output = broker.run(args);
        let (out, said) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{args:?}: {out} {said}");
        out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    for output in ["text", "json", "raw"] {
        for args in [
            &["bus", "tail", "-q", "-n", "9"][..],
            &["bus", "subscribe", "t", "--from", "earliest", "-c", "3"],
        ] {
            let lines = lines(&[args, &["-o", output]].concat());
            assert!(lines.len() == 3 && lines[1].contains(r"\ud83d"), "{args:?} {output}: {lines:?}");
        }
    }
    let exec = ["bus", "subscribe", "t", "--from", "earliest", "-c", "3", "--exec", "echo $CASTRA_SEQ"];
    assert_eq!(lines(&exec), ["1", "2", "3"]);
    // A member that gives all of them up: they are dead letters, which are listed and shown.
    let mut guest = broker.guest("dev");
    guest.ask(r#"{"type":"subscribe","topic":"t","group":"g","from":"earliest"}"#);
    for _ in 0..3 {
        let body = String::from_utf8(guest.receive_body().unwrap()).unwrap();
        let seq = body.split("\"seq\":").nth(1).unwrap().split(',').next().unwrap();
        guest.send(format!(r#"{{"type":"term","group":"g","seq":{seq},"reason":"poison"}}"#));
    }
    eventually("the letters", || {
        let listed = broker.run(&["bus", "dlq", "ls", "g"]).stdout;
        (listed.iter().filter(|byte| **byte == b'\n').count() == 3).then_some(())
    });
    assert!(lines(&["bus", "dlq", "show", "g", "2", "-o", "raw"])[0].contains(r"\ud800"));
    let member =
        ["bus", "subscribe", "t", "--group", "h", "--from", "earliest", "--timeout", "1s", "-o", "json"];
    let printed = String::from_utf8(broker.run(&member).stdout).unwrap();
    assert_eq!(printed.lines().count(), 3, "{printed}");
    lines(&["verify"]);
}
