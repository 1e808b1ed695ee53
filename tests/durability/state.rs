//! Whoever follows the state ends with that of the broker, whatever happens in between.

use crate::latest::{SMALL, compacting, flood, remove_view};
use crate::support::{Broker, Guest, eventually};
use castra::core::follow::{Begin, Follow, News, Room, Times};
use castra::core::topic::Pattern;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

type Map = BTreeMap<(String, String), String>;

/// Between the follower and the broker: it cuts connections at any byte.
struct Link {
    /// The broker, when it lets anybody through.
    broker: Mutex<Option<String>>,
    /// So many bytes are let through; then the connection is cut.
    left: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

impl Link {
    fn start() -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let link = Arc::new(Link {
            broker: Mutex::default(),
            left: AtomicUsize::new(usize::MAX),
            open: Mutex::default(),
        });
        let own = link.clone();
        std::thread::spawn(move || {
            for peer in listener.incoming().map_while(Result::ok) {
                let broker = own.broker.lock().unwrap().clone();
                let Some(Ok(broker)) = broker.map(TcpStream::connect) else { continue };
                let ends = [&peer, &broker].map(|end| end.try_clone().unwrap());
                own.open.lock().unwrap().extend(ends);
                let (up, down) = (own.clone(), own.clone());
                let (mut from, mut to) = (peer.try_clone().unwrap(), broker.try_clone().unwrap());
                std::thread::spawn(move || up.carry(&mut from, &mut to, false));
                let (mut from, mut to) = (broker, peer);
                std::thread::spawn(move || down.carry(&mut from, &mut to, true));
            }
        });
        (link, addr)
    }

    fn carry(&self, from: &mut TcpStream, to: &mut TcpStream, is_counted: bool) {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            let left = if is_counted { self.left.load(SeqCst) } else { usize::MAX };
            if to.write_all(&bytes[..count.min(left)]).is_err() {
                break;
            }
            if count >= left {
                self.left.store(usize::MAX, SeqCst);
                break;
            }
            if left != usize::MAX {
                self.left.store(left - count, SeqCst);
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }

    /// Lets the follower through to this broker, or to none.
    fn to(&self, broker: Option<&Broker>) {
        *self.broker.lock().unwrap() = broker.map(|broker| broker.addr.clone());
        if broker.is_none() {
            self.cut();
        }
    }

    fn cut(&self) {
        self.open.lock().unwrap().drain(..).for_each(|end| _ = end.shutdown(Shutdown::Both));
    }
}

/// Follows the state of `s.>` over `addr`, and keeps what is newest of what it is handed; what it was told beside that.
fn reader(addr: &str, map: Arc<Mutex<Map>>, said: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let follow = Follow {
        target: format!("tcp:{addr}").parse().unwrap(),
        hello: "hello vm:reader capabilities=bus-v1,heartbeat".into(),
        patterns: vec![Pattern::parse("s.>").unwrap()],
        begin: Begin::State(0),
        times: Times::default(),
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let room = Room::default();
        let failed = runtime.block_on(async {
            let client = loop {
                if let Ok(client) = follow.connect().await {
                    break client;
                }
            };
            follow
                .run(client, &room, |news| match news {
                    News::Events(lines) => {
                        room.give_back(lines.len());
                        let mut map = map.lock().unwrap();
                        for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                            let event: Value = serde_json::from_slice(line).unwrap();
                            let text = |name: &str| event[name].as_str().unwrap().to_owned();
                            match &event["payload"] {
                                Value::Null => _ = map.remove(&(text("topic"), text("key"))),
                                payload => {
                                    _ = map.insert((text("topic"), text("key")), payload.to_string());
                                }
                            }
                        }
                    }
                    other => said.lock().unwrap().push(format!("{other:?}")),
                })
                .await
        });
        said.lock().unwrap().push(format!("{failed:?}"));
    })
}

fn truth(guest: &mut Guest) -> Map {
    let mut map = Map::new();
    for topic in ["s.a", "s.b"] {
        let mut after = String::new();
        loop {
            let ack = guest.ask(json!({"type": "latest", "topic": topic, "after": after}).to_string());
            if ack["code"] == "view-behind" {
                continue;
            }
            for event in ack["events"].as_array().unwrap() {
                after = event["key"].as_str().unwrap().to_owned();
                map.insert((topic.into(), after.clone()), event["payload"].to_string());
            }
            if ack["more"] == false {
                break;
            }
        }
    }
    map
}

/// The same numbers for the same seed (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % most
    }

    fn in_ten(&mut self, chances: u64) -> bool {
        self.below(10) < chances
    }
}

/// A history of one broker, with one reader.
struct World<'a> {
    dir: &'a Path,
    broker: Option<Broker>,
    guest: Option<Guest>,
    link: Arc<Link>,
    chance: Chance,
    count: u64,
}

impl World<'_> {
    fn restart(&mut self, is_lost: bool) {
        let is_through = self.link.broker.lock().unwrap().is_some();
        self.guest = None;
        let broker = self.broker.take().unwrap();
        match self.chance.in_ten(5) {
            true => broker.kill(),
            false => assert_eq!(broker.stop().0, Some(0)),
        }
        if is_lost {
            remove_view(&self.dir.join("root"));
        }
        let broker = compacting(self.dir, &SMALL);
        self.guest = Some(broker.guest("web"));
        self.link.to(is_through.then_some(&broker));
        self.broker = Some(broker);
    }

    /// Sets or ends so many keys.
    fn change(&mut self, changes: usize) {
        let guest = self.guest.as_mut().unwrap();
        for _ in 0..changes {
            self.count += 1;
            let topic = if self.chance.in_ten(5) { "s.a" } else { "s.b" };
            let key = format!("k{}", self.chance.below(40));
            let payload = if self.chance.in_ten(4) { Value::Null } else { json!(self.count) };
            let ttl = if self.chance.in_ten(3) { json!(1) } else { Value::Null };
            let mut frame = json!({"type": "publish", "topic": topic, "key": key, "payload": payload});
            if !ttl.is_null() {
                frame["ttl_ms"] = ttl;
            }
            guest.send(frame.to_string());
        }
        (0..changes).for_each(|_| assert_eq!(guest.receive().unwrap()["status"], "ok"));
    }

    fn step(&mut self) -> &'static str {
        match self.chance.below(20) {
            0..8 => {
                let changes = 1 + self.chance.below(60) as usize;
                self.change(changes);
                "change"
            }
            8..11 => {
                self.link.left.store(self.chance.below(6000) as usize, SeqCst);
                "cut at some byte"
            }
            11 | 12 => {
                self.link.to(None);
                "away"
            }
            13 | 14 => {
                self.link.to(self.broker.as_ref());
                "back"
            }
            15 | 16 => {
                self.change(1);
                let broker = self.broker.as_ref().unwrap();
                let head = broker.status()["broker"]["journal"]["head_seq"].as_u64().unwrap();
                flood(broker, self.guest.as_mut().unwrap(), head);
                "retention"
            }
            17 => {
                self.restart(false);
                "restart"
            }
            18 => {
                self.restart(true);
                "restart without latest.db"
            }
            _ => {
                remove_view(&self.dir.join("root"));
                "latest.db removed"
            }
        }
    }
}

fn history(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (link, addr) = Link::start();
    let broker = compacting(dir.path(), &SMALL);
    link.to(Some(&broker));
    let (map, said) = (Arc::<Mutex<Map>>::default(), Arc::<Mutex<Vec<String>>>::default());
    let guest = Some(broker.guest("web"));
    let chance = Chance(seed);
    let mut world =
        World { dir: dir.path(), broker: Some(broker), guest, link: link.clone(), chance, count: 0 };
    world.change(50);
    let _reader = reader(&addr, map.clone(), said.clone());
    // Before that it waits for nobody.
    eventually("the first session", || (!said.lock().unwrap().is_empty()).then_some(()));
    let mut steps = Vec::new();
    for _ in 0..4 + world.chance.below(12) {
        steps.push(world.step());
    }
    link.left.store(usize::MAX, SeqCst);
    link.to(world.broker.as_ref());
    let mut guest = world.guest.take().unwrap();
    // A last event: what a quiet session has not been told yet it is told with that.
    put(&mut guest, "last");
    let is_true = || {
        let truth = truth(&mut guest);
        (*map.lock().unwrap() == truth).then_some(())
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| eventually("the truth", is_true)));
    if result.is_err() {
        let (map, truth) =
            (map.lock().unwrap().clone(), truth(&mut world.broker.as_ref().unwrap().guest("x")));
        let differs: Vec<_> =
            map.iter().chain(&truth).filter(|(key, _)| map.get(key) != truth.get(key)).collect();
        panic!("seed {seed}: {steps:?}, differs: {differs:?}, said: {:#?}", said.lock().unwrap());
    }
    link.to(None);
}

fn put(guest: &mut Guest, key: &str) {
    let ack = guest.ask(json!({"type": "publish", "topic": "s.a", "key": key, "payload": key}).to_string());
    assert_eq!(ack["status"], "ok", "{ack}");
}

/// `CASTRA_SEED` runs one history, `CASTRA_HISTORIES` that many.
#[test]
fn a_reader_ends_with_the_brokers_state() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("CASTRA_SEED") {
        Some(seed) => history(seed),
        None => (0..number("CASTRA_HISTORIES").unwrap_or(6)).for_each(history),
    }
}

/// Subscribes; the ack.
fn subscribe(guest: &mut Guest, topic: &str, from: &Value) -> Value {
    guest.ask(json!({"type": "subscribe", "topic": topic, "sub": "s", "from": from}).to_string())
}

fn send(guest: &mut Guest, topic: &str, key: &str, payload: Value) -> u64 {
    let frame = json!({"type": "publish", "topic": topic, "key": key, "payload": payload});
    guest.ask(frame.to_string())["seq"].as_u64().unwrap()
}

/// What comes up to the frame `state`: keys and payloads, and of that frame up to where it is.
fn rows(guest: &mut Guest) -> (Vec<(u64, String, Value)>, u64) {
    let mut rows = Vec::new();
    loop {
        let frame = guest.receive().unwrap();
        match frame["type"].as_str().unwrap() {
            "state" => return (rows, frame["through"].as_u64().unwrap()),
            "event" => rows.push((
                frame["seq"].as_u64().unwrap(),
                frame["key"].as_str().unwrap().to_owned(),
                frame["payload"].clone(),
            )),
            other => panic!("{other}: {frame}"),
        }
    }
}

#[test]
fn who_goes_on_with_a_state_hears_of_keys_that_ended() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &SMALL);
    let mut guest = broker.guest("web");
    for n in 1..=4 {
        assert_eq!(send(&mut guest, "s.a", &format!("k{n}"), json!(n)), n);
    }
    send(&mut guest, "s.a", "k1", Value::Null);
    send(&mut guest, "s.a", "k3", json!("new"));
    let row = |seq, key: &str, payload| (seq, key.to_owned(), payload);
    let changes = [row(5, "k1", Value::Null), row(6, "k3", json!("new"))];
    for restart in [false, true] {
        let ack = subscribe(&mut broker.guest("r"), "s.>", &json!({"state": 4}));
        assert_eq!(
            (&ack["next_seq"], &ack["state"], &ack["compacted"]),
            (&json!(5), &json!(6), &json!(["s.>"]))
        );
        let mut reader = broker.guest("r");
        subscribe(&mut reader, "s.>", &json!({"state": 2}));
        assert_eq!(rows(&mut reader), ([vec![row(4, "k4", json!(4))], changes.to_vec()].concat(), 6));
        // The rest of the state of event 4: what came later comes as events.
        let mut reader = broker.guest("r");
        subscribe(&mut reader, "s.>", &json!({"state": 1, "through": 4}));
        assert_eq!(rows(&mut reader), (vec![row(2, "k2", json!(2)), row(4, "k4", json!(4))], 4));
        assert_eq!(
            [reader.receive().unwrap()["seq"].clone(), reader.receive().unwrap()["seq"].clone()],
            [5, 6]
        );
        // Nobody who begins hears of keys that ended.
        let mut reader = broker.guest("r");
        subscribe(&mut reader, "s.>", &json!("state"));
        assert_eq!(
            rows(&mut reader).0,
            [row(2, "k2", json!(2)), row(4, "k4", json!(4)), row(6, "k3", json!("new"))]
        );
        if restart {
            break;
        }
        // Once more where the view was made anew from the whole journal.
        remove_view(&broker.root);
    }
    // Retention takes all of it: what is newest of it comes in its place.
    flood(&broker, &mut guest, 6);
    let mut reader = broker.guest("r");
    let ack = subscribe(&mut reader, "s.>", &json!({"seq": 5, "compacted": true}));
    assert_eq!((&ack["status"], &ack["next_seq"], ack.get("gap")), (&json!("ok"), &json!(5), None), "{ack}");
    let gap = reader.receive().unwrap();
    assert_eq!((&gap["type"], &gap["from"]), (&json!("gap"), &json!(5)), "{gap}");
    let (came, through) = rows(&mut reader);
    assert_eq!((came, json!(through)), (changes.to_vec(), gap["to"].clone()));
    let seq = send(&mut guest, "s.a", "k9", json!(9));
    assert_eq!(reader.receive().unwrap()["seq"], seq);
    for (from, code) in [
        (json!({"state": seq + 1}), "seq-ahead"),
        (json!({"state": 1, "through": seq + 1}), "seq-ahead"),
        (json!({"seq": seq + 2, "compacted": true}), "seq-ahead"),
        (json!({"state": 2, "through": 1}), "bad-from"),
    ] {
        assert_eq!(subscribe(&mut broker.guest("r"), "s.>", &from)["code"], code, "{from}");
    }
}

#[test]
fn a_state_that_cannot_be_brought_up_to_date_has_to_begin_anew() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &SMALL);
    let (mut guest, mut live) = (broker.guest("web"), broker.guest("live"));
    send(&mut guest, "s.a", "k", json!(1));
    subscribe(&mut live, "s.>", &json!("state"));
    rows(&mut live);
    flood(&broker, &mut guest, 1);
    remove_view(&broker.root);
    // It is lost when this is to be written.
    let seq = send(&mut guest, "s.a", "other", json!(1));
    eventually("the new view", || {
        truth(&mut guest).contains_key(&("s.a".into(), "other".into())).then_some(())
    });
    let until = |reader: &mut Guest| loop {
        let frame = reader.receive().unwrap();
        if frame["type"] != "event" {
            return frame;
        }
    };
    send(&mut guest, "s.a", "more", json!(1));
    let ended = until(&mut live);
    assert_eq!(
        (&ended["type"], &ended["code"]),
        (&json!("unsubscribed"), &json!("state-expired")),
        "{ended}"
    );
    for from in
        [json!({"state": 1}), json!({"state": 1, "through": seq}), json!({"seq": 2, "compacted": true})]
    {
        let ack = subscribe(&mut broker.guest("r"), "s.>", &from);
        assert_eq!(ack["code"], "state-expired", "{from}: {ack}");
    }
    assert_eq!(subscribe(&mut live, "s.>", &json!("state"))["status"], "ok");
    assert_eq!(rows(&mut live).0.len(), 2);
}

#[test]
fn tombstones_that_are_forgotten_are_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let broker = compacting(dir.path(), &SMALL);
    let mut guest = broker.guest("web");
    let first = send(&mut guest, "s.a", "k", Value::Null);
    // More than are kept.
    let mut last = 0;
    for n in 0..98 {
        let ends: Vec<Value> =
            (0..1024).map(|m| json!({"topic": "s.b", "key": format!("k{}", 1024 * n + m)})).collect();
        let ack = guest.ask(json!({"type": "publish", "events": ends}).to_string());
        last = ack["seqs"][1023].as_u64().unwrap_or_else(|| panic!("{ack}"));
    }
    let answer = |topic: &str, seq: u64| {
        let ack = subscribe(&mut broker.guest("r"), topic, &json!({"state": seq}));
        ack["code"].as_str().unwrap_or("ok").to_owned()
    };
    // Each topic has a watermark of its own.
    assert_eq!(
        [answer("s.a", first), answer("s.>", first), answer("s.b", last)],
        ["ok", "state-expired", "ok"]
    );
    assert_eq!(answer("s.b", first), "state-expired");
    assert_eq!(truth(&mut guest), Map::new());
}
