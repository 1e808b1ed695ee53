//! `castra bus publish --jsonl`: one event a line.

use crate::publish_cli::{command, failure, publish};
use crate::support::{Broker, eventually};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

/// The lines of a stream, parsed.
fn objects(stream: &[u8]) -> Vec<Value> {
    std::str::from_utf8(stream).unwrap().lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn lines(stream: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(stream).lines().map(str::to_owned).collect()
}

fn spawn(root: &Path, args: &[&str]) -> Child {
    let pipes = |command: &mut std::process::Command| {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    pipes(&mut command(root, &[&["--jsonl"], args].concat()))
}

fn head_seq(broker: &Broker) -> u64 {
    broker.status()["broker"]["journal"]["head_seq"].as_u64().unwrap()
}

const MIXED: &str = concat!(
    "{\"topic\":\"a\",\"payload\":1,\"id\":\"one\"}\n",
    "\n",
    "{\"topic\":\"a\",\"payload\":oops}\n",
    "  \t\r\n",
    "{\"topic\":\"a..b\"}\n",
    "[1]\n",
    "{\"topic\":\"b\",\"payload\":{\"x\":[1,2]},\"key\":\"k\",\"unknown\":[[]],\"seq\":7,\"ts\":1,\"vm\":\"web\"}\r\n",
    "{\"topic\":\"$sys\"}\n",
    "{\"id\":\"x\",\"id\":\"y\"}\n",
    "{\"events\":[{}]}\n",
    "\u{feff}{}\n",
    "{\"type\":\"event\",\"id\":\"three\"}\n",
);

#[test]
fn good_lines_are_stored_and_each_bad_one_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let output = publish(dir.path(), &["--jsonl"], MIXED.as_bytes());
    let (out, said) = (lines(&output.stdout), lines(&output.stderr));
    assert_eq!(output.status.code(), Some(77), "the worst of 65 and 77: {said:?}");
    assert_eq!((out.len(), &out[0], &out[2]), (3, &"seq=1 id=one".into(), &"seq=3 id=three".into()));
    let starts = [
        "castra: line 3: bad-json: ",
        "castra: line 5: bad-topic: ",
        "castra: line 6: not-an-object: ",
        "castra: line 8: reserved-topic: ",
        "castra: line 9: duplicate-field: ",
        "castra: line 10: bad-field: ",
        "castra: line 11: bad-json: ",
        "castra: 7 of 10 lines were refused",
    ];
    assert_eq!(said.len(), starts.len(), "{said:#?}");
    for (line, start) in said.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
    assert!(said[0].ends_with("in column 24"), "{}", said[0]);
    let events = broker.log("host");
    assert_eq!(events.iter().map(|e| &e["seq"]).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!((&events[1]["topic"], &events[1]["payload"]), (&json!("b"), &json!({"x": [1, 2]})));
    assert_eq!((&events[1]["key"], &events[1]["vm"]), (&json!("k"), &json!("host")));
    assert_eq!((&events[2]["topic"], &events[2]["payload"]), (&json!("broadcast"), &Value::Null));

    let output = publish(dir.path(), &["--jsonl", "--json"], MIXED.as_bytes());
    let (out, said) = (objects(&output.stdout), objects(&output.stderr));
    let again = json!({"schema": 1, "line": 1, "seq": 1, "id": "one", "topic": "a", "duplicate": true});
    assert_eq!((&out[0], &out[1]["seq"], &out[2]["seq"]), (&again, &json!(4), &json!(3)));
    assert_eq!(
        (&out[1]["line"], &out[2]["line"], &out[2]["topic"]),
        (&json!(7), &json!(12), &json!("broadcast"))
    );
    let codes: Vec<Value> = said.iter().map(|o| json!([o["line"], o["code"], o["exit"]])).collect();
    let want = json!([
        [3, "bad-json", 65],
        [5, "bad-topic", 65],
        [6, "not-an-object", 65],
        [8, "reserved-topic", 77],
        [9, "duplicate-field", 65],
        [10, "bad-field", 65],
        [11, "bad-json", 65],
        [null, "lines-refused", 77],
    ]);
    assert_eq!(json!(codes), want);
    assert_eq!((&said[7]["stored"], &said[7]["refused"]), (&json!(3), &json!(7)));
}

#[test]
fn a_dry_run_says_the_same_without_a_broker() {
    let output = publish(Path::new("/nowhere"), &["--jsonl", "--dry-run", "--json"], MIXED.as_bytes());
    let (out, said) = (objects(&output.stdout), objects(&output.stderr));
    assert_eq!(output.status.code(), Some(77));
    assert_eq!(out[0], json!({"id": "one", "vm": "host", "topic": "a", "payload": 1}));
    assert_eq!((out.len(), &out[2]["id"]), (3, &json!("three")));
    let codes: Vec<&str> = said.iter().map(|object| object["code"].as_str().unwrap()).collect();
    let want = [
        "bad-json",
        "bad-topic",
        "not-an-object",
        "reserved-topic",
        "duplicate-field",
        "bad-field",
        "bad-json",
    ];
    assert_eq!(codes, [&want[..], &["lines-refused"]].concat());
    let output = publish(Path::new("/nowhere"), &["--jsonl", "--dry-run"], b"{}\n");
    assert_eq!((output.status.code(), lines(&output.stdout).len()), (Some(0), 1));
}

#[test]
fn what_tail_prints_can_be_published_elsewhere() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (Broker::start(one.path()), Broker::start(other.path()));
    let mut guest = from.guest("web");
    for n in 0..20 {
        let body = json!({
            "type": "publish", "topic": format!("t.{n}"), "payload": {"n": n, "text": "ü\n\"\\"}, "key": "k", "tags": ["a"],
            "headers": {"h": "1"}, "caused_by": ["x"],
        });
        assert_eq!(guest.ask(body.to_string())["status"], "ok");
    }
    eventually("the log", || (from.log("bus").len() == 20).then_some(()));
    let tail = from.run(&["bus", "tail", "-n", "100", "-o", "json"]);
    let output = publish(other.path(), &["--jsonl"], &tail.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bare = |mut event: Value| {
        let fields = event.as_object_mut().unwrap();
        for name in ["seq", "ts", "vm"] {
            assert!(fields.remove(name).is_some());
        }
        event
    };
    let (want, got) = (from.log("bus").into_iter().map(bare), to.log("bus").into_iter().map(bare));
    assert_eq!(got.collect::<Vec<_>>(), want.collect::<Vec<_>>());
}

#[test]
fn the_command_line_says_what_a_line_leaves_out() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let args = ["--jsonl", "t", "--key", "k", "--header", "a=1", "--tag", "x", "--caused-by", "c"];
    let input =
        b"{}\n{\"topic\":\"u\",\"key\":\"l\",\"headers\":{\"b\":\"2\"},\"tags\":[],\"caused_by\":[\"d\"]}\n";
    let output = publish(dir.path(), &args, input);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = |event: &Value| {
        ["topic", "key", "headers", "tags", "caused_by"].map(|name| event[name].clone()).to_vec()
    };
    let events = broker.log("host");
    assert_eq!(json!(said(&events[0])), json!(["t", "k", {"a": "1"}, ["x"], ["c"]]));
    assert_eq!(json!(said(&events[1])), json!(["u", "l", {"b": "2"}, [], ["d"]]));
}

#[test]
fn an_input_that_ends_in_half_a_line_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let output = publish(dir.path(), &["--jsonl"], b"{\"topic\":\"a\"}\n{\"topic\":\"b\"}");
    assert_eq!((output.status.code(), lines(&output.stdout).len()), (Some(0), 2), "a whole object is taken");
    for half in
        [&b"{\"topic\":\"c\",\"pay"[..], b"{\"topic\":\"c\"", b"{\"topic\":\"\xc3", b"{\"payload\":12"]
    {
        let input = [b"{\"topic\":\"a\"}\n\n", half].concat();
        let output = publish(dir.path(), &["--jsonl"], &input);
        let said = lines(&output.stderr);
        assert_eq!((output.status.code(), said.len()), (Some(65), 2), "{said:?}");
        assert!(said[0].starts_with("castra: line 3: half-line: "), "{said:?}");
    }
    assert_eq!(broker.log("host").len(), 6);
}

#[test]
fn a_line_without_end_takes_no_memory_and_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut child = spawn(dir.path(), &[]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"{}\n{\"payload\":\"").unwrap();
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..100 {
        stdin.write_all(&piece).unwrap();
    }
    let used = crate::support::rss_kib(child.id() as i32);
    assert!(used < 40_000, "{used} KiB for a line of 100 MiB");
    // As long as a frame may be, and one more.
    for length in [65_536 - 14, 65_536 - 13] {
        let line = format!("{{\"payload\":\"{}\"}}", " ".repeat(length));
        stdin.write_all(format!("\"}}\n{line}").as_bytes()).unwrap();
    }
    stdin.write_all(b"\n{\"id\":\"last\"}\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = lines(&output.stderr);
    assert_eq!(output.status.code(), Some(65), "{said:?}");
    assert_eq!(said.iter().filter(|line| line.contains(": event-too-large: ")).count(), 3, "{said:?}");
    assert_eq!(said[0], "castra: line 2: event-too-large: the line is over 65536 bytes");
    assert_eq!(broker.log("host").pop().unwrap()["id"], "last");
}

#[test]
fn each_line_is_answered_while_stdin_stays_open() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start_args(dir.path(), &["--idle-time", "7s"]);
    let mut child = spawn(dir.path(), &["--timeout", "3s"]);
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut said = String::new();
    for n in 1..=3 {
        stdin.write_all(format!("{{\"id\":\"i{n}\"}}\n").as_bytes()).unwrap();
        said.clear();
        stdout.read_line(&mut said).unwrap();
        assert_eq!(said, format!("seq={n} id=i{n}\n"));
    }
    // Longer than the timeout and than the broker's patience: nothing is under way, and it says that it lives.
    std::thread::sleep(Duration::from_secs(9));
    stdin.write_all(b"{\"id\":\"i4\"}\n").unwrap();
    drop(stdin);
    said.clear();
    stdout.read_to_string(&mut said).unwrap();
    assert_eq!(said, "seq=4 id=i4\n");
    assert!(child.wait().unwrap().success());
    drop(broker);
}

#[test]
fn many_lines_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let input: String = (1..=30_000).map(|n| format!("{{\"topic\":\"t\",\"payload\":{n}}}\n")).collect();
    let file = dir.path().join("events.jsonl");
    std::fs::write(&file, input).unwrap();
    let output = publish(dir.path(), &["--jsonl", "--file", file.to_str().unwrap()], b"");
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
    let out = lines(&output.stdout);
    assert_eq!(out.len(), 30_000);
    for ((line, event), n) in out.iter().zip(broker.log("host")).zip(1..) {
        assert_eq!(*line, format!("seq={n} id={}", event["id"].as_str().unwrap()));
        assert_eq!(event["payload"], n);
    }
}

#[test]
fn a_slow_reader_of_stdout_slows_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut child = spawn(dir.path(), &[]);
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        for n in 1..=40_000 {
            stdin.write_all(format!("{{\"payload\":{n}}}\n").as_bytes()).unwrap();
        }
    });
    // Nobody reads: what fits pipes and window is stored, and then no more.
    let mut stood = (0, 0);
    let stored = eventually("a standstill", || {
        let seq = head_seq(&broker);
        stood = if seq == stood.0 && seq > 0 { (seq, stood.1 + 1) } else { (seq, 0) };
        std::thread::sleep(Duration::from_millis(10));
        (stood.1 == 20).then_some(seq)
    });
    assert!(stored < 20_000, "{stored} stored while nobody read");
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!((output.status.code(), lines(&output.stdout).len()), (Some(0), 40_000));
    eventually("all of them", || (head_seq(&broker) == 40_000).then_some(()));
}

/// Writes the same line until nobody takes it.
fn endless(child: &mut Child) -> std::thread::JoinHandle<()> {
    let mut stdin = child.stdin.take().unwrap();
    std::thread::spawn(move || {
        let lines = "{\"payload\":\"again\"}\n".repeat(100);
        while stdin.write_all(lines.as_bytes()).is_ok() {}
    })
}

#[test]
fn a_closed_stdout_ends_it_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut child = spawn(dir.path(), &[]);
    let writer = endless(&mut child);
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("seq=1 id="), "{first}");
    let output: Output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
    writer.join().unwrap();
    drop(broker);
}

#[test]
fn a_full_stdout_says_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let start = || {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        command(dir.path(), &["--jsonl", "--json"])
            .stdin(Stdio::piped())
            .stdout(full)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    // It is over before it can stop.
    let mut short = start();
    short.stdin.take().unwrap().write_all(b"{}\n").unwrap();
    let object = failure(&short.wait_with_output().unwrap());
    assert_eq!(
        (&object["exit"], &object["stored"], &object["resume_line"]),
        (&json!(74), &json!(1), &json!(2))
    );
    let mut child = start();
    let writer = endless(&mut child);
    let object = failure(&child.wait_with_output().unwrap());
    writer.join().unwrap();
    assert_eq!((&object["code"], &object["exit"]), (&json!("io"), &json!(74)), "{object}");
    let seq = object["stored"].as_u64().unwrap();
    assert_eq!(object["resume_line"], seq + 1, "{object}");
    eventually("as much in the journal", || (head_seq(&broker) == seq + 1).then_some(()));
}

#[test]
fn an_input_that_cannot_be_read_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    for path in ["/nowhere/x", "/"] {
        let object = failure(&publish(dir.path(), &["--jsonl", "--json", "--file", path], b""));
        assert_eq!((&object["code"], &object["exit"]), (&json!("unreadable"), &json!(74)), "{object}");
    }
    assert_eq!(publish(dir.path(), &["--jsonl"], b"").status.code(), Some(0), "nothing to do is done");
    drop(broker);
}
