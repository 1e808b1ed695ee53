//! Fifty publishers and fifty subscribers, and whoever is in between, at random.
//!
//!     act: subscribe, unsubscribe, publish, read, stall, vanish, come back ─▶ all have acted ─▶ read to the end ─▶ audit
//!
//! The seed draws what everybody does and the limits of the broker; threads and their moments are the machine's own, so
//! a seed that failed may have to be replayed a few times. Always holds: every subscription's account is audited from
//! its ack to the last frame that its session saw, and those that live to the end up to the last event of all.

use crate::oracle::{Account, Sent};
use crate::peer::Peer;
use crate::sim::Rng;
use crate::world::{Handing, Make, Stored, World, run};
use castra::core::limits::Limits;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};

const PUBLISHERS: u64 = 50;
const SUBSCRIBERS: u64 = 50;
const TOPICS: [&str; 14] = [
    "a",
    "b",
    "a.b",
    "a.b.c",
    "a.c",
    "b.c",
    "x.y.z",
    "vmx.b",
    "a:b",
    "quo\"te",
    "back\\slash",
    "a.quo\"te.\\",
    "ü.日本",
    "broadcast",
];
const PATTERNS: [&str; 20] = [
    "*",
    ">",
    "a.>",
    "a.*",
    "*.b",
    "*.*",
    "a",
    "a.b",
    "a.b.>",
    "quo\"te",
    "back\\slash",
    "a.quo\"te.>",
    "a.*.\\",
    "*.日本",
    "ü.>",
    "nobody",
    "vmx.*",
    "x.*.z",
    "*.*.*",
    "broadcast",
];
const NAMES: [&str; 6] = ["one", "two", "thr\"ee\\", "vier ü", "{\"type\":\"event\"}", "six"];

/// What all of it came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub events: u64,
    pub delivered: u64,
    pub accounts: u64,
    pub gaps: u64,
    pub gaps_in_acks: u64,
    pub refused: u64,
    pub resumed: u64,
    pub pressed: u64,
    pub relieved: u64,
}

impl Done {
    pub fn add(&mut self, other: &Done) {
        let pairs = [
            (&mut self.events, other.events),
            (&mut self.delivered, other.delivered),
            (&mut self.accounts, other.accounts),
            (&mut self.gaps, other.gaps),
            (&mut self.gaps_in_acks, other.gaps_in_acks),
            (&mut self.refused, other.refused),
            (&mut self.resumed, other.resumed),
            (&mut self.pressed, other.pressed),
            (&mut self.relieved, other.relieved),
        ];
        pairs.into_iter().for_each(|(sum, more)| *sum += more);
    }
}

/// What everybody knows.
struct Scene {
    world: World,
    /// Drawn of `from`: times and ids as well.
    lookups: bool,
    /// The publishers have acted; nothing is worth waiting for any more.
    over: watch::Receiver<bool>,
    /// All have acted: everything that was stored up to that moment.
    end: watch::Receiver<Option<Arc<Vec<Stored>>>>,
    /// What each is waiting for, for when it hangs.
    waits: Arc<Mutex<BTreeMap<String, String>>>,
}

/// A subscription as its session sees it.
struct Open {
    sub: String,
    /// How its events begin.
    head: Vec<u8>,
    account: Account,
}

#[derive(Clone, Debug, PartialEq)]
enum From {
    Latest,
    Earliest,
    Seq(u64),
    Ts(u64),
    Id(String),
}

enum Asked {
    Subscribe { sub: String, patterns: Vec<String>, from: From, durable: u64, first: u64, want: Want },
    Unsubscribe { sub: String },
    Heartbeat,
}

/// What is to become of a wish, as far as that is known when it is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Want {
    Begun,
    Same,
    Refused(&'static str),
}

struct Guest {
    scene: Arc<Scene>,
    rng: Rng,
    /// Which of all; several may be the host.
    name: String,
    vm: String,
    bytes: usize,
    peer: Peer,
    open: Vec<Open>,
    asked: VecDeque<Asked>,
    /// Publishes that wait for their acks: the topics and ids of each.
    owed: VecDeque<Vec<(String, String)>>,
    published: u64,
    acked: Vec<(u64, String, String)>,
    over: Vec<Account>,
    done: Done,
}

impl Guest {
    async fn new(scene: Arc<Scene>, name: String, vm: String, mut rng: Rng) -> Guest {
        let bytes = [64, 256, 2048, 64 * 1024][rng.below(4) as usize];
        let peer = Guest::peer(&scene, &vm, bytes, &mut rng).await;
        Guest {
            scene,
            rng,
            name,
            vm,
            bytes,
            peer,
            open: Vec::new(),
            asked: VecDeque::new(),
            owed: VecDeque::new(),
            published: 0,
            acked: Vec::new(),
            over: Vec::new(),
            done: Done::default(),
        }
    }

    async fn peer(scene: &Scene, vm: &str, bytes: usize, rng: &mut Rng) -> Peer {
        let mut peer = Peer::new(&scene.world, vm, ["", ",heartbeat"][rng.below(2) as usize], bytes).await;
        peer.sip = [1 + rng.below(300) as usize, 64 * 1024][rng.below(2) as usize];
        peer
    }

    /// Gone in this moment, and back again: what it subscribed goes on behind the last seq that it saw.
    async fn vanish(&mut self) {
        let old: Vec<Account> = self.open.drain(..).map(|open| open.account).collect();
        let names: Vec<String> = old.iter().map(|account| account.who.clone()).collect();
        self.asked.clear();
        self.owed.clear();
        if self.rng.one_in(3) {
            // The broker hears of it while it has something to write.
            self.peer.finish();
            for _ in 0..self.rng.below(4) {
                self.peer.more().await;
            }
        }
        self.peer = Guest::peer(&self.scene, &self.vm, self.bytes, &mut self.rng).await;
        for (account, name) in old.into_iter().zip(names) {
            let (at, patterns) = (account.at(), account.patterns.clone());
            let sub = name.split_once('/').map(|(_, sub)| sub.to_owned()).unwrap_or_default();
            self.over.push(account);
            if self.rng.below(8) > 0 {
                self.done.resumed += 1;
                self.subscribe(sub, patterns, From::Seq(at));
            }
        }
    }

    fn who(&self, sub: &str) -> String {
        format!("{}/{sub}", self.vm)
    }

    fn is_asked(&self, name: &str) -> bool {
        self.asked.iter().any(|asked| match asked {
            Asked::Subscribe { sub, .. } | Asked::Unsubscribe { sub } => sub == name,
            Asked::Heartbeat => false,
        })
    }

    fn wish(&mut self) {
        let count = if self.rng.one_in(3) { 1 + self.rng.below(4) } else { 1 };
        let mut patterns: Vec<String> = Vec::new();
        for _ in 0..count {
            let pattern = match self.rng.below(12) {
                0 => format!("vm:{}", self.vm),
                1 if self.vm == "host" => ["vm:*", "vm:s3", "$x.>"][self.rng.below(3) as usize].to_owned(),
                // Not its own.
                1 => ["vm:*", "vm:nobody", "$x.>"][self.rng.below(3) as usize].to_owned(),
                _ => PATTERNS[self.rng.below(PATTERNS.len() as u64) as usize].to_owned(),
            };
            patterns.push(pattern);
        }
        let named = patterns.len() > 1 || self.rng.one_in(2);
        let sub = if named { NAMES[self.rng.below(6) as usize].to_owned() } else { patterns[0].clone() };
        // Nor while it is open whether an earlier wish is granted.
        let is_open = |asked: &Asked| match asked {
            Asked::Subscribe { from: From::Seq(seq), durable, .. } => *seq > durable + 1,
            Asked::Subscribe { from: From::Id(_), .. } => true,
            _ => false,
        };
        if self.is_asked(&sub) || self.asked.iter().any(is_open) {
            return;
        }
        let durable = self.scene.world.durable();
        let from = match self.rng.below(if self.scene.lookups { 12 } else { 8 }) {
            0..3 => From::Latest,
            3 | 4 => From::Earliest,
            5 => From::Seq(durable + 1),
            6 | 7 => From::Seq(1 + self.rng.below(durable + 4)),
            look => {
                let stored = self.scene.world.stored();
                let some = &stored.get(self.rng.below(stored.len() as u64 + 1) as usize);
                match (look, some) {
                    (8 | 9, Some(event)) => From::Ts(event.ts + self.rng.below(3) - 1),
                    (8 | 9, None) => From::Ts(u64::MAX >> 12),
                    (_, Some(event)) => From::Id(event.id.clone()),
                    (_, None) => From::Id("of no event".into()),
                }
            }
        };
        self.subscribe(sub, patterns, from);
    }

    fn subscribe(&mut self, sub: String, patterns: Vec<String>, from: From) {
        let unique = |patterns: &[String]| patterns.iter().collect::<std::collections::BTreeSet<_>>().len();
        let (mut taken, mut same) = (0, None);
        for open in &self.open {
            // What was unsubscribed before is gone when this is looked at.
            if !self.asked.iter().any(|a| matches!(a, Asked::Unsubscribe { sub } if *sub == open.sub)) {
                taken += unique(&open.account.patterns);
                if open.sub == sub {
                    same = Some(open.account.patterns.iter().collect::<std::collections::BTreeSet<_>>());
                }
            }
        }
        for asked in &self.asked {
            if let Asked::Subscribe { patterns, want: Want::Begun, .. } = asked {
                taken += unique(patterns);
            }
        }
        let foreign = |p: &String| (p.starts_with("vm:") && p[3..] != self.vm) || p.starts_with('$');
        let want = if self.vm != "host" && patterns.iter().any(foreign) {
            Want::Refused("forbidden-topic")
        } else if let Some(same) = same {
            if same == patterns.iter().collect() { Want::Same } else { Want::Refused("sub-exists") }
        } else if taken + unique(&patterns) > self.scene.world.bus.limits.subscriptions {
            Want::Refused("too-many-subscriptions")
        } else {
            Want::Begun
        };
        let (durable, first) = (self.scene.world.durable(), self.scene.world.first());
        let mut frame = json!({"type": "subscribe"});
        match &patterns[..] {
            [one] if self.rng.one_in(2) || *one == sub => frame["topic"] = json!(one),
            many => frame["topics"] = json!(many),
        }
        if frame["topic"] != json!(sub) || self.rng.one_in(2) {
            frame["sub"] = json!(sub);
        }
        match &from {
            From::Latest if self.rng.one_in(2) => {}
            From::Latest => frame["from"] = json!("latest"),
            From::Earliest => frame["from"] = json!("earliest"),
            From::Seq(seq) => frame["from"] = json!({ "seq": seq }),
            From::Ts(ts) => frame["from"] = json!({ "ts": ts }),
            From::Id(id) => frame["from"] = json!({ "id": id }),
        }
        self.peer.send(&frame.to_string());
        self.asked.push_back(Asked::Subscribe { sub, patterns, from, durable, first, want });
    }

    fn unsubscribe(&mut self) {
        let sub = match self.open.len() {
            0 => return,
            n => self.open[self.rng.below(n as u64) as usize].sub.clone(),
        };
        if !self.is_asked(&sub) {
            self.peer.send(&json!({"type": "unsubscribe", "sub": sub}).to_string());
            self.asked.push_back(Asked::Unsubscribe { sub });
        }
    }

    fn publish(&mut self) {
        let count = if self.rng.one_in(3) { 2 + self.rng.below(5) } else { 1 };
        let mut events = Vec::new();
        let mut about = Vec::new();
        for _ in 0..count {
            let topic = match self.rng.below(8) {
                0 => format!("vm:{}", subscriber(self.rng.below(SUBSCRIBERS))),
                _ => TOPICS[self.rng.below(TOPICS.len() as u64) as usize].to_owned(),
            };
            self.published += 1;
            let id = format!("{}-{}", self.vm, self.published);
            let most = if self.rng.one_in(20) { 4000 } else { 300 };
            let payload = "x".repeat(self.rng.below(most) as usize);
            events.push(json!({"topic": topic, "id": id, "payload": payload}));
            about.push((topic, id));
        }
        let mut frame = if count == 1 { events.remove(0) } else { json!({ "events": events }) };
        frame["type"] = json!("publish");
        self.peer.send(&frame.to_string());
        self.owed.push_back(about);
    }

    /// Takes one frame in.
    fn take(&mut self, body: Vec<u8>) {
        if body.starts_with(b"{\"type\":\"event\",") {
            let Some(open) = self.open.iter_mut().find(|open| body.starts_with(&open.head)) else {
                panic!("{}: an event of no subscription: {}", self.vm, String::from_utf8_lossy(&body));
            };
            let rest = body[open.head.len()..].to_vec();
            let digits = rest.strip_prefix(b"\"seq\":").unwrap_or_default();
            let digits = digits.split(|b| *b == b',').next().unwrap_or_default();
            let seq = std::str::from_utf8(digits).unwrap().parse().unwrap();
            open.account.sent.push(Sent::Event(seq, rest));
            self.done.delivered += 1;
            return;
        }
        let value: Value = serde_json::from_slice(&body).unwrap();
        let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
        match (&*text("type"), &*text("ack")) {
            ("gap", _) => self.gap(&value),
            ("ack", "publish") => self.acked(&value),
            ("ack", _) => self.answered(&value, &text("ack"), text("code")),
            _ => panic!("{}: {value}", self.vm),
        }
    }

    fn gap(&mut self, value: &Value) {
        let (from, to) = (value["from"].as_u64().unwrap(), value["to"].as_u64().unwrap());
        let first = self.scene.world.first();
        assert!(to < first, "{}: {value}, but the oldest that can be read is {first}", self.vm);
        let open = self.open.iter_mut().find(|open| value["sub"] == *open.sub);
        open.unwrap_or_else(|| panic!("{}: {value}", self.vm)).account.sent.push(Sent::Gap(from, to));
        self.done.gaps += 1;
    }

    fn acked(&mut self, value: &Value) {
        let about = self.owed.pop_front().unwrap_or_else(|| panic!("{}: {value}", self.vm));
        assert_eq!(value["status"], "ok", "{value}");
        let seqs: Vec<u64> = match &value["seqs"] {
            Value::Array(seqs) => seqs.iter().map(|seq| seq.as_u64().unwrap()).collect(),
            _ => vec![value["seq"].as_u64().unwrap()],
        };
        assert_eq!(seqs.len(), about.len(), "{value}");
        self.acked.extend(seqs.into_iter().zip(about).map(|(seq, (topic, id))| (seq, topic, id)));
    }

    fn answered(&mut self, value: &Value, kind: &str, code: String) {
        let asked = self.asked.pop_front().unwrap_or_else(|| panic!("{}: {value}", self.vm));
        match asked {
            Asked::Heartbeat => assert_eq!((kind, &*code), ("heartbeat", ""), "{value}"),
            Asked::Unsubscribe { sub } => {
                assert_eq!((kind, &*code, &value["sub"]), ("unsubscribe", "", &json!(sub)), "{value}");
                let i = self.open.iter().position(|open| open.sub == sub).unwrap();
                self.over.push(self.open.remove(i).account);
            }
            Asked::Subscribe { sub, patterns, from, durable, first, want } => {
                assert_eq!(kind, "subscribe", "{value}");
                let said = format!("{}: {want:?} {from:?} with {first}-{durable}: {value}", self.who(&sub));
                let now = (self.scene.world.first(), self.scene.world.durable());
                match want {
                    Want::Refused(code) => {
                        assert_eq!(value["code"], code, "{said}");
                        self.done.refused += 1;
                    }
                    Want::Same => {
                        let open = self.open.iter().find(|open| open.sub == sub).unwrap();
                        let next = value["next_seq"].as_u64().expect(&said);
                        assert!(next >= open.account.at(), "{said}, is at {}", open.account.at());
                    }
                    Want::Begun if !code.is_empty() => {
                        self.done.refused += 1;
                        let right = match (&from, &*code) {
                            (From::Seq(seq), "seq-ahead") => *seq > durable + 1,
                            (From::Id(id), "unknown-id") => {
                                let stored = self.scene.world.stored();
                                stored
                                    .iter()
                                    .rev()
                                    .find(|event| event.id == *id)
                                    .is_none_or(|event| event.seq < now.0)
                            }
                            _ => false,
                        };
                        assert!(right, "{said}");
                    }
                    Want::Begun => {
                        let next = value["next_seq"].as_u64().expect(&said);
                        let gap = value["gap"]["from"].as_u64().zip(value["gap"]["to"].as_u64());
                        assert!(self.begins(&from, next, gap, (first, durable), now), "{said}, now {now:?}");
                        self.done.gaps_in_acks += u64::from(gap.is_some());
                        let head = format!("{{\"type\":\"event\",\"sub\":{},", json!(sub)).into_bytes();
                        let account = Account {
                            who: self.who(&sub),
                            patterns,
                            next_seq: next,
                            sent: Vec::new(),
                            complete_to: None,
                        };
                        self.open.push(Open { sub, head, account });
                    }
                }
            }
        }
    }

    /// Whether a subscription from `from` may begin at `next`: what was asked was looked at between two moments, of
    /// which the first and last seq are known.
    fn begins(
        &self,
        from: &From,
        next: u64,
        gap: Option<(u64, u64)>,
        was: (u64, u64),
        now: (u64, u64),
    ) -> bool {
        let at_the_oldest = (was.0..=now.0).contains(&next);
        match (from, gap) {
            (From::Latest, None) => (was.1 + 1..=now.1 + 1).contains(&next),
            (From::Earliest, None) => at_the_oldest,
            (From::Seq(seq), None) => next == *seq && (was.0..=now.1 + 1).contains(seq),
            (From::Seq(seq), Some(gap)) => gap == (*seq, next - 1) && *seq < next && at_the_oldest,
            (From::Ts(ts), _) => {
                let known = self.scene.world.durable_events();
                let older =
                    known.iter().filter(|(seq, ..)| (now.0..next).contains(seq)).all(|(_, at, _)| at < ts);
                let at = known.iter().find(|(seq, ..)| *seq == next);
                older && (next > was.1 || at_the_oldest || at.is_some_and(|(_, at, _)| at >= ts))
            }
            (From::Id(id), None) => {
                let known = self.scene.world.durable_events();
                known.iter().any(|(seq, _, its)| seq + 1 == next && its == id)
            }
            // Its event is gone, and the table of ids still knows it.
            (From::Id(id), Some(gap)) => {
                let stored = self.scene.world.stored();
                let newest = stored.iter().rev().find(|event| event.id == *id);
                newest.is_some_and(|event| gap == (event.seq + 1, next - 1)) && gap.0 < next && at_the_oldest
            }
            _ => false,
        }
    }

    /// Reads frames until `most` came or `enough` resolves.
    async fn read(&mut self, most: u64, enough: impl Future<Output = ()>) {
        tokio::pin!(enough);
        for _ in 0..most {
            while let Some(body) = self.peer.taken() {
                self.take(body);
            }
            tokio::select! {
                biased;
                going = self.peer.more() => assert!(going, "{}: the broker closed the session", self.vm),
                () = &mut enough => return,
            }
        }
    }

    /// Resolves when so many more events were stored, or there will be none.
    fn later(&mut self, events: u64) -> impl Future<Output = ()> + use<> {
        let (mut head, mut over) = (self.scene.world.head.clone(), self.scene.over.clone());
        let until = *head.borrow() + events;
        async move {
            tokio::select! {
                _ = head.wait_for(|head| *head >= until) => {}
                _ = over.wait_for(|over| *over) => {}
            }
        }
    }

    /// Says what it is at, for when it hangs.
    fn is_at(&self, what: String) {
        self.scene.waits.lock().unwrap().insert(self.name.clone(), what);
    }

    async fn act_as_subscriber(&mut self) {
        let is_slow = self.rng.one_in(4);
        let publishes = self.vm != "host" && self.rng.one_in(4);
        for _ in 0..3 + self.rng.below(25) {
            let act = self.rng.below(24);
            self.is_at(format!("act {act}"));
            match act {
                0..5 => self.wish(),
                5 | 6 => self.unsubscribe(),
                7 => {
                    self.peer.send(r#"{"type":"heartbeat"}"#);
                    self.asked.push_back(Asked::Heartbeat);
                }
                8 | 9 if publishes => self.publish(),
                10 | 11 => self.vanish().await,
                12 | 13 => {
                    let events = self.rng.below(if is_slow { 200 } else { 30 });
                    self.later(events).await;
                }
                _ => {
                    let most = if is_slow { 3 } else { 1 + self.rng.below(40) };
                    let events = self.rng.below(20);
                    let enough = self.later(events);
                    self.read(most, enough).await;
                }
            }
        }
    }

    /// Reads until everything came that was stored, and closes.
    async fn read_to_the_end(mut self) -> Guest {
        let mut end = self.scene.end.clone();
        if self.rng.one_in(2) {
            let (mut waits, scene) = (end.clone(), self.scene.clone());
            self.read(u64::MAX, async move {
                let _ = waits.wait_for(Option::is_some).await;
                drop(scene);
            })
            .await;
        }
        let stored = end.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        let head = stored.len() as u64;
        self.peer.send(r#"{"type":"heartbeat"}"#);
        self.asked.push_back(Asked::Heartbeat);
        loop {
            let due = |open: &Open| {
                let last = stored.iter().rev().find(|event| open.account.selects(&event.topic));
                last.map(|event| event.seq).filter(|seq| *seq >= open.account.at())
            };
            let due = self.open.iter().find_map(|open| due(open).map(|seq| (seq, open)));
            let waits = match due {
                Some((seq, Open { account, .. })) => {
                    format!("event {seq}, {} {:?} is at {}", account.who, account.patterns, account.at())
                }
                None if self.asked.is_empty() => break,
                None => format!("{} answers", self.asked.len()),
            };
            self.is_at(waits);
            self.read(1, std::future::pending()).await;
            while let Some(body) = self.peer.taken() {
                self.take(body);
            }
        }
        self.scene.waits.lock().unwrap().remove(&self.name);
        self.open.iter_mut().for_each(|open| open.account.complete_to = Some(head));
        if self.rng.one_in(2) {
            // Its end comes last, and whole.
            self.peer.finish();
            let mut last = Value::Null;
            while let Some(body) = self.peer.receive().await {
                assert!(
                    last["type"] != "close",
                    "behind the close frame: {}",
                    String::from_utf8_lossy(&body)
                );
                if body.starts_with(b"{\"type\":\"close\"") {
                    last = serde_json::from_slice(&body).unwrap();
                } else {
                    self.take(body);
                }
            }
            assert_eq!(last["reason"], "peer-closed");
        }
        self.over.extend(self.open.drain(..).map(|open| open.account));
        self
    }

    async fn act_as_publisher(&mut self) {
        for _ in 0..2 + self.rng.below(14) {
            let act = self.rng.below(16);
            self.is_at(format!("act {act}"));
            match act {
                0 => self.vanish().await,
                1..5 => {
                    let moments = self.rng.below(200);
                    self.read(u64::MAX, pause(moments)).await;
                }
                5..9 => {
                    self.peer.flush().await;
                    pause(self.rng.below(60)).await;
                }
                _ => self.publish(),
            }
        }
        // The last ones are acked, so that what there is at the end is known.
        while !self.owed.is_empty() {
            self.is_at(format!("{} acks", self.owed.len()));
            self.read(1, std::future::pending()).await;
            while let Some(body) = self.peer.taken() {
                self.take(body);
            }
        }
        self.scene.waits.lock().unwrap().remove(&self.name);
    }
}

/// Everybody else has so many turns.
async fn pause(turns: u64) {
    for _ in 0..turns {
        yield_now().await;
    }
}

fn subscriber(i: u64) -> String {
    match i % 10 {
        0 => format!("s{i}.b"),
        9 => "host".into(),
        _ => format!("s{i}"),
    }
}

fn make(rng: &mut Rng) -> Make {
    let one_of = |rng: &mut Rng, of: &[u64]| of[rng.below(of.len() as u64) as usize];
    let mut limits = Limits {
        queue_events: one_of(rng, &[1, 8, 64, 1024]) as usize,
        queue_bytes: one_of(rng, &[1024, 16 * 1024, 1024 * 1024]) as usize,
        subscriptions: one_of(rng, &[3, 64]) as usize,
        unacked_events: one_of(rng, &[2, 16, 4096]) as usize,
        // A segment has room for what one session has under way.
        unacked_bytes: 8 * 1024,
        sessions_per_vm: 10_000,
        segment_bytes: 64 * 1024,
        ..Limits::default()
    };
    if rng.one_in(2) {
        limits.retain_bytes = one_of(rng, &[64, 128, 192]) * 1024;
    }
    let handing = if rng.one_in(2) { Handing::Thread } else { Handing::Test };
    let sync_time = Duration::from_micros(one_of(rng, &[0, 100, 600]));
    Make { limits, handing, sync_time, seed: rng.next(), ..Make::default() }
}

/// Hands commits out late, several at once, and loses some: as a thread does that has too much to do.
async fn hand_out(scene: Arc<Scene>, mut rng: Rng, mut over: watch::Receiver<bool>) {
    let mut head = scene.world.head.clone();
    loop {
        let waiting = scene.world.waiting() as u64;
        if waiting == 0 {
            tokio::select! {
                _ = head.changed() => continue,
                _ = over.changed() => return,
            }
        }
        pause(rng.below(80)).await;
        let commits = 1 + rng.below(waiting);
        // The newest one never: it is what shows that others are missing.
        let lost = if rng.one_in(4) { rng.below(commits) } else { 0 };
        scene.world.hand_out(commits as usize, lost as usize);
    }
}

/// One crowd; what it came to.
pub fn crowd(seed: u64, lookups: bool) -> Done {
    let waits = Arc::<Mutex<BTreeMap<String, String>>>::default();
    let stuck = {
        let waits = waits.clone();
        move || format!("{:?}", waits.lock().unwrap())
    };
    run(stuck, act(seed, lookups, waits))
}

async fn act(seed: u64, lookups: bool, waits: Arc<Mutex<BTreeMap<String, String>>>) -> Done {
    let mut rng = Rng(seed);
    let make = make(&mut rng);
    let handing = make.handing;
    let (is_over, over) = watch::channel(false);
    let (is_end, end) = watch::channel(None);
    let (stop, stopped) = watch::channel(false);
    let scene = Arc::new(Scene { world: World::new(make), lookups, over, end, waits });
    let handed =
        (handing == Handing::Test).then(|| tokio::spawn(hand_out(scene.clone(), rng.fork(), stopped)));

    let (mut acting, mut publishing) = (JoinSet::new(), JoinSet::new());
    for i in 0..SUBSCRIBERS {
        let (scene, rng) = (scene.clone(), rng.fork());
        acting.spawn(async move {
            let mut guest = Guest::new(scene, format!("subscriber {i}"), subscriber(i), rng).await;
            guest.act_as_subscriber().await;
            guest
        });
    }
    for i in 0..PUBLISHERS {
        let (scene, rng) = (scene.clone(), rng.fork());
        publishing.spawn(async move {
            let mut guest = Guest::new(scene, format!("publisher {i}"), format!("p{i}"), rng).await;
            guest.act_as_publisher().await;
            (guest.acked, guest.done)
        });
    }
    let mut acked = Vec::new();
    let mut done = Done::default();
    while let Some(published) = publishing.join_next().await {
        let (more, its) = published.unwrap();
        acked.extend(more);
        done.add(&its);
    }
    is_over.send_replace(true);
    // They read on beside those that still act.
    let mut reading = JoinSet::new();
    while let Some(guest) = acting.join_next().await {
        reading.spawn(guest.unwrap().read_to_the_end());
    }
    let last = scene.world.settled().await;
    let mut stored = scene.world.stored();
    stored.truncate(last as usize);
    is_end.send_replace(Some(Arc::new(stored)));
    let mut accounts = Vec::new();
    while let Some(guest) = reading.join_next().await {
        let guest = guest.unwrap();
        done.add(&guest.done);
        acked.extend(guest.acked);
        accounts.extend(guest.over);
    }
    scene.waits.lock().unwrap().insert("all".into(), "their end".into());
    scene.world.emptied().await;
    stop.send_replace(true);
    if let Some(handed) = handed {
        handed.await.unwrap();
    }
    scene.world.settled().await;
    let scene = Arc::into_inner(scene).unwrap_or_else(|| panic!("seed {seed}: somebody is left"));
    let stored = read_back(&scene.world);
    for (seq, topic, id) in acked {
        let event = &stored[seq as usize - 1];
        assert_eq!((&event.topic, &event.id), (&topic, &id), "what was acked as {seq} is something else");
    }
    for account in &accounts {
        account.audit(&stored).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    (done.events, done.accounts) = (stored.len() as u64, accounts.len() as u64);
    for signal in scene.world.end() {
        match (signal["reason"].as_str(), signal["action"].as_str()) {
            (Some("back-pressure"), Some("entered")) => done.pressed += 1,
            (Some("back-pressure"), Some("left")) => done.relieved += 1,
            (Some("peer-closed" | "io-error"), Some("disconnect")) => {}
            _ => panic!("seed {seed}: {signal}"),
        }
    }
    done
}

/// Everything that was ever stored; the journal, as far as it reaches back, says the same.
fn read_back(world: &World) -> Vec<Stored> {
    let stored = world.stored();
    let first = world.first();
    let mut reader = world.journal.reader(first);
    let mut next = first;
    loop {
        let mut each = |event: castra::core::event::Event<'_>| {
            assert_eq!(
                (event.seq, event.line),
                (next, &[&stored[next as usize - 1].line[..], b"\n"].concat()[..])
            );
            next += 1;
        };
        match reader.read(1 << 20, &mut each).unwrap() {
            castra::core::journal::read::Read::Events(_) => {}
            castra::core::journal::read::Read::End => break,
            gap => panic!("{gap:?}"),
        }
    }
    assert_eq!(next, stored.len() as u64 + 1, "the journal has all of it");
    stored
}
