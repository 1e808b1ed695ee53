//! `castra bus subscribe` goes on where it was: over lost connections, restarts, repeats, and a reader that is slow.

use crate::fake_broker::{FakeBroker, Session, delivered, line};
use crate::subscribe_cli::{HELLO, Subscriber, is_quiet};
use castra::core::client::Target;
use castra::core::follow::{Begin, Follow, News, Room, Times};
use castra::core::topic::Pattern;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn it_goes_on_behind_the_last_event() {
    let dir = tempfile::tempdir().unwrap();
    let broker = FakeBroker::start(dir.path());
    let subscriber = Subscriber::start(dir.path(), &["-o", "raw", "a", "--from", "earliest"]);
    let mut session = broker.session(HELLO);
    session.subscribed(json!("earliest"), 3);
    session.events([3, 5]);
    drop(session);
    // The same again, and what follows: the last event itself is asked for, to see that it is the same.
    let mut session = broker.session(HELLO);
    session.subscribed(json!({"seq": 5}), 5);
    session.events([5, 3, 6, 6, 9]);
    session.close_for("slow-consumer", 0);
    drop(session);
    let mut session = broker.session(HELLO);
    session.subscribed(json!({"seq": 9}), 9);
    // Retention took more than was asked for; its end is behind the gap.
    session.send(&json!({"type": "gap", "sub": "cli", "from": 9, "to": 19}));
    drop((session, broker));
    let broker = FakeBroker::start(dir.path());
    let mut session = broker.session(HELLO);
    let asked = session.receive().unwrap();
    assert_eq!(asked["from"], json!({"seq": 9}));
    let gap = json!({"from": 9, "to": 19});
    session.send(
        &json!({"type": "ack", "ack": "subscribe", "status": "ok", "sub": "cli", "next_seq": 20, "gap": gap}),
    );
    session.events([20]);
    for seq in [3, 5, 6, 9, 20] {
        assert_eq!(subscriber.line(), seq.to_string());
    }
    let said: Vec<String> = (0..7).map(|_| subscriber.hear()).collect();
    let again = |seq| format!("castra: subscribed again to a from event {seq} on");
    assert!(said[0].starts_with("castra: the connection was lost: "), "{said:?}");
    assert!(said[0].ends_with("; connecting again, to go on with event 6"), "{said:?}");
    assert_eq!(said[1], again(6));
    let closed =
        "castra: the broker closed the session: slow-consumer; connecting again, to go on with event 10";
    assert_eq!(said[2..4], [closed.to_owned(), again(10)]);
    assert!(said[4].starts_with("castra: events 10 to 19 are gone"), "{said:?}");
    assert_eq!(said[6], again(20));
    assert!(is_quiet(&subscriber) && subscriber.said.try_recv().is_err());
}

#[test]
fn nothing_seen_is_nothing_missed() {
    let dir = tempfile::tempdir().unwrap();
    let broker = FakeBroker::start(dir.path());
    let mut subscriber = Subscriber::start(dir.path(), &["-o", "raw", "a", "-c", "1"]);
    broker.session(HELLO).subscribed(json!("latest"), 41);
    // Published while it was away, and it asked for the latest.
    let mut session = broker.session(HELLO);
    session.subscribed(json!({"seq": 41}), 41);
    session.events([41]);
    let (exit, out, _) = subscriber.end();
    assert_eq!((exit, out), (Some(0), vec!["41".to_owned()]));
}

#[test]
fn a_broker_that_ends_is_waited_for_and_given_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let broker = FakeBroker::start(dir.path());
    let subscriber = Subscriber::start(dir.path(), &["-o", "raw"]);
    let mut session = broker.session(HELLO);
    session.subscribed(json!("latest"), 1);
    session.events([1]);
    session.close_for("draining", 300);
    let since = Instant::now();
    drop((session, broker));
    let broker = FakeBroker::start(dir.path());
    // It starts again, and lets nobody in for a while.
    broker.answer("error: draining");
    assert!(since.elapsed() >= Duration::from_millis(300), "it was asked to wait: {:?}", since.elapsed());
    broker.answer("error: too-many-sessions");
    drop(broker.connection());
    let mut session = broker.session(HELLO);
    session.subscribed(json!({"seq": 1}), 1);
    session.events([1, 2]);
    assert_eq!((subscriber.line(), subscriber.line()), ("1".into(), "2".into()));
    assert!(subscriber.hear().contains("the broker closed the session: draining; connecting again"));
    assert!(subscriber.hear().contains("subscribed again"), "each is said once");
}

#[test]
fn what_waiting_does_not_help_ends_it() {
    let end = |next: &dyn Fn(&FakeBroker)| {
        let dir = tempfile::tempdir().unwrap();
        let broker = FakeBroker::start(dir.path());
        let mut subscriber = Subscriber::start(dir.path(), &["--json"]);
        let mut session = broker.session(HELLO);
        session.subscribed(json!("latest"), 8);
        session.events([8]);
        drop(session);
        next(&broker);
        let (exit, _, said) = subscriber.end();
        let failure: serde_json::Value = serde_json::from_str(said.last().unwrap()).unwrap();
        assert_eq!(failure["exit"], json!(exit));
        assert!(said.iter().all(|line| line.starts_with('{')), "{said:?}");
        (exit, failure["code"].as_str().unwrap().to_owned(), failure["reason"].as_str().unwrap().to_owned())
    };
    let (exit, code, why) = end(&|broker| {
        let mut session = broker.session(HELLO);
        session.receive().unwrap();
        session.send(&json!({"type": "ack", "ack": "subscribe", "status": "error", "code": "seq-ahead", "reason": "x"}));
        session.drain();
    });
    assert_eq!((exit, code.as_str()), (Some(65), "seq-ahead"));
    assert!(why.starts_with("seq-ahead: the broker's journal ends before event 9, "), "{why}");
    let (exit, code, _) = end(&|broker| broker.answer("error: reserved-identity"));
    assert_eq!((exit, code.as_str()), (Some(77), "reserved-identity"));
    let (exit, code, _) = end(&|broker| broker.answer("HTTP/1.1 400 Bad Request"));
    assert_eq!((exit, code.as_str()), (Some(69), "no-broker"));
    let (exit, code, _) = end(&|broker| {
        let mut session = broker.session(HELLO);
        session.send_bytes("no json");
        session.drain();
    });
    assert_eq!((exit, code.as_str()), (Some(69), "no-broker"));
}

#[test]
fn another_journal_is_not_gone_on_with() {
    let other = |seq, id: &str| line(seq, "t", "0").replace(&format!("id-{seq}"), id);
    for first in [
        other(6, "else"),
        line(6, "t", "0").replace("\"ts\":6000", "\"ts\":6001"),
        // No gap says that event 6 is gone.
        line(7, "t", "0"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let broker = FakeBroker::start(dir.path());
        let mut subscriber = Subscriber::start(dir.path(), &["-o", "raw"]);
        let mut session = broker.session(HELLO);
        session.subscribed(json!("latest"), 5);
        session.events([5, 6]);
        drop(session);
        let mut session = broker.session(HELLO);
        session.subscribed(json!({"seq": 6}), 6);
        let _ = session.try_send(delivered(&first));
        session.events([8]);
        let (exit, out, said) = subscriber.end();
        assert_eq!((exit, out), (Some(65), vec!["5".to_owned(), "6".to_owned()]), "{said:?}");
        let why =
            "castra: seq-ahead: the broker's journal has another event 6 than the one that was received: an ";
        assert!(said.last().unwrap().starts_with(why), "{said:?}");
    }
}

#[test]
fn it_answers_a_broker_that_asks_whether_it_lives() {
    let dir = tempfile::tempdir().unwrap();
    let broker = FakeBroker::start(dir.path());
    let _subscriber = Subscriber::start(dir.path(), &["-o", "raw"]);
    let mut session = broker.session(HELLO);
    session.subscribed(json!("latest"), 1);
    for _ in 0..3 {
        let since = Instant::now();
        session.send(&json!({"type": "heartbeat"}));
        assert_eq!(session.receive().unwrap(), json!({"type": "heartbeat"}));
        // Its own comes every 20 s.
        assert!(since.elapsed() < Duration::from_secs(15));
        session.send(&json!({"type": "ack", "ack": "heartbeat", "status": "ok"}));
    }
}

/// Serves a journal of events 1..=end from where it was asked, and misbehaves as `chance` says; whether all was sent.
fn serve(session: &mut Session, end: u64, mut chance: impl FnMut(u64) -> u64) -> bool {
    let Some(asked) = session.receive() else { return false };
    let from = asked["from"]["seq"].as_u64().unwrap();
    let mut bytes = Vec::new();
    let mut put = |body: String| bytes.extend(crate::support::frame(body));
    let ack = json!({"type": "ack", "ack": "subscribe", "status": "ok", "sub": "cli", "next_seq": from});
    if chance(8) == 0 {
        return false;
    }
    put(ack.to_string());
    // Repeats of an earlier delivery.
    for seq in from.saturating_sub(chance(4))..from {
        put(delivered(&line(seq, "t", &seq.to_string())));
    }
    let last = (from + chance(60)).min(end + 1);
    for seq in from..last {
        put(delivered(&line(seq, "t", &seq.to_string())));
        if chance(10) == 0 {
            put(json!({"type": "heartbeat"}).to_string());
        }
    }
    let is_all = last > end;
    if !is_all {
        match chance(3) {
            0 => put(json!({"type": "close", "reason": "slow-consumer", "retry_after_ms": 0}).to_string()),
            // In the middle of a frame.
            1 => bytes.truncate(bytes.len() - chance(bytes.len() as u64 / 2) as usize),
            _ => {}
        }
    }
    let _ = session.try_send_raw(&bytes);
    if is_all {
        session.drain();
    }
    is_all
}

#[test]
fn each_event_once_in_order_whatever_connections_do() {
    const END: u64 = 600;
    for seed in 1..=3_u64 {
        let dir = tempfile::tempdir().unwrap();
        let broker = FakeBroker::start(dir.path());
        let count = END.to_string();
        let mut subscriber = Subscriber::start(dir.path(), &["-o", "raw", "--from", "@1", "-c", &count]);
        let mut state = seed;
        let mut chance = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below.max(1)
        };
        let mut sessions = 1;
        // Until it was accepted once, a lost connection is the end.
        while !serve(
            &mut broker.session(HELLO),
            END,
            |below| if sessions == 1 { below - 1 } else { chance(below) },
        ) {
            sessions += 1;
        }
        let (exit, out, _) = subscriber.end();
        let want: Vec<String> = (1..=END).map(|seq| seq.to_string()).collect();
        assert_eq!((exit, out), (Some(0), want), "seed {seed}");
        assert!(sessions > 10, "seed {seed}: {sessions}");
    }
}

/// Serves like a broker whose journal has `events` of 60,000 bytes, to a peer that may stop it for a while; how often
/// it was, when the peer is gone.
fn serve_all(mut session: Session, events: u64) -> u64 {
    let payload = "x".repeat(60_000);
    let (mut stops, mut next) = (0, None);
    loop {
        match session.poll() {
            Some(None) => return stops,
            Some(Some(frame)) if frame["type"] == "subscribe" => {
                let seq = frame["from"]["seq"].as_u64().unwrap();
                assert_eq!(next, None, "one at a time");
                next = Some(seq);
                session.accept(seq);
            }
            Some(Some(frame)) if frame["type"] == "unsubscribe" => {
                assert_eq!(frame["sub"], "cli");
                (stops, next) = (stops + 1, None);
                let ack = json!({"type": "ack", "ack": "unsubscribe", "status": "ok", "sub": "cli"});
                session.send(&ack);
            }
            Some(Some(_)) => {}
            None => match next {
                Some(seq) if seq <= events => {
                    let event = delivered(&line(seq, "t", &format!("\"{seq} {payload}\"")));
                    // It ends when it has enough.
                    if session.try_send(event).is_err() {
                        return stops;
                    }
                    next = Some(seq + 1);
                }
                _ => std::thread::sleep(Duration::from_millis(1)),
            },
        }
    }
}

#[test]
fn who_reads_slowly_stops_the_broker_and_misses_nothing() {
    const EVENTS: u64 = 150;
    let dir = tempfile::tempdir().unwrap();
    let broker = FakeBroker::start(dir.path());
    let mut command = crate::subscribe_cli::command(dir.path(), &["-o", "raw", "--from", "@1", "-c", "150"]);
    let mut child = command.spawn().unwrap();
    let session = broker.session(HELLO);
    let serving = std::thread::spawn(move || serve_all(session, EVENTS));
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    // Nobody reads for longer than the command bears.
    std::thread::sleep(Duration::from_millis(1500));
    for seq in 1..=EVENTS {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        assert!(line.starts_with(&format!("\"{seq} ")), "{seq}: {}", &line[..10]);
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(std::io::read_to_string(child.stderr.take().unwrap()).unwrap(), "", "nothing was lost");
    assert!(serving.join().unwrap() >= 1, "the broker was told to stop");
}

/// Follows the broker of `root` in this process, and hands out what it says until `enough`.
fn follow(root: &Path, times: Times, mut enough: impl FnMut(&News<'_>) -> bool) {
    let follow = Follow {
        target: Target::Unix(root.join("castra.sock")),
        hello: HELLO.to_owned(),
        patterns: vec![Pattern::parse(">").unwrap()],
        begin: Begin::Latest,
        times,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = follow.connect().await.unwrap();
        let (done, over) = tokio::sync::oneshot::channel();
        let mut done = Some(done);
        let room = Room::default();
        let run = follow.run(client, &room, |news| {
            if enough(&news) {
                let _ = done.take().map(|done| done.send(()));
            }
        });
        tokio::select! {
            failed = run => panic!("{failed:?}"),
            _ = over => {}
        }
    });
}

#[test]
fn it_says_that_it_lives_and_leaves_who_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let broker = FakeBroker::start(dir.path());
    let serving = std::thread::spawn(move || {
        let mut session = broker.session(HELLO);
        session.subscribed(json!("latest"), 5);
        // As long as its heartbeats are answered all is well, for longer than silence is borne.
        for _ in 0..12 {
            assert_eq!(session.receive().unwrap(), json!({"type": "heartbeat"}));
            session.send(&json!({"type": "ack", "ack": "heartbeat", "status": "ok"}));
        }
        // The host is gone: nothing comes, and nothing says so.
        let answered = Instant::now();
        let mut next = broker.session(HELLO);
        let took = answered.elapsed();
        next.subscribed(json!({"seq": 5}), 5);
        next.events([5]);
        next.drain();
        took
    });
    let times = Times {
        connect: Duration::from_secs(5),
        heartbeat: Duration::from_millis(50),
        silence: Duration::from_millis(400),
    };
    let mut lost = Vec::new();
    follow(dir.path(), times, |news| {
        if let News::Lost(error, next) = news {
            lost.push((error.to_string(), *next));
        }
        matches!(news, News::Events(_))
    });
    let took = serving.join().unwrap();
    assert!(took >= Duration::from_millis(390), "{took:?}");
    assert_eq!(lost, [("the connection was lost: nothing came for 400ms".to_owned(), 5)]);
}

#[test]
fn who_accepts_and_says_nothing_is_no_broker() {
    let dir = tempfile::tempdir().unwrap();
    let _broker = FakeBroker::start(dir.path());
    let follow = Follow {
        target: Target::Unix(dir.path().join("castra.sock")),
        hello: HELLO.to_owned(),
        patterns: vec![],
        begin: Begin::Latest,
        times: Times { connect: Duration::from_millis(100), ..Times::default() },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(follow.connect()).err().unwrap();
    assert_eq!(error.to_string(), "timed out");
}

/// An event of a key, as a subscriber gets it.
fn keyed(seq: u64, key: &str, payload: &str) -> String {
    let line =
        line(seq, "t", payload).replace("\"topic\":\"t\"", &format!("\"topic\":\"t\",\"key\":{key:?}"));
    delivered(&line)
}

#[test]
fn a_state_is_gone_on_with_and_begun_anew_without_repeats() {
    let dir = tempfile::tempdir().unwrap();
    let broker = FakeBroker::start(dir.path());
    let subscriber = Subscriber::start(dir.path(), &["-o", "json", "t", "other", "--from", "state"]);
    let accept = |session: &mut Session, from: serde_json::Value, next: u64, state: Option<u64>| {
        let asked = session.receive().unwrap();
        assert_eq!(asked["from"], from, "{asked}");
        let mut ack = json!({"type": "ack", "ack": "subscribe", "status": "ok", "sub": "cli", "next_seq": next, "compacted": ["t"]});
        state.iter().for_each(|state| ack["state"] = json!(state));
        session.send(&ack);
    };
    let shown = || -> serde_json::Value { serde_json::from_str(&subscriber.line()).unwrap() };
    let next = || shown()["seq"].as_u64().unwrap();
    let end = |through| json!({"type": "state", "sub": "cli", "through": through});
    let mut session = broker.session(HELLO);
    accept(&mut session, json!({"state": 0}), 1, Some(20));
    session.send_bytes(keyed(3, "a", "1"));
    assert_eq!(next(), 3);
    drop(session);
    // The rest of the same state.
    let mut session = broker.session(HELLO);
    accept(&mut session, json!({"state": 3, "through": 20}), 4, Some(20));
    session.send_bytes(keyed(7, "b", "1"));
    session.send_bytes(keyed(9, "c", "1"));
    session.send(&end(20));
    assert_eq!((next(), next()), (7, 9));
    // The frame was seen, when this is.
    session.send_bytes(keyed(21, "d", "1"));
    assert_eq!(next(), 21);
    drop(session);
    let mut session = broker.session(HELLO);
    accept(&mut session, json!({"seq": 21, "compacted": true}), 21, None);
    // Behind a gap comes what is newest of it; whoever is cut off meanwhile asks for the rest.
    session.send(&json!({"type": "gap", "sub": "cli", "from": 21, "to": 30}));
    session.send_bytes(keyed(25, "e", "1"));
    assert_eq!(next(), 25);
    drop(session);
    let mut session = broker.session(HELLO);
    accept(&mut session, json!({"seq": 25, "compacted": true}), 25, None);
    session.send(&json!({"type": "gap", "sub": "cli", "from": 25, "to": 40}));
    session.send_bytes(keyed(33, "a", "null"));
    session.send(&end(40));
    assert_eq!(next(), 33);
    // It has a key of a topic that has no state, too.
    session.send_bytes(keyed(41, "z", "1").replace("\"topic\":\"t\"", "\"topic\":\"other\""));
    assert_eq!(next(), 41);
    session
        .send(&json!({"type": "unsubscribed", "sub": "cli", "code": "state-expired", "reason": "because"}));
    session.drain();
    // All of it: b as before, c changed, d and e gone.
    let mut session = broker.session(HELLO);
    accept(&mut session, json!({"state": 0}), 1, Some(50));
    session.send_bytes(keyed(7, "b", "1"));
    session.send_bytes(keyed(48, "c", "2"));
    session.send(&end(50));
    assert_eq!(next(), 48);
    let mut ended = [shown(), shown()];
    ended.sort_by_key(|event| event["key"].to_string());
    for (event, key) in ended.iter().zip(["d", "e"]) {
        let want = json!({
            "seq": 50, "ts": event["ts"], "id": "state.ended:50", "vm": "bus", "topic": "t", "key": key,
            "headers": {"castra-event": "state.ended"}, "payload": null,
        });
        assert_eq!(*event, want);
    }
    session.send_bytes(keyed(51, "d", "1"));
    assert_eq!(next(), 51);
    let said: Vec<String> = subscriber.said.try_iter().collect();
    let count = |text: &str| said.iter().filter(|line| line.contains(text)).count();
    assert_eq!((count("events 22 to 30 are gone"), count("events 31 to 40 are gone")), (1, 1), "{said:?}");
    assert_eq!(count("its state is read anew"), 1, "{said:?}");
}
