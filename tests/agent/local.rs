//! The agent's socket: one line, one answer, in order, whatever the lines are.

use crate::support::{PATIENCE, eventually};
use castra::core::agent::local::Door;
use castra::core::agent::outbox::{Bounds, Outbox};
use castra::core::identity::VmName;
use castra::core::limits::{FRAME_BYTES, LOCAL_CONNECTIONS};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::oneshot;

/// A door that is served by threads of its own.
struct Served {
    dir: tempfile::TempDir,
    outbox: Outbox,
    end: Option<oneshot::Sender<()>>,
    runtime: Option<tokio::runtime::Runtime>,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Served {
    fn start(bounds: Bounds) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(&dir.path().join("state"), bounds).unwrap().outbox;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (end, ended) = oneshot::channel();
        let door = {
            let _within = runtime.enter();
            Door::bind(&dir.path().join("run/agent.sock")).unwrap()
        };
        let serve = door.serve(VmName::parse("web").unwrap(), outbox.clone(), async {
            let _ = ended.await;
        });
        let task = runtime.spawn(serve);
        Served { dir, outbox, end: Some(end), runtime: Some(runtime), task: Some(task) }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/agent.sock")
    }

    fn connect(&self) -> Program {
        Program::connect(&self.socket())
    }

    fn pending(&self) -> Vec<Value> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let entries = runtime.block_on(self.outbox.pending(0, usize::MAX, usize::MAX)).unwrap();
        entries.iter().map(|entry| serde_json::from_slice(&entry.frame).unwrap()).collect()
    }

    /// Ends it and waits until it is over.
    fn end(&mut self) {
        drop(self.end.take());
        if let (Some(runtime), Some(task)) = (&self.runtime, self.task.take()) {
            runtime.block_on(task).unwrap();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A local program.
struct Program(BufReader<UnixStream>);

impl Program {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Program(BufReader::new(stream))
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// The next answer; `None` at the end.
    fn answer(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).expect(&line))
    }

    fn ask(&mut self, line: &str) -> Value {
        self.send(format!("{line}\n"));
        self.answer().unwrap()
    }

    fn close_writing(&self) {
        self.0.get_ref().shutdown(Shutdown::Write).unwrap();
    }
}

#[test]
fn a_line_is_answered_when_it_is_kept_with_all_that_it_says() {
    let served = Served::start(Bounds::default());
    let mut program = served.connect();
    let line = r#"{"type":"x","topic":"t","id":"i","key":"k","headers":{"a":"b"},"tags":["c"],"caused_by":["d"],"payload":[1, {"é":null}],"other":1}"#;
    assert_eq!(program.ask(line), serde_json::json!({"status": "ok", "id": "i"}));
    let want = serde_json::json!({
        "type": "publish", "topic": "t", "id": "i", "key": "k", "headers": {"a": "b"}, "tags": ["c"],
        "caused_by": ["d"], "payload": [1, {"é": null}],
    });
    assert_eq!(served.pending(), std::slice::from_ref(&want));
    assert_eq!(program.ask(line)["duplicate"], true, "sent again for want of an answer");
    assert_eq!(served.pending(), [want]);
    let answer = program.ask("{}");
    let id = answer["id"].as_str().unwrap();
    assert_eq!(id.as_bytes()[14], b'7', "{id} is a UUIDv7");
    assert_eq!(served.pending()[1], serde_json::json!({"type": "publish", "id": id}));
}

#[test]
fn bad_lines_are_answered_in_their_place_with_the_brokers_codes() {
    let served = Served::start(Bounds::default());
    let mut program = served.connect();
    let too_long = format!("{{\"payload\":\"{}\"}}", "x".repeat(FRAME_BYTES));
    let too_large = format!("{{\"payload\":\"{}\"}}", "x".repeat(62_000));
    let too_deep = format!("{{\"payload\":{}{}}}", "[".repeat(64), "]".repeat(64));
    let lines = [
        (r#"{"id":"1"}"#, "ok"),
        ("{", "bad-json"),
        ("[]", "not-an-object"),
        (r#"{"topic":"a b"}"#, "bad-topic"),
        (r#"{"topic":"$x"}"#, "reserved-topic"),
        (r#"{"id":""}"#, "bad-id"),
        (r#"{"key":""}"#, "bad-key"),
        (r#"{"headers":[]}"#, "bad-headers"),
        (r#"{"tags":[""]}"#, "bad-tags"),
        (r#"{"events":[{}]}"#, "bad-field"),
        (r#"{"id":"1","id":"2"}"#, "duplicate-field"),
        (&too_long, "event-too-large"),
        (&too_large, "event-too-large"),
        (&too_deep, "too-deep"),
        (r#"{"id":"2"}"#, "ok"),
    ];
    for (line, _) in lines {
        // Empty lines have no answer.
        program.send(format!("{line}\n\n  \r\n"));
    }
    program.send(b"\xff\xfe\n");
    for (line, want) in lines {
        let answer = program.answer().unwrap();
        let said = if answer["status"] == "ok" { &answer["status"] } else { &answer["code"] };
        assert_eq!(said, want, "{:.80}: {answer}", line);
    }
    assert_eq!(program.answer().unwrap()["code"], "not-utf8");
    assert_eq!(served.outbox.counts().pending, 2);
}

#[test]
fn many_lines_and_the_end_of_writing_are_answered_in_order() {
    let served = Served::start(Bounds::default());
    let mut program = served.connect();
    let reading = program.0.get_ref().try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(reading).lines();
        lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()).collect::<Vec<_>>()
    });
    let lines: Vec<String> = (0..5_000).map(|n| format!("{{\"id\":\"{n}\",\"payload\":{n}}}")).collect();
    // The last one has no line end.
    program.send(lines.join("\n"));
    program.close_writing();
    let answers = reader.join().unwrap();
    let ids: Vec<&str> = answers.iter().map(|answer| answer["id"].as_str().unwrap()).collect();
    assert!(ids.iter().eq((0..5_000).map(|n| n.to_string()).collect::<Vec<_>>().iter()));
    let kept: Vec<Value> = served.pending().iter().map(|frame| frame["payload"].clone()).collect();
    assert!(kept.iter().eq((0..5_000).map(Value::from).collect::<Vec<_>>().iter()));
}

#[test]
fn a_program_that_does_not_wait_for_its_answers_is_heard_to_its_end() {
    let served = Served::start(Bounds::default());
    let mut program = served.connect();
    for n in 0..200 {
        program.send(format!("{{\"id\":\"{n}\"}}\n"));
    }
    drop(program);
    eventually("all of them", || (served.outbox.counts().pending == 200).then_some(()));
}

#[test]
fn a_full_outbox_is_an_answer_and_the_connection_goes_on() {
    let served = Served::start(Bounds { bytes: 1_000, ..Bounds::default() });
    let mut program = served.connect();
    let large = format!("{{\"id\":\"l\",\"payload\":\"{}\"}}", "x".repeat(900));
    assert_eq!(program.ask(&large)["code"], "outbox-full");
    assert_eq!(program.ask(r#"{"id":"s"}"#)["status"], "ok");
}

#[test]
fn one_program_too_many_is_told_so_and_room_comes_back() {
    let served = Served::start(Bounds::default());
    let mut programs: Vec<Program> = (0..LOCAL_CONNECTIONS).map(|_| served.connect()).collect();
    // Each of them is in once it has an answer.
    for program in &mut programs {
        assert_eq!(program.ask("{}")["status"], "ok");
    }
    let mut more = served.connect();
    assert_eq!(more.answer().unwrap()["code"], "too-many-connections");
    assert_eq!(more.answer(), None);
    programs.pop();
    eventually("room", || {
        let mut program = served.connect();
        // Written to one that was closed already it may fail.
        let _ = program.0.get_mut().write_all(b"{}\n");
        let mut line = String::new();
        let _ = program.0.read_line(&mut line);
        line.contains("ok").then_some(())
    });
}

#[test]
fn one_that_takes_no_answers_is_cut_off_and_delays_nobody() {
    let served = Served::start(Bounds::default());
    let mut deaf = UnixStream::connect(served.socket()).unwrap();
    deaf.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let lines = "[]\n".repeat(1_000);
    let mut written = 0;
    while let Ok(n) = deaf.write(lines.as_bytes()) {
        written += n;
        assert!(written < 64 << 20, "it is read for ever");
    }
    assert_eq!(served.connect().ask("{}")["status"], "ok");
    // It never reads; that it is cut off is seen by writing.
    eventually("the end", || match deaf.write(b"[]\n") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Some(()),
        _ => None,
    });
}

#[test]
fn the_socket_is_the_groups_of_its_folder_and_goes_with_the_agent() {
    let mut served = Served::start(Bounds::default());
    let (socket, folder) = (served.socket(), served.dir.path().join("run"));
    let (is, within) = (std::fs::metadata(&socket).unwrap(), std::fs::metadata(&folder).unwrap());
    assert_eq!((is.mode() & 0o777, is.gid()), (0o660, within.gid()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _within = runtime.enter();
    assert!(Door::bind(&socket).is_err(), "it is served");
    let mut program = served.connect();
    program.send("{\"id\":\"1\"}\n");
    assert_eq!(program.answer().unwrap()["id"], "1");
    served.end();
    assert_eq!(program.answer(), None);
    assert!(!socket.exists());
    // One that was killed leaves its socket behind.
    let left = Door::bind(&socket).unwrap();
    drop(left);
    assert!(socket.exists());
    drop(Door::bind(&socket).unwrap());
}

#[test]
fn what_was_taken_is_answered_at_the_end() {
    let mut served = Served::start(Bounds::default());
    let mut program = served.connect();
    for n in 0..300 {
        program.send(format!("{{\"id\":\"{n}\"}}\n"));
    }
    assert_eq!(program.answer().unwrap()["id"], "0");
    served.end();
    // Behind the answers stands the end, or a reset for the lines that were not taken.
    let rest: Vec<String> = program.0.lines().map_while(Result::ok).collect();
    let answered = rest.iter().filter(|line| line.contains("\"ok\"")).count() + 1;
    assert_eq!(answered, served.pending().len(), "as many answers as events");
}
