//! The lag of a group: the events that it has yet to do, and nothing else; a lower bound is called one.

use crate::groups::join;
use crate::subscribe::limited;
use crate::support::{Broker, Guest, eventually};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Publishes as many events of this topic; the seq of the last one.
fn publish_many(guest: &mut Guest, topic: &str, count: usize) -> u64 {
    let mut last = 0;
    for _ in 0..count / 100 {
        (0..100).for_each(|_| guest.send(json!({"type": "publish", "topic": topic}).to_string()));
        for _ in 0..100 {
            last = guest.receive().unwrap()["seq"].as_u64().unwrap();
        }
    }
    last
}

fn show(guest: &mut Guest, group: &str) -> Value {
    guest.ask(json!({"type": "group", "group": group}).to_string())
}

/// What `castra bus group lag` says, and how it ends.
fn lag(broker: &Broker, args: &[&str]) -> (String, Option<i32>) {
    let output = broker.run(&[&["bus", "group", "lag"], args].concat());
    (String::from_utf8(output.stdout).unwrap(), output.status.code())
}

fn ask(guest: &mut Guest, frame: Value) -> Value {
    guest.send(frame.to_string());
    loop {
        let answer = guest.receive().unwrap();
        // More deliveries may come before it.
        if answer["type"] != "event" {
            assert_eq!(answer["status"], "ok", "{answer}");
            return answer;
        }
    }
}

#[test]
fn events_of_other_topics_are_no_lag() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut guest, mut member) = (broker.guest("p"), broker.guest("m"));
    ask(&mut guest, json!({"type": "group_create", "group": "nobody", "topic": "quiet", "from": "earliest"}));
    join(&mut member, r#""topic":"quiet","group":"live""#);
    ask(&mut guest, json!({"type": "publish", "topic": "quiet"}));
    assert_eq!(member.receive().unwrap()["seq"], 1);
    ask(&mut member, json!({"type": "ack", "group": "live", "seq": 1, "confirm": true}));
    publish_many(&mut guest, "other", 4000);
    let said = "live 0 -\nnobody 1 no members\n".to_owned();
    assert_eq!(lag(&broker, &["--over", "1"]), (said, Some(0)));
    assert_eq!(lag(&broker, &["live", "--over", "0"]), ("live 0 -\n".to_owned(), Some(0)));
    assert_eq!(lag(&broker, &["--over", "0"]).1, Some(1));
    // The status says it too, and nobody has to ask: the router's place is known.
    eventually("the status", || {
        let groups = broker.status()["groups"].clone();
        let live = groups.as_array()?.iter().find(|group| group["name"] == "live")?.clone();
        (live["lag"] == 0 && live["lag_at_least"].is_null()).then_some(())
    });
}

#[test]
fn a_group_that_stands_is_seen_however_far_it_is_behind() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut guest, mut member) = (broker.guest("p"), broker.guest("m"));
    join(&mut member, r#""topic":"t","group":"full","max_in_flight":1"#);
    ask(&mut guest, json!({"type": "group_create", "group": "nobody", "topic": "t"}));
    let last = publish_many(&mut guest, "t", 100_000);
    publish_many(&mut guest, "other", 1000);
    for (over, code) in [("99999", 1), ("100000", 0)] {
        for group in ["full", "nobody"] {
            assert_eq!(lag(&broker, &[group, "--over", over]).1, Some(code), "{group} {over}");
        }
        assert_eq!(lag(&broker, &["--over", over]).1, Some(code), "{over}");
    }
    // It was counted; what is done since then is taken off, and what comes is counted on.
    assert_eq!(show(&mut guest, "full")["lag"], 100_000);
    let first = member.receive().unwrap()["seq"].as_u64().unwrap();
    ask(&mut member, json!({"type": "ack", "group": "full", "seq": first, "confirm": true}));
    ask(&mut guest, json!({"type": "publish", "topic": "t"}));
    for (group, want) in [("full", 100_000), ("nobody", 100_001)] {
        let said = show(&mut guest, group);
        assert_eq!((&said["lag"], &said["lag_at_least"]), (&json!(want), &Value::Null), "{said}");
    }
    ask(&mut guest, json!({"type": "group_seek", "group": "nobody", "from": {"seq": last}}));
    assert_eq!(show(&mut guest, "nobody")["lag"], 2);
    // A broker that begins counts by itself, for whoever looks at the status.
    broker.kill();
    let broker = Broker::start(dir.path());
    eventually("the status", || {
        let full = broker.status()["groups"][0].clone();
        (full["name"] == "full" && full["lag"] == 100_000 && full["lag_at_least"].is_null()).then_some(())
    });
}

#[test]
fn what_retention_took_is_no_lag() {
    let dir = tempfile::tempdir().unwrap();
    let broker = limited(dir.path(), "segment_bytes = \"1 MiB\"\nretain_bytes = \"1 MiB\"");
    let mut guest = broker.guest("p");
    ask(&mut guest, json!({"type": "group_create", "group": "g", "topic": "t", "from": "earliest"}));
    let last = (0..3).map(|_| ask(&mut guest, json!({"type": "publish", "topic": "t"}))).last().unwrap();
    assert_eq!(show(&mut guest, "g")["lag"], 3);
    let large = json!({"type": "publish", "topic": "u", "payload": "x".repeat(50_000)});
    eventually("retention", || {
        (0..20).for_each(|_| _ = ask(&mut guest, large.clone()));
        let first = broker.status()["broker"]["journal"]["first_seq"].as_u64();
        (first > last["seq"].as_u64()).then_some(())
    });
    let said = show(&mut guest, "g");
    assert_eq!((&said["lag"], &said["lag_at_least"]), (&json!(0), &Value::Null), "{said}");
    ask(&mut guest, json!({"type": "publish", "topic": "t"}));
    assert_eq!(show(&mut guest, "g")["lag"], 1);
}

/// Numbers that look like chance.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// What a group is to do, and what of that is done.
struct Model {
    name: &'static str,
    wants: fn(&str, bool) -> bool,
    events: BTreeMap<u64, (String, bool)>,
    done: BTreeSet<u64>,
}

impl Model {
    fn pending(&self) -> Vec<u64> {
        let wanted = self.events.iter().filter(|(_, (topic, tagged))| (self.wants)(topic, *tagged));
        wanted.map(|(seq, _)| *seq).filter(|seq| !self.done.contains(seq)).collect()
    }
}

#[test]
fn the_lag_is_that_of_a_model() {
    for seed in 1..=3 {
        follow(&mut Numbers(seed));
    }
}

fn follow(numbers: &mut Numbers) {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path());
    let mut guest = broker.guest("p");
    let new = |name, wants| Model { name, wants, events: BTreeMap::new(), done: BTreeSet::new() };
    let mut models = [
        new("some", |topic, _| topic.starts_with("a.")),
        new("tagged", |topic, tagged| tagged && topic != "b"),
        new("quiet", |topic, _| topic == "a.3"),
    ];
    for wish in [
        json!({"type": "group_create", "group": "some", "topics": ["a.*"], "max_attempts": 100}),
        json!({"type": "group_create", "group": "tagged", "topics": ["a.*"], "filter": {"tags": ["x"]}, "max_attempts": 100}),
        json!({"type": "group_create", "group": "quiet", "topics": ["a.3"], "max_attempts": 100}),
    ] {
        ask(&mut guest, wish);
    }
    let mut newest = 0;
    let mut log = Vec::new();
    for _ in 0..60 {
        let n = numbers.below(models.len() as u64) as usize;
        match numbers.below(10) {
            // Somebody publishes; some of it expires at once.
            0..=4 => {
                let mut sent = Vec::new();
                for _ in 0..=numbers.below(30) {
                    let topic = ["a.1", "a.2", "b", "b", "b", "a.3"][numbers.below(6) as usize].to_owned();
                    let (tagged, expires) = (numbers.below(2) == 0, numbers.below(4) == 0);
                    let mut event = json!({"type": "publish", "topic": topic});
                    if tagged {
                        event["tags"] = json!(["x"]);
                    }
                    if expires {
                        event["ttl_ms"] = 1.into();
                    }
                    guest.send(event.to_string());
                    sent.push((topic, tagged, expires));
                }
                for (topic, tagged, expires) in sent {
                    newest = guest.receive().unwrap()["seq"].as_u64().unwrap();
                    if !expires {
                        models.iter_mut().for_each(|model| {
                            model.events.insert(newest, (topic.clone(), tagged));
                        });
                    }
                }
                let since = Instant::now();
                while since.elapsed() < Duration::from_millis(3) {
                    std::thread::yield_now();
                }
                log.push(format!("published up to {newest}"));
            }
            // A member comes, does some of it, and goes.
            5..=6 => {
                let (model, mut member) = (&mut models[n], broker.guest("m"));
                let topics = if model.name == "quiet" { "a.3" } else { "a.*" };
                join(
                    &mut member,
                    &format!(r#""topic":"{topics}","group":"{}","max_in_flight":1000"#, model.name),
                );
                let pending = model.pending();
                let mut came = BTreeSet::new();
                while came.len() < pending.len() {
                    let frame = member.receive().unwrap();
                    assert_eq!(frame["type"], "event", "{frame}");
                    came.insert(frame["seq"].as_u64().unwrap());
                }
                assert_eq!(came, pending.into_iter().collect(), "{log:?}");
                let done: Vec<u64> = came.into_iter().filter(|_| numbers.below(3) > 0).collect();
                if !done.is_empty() {
                    ask(
                        &mut member,
                        json!({"type": "ack", "group": model.name, "seqs": done, "confirm": true}),
                    );
                }
                log.push(format!("{} did {done:?}", model.name));
                model.done.extend(done);
            }
            7 => {
                let to = numbers.below(newest + 1) + 1;
                let model = &mut models[n];
                ask(&mut guest, json!({"type": "group_seek", "group": model.name, "from": {"seq": to}}));
                log.push(format!("{} to {to}", model.name));
                model.done = (1..to).collect();
            }
            8 => {
                match numbers.below(2) {
                    0 => broker.kill(),
                    _ => _ = broker.stop(),
                }
                broker = Broker::start(dir.path());
                guest = broker.guest("p");
                log.push("began anew".to_owned());
            }
            // Nobody asks for a while.
            _ => continue,
        }
        if numbers.below(3) > 0 {
            for model in &models {
                let said = show(&mut guest, model.name);
                let got = (&said["lag"], &said["lag_at_least"]);
                assert_eq!(got, (&json!(model.pending().len()), &Value::Null), "{said} after {log:?}");
            }
        }
    }
}
