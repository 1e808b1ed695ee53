//! What costs an event of a group an attempt: that a member began it, and not that it lay in a member's buffer.

use crate::fake_broker::{FakeBroker, line};
use crate::groups::{delivery, join};
use crate::subscribe_cli::command;
use crate::support::{Broker, Guest, PATIENCE, eventually};
use castra::core::client::{Bus, Target};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::sync::mpsc;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

fn publish(guest: &mut Guest, topic: &str, events: usize, pad: usize) {
    let event = json!({"topic": topic, "payload": "x".repeat(pad)});
    let ack = guest.ask(json!({"type": "publish", "events": vec![event; events]}).to_string());
    assert_eq!(ack["status"], "ok", "{ack}");
}

fn show(guest: &mut Guest) -> Value {
    guest.ask(r#"{"type":"group","group":"g"}"#)
}

/// Ends the session of a member as a crash does, and waits until the group knows.
fn crash(member: Guest, other: &mut Guest) {
    drop(member);
    eventually("the member to be gone", || (show(other)["members"] == 0).then_some(()));
}

fn letters(broker: &Broker) -> Vec<Value> {
    broker.log("host").into_iter().filter(|line| line["topic"] == "$dlq.g").collect()
}

#[test]
fn a_worker_that_crashes_again_and_again_fails_at_one_event() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut publisher = broker.guest("p");
    publish(&mut publisher, "t", 50, 10);
    let fields = r#""topic":"t","group":"g","from":"earliest","max_attempts":3"#;
    for crashes in 0..3 {
        let mut worker = broker.guest("w");
        join(&mut worker, fields);
        assert_eq!(delivery(&mut worker, "g"), (1, crashes + 1));
        crash(worker, &mut publisher);
    }
    let mut worker = broker.guest("w");
    join(&mut worker, fields);
    let came: Vec<(u64, u64)> = (2..=50).map(|_| delivery(&mut worker, "g")).collect();
    assert_eq!(came, (2..=50).map(|seq| (seq, 1)).collect::<Vec<_>>());
    let letters = eventually("the letter", || Some(letters(&broker)).filter(|all| !all.is_empty()));
    assert_eq!((letters.len(), &letters[0]["key"]), (1, &json!("1")));
}

#[test]
fn a_slow_worker_that_answers_in_order_is_given_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut publisher, mut worker) = (broker.guest("p"), broker.guest("w"));
    publish(&mut publisher, "t", 8, 10);
    join(&mut worker, r#""topic":"t","group":"g","from":"earliest","max_attempts":1,"ack_timeout_ms":1500"#);
    // All of it takes longer than an event may take, by far.
    for seq in 1..=8 {
        assert_eq!(delivery(&mut worker, "g"), (seq, 1));
        sleep(Duration::from_millis(400));
        worker.send(format!(r#"{{"type":"ack","group":"g","seq":{seq}}}"#));
    }
    eventually("all to be done", || (show(&mut publisher)["cursor"] == 8).then_some(()));
    assert_eq!(letters(&broker), Vec::<Value>::new());
}

#[test]
fn a_member_that_says_what_it_begins_fails_at_that() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut publisher, mut worker) = (broker.guest("p"), broker.guest("w"));
    publish(&mut publisher, "t", 4, 10);
    let fields = r#""topic":"t","group":"g","from":"earliest","begins":true"#;
    let joined = join(&mut worker, fields);
    assert_eq!((&joined["begins"], &joined["ack_timeout_ms"]), (&json!(true), &json!(30_000)), "{joined}");
    (1..=4).for_each(|seq| assert_eq!(delivery(&mut worker, "g"), (seq, 1)));
    let answer = worker.ask(r#"{"type":"begin","group":"g","seqs":[2,3],"confirm":true}"#);
    assert_eq!(answer, json!({"type":"ack","ack":"begin","status":"ok","group":"g","events":2}));
    crash(worker, &mut publisher);
    let mut worker = broker.guest("w");
    join(&mut worker, fields);
    let came: Vec<(u64, u64)> = (0..4).map(|_| delivery(&mut worker, "g")).collect();
    assert_eq!(came, [(1, 1), (2, 2), (3, 2), (4, 1)]);
}

/// Whatever the program does next, the broker knows of the attempt: an event that ends its program is no endless loop.
#[test]
fn an_event_is_handed_on_once_its_begin_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeBroker::start(dir.path());
    let (heard, begun) = mpsc::channel();
    let broker = spawn(move || {
        let (mut session, _) = fake.guest();
        assert_eq!(session.receive().unwrap()["begins"], true);
        session.send(&json!({
            "type": "ack", "ack": "subscribe", "status": "ok", "group": "g", "cursor": 0, "created": true, "begins": true,
            "ack_timeout_ms": 30_000,
        }));
        let head = r#"{"type":"event","group":"g","attempt":1,"max_attempts":5,"#;
        session.send_bytes(format!("{head}{}", &line(7, "t", "1")[1..]));
        heard.send(session.receive().unwrap()).unwrap();
        session.drain();
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let heard = runtime.block_on(async {
        let bus = Bus::connect(&Target::Unix(dir.path().join("castra.sock")), "app").await.unwrap();
        let mut consumer = bus.consume("t", "g").await.unwrap();
        let delivery = consumer.next().await.unwrap();
        // Nothing else runs on this thread meanwhile, as in a program that ends here.
        let heard = begun.recv_timeout(PATIENCE);
        drop(delivery);
        heard
    });
    assert_eq!(heard, Ok(json!({"type": "begin", "group": "g", "seqs": [7]})));
    drop(runtime);
    broker.join().unwrap();
}

/// Such as a pager: it reads the first page, and the rest later.
#[test]
fn a_reader_of_stdout_that_pauses_costs_no_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut publisher = broker.guest("p");
    (0..6).for_each(|_| publish(&mut publisher, "t", 100, 400));
    let args = ["--group", "g", "t", "--from", "earliest", "-o", "json"];
    let waits = ["--ack-timeout", "300ms", "--max-attempts", "1"];
    let mut member = command(dir.path(), &[&args[..], &waits].concat()).spawn().unwrap();
    eventually("more than the pipe takes", || {
        let held = show(&mut publisher)["held"].as_u64();
        (held > Some(0)).then_some(())
    });
    let since = Instant::now();
    eventually("its time to be over four times", || (since.elapsed().as_millis() > 1300).then_some(()));
    let now = show(&mut publisher);
    assert!(now["held"].as_u64() > Some(0) && now["cursor"].as_u64() < Some(600), "{now}");
    let lines = BufReader::new(member.stdout.take().unwrap()).lines().take(600);
    let seqs =
        lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()["seq"].as_u64().unwrap());
    assert_eq!(seqs.collect::<BTreeSet<_>>(), (1..=600).collect());
    eventually("all to be done", || (show(&mut publisher)["cursor"] == 600).then_some(()));
    assert_eq!(letters(&broker), Vec::<Value>::new());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(member.id() as i32), nix::sys::signal::SIGTERM)
        .unwrap();
    assert_eq!(member.wait().unwrap().code(), Some(0));
}
