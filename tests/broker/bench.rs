//! `castra bench`: what it sends, what it counts, and that both are right: against a real broker, and against one of
//! the test's own that loses, repeats and stalls on purpose.

use crate::fake_broker::{Session, answer_hello, play_guests};
use crate::support::{Broker, castra, eventually};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn bench(root: &Path, args: &[&str]) -> Command {
    let mut command = castra();
    command.arg("--state-root").arg(root).arg("bench").args(args).stdin(Stdio::null());
    command
}

/// Exit code, the object on stdout (null without one), and stderr.
fn run(root: &Path, args: &[&str]) -> (Option<i32>, Value, String) {
    let output = bench(root, args).arg("--json").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let said = match output.stdout.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&output.stdout).expect("one object"),
    };
    (output.status.code(), said, stderr)
}

/// What a failure's object on stderr says.
fn code_of(stderr: &str) -> String {
    let failure: Value = serde_json::from_str(stderr).expect(stderr);
    assert_eq!(failure["schema"], 1);
    failure["code"].as_str().unwrap().to_owned()
}

/// Percentiles that can be.
fn check_latency(latency: &Value) {
    let values: Vec<f64> = ["p50", "p99", "p999", "max"].map(|name| latency[name].as_f64().unwrap()).to_vec();
    assert!(values.is_sorted() && values[0] > 0.0, "{latency}");
}

#[test]
fn publish_counts_what_the_journal_has() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let tcp = format!("tcp:{}", broker.addr);
    for (place, connections) in [("unix", 3), ("tcp", 1)] {
        let before = broker.status()["broker"]["journal"]["head_seq"].as_u64().unwrap();
        let number = connections.to_string();
        let mut args = vec!["publish", "--duration", "400ms", "--connections", &number, "--window", "20"];
        if place == "tcp" {
            args.extend(["--broker", &tcp, "--size", "2", "--topic", "load.\"x\""]);
        }
        let (code, said, stderr) = run(dir.path(), &args);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{said}");
        let acked = said["publish"]["acked"].as_u64().unwrap();
        assert!(acked > 0 && said["publish"]["sent"] == acked, "{said}");
        eventually("the status to have it all", || {
            let head = broker.status()["broker"]["journal"]["head_seq"].as_u64()?;
            (head == before + acked).then_some(())
        });
        check_latency(&said["publish"]["latency_ms"]);
        assert!(said["elapsed_ms"].as_u64().unwrap() >= 400, "{said}");
        let want = json!({"refused": {}, "out_of_order": 0, "unanswered": 0, "unsent": 0});
        for (name, value) in want.as_object().unwrap() {
            assert_eq!(&said["publish"][name], value, "{said}");
        }
        assert_eq!((&said["bench"], &said["connections"]), (&json!("publish"), &json!(connections)));
    }
    let size = |vm: &str| {
        eventually("its events", || {
            let event = broker.log(vm).into_iter().find(|event| event["topic"] == "bench")?;
            Some(event["payload"].as_str().unwrap().len() + 2)
        })
    };
    assert_eq!(["bench-1", "bench-2", "bench-3"].map(size), [256; 3]);
    let output = bench(dir.path(), &["publish", "--duration", "100ms", "--size", "1000"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("1 publisher, window 1, as fast as it goes, 1000 bytes"), "{text}");
    assert!(
        text.contains("p99.9") && text.contains("publish → ack ") && text.contains("refused 0"),
        "{text}"
    );
    assert!(output.status.success() && output.stderr.is_empty(), "no progress where there is no terminal");
}

#[test]
fn a_rate_is_never_exceeded_and_nothing_due_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let args = ["publish", "--duration", "700ms", "--rate", "60", "--connections", "4", "--window", "3"];
    let (code, said, stderr) = run(dir.path(), &args);
    assert_eq!(code, Some(0), "{stderr}");
    let count = |name: &str| said["publish"][name].as_u64().unwrap();
    assert_eq!((count("sent") + count("unsent"), count("acked")), (42, count("sent")), "{said}");
    assert!(broker.log("bench").len() <= 42);
}

#[test]
fn ctrl_c_ends_it_with_the_figures_so_far() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut command = bench(dir.path(), &["publish", "--duration", "1h", "--rate", "500", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("events", || (broker.status()["broker"]["journal"]["head_seq"].as_u64()? > 20).then_some(()));
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &said["interrupted"]), (Some(0), &json!(true)), "{said}");
    assert!(said["publish"]["acked"].as_u64().unwrap() > 20, "{said}");
    assert!(said["elapsed_ms"].as_u64().unwrap() < 3_600_000 && said["duration_ms"] == 3_600_000);
}

#[test]
fn a_broker_that_is_killed_leaves_figures_and_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut command = bench(dir.path(), &["publish", "--duration", "1h", "--connections", "2", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("events", || (broker.status()["broker"]["journal"]["head_seq"].as_u64()? > 0).then_some(()));
    broker.kill();
    let output = child.wait_with_output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(said["sessions_ended"], json!({"connection-lost": 2}), "{said}");
    assert!(said["publish"]["acked"].as_u64().unwrap() > 0, "{said}");
    assert_eq!(code_of(&String::from_utf8(output.stderr).unwrap()), "unanswered");
}

/// Answers publishes until the guest is gone; `answer` is asked how, given how many came before.
fn publishes(mut session: Session, mut answer: impl FnMut(&mut Session, u64, &Value)) {
    let mut count = 0;
    while let Some(frame) = session.receive() {
        if frame["type"] == "publish" {
            answer(&mut session, count, &frame);
            count += 1;
        }
    }
}

#[test]
fn refused_and_disordered_acks_are_counted_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let fake = play_guests(dir.path(), 1, |hello, session| {
        assert_eq!(hello, "hello vm:bench-1 capabilities=bus-v1,heartbeat\n");
        publishes(session, |session, count, frame| match count {
            3 | 4 => session.refuse("disk-full"),
            5 => session.refuse("strange"),
            7 => session.ack(frame, 7),
            _ => session.ack(frame, count + 1),
        });
    });
    let args = ["publish", "--rate", "100", "--duration", "100ms", "--window", "5"];
    let (code, said, stderr) = run(dir.path(), &args);
    fake.join().unwrap();
    assert_eq!((code, code_of(&stderr).as_str()), (Some(1), "refused"), "{said}");
    assert_eq!(said["publish"]["refused"], json!({"disk-full": 2, "strange": 1}));
    assert_eq!((&said["publish"]["acked"], &said["publish"]["out_of_order"]), (&json!(7), &json!(1)));
    assert!(stderr.contains("3 events were refused (disk-full 2, strange 1), 1 acks were out of order"));
}

#[test]
fn a_stall_counts_for_every_event_that_was_due() {
    const STALL: Duration = Duration::from_millis(600);
    let dir = tempfile::tempdir().unwrap();
    let fake = play_guests(dir.path(), 1, |_, session| {
        publishes(session, |session, count, frame| {
            if count == 0 {
                // What is played is a broker that takes so long.
                std::thread::sleep(STALL);
            }
            session.ack(frame, count + 1);
        });
    });
    // One in flight: a generator that waits for the ack before it looks at the clock sees one slow event.
    let (code, said, stderr) = run(dir.path(), &["publish", "--rate", "100", "--duration", "1s"]);
    fake.join().unwrap();
    assert_eq!(code, Some(0), "{stderr}");
    let latency = &said["publish"]["latency_ms"];
    assert!(latency["max"].as_f64().unwrap() >= 590.0, "{said}");
    assert!(latency["p50"].as_f64().unwrap() >= 50.0, "{said}");
}

/// A subscriber's side of the test's own broker: acks its subscription, sends what the publisher's side hands over, and
/// stays as long as the guest does.
fn subscriber(mut session: Session, events: &Receiver<Vec<(u64, Value)>>) {
    let frame = session.receive().unwrap();
    assert_eq!((&frame["type"], &frame["topic"]), (&json!("subscribe"), &json!("bench")));
    session.send(&json!({"type": "ack", "ack": "subscribe", "status": "ok", "sub": "bench", "next_seq": 1}));
    for (seq, payload) in events.iter().flatten() {
        session.send(&json!({
            "type": "event", "sub": "bench", "seq": seq, "ts": 1, "id": "x", "vm": "v", "topic": "bench", "payload": payload,
        }));
    }
    while session.receive().is_some() {}
}

/// Plays a broker with one subscriber that gets, of the events published, what `of` makes of each.
fn play_delivery(root: &Path, of: fn(u64, Value) -> Vec<(u64, Value)>) -> std::thread::JoinHandle<()> {
    type Ends = (Option<Sender<Vec<(u64, Value)>>>, Option<Receiver<Vec<(u64, Value)>>>);
    let (sender, receiver) = channel();
    let ends: Arc<Mutex<Ends>> = Arc::new(Mutex::new((Some(sender), Some(receiver))));
    play_guests(root, 2, move |hello, session| {
        if hello.contains("bench-publisher") {
            let sender = ends.lock().unwrap().0.take().unwrap();
            publishes(session, |session, count, frame| {
                sender.send(of(count, frame["payload"].clone())).unwrap();
                session.ack(frame, count + 1);
            });
        } else {
            let receiver = ends.lock().unwrap().1.take().unwrap();
            subscriber(session, &receiver);
        }
    })
}

#[test]
fn what_is_lost_repeated_or_late_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let fake = play_delivery(dir.path(), |count, payload| match count {
        // Lost: 3. Twice: 5. Behind its successor: 7. Somebody else's, and none of a bench at all: no matter.
        3 | 7 => Vec::new(),
        5 => vec![(6, payload.clone()), (6, payload)],
        8 => {
            let text = payload.as_str().unwrap();
            let seventh = text.replace("-000000000008-", "-000000000007-");
            let other = format!("00000000{}", &text[8..]);
            vec![(9, payload.clone()), (8, json!(seventh)), (20, json!(other)), (21, json!({"a": [1]}))]
        }
        _ => vec![(count + 1, payload)],
    });
    let (code, said, stderr) = run(dir.path(), &["deliver", "--rate", "100", "--duration", "200ms"]);
    fake.join().unwrap();
    assert_eq!((code, code_of(&stderr).as_str()), (Some(1), "events-lost"), "{said}");
    let (sent, deliver) = (said["publish"]["acked"].as_u64().unwrap(), &said["deliver"]);
    assert_eq!(deliver["received"], sent - 1, "{said}");
    let counts = ["lost", "repeated", "out_of_order"].map(|name| deliver[name].as_u64().unwrap());
    assert_eq!(counts, [1, 1, 1], "{said}");
    check_latency(&deliver["latency_ms"]);
    assert!(stderr.contains(&format!("1 of {sent} deliveries were lost")), "{stderr}");
}

#[test]
fn a_session_that_the_broker_closes_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let came = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let fake = play_guests(dir.path(), 2, move |hello, mut session| {
        // Sessions are many, VMs are few.
        assert_eq!(hello, "hello vm:bench-1 capabilities=bus-v1,heartbeat\n");
        session.receive().unwrap();
        session
            .send(&json!({"type": "ack", "ack": "subscribe", "status": "ok", "sub": "bench", "next_seq": 1}));
        if came.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1 {
            assert_eq!(session.receive(), Some(json!({"type": "heartbeat"})));
            return session.close("slow-consumer");
        }
        // The one that is asked for a sign of life gives it, and is asked for the last one in turn.
        session.send(&json!({"type": "heartbeat"}));
        for _ in 0..2 {
            assert_eq!(session.receive(), Some(json!({"type": "heartbeat"})));
            session.send(&json!({"type": "ack", "ack": "heartbeat", "status": "ok"}));
        }
        assert_eq!(session.receive(), None);
    });
    let (code, said, stderr) = run(dir.path(), &["idle", "--connections", "2", "--duration", "300ms"]);
    fake.join().unwrap();
    assert_eq!((code, code_of(&stderr).as_str()), (Some(1), "sessions-ended"), "{said}");
    assert_eq!((&said["alive"], &said["sessions_ended"]), (&json!(1), &json!({"slow-consumer": 1})));
    assert_eq!((&said["broker_pid"], &said["memory_per_session_bytes"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_broker_without_delivery_and_one_that_lets_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    let fake = play_guests(dir.path(), 1, |_, mut session| {
        session.receive().unwrap();
        let why = "this broker has no frame of type 'subscribe'";
        session.send(
            &json!({"type": "ack", "ack": "frame", "status": "error", "code": "unknown-type", "reason": why}),
        );
    });
    let (code, said, stderr) = run(dir.path(), &["deliver"]);
    fake.join().unwrap();
    assert_eq!((code, said, code_of(&stderr).as_str()), (Some(77), Value::Null, "cannot-subscribe"));
    assert!(stderr.contains("too old to deliver"), "{stderr}");
    for (answer, want, code) in [
        ("error: too-many-sessions", 75, "too-many-sessions"),
        ("error: reserved-identity", 77, "reserved-identity"),
    ] {
        std::fs::remove_file(dir.path().join("castra.sock")).unwrap();
        let fake = answer_hello(dir.path(), answer);
        let (exit, _, stderr) = run(dir.path(), &["publish"]);
        fake.join().unwrap();
        assert_eq!((exit, code_of(&stderr).as_str()), (Some(want), code));
    }
    let (exit, _, stderr) = run(dir.path(), &["publish"]);
    assert_eq!((exit, code_of(&stderr).as_str()), (Some(69), "no-broker"));
    assert!(stderr.contains("castra broker --state-root"), "{stderr}");
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    for (args, exit, code, words) in [
        (&["publish", "--size", "61400"][..], 2, "event-too-large", "--size 61400"),
        (&["publish", "--size", "1"], 2, "usage", "2 bytes at least"),
        (&["deliver", "--size", "39"], 2, "usage", "40 bytes at least"),
        (&["fanout", "--connections", "5", "--stopped", "5"], 2, "usage", "none of 5"),
        (
            &["publish", "--broker", "127.0.0.1:7070"],
            2,
            "usage",
            "tcp:HOST:PORT, unix:PATH or vsock:CID:PORT",
        ),
        (&["publish", "--connections", "0"], 2, "usage", "--connections"),
        (&["publish", "--duration", "0s"], 2, "usage", "more than nothing"),
        (&["publish", "--topic", "a b"], 65, "bad-topic", "--topic \\\"a b\\\""),
        (&["publish", "--broker", "tcp:127.0.0.1:1"], 69, "no-broker", "tcp:127.0.0.1:1"),
    ] {
        let (status, said, stderr) = run(dir.path(), args);
        assert_eq!((status, said, code_of(&stderr).as_str()), (Some(exit), Value::Null, code), "{args:?}");
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }
    let mut few = Command::new("sh");
    let line = format!("ulimit -n 64; exec '{}' bench idle --connections 100", env!("CARGO_BIN_EXE_castra"));
    let output = few.args(["-c", &line]).env("CASTRA_STATE_ROOT", dir.path()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("100 connections need 132 open files, and this process may have 64"), "{stderr}");
}

// These three need a broker that delivers.

#[test]
fn deliver_sees_every_event_once() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    for at in [format!("tcp:{}", broker.addr), format!("unix:{}", dir.path().join("castra.sock").display())] {
        let args = [
            "deliver",
            "--rate",
            "500",
            "--connections",
            "3",
            "--duration",
            "500ms",
            "--broker",
            at.as_str(),
        ];
        let (code, said, stderr) = run(dir.path(), &args);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{said}");
        let (published, deliver) = (&said["publish"], &said["deliver"]);
        let sent = published["sent"].as_u64().unwrap();
        assert_eq!(sent + published["unsent"].as_u64().unwrap(), 250, "{said}");
        assert_eq!(deliver["received"], 3 * sent, "{said}");
        for name in ["lost", "repeated", "out_of_order"] {
            assert_eq!(deliver[name], 0, "{said}");
        }
        check_latency(&deliver["latency_ms"]);
    }
}

#[test]
fn fanout_counts_those_that_read() {
    let dir = tempfile::tempdir().unwrap();
    let _broker = Broker::start(dir.path());
    let args = ["fanout", "--connections", "6", "--stopped", "2", "--duration", "500ms", "--lead", "100"];
    let (code, said, stderr) = run(dir.path(), &args);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{said}");
    let (sent, deliver) = (said["publish"]["acked"].as_u64().unwrap(), &said["deliver"]);
    assert!(sent > 0 && deliver["received"] == 4 * sent && deliver["lost"] == 0, "{said}");
    assert_eq!(
        (&said["stopped"], &said["lead"], said["deliver"].get("latency_ms")),
        (&json!(2), &json!(100), None)
    );
}

#[test]
fn idle_sessions_stay_and_their_memory_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let tcp = format!("tcp:{}", broker.addr);
    for more in [&[][..], &["--broker", &tcp]] {
        let args = [&["idle", "--connections", "40", "--duration", "300ms"], more].concat();
        let (code, said, stderr) = run(dir.path(), &args);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{said}");
        assert_eq!((&said["alive"], &said["sessions_ended"]), (&json!(40), &json!({})), "{said}");
        assert_eq!(said["broker_pid"], broker.pid(), "{said}");
        assert_eq!(broker.status()["vms"].as_array().unwrap().len(), 2, "40 sessions leave two VMs");
        assert!(said["memory_before_bytes"].as_u64().unwrap() > 0, "{said}");
        assert!(said["memory_per_session_bytes"].is_u64(), "{said}");
    }
}
