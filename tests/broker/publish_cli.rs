//! `castra bus publish` of one event, seen by an operator.

use crate::fake_broker::play;
use crate::support::{Broker, LocalGuest, castra, eventually};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

pub fn command(root: &Path, args: &[&str]) -> Command {
    let mut command = castra();
    command.arg("--state-root").arg(root).args(["bus", "publish"]).args(args);
    command
}

pub fn publish(root: &Path, args: &[&str], stdin: &[u8]) -> Output {
    let mut command = command(root, args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // It may end without reading; and it may read no more until it is read.
        scope.spawn(move || pipe.write_all(stdin));
        child.wait_with_output().unwrap()
    })
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

/// The object of a failure.
pub fn failure(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    let object: Value = serde_json::from_str(said.lines().last().unwrap_or_default()).expect(&said);
    assert_eq!(object["exit"], output.status.code().unwrap(), "{object}");
    assert_eq!(object["schema"], 1);
    object
}

/// The codes with which these arguments are refused by a broker, and by `--dry-run` without one.
fn codes(root: &Path, args: &[&str]) -> (Value, Value) {
    let json = |more: &[&str], root: &Path| {
        let output = publish(root, &[args, more].concat(), b"");
        assert!(output.stdout.is_empty(), "{args:?}");
        let object = failure(&output);
        json!([object["code"], object["exit"]])
    };
    (json(&["--json"], root), json(&["--json", "--dry-run"], Path::new("/nowhere")))
}

#[test]
fn every_field_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let file = dir.path().join("payload.json");
    std::fs::write(&file, "{\n  \"n\": 1\n}\n").unwrap();
    let args = [
        "t",
        "--file",
        file.to_str().unwrap(),
        "--id",
        "i",
        "--key",
        "k",
        "--header",
        "b=2=2",
        "--header",
        "a=",
        "--tag",
        "x",
        "--tag",
        "y z",
        "--caused-by",
        "c1",
        "--caused-by",
        "c2",
    ];
    let output = publish(dir.path(), &args, b"");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "seq=1 id=i\n");
    let mut event = broker.log("host").pop().unwrap();
    event.as_object_mut().unwrap().remove("ts");
    let want = json!({
        "seq": 1, "id": "i", "vm": "host", "topic": "t", "key": "k", "headers": {"a": "", "b": "2=2"},
        "tags": ["x", "y z"], "caused_by": ["c1", "c2"], "payload": {"n": 1},
    });
    assert_eq!(event, want);
    let output = publish(dir.path(), &["t", "--file", "-", "--json"], b" [1]");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let id = broker.log("host").pop().unwrap()["id"].clone();
    assert_eq!(said, json!({"schema": 1, "seq": 2, "id": id, "topic": "t"}));
}

#[test]
fn a_dry_run_shows_what_would_be_stored_and_needs_no_broker() {
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "t",
        "{\"n\":\n1}",
        "--id",
        "i\"1",
        "--key",
        "k",
        "--header",
        "a=1",
        "--tag",
        "x",
        "--caused-by",
        "c",
    ];
    let dry = publish(&dir.path().join("none"), &[&args[..], &["--dry-run"]].concat(), b"");
    assert!(dry.status.success(), "{}", String::from_utf8_lossy(&dry.stderr));
    assert!(!dir.path().join("none").exists());
    let broker = Broker::start(dir.path());
    assert!(publish(dir.path(), &args, b"").status.success());
    let log = std::fs::read_to_string(dir.path().join("logs/bus/host.log")).unwrap();
    let (head, tail) = log.split_at(log.find("\"id\"").unwrap());
    assert!(head.starts_with("{\"seq\":1,\"ts\":"), "{head}");
    assert_eq!(String::from_utf8(dry.stdout).unwrap(), format!("{{{tail}"));
    drop(broker);
}

#[test]
fn a_dry_run_refuses_what_the_broker_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let deep = format!("{}{}", "[".repeat(64), "]".repeat(64));
    let large = format!("\"{}\"", "x".repeat(61_400));
    let (long, long_header) = ("x".repeat(256), format!("h={}", "x".repeat(1024)));
    let many = ["t", "1"].into_iter().chain(["--tag", "x"].into_iter().cycle().take(66)).collect::<Vec<_>>();
    let cases: [(&[&str], &str, i32); 17] = [
        (&["t", "{"], "bad-json", 65),
        (&["t", &deep], "too-deep", 65),
        (&["t", &large], "event-too-large", 65),
        (&["a..b"], "bad-topic", 65),
        (&["$dlq.x"], "reserved-topic", 77),
        (&["t", "1", "--id", ""], "bad-id", 65),
        (&["t", "1", "--id", &long], "bad-id", 65),
        (&["t", "1", "--key", ""], "bad-key", 65),
        (&["t", "1", "--key", &long], "bad-key", 65),
        (&["t", "1", "--header", "a=1", "--header", "a=2"], "bad-headers", 65),
        (&["t", "1", "--header", &long_header], "bad-headers", 65),
        (&["t", "1", "--tag", ""], "bad-tags", 65),
        (&many, "bad-tags", 65),
        (&["t", "1", "--caused-by", ""], "bad-id", 65),
        (&["vm:"], "bad-topic", 65),
        (&["t", "1", "--file", "/dev/null/x"], "", 2),
        (&["t", "--file", "/dev/null/x"], "unreadable", 74),
    ];
    for (args, code, exit) in cases {
        if exit == 2 {
            assert_eq!(publish(dir.path(), args, b"").status.code(), Some(2), "{args:?}");
            continue;
        }
        let want = json!([code, exit]);
        assert_eq!(codes(dir.path(), args), (want.clone(), want), "{args:.80?}");
    }
    assert_eq!(broker.status()["broker"]["journal"]["head_seq"], 0);
}

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    for args in [
        &["t", "1", "--header", "a"][..],
        &["t", "1", "--header", "=1"],
        &["t", "--jsno"],
        &["t", "1", "--file", "x"],
        &["--jsonl", "t", "1"],
        &["--jsonl", "--payload", "1"],
        &["--jsonl", "--id", "x"],
        &["t", "--topic", "u"],
        &["--timeout", "soon"],
    ] {
        let output = publish(Path::new("/nowhere"), args, b"");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn bad_json_is_said_with_line_and_column() {
    let payload = b"{\n  \"a\": 1,\n  \"b\": oops\n}\n";
    let root = Path::new("/nowhere");
    let said = refused(root, &["t", "-"], payload, 65);
    assert!(said.contains("bad-json") && said.contains("line 3 column 8"), "{said}");
    let object = failure(&publish(root, &["t", "-", "--json"], payload));
    assert_eq!((&object["line"], &object["column"]), (&json!(3), &json!(8)), "{object}");
    // White space in front counts.
    assert!(refused(root, &["t", "-"], b"\n\n  {]", 65).contains("line 3 column 4"));
}

#[test]
fn an_answer_that_never_came_names_the_id_to_look_for() {
    for (own, timeout) in [(None, "10s"), (Some("my-id"), "10s"), (None, "300ms"), (Some("my-id"), "300ms")] {
        let dir = tempfile::tempdir().unwrap();
        // It takes the event, and goes; or it never says a word again.
        let broker = play(dir.path(), move |mut session| {
            let sent = session.receive().unwrap();
            if timeout == "300ms" {
                assert_eq!(session.receive(), None, "nothing is sent twice");
            }
            sent
        });
        let mut args = vec!["t", "7", "--json", "--timeout", timeout];
        args.extend(own.iter().flat_map(|id| ["--id", id]));
        let object = failure(&publish(dir.path(), &args, b""));
        let sent = broker.join().unwrap();
        let want = if timeout == "300ms" { ("timeout", 124) } else { ("outcome-unknown", 75) };
        assert_eq!((object["code"].as_str().unwrap(), object["exit"].as_i64().unwrap()), want, "{object}");
        assert_eq!(object["id"], sent["id"]);
        let id = sent["id"].as_str().unwrap();
        assert!(id.len() == 36 || Some(id) == own, "{id}");
        let said = object["reason"].as_str().unwrap();
        assert!(said.contains(&format!("castra bus tail --grep {id}")), "{said}");
    }
}

#[test]
fn what_a_broker_says_at_its_end_is_told() {
    type Script = fn(&mut crate::fake_broker::Session);
    let cases: [(Script, &str, i32, &str); 5] = [
        (|session| session.refuse("outcome-unknown"), "outcome-unknown", 75, "--grep"),
        (|session| session.refuse("disk-full"), "disk-full", 75, "nothing was stored"),
        (|session| session.refuse("new-code"), "new-code", 77, "because"),
        (|session| session.refuse("too-new"), "too-new", 65, "because"),
        // It answers all that it took before it closes.
        (|session| session.close("draining"), "draining", 75, "nothing was stored"),
    ];
    for (script, code, exit, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        let broker = play(dir.path(), move |mut session| {
            session.receive().unwrap();
            script(&mut session);
        });
        let object = failure(&publish(dir.path(), &["t", "--json"], b""));
        assert_eq!((&object["code"], &object["exit"]), (&json!(code), &json!(exit)), "{object}");
        assert!(object["reason"].as_str().unwrap().contains(says), "{object}");
        broker.join().unwrap();
    }
}

#[test]
fn what_answers_and_is_no_broker_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join("castra.sock")).unwrap();
    let other = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"220 smtp\r\n").unwrap());
    assert!(refused(dir.path(), &["t"], b"", 69).contains("no castra broker"));
    other.join().unwrap();
}

#[test]
fn a_state_root_that_can_have_no_socket_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("x".repeat(110));
    let said = refused(&root, &["t"], b"", 65);
    assert!(said.contains("at most 103") && said.contains("shorter --state-root"), "{said}");
    assert_eq!(failure(&publish(&root, &["--jsonl", "--json"], b""))["code"], "path-too-long");
}

#[test]
fn a_state_root_of_somebody_else_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        let why = "a_state_root_of_somebody_else_is_refused: it needs root to be somebody else";
        assert!(std::env::var_os("CASTRA_TEST_ALL").is_none_or(|v| v != "1"), "cannot run: {why}");
        return println!("skipped: {why}");
    }
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("castra");
    std::fs::copy(env!("CARGO_BIN_EXE_castra"), &program).unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let broker = Broker::start(&dir.path().join("root"));
    for more in [&["t"][..], &["--jsonl"]] {
        let output = Command::new(&program)
            .arg("--state-root")
            .arg(&broker.root)
            .args(["bus", "publish", "--json"])
            .args(more)
            .uid(65_534)
            .gid(65_534)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let object = failure(&output);
        assert_eq!((&object["code"], &object["exit"]), (&json!("permission-denied"), &json!(77)), "{object}");
        assert!(object["reason"].as_str().unwrap().contains("root"), "{object}");
    }
}

#[test]
fn stdout_that_takes_nothing_does_not_hide_that_it_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command(dir.path(), &["t"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(74), "{said}");
    assert!(said.contains("stored as seq=1") && said.contains("do not send it again"), "{said}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command(dir.path(), &["t"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr),
        (Some(0), Vec::new()),
        "nobody reads it: nothing to say"
    );
    assert_eq!(broker.log("host").len(), 2);
}
