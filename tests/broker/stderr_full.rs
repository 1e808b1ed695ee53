//! Whoever has the other end of stderr stops reading: the bus goes on, and says what it could not say.

use crate::support::unread::Unread;
use crate::support::{Broker, Guest, PATIENCE, broker_log, castra, eventually};
use nix::sys::signal::Signal;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// A broker that many can make warn: its castra.toml is wrong from now on.
fn broker(dir: &Path) -> (Unread, PathBuf, String) {
    let (root, config) = (dir.join("state"), dir.join("castra.toml"));
    // An empty one would be warned of before the line that is read below.
    std::fs::write(&config, "[limits]\n").unwrap();
    let mut command = castra();
    command.arg("--config").arg(&config).arg("broker").arg("--state-root").arg(&root);
    let mut broker = Unread::start(command.args(["--tcp", "127.0.0.1:0"]));
    let mut line = String::new();
    broker.out.read_line(&mut line).unwrap();
    let addr = line.split("tcp:").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let wrong: String = (0..2000).map(|n| format!("no_such_setting_{n:0>60} = {n}\n")).collect();
    std::fs::write(config, wrong).unwrap();
    broker.fill();
    (broker, root, addr)
}

fn guest(addr: &str, vm: &str) -> Guest {
    let mut guest = Guest::connect(addr);
    guest.stream.get_mut().write_all(format!("hello vm:{vm} capabilities=bus-v1\n").as_bytes()).unwrap();
    assert!(guest.line().starts_with("ok session="));
    guest
}

fn status(root: &Path) -> serde_json::Value {
    let shown = castra().arg("--state-root").arg(root).args(["status", "--json"]).output().unwrap();
    serde_json::from_slice(&shown.stdout).unwrap()
}

#[test]
fn the_bus_goes_on_and_ends_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, root, addr) = broker(dir.path());
    // Each group warns of an event that expired, in a task of its own: more than there are workers.
    let mut bad = guest(&addr, "bad");
    let groups = 4 * std::thread::available_parallelism().unwrap().get();
    for n in 0..groups {
        bad.ask(format!(
            r#"{{"v":1,"type":"group_create","id":"{n}","group":"g{n}","topic":"e","from":"earliest"}}"#
        ));
    }
    bad.ask(r#"{"v":1,"type":"publish","id":"p","topic":"e","payload":1,"ttl_ms":1}"#);
    for n in 0..groups {
        bad.send(format!(r#"{{"v":1,"type":"subscribe","id":"s{n}","topic":"e","group":"g{n}"}}"#));
    }
    let warned = |root: &Path| broker_log(root).iter().filter(|line| line.contains("WARN")).count();
    eventually("a warning of each", || (warned(&root) >= groups).then_some(()));
    let mut good = guest(&addr, "good");
    let stored = good.ask(r#"{"v":1,"type":"publish","id":"1","topic":"t","payload":1}"#);
    assert_eq!(stored["status"], "ok", "{stored}");
    let since = Instant::now();
    assert_eq!(broker.end(), Some(0));
    assert!(since.elapsed() < PATIENCE / 2, "{:?}", since.elapsed());
}

#[test]
fn what_found_no_room_is_counted_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let (mut broker, root, _) = broker(dir.path());
    let dropped = |root: &Path| status(root)["broker"]["counters"]["stderr_dropped"].as_u64();
    eventually("lines that are dropped", || {
        broker.signal(Signal::SIGHUP);
        (dropped(&root)? > 0).then_some(())
    });
    eventually("that it is logged", || {
        broker_log(&root).iter().any(|line| line.contains("stderr: nobody reads it")).then_some(())
    });
    let shown = castra().arg("--state-root").arg(&root).arg("status").output().unwrap();
    assert!(String::from_utf8(shown.stdout).unwrap().contains("log lines were dropped from stderr"));
    let mut line = Vec::new();
    let lost = loop {
        line.clear();
        assert!(broker.out.read_until(b'\n', &mut line).unwrap() > 0);
        let text = String::from_utf8(line.clone()).unwrap();
        if let Some((_, lost)) = text.split_once("lines dropped here: ") {
            break lost.trim().parse::<u64>().unwrap();
        }
    };
    assert!(lost > 0);
    eventually("that it is read again", || {
        broker_log(&root).iter().any(|line| line.contains("stderr: it is read again")).then_some(())
    });
    assert_eq!(broker.end(), Some(0));
}

#[test]
fn a_broker_that_cannot_say_why_it_failed_ends_with_its_code() {
    let dir = tempfile::tempdir().unwrap();
    let first = Broker::start(&dir.path().join("state"));
    let mut command = castra();
    command.arg("broker").arg("--state-root").arg(&first.root);
    let (out, kept) = std::io::pipe().unwrap();
    let mut filled = Unread { child: Command::new("true").spawn().unwrap(), out: BufReader::new(out), kept };
    filled.child.wait().unwrap();
    filled.fill();
    let mut second = command.stderr(filled.kept.try_clone().unwrap()).spawn().unwrap();
    let code = eventually("the end", || second.try_wait().unwrap()).code();
    assert_eq!(code, Some(73));
}
