//! A publisher that sends again whatever it saw no ack of, as an agent does, while its broker is killed.
//!
//! Every event lands exactly once, in order, whichever acks were lost; the same from the journal alone.

use crate::latest::{SMALL, flood};
use crate::load::{lines, log_text};
use crate::support::{Broker, Guest, PATIENCE, broker_log, eventually, frame};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

const EVENTS: usize = 10_000;
/// Events in flight: fewer than the ids that are known of a VM.
const WINDOW: usize = 200;

/// One frame: the first event's number and how many events there are.
type Sent = (usize, usize);

/// One publisher and what it was told.
struct Agent {
    vm: String,
    next: usize,
    flying: VecDeque<Sent>,
    /// The seq of each event that was acked.
    seqs: Vec<u64>,
    duplicates: usize,
    acked: Arc<AtomicUsize>,
}

impl Agent {
    fn body(&self, (first, count): Sent) -> String {
        let vm = &self.vm;
        let one = |n: usize| format!(r#""topic":"t","id":"{vm}-{n}","payload":{n}"#);
        match count {
            1 => format!(r#"{{"type":"publish",{}}}"#, one(first)),
            _ => {
                let events: Vec<String> = (first..first + count).map(|n| format!("{{{}}}", one(n))).collect();
                format!(r#"{{"type":"publish","events":[{}]}}"#, events.join(","))
            }
        }
    }

    /// Publishes until the connection ends; true when all is acked.
    fn run(&mut self, addr: &str) -> bool {
        let Some(mut guest) = greet(addr, &self.vm) else { return false };
        // What it saw no ack of, first, in its order; cut into frames anew.
        let again: Vec<usize> =
            self.flying.drain(..).flat_map(|(first, count)| first..first + count).collect();
        let mut bytes = Vec::new();
        for piece in again.chunks(1 + again.len() % 7) {
            let sent = (piece[0], piece.len());
            bytes.extend(frame(self.body(sent)));
            self.flying.push_back(sent);
        }
        while self.seqs.len() < EVENTS {
            let mut in_flight: usize = self.flying.iter().map(|(_, count)| count).sum();
            while in_flight < WINDOW && self.next < EVENTS {
                let count = if self.next.is_multiple_of(5) { 4 } else { 1 }
                    .min(EVENTS - self.next)
                    .min(WINDOW - in_flight);
                bytes.extend(frame(self.body((self.next, count))));
                self.flying.push_back((self.next, count));
                (self.next, in_flight) = (self.next + count, in_flight + count);
            }
            // A broker that is gone is seen when its answers are read.
            let _ = guest.stream.get_mut().write_all(&bytes);
            bytes.clear();
            let Some(ack) = receive(&mut guest) else { return false };
            if ack["status"] != "ok" {
                // It ends, and says so.
                assert!(ack["type"] == "close" || ack["code"] == "outcome-unknown", "{ack}");
                return false;
            }
            let (first, count) = self.flying.pop_front().unwrap();
            assert_eq!(first, self.seqs.len());
            match ack["seqs"].as_array() {
                Some(seqs) => self.seqs.extend(seqs.iter().map(|seq| seq.as_u64().unwrap())),
                None => self.seqs.push(ack["seq"].as_u64().unwrap()),
            }
            assert_eq!(self.seqs.len(), first + count);
            self.duplicates += usize::from(ack["duplicate"] == true);
            self.acked.fetch_add(count, SeqCst);
        }
        true
    }
}

fn greet(addr: &str, vm: &str) -> Option<Guest> {
    let stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut guest = Guest { stream: BufReader::new(stream) };
    guest.line();
    guest.stream.get_mut().write_all(format!("hello vm:{vm} capabilities=bus-v1\n").as_bytes()).ok()?;
    guest.line().starts_with("ok session=").then_some(guest)
}

fn receive(guest: &mut Guest) -> Option<Value> {
    let mut length = [0; 4];
    guest.stream.read_exact(&mut length).ok()?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    guest.stream.read_exact(&mut body).ok()?;
    Some(serde_json::from_slice(&body).unwrap())
}

/// Every event of every agent is in bus.log once, in its order, where it was acked.
fn check(root: &Path, agents: &[Agent]) {
    let text = log_text(root, "bus");
    let events = lines(&text);
    assert_eq!(events.len(), agents.len() * EVENTS);
    for (event, seq) in events.iter().zip(1..) {
        assert_eq!(event.seq, seq);
    }
    for agent in agents {
        let own: Vec<_> = events.iter().filter(|event| event.vm == agent.vm).collect();
        assert_eq!(own.len(), EVENTS);
        for (n, event) in own.iter().enumerate() {
            assert_eq!((event.id, event.payload.get()), (&*format!("{}-{n}", agent.vm), &*n.to_string()));
            assert_eq!(event.seq, agent.seqs[n], "{}", event.id);
        }
    }
}

#[test]
fn every_event_lands_once_in_order_whatever_is_killed() {
    const AGENTS: usize = 3;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let acked = Arc::new(AtomicUsize::new(0));
    let mut agents: Vec<Agent> = (0..AGENTS)
        .map(|i| Agent {
            vm: format!("vm{i}"),
            next: 0,
            flying: VecDeque::new(),
            seqs: Vec::new(),
            duplicates: 0,
            acked: acked.clone(),
        })
        .collect();
    for round in 0.. {
        let broker = Broker::start_args(&root, &["--segment-bytes", "1048576"]);
        let addr = broker.addr.clone();
        let publishers: Vec<_> = agents
            .drain(..)
            .map(|mut agent| {
                let addr = addr.clone();
                std::thread::spawn(move || {
                    let done = agent.run(&addr);
                    (agent, done)
                })
            })
            .collect();
        if round < 12 {
            let enough = (acked.load(SeqCst) + [900, 1, 2_000, 300][round % 4]).min(AGENTS * EVENTS);
            eventually("acks", || (acked.load(SeqCst) >= enough).then_some(()));
            broker.kill();
        }
        let (back, done): (Vec<Agent>, Vec<bool>) = publishers.into_iter().map(|p| p.join().unwrap()).unzip();
        agents = back;
        if done.into_iter().all(|done| done) {
            break;
        }
        assert!(round < 12, "the last one was not killed");
    }
    let duplicates: usize = agents.iter().map(|agent| agent.duplicates).sum();
    println!("{duplicates} acks were of duplicates");
    assert!(duplicates > 0, "no ack was lost: nothing was tested");
    let broker = Broker::start(&root);
    check(&root, &agents);
    // What was acked and is sent once more is a repeat to the last broker as well.
    let mut guest = broker.guest("vm0");
    let last = guest.ask(agents[0].body((EVENTS - 1, 1)));
    assert_eq!((&last["seq"], &last["duplicate"]), (&agents[0].seqs[EVENTS - 1].into(), &true.into()));
    assert_eq!(broker.stop().0, Some(0));
    // The journal alone has the same.
    std::fs::remove_dir_all(root.join("logs")).unwrap();
    let broker = Broker::start(&root);
    check(&root, &agents);
    drop(broker);
}

#[test]
fn an_id_that_is_known_begins_behind_its_event_though_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let mut broker = Broker::start_args(&root, &SMALL);
    let (mut web, mut db) = (broker.guest("web"), broker.guest("db"));
    let put = |guest: &mut Guest, id: &str| {
        let ack = guest.ask(json!({"type": "publish", "topic": "t", "id": id, "payload": 1}).to_string());
        (ack["seq"].as_u64().unwrap(), ack["duplicate"] == true)
    };
    assert_eq!(["a", "b", "c"].map(|id| put(&mut web, id).0), [1, 2, 3]);
    assert_eq!(put(&mut db, "b").0, 4);
    flood(&broker, &mut web, 10);
    for restart in [false, true] {
        if restart {
            broker.kill();
            broker = Broker::start_args(&root, &SMALL);
        }
        assert_eq!(put(&mut broker.guest("web"), "b"), (2, true));
        // From the web's b, anybody's, and with a name that nobody has.
        let first = broker.status()["broker"]["journal"]["first_seq"].as_u64().unwrap();
        for (from, behind) in [
            (json!({"id": "b", "vm": "web"}), Some(2)),
            (json!({"id": "a"}), Some(1)),
            (json!({"id": "b"}), Some(4)),
            (json!({"id": "b", "vm": "db"}), Some(4)),
            (json!({"id": "a", "vm": "db"}), None),
            (json!({"id": "none"}), None),
        ] {
            let mut guest = broker.guest("asks");
            let ack = guest.ask(json!({"type": "subscribe", "topic": "t", "from": from}).to_string());
            match behind {
                Some(seq) => {
                    let next = ack["next_seq"].as_u64().unwrap_or_else(|| panic!("{ack}"));
                    assert!(next >= first && next > 10, "{ack}");
                    assert_eq!(ack["gap"], json!({"from": seq + 1, "to": next - 1}), "{from}");
                }
                None => assert_eq!(ack["code"], "unknown-id", "{ack}"),
            }
        }
        let group = |args: &[&str]| broker.run(&[&["bus", "group"], args].concat());
        if !restart {
            assert!(group(&["create", "g", "--topic", "t"]).status.success());
        }
        let moved = group(&["seek", "g", "id:b"]);
        assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
        assert_ne!(group(&["seek", "g", "id:none"]).status.code(), Some(0));
    }
}

#[test]
fn of_how_many_vms_a_segment_cannot_keep_the_ids_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start_args(dir.path(), &["--segment-bytes", "1MiB", "--retain-bytes", "8MiB"]);
    let give = |vms: std::ops::Range<usize>| {
        for vm in vms {
            let events: Vec<Value> = (0..256).map(|n| json!({"topic": "t", "id": format!("i{n}")})).collect();
            let ack = broker
                .guest(&format!("vm{vm}"))
                .ask(json!({"type": "publish", "events": events}).to_string());
            assert_eq!(ack["status"], "ok", "{ack}");
        }
    };
    let (mut web, mut begun) = (broker.guest("web"), 0);
    for (vms, least) in [(0..30, 9), (30..60, 39)] {
        give(vms);
        flood(&broker, &mut web, begun + 1);
        begun = broker.status()["broker"]["journal"]["first_seq"].as_u64().unwrap();
        eventually("the number", || {
            let left_out = broker.status()["broker"]["journal"]["ids_left_out"].as_u64().unwrap();
            (least..60).contains(&left_out).then_some(())
        });
    }
    let log = broker_log(dir.path());
    assert!(log.iter().filter(|line| line.contains("has no room for those of all VMs")).count() > 1);
}
