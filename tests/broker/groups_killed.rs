//! Members of a group are processes, and are killed at random while they work: each event is acked once, or has a letter.

use crate::metrics::{metrics, start};
use crate::subscribe_cli::Subscriber;
use crate::support::eventually;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};

const EVENTS: u64 = 4_000;
const KILLS: u64 = 30;
const IN_FLIGHT: u64 = 25;

#[test]
fn members_are_killed_and_each_event_is_acked_once_or_dead() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, at) = start(dir.path());
    let args = ["--group", "g", "job", "--from", "earliest", "--max-attempts", "3", "-o", "json"];
    let in_flight = IN_FLIGHT.to_string();
    let member =
        || Subscriber::start(dir.path(), &[&args[..], &["--max-in-flight", &in_flight, "-v"]].concat());
    let mut members: Vec<Subscriber> = (0..3).map(|_| member()).collect();
    let mut printed = BTreeSet::new();
    let mut read = |lines: &mut dyn Iterator<Item = String>| {
        // The last line of one that was killed may be cut off.
        let events = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        printed.extend(events.map(|event| event["payload"].as_u64().unwrap()));
    };
    let mut source = broker.guest("source");
    // Whom it hits, and when, is different each time.
    let dice = RandomState::new();
    let roll = |n: u64, sides: u64| dice.hash_one(n) % sides;
    let mut kills = 0;
    for n in 0..EVENTS {
        let frame = json!({"type": "publish", "topic": "job", "payload": n}).to_string();
        assert_eq!(source.ask(frame)["status"], "ok");
        if n == EVENTS / 2 || roll(n, EVENTS / KILLS) == 0 {
            kills += 1;
            let victim = &mut members[roll(n + EVENTS, 3) as usize];
            victim.signal(Signal::SIGKILL);
            let mut dead = std::mem::replace(victim, member());
            let (code, rest, _) = dead.end();
            assert_eq!(code, None);
            read(&mut rest.into_iter());
        }
    }
    let stands = eventually("all to be done", || {
        let output = broker.run(&["bus", "group", "show", "g", "--json"]);
        let said: Value = serde_json::from_slice(&output.stdout).ok()?;
        (said["cursor"].as_u64() >= Some(EVENTS) && said["held"] == 0).then_some(said)
    });
    assert_eq!((&stands["waiting"], &stands["dead"]), (&json!(0), &json!(0)));
    for mut member in members {
        member.signal(Signal::SIGTERM);
        read(&mut member.end().1.into_iter());
    }
    let now = metrics(&at);
    let of = |name: &str| now.get(&format!(r#"{name}{{topic="job",group="g"}}"#)).copied().unwrap_or(0.0);
    let letters = now.get(r#"castra_group_dead_letters_total{group="g"}"#).copied().unwrap_or(0.0);
    let dead: BTreeSet<u64> = eventually("the letters in the log", || {
        let letter =
            |line: &Value| (line["topic"] == "$dlq.g").then(|| line["payload"]["event"]["payload"].as_u64());
        let dead: Vec<u64> = broker.log("host").iter().filter_map(|line| letter(line)?).collect();
        (dead.len() as f64 == letters).then(|| dead.into_iter().collect())
    });
    println!("{kills} kills, {} deliveries, {} letters", of("events_delivered_total"), letters);
    // As many as there are: each once, if none of them has two.
    assert_eq!((dead.len() as f64, of("events_acked_total")), (letters, EVENTS as f64 - letters));
    // Nobody acks what is not printed.
    assert!((0..EVENTS).all(|n| printed.contains(&n) || dead.contains(&n)));
    // What was delivered again was with somebody who was killed.
    assert!(of("events_delivered_total") <= (EVENTS + kills * IN_FLIGHT) as f64);
}
