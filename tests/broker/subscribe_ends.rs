//! Subscribers and brokers that end: killed, stuck, drained. Whoever comes back goes on where it was.

use crate::subscribe::{event, limited, subscribe};
use crate::support::{Broker, Guest, eventually, frame, read_log, records};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Closes as a process does that was killed with bytes unread: with a reset.
fn reset(guest: Guest) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(guest.stream.get_ref(), sockopt::Linger, &linger).unwrap();
}

/// Publishes until `done` or the connection ends.
fn publish_until(addr: &str, vm: &str, done: &AtomicBool) {
    let mut guest = Guest::connect(addr);
    guest.stream.get_mut().write_all(format!("hello vm:{vm} capabilities=bus-v1\n").as_bytes()).unwrap();
    assert!(guest.line().starts_with("ok"));
    let some: Vec<u8> =
        (0..20).flat_map(|n| frame(format!(r#"{{"type":"publish","topic":"t{}.x"}}"#, n % 3))).collect();
    while !done.load(SeqCst) {
        if guest.stream.get_mut().write_all(&some).is_err() || (0..20).any(|_| guest.receive().is_none()) {
            return;
        }
    }
}

/// What a subscriber has seen, over all of its sessions.
#[derive(Default)]
struct Seen {
    next: u64,
    events: Vec<Value>,
}

impl Seen {
    fn session(&mut self, broker: &Broker, pattern: &str) -> Guest {
        let mut guest = broker.guest("web");
        let from = self.next.max(1);
        let ack = subscribe(&mut guest, &format!(r#""topic":"{pattern}","sub":"s","from":{{"seq":{from}}}"#));
        assert_eq!((&ack["next_seq"], &ack["gap"]), (&json!(from), &Value::Null));
        guest
    }

    /// Takes a frame in; false at the end.
    fn take(&mut self, guest: &mut Guest) -> bool {
        let Some(mut event) = guest.receive() else { return false };
        let fields = event.as_object_mut().unwrap();
        let (kind, sub) = (fields.remove("type"), fields.remove("sub"));
        assert_eq!((kind, sub), (Some(json!("event")), Some(json!("s"))), "{event}");
        self.next = event["seq"].as_u64().unwrap() + 1;
        self.events.push(event);
        true
    }

    /// All of it is what stands in the log.
    fn check(&self, root: &Path, prefix: &str) {
        let log = read_log(root, "bus");
        let topic = |event: &&Value| event["topic"].as_str().unwrap().starts_with(prefix);
        let want: Vec<&Value> = log.iter().filter(topic).collect();
        let seqs =
            |events: &[&Value]| events.iter().map(|e| e["seq"].as_u64().unwrap()).collect::<Vec<u64>>();
        let have: Vec<&Value> = self.events.iter().collect();
        assert_eq!(seqs(&have), seqs(&want));
        assert_eq!(have, want);
    }
}

#[test]
fn subscribers_that_are_killed_go_on_where_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..3)
            .map(|n| {
                let (broker, done) = (&broker, &done);
                scope.spawn(move || publish_until(&broker.addr, &format!("p{n}"), done))
            })
            .collect();
        let subscribers: Vec<_> = (0..6)
            .map(|n| {
                let broker = &broker;
                scope.spawn(move || {
                    let pattern = ["t0.x", "t1.*", ">"][n % 3];
                    let mut seen = Seen::default();
                    for life in 0..12 {
                        let mut guest = seen.session(broker, pattern);
                        (0..(life + n) * 37 % 400).for_each(|_| assert!(seen.take(&mut guest)));
                        reset(guest);
                    }
                    (pattern, seen)
                })
            })
            .collect();
        let seen: Vec<_> = subscribers.into_iter().map(|thread| thread.join().unwrap()).collect();
        done.store(true, SeqCst);
        publishers.into_iter().for_each(|thread| thread.join().unwrap());
        // The last one of each kind.
        let mut last = broker.guest("last");
        for (n, topic) in ["t0.x", "t1.x", "t2.x"].into_iter().enumerate() {
            last.ask(format!(r#"{{"type":"publish","topic":"{topic}","id":"last{n}"}}"#));
        }
        eventually("the logs", || (broker.log("last").len() == 3).then_some(()));
        for (pattern, mut seen) in seen {
            let mut guest = seen.session(&broker, pattern);
            let want = if pattern == ">" { 3 } else { 1 };
            while seen.events.iter().filter(|e| e["vm"] == "last").count() < want {
                assert!(seen.take(&mut guest));
            }
            seen.check(dir.path(), pattern.trim_end_matches(['*', '>', 'x', '.']));
        }
    });
    // Nothing of all these sessions is left.
    eventually("their end", || {
        let status = broker.status();
        let web = status["vms"].as_array().unwrap().iter().find(|vm| vm["name"] == "web")?.clone();
        (web["sessions"] == 0).then_some(())
    });
}

#[test]
fn a_broker_that_is_killed_under_load_delivered_only_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let mut all: Vec<Seen> = (0..4).map(|_| Seen::default()).collect();
    for life in 0..4 {
        let broker = Broker::start(dir.path());
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for n in 0..3 {
                let (addr, done) = (broker.addr.clone(), &done);
                scope.spawn(move || publish_until(&addr, &format!("p{n}"), done));
            }
            let subscribers: Vec<_> = std::mem::take(&mut all)
                .into_iter()
                .map(|mut seen| {
                    let mut guest = seen.session(&broker, ">");
                    scope.spawn(move || {
                        while seen.take(&mut guest) {}
                        seen
                    })
                })
                .collect();
            eventually("some events", || {
                let head = broker.status()["broker"]["journal"]["head_seq"].as_u64()?;
                (head > 2000 * (life + 1)).then_some(())
            });
            broker.kill();
            done.store(true, SeqCst);
            all = subscribers.into_iter().map(|thread| thread.join().unwrap()).collect();
        });
    }
    // And once more, to the end.
    let broker = Broker::start(dir.path());
    let last = broker.guest("last").ask(r#"{"type":"publish"}"#)["seq"].as_u64().unwrap();
    eventually("the log", || (broker.log("last").len() == 1).then_some(()));
    for mut seen in all {
        assert!(!seen.events.is_empty());
        let mut guest = seen.session(&broker, ">");
        while seen.next <= last {
            assert!(seen.take(&mut guest));
        }
        seen.check(dir.path(), "");
    }
}

#[test]
fn who_never_reads_is_closed_and_harms_nobody() {
    const EVENTS: u64 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let broker = limited(dir.path(), "write_time = \"1500ms\"\nqueue_events = 64\nqueue_bytes = \"64 KiB\"");
    let root = dir.path().join("root");
    let mut stuck = broker.guest("stuck");
    subscribe(&mut stuck, r#""topic":"a""#);
    let mut quiet = broker.guest("quiet");
    subscribe(&mut quiet, r#""topic":"b""#);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let mut guest = broker.guest("web");
            subscribe(&mut guest, r#""topic":"a""#);
            scope.spawn(move || (1..=EVENTS).for_each(|want| assert_eq!(event(&mut guest, "a"), want)));
        }
        let mut publisher = broker.guest("p");
        let body = format!(r#"{{"type":"publish","topic":"a","payload":"{}"}}"#, "x".repeat(4000));
        for _ in 0..EVENTS / 50 {
            (0..50).for_each(|_| publisher.send(&body));
            (0..50).for_each(|_| assert_eq!(publisher.receive().unwrap()["status"], "ok"));
        }
    });
    let signals = eventually("its end", || {
        let all: Vec<Value> =
            records(&root, "bus-events").into_iter().filter(|r| r["vm"] == "stuck").collect();
        all.iter().any(|r| r["action"] == "disconnect").then_some(all)
    });
    let of = |reason: &str| -> Vec<&str> {
        signals.iter().filter(|r| r["reason"] == reason).map(|r| r["action"].as_str().unwrap()).collect()
    };
    assert_eq!(of("slow-consumer"), ["retry", "disconnect"], "{signals:?}");
    assert_eq!(of("back-pressure").first(), Some(&"entered"), "{signals:?}");
    // What it can still read are whole frames, but for the last.
    let mut seqs = Vec::new();
    while let Some(event) = stuck.receive() {
        seqs.push(event["seq"].as_u64().unwrap());
    }
    assert!(seqs.len() < EVENTS as usize && seqs == (1..=seqs.len() as u64).collect::<Vec<u64>>());
    // Nothing to send is no reason to close.
    assert_eq!(quiet.ask(r#"{"type":"heartbeat"}"#)["ack"], "heartbeat");
    // It comes back and gets the rest.
    let mut back = broker.guest("stuck");
    let from = seqs.len() as u64 + 1;
    subscribe(&mut back, &format!(r#""topic":"a","from":{{"seq":{from}}}"#));
    (from..=EVENTS).for_each(|want| assert_eq!(event(&mut back, "a"), want));
}

#[test]
fn a_drain_ends_subscribers_with_whole_frames() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let done = AtomicBool::new(false);
    let root = dir.path().to_owned();
    std::thread::scope(|scope| {
        for n in 0..2 {
            let (addr, done) = (broker.addr.clone(), &done);
            scope.spawn(move || publish_until(&addr, &format!("p{n}"), done));
        }
        let subscribers: Vec<_> = (0..6)
            .map(|n| {
                let mut guest = broker.guest("web");
                let from = if n % 2 == 0 { "latest" } else { "earliest" };
                subscribe(&mut guest, &format!(r#""topic":">","from":"{from}""#));
                scope.spawn(move || {
                    let mut bytes = Vec::new();
                    guest.stream.read_to_end(&mut bytes).unwrap();
                    bytes
                })
            })
            .collect();
        eventually("some events", || {
            (broker.status()["broker"]["journal"]["head_seq"].as_u64()? > 3000).then_some(())
        });
        broker.signal(Signal::SIGTERM);
        let all: Vec<Vec<u8>> = subscribers.into_iter().map(|thread| thread.join().unwrap()).collect();
        done.store(true, SeqCst);
        assert_eq!(broker.wait().0, Some(0));
        let log = read_log(&root, "bus");
        for bytes in all {
            let (mut rest, mut frames) = (&bytes[..], Vec::new());
            while let Some((length, tail)) = rest.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                assert!(length <= tail.len(), "half a frame at the end");
                frames.push(serde_json::from_slice::<Value>(&tail[..length]).unwrap());
                rest = &tail[length..];
            }
            assert!(rest.is_empty(), "half a length at the end");
            assert_eq!(frames.pop(), Some(json!({"type":"close","reason":"draining","retry_after_ms":1000})));
            let first = frames[0]["seq"].as_u64().unwrap();
            for (frame, want) in frames.iter().zip(first..) {
                assert_eq!((&frame["type"], &frame["seq"]), (&json!("event"), &json!(want)));
                assert_eq!(frame["id"], log[want as usize - 1]["id"]);
            }
        }
    });
}
