//! The outbox drains: in order, whatever happens to the broker, to the agent, or to the way between them.

use crate::fake_broker::FakeBroker;
use crate::program::{Agent, at, program};
use crate::support::{Broker, eventually, read_log};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The ids in the log of the VM, in order.
fn ids(root: &Path) -> Vec<String> {
    read_log(root, "web").iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

/// Waits until the log has so many different ids; all of them.
fn wait_for_ids(broker: &Broker, count: usize) -> Vec<String> {
    eventually(&format!("{count} events"), || {
        let log = broker.root.join("logs/bus/web.log");
        if !log.exists() {
            return None;
        }
        let all: Vec<String> =
            broker.log("web").iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect();
        (all.iter().collect::<HashSet<_>>().len() >= count).then_some(all)
    })
}

#[test]
fn what_is_published_while_the_broker_is_away_is_sent_in_order_once_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let agent = Agent::start(dir.path(), &at(&root), &[]);
    agent.wait_for("no broker answers");
    let mut local = agent.program();
    for n in 0..300 {
        local.publish(&json!({"topic": "t", "id": format!("a{n}"), "payload": n}).to_string());
    }
    let last = agent.outbox().pop().unwrap();
    assert_eq!(last["counts"]["pending"], 300, "{last}");
    wait_for_error(&agent, "no broker answers");
    let broker = Broker::start(&root);
    let all = wait_for_ids(&broker, 300);
    let want: Vec<String> = (0..300).map(|n| format!("a{n}")).collect();
    assert_eq!(all, want);
    agent.drained();
    assert!(broker.log("web").iter().enumerate().all(|(n, event)| event["payload"] == n));

    // And on, over a restart of the broker, and one of the agent.
    assert_eq!(broker.stop().0, Some(0));
    agent.wait_for("closed the session: draining");
    local.publish(r#"{"topic":"t","id":"b0"}"#);
    drop(local);
    assert_eq!(agent.stop(), Some(0));
    let agent = Agent::start(dir.path(), &at(&root), &[]);
    agent.program().publish(r#"{"topic":"t","id":"b1"}"#);
    let broker = Broker::start(&root);
    let all = wait_for_ids(&broker, 302);
    assert_eq!(&all[300..], ["b0", "b1"]);
    // With time, it is noticed that they are there; nothing else is said of it.
    assert_eq!(agent.said().matches("no broker answers").count(), 1, "{}", agent.said());
}

/// Publishes `count` events, but no more than `may` at any time, and sends again what was not answered; how many were
/// is told through `kept`.
fn publish_all(dir: &Path, count: u64, may: &AtomicU64, kept: &AtomicU64) {
    const WINDOW: u64 = 64;
    let line = |n: u64| json!({"topic": "load", "id": format!("id-{n}"), "payload": n}).to_string();
    let mut done = 0;
    while done < count {
        let (mut local, mut sent) = (program(dir), done);
        while done < count {
            let until = may.load(Ordering::Relaxed).min(done + WINDOW);
            let mut is_lost = false;
            while sent < until && !is_lost {
                is_lost = local.send(&line(sent)).is_err();
                sent += u64::from(!is_lost);
            }
            if sent == done {
                if is_lost {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            match local.answer() {
                Some(answer) if answer["status"] == "ok" => done += 1,
                _ => break,
            }
            kept.store(done, Ordering::Relaxed);
        }
    }
}

#[test]
fn kills_of_the_broker_and_the_agent_lose_nothing_and_repeat_nothing() {
    const EVENTS: u64 = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let (mut broker, mut agent) = (Broker::start(&root), Agent::start(dir.path(), &at(&root), &[]));
    let (may, kept) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let load = {
        let (dir, may, kept) = (dir.path().to_owned(), may.clone(), kept.clone());
        std::thread::spawn(move || publish_all(&dir, EVENTS, &may, &kept))
    };
    let reach = |count: u64| {
        eventually(&format!("{count} events"), || (kept.load(Ordering::Relaxed) >= count).then_some(()));
    };
    // Five times the broker, three times the agent, in the middle of a thousand events each.
    for (i, victim) in "babbabab".chars().enumerate() {
        let from = 1000 * i as u64;
        may.store(from + 1000, Ordering::Relaxed);
        reach(from + 100 + 77 * i as u64);
        if victim == 'b' {
            broker.kill();
            // The outbox fills for a while.
            reach(from + 900);
            broker = Broker::start(&root);
        } else {
            agent.kill();
            agent = Agent::start(dir.path(), &at(&root), &[]);
            reach(from + 900);
        }
    }
    may.store(EVENTS, Ordering::Relaxed);
    load.join().unwrap();
    wait_for_ids(&broker, EVENTS as usize);
    agent.drained();
    let counts = agent.outbox().pop().unwrap()["counts"].clone();
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(broker.stop().0, Some(0));
    println!("{counts}");
    let want: Vec<String> = (0..EVENTS).map(|n| format!("id-{n}")).collect();
    let all = ids(&root);
    assert_eq!(all.len(), want.len(), "each once");
    assert!(all == want, "in order");
}

/// Why nothing is sent is written down within a second.
fn wait_for_error(agent: &Agent, error: &str) {
    eventually(error, || {
        let last = agent.outbox().pop()?;
        last["last_error"].to_string().contains(error).then_some(())
    });
}

fn publish_ids(agent: &Agent, ids: &[&str]) {
    let mut local = agent.program();
    for id in ids {
        local.publish(&json!({"topic": "t", "id": id}).to_string());
    }
}

fn id(frame: &Value) -> &str {
    frame["id"].as_str().unwrap_or("none")
}

#[test]
fn nothing_overtakes_what_is_refused_for_now_and_what_is_refused_for_good_stands_in_no_way() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeBroker::start(dir.path());
    let agent = Agent::start(dir.path(), &at(dir.path()), &[]);
    let (mut session, hello) = fake.guest();
    assert!(hello.starts_with("hello vm:web capabilities=bus-v1,heartbeat instance="), "{hello}");
    publish_ids(&agent, &["a", "b", "c", "d"]);
    let sent = session.receive_all(4);
    assert_eq!(sent.iter().map(id).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    session.ack(&sent[0], 1);
    session.refuse("forbidden-topic");
    session.refuse("disk-full");
    session.refuse("disk-full");
    // From the first one on that may be stored later, one at a time until one is.
    let again = session.receive().unwrap();
    assert_eq!(id(&again), "c");
    session.refuse("disk-full");
    let again = session.receive().unwrap();
    assert_eq!(id(&again), "c");
    assert!(session.poll().is_none(), "d waits for it");
    wait_for_error(&agent, "disk-full");
    session.ack(&again, 2);
    let last = session.receive().unwrap();
    assert_eq!(id(&last), "d");
    session.ack(&last, 3);
    agent.drained();
    let refused: Vec<Value> = agent.outbox().into_iter().filter(|line| line["state"] == "error").collect();
    assert_eq!(
        (refused.len(), &refused[0]["id"], &refused[0]["code"]),
        (1, &json!("b"), &json!("forbidden-topic"))
    );
    // An operator has mended it.
    assert_eq!(agent.castra(&["outbox", "retry", "--all"]).status.code(), Some(0));
    let again = session.receive().unwrap();
    assert_eq!(id(&again), "b");
    session.ack(&again, 4);
    agent.drained();
}

#[test]
fn what_was_not_acknowledged_is_sent_again_with_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeBroker::start(dir.path());
    let agent = Agent::start(dir.path(), &at(dir.path()), &[]);
    let (mut session, _) = fake.guest();
    publish_ids(&agent, &["a", "b", "c"]);
    let sent = session.receive_all(3);
    session.ack(&sent[0], 1);
    drop(session);
    let (mut session, _) = fake.guest();
    let again = session.receive_all(2);
    assert_eq!(again.iter().map(id).collect::<Vec<_>>(), ["b", "c"]);
    let dup = json!({"type": "ack", "ack": "publish", "status": "ok", "topic": "t", "seq": 2, "id": "b", "duplicate": true});
    session.send(&dup);
    session.ack(&again[1], 3);
    agent.drained();
    let counts = agent.outbox().pop().unwrap()["counts"].clone();
    assert_eq!((&counts["sent"], &counts["duplicate"]), (&json!(3), &json!(1)), "{counts}");
    // A broker that acknowledges something else is none to go on with.
    publish_ids(&agent, &["d"]);
    let mut other = session.receive().unwrap();
    other["id"] = json!("x");
    session.ack(&other, 9);
    let (mut session, _) = fake.guest();
    assert_eq!(id(&session.receive().unwrap()), "d");
}

#[test]
fn no_more_than_a_window_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeBroker::start(dir.path());
    let agent = Agent::start(dir.path(), &at(dir.path()), &[]);
    let mut local = agent.program();
    for n in 0..300 {
        local.publish(&json!({"topic": "t", "id": format!("a{n}")}).to_string());
    }
    let (mut session, _) = fake.guest();
    let first = session.receive_all(128);
    std::thread::sleep(Duration::from_millis(300));
    assert!(session.poll().is_none(), "the broker remembers twice as many ids of a VM");
    for (n, publish) in first.iter().enumerate() {
        session.ack(publish, n as u64 + 1);
    }
    for n in 128..300 {
        let publish = session.receive().unwrap();
        assert_eq!(id(&publish), format!("a{n}"));
        session.ack(&publish, n + 1);
    }
    agent.drained();
    // What is told to end waits for what is under way.
    local.publish(r#"{"topic":"t","id":"last"}"#);
    let last = session.receive().unwrap();
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    agent.wait_for("ending");
    session.ack(&last, 301);
    assert!(session.receive().is_none(), "its end");
}
