//! Loads a real broker over TCP and prints one line a mode, each beside a bare fdatasync of the same minute.
//!
//! `cargo bench --bench load -- [disk] [lat] [pipe] [conc] [fair] [vms] [secs=3] [size=256]`
//!
//! disk: 400 bytes written and fdatasynced inside a zero-filled file. lat: one connection, one in flight.
//! pipe: one connection, 1,000 in flight. conc: 64 connections of 64 VMs, one in flight each. fair: 10 connections
//! that publish 100 events a second each, one in flight, alone and then beside one with 1,000 in flight. vms: what
//! a commit of 64 events costs when they come from 1 VM and from 1,000, at the same offered load. The state root is a fresh folder below `CARGO_TARGET_TMPDIR`, so the disk is that of the target folder. Acks carry
//! seqs, and each is checked to be the one that comes next.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use castra::core::client::{Client, Target};
use castra::core::event::{Batch, Publish};
use castra::core::identity::VmName;
use castra::core::ids::IdSource;
use castra::core::journal::disk::RealDisk;
use castra::core::journal::{Opened, Reached};
use castra::core::limits::Limits;
use castra::core::log_view::LogView;
use castra::core::logs::Logs;
use castra::core::state_root::StateRoot;
use castra::core::status::VmTable;
use castra::core::status_file;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

const HELLO: &str = "capabilities=bus-v1";

struct Broker {
    child: Child,
    addr: SocketAddr,
    root: tempfile::TempDir,
}

impl Broker {
    fn start() -> Self {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_castra"));
        command.arg("broker").arg("--state-root").arg(root.path()).args(["--tcp", "127.0.0.1:0"]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let addr = line.split("tcp:").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
        Broker { child, addr: addr.parse().unwrap(), root }
    }

    /// How far the logs are behind the journal, as the status says at this moment.
    fn logs(&self) -> String {
        let status = StateRoot::resolve(Some(self.root.path().into())).status();
        let journal = status_file::read(&status).unwrap().unwrap().journal;
        format!("logs behind by {} of {} events", journal.head_seq - journal.logs_seq, journal.head_seq)
    }

    async fn connect(&self, vm: &str) -> Client {
        Client::connect(&Target::Tcp(self.addr.to_string()), &format!("hello vm:{vm} {HELLO}")).await.unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(serde::Deserialize)]
struct Ack<'a> {
    status: &'a str,
    seq: u64,
}

fn percentile(sorted: &[f64], p: f64) -> f64 {
    sorted.get(((sorted.len().max(1) - 1) as f64 * p) as usize).copied().unwrap_or(f64::NAN)
}

fn spread(mut micros: Vec<f64>) -> String {
    micros.sort_by(f64::total_cmp);
    let at = |p| percentile(&micros, p);
    format!("p50={:.0}us p99={:.0}us p99.9={:.0}us", at(0.5), at(0.99), at(0.999))
}

fn frame(size: usize) -> Vec<u8> {
    let pad = "x".repeat(size.saturating_sub(18));
    format!(r#"{{"type":"publish","topic":"broadcast","payload":{{"n":1,"pad":"{pad}"}}}}"#).into_bytes()
}

fn disk(time: Duration) {
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.write_all_at(&vec![0; 32 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let (mut micros, begun) = (Vec::new(), Instant::now());
    while begun.elapsed() < time {
        let since = Instant::now();
        file.write_all_at(&[b'x'; 400], (micros.len() as u64 * 400) % (31 << 20)).unwrap();
        file.sync_data().unwrap();
        micros.push(since.elapsed().as_secs_f64() * 1e6);
    }
    println!("disk  rate={:.0}/s {}", micros.len() as f64 / time.as_secs_f64(), spread(micros));
}

async fn one_in_flight(client: &mut Client, body: &[u8], time: Duration) -> Vec<f64> {
    let (mut micros, begun) = (Vec::new(), Instant::now());
    // Once at least.
    loop {
        let since = Instant::now();
        client.send(body).await.unwrap();
        let reply = client.receive().await.unwrap();
        assert_eq!(reply.status, "ok", "{reply:?}");
        micros.push(since.elapsed().as_secs_f64() * 1e6);
        if begun.elapsed() >= time {
            return micros;
        }
    }
}

async fn lat(broker: &Broker, body: &[u8], time: Duration) {
    let micros = one_in_flight(&mut broker.connect("bench").await, body, time).await;
    println!("lat   rate={:.0}/s {}", micros.len() as f64 / time.as_secs_f64(), spread(micros));
}

/// Acked events a second.
async fn pipe(broker: &Broker, body: &[u8], time: Duration, dense: bool) -> f64 {
    let (mut sender, mut receiver) = broker.connect("bench").await.split();
    let window = Arc::new(Semaphore::new(1000));
    let (body, permits) = (body.to_vec(), window.clone());
    let sending = tokio::spawn(async move {
        loop {
            let Ok(permit) = permits.acquire().await else { return };
            permit.forget();
            let mut frames = 1;
            while frames < 200 && permits.try_acquire().map(tokio::sync::SemaphorePermit::forget).is_ok() {
                frames += 1;
            }
            if sender.send(std::iter::repeat_n(&body[..], frames)).await.is_err() {
                return;
            }
        }
    });
    let (mut acked, mut last, begun) = (0u64, 0, Instant::now());
    while begun.elapsed() < time {
        let body = receiver.frame().await.unwrap();
        let Ack { status: "ok", seq } = serde_json::from_slice(&body).unwrap() else { panic!("{body:?}") };
        assert!(last == 0 || seq == last + 1 || (!dense && seq > last), "{seq} after {last}");
        (acked, last) = (acked + 1, seq);
        window.add_permits(1);
    }
    sending.abort();
    acked as f64 / begun.elapsed().as_secs_f64()
}

/// What 10 connections wait for their acks, each with an event every 10 ms.
async fn slow(broker: &Broker, body: &[u8], time: Duration) -> Vec<f64> {
    let mut tasks = Vec::new();
    for i in 0..10 {
        let mut client = broker.connect(&format!("slow{i}")).await;
        let body = body.to_vec();
        tasks.push(tokio::spawn(async move {
            let (mut micros, begun) = (Vec::new(), Instant::now());
            let mut turn = tokio::time::interval(Duration::from_millis(10));
            while begun.elapsed() < time {
                turn.tick().await;
                micros.extend(one_in_flight(&mut client, &body, Duration::ZERO).await);
            }
            micros
        }));
    }
    let mut micros = Vec::new();
    for task in tasks {
        micros.extend(task.await.unwrap());
    }
    micros.sort_by(f64::total_cmp);
    micros
}

async fn fair(broker: &Broker, body: &[u8], time: Duration) {
    let alone = slow(broker, body, time).await;
    // On a runtime of its own, as another publisher is: or its tasks would be before the slow ones' here.
    let (beside, rate) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(pipe(broker, body, time, false))
        });
        let beside = tokio::task::block_in_place(|| Handle::current().block_on(slow(broker, body, time)));
        (beside, flood.join().unwrap())
    });
    let more = (percentile(&beside, 0.99) - percentile(&alone, 0.99)) / 1000.0;
    println!("fair  alone  {} events {}", alone.len(), spread(alone));
    println!("fair  beside {rate:.0}/s: {} events {}, p99 {more:+.2}ms", beside.len(), spread(beside));
}

async fn conc(broker: &Broker, body: &[u8], time: Duration) {
    let mut tasks = Vec::new();
    for i in 0..64 {
        let mut client = broker.connect(&format!("bench{i}")).await;
        let body = body.to_vec();
        tasks.push(tokio::spawn(async move { one_in_flight(&mut client, &body, time).await }));
    }
    let mut micros = Vec::new();
    for task in tasks {
        micros.extend(task.await.unwrap());
    }
    let rate = micros.len() as f64 / time.as_secs_f64();
    println!("conc  rate={rate:.0}/s {} {}", spread(micros), broker.logs());
}

/// 64 events at a time, 500 times a second, from `vms` VMs in turn, through journal and logs.
async fn commits(vms: usize, body: &[u8], time: Duration) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (root, limits) = (StateRoot::resolve(Some(dir.path().into())), Limits::default());
    let (id, _lock) = root.open().unwrap();
    let opened = Opened::open(Arc::new(RealDisk::new(root.journal())), id, limits.segment_bytes).unwrap();
    let table = Arc::new(VmTable::new(limits.vms));
    let view = LogView::open(&root, &limits, table, (1, 0), &|seq| opened.reader(seq)).unwrap();
    let logs = Logs::start(view, &limits, opened.readers()).unwrap();
    let sink = logs.clone();
    let reached = Reached { views: logs.floor(), ..Reached::default() };
    let journal = opened
        .start(&limits, move |commit| sink.push(commit), || {}, |error| panic!("{error}"), reached)
        .unwrap();
    let permits = Arc::new(Semaphore::new(64));
    let publish: Publish<'_> = serde_json::from_slice(body).unwrap();
    let (names, mut ids) = ((0..vms).map(|i| VmName::parse(&format!("vm{i}")).unwrap()), IdSource::new(1));
    let names: Vec<VmName> = names.collect();
    let mut names = names.iter().cycle();
    let (mut micros, begun) = (Vec::new(), Instant::now());
    let mut turn = tokio::time::interval(Duration::from_millis(2));
    while begun.elapsed() < time {
        turn.tick().await;
        let mut batches = Vec::new();
        for _ in 0..64 {
            let mut batch = Batch::default();
            batch.push(names.next().unwrap(), &publish, |out| ids.write(0, out)).unwrap();
            batches.push((batch, permits.clone().acquire_owned().await.unwrap()));
        }
        let since = Instant::now();
        let outcomes: Vec<_> =
            (1..).zip(batches).map(|(lane, (batch, permit))| journal.submit(lane, batch, permit)).collect();
        for outcome in outcomes {
            outcome.await.unwrap().unwrap();
        }
        micros.push(since.elapsed().as_secs_f64() * 1e6);
    }
    println!("vms   vms={vms} 64 events a commit: {}", spread(micros));
    journal.stop();
    logs.stop();
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |key: &str, default: f64| {
        args.iter().find_map(|arg| arg.strip_prefix(key)?.strip_prefix('=')?.parse().ok()).unwrap_or(default)
    };
    let (time, body) = (Duration::from_secs_f64(number("secs", 3.0)), frame(number("size", 256.0) as usize));
    let all = args.iter().all(|arg| arg.contains('='));
    let wants = |mode: &str| all || args.iter().any(|arg| arg == mode);
    if wants("disk") {
        tokio::task::spawn_blocking(move || disk(time)).await.unwrap();
    }
    if wants("lat") {
        lat(&Broker::start(), &body, time).await;
    }
    if wants("pipe") {
        let broker = Broker::start();
        let rate = pipe(&broker, &body, time, true).await;
        println!("pipe  rate={rate:.0}/s {}", broker.logs());
    }
    if wants("conc") {
        conc(&Broker::start(), &body, time).await;
    }
    if wants("fair") {
        fair(&Broker::start(), &body, time).await;
    }
    if wants("vms") {
        commits(1, &body, time).await;
        commits(1000, &body, time).await;
    }
}
