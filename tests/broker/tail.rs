//! `castra bus tail`: prints the logs, follows them, needs no broker.

use crate::support::{Broker, Guest, PATIENCE, castra};
use castra::core::rotation::rotate;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

pub fn tail(root: &Path, args: &[&str]) -> Output {
    castra().arg("--state-root").arg(root).args(["bus", "tail"]).args(args).output().unwrap()
}

/// stdout of a tail that must succeed.
pub fn printed(root: &Path, args: &[&str]) -> String {
    let output = tail(root, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn publish(guest: &mut Guest, n: u64) {
    assert_eq!(guest.ask(format!(r#"{{"type":"publish","topic":"t","payload":{n}}}"#))["status"], "ok");
}

/// A broker that ran and wrote 1..=n as `dev`, and one event to the mailbox of `web`.
pub fn logs_of(root: &Path, n: u64) {
    let broker = Broker::start(root);
    let mut guest = broker.guest("dev");
    broker.guest("web");
    (1..=n).for_each(|n| publish(&mut guest, n));
    guest.ask(r#"{"type":"publish","topic":"vm:web","payload":{"to": "web"}}"#);
    assert_eq!(broker.stop().0, Some(0));
}

/// `castra bus tail -f`.
pub struct Follow {
    pub child: Child,
    pub lines: Receiver<String>,
}

impl Follow {
    pub fn start(root: &Path, args: &[&str]) -> Self {
        let mut command = castra();
        command.arg("--state-root").arg(root).args(["bus", "tail", "-f"]).args(args);
        Self::run(command)
    }

    /// A command that prints lines.
    pub fn run(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Follow { child, lines }
    }

    pub fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    /// The next lines are these numbers' payloads.
    pub fn expect(&self, numbers: impl IntoIterator<Item = u64>) {
        for n in numbers {
            assert_eq!(self.line(), n.to_string());
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_prints_the_last_events_with_the_broker_down() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    logs_of(root, 30);
    let numbers = |range: std::ops::RangeInclusive<u64>| {
        range.fold(String::new(), |mut out, n| {
            writeln!(out, "{n}").unwrap();
            out
        })
    };
    let mailbox = "{\"to\": \"web\"}\n";
    assert_eq!(printed(root, &["-o", "raw"]), numbers(22..=30) + mailbox);
    assert_eq!(printed(root, &["-o", "raw", "--shared", "-n", "3"]), numbers(29..=30) + mailbox);
    assert_eq!(printed(root, &["-o", "raw", "-n", "1000"]), numbers(1..=30) + mailbox);
    assert_eq!(printed(root, &["-o", "raw", "--vm", "web"]), mailbox);
    assert_eq!(printed(root, &["-o", "raw", "--vm", "dev", "-n2"]), numbers(30..=30) + mailbox);

    let log = std::fs::read_to_string(root.join("logs/bus/bus.log")).unwrap();
    assert_eq!(printed(root, &["-o", "json", "-n", "1000"]), log);
    let text = printed(root, &["-n", "2"]);
    let event: Value = serde_json::from_str(log.lines().nth(29).unwrap()).unwrap();
    let first = text.lines().next().unwrap();
    let (time, rest) = first.split_once(' ').unwrap();
    assert_eq!(rest, "30 dev t 30");
    let time = humantime::parse_rfc3339(time).unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(time.as_millis() as u64, event["ts"].as_u64().unwrap());
    assert_eq!(text.lines().nth(1).unwrap().split_once(' ').unwrap().1, r#"31 dev vm:web {"to": "web"}"#);
}

#[test]
fn a_log_that_is_not_there_is_said() {
    let dir = tempfile::tempdir().unwrap();
    logs_of(dir.path(), 1);
    for (root, args) in [(dir.path(), &["--vm", "nobody"][..]), (&dir.path().join("none"), &[])] {
        let output = tail(root, args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty() && said.starts_with("castra: there is no log"), "{said}");
    }
    let output = tail(dir.path(), &["--vm", "../../etc/passwd"]);
    assert_eq!(output.status.code(), Some(65));
}

#[test]
fn whoever_closes_the_pipe_has_enough() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let payload = "x".repeat(30_000);
    for _ in 0..40 {
        guest.ask(format!(r#"{{"type":"publish","payload":"{payload}"}}"#));
    }
    assert_eq!(broker.stop().0, Some(0));
    for args in [&["-n", "40"][..], &["-n", "40", "-o", "json"], &["-n", "40", "-f"]] {
        let mut command = castra();
        command.arg("--state-root").arg(dir.path()).args(["bus", "tail", "-q"]).args(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.len() > 30_000);
        let status = crate::support::eventually("its end", || child.try_wait().unwrap());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((status.code(), said.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn half_a_line_at_the_end_is_not_printed() {
    let dir = tempfile::tempdir().unwrap();
    logs_of(dir.path(), 2);
    let path = dir.path().join("logs/bus/dev.log");
    let log = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{log}{{\"seq\":9,\"half")).unwrap();
    assert_eq!(printed(dir.path(), &["--vm", "dev", "-o", "json"]), log);
}

#[test]
fn it_follows_as_events_come_and_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    // Neither a state root nor a log is there yet.
    let follow = Follow::start(dir.path(), &["-o", "raw"]);
    let dev = Follow::start(dir.path(), &["-o", "raw", "--vm", "dev"]);
    let mut n = 0;
    for end in ["stop", "kill", "kill", "stop"] {
        let broker = Broker::start(dir.path());
        let (mut guest, mut other) = (broker.guest("dev"), broker.guest("other"));
        for _ in 0..5 {
            publish(&mut guest, n + 1);
            publish(&mut other, n + 2);
            follow.expect([n + 1, n + 2]);
            dev.expect([n + 1]);
            n += 2;
        }
        if end == "stop" {
            assert_eq!(broker.stop().0, Some(0));
        } else {
            broker.kill();
        }
    }
    let _broker = Broker::start(dir.path());
    for f in [&follow, &dev] {
        assert_eq!(f.lines.recv_timeout(Duration::from_millis(200)), Err(RecvTimeoutError::Timeout));
    }
}

#[test]
fn it_starts_with_the_lines_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    logs_of(dir.path(), 5);
    let follow = Follow::start(dir.path(), &["-o", "raw", "-n", "2"]);
    follow.expect([5]);
    assert_eq!(follow.line(), "{\"to\": \"web\"}");
    let none = Follow::start(dir.path(), &["-o", "raw", "-n", "0"]);
    // It has looked at the end of the log before there is more: a tail of the future says nothing of the past.
    assert_eq!(none.lines.recv_timeout(Duration::from_millis(300)), Err(RecvTimeoutError::Timeout));
    let broker = Broker::start(dir.path());
    publish(&mut broker.guest("dev"), 7);
    follow.expect([7]);
    none.expect([7]);
}

#[test]
fn it_follows_and_reads_back_across_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("logs/bus/bus.log");
    logs_of(dir.path(), 3);
    let follow = Follow::start(dir.path(), &["-o", "raw", "-n", "4"]);
    follow.expect([1, 2, 3]);
    follow.line();
    let mut n = 3;
    for files in 1..=6 {
        rotate(&path).unwrap();
        let broker = Broker::start(dir.path());
        let mut guest = broker.guest("dev");
        for _ in 0..3 {
            n += 1;
            publish(&mut guest, n);
        }
        follow.expect(n - 2..=n);
        assert_eq!(broker.stop().0, Some(0));
        let rotated = castra::core::log_files::files_of(&path);
        assert_eq!(rotated.len(), (files + 1).min(5), "{rotated:?}");
    }
    let back = printed(dir.path(), &["-o", "raw", "-n", "7"]);
    assert_eq!(
        back.lines().map(|l| l.parse().unwrap()).collect::<Vec<u64>>(),
        (n - 6..=n).collect::<Vec<u64>>()
    );
}

#[test]
fn a_full_log_is_rotated_under_a_tail_that_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    logs_of(dir.path(), 1);
    // As if much had been written before: lines of seq 0 up to a few events below the size of rotation.
    let path = dir.path().join("logs/bus/bus.log");
    let line = format!(
        "{{\"seq\":0,\"ts\":1,\"vm\":\"dev\",\"topic\":\"t\",\"payload\":\"{}\"}}\n",
        "x".repeat(60_000)
    );
    let mut bytes = line.repeat(64 * 1024 * 1024 / line.len());
    bytes.push_str(&std::fs::read_to_string(&path).unwrap());
    std::fs::write(&path, &bytes).unwrap();
    let broker = Broker::start(dir.path());
    let follow = Follow::start(dir.path(), &["-o", "raw", "-n", "1"]);
    assert_eq!(follow.line(), "{\"to\": \"web\"}");
    let mut guest = broker.guest("dev");
    // More than the room that is left, so that one of these is the first of a new file.
    for n in 0..2000 {
        publish(&mut guest, n);
    }
    follow.expect(0..2000);
    assert!(dir.path().join("logs/bus/bus.log.1").exists());
}

#[test]
fn a_log_that_was_cut_and_written_anew_is_not_told_twice() {
    let dir = tempfile::tempdir().unwrap();
    logs_of(dir.path(), 9);
    let path = dir.path().join("logs/bus/bus.log");
    let follow = Follow::start(dir.path(), &["-o", "raw", "-n", "10"]);
    follow.expect(1..=9);
    follow.line();
    // What a start after a crash does: the log is cut behind the checkpoint, and its lines come again.
    let log = std::fs::read_to_string(&path).unwrap();
    let cut: usize = log.lines().take(4).map(|l| l.len() + 1).sum();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(cut as u64).unwrap();
    // Long enough for the tail to have seen it so.
    assert_eq!(follow.lines.recv_timeout(Duration::from_millis(300)), Err(RecvTimeoutError::Timeout));
    std::fs::write(&path, &log).unwrap();
    let broker = Broker::start(dir.path());
    publish(&mut broker.guest("dev"), 100);
    follow.expect([100]);
}

#[test]
fn a_log_that_somebody_emptied_or_removed_is_followed_on() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let path = dir.path().join("logs/bus/bus.log");
    publish(&mut guest, 1);
    let follow = Follow::start(dir.path(), &["-o", "raw"]);
    follow.expect([1]);
    std::fs::remove_file(&path).unwrap();
    publish(&mut guest, 2);
    follow.expect([2]);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
    assert_eq!(follow.lines.recv_timeout(Duration::from_millis(200)), Err(RecvTimeoutError::Timeout));
    publish(&mut guest, 3);
    follow.expect([3]);
}
