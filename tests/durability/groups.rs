//! Consumer groups when members and the broker are killed: each event is done once, or given up, and none is lost.

use crate::support::{Broker, Guest, eventually};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

const EVENTS: u64 = 3_000;

/// What members saw: the events whose acks were confirmed, and how often each was delivered.
#[derive(Default)]
struct Ledger {
    confirmed: Mutex<BTreeSet<u64>>,
    delivered: Mutex<BTreeMap<u64, u64>>,
}

/// A session, if there is a broker.
fn try_greet(addr: &str) -> Option<Guest> {
    let stream = TcpStream::connect(addr).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut guest = Guest { stream: BufReader::new(stream) };
    guest.stream.get_mut().write_all(b"hello vm:worker capabilities=bus-v1\n").ok()?;
    guest.line();
    guest.line().starts_with("ok").then_some(guest)
}

/// A member that goes, in the middle of things, after so many events.
fn try_member(addr: &str, ledger: &Ledger, over: &AtomicBool, lives: u64) -> Option<()> {
    let mut guest = try_greet(addr)?;
    let wish = r#"{"type":"subscribe","topic":"job","group":"g","from":"earliest","max_in_flight":20,"max_attempts":100}"#;
    guest.try_send(wish).ok()?;
    // Nothing comes for a while when others hold what is left.
    guest.stream.get_ref().set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    let mut held = VecDeque::new();
    for _ in 0..lives {
        if over.load(SeqCst) {
            break;
        }
        let frame = match held.pop_front() {
            Some(frame) => frame,
            None => guest.receive()?,
        };
        if frame["type"] != "event" {
            continue;
        }
        let seq = frame["seq"].as_u64()?;
        let n = number(&frame["id"]);
        *ledger.delivered.lock().unwrap().entry(n).or_default() += 1;
        // Every seventh is refused once, and some are hopeless.
        let kind = match frame["attempt"] == 1 && n.is_multiple_of(7) {
            _ if is_hopeless(n) => "term",
            true => "nack",
            false => "ack",
        };
        let said = json!({"type": kind, "group": "g", "seq": seq, "confirm": true, "delay_ms": 1});
        guest.try_send(said.to_string()).ok()?;
        let mut answer = guest.receive()?;
        while answer["type"] == "event" {
            held.push_back(answer);
            answer = guest.receive()?;
        }
        if kind == "ack" && answer["status"] == "ok" {
            assert!(ledger.confirmed.lock().unwrap().insert(n), "{n} was done twice");
        }
    }
    Some(())
}

/// Of `e17` it is 17.
fn number(id: &Value) -> u64 {
    id.as_str().unwrap()[1..].parse().unwrap()
}

/// Whoever gets it gives it up.
fn is_hopeless(n: u64) -> bool {
    n.is_multiple_of(31)
}

/// The last one's seq.
fn publish(broker: &Broker, from: u64, to: u64) -> u64 {
    let (mut guest, mut last) = (broker.guest("source"), 0);
    for n in from..to {
        let ack = guest.ask(json!({"type": "publish", "topic": "job", "id": format!("e{n}")}).to_string());
        assert_eq!(ack["status"], "ok", "{ack}");
        last = ack["seq"].as_u64().unwrap();
    }
    last
}

fn shown(broker: &Broker) -> Value {
    broker.guest("source").ask(r#"{"type":"group","group":"g"}"#)
}

#[test]
fn members_and_the_broker_are_killed_and_each_event_is_done_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tcp = port.to_string();
    // Small segments, so that snapshots are what a start begins with.
    let args = ["--tcp", &tcp, "--segment-bytes", "1048576"];
    let mut broker = Broker::start_args(&root, &args);
    let (ledger, over) = (Ledger::default(), AtomicBool::new(false));
    let mut last = publish(&broker, 0, EVENTS / 3);
    let broker = std::thread::scope(|scope| {
        for n in 0..3 {
            let (ledger, over, tcp) = (&ledger, &over, &tcp);
            scope.spawn(move || {
                let mut life = 0;
                while !over.load(SeqCst) {
                    life += 1;
                    // It goes in the middle of things, again and again.
                    if try_member(tcp, ledger, over, 40 + 13 * ((life + n) % 7)).is_none() {
                        std::thread::yield_now();
                    }
                }
            });
        }
        for round in 1..=2 {
            let goal = (EVENTS / 3) as usize * round / 2;
            eventually("some to be done", || (ledger.confirmed.lock().unwrap().len() >= goal).then_some(()));
            broker.kill();
            broker = Broker::start_args(&root, &args);
            last = publish(&broker, EVENTS / 3 * round as u64, EVENTS / 3 * (round as u64 + 1));
        }
        eventually("all to be done", || {
            let said = shown(&broker);
            (said["cursor"].as_u64().unwrap_or(0) >= last && said["held"] == 0).then_some(())
        });
        over.store(true, SeqCst);
        broker
    });
    // Each event that the journal has was confirmed, or its confirmation was lost with a connection: it was delivered.
    let delivered = ledger.delivered.lock().unwrap();
    assert_eq!(delivered.keys().copied().collect::<Vec<_>>(), (0..EVENTS).collect::<Vec<_>>());
    let confirmed = ledger.confirmed.lock().unwrap();
    println!("{} confirmed, {} deliveries of {EVENTS}", confirmed.len(), delivered.values().sum::<u64>());
    assert!(confirmed.len() as u64 > EVENTS / 2);
    // What was given up has one letter, whoever was killed between the two; what was done has none.
    let hopeless: Vec<u64> = (0..EVENTS).filter(|n| is_hopeless(*n)).collect();
    let dead = eventually("the letters in the log", || {
        let letters = broker.log("host").into_iter().filter(|line| line["topic"] == "$dlq.g");
        let mut dead: Vec<u64> = letters.map(|line| number(&line["payload"]["event"]["id"])).collect();
        dead.sort_unstable();
        (dead.len() >= hopeless.len()).then_some(dead)
    });
    assert_eq!(dead, hopeless);
    assert!(dead.iter().all(|n| !confirmed.contains(n)));
}
