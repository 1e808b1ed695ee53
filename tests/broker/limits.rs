//! Peers that misbehave: each is bounded, and nobody else notices.

use crate::support::{Broker, Guest, eventually, frame, records, rss_kib, slow_disk};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The broker's memory stays below this whatever its peers do, in KiB.
const MEMORY: u64 = 200 * 1024;

fn events_of(root: &Path, vm: &str) -> Vec<Value> {
    records(root, "bus-events").into_iter().filter(|r| r["vm"] == vm).collect()
}

/// Publishes one at a time until `done`; how many, and the longest time one took.
fn publish_until(broker: &Broker, done: &AtomicBool) -> (u64, Duration) {
    let mut guest = broker.guest("other");
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !done.load(Relaxed) {
        let since = Instant::now();
        assert_eq!(guest.ask(r#"{"type":"publish","payload":"x"}"#)["status"], "ok");
        longest = longest.max(since.elapsed());
        count += 1;
    }
    (count, longest)
}

/// Runs `bad` while another guest publishes, whose every ack must come within a second.
fn while_another_publishes(broker: &Broker, bad: impl FnOnce()) {
    let done = AtomicBool::new(false);
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    let (count, longest) = std::thread::scope(|scope| {
        let other = scope.spawn(|| publish_until(broker, &done));
        let ended = Done(&done);
        bad();
        drop(ended);
        other.join().unwrap()
    });
    assert!(count > 10 && longest < Duration::from_secs(1), "{count} publishes, the longest {longest:?}");
}

#[test]
fn thousands_of_silent_connections_and_a_dribble_delay_nobody() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    assert!(hard > 6000, "this test opens 5,000 connections");
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut dribble = Guest::connect(&broker.addr);
    dribble.stream.get_mut().write_all(b"h").unwrap();
    while_another_publishes(&broker, || {
        let mut silent: Vec<TcpStream> = Vec::with_capacity(5000);
        let (mut since, mut dribbled) = (Instant::now(), 1);
        for _ in 0..5000 {
            silent.push(TcpStream::connect(&broker.addr).unwrap());
            if since.elapsed() > Duration::from_secs(1) && dribbled < 4 {
                since = Instant::now();
                let _ = dribble.stream.get_mut().write_all(&b"hell"[dribbled..=dribbled]);
                dribbled += 1;
            }
        }
        // The 4,097th took the place of the oldest: of the dribbler and of those behind it.
        assert_eq!(dribble.line(), "error: too-many-handshakes");
        for old in silent.iter().take(100) {
            old.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let lines: Vec<String> = BufReader::new(old).lines().map_while(Result::ok).collect();
            assert_eq!(lines[1..], ["error: too-many-handshakes"], "{lines:?}");
        }
        let since = Instant::now();
        assert_eq!(broker.guest("late").ask(r#"{"type":"publish"}"#)["status"], "ok");
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
        let memory = rss_kib(broker.pid());
        assert!(memory < MEMORY, "{memory} KiB");
    });
    let denied = eventually("the records of those that were dropped", || {
        let all = records(dir.path(), "handshake-events");
        let denied = all.iter().filter(|r| r["reason"] == "too-many-handshakes").count();
        (denied >= 100).then_some(denied)
    });
    assert!(denied <= 1000, "{denied}");
}

#[test]
fn silent_connections_leave_room_where_descriptors_are_few() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -n 600; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_castra")]);
    let broker = Broker::start_with(dir.path(), command, &[]);
    let silent: Vec<TcpStream> = (0..250).map(|_| TcpStream::connect(&broker.addr).unwrap()).collect();
    let since = Instant::now();
    assert_eq!(broker.guest("dev").ask(r#"{"type":"publish"}"#)["seq"], 1);
    assert!(broker.run(&["bus", "publish"]).status.success());
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    let mut oldest = BufReader::new(&silent[0]).lines().map_while(Result::ok);
    assert_eq!(oldest.nth(1).unwrap(), "error: too-many-handshakes");
}

/// 600 descriptors and 1,000 sessions: it is said at the start, and so is every connection that has to wait.
#[test]
fn a_bound_that_cannot_be_met_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("castra.toml");
    std::fs::write(&config, "[limits]\nsessions = 1000\n").unwrap();
    let root = dir.path().join("root");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -n 600; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_castra")]);
    command.arg("--config").arg(&config);
    let broker = Broker::start_with(&root, command, &[]);
    let log = || std::fs::read_to_string(root.join("logs/broker.log")).unwrap_or_default();
    let line = eventually("the line", || {
        log().lines().find(|l| l.contains("fewer connections fit")).map(str::to_owned)
    });
    assert!(line.contains("descriptors=600") && line.contains("sessions=1000"), "{line}");
    let pauses = || {
        let status: Value =
            serde_json::from_slice(&broker.run(&["status", "--json"]).stdout).unwrap_or_default();
        status["broker"]["counters"]["accept_pauses"].as_u64()
    };
    assert_eq!(eventually("the status", pauses), 0);
    // As many sessions as there are places, and some that wait for one.
    let guests: Vec<Guest> = (0..300).map(|n| broker.guest(&format!("vm{n}"))).collect();
    let waiting: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&broker.addr).unwrap()).collect();
    eventually("connections that wait", || pauses().filter(|pauses| *pauses > 0));
    eventually("the line of it", || log().contains("connections wait").then_some(()));
    drop(guests);
    let mut first = BufReader::new(&waiting[99]).lines().map_while(Result::ok);
    assert!(first.next().unwrap().starts_with("castra-broker "), "it is accepted once there is a place");
}

#[test]
fn who_never_reads_its_acks_is_cut_off_and_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut deaf = broker.guest("deaf");
    nix::sys::socket::setsockopt(deaf.stream.get_ref(), nix::sys::socket::sockopt::RcvBuf, &4096).unwrap();
    deaf.stream.get_ref().set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let many: Vec<u8> = (0..1000).flat_map(|_| frame(r#"{"type":"publish","payload":1}"#)).collect();
    let since = Instant::now();
    while_another_publishes(&broker, || {
        // It writes until the broker gave it up.
        let gone = (0..100_000).find_map(|_| deaf.stream.get_mut().write_all(&many).err()).unwrap();
        assert!(gone.kind() != std::io::ErrorKind::WouldBlock, "not given up after 20 s");
        let memory = rss_kib(broker.pid());
        assert!(memory < MEMORY, "{memory} KiB");
    });
    assert!((9..25).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
    let events = eventually("the records", || {
        Some(events_of(dir.path(), "deaf")).filter(|all| all.iter().any(|r| r["action"] == "disconnect"))
    });
    let actions: Vec<&str> = events.iter().map(|r| r["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["retry", "retry", "retry", "disconnect"]);
    assert!(events.iter().all(|r| r["reason"] == "slow-consumer"));
    let at: Vec<u64> = events.iter().map(|r| r["timestamp"].as_u64().unwrap()).collect();
    for (i, seconds) in [(1, 2), (2, 5), (3, 9)] {
        assert!((seconds - 1..=seconds + 3).contains(&(at[i] - at[0])), "{at:?}");
    }
    assert!(events.iter().all(|r| r.get("folded").is_none()), "each was said: {events:?}");
    let counters = eventually("the counters", || {
        let counters = broker.status()["broker"]["counters"].take();
        (counters["disconnects"]["slow-consumer"] == 1).then_some(counters)
    });
    assert_eq!((&counters["write_retries"], &counters["signals_folded"]), (&json!(3), &json!(0)));
    let table = String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    assert!(table.contains("\nsince its start: slow consumers closed 1\n"), "{table}");
    eventually("the end of its session", || {
        let status = broker.status();
        let vms = status["vms"].as_array()?;
        vms.iter().find(|vm| vm["name"] == "deaf" && vm["sessions"] == 0 && vm["in_flight"] == 0).map(drop)
    });
}

#[test]
fn refusals_behind_a_publish_that_waits_for_the_disk_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let command = slow_disk("fdatasync", Duration::from_secs(6), "1+");
    let broker = Broker::start_with(dir.path(), command, &[]);
    let mut guest = broker.guest("dev");
    guest.send(r#"{"type":"publish"}"#);
    guest.stream.get_ref().set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    // Short ones, and ones whose refusal could quote 30,000 quotes.
    let quoting = format!("{{\"type\":\"publish\",\"events\":\"{}\"}}", "\\\"".repeat(30_000));
    let many = [frame("x").repeat(1000), frame(quoting)].concat().repeat(20);
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(4) && guest.stream.get_mut().write_all(&many).is_ok() {}
    let memory = rss_kib(broker.pid());
    assert!(memory < 64 * 1024, "{memory} KiB for one session");
}

#[test]
fn a_session_that_falls_silent_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start_args(dir.path(), &["--idle-time", "600ms"]);
    let since = Instant::now();
    let (mut alive, mut silent, mut dribble) =
        (broker.guest("alive"), broker.guest("silent"), broker.guest("dribble"));
    let mut bytes = frame(format!("{:200}", r#"{"type":"heartbeat"}"#)).into_iter();
    while since.elapsed() < Duration::from_millis(1500) {
        assert_eq!(alive.ask(r#"{"type":"heartbeat"}"#)["status"], "ok");
        // Bytes that are no frame yet are no sign of life.
        let _ = dribble.stream.get_mut().write_all(&[bytes.next().unwrap()]);
        std::thread::sleep(Duration::from_millis(50));
    }
    for (guest, vm) in [(&mut silent, "silent"), (&mut dribble, "dribble")] {
        assert_eq!(
            guest.receive(),
            Some(json!({"type":"close","reason":"heartbeat-timeout","retry_after_ms":0})),
            "{vm}"
        );
        let events =
            eventually("the record", || Some(events_of(dir.path(), vm)).filter(|all| !all.is_empty()));
        assert_eq!(
            (&events[0]["reason"], &events[0]["action"]),
            (&json!("heartbeat-timeout"), &json!("disconnect"))
        );
    }
    assert_eq!(alive.ask(r#"{"type":"publish"}"#)["seq"], 1);
    assert!(events_of(dir.path(), "alive").is_empty());
}

#[test]
fn a_vm_has_at_most_64_sessions() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    const HELLO: &str = "hello vm:dev capabilities=bus-v1\n";
    let mut sessions: Vec<Guest> = (0..64).map(|_| broker.guest("dev")).collect();
    assert_eq!(broker.greet(HELLO).1, "error: too-many-sessions-of-this-vm");
    assert_eq!(broker.guest("other").ask(r#"{"type":"heartbeat"}"#)["status"], "ok");
    assert_eq!(sessions[63].ask(r#"{"type":"publish"}"#)["status"], "ok");
    let refused = eventually("the record", || {
        records(dir.path(), "handshake-events")
            .into_iter()
            .find(|r| r["reason"] == "too-many-sessions-of-this-vm")
    });
    assert_eq!((&refused["session_outcome"], &refused["vm"]), (&json!("denied"), &json!("dev")));
    sessions.pop();
    eventually("a place", || broker.greet(HELLO).1.starts_with("ok session=").then_some(()));
}
