//! Moments that a crowd seldom meets, each made on purpose.

use crate::peer::Peer;
use crate::world::{Handing, Make, World, run, settle};
use castra::core::limits::Limits;
use serde_json::{Value, json};

fn by_hand() -> Make {
    Make { handing: Handing::Test, ..Make::default() }
}

fn quiet() -> String {
    "an edge".to_owned()
}

fn group(topics: &[&str]) -> String {
    let events: Vec<Value> = topics.iter().map(|topic| json!({ "topic": topic })).collect();
    json!({"type": "publish", "events": events}).to_string()
}

#[test]
fn a_subscription_from_the_middle_of_a_commit_begins_there() {
    run(quiet, async {
        let world = World::new(by_hand());
        let mut publisher = Peer::new(&world, "p", "", 1 << 16).await;
        publisher.ask(&group(&["a"; 6])).await;
        world.settled().await;
        // Durable, and not handed out yet: two that begin in the middle of it, and one behind it.
        let mut peers = Vec::new();
        for seq in [3, 5, 7] {
            let mut peer = Peer::new(&world, "s", "", 1 << 16).await;
            let ack = peer.subscribe(&format!(r#""topic":"a","from":{{"seq":{seq}}}"#)).await;
            assert_eq!((&ack["next_seq"], &ack["gap"]), (&json!(seq), &Value::Null));
            peers.push((seq, peer));
        }
        world.hand_out(1, 0);
        publisher.ask(&group(&["a"; 2])).await;
        world.settled().await;
        world.hand_out(1, 0);
        for (seq, peer) in &mut peers {
            for want in *seq..=8 {
                assert_eq!(peer.event("a").await, want, "of the one from {seq}");
            }
            settle().await;
            assert_eq!(peer.now().await, [] as [Value; 0]);
        }
    });
}

#[test]
fn frames_are_taken_though_their_answers_fill_the_output() {
    run(quiet, async {
        let world = World::new(Make::default());
        // Room for all of it in the pipes: nothing but the session itself can be in the way.
        let mut peer = Peer::new(&world, "s", "", 1 << 22).await;
        for _ in 0..20_000 {
            peer.send(r#"{"type":"heartbeat"}"#);
        }
        for n in 0..20_000 {
            assert_eq!(peer.json().await["ack"], "heartbeat", "{n}");
        }
        for n in 0..5_000 {
            peer.send(&format!(r#"{{"type":"unsubscribe","sub":"{n}"}}"#));
        }
        for n in 0..5_000 {
            assert_eq!(peer.json().await["code"], "unknown-sub", "{n}");
        }
    });
}

#[test]
fn what_the_router_never_got_is_read_from_the_journal() {
    run(quiet, async {
        let world = World::new(by_hand());
        let mut publisher = Peer::new(&world, "p", "", 1 << 16).await;
        let mut live = Peer::new(&world, "s", "", 1 << 16).await;
        live.subscribe(r#""topic":"a""#).await;
        live.subscribe(r#""topic":"*","sub":"all""#).await;
        live.subscribe(r#""topic":"b""#).await;
        for topics in [["a", "b"], ["b", "b"], ["a", "x"], ["a", "b"]] {
            publisher.ask(&group(&topics)).await;
        }
        world.settled().await;
        // Only the last commit comes.
        let commits = world.waiting();
        world.hand_out(commits, commits - 1);
        let mut seen = [("a", vec![]), ("all", vec![]), ("b", vec![])];
        for _ in 0..3 + 8 + 4 {
            let event = live.json().await;
            let of = seen.iter_mut().find(|(sub, _)| event["sub"] == *sub).unwrap();
            of.1.push(event["seq"].as_u64().unwrap());
        }
        assert_eq!(seen, [("a", vec![1, 5, 7]), ("all", (1..=8).collect()), ("b", vec![2, 3, 4, 8])]);
        // And they are live again.
        publisher.ask(&group(&["b"])).await;
        world.settled().await;
        world.hand_out(9, 0);
        let mut last = [live.json().await, live.json().await].map(|event| event["sub"].clone());
        last.sort_by_key(|sub| sub.to_string());
        assert_eq!(last, ["all", "b"]);
        settle().await;
        assert_eq!(live.now().await, [] as [Value; 0]);
    });
}

#[test]
fn what_is_damaged_is_said_and_nothing_else_is_missing() {
    run(quiet, async {
        let limits = Limits { segment_bytes: 16 * 1024, ..Make::default().limits };
        let world = World::new(Make { limits, ..Make::default() });
        let mut publisher = Peer::new(&world, "p", "", 1 << 16).await;
        let pad = "x".repeat(400);
        for n in 1..=100 {
            let topic = if n % 2 == 0 { "a" } else { "b" };
            let ack = publisher
                .ask(&format!(r#"{{"type":"publish","topic":"{topic}","id":"e{n}","payload":"{pad}"}}"#))
                .await;
            assert_eq!(ack["seq"], n);
        }
        // Three events in a row of the first segment.
        let (name, mut bytes) =
            world.disk.files().into_iter().find(|(name, _)| name.ends_with(".seg")).unwrap();
        let place = |id: &str| {
            let id = format!("\"{id}\"");
            bytes.windows(id.len()).position(|w| w == id.as_bytes()).unwrap()
        };
        let range = place("e7")..place("e9");
        bytes[range].fill(b'#');
        world.disk.overwrite(&name, bytes);
        let mut peer = Peer::new(&world, "s", "", 1 << 16).await;
        let ack = peer.subscribe(r#""topic":"a","from":"earliest""#).await;
        assert_eq!((&ack["next_seq"], &ack["gap"]), (&json!(1), &Value::Null));
        peer.subscribe(r#""topic":"nobody","from":"earliest""#).await;
        let mut seen = Vec::new();
        let mut gaps = Vec::new();
        while seen.last() != Some(&100) || gaps.len() < 2 {
            let value = peer.json().await;
            match (value["type"].as_str().unwrap(), value["sub"].as_str().unwrap()) {
                ("gap", sub) => {
                    gaps.push((sub.to_owned(), value["from"].clone(), value["to"].clone(), seen.len()))
                }
                ("event", "a") => seen.push(value["seq"].as_u64().unwrap()),
                _ => panic!("{value}"),
            }
        }
        assert_eq!(seen, (2..=100).step_by(2).filter(|n| *n != 8).collect::<Vec<u64>>());
        gaps.sort_by_key(|gap| gap.0.clone());
        // Each is told of it, in its place.
        assert_eq!(gaps[0], ("a".to_owned(), json!(7), json!(9), 3));
        assert_eq!((&*gaps[1].0, &gaps[1].1, &gaps[1].2), ("nobody", &json!(7), &json!(9)));
    });
}

/// The last frame of a subscription is the ack of its end, whatever is in the queue, on the wire or being read.
#[test]
fn nothing_comes_behind_the_ack_of_the_end() {
    run(quiet, async {
        let limits = Limits { queue_events: 4, ..Make::default().limits };
        let world = World::new(Make { limits, ..Make::default() });
        let mut publisher = Peer::new(&world, "p", "", 1 << 16).await;
        publisher.ask(&group(&["a"; 300])).await;
        for from in [r#""latest""#, r#""earliest""#, r#"{"seq":200}"#] {
            for bytes in [64, 1 << 20] {
                let mut peer = Peer::new(&world, "s", "", bytes).await;
                // Three lives of the same name: each begins with its ack and ends with the other.
                for _ in 0..3 {
                    peer.send(&format!(r#"{{"type":"subscribe","topic":"a","from":{from}}}"#));
                    peer.send(r#"{"type":"subscribe","topic":">","sub":"other","from":"earliest"}"#);
                    peer.flush().await;
                    publisher.ask(&group(&["a"; 100])).await;
                    peer.send(r#"{"type":"unsubscribe","topic":"a"}"#);
                    let mut is_open = false;
                    loop {
                        let value = peer.json().await;
                        if value["sub"] == "a" {
                            match (value["type"].as_str().unwrap(), value["ack"].as_str()) {
                                ("ack", Some("subscribe")) if !is_open => is_open = true,
                                ("ack", Some("unsubscribe")) if is_open => break,
                                ("event", _) if is_open => {}
                                _ => panic!("{value}, open: {is_open}"),
                            }
                        }
                    }
                }
                let last = publisher.publish("a").await;
                let mut other = None;
                while other != Some(last) {
                    let value = peer.json().await;
                    assert_eq!(value["sub"], "other", "{value}");
                    other = value["seq"].as_u64();
                }
            }
        }
    });
}

/// Few read the journal at a time, and the others wait in line. Whoever's turn it is must not wait for anything that
/// waits in the same line.
#[test]
fn looking_up_and_reading_take_turns() {
    run(quiet, async {
        let world = World::new(Make::default());
        let mut publisher = Peer::new(&world, "p", "", 1 << 16).await;
        let pad = "x".repeat(2000);
        for n in 0..100 {
            let ack = publisher.ask(&format!(r#"{{"type":"publish","id":"e{n}","payload":"{pad}"}}"#)).await;
            assert_eq!(ack["status"], "ok");
        }
        let mut peers = Vec::new();
        for _ in 0..24 {
            peers.push(Peer::new(&world, "s", "", 1 << 22).await);
        }
        for round in 0..20 {
            for peer in &mut peers {
                peer.send(r#"{"type":"subscribe","topic":"*","sub":"old","from":"earliest"}"#);
                peer.flush().await;
            }
            tokio::task::yield_now().await;
            for peer in &mut peers {
                // It is being read for, and looks something up at the same time.
                peer.send(r#"{"type":"subscribe","topic":"nobody","from":{"id":"of nobody"}}"#);
                peer.send(r#"{"type":"subscribe","topic":"nobody","from":{"ts":1}}"#);
                peer.flush().await;
            }
            for peer in &mut peers {
                let (mut events, mut acks) = (Vec::new(), Vec::new());
                while events.len() < 100 || acks.len() < 3 {
                    let frame = peer.json().await;
                    match frame["type"].as_str() {
                        Some("event") => events.push(frame["seq"].as_u64().unwrap()),
                        _ => acks.push(frame["code"].as_str().unwrap_or("ok").to_owned()),
                    }
                }
                assert_eq!(
                    (events, acks.join(" ")),
                    ((1..=100).collect(), "ok unknown-id ok".into()),
                    "{round}"
                );
                for sub in ["old", "nobody"] {
                    peer.ask(&format!(r#"{{"type":"unsubscribe","sub":"{sub}"}}"#)).await;
                }
            }
        }
    });
}
