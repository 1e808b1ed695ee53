//! A disk that is full under consumer groups: who works goes on, and so does the broker when its view cannot be written.

use crate::faults::{Mounted, skip};
use crate::full_disk::{SMALL, until};
use crate::support::{Broker, Guest, LocalGuest, broker_log, castra, eventually};
use castra::core::limits::FULL_TIME;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Instant;

const JOBS: u64 = 300;

fn join(member: &mut Guest, fields: &str) -> Value {
    let ack = member.ask(format!(r#"{{"type":"subscribe","topic":"job","group":"g",{fields}}}"#));
    assert_eq!(ack["status"], "ok", "{ack}");
    ack
}

/// Says something of events and waits until it is durable.
fn say(member: &mut Guest, kind: &str, fields: &str) {
    let answer = member.ask(format!(r#"{{"type":"{kind}","group":"g","confirm":true,{fields}}}"#));
    assert_eq!((&answer["ack"], &answer["status"]), (&json!(kind), &json!("ok")), "{fields}: {answer}");
}

/// The next delivery: its seq and attempt.
fn delivery(member: &mut Guest) -> (u64, u64) {
    let event = member.receive().expect("a delivery");
    assert_eq!((&event["type"], &event["group"]), (&json!("event"), &json!("g")), "{event}");
    (event["seq"].as_u64().unwrap(), event["attempt"].as_u64().unwrap())
}

/// The keys and causes of the dead letters from the beginning on, as many as there are.
fn letters(broker: &Broker, many: usize) -> Vec<Value> {
    let (mut host, _) =
        LocalGuest::greet(&broker.root.join("castra.sock"), "hello vm:host capabilities=bus-v1,host-bus\n");
    let joined = host.ask(r#"{"type":"subscribe","topic":"$dlq.g","from":"earliest"}"#);
    assert_eq!(joined["status"], "ok", "{joined}");
    let mut all: Vec<Value> = (0..many)
        .map(|_| {
            let letter = host.receive();
            let failures = letter["payload"]["failures"].as_array().unwrap();
            json!([letter["key"], failures.last().unwrap()["cause"], letter["payload"]["attempts"]])
        })
        .collect();
    all.sort_by_key(Value::to_string);
    let answer = host.ask(r#"{"type":"heartbeat"}"#);
    assert_eq!(answer["ack"], "heartbeat", "one letter more: {answer}");
    all
}

/// Publishes until there is no room for the smallest event. After a refusal all is refused for a while, so it is tried for
/// longer than that.
fn fill_journal(publisher: &mut Guest) {
    for size in [50_000, 1_000, 0] {
        let event = json!({"type": "publish", "topic": "other", "payload": "x".repeat(size)}).to_string();
        let mut stored = Instant::now();
        eventually("no room for more", || {
            let ack = publisher.ask(&event);
            match ack["code"] == "disk-full" {
                true => (stored.elapsed() > FULL_TIME * 3 / 2).then_some(()),
                false => {
                    assert_eq!(ack["status"], "ok", "{ack}");
                    stored = Instant::now();
                    None
                }
            }
        });
    }
}

#[test]
fn members_go_on_while_publishers_are_told_that_the_disk_is_full() {
    let disk = match Mounted::new(64) {
        Ok(disk) => disk,
        Err(why) => return skip("members_go_on_while_publishers_are_told_that_the_disk_is_full", &why),
    };
    let broker = Broker::start_args(&disk.root(), &SMALL);
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("m"));
    join(&mut member, r#""max_attempts":2,"max_in_flight":1000"#);
    let seqs: Vec<u64> = (0..JOBS)
        .map(|_| publisher.ask(r#"{"type":"publish","topic":"job"}"#)["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(seqs, (1..=JOBS).collect::<Vec<_>>());
    for seq in &seqs {
        assert_eq!(delivery(&mut member), (*seq, 1));
    }
    let filler = disk.fill();
    fill_journal(&mut publisher);

    // Each of these waits for the journal.
    for seq in 1..=100 {
        say(&mut member, "ack", &format!(r#""seq":{seq}"#));
    }
    say(&mut member, "term", r#""seq":101,"reason":"poison""#);
    // It comes again at once, before the answer: what was read is durable, and so is this when the next one is answered.
    member.send(r#"{"type":"nack","group":"g","seq":102,"delay_ms":0}"#);
    assert_eq!(delivery(&mut member), (102, 2));
    say(&mut member, "nack", r#""seq":102,"delay_ms":0"#);
    let want = [json!(["101", "term", 1]), json!(["102", "nack", 2])];
    assert_eq!(letters(&broker, 2), want);
    say(&mut member, "ack", r#""through":200"#);
    let stands = member.ask(r#"{"type":"group","group":"g"}"#);
    assert_eq!(json!([stands["cursor"], stands["held"], stands["dead"]]), json!([200, 100, 0]), "{stands}");
    // It was full all the time.
    let refused = publisher.ask(r#"{"type":"publish","topic":"job"}"#);
    assert_eq!(refused["code"], "disk-full", "{refused}");
    let state = || (broker.status()["broker"]["state"] == "disk-full").then_some(());
    eventually("disk-full in the status", state);

    // Killed there, all that was confirmed is done, and what was given up has its one letter.
    broker.kill();
    drop(filler);
    let broker = Broker::start_args(&disk.root(), &SMALL);
    let mut member = broker.guest("m");
    let joined = join(&mut member, r#""max_in_flight":1000"#);
    assert_eq!((&joined["created"], &joined["cursor"]), (&json!(false), &json!(200)), "{joined}");
    for seq in 201..=JOBS {
        assert_eq!(delivery(&mut member).0, seq);
    }
    say(&mut member, "ack", &format!(r#""through":{JOBS}"#));
    assert_eq!(letters(&broker, 2), want);
    assert_eq!(broker.status()["broker"]["journal"]["damage"], json!([]));
    let ack = broker.guest("p").ask(r#"{"type":"publish","topic":"job"}"#);
    assert_eq!(delivery(&mut member), (ack["seq"].as_u64().unwrap(), 1));
}

fn compacting(disk: &Mounted) -> Broker {
    let config = disk.at.join("castra.toml");
    if !config.exists() {
        std::fs::write(&config, "[[topics]]\ntopic = \"s.>\"\ncompaction = true\n").unwrap();
    }
    let mut command = castra();
    command.arg("--config").arg(&config);
    Broker::start_with(&disk.root(), command, &SMALL)
}

/// The newest event of each key by the view: its seq. None while it is behind.
fn latest(guest: &mut Guest) -> Option<BTreeMap<String, u64>> {
    let (mut all, mut after) = (BTreeMap::new(), String::new());
    loop {
        let ack = guest.ask(json!({"type": "latest", "topic": "s.a", "after": after}).to_string());
        if ack["code"] == "view-behind" {
            return None;
        }
        for event in ack["events"].as_array().unwrap_or_else(|| panic!("{ack}")) {
            after = event["key"].as_str().unwrap().to_owned();
            all.insert(after.clone(), event["seq"].as_u64().unwrap());
        }
        if ack["more"] == false {
            return Some(all);
        }
    }
}

#[test]
fn the_view_of_the_newest_events_waits_for_room_and_holds_nobody_up() {
    let test = "the_view_of_the_newest_events_waits_for_room_and_holds_nobody_up";
    let disk = match Mounted::new(64) {
        Ok(disk) => disk,
        Err(why) => return skip(test, &why),
    };
    let broker = compacting(&disk);
    let (mut guest, mut member) = (broker.guest("p"), broker.guest("m"));
    join(&mut member, r#""max_in_flight":1000"#);
    let (mut model, mut n) = (BTreeMap::new(), 0);
    let mut put = |guest: &mut Guest| {
        n += 1;
        let key = format!("k{:04}", n % 700);
        let event = json!({"type": "publish", "topic": "s.a", "key": key, "payload": "x".repeat(2_000)});
        let ack = guest.ask(event.to_string());
        match ack["seq"].as_u64() {
            Some(seq) => drop(model.insert(key, seq)),
            None => assert_eq!(ack["code"], "disk-full", "{ack}"),
        }
    };
    (0..50).for_each(|_| put(&mut guest));
    guest.ask(r#"{"type":"publish","topic":"job"}"#);
    let (job, _) = delivery(&mut member);
    let filler = disk.fill();
    // The journal has room for some of these, the view has none.
    let why = eventually("a view that cannot be written", || {
        (0..20).for_each(|_| put(&mut guest));
        broker.status()["broker"]["latest"]["stalled"].as_str().map(str::to_owned)
    });
    assert!(why.contains("full"), "{why}");
    let shown = String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    assert!(shown.contains("the newest events per key are not being written"), "{shown}");
    assert_eq!(latest(&mut guest), None);
    say(&mut member, "ack", &format!(r#""seq":{job}"#));
    assert_eq!(guest.ask(r#"{"type":"heartbeat"}"#)["ack"], "heartbeat");
    drop(filler);
    eventually("the end of the stall", || {
        broker.status()["broker"]["latest"]["stalled"].is_null().then_some(())
    });
    until(&mut guest, "ok");
    put(&mut guest);
    assert_eq!(eventually("the view", || latest(&mut guest)), model);
    let log = broker_log(&broker.root).join("\n");
    assert!(log.contains("latest: written again"), "{log}");
    // It is the file that it was: nothing of it was taken for damage.
    let files = std::fs::read_dir(disk.root()).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<String> = files.map(|name| name.into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.contains(".aside-")), "{names:?}");
    broker.kill();
    let broker = compacting(&disk);
    assert_eq!(eventually("the view", || latest(&mut broker.guest("p"))), model);
}
