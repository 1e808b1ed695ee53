//! `castra bus tail -f`: when it ends, what it says of the VM, and that it sleeps while nothing comes.

use crate::support::{Broker, castra, eventually};
use crate::tail::{Follow, publish, tail};
use crate::tail_range::{line, write_log};
use castra::core::rotation::rotate;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

fn append(path: &Path, seqs: impl IntoIterator<Item = u64>) {
    let text: String = seqs.into_iter().map(|seq| line(seq, "a", "t")).collect();
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// The lines of a child's stderr.
fn said(follow: &mut Follow) -> Receiver<String> {
    let stderr = BufReader::new(follow.child.stderr.take().unwrap());
    let (send, lines) = channel();
    std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    lines
}

fn command(root: &Path, args: &[&str]) -> Command {
    let mut command = castra();
    command.arg("--state-root").arg(root).args(["bus", "tail", "-f", "-o", "raw"]).args(args);
    command.stderr(Stdio::piped());
    command
}

fn stop(follow: &Follow, signal: Signal) {
    kill(Pid::from_raw(follow.child.id() as i32), signal).unwrap();
}

#[test]
fn it_ends_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    publish(&mut guest, 1);
    let logged = |n| eventually("its line", || (broker.log("bus").len() == n).then_some(()));
    logged(1);
    let run = |args: &[&str]| {
        let output = tail(dir.path(), &[&["-f", "-q", "-o", "raw"], args].concat());
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let mut counted = Follow::run(command(dir.path(), &["-n", "0", "-c", "2"]));
    let mut until = Follow::run(command(dir.path(), &["-n", "0", "--until", "@3"]));
    // Of a VM that has no events up to there: the broker says how far the logs are.
    let mut host = Follow::run(command(dir.path(), &["--vm", "host", "--until", "@3"]));
    for follow in [&mut counted, &mut until, &mut host] {
        // By then it has seen where the log ends.
        said(follow).recv_timeout(crate::support::PATIENCE).unwrap();
    }
    (2..=4).for_each(|n| publish(&mut guest, n));
    logged(4);
    for (mut follow, printed, code) in [(counted, &[2, 3][..], 0), (until, &[2, 3], 0), (host, &[], 1)] {
        follow.expect(printed.iter().copied());
        assert_eq!(eventually("its end", || follow.child.try_wait().unwrap()).code(), Some(code));
        assert!(follow.lines.recv().is_err(), "and no more");
    }

    // Time runs out, whether something was printed or not.
    let since = Instant::now();
    let (exit, stdout, stderr) = run(&["-n", "1", "--timeout", "300ms"]);
    assert_eq!((exit, stdout.as_str()), (Some(124), "4\n"));
    assert_eq!(stderr, "castra: time ran out after 300ms, 1 events were printed\n");
    assert!(since.elapsed() >= Duration::from_millis(300));
    assert_eq!(run(&["-n", "0", "--timeout", "10ms", "-c", "1"]).0, Some(124));
    assert_eq!(run(&["-n", "2", "--timeout", "20s", "-c", "2"]), (Some(0), "3\n4\n".into(), String::new()));
    // A time that has passed.
    assert_eq!(run(&["-n", "1", "--until", "0s"]), (Some(0), "4\n".into(), String::new()));
    assert_eq!(run(&["--until", "1h"]).0, Some(1));
    assert_eq!(run(&["--since", "@2", "--until", "@3"]), (Some(0), "2\n3\n".into(), String::new()));
}

#[test]
fn several_rotations_between_two_looks() {
    let dir = tempfile::tempdir().unwrap();
    write_log(dir.path(), "bus.log", &line(1, "a", "t"));
    let path = dir.path().join("logs/bus/bus.log");
    let mut follow = Follow::run(command(dir.path(), &["-q"]));
    let stderr = said(&mut follow);
    follow.expect([1]);
    stop(&follow, Signal::SIGSTOP);
    for n in 1..=4 {
        append(&path, 10 * n..10 * n + 10);
        rotate(&path).unwrap();
    }
    append(&path, 50..60);
    stop(&follow, Signal::SIGCONT);
    follow.expect(10..60);
    let gap = "castra: events 2 to 9 are not in the log any more; they were rotated away, or are lost";
    assert_eq!(stderr.recv_timeout(crate::support::PATIENCE).unwrap(), gap);
    // More than are kept: what is left of it, and which are gone.
    stop(&follow, Signal::SIGSTOP);
    for n in 6..=12 {
        rotate(&path).unwrap();
        append(&path, 10 * n..10 * n + 10);
    }
    stop(&follow, Signal::SIGCONT);
    follow.expect(80..130);
    let gap = "castra: events 60 to 79 are not in the log any more; they were rotated away, or are lost";
    assert_eq!(stderr.recv_timeout(crate::support::PATIENCE).unwrap(), gap);
}

#[test]
fn a_state_root_that_is_removed_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let follow = Follow::run(command(&root, &["-q"]));
    for n in [3, 2, 4] {
        let broker = Broker::start(&root);
        let mut guest = broker.guest("dev");
        (1..=n).for_each(|n| publish(&mut guest, n));
        follow.expect(1..=n);
        broker.kill();
        std::fs::remove_dir_all(&root).unwrap();
    }
}

#[test]
fn it_says_how_the_vm_stands_and_when_that_changes() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = Follow::run(command(dir.path(), &[]));
    let mut dev = Follow::run(command(dir.path(), &["--vm", "dev"]));
    let (all, dev) = (said(&mut all), said(&mut dev));
    let next = |lines: &Receiver<String>| lines.recv_timeout(crate::support::PATIENCE).unwrap();
    let until = |lines: &Receiver<String>, want: &str| while !next(lines).contains(want) {};
    assert_eq!(next(&all), "castra: broker offline, 0 of 0 VMs reachable");
    let unknown = "castra: dev: not known to the broker (broker offline); 'castra status' lists the VMs";
    assert_eq!(next(&dev), unknown);
    let broker = Broker::start(dir.path());
    until(&all, "broker running, 0 of 0 VMs reachable");
    let mut guest = broker.guest("dev");
    until(&all, "broker running, 1 of 1 VMs reachable");
    until(&dev, "dev: reachable, 1 session, subscribed to nothing, never published");
    let second = broker.guest("dev");
    until(&dev, "dev: reachable, 2 sessions, subscribed to nothing");
    publish(&mut guest, 1);
    drop((guest, second));
    until(&dev, "dev: reachable, 0 sessions, subscribed to nothing, last publish ");
    broker.signal(Signal::SIGSTOP);
    until(&dev, "dev: not reachable (broker unresponsive), 0 sessions");
    until(&all, "broker unresponsive, 0 of 1 VMs reachable");
    broker.signal(Signal::SIGCONT);
    until(&all, "broker running, 1 of 1 VMs reachable");
    broker.kill();
    until(&all, "broker offline, 0 of 1 VMs reachable");
    // Without -f it says so once; and a status that cannot be read is no reason to fail.
    std::fs::write(dir.path().join("status"), "?").unwrap();
    let output = tail(dir.path(), &["--vm", "dev", "-o", "raw"]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"1\n"[..]));
    assert!(
        String::from_utf8(output.stderr).unwrap().starts_with("castra: how the broker is cannot be seen (")
    );
}

fn strace(root: &Path, options: &[&str], args: &[&str]) -> Option<Follow> {
    if Command::new("strace").arg("-V").output().is_err() {
        println!("skipped: strace is not installed");
        return None;
    }
    let mut command = Command::new("strace");
    command.args(options).arg(env!("CARGO_BIN_EXE_castra")).env("TZ", "UTC");
    command.arg("--state-root").arg(root).args(["bus", "tail", "-f", "-q", "-o", "raw"]).args(args);
    Some(Follow::run(command))
}

#[test]
fn it_sleeps_while_nothing_comes_and_what_others_publish_wakes_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut dev, mut other) = (broker.guest("dev"), broker.guest("other"));
    publish(&mut dev, 1);
    publish(&mut other, 1);
    let trace = dir.path().join("trace");
    let options = ["-o", trace.to_str().unwrap(), "-e", "trace=poll,pread64,read"];
    let Some(follow) = strace(dir.path(), &options, &["--vm", "dev"]) else { return };
    follow.expect([1]);
    let since = Instant::now();
    let calls = || std::fs::read_to_string(&trace).unwrap().lines().count();
    let before = calls();
    while since.elapsed() < Duration::from_secs(3) {
        publish(&mut other, 2);
        std::thread::sleep(Duration::from_millis(20));
    }
    let (made, seconds) = (calls() - before, since.elapsed().as_secs() as usize);
    // A look a second is a handful of calls; a log that is polled, or that everybody wakes, hundreds.
    assert!(made <= 10 * (seconds + 2), "{made} calls in {seconds} s");
    publish(&mut dev, 3);
    follow.expect([3]);
}

#[test]
fn without_inotify_it_looks_now_and_then() {
    let dir = tempfile::tempdir().unwrap();
    let options = ["-o", "/dev/null", "-e", "trace=inotify_init1", "-e", "inject=inotify_init1:error=EMFILE"];
    let Some(follow) = strace(&dir.path().join("root"), &options, &[]) else { return };
    let broker = Broker::start(&dir.path().join("root"));
    let mut guest = broker.guest("dev");
    for n in 1..=3 {
        publish(&mut guest, n);
        follow.expect([n]);
    }
    rotate(&dir.path().join("root/logs/bus/bus.log")).unwrap();
    drop(guest);
    assert_eq!(broker.stop().0, Some(0));
    let broker = Broker::start(&dir.path().join("root"));
    publish(&mut broker.guest("dev"), 4);
    follow.expect([4]);
}
