//! Publishers that remember what they were told, and the comparison of that with what is stored.

use crate::support::{Broker, Guest, eventually, frame};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;

/// An event as its publisher knows it.
#[derive(Clone, Debug)]
pub struct Sent {
    pub vm: String,
    /// Its own id, if it was given one.
    pub id: Option<String>,
    /// The JSON that was sent; no other event has the same.
    pub payload: String,
}

/// What publishers were told.
#[derive(Debug, Default)]
pub struct Ledger {
    pub acked: BTreeMap<u64, Sent>,
    /// Refused with `disk-full`: nothing of it may be stored.
    pub refused: Vec<Sent>,
    /// Neither acked nor refused.
    pub unknown: Vec<Sent>,
    /// The payloads of each publish of several events.
    pub groups: Vec<Vec<String>>,
    /// What each session heard: codes of refusals and reasons of closes, in order, repetitions left out.
    pub heard: Vec<Vec<String>>,
}

impl Ledger {
    pub fn merge(&mut self, other: Ledger) {
        for (seq, sent) in other.acked {
            let twice = self.acked.insert(seq, sent.clone());
            assert!(twice.is_none(), "seq {seq} was acked for {twice:?} and for {sent:?}");
        }
        self.refused.extend(other.refused);
        self.unknown.extend(other.unknown);
        self.groups.extend(other.groups);
        self.heard.extend(other.heard);
    }

    pub fn head(&self) -> u64 {
        self.acked.last_key_value().map_or(0, |(seq, _)| *seq)
    }
}

/// How to publish.
#[derive(Clone, Copy)]
pub struct Plan {
    pub publishers: usize,
    pub window: usize,
    /// Bytes of padding in each payload.
    pub pad: usize,
}

pub const PLAN: Plan = Plan { publishers: 4, window: 96, pad: 80 };

/// Publishers at work.
pub struct Load {
    pub acked: Arc<AtomicUsize>,
    pub refused: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Ledger>>,
}

impl Load {
    /// Starts publishers `vm0`, `vm1` …; `run` differs from that of any other load on the same state root.
    pub fn start(broker: &Broker, run: &str, plan: Plan) -> Self {
        let (acked, refused, stop): (Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicBool>) =
            Default::default();
        let publisher = |i: usize| {
            let mut publisher = Publisher {
                vm: format!("vm{i}"),
                run: run.to_owned(),
                plan,
                random: 0x9e37_79b9 + i as u64 + run.bytes().map(u64::from).sum::<u64>() * 7919,
                sent: 0,
                flying: VecDeque::new(),
                ledger: Ledger::default(),
                acked: acked.clone(),
                refused: refused.clone(),
                heard: Vec::new(),
            };
            let (stop, addr) = (stop.clone(), broker.addr.clone());
            std::thread::spawn(move || publisher.run(&addr, &stop))
        };
        let threads = (0..plan.publishers).map(publisher).collect();
        Load { acked, refused, stop, threads }
    }

    /// Waits until so many events were acked.
    pub fn reach(&self, acked: usize) {
        eventually(&format!("{acked} acks"), || (self.acked.load(SeqCst) >= acked).then_some(()));
    }

    /// What they were told by a broker that ended.
    pub fn join(self) -> Ledger {
        let mut ledger = Ledger::default();
        for thread in self.threads {
            ledger.merge(thread.join().unwrap());
        }
        ledger
    }

    /// Lets them wait for their acks, and end.
    pub fn stop(self) -> Ledger {
        self.stop.store(true, SeqCst);
        self.join()
    }
}

struct Publisher {
    vm: String,
    run: String,
    plan: Plan,
    random: u64,
    sent: usize,
    /// One entry a frame; a group has several events.
    flying: VecDeque<Vec<Sent>>,
    ledger: Ledger,
    acked: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    heard: Vec<String>,
}

impl Publisher {
    fn run(&mut self, addr: &str, stop: &AtomicBool) -> Ledger {
        if let Some(mut guest) = greet(addr, &self.vm) {
            while self.turn(&mut guest, stop.load(SeqCst)).is_some() {}
        }
        let unknown = self.flying.drain(..).flatten();
        self.ledger.unknown.extend(unknown);
        self.ledger.heard.push(std::mem::take(&mut self.heard));
        std::mem::take(&mut self.ledger)
    }

    /// Fills the window and takes half of it; `None` at the end.
    fn turn(&mut self, guest: &mut Guest, stop: bool) -> Option<()> {
        let mut bytes = Vec::new();
        while !stop && self.flying.len() < self.plan.window {
            bytes.extend(frame(self.next_frame()));
        }
        // A broker that is gone is seen when its answers are read.
        let _ = guest.stream.get_mut().write_all(&bytes);
        if self.flying.is_empty() {
            return None;
        }
        let keep = if stop { 0 } else { self.plan.window / 2 };
        let mut full = false;
        while self.flying.len() > keep {
            full |= self.answer(&receive(guest)?)?;
        }
        if full {
            // Not to fill the memory with refusals.
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Some(())
    }

    fn next_frame(&mut self) -> String {
        let one = |this: &mut Self| {
            this.sent += 1;
            let own = this.random(3) == 0;
            let pad = "p".repeat(this.random(2 * this.plan.pad as u64 + 1) as usize);
            let (vm, run, n) = (&this.vm, &this.run, this.sent);
            let sent = Sent {
                vm: this.vm.clone(),
                id: own.then(|| format!("own-{vm}-{run}-{n}")),
                payload: format!("\"{}/{}/{n}/{pad}\"", this.vm, this.run),
            };
            let id = sent.id.as_ref().map_or(String::new(), |id| format!("\"id\":\"{id}\","));
            (format!("{id}\"topic\":\"load.{}\",\"payload\":{}", this.run, sent.payload), sent)
        };
        if self.random(8) == 0 {
            let n = 2 + self.random(6) as usize;
            let (texts, sents): (Vec<_>, Vec<_>) = (0..n).map(|_| one(self)).unzip();
            let events: Vec<String> = texts.into_iter().map(|text| format!("{{{text}}}")).collect();
            self.ledger.groups.push(sents.iter().map(|sent| sent.payload.clone()).collect());
            self.flying.push_back(sents);
            return format!("{{\"type\":\"publish\",\"events\":[{}]}}", events.join(","));
        }
        let (text, sent) = one(self);
        self.flying.push_back(vec![sent]);
        format!("{{\"type\":\"publish\",{text}}}")
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % below
    }

    /// Takes one answer; whether it was a refusal, `None` when it was the last.
    fn answer(&mut self, answer: &Answer) -> Option<bool> {
        if answer.kind == "close" {
            self.hear(answer.reason.as_deref().unwrap_or("?"));
            return None;
        }
        assert_eq!(answer.ack.as_deref(), Some("publish"), "{answer:?}");
        let events = self.flying.pop_front().expect("an ack of something");
        if answer.status.as_deref() == Some("ok") {
            assert!(!self.heard.iter().any(|h| h == "outcome-unknown"), "acked after outcome-unknown");
            let seqs = answer.seqs.clone().unwrap_or_else(|| vec![answer.seq.unwrap()]);
            assert_eq!(seqs.len(), events.len());
            self.acked.fetch_add(seqs.len(), SeqCst);
            for (seq, sent) in seqs.into_iter().zip(events) {
                let id = answer.id.clone().or(sent.id.clone());
                assert!(sent.id.is_none() || sent.id == id, "{sent:?} was acked as {id:?}");
                let last = self.ledger.acked.last_key_value().map_or(0, |(seq, _)| *seq);
                assert!(seq > last, "acks of one session are in order");
                self.ledger.acked.insert(seq, Sent { id, ..sent });
            }
            return Some(false);
        }
        let code = answer.code.as_deref().unwrap();
        self.hear(code);
        self.refused.fetch_add(events.len(), SeqCst);
        match code {
            "disk-full" => self.ledger.refused.extend(events),
            "outcome-unknown" => self.ledger.unknown.extend(events),
            other => panic!("refused with {other}"),
        }
        Some(true)
    }

    fn hear(&mut self, what: &str) {
        if self.heard.last().is_none_or(|last| last != what) {
            self.heard.push(what.to_owned());
        }
    }
}

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(rename = "type")]
    kind: String,
    ack: Option<String>,
    status: Option<String>,
    code: Option<String>,
    reason: Option<String>,
    id: Option<String>,
    seq: Option<u64>,
    seqs: Option<Vec<u64>>,
}

/// A session, unless the broker is gone.
fn greet(addr: &str, vm: &str) -> Option<Guest> {
    let stream = std::net::TcpStream::connect(addr).ok()?;
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    let mut guest = Guest { stream: std::io::BufReader::new(stream) };
    guest.line();
    guest.stream.get_mut().write_all(format!("hello vm:{vm} capabilities=bus-v1\n").as_bytes()).ok()?;
    guest.line().starts_with("ok session=").then_some(guest)
}

fn receive(guest: &mut Guest) -> Option<Answer> {
    use std::io::Read;
    let mut length = [0; 4];
    guest.stream.read_exact(&mut length).ok()?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    guest.stream.read_exact(&mut body).ok()?;
    Some(serde_json::from_slice(&body).unwrap())
}

/// One event as a log has it.
#[derive(Debug, Deserialize)]
pub struct Line<'a> {
    pub seq: u64,
    pub ts: u64,
    pub id: &'a str,
    pub vm: &'a str,
    #[serde(borrow)]
    pub payload: &'a serde_json::value::RawValue,
}

/// Every line of a log's text; each must be whole.
pub fn lines(text: &str) -> Vec<Line<'_>> {
    assert!(text.is_empty() || text.ends_with('\n'), "the log ends with half a line");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"))).collect()
}

/// The text of `logs/bus/<name>.log`, rotated files first.
pub fn log_text(root: &Path, name: &str) -> String {
    let files = castra::core::log_files::files_of(&root.join("logs/bus").join(format!("{name}.log")));
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

/// Compares the logs of a broker that lost nothing with what publishers were told; the newest seq.
pub fn check(root: &Path, ledger: &Ledger) -> u64 {
    let text = log_text(root, "bus");
    let events = lines(&text);
    for (event, seq) in events.iter().zip(1..) {
        assert_eq!(event.seq, seq, "bus.log is dense");
    }
    compare(root, ledger, &text, &events, &HashSet::new());
    events.len() as u64
}

/// Compares the logs with what publishers were told, the events `lost` left out.
pub fn compare(root: &Path, ledger: &Ledger, text: &str, events: &[Line<'_>], lost: &HashSet<u64>) {
    let by_seq: HashMap<u64, &Line<'_>> = events.iter().map(|event| (event.seq, event)).collect();
    assert_eq!(by_seq.len(), events.len(), "bus.log has a seq twice");
    assert!(events.windows(2).all(|pair| pair[0].seq < pair[1].seq && pair[0].ts <= pair[1].ts));
    let by_payload: HashMap<&str, u64> = events.iter().map(|e| (e.payload.get(), e.seq)).collect();
    assert_eq!(by_payload.len(), events.len(), "bus.log has a payload twice");

    for (seq, sent) in ledger.acked.iter().filter(|(seq, _)| !lost.contains(seq)) {
        let event = by_seq.get(seq).unwrap_or_else(|| panic!("{seq} was acked and is gone: {sent:?}"));
        assert_eq!((event.vm, event.payload.get()), (&*sent.vm, &*sent.payload), "seq {seq}");
        assert!(sent.id.as_ref().is_none_or(|id| id == event.id), "seq {seq}: {sent:?} has id {}", event.id);
    }
    for sent in &ledger.refused {
        assert!(!by_payload.contains_key(&*sent.payload), "refused and stored: {sent:?}");
    }
    for sent in &ledger.unknown {
        if let Some(seq) = by_payload.get(&*sent.payload) {
            assert_eq!(by_seq[seq].vm, sent.vm);
        }
    }
    for group in &ledger.groups {
        let seqs: Vec<u64> = group.iter().filter_map(|p| by_payload.get(&**p).copied()).collect();
        let broken = lost.iter().any(|l| seqs.iter().any(|s| s.abs_diff(*l) < group.len() as u64));
        if !broken && !seqs.is_empty() {
            let dense: Vec<u64> = (seqs[0]..seqs[0] + group.len() as u64).collect();
            assert_eq!(seqs, dense, "a publish of several events is there in part: {group:?}");
        }
    }

    let mut by_vm: BTreeMap<&str, String> = BTreeMap::new();
    for (event, line) in events.iter().zip(text.lines()) {
        let log = by_vm.entry(event.vm).or_default();
        log.push_str(line);
        log.push('\n');
    }
    for (vm, want) in by_vm {
        let have = log_text(root, vm);
        let diff = have.lines().zip(want.lines()).position(|(a, b)| a != b);
        let (have_lines, want_lines) = (have.lines().count(), want.lines().count());
        assert!(
            have == want,
            "{vm}.log: {have_lines} lines, bus.log has {want_lines} of it; first difference {diff:?}"
        );
    }
}

/// Publishes one event that is acked; its seq.
pub fn publish_one(broker: &Broker, payload: &str) -> u64 {
    let ack = broker.guest("late").ask(format!("{{\"type\":\"publish\",\"payload\":\"{payload}\"}}"));
    assert_eq!(ack["status"], "ok", "{ack}");
    ack["seq"].as_u64().unwrap()
}

/// Waits until the logs have all up to `seq`.
pub fn logs_reach(broker: &Broker, seq: u64) {
    eventually(&format!("seq {seq} in the logs"), || {
        let logs = broker.status()["broker"]["journal"]["logs_seq"].as_u64().unwrap();
        (logs >= seq).then_some(())
    });
}
