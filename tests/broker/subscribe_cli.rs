//! `castra bus subscribe`: what it asks a broker for, what it prints, when it ends.

use crate::fake_broker::{FakeBroker, Session, delivered, line};
use crate::support::{PATIENCE, castra, eventually};
use crate::tail::Follow;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

pub const HELLO: &str = "hello vm:host capabilities=bus-v1,host-bus,heartbeat";

pub fn command(root: &Path, args: &[&str]) -> Command {
    let mut command = castra();
    command.arg("--state-root").arg(root).args(["bus", "subscribe"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A `castra bus subscribe` that runs.
pub struct Subscriber {
    pub follow: Follow,
    pub said: Receiver<String>,
}

impl Subscriber {
    pub fn start(root: &Path, args: &[&str]) -> Self {
        Self::run(command(root, args))
    }

    pub fn run(command: Command) -> Self {
        let mut follow = Follow::run(command);
        let stderr = BufReader::new(follow.child.stderr.take().unwrap());
        let (send, said) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Subscriber { follow, said }
    }

    /// The next line of stdout.
    pub fn line(&self) -> String {
        self.follow.line()
    }

    /// The next line of stderr.
    pub fn hear(&self) -> String {
        self.said.recv_timeout(PATIENCE).expect("a line on stderr")
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.follow.child.id() as i32), signal).unwrap();
    }

    /// Waits for its end: the exit code, what is left of stdout, and of stderr.
    pub fn end(&mut self) -> (Option<i32>, Vec<String>, Vec<String>) {
        let code = eventually("its end", || self.follow.child.try_wait().unwrap()).code();
        let rest = |lines: &Receiver<String>| {
            std::iter::from_fn(|| match lines.recv_timeout(PATIENCE) {
                Ok(line) => Some(line),
                Err(RecvTimeoutError::Disconnected) => None,
                Err(RecvTimeoutError::Timeout) => panic!("it ended and still writes"),
            })
            .collect()
        };
        (code, rest(&self.follow.lines), rest(&self.said))
    }
}

fn output(root: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command(root, args).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// Against a broker that plays `script`, its session's subscribe being received already.
fn against(args: &[&str], script: impl FnOnce(&mut Session)) -> (Option<i32>, Vec<String>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let broker = FakeBroker::start(dir.path());
    let mut subscriber = Subscriber::start(dir.path(), args);
    let mut session = broker.session(HELLO);
    session.receive().unwrap();
    script(&mut session);
    let end = subscriber.end();
    drop(session);
    end
}

#[test]
fn it_asks_for_one_subscription() {
    let asked = |args: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let broker = FakeBroker::start(dir.path());
        let mut subscriber = Subscriber::start(dir.path(), &[args, &["-c", "1", "-o", "raw"]].concat());
        let mut session = broker.session(HELLO);
        let asked = session.receive().unwrap();
        session.accept(7);
        session.events([7, 8]);
        assert_eq!(subscriber.end(), (Some(0), vec!["7".to_owned()], vec![]), "{args:?}");
        asked
    };
    assert_eq!(asked(&[]), json!({"type": "subscribe", "sub": "cli", "topic": ">", "from": "latest"}));
    assert_eq!(
        asked(&["build.*", "vm:web", "--from", "earliest"]),
        json!({"type": "subscribe", "sub": "cli", "topics": ["build.*", "vm:web"], "from": "earliest"})
    );
    for (from, want) in [
        ("latest", json!("latest")),
        ("@17", json!({"seq": 17})),
        ("@0", json!({"seq": 1})),
        ("id:a \"b\"", json!({"id": "a \"b\""})),
        ("2026-11-21T08:00:00.250Z", json!({"ts": 1_795_248_000_250_u64})),
        ("1970-01-01 00:00:05", json!({"ts": 5000})),
    ] {
        assert_eq!(asked(&["--from", from, "a"])["from"], want, "{from}");
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    let ago = asked(&["--from", "10m", "a"])["from"]["ts"].as_u64().unwrap();
    assert!((now - 600_000..now - 600_000 + PATIENCE.as_millis() as u64).contains(&ago), "{ago}");
}

#[test]
fn what_makes_no_sense_is_refused_before_a_broker_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let _broker = FakeBroker::start(dir.path());
    for (args, code, said) in [
        (&["a..b"][..], 65, "\"a..b\" is no topic and no pattern: "),
        (&["ok", "a*"], 65, "\"a*\" is no topic and no pattern: "),
        (
            &["--from", "soon"],
            65,
            "--from is latest, earliest, state, seq:N, id:ID or a time, and \"soon\" is no time: ",
        ),
        (
            &["--from", "state", "--group", "g"],
            65,
            "--from is latest, earliest, seq:N, id:ID or a time; a group does not begin at the state",
        ),
        (&["--from", "@x"], 65, "--from \"@x\": a seq is a whole number"),
        (&["--from", "id:"], 65, "--from \"id:\": an id is 1-128 bytes"),
        (&["--from", "id:a\nb"], 65, "--from \"id:a\\nb\": an id is"),
        (&["--broker", "7070", "--vm", "web"], 2, "--broker \"7070\": a broker is at tcp:HOST:PORT, unix:"),
        (&["--broker", "tcp:h:1", "--vm", "a/b"], 65, "\"a/b\" is no VM's name"),
    ] {
        let (exit, stdout, stderr) = output(dir.path(), args);
        assert_eq!((exit, stdout.as_str()), (Some(code), ""), "{args:?}: {stderr}");
        assert!(stderr.starts_with(&format!("castra: {said}")), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    for args in [
        &["--broker", "tcp:h:1"][..],
        &["--vm", "web"],
        &["-c", "0"],
        &["--timeout", "0s"],
        &["--exec", ""],
        &["--exec", "true", "-o", "raw"],
        &["--json", "-o", "raw"],
    ] {
        assert_eq!(output(dir.path(), args).0, Some(2), "{args:?}");
    }
}

#[test]
fn events_look_as_those_of_a_tail() {
    let lines = [
        line(1, "t", r#"{"a": [1,  2]}"#),
        r#"{"seq":2,"ts":2,"id":"x","vm":"web","topic":"a.é","key":"k","tags":["x"],"payload":"q\"\\"}"#
            .into(),
    ];
    let script = |session: &mut Session| {
        session.accept(1);
        lines.iter().for_each(|line| session.send_bytes(delivered(line)));
    };
    let printed = |args: &[&str]| {
        let (exit, out, err) = against(&[args, &["-c", "2"]].concat(), script);
        assert_eq!((exit, err), (Some(0), vec![]), "{args:?}");
        out
    };
    assert_eq!(printed(&["-o", "json"]), lines);
    assert_eq!(printed(&["--json"]), lines);
    assert_eq!(printed(&["-o", "raw"]), [r#"{"a": [1,  2]}"#, r#""q\"\\""#]);
    let text = [
        "1970-01-01T00:00:01.000Z 1 dev t {\"a\": [1,  2]}",
        r#"1970-01-01T00:00:00.002Z 2 web a.é "q\"\\""#,
    ];
    assert_eq!(printed(&[]), text);
    assert_eq!(printed(&["--utc"]), text);
    // Whatever order another broker writes, and whatever else it sends.
    let (exit, out, err) = against(&["-o", "json", "-c", "1"], |session| {
        session.send(&json!({"type": "news", "sub": "cli"}));
        session.accept(1);
        session.send(&json!({"type": "heartbeat"}));
        session.send_bytes(
            r#"{"topic":"t","seq":1,"payload":1,"sub":"cli","vm":"dev","ts":9,"type":"event","id":"i"}"#,
        );
    });
    let want = r#"{"seq":1,"ts":9,"topic":"t","payload":1,"vm":"dev","id":"i"}"#;
    assert_eq!((exit, out, err), (Some(0), vec![want.to_owned()], vec![]));
}

#[test]
fn an_event_is_printed_when_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let broker = FakeBroker::start(dir.path());
    let subscriber = Subscriber::start(dir.path(), &["-o", "raw"]);
    let mut session = broker.session(HELLO);
    session.subscribed(json!("latest"), 4);
    for seq in [4, 5, 9] {
        session.events([seq]);
        assert_eq!(subscriber.line(), seq.to_string());
    }
}

#[test]
fn a_script_can_know_when_it_is_subscribed() {
    let (_, _, said) = against(&["a.*", "b", "-v", "-c", "1"], |session| {
        session.accept(12);
        session.events([12]);
    });
    assert_eq!(said, ["castra: subscribed to a.* b from event 12 on"]);
    let (_, _, said) = against(&["a", "-v", "--json", "-c", "1"], |session| {
        session.accept(12);
        session.events([12]);
    });
    let said: Value = serde_json::from_str(&said.concat()).unwrap();
    let text = "subscribed to a from event 12 on";
    assert_eq!(said, json!({"schema": 1, "code": "subscribed", "reason": text, "next_seq": 12}));
}

#[test]
fn it_ends_when_it_is_told_to() {
    for (signal, count, code) in [
        (Signal::SIGINT, None, 0),
        (Signal::SIGTERM, None, 0),
        // Not the events that were waited for.
        (Signal::SIGINT, Some("2"), 1),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let broker = FakeBroker::start(dir.path());
        let args: Vec<&str> = ["-o", "raw"].into_iter().chain(count.map(|_| "-c")).chain(count).collect();
        let mut subscriber = Subscriber::start(dir.path(), &args);
        let mut session = broker.session(HELLO);
        session.subscribed(json!("latest"), 1);
        session.events([1]);
        assert_eq!(subscriber.line(), "1");
        subscriber.signal(signal);
        assert_eq!(subscriber.end(), (Some(code), vec![], vec![]), "{signal}");
    }
    // Also before there is a session.
    let dir = tempfile::tempdir().unwrap();
    let broker = FakeBroker::start(dir.path());
    let mut subscriber = Subscriber::start(dir.path(), &[]);
    let (_stream, _) = broker.connection();
    subscriber.signal(Signal::SIGTERM);
    assert_eq!(subscriber.end().0, Some(0));
}

#[test]
fn time_runs_out() {
    let (exit, out, err) = against(&["-o", "raw", "-c", "3", "--timeout", "300ms"], |session| {
        session.accept(1);
        session.events([1, 2]);
    });
    assert_eq!((exit, out), (Some(124), vec!["1".to_owned(), "2".to_owned()]));
    assert_eq!(err, ["castra: time ran out after 300ms, 2 events were printed"]);
    let (exit, _, err) = against(&["-o", "raw", "-c", "2", "--timeout", "20s"], |session| {
        session.accept(1);
        session.events([1, 2]);
    });
    assert_eq!((exit, err), (Some(0), vec![]));
    // A broker that says nothing is waited for no longer.
    let dir = tempfile::tempdir().unwrap();
    let _broker = FakeBroker::start(dir.path());
    let (exit, _, err) = output(dir.path(), &["--json", "--timeout", "100ms"]);
    let said: Value = serde_json::from_str(&err).unwrap();
    assert_eq!((exit, &said["code"], &said["events"]), (Some(124), &json!("timeout"), &json!(0)));
}

#[test]
fn whoever_closes_the_pipe_has_enough() {
    for comes in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let broker = FakeBroker::start(dir.path());
        let mut child = command(dir.path(), &["-o", "raw"]).spawn().unwrap();
        let mut session = broker.session(HELLO);
        session.subscribed(json!("latest"), 1);
        session.events([1]);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "1\n");
        // Noticed at once, or with the next event.
        let status = eventually("its end", || {
            if comes {
                let _ = session.try_send(delivered(&self::line(2, "t", "2")));
            }
            child.try_wait().unwrap()
        });
        assert_eq!(status.code(), Some(0));
        assert_eq!(std::io::read_to_string(child.stderr.take().unwrap()).unwrap(), "");
    }
}

#[test]
fn a_refusal_says_why() {
    let refuse = |of: &str, code: &str, args: &[&str]| {
        against(args, |session| {
            let ack = json!({"type": "ack", "ack": of, "status": "error", "code": code, "reason": "because"});
            session.send(&ack);
        })
    };
    for (code, exit) in [
        ("forbidden-topic", 77),
        ("no-groups", 77),
        ("bad-pattern", 65),
        ("too-many-subscriptions", 65),
        ("unknown-id", 65),
        ("seq-ahead", 65),
    ] {
        let (got, out, err) = refuse("subscribe", code, &[]);
        assert_eq!((got, out, err), (Some(exit), vec![], vec![format!("castra: {code}: because")]));
    }
    let (exit, _, err) = refuse("subscribe", "forbidden-topic", &["--json"]);
    let said: Value = serde_json::from_str(&err.concat()).unwrap();
    assert_eq!(exit, Some(77));
    let why = "forbidden-topic: because";
    assert_eq!(said, json!({"schema": 1, "code": "forbidden-topic", "reason": why, "exit": 77}));
    // One that delivers nothing.
    let (exit, _, err) = refuse("frame", "unknown-type", &[]);
    assert!(exit == Some(77) && err[0].contains("read its logs with 'castra bus tail -f'"), "{err:?}");
}

#[test]
fn without_a_broker_it_does_not_begin() {
    let dir = tempfile::tempdir().unwrap();
    let (exit, _, err) = output(dir.path(), &[]);
    assert!(exit == Some(69) && err.starts_with("castra: no broker answers on "), "{err}");
    let socket = format!("unix:{}", dir.path().join("none.sock").display());
    let (exit, _, err) = output(dir.path(), &["--broker", &socket, "--vm", "web"]);
    assert!(
        exit == Some(69) && err.starts_with(&format!("castra: no broker answers on {socket} (")),
        "{err}"
    );
    let (exit, _, err) = output(dir.path(), &["--broker", "tcp:127.0.0.1:1", "--vm", "web"]);
    assert!(exit == Some(69) && err.starts_with("castra: no broker answers on tcp:127.0.0.1:1 ("), "{err}");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(output(&file, &[]).0, Some(65));

    let answered = |args: &[&str], answer: &str| {
        let dir = tempfile::tempdir().unwrap();
        let broker = FakeBroker::start(dir.path());
        let socket = format!("unix:{}", dir.path().join("castra.sock").display());
        let guest = ["--broker", &socket, "--vm", "web"];
        let mut subscriber =
            Subscriber::start(dir.path(), &[args, if args.is_empty() { &guest } else { &[] }].concat());
        broker.answer(answer);
        let (exit, _, said) = subscriber.end();
        assert_eq!(said.len(), 1, "{said:?}");
        exit
    };
    let host = ["-o", "text"];
    for args in [&[][..], &host] {
        assert_eq!(answered(args, "error: reserved-identity"), Some(77));
        assert_eq!(answered(args, "error: too-many-sessions"), Some(75));
        assert_eq!(answered(args, "error: draining"), Some(75));
        assert_eq!(answered(args, "220 mail ready"), Some(69));
        assert_eq!(answered(args, "ok session=1"), Some(69), "and closed before the ack");
    }
    // It ends before it has begun.
    let (exit, _, said) = against(&[], |session| session.close("draining"));
    assert_eq!((exit, said.len()), (Some(75), 1), "{said:?}");
}

#[test]
fn what_is_gone_is_said_and_degrades() {
    let (exit, out, err) = against(&["-o", "raw", "-c", "3", "--from", "@1"], |session| {
        session.send(&json!({
            "type": "ack", "ack": "subscribe", "status": "ok", "sub": "cli", "next_seq": 5, "gap": {"from": 1, "to": 4},
        }));
        session.events([5]);
        session.send(&json!({"type": "gap", "sub": "cli", "from": 6, "to": 8}));
        session.events([9, 10]);
    });
    assert_eq!((exit, out), (Some(1), ["5", "9", "10"].map(str::to_owned).to_vec()));
    assert!(
        err[0].starts_with("castra: events 1 to 4 are gone") && err[1].contains("events 6 to 8"),
        "{err:?}"
    );
    assert_eq!(err.len(), 2);
}

#[test]
fn a_guest_subscribes_over_its_own_door() {
    let dir = tempfile::tempdir().unwrap();
    let broker = FakeBroker::start(dir.path());
    let socket = format!("unix:{}", dir.path().join("castra.sock").display());
    // Its state root is nothing to it.
    let none = Path::new("/proc/nothing");
    let args = ["vm:web", "-o", "raw", "-c", "1", "--broker", &socket, "--vm", "web"];
    let mut subscriber = Subscriber::start(none, &args);
    let mut session = broker.session("hello vm:web capabilities=bus-v1,heartbeat");
    session.subscribed(json!("latest"), 1);
    session.events([1]);
    assert_eq!(subscriber.end(), (Some(0), vec!["1".to_owned()], vec![]));
}

/// Nothing is printed for so long; only what must not come is waited for like this.
pub fn is_quiet(subscriber: &Subscriber) -> bool {
    let waited = subscriber.follow.lines.recv_timeout(Duration::from_millis(200));
    waited == Err(RecvTimeoutError::Timeout)
}
