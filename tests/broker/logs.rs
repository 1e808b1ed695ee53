//! `castra logs`: prints the broker's own log, follows it, needs no broker.

use crate::support::{Broker, castra, eventually};
use crate::tail::Follow;
use castra::core::rotation::rotate;
use std::path::Path;
use std::process::{Command, Output};

fn logs(root: &Path, args: &[&str]) -> Command {
    let mut command = castra();
    command.arg("--state-root").arg(root).arg("logs").args(args);
    command
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn it_prints_the_last_lines_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let output = logs(dir.path(), &[]).output().unwrap();
    assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""));
    assert!(output.stderr.starts_with(b"castra: there is no log "));
    std::fs::create_dir(dir.path().join("logs")).unwrap();
    let path = dir.path().join("logs/broker.log");
    let line = |n: u64| format!("{{\"level\":\"info\",\"n\":{n}}}\n");
    std::fs::write(&path, (1..=8).map(line).collect::<String>()).unwrap();
    rotate(&path).unwrap();
    let torn = (9..=12).map(line).collect::<String>() + "torn";
    std::fs::write(&path, torn).unwrap();
    let shown = |args: &[&str]| {
        let output = logs(dir.path(), args).output().unwrap();
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
        stdout(&output).to_owned()
    };
    let text = |n: &[u64]| n.iter().copied().map(line).collect::<String>();
    assert_eq!(shown(&[]), text(&[3, 4, 5, 6, 7, 8, 9, 10, 11, 12]));
    assert_eq!(shown(&["-n", "2"]), text(&[11, 12]));
    assert_eq!(shown(&["-n", "3", "--grep", ":[28]}"]), text(&[2, 8]));
    assert_eq!(logs(dir.path(), &["--grep", "nothing"]).output().unwrap().status.code(), Some(1));
    assert_eq!(logs(dir.path(), &["--grep", "("]).output().unwrap().status.code(), Some(65));
    assert_eq!(logs(&path, &[]).output().unwrap().status.code(), Some(65));
}

#[test]
fn it_follows_over_restarts_and_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let follow = Follow::run(logs(dir.path(), &["-f", "--grep", "broker: draining|handshake"]));
    for vm in ["one", "two", "three"] {
        let broker = Broker::start(dir.path());
        broker.guest(vm);
        assert!(follow.line().contains(&format!("vm=\"{vm}\"")));
        assert_eq!(broker.stop().0, Some(0));
        assert!(follow.line().contains("draining"));
        rotate(&dir.path().join("logs/broker.log")).unwrap();
    }
}

#[test]
fn whoever_stops_reading_ends_it_though_nothing_comes() {
    let dir = tempfile::tempdir().unwrap();
    for command in [&["logs", "-f"][..], &["bus", "tail", "-f", "-q"]] {
        let mut follow = castra();
        follow.arg("--state-root").arg(dir.path()).args(command);
        let mut child = follow.stdout(std::process::Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(eventually("its end", || child.try_wait().unwrap()).code(), Some(0));
    }
}

/// As logrotate does with `create`: the new file is there before the broker opens it.
#[test]
fn it_follows_to_a_log_that_somebody_else_rotated_and_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let log = dir.path().join("logs/broker.log");
    eventually("the log", || log.exists().then_some(()));
    let follow = Follow::run(logs(dir.path(), &["-f", "--grep", "handshake"]));
    let hello = |vm: &str| {
        broker.guest(vm);
        assert!(follow.line().contains(&format!("vm=\"{vm}\"")));
    };
    hello("one");
    std::fs::rename(&log, dir.path().join("logs/broker.log.1")).unwrap();
    std::fs::write(&log, "").unwrap();
    // Still in the old file; after each of these it looks for the next one.
    ["two", "three", "four"].iter().for_each(|vm| hello(vm));
    broker.signal(nix::sys::signal::Signal::SIGUSR1);
    for n in 0..1000 {
        hello(&format!("vm-{n}"));
        if std::fs::metadata(&log).unwrap().len() > 0 {
            break;
        }
    }
    hello("five");
    assert!(std::fs::read_to_string(&log).unwrap().contains("vm=\"five\""));
}
