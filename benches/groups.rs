//! What a consumer group costs, beside a plain subscription of the same events, on a real broker over TCP.
//!
//! `cargo bench --bench groups -- [plain] [group] [acks] [filter] [idle]`
//!
//! plain: one subscriber reads a backlog of 1,600,000 events of 256 bytes. group: one member of a group reads the same
//! and acks all of it, `through` every 100th; until the cursor is at the end, durably. acks: the same with an ack an
//! event, and what of its core the commit thread used beside that. filter: a publisher floods; what the router's
//! thread uses an event without a group, and with one whose filter selects 1 %. idle: what 1,000 groups without
//! members take of memory, what 3,000 more do, and what all take of the processor in ten seconds.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BACKLOG: u64 = 1_600_000;
const FLOOD: u64 = 400_000;

struct Broker {
    child: Child,
    addr: String,
    _root: tempfile::TempDir,
}

impl Broker {
    fn start() -> Self {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_castra"));
        command.arg("broker").arg("--state-root").arg(root.path()).args(["--tcp", "127.0.0.1:0"]);
        let mut child = command.env("CASTRA_CONFIG", "/dev/null").stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let addr = line.split("tcp:").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
        Broker { child, addr: addr.to_owned(), _root: root }
    }

    /// Processor time of the threads whose names begin so.
    fn cpu(&self, name: &str) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let ticks = tasks.filter_map(|task| {
            let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
            let (head, rest) = stat.rsplit_once(") ")?;
            let fields: Vec<&str> = rest.split(' ').collect();
            let own = head.split_once('(')?.1.starts_with(name);
            own.then(|| fields[11].parse::<u64>().unwrap_or(0) + fields[12].parse::<u64>().unwrap_or(0))
        });
        Duration::from_millis(10 * ticks.sum::<u64>())
    }

    /// What it has taken for itself; pages of files, its own program among them, are none of it.
    fn anonymous_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Guest {
    stream: TcpStream,
    input: Vec<u8>,
    at: usize,
}

impl Guest {
    fn connect(broker: &Broker, vm: &str) -> Self {
        let mut stream = TcpStream::connect(&broker.addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(format!("hello vm:{vm} capabilities=bus-v1\n").as_bytes()).unwrap();
        let mut lines = 0;
        let mut byte = [0];
        while lines < 2 {
            stream.read_exact(&mut byte).unwrap();
            lines += usize::from(byte[0] == b'\n');
        }
        Guest { stream, input: Vec::new(), at: 0 }
    }

    fn send(&mut self, body: &str) {
        self.stream.write_all(&framed(body)).unwrap();
    }

    /// The next frame's body, handed to `each`.
    fn receive<T>(&mut self, each: impl FnOnce(&[u8]) -> T) -> T {
        loop {
            let rest = &self.input[self.at..];
            if let Some(head) = rest.first_chunk::<4>()
                && let Some(body) = rest.get(4..4 + u32::from_be_bytes(*head) as usize)
            {
                self.at += 4 + body.len();
                return each(body);
            }
            self.input.drain(..self.at);
            self.at = 0;
            let mut chunk = [0; 256 * 1024];
            let got = self.stream.read(&mut chunk).unwrap();
            assert!(got > 0, "the broker closed");
            self.input.extend_from_slice(&chunk[..got]);
        }
    }

    fn ask(&mut self, body: &str) -> String {
        self.send(body);
        self.receive(|body| String::from_utf8_lossy(body).into_owned())
    }

    /// Publishes so many events, 500 in flight; every 100th has the tag.
    fn publish(&mut self, events: u64) {
        let pad = "x".repeat(256);
        let plain = framed(&format!(r#"{{"type":"publish","topic":"load","payload":"{pad}"}}"#));
        let tagged =
            framed(&format!(r#"{{"type":"publish","topic":"load","tags":["one"],"payload":"{pad}"}}"#));
        for n in (0..events).step_by(500) {
            let out: Vec<u8> = (n..n + 500)
                .flat_map(|n| if n.is_multiple_of(100) { &tagged } else { &plain })
                .copied()
                .collect();
            self.stream.write_all(&out).unwrap();
            (0..500).for_each(|_| self.receive(|_| ()));
        }
    }
}

fn framed(body: &str) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], body.as_bytes()].concat()
}

fn seq(body: &[u8]) -> u64 {
    let at = body.windows(6).position(|window| window == b"\"seq\":").unwrap() + 6;
    let digits = body[at..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |seq, digit| 10 * seq + u64::from(digit - b'0'))
}

fn plain(broker: &Broker) -> f64 {
    let mut guest = Guest::connect(broker, "plain");
    guest.ask(r#"{"type":"subscribe","topic":"load","from":"earliest"}"#);
    let since = Instant::now();
    while guest.receive(seq) < BACKLOG {}
    let rate = BACKLOG as f64 / since.elapsed().as_secs_f64();
    println!("plain: {rate:.0} events/s");
    rate
}

fn group(broker: &Broker, name: &str, every: u64) -> f64 {
    let mut guest = Guest::connect(broker, name);
    let options = r#""from":"earliest","batch":1000,"max_in_flight":10000"#;
    let joined = guest.ask(&format!(r#"{{"type":"subscribe","topic":"load","group":"{name}",{options}}}"#));
    assert!(joined.contains("\"created\":true"), "{joined}");
    let (since, commits) = (Instant::now(), broker.cpu("castra-commit"));
    let mut acks = Vec::new();
    loop {
        let seq = guest.receive(seq);
        let last = seq == BACKLOG;
        if every == 1 || seq.is_multiple_of(every) || last {
            let which = if every == 1 && !last { "seq" } else { "through" };
            acks.extend(framed(&format!(
                r#"{{"type":"ack","group":"{name}","{which}":{seq},"confirm":{last}}}"#
            )));
        }
        if acks.len() > 16_000 || last || guest.at == guest.input.len() {
            guest.stream.write_all(&acks).unwrap();
            acks.clear();
        }
        if last {
            break;
        }
    }
    // The last ack is durable.
    guest
        .receive(|body| assert!(body.starts_with(b"{\"type\":\"ack\""), "{}", String::from_utf8_lossy(body)));
    let (time, commits) = (since.elapsed(), broker.cpu("castra-commit") - commits);
    let rate = BACKLOG as f64 / time.as_secs_f64();
    let share = 100.0 * commits.as_secs_f64() / time.as_secs_f64();
    println!(
        "group, an ack for {every}: {rate:.0} events/s delivered and done, commit thread {share:.1} % of a core"
    );
    rate
}

fn filter(broker: &Broker, name: Option<&str>, events: u64) -> f64 {
    if let Some(name) = name {
        let mut guest = Guest::connect(broker, "filter");
        let filter = r#""filter":{"tags":["one"]}"#;
        guest.ask(&format!(r#"{{"type":"subscribe","topic":"load","group":"{name}",{filter}}}"#));
        let name = name.to_owned();
        std::thread::spawn(move || {
            loop {
                let seq = guest.receive(seq);
                guest.send(&format!(r#"{{"type":"ack","group":"{name}","seq":{seq}}}"#));
            }
        });
    }
    let cpu = |name: &str| broker.cpu(name);
    let (before, workers) = (cpu("castra-router"), cpu("tokio"));
    Guest::connect(broker, "flood").publish(events);
    let each = |time: Duration| 1e9 * time.as_secs_f64() / events as f64;
    let (router, workers) = (each(cpu("castra-router") - before), each(cpu("tokio") - workers));
    println!("filter {name:?}: router {router:.0} ns, workers {workers:.0} ns an event");
    router
}

fn idle(broker: &Broker) {
    let mut kib = Vec::new();
    for round in 0..4 {
        let mut guests: Vec<Guest> =
            (0..10).map(|vm| Guest::connect(broker, &format!("idle-{round}-{vm}"))).collect();
        let before = broker.anonymous_kib();
        for (vm, guest) in guests.iter_mut().enumerate() {
            for n in 0..100 {
                let name = format!("i{round}-{vm}-{n}");
                let made =
                    guest.ask(&format!(r#"{{"type":"group_create","group":"{name}","topic":"quiet.{n}"}}"#));
                assert!(made.contains("\"created\":true"), "{made}");
            }
        }
        kib.push(broker.anonymous_kib() - before);
    }
    let cpu = broker.cpu("");
    std::thread::sleep(Duration::from_secs(10));
    let cpu = (broker.cpu("") - cpu).as_secs_f64();
    println!(
        "idle: 1,000 groups take {} KiB, 1,000 more {:?} KiB; all use {:.2} % of a core",
        kib[0],
        &kib[1..],
        10.0 * cpu
    );
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wants = |mode: &str| words.is_empty() || words.iter().any(|word| word == mode);
    let broker = Broker::start();
    if wants("idle") {
        idle(&broker);
    }
    Guest::connect(&broker, "publisher").publish(BACKLOG);
    for turn in 0..5 {
        if wants("plain") {
            plain(&broker);
        }
        if wants("group") {
            group(&broker, &format!("g{turn}"), 100);
        }
        if wants("acks") {
            group(&broker, &format!("a{turn}"), 1);
        }
    }
    if wants("filter") {
        filter(&broker, None, FLOOD);
        filter(&broker, Some("f"), FLOOD);
    }
}
