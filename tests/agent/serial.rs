//! A serial line: a terminal of the kernel's, with a VMM of the test's own between it and a real broker. It lets go of
//! the broker in the middle of frames, and what comes meanwhile is gone.

use crate::program::Agent;
use crate::support::{Broker, castra, eventually};
use castra::core::wire::handshake::skip_to_hello;
use nix::pty::{OpenptyResult, openpty};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use serde_json::json;
use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Between a line and the broker's socket, as the serial door will be.
struct Vmm {
    /// The terminal that the agent opens.
    line: PathBuf,
    /// Kept, so that the line does not hang up while the agent is away.
    _slave: OwnedFd,
    /// The connection to the broker, to be cut.
    broker: Arc<Mutex<Option<(u64, UnixStream)>>>,
    /// Bytes of the agent's that were passed on.
    passed: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Vmm {
    fn start(socket: PathBuf) -> Self {
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        let mut settings = tcgetattr(&slave).unwrap();
        cfmakeraw(&mut settings);
        tcsetattr(&slave, SetArg::TCSANOW, &settings).unwrap();
        let line = nix::unistd::ttyname(&slave).unwrap();
        let vmm =
            Vmm { line, _slave: slave, broker: Arc::default(), passed: Arc::default(), over: Arc::default() };
        let (broker, passed, over) = (vmm.broker.clone(), vmm.passed.clone(), vmm.over.clone());
        let master = File::from(master);
        let to_line = master.try_clone().unwrap();
        std::thread::spawn(move || from_line(master, &broker, &passed));
        let broker = vmm.broker.clone();
        std::thread::spawn(move || {
            for nth in 1.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(stream) = UnixStream::connect(&socket) {
                    *broker.lock().unwrap() = Some((nth, stream.try_clone().unwrap()));
                    to(stream, &to_line);
                }
                *broker.lock().unwrap() = None;
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        vmm
    }

    /// Lets go of the broker.
    fn cut(&self) {
        if let Some((_, stream)) = self.broker.lock().unwrap().as_ref() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.cut();
    }
}

/// The agent's bytes to the broker of the moment: what comes before a hello is not for it.
fn from_line(mut line: File, broker: &Mutex<Option<(u64, UnixStream)>>, passed: &AtomicU64) {
    let (mut bytes, mut before, mut greeted) = ([0; 4096], Vec::new(), 0);
    while let Ok(n) = line.read(&mut bytes) {
        let guard = broker.lock().unwrap();
        let Some((this, mut stream)) = guard.as_ref().map(|(nth, stream)| (*nth, stream)) else {
            before.clear();
            continue;
        };
        if greeted != this {
            before.extend_from_slice(&bytes[..n]);
            let Some(hello) = skip_to_hello(&mut before) else { continue };
            greeted = this;
            let _ = stream.write_all(&[&hello[..], b"\n", &before[..]].concat());
            before.clear();
        } else if stream.write_all(&bytes[..n]).is_err() {
            continue;
        }
        passed.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// The broker's bytes to the line, until it ends.
fn to(mut stream: UnixStream, mut line: &File) {
    let mut bytes = [0; 1000];
    while let Ok(n) = stream.read(&mut bytes) {
        if n == 0 || line.write_all(&bytes[..n]).is_err() {
            return;
        }
    }
}

fn at(vmm: &Vmm) -> String {
    format!("serial:{}", vmm.line.display())
}

fn ids(broker: &Broker) -> Vec<String> {
    if !broker.root.join("logs/bus/web.log").exists() {
        return Vec::new();
    }
    broker.log("web").iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

fn sock(root: &Path) -> PathBuf {
    root.join("castra.sock")
}

#[test]
fn a_line_that_is_cut_in_the_middle_of_frames_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start(&root);
    let vmm = Vmm::start(sock(&root));
    let args = ["--heartbeat", "300ms", "--silence", "1s"];
    let agent = Agent::start(dir.path(), &at(&vmm), &args);
    agent.wait_for("connected to serial:/dev/pts/");
    let mut local = agent.program();
    let filler = "x".repeat(3000);
    for round in 0..4 {
        let passed = vmm.passed.load(Ordering::Relaxed);
        for n in 0..200 {
            let id = format!("{round}-{n}");
            local.publish(&json!({"topic": "t", "id": id, "payload": filler}).to_string());
            // Somewhere within a frame.
            if n == 50 {
                eventually("some bytes", || {
                    (vmm.passed.load(Ordering::Relaxed) > passed + 10_000).then_some(())
                });
                vmm.cut();
            }
        }
        let want = 200 * (round + 1);
        eventually(&format!("{want} events"), || {
            (ids(&broker).iter().collect::<HashSet<_>>().len() >= want).then_some(())
        });
    }
    agent.drained();
    let want: Vec<String> = (0..4).flat_map(|round| (0..200).map(move |n| format!("{round}-{n}"))).collect();
    assert_eq!(ids(&broker), want, "each once, in order");
}

#[test]
fn a_line_serves_one_agent_after_the_other_and_one_broker_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let vmm = Vmm::start(sock(&root));
    let out = dir.path().join("out");
    let exec = format!("echo $CASTRA_SEQ >> {}", out.display());
    let args = ["--heartbeat", "300ms", "--silence", "1s", "--subscribe", "a", "--exec", &exec];
    let agent = Agent::start(dir.path(), &at(&vmm), &args);
    let broker = Broker::start(&root);
    agent.wait_for("subscribed");
    agent.program().publish(r#"{"topic":"a","id":"1"}"#);
    agent.drained();
    // In the middle of whatever it says.
    agent.kill();
    let agent = Agent::start(dir.path(), &at(&vmm), &args);
    agent.wait_for("subscribed");
    agent.program().publish(r#"{"topic":"a","id":"2"}"#);
    agent.drained();
    // Told to end, it tells the broker, which has no other way to know.
    assert_eq!(agent.stop(), Some(0));
    eventually("no session", || (broker.status()["vms"][0]["sessions"] == 0).then_some(()));
    let agent = Agent::start(dir.path(), &at(&vmm), &args);
    agent.wait_for("subscribed");
    broker.kill();
    let broker = Broker::start(&root);
    agent.program().publish(r#"{"topic":"a","id":"3"}"#);
    agent.drained();
    // Logs are written a moment later.
    let all = eventually("three lines", || Some(ids(&broker)).filter(|all| all.len() >= 3));
    assert_eq!(all, ["1", "2", "3"]);
    let handled = eventually("three events", || {
        let text = std::fs::read_to_string(&out).unwrap_or_default();
        (text.lines().count() >= 3).then_some(text)
    });
    assert_eq!(handled, "1\n2\n3\n");
}

#[test]
fn a_port_that_is_not_there_is_looked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), "serial:org.castra.none", &[]);
    agent.wait_for("no virtio-serial port is called org.castra.none");
    let agent_two = castra().args(["agent", "--vm", "a", "--broker", "serial:"]).output().unwrap();
    assert_eq!(agent_two.status.code(), Some(2));
    assert_eq!(agent.stop(), Some(0));
}
