//! The same id from the same VM again: acknowledged with the first seq, stored once.

use crate::publish_cli::publish;
use crate::support::{Broker, LocalGuest, eventually, frame};
use serde_json::{Value, json};
use std::io::Write;

fn one(id: &str) -> String {
    format!(r#"{{"type":"publish","topic":"t","id":"{id}"}}"#)
}

fn acked(seq: u64, id: &str) -> Value {
    json!({"type":"ack","ack":"publish","status":"ok","topic":"t","seq":seq,"id":id})
}

fn repeated(seq: u64, id: &str) -> Value {
    let mut ack = acked(seq, id);
    ack["duplicate"] = true.into();
    ack
}

fn all(ids: &[&str]) -> String {
    let events: Vec<Value> = ids
        .iter()
        .map(|id| if id.is_empty() { json!({"topic":"t"}) } else { json!({"topic":"t","id":id}) })
        .collect();
    json!({"type":"publish","events":events}).to_string()
}

/// What is stored, so many events: VM and id, in order; the ids of the broker's own are empty.
fn stored(broker: &Broker, events: usize) -> Vec<(String, String)> {
    let log = eventually("the lines", || {
        let journal = broker.status()["broker"]["journal"].clone();
        let is_there = journal["head_seq"] == events && journal["logs_seq"] == events;
        is_there.then(|| broker.log("bus"))
    });
    assert_eq!(log.len(), events);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let own = |id: String| if uuid::Uuid::parse_str(&id).is_ok() { String::new() } else { id };
    log.iter().map(|event| (text(&event["vm"]), own(text(&event["id"])))).collect()
}

#[test]
fn a_repeat_has_the_first_seq_and_is_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut dev = broker.guest("dev");
    assert_eq!(dev.ask(one("a")), acked(1, "a"));
    assert_eq!(dev.ask(one("a")), repeated(1, "a"));
    // Whatever else it says: the id decides, also when JSON can write it in another way.
    let other = r#"{"type":"publish","topic":"u","id":"\u0061","payload":[1]}"#;
    let ack = dev.ask(other);
    assert_eq!((&ack["seq"], &ack["duplicate"], &ack["topic"]), (&json!(1), &json!(true), &json!("u")));
    // Another session of the same VM, another VM, the host.
    assert_eq!(broker.guest("dev").ask(one("a")), repeated(1, "a"));
    assert_eq!(broker.guest("web").ask(one("a")), acked(2, "a"));
    let (mut host, _) =
        LocalGuest::greet(&dir.path().join("castra.sock"), "hello vm:host capabilities=bus-v1,host-bus\n");
    assert_eq!(host.ask(&one("a")), acked(3, "a"));
    assert_eq!(host.ask(&one("a")), repeated(3, "a"));
    // Ids of the broker's own are not compared, nor is an event without one ever a repeat.
    let own = dev.ask(r#"{"type":"publish","topic":"t"}"#);
    assert_eq!(own["seq"], 4);
    assert_eq!(dev.ask(one(own["id"].as_str().unwrap()))["seq"], 5);
    for seq in 6..9 {
        let ack = dev.ask(r#"{"type":"publish","topic":"t"}"#);
        assert_eq!((&ack["seq"], ack.get("duplicate")), (&json!(seq), None));
    }
    // The seqs go on as if nothing had been sent again.
    assert_eq!(dev.ask(one("b")), acked(9, "b"));
    assert_eq!(stored(&broker, 9).iter().filter(|(_, id)| id == "a").count(), 3);
    eventually("the counter", || (broker.status()["broker"]["counters"]["duplicates"] == 4).then_some(()));
}

#[test]
fn repeats_in_one_write_wait_for_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut dev = broker.guest("dev");
    let burst: Vec<u8> = ["a", "a", "b", "a", "c", "b"].iter().flat_map(|id| frame(one(id))).collect();
    dev.stream.get_mut().write_all(&burst).unwrap();
    let want =
        [acked(1, "a"), repeated(1, "a"), acked(2, "b"), repeated(1, "a"), acked(3, "c"), repeated(2, "b")];
    for want in want {
        assert_eq!(dev.receive().unwrap(), want);
    }
    stored(&broker, 3);
}

#[test]
fn a_group_may_repeat_in_part() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut dev = broker.guest("dev");
    let ok = |seqs: &[u64], duplicate: bool| {
        let mut ack = json!({"type":"ack","ack":"publish","status":"ok","seqs":seqs});
        if duplicate {
            ack["duplicate"] = true.into();
        }
        ack
    };
    assert_eq!(dev.ask(all(&["a", "", "b"])), ok(&[1, 2, 3], false));
    assert_eq!(dev.ask(all(&["a", "b"])), ok(&[1, 3], true));
    assert_eq!(dev.ask(all(&["c", "a", "", "b"])), ok(&[4, 1, 5, 3], true));
    // Within itself, too.
    assert_eq!(dev.ask(all(&["d", "d", "e", "d"])), ok(&[6, 6, 7, 6], true));
    assert_eq!(dev.ask(one("e")), repeated(7, "e"));
    let ids: Vec<String> = stored(&broker, 7).into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids, ["a", "", "b", "c", "", "d", "e"]);
    // One that ends in a repeat is whole: the next start keeps it, and knows all its ids.
    broker.kill();
    let broker = Broker::start(dir.path());
    let mut dev = broker.guest("dev");
    assert_eq!(dev.ask(all(&["e", "d", "c", "f"])), ok(&[7, 6, 4, 8], true));
    stored(&broker, 8);
    broker.kill();
    let broker = Broker::start(dir.path());
    assert_eq!(broker.guest("dev").ask(one("f")), repeated(8, "f"));
}

#[test]
fn the_last_256_ids_of_each_vm_are_known_to_the_next_broker() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path());
    broker.guest("quiet").ask(one("q"));
    let mut dev = broker.guest("dev");
    let frames: Vec<u8> = (0..300).flat_map(|n| frame(one(&format!("e{n}")))).collect();
    dev.stream.get_mut().write_all(&frames).unwrap();
    for n in 0..300 {
        assert_eq!(dev.receive().unwrap()["seq"], n + 2);
    }
    for round in 0..3 {
        // Told to end, killed, and as it was.
        if round > 0 {
            if round == 1 {
                assert_eq!(broker.stop().0, Some(0));
            } else {
                broker.kill();
            }
            broker = Broker::start(dir.path());
        }
        let mut dev = broker.guest("dev");
        for n in [299, 298, 100, 44] {
            assert_eq!(dev.ask(one(&format!("e{n}"))), repeated(n + 2, &format!("e{n}")));
        }
        // Many others' ids take nothing from one who gave few.
        assert_eq!(broker.guest("quiet").ask(one("q")), repeated(1, "q"));
    }
    // The one before the last 256 is young, and among the last 100,000 of all.
    assert_eq!(broker.guest("dev").ask(one("e43")), repeated(45, "e43"));
}

/// 4,096 events under way of each of two sessions, and no ack arrives.
#[test]
fn a_session_that_lost_all_its_acks_sends_everything_again() {
    const EVENTS: usize = 4096;
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path());
    let vms = ["dev", "web"];
    for turn in 0..3 {
        if turn == 2 {
            broker.kill();
            broker = Broker::start(dir.path());
        }
        let mut guests = vms.map(|vm| broker.guest(vm));
        for guest in &mut guests {
            let frames: Vec<u8> = (0..EVENTS).flat_map(|n| frame(one(&format!("e{n}")))).collect();
            let mut stream = guest.stream.get_ref().try_clone().unwrap();
            // A broker stops reading a session whose acks nobody reads.
            let writer = std::thread::spawn(move || stream.write_all(&frames).unwrap());
            let mut seqs = Vec::new();
            for _ in 0..EVENTS {
                let ack = guest.receive().unwrap();
                assert_eq!(ack.get("duplicate").is_some(), turn > 0, "{ack}");
                seqs.push(ack["seq"].as_u64().unwrap());
            }
            writer.join().unwrap();
            assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
    stored(&broker, vms.len() * EVENTS);
}

/// The last 256 ids of a VM are repeats for ever: others publish more than is read at a start, the broker is killed, and
/// their segments are gone.
#[test]
fn the_last_256_outlive_their_segments() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--segment-bytes", "1048576", "--retain-bytes", "4194304"];
    let broker = Broker::start_args(dir.path(), &args);
    let names: Vec<String> = (0..256).map(|n| format!("e{n}")).collect();
    let ids: Vec<&str> = names.iter().map(String::as_str).collect();
    let want: Vec<u64> = (1..=256).collect();
    let mut quiet = broker.guest("quiet");
    assert_eq!(quiet.ask(all(&ids))["seqs"], json!(want));
    // 66 MiB of others, with ids of their own and without.
    let pad = "x".repeat(60_000);
    let mut flood = broker.guest("flood");
    let frames: Vec<u8> = (0..1200)
        .flat_map(|n| {
            let id = if n % 3 == 0 { json!(format!("f{n}")) } else { Value::Null };
            frame(json!({"type":"publish","topic":"t","payload":pad,"id":id}).to_string())
        })
        .collect();
    assert!(frames.len() > 66 << 20);
    let mut stream = flood.stream.get_ref().try_clone().unwrap();
    let writer = std::thread::spawn(move || stream.write_all(&frames).unwrap());
    (0..1200).for_each(|_| assert_eq!(flood.receive().unwrap()["status"], "ok"));
    writer.join().unwrap();
    eventually("retention", || {
        let journal = broker.status()["broker"]["journal"].clone();
        (journal["first_seq"].as_u64()? > 300).then_some(())
    });
    let mut broker = broker;
    for turn in 0..3 {
        broker.kill();
        broker = Broker::start_args(dir.path(), &args);
        let first = broker.status()["broker"]["journal"]["first_seq"].as_u64();
        assert!(first > Some(300), "{first:?}");
        let mut quiet = broker.guest("quiet");
        let ack = quiet.ask(all(&ids));
        assert_eq!((&ack["seqs"], &ack["duplicate"]), (&json!(want), &json!(true)));
        // Something is written, and begins a segment or goes on in one.
        broker.guest("flood").ask(one(&format!("turn{turn}")));
    }
}

#[test]
fn the_host_is_told_in_json_and_in_text() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let said = |args: &[&str], stdin: &str| {
        let output = publish(dir.path(), args, stdin.as_bytes());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(said(&["t", "1", "--id", "x"], ""), "seq=1 id=x\n");
    assert_eq!(said(&["t", "1", "--id", "x"], ""), "seq=1 id=x duplicate\n");
    let json: Value = serde_json::from_str(&said(&["t", "1", "--id", "x", "--json"], "")).unwrap();
    assert_eq!(json, json!({"schema":1,"seq":1,"id":"x","topic":"t","duplicate":true}));
    let lines = "{\"topic\":\"t\",\"id\":\"x\"}\n{\"topic\":\"t\",\"id\":\"y\"}\n";
    assert_eq!(said(&["--jsonl"], lines), "seq=1 id=x duplicate\nseq=2 id=y\n");
    let json: Vec<Value> =
        said(&["--jsonl", "--json"], lines).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json[1], json!({"schema":1,"line":2,"seq":2,"id":"y","topic":"t","duplicate":true}));
    stored(&broker, 2);
}
