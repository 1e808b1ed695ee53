//! The Rust client API against real brokers: the two tests and the example of the text that it comes from, and what
//! becomes of it when brokers and connections die.

use crate::fake_broker::FakeBroker;
use crate::support::{Broker, PATIENCE};
use castra::core::client::{Begin, Bus, Error, Nack, Target};
use serde_json::json;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

/// Runs it on threads, with a limit.
fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let test = async { tokio::time::timeout(PATIENCE * 2, test).await.expect("it is done in time") };
    runtime.block_on(test)
}

fn target(root: &Path) -> Target {
    Target::Unix(root.join("castra.sock"))
}

async fn bus(broker: &Broker) -> Bus {
    Bus::connect(&target(&broker.root), "app").await.unwrap()
}

/// Looks until it is so.
async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let looking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("waited for {what}"));
}

#[test]
fn publish_then_subscribe_earliest_delivers_and_advances_the_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    run(async {
        let bus = bus(&broker).await;
        let (seen, mut got) = mpsc::unbounded_channel();
        bus.subscribe("t.a", "g1", move |event, _| {
            let sent = seen.send(event.payload::<String>().unwrap());
            async move { Ok(sent?) }
        })
        .earliest()
        .await
        .unwrap();

        bus.publish("t.a", "one").await.unwrap();
        bus.publish("t.a", "two").await.unwrap();

        assert_eq!([got.recv().await.unwrap(), got.recv().await.unwrap()], ["one", "two"]);
        until("the cursor", async || bus.cursor("g1").await.unwrap() == Some(2)).await;
    });
}

#[test]
fn a_nack_leaves_the_cursor_and_the_event_is_retried() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    run(async {
        let bus = bus(&broker).await;
        let attempts = Arc::new(AtomicU32::new(0));
        let count = attempts.clone();
        bus.subscribe("t.b", "g1", move |_, context| {
            assert_eq!(count.fetch_add(1, SeqCst) + 1, context.attempt);
            async move { if context.attempt == 1 { Err("boom".into()) } else { Ok(()) } }
        })
        .earliest()
        .await
        .unwrap();

        bus.publish("t.b", "x").await.unwrap();
        until("the first attempt", async || attempts.load(SeqCst) > 0).await;
        assert_eq!(bus.cursor("g1").await.unwrap(), Some(0));
        until("another attempt", async || attempts.load(SeqCst) >= 2).await;
        until("the cursor", async || bus.cursor("g1").await.unwrap() == Some(1)).await;
    });
}

#[test]
fn the_example_of_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    run(async {
        let bus = bus(&broker).await;

        // Subscribe, durably.
        let subscription = bus
            .subscribe("heartbeat.received", "ops", |event, _| async move {
                // Update the process table, emit metrics …
                assert_eq!(
                    (event.tags, event.vm),
                    (vec!["#duck".to_owned(), "#stt".to_owned()], "app".into())
                );
                Ok(())
            })
            .earliest()
            .batch(100)
            .await
            .unwrap();

        // Publish.
        let heartbeat = json!({"pid": 12345, "name": "stt", "host": "dev", "cpu_pct": 12.3, "mem_mb": 256});
        bus.publish("heartbeat.received", heartbeat).tags(["#duck", "#stt"]).await.unwrap();

        // Read the cursor.
        until("the cursor", async || bus.cursor("ops").await.unwrap() == Some(1)).await;
        subscription.stop().await;
        assert_eq!(bus.group("ops").await.unwrap().unwrap().members, 0);
    });
}

#[test]
fn a_broker_that_is_killed_under_load_costs_no_event_and_no_second_one() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    run(async {
        let bus = bus(&broker).await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let theirs = seen.clone();
        let subscription = bus
            .subscribe("t", "g", move |event, _| {
                theirs.lock().unwrap().push(event.payload::<u32>().unwrap());
                async { Ok(()) }
            })
            .earliest()
            .await
            .unwrap();
        let publishers: Vec<_> = (0..50)
            .map(|first| {
                let bus = bus.clone();
                tokio::spawn(async move {
                    for n in 0..40 {
                        let stored = bus.publish("t", first * 40 + n).await.unwrap();
                        assert!(!stored.duplicate);
                    }
                })
            })
            .collect();
        until("some events", async || seen.lock().unwrap().len() > 300).await;
        broker.kill();
        let broker = Broker::start(dir.path());
        for publisher in publishers {
            publisher.await.unwrap();
        }
        until("all to be done", async || bus.cursor("g").await.unwrap() >= Some(2000)).await;
        subscription.stop().await;
        let mut all = seen.lock().unwrap().clone();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all, (0..2000).collect::<Vec<u32>>());
        // What was in doubt was stored once.
        assert_eq!(bus.publish("u", ()).await.unwrap().seq, 2001);
        bus.close().await;
        drop(broker);
    });
}

#[test]
fn what_was_acked_in_doubt_is_not_handed_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    run(async {
        let bus = bus(&broker).await;
        let mut jobs = bus.consume("t", "g").earliest().await.unwrap();
        assert!(jobs.joined().created && jobs.joined().differs.is_empty());
        for n in 1..=3 {
            bus.publish("t", n).await.unwrap();
        }
        let held = [jobs.next().await.unwrap(), jobs.next().await.unwrap(), jobs.next().await.unwrap()];
        let [one, two, three] = held;
        one.ack().await.unwrap();
        broker.kill();
        // It is done, and nobody can be told.
        let in_doubt = two.ack();
        let broker = Broker::start(dir.path());
        // The connection may still have looked alive: then the broker never saw it all the same.
        let _ = tokio::time::timeout(PATIENCE, in_doubt).await.unwrap();
        until("what was in doubt to be done", async || bus.cursor("g").await.unwrap() == Some(2)).await;
        // The program has it, and goes on with it.
        until("it to be held again", async || bus.group("g").await.unwrap().unwrap().held == 1).await;
        three.ack().await.unwrap();
        assert_eq!(bus.cursor("g").await.unwrap(), Some(3));
        let next = bus.publish("t", 4).await.unwrap();
        let delivery = jobs.next().await.unwrap();
        assert_eq!((delivery.event.seq, delivery.attempt), (next.seq, 1), "nothing came twice");
        delivery.ack().await.unwrap();
        jobs.leave().await;
        drop(broker);
    });
}

#[test]
fn at_most_so_many_handlers_run_and_keys_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    run(async {
        let bus = bus(&broker).await;
        for n in 0..60 {
            bus.publish("t", n).key(format!("k{}", n % 3)).await.unwrap();
        }
        let (running, most, seen) =
            (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(Vec::new())));
        let theirs = (running.clone(), most.clone(), seen.clone());
        let subscription = bus
            .subscribe("t", "g", move |event, _| {
                let (running, most, seen) = theirs.clone();
                async move {
                    most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    seen.lock().unwrap().push((event.key.clone(), event.payload::<u32>()?));
                    running.fetch_sub(1, SeqCst);
                    Ok(())
                }
            })
            .earliest()
            .max_in_flight(2)
            .ordered_by_key()
            .await
            .unwrap();
        until("all", async || bus.cursor("g").await.unwrap() == Some(60)).await;
        subscription.stop().await;
        assert_eq!((most.load(SeqCst), running.load(SeqCst)), (2, 0));
        let seen = seen.lock().unwrap();
        for key in ["k0", "k1", "k2"] {
            let of_key: Vec<u32> =
                seen.iter().filter(|(of, _)| of.as_deref() == Some(key)).map(|(_, n)| *n).collect();
            assert!(of_key.len() == 20 && of_key.is_sorted(), "{key}: {of_key:?}");
        }
    });
}

#[test]
fn what_is_given_up_or_panics_or_is_let_go_of() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    run(async {
        let bus = bus(&broker).await;
        let host = {
            let hello = "hello vm:host capabilities=bus-v1,host-bus";
            Bus::connect_as(&target(&broker.root), hello, Default::default()).await.unwrap()
        };
        let mut letters = host.listen("$dlq.>").await.unwrap();
        let subscription = bus
            .subscribe("t", "g", |event, context| async move {
                match (event.json(), context.attempt) {
                    ("1", _) => Err(Nack::term("never")),
                    ("2", 1) => panic!("the handler's own"),
                    ("2", _) => Err(Nack::new("again").after(Duration::ZERO)),
                    _ => {
                        context.in_progress().await?;
                        Ok(())
                    }
                }
            })
            .max_attempts(2)
            .ack_timeout(Duration::from_secs(20))
            .await
            .unwrap();
        for n in 1..=3 {
            bus.publish("t", n).await.unwrap();
        }
        let mut reasons = Vec::new();
        for _ in 0..2 {
            let letter: serde_json::Value = letters.next().await.unwrap().payload().unwrap();
            let failures = letter["failures"].as_array().unwrap();
            reasons
                .push(failures.iter().map(|f| f["reason"].as_str().unwrap().to_owned()).collect::<Vec<_>>());
        }
        reasons.sort();
        assert_eq!(reasons, [vec!["never"], vec!["the handler panicked", "again"]]);
        until("all", async || bus.cursor("g").await.unwrap() >= Some(3)).await;
        subscription.stop().await;

        let mut jobs = bus.consume("u", "h").await.unwrap();
        bus.publish("u", ()).await.unwrap();
        drop(jobs.next().await.unwrap());
        let again = jobs.next().await.unwrap();
        assert_eq!((again.attempt, again.event.json()), (2, "null"));
    });
}

#[test]
fn what_is_refused_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    run(async {
        let bus = bus(&broker).await;
        let code = |error: Error| error.code().unwrap_or_default().to_owned();
        assert_eq!(code(bus.publish("a..b", 1).await.unwrap_err()), "bad-topic");
        assert_eq!(code(bus.publish("t", "x".repeat(70_000)).await.unwrap_err()), "event-too-large");
        let first = bus.publish("t", 1).id("mine").await.unwrap();
        let again = bus.publish("t", 1).id("mine").await.unwrap();
        assert_eq!((again.seq, again.duplicate, first.duplicate), (first.seq, true, false));
        assert_eq!(code(bus.consume("t", "a b").await.unwrap_err()), "bad-group");
        let member = bus.consume("t", "g").await.unwrap();
        assert_eq!(code(bus.consume("t", "g").await.unwrap_err()), "sub-exists");
        assert_eq!(code(bus.seek("nobody", Begin::Latest).await.unwrap_err()), "unknown-group");
        assert_eq!(code(bus.ask("no-such-type", json!({})).await.unwrap_err()), "unknown-type");
        assert!(bus.group("nobody").await.unwrap().is_none());
        assert!(bus.listen("a..b").await.is_err());
        let bad = Bus::connect(&target(&broker.root), "no name").await;
        assert_eq!(code(bad.unwrap_err()), "bad-name");
        assert!(matches!(Bus::connect(&target(Path::new("/none")), "a").await, Err(Error::NoSession(_))));
        // Another member is told what holds.
        let other = Bus::connect(&target(&broker.root), "other").await.unwrap();
        let joined = other.consume("t", "g").max_attempts(9).await.unwrap();
        assert_eq!(joined.joined().differs, ["max_attempts"]);
        let made = other.create_group("u", "made").earliest().await.unwrap();
        assert!(made.created);
        let names: Vec<String> = other.groups().await.unwrap().into_iter().map(|group| group.group).collect();
        assert_eq!(names, ["g", "made"]);
        // A group that is removed has no members.
        let mut joined = joined;
        other.remove_group("g").await.unwrap();
        assert_eq!(code(joined.next().await.unwrap_err()), "group-removed");
        let mut member = member;
        assert_eq!(code(member.next().await.unwrap_err()), "group-removed");
        drop(member);
        bus.close().await;
    });
}

#[test]
fn a_group_whose_name_is_too_long_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let long = "G".repeat(129);
    for args in [
        &["bus", "group", "show", &long][..],
        &["bus", "group", "rm", &long],
        &["bus", "group", "create", &long, "--topic", "t"],
        &["bus", "group", "seek", &long, "latest"],
        &["bus", "subscribe", "--group", &long],
    ] {
        let output = broker.run(&[args, &["--json"]].concat());
        let said: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), &said["code"]),
            (Some(65), &json!("bad-group")),
            "{args:?}: {said}"
        );
    }
    run(async {
        let bus = bus(&broker).await;
        for error in [
            bus.consume("t", &long).await.unwrap_err(),
            bus.create_group("t", &long).await.unwrap_err(),
            bus.group(&long).await.unwrap_err(),
            bus.remove_group(&long).await.unwrap_err(),
            // The name is no text: a broker cannot say it.
            bus.ask("group", json!({"group": 5})).await.unwrap_err(),
        ] {
            assert!(matches!(error.code(), Some("bad-group" | "bad-field")), "{error}");
        }
    });
}

/// A refusal may overtake an answer that waits for the disk: each caller gets its own all the same.
#[test]
fn each_caller_gets_its_own_answer() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeBroker::start(dir.path());
    let played = std::thread::spawn(move || {
        let (mut session, _) = fake.guest();
        // Only what is not answered out of turn by a broker may be under way at once.
        let mut asked: Vec<serde_json::Value> = Vec::new();
        let mut answered = 0;
        while answered < 4 {
            let is_one = |one: &serde_json::Value, two: &serde_json::Value| {
                one["type"] == two["type"] && one["group"] == two["group"]
            };
            match session.poll() {
                Some(frame) => {
                    let frame = frame.expect("a frame");
                    assert!(!asked.iter().any(|other| is_one(other, &frame)), "{frame} beside {asked:?}");
                    asked.push(frame);
                }
                // Refusals first, and each group by itself.
                None if asked.len() >= (4 - answered).min(2) => {
                    asked.sort_by_key(|frame| !frame["from"]["seq"].is_u64());
                    let of = asked.remove(0);
                    let mut answer = json!({"type": "ack", "ack": of["type"], "group": of["group"]});
                    let more = match of["from"]["seq"].is_u64() {
                        true => json!({"status": "error", "code": "seq-ahead", "reason": "no"}),
                        false => json!({"status": "ok", "cursor": 7}),
                    };
                    answer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                    session.send(&answer);
                    answered += 1;
                }
                None => std::thread::yield_now(),
            }
        }
        session.drain();
    });
    run(async {
        let bus = Bus::connect(&target(dir.path()), "app").await.unwrap();
        let (good, bad) = (Begin::Latest, Begin::Seq(9));
        let all = tokio::join!(
            bus.seek("z", good.clone()),
            bus.seek("z", bad.clone()),
            bus.seek("y", bad),
            bus.seek("y", good),
        );
        let code =
            |result: &Result<u64, Error>| result.as_ref().map(|seq| *seq).map_err(|e| e.code().is_some());
        let said = [&all.0, &all.1, &all.2, &all.3].map(code);
        assert_eq!(said, [Ok(7), Err(true), Err(true), Ok(7)]);
    });
    played.join().unwrap();
}
