//! A reload never weakens by accident: what is no file with something in it, or opens without a word, is refused.

use crate::support::{Broker, broker_log, castra, eventually};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

const POLICY: &str = "broker.trust = \"known\"\n[[vms]]\nname = \"web\"\npublish = [\"x\"]\n";

fn answer(broker: &Broker, vm: &str) -> String {
    broker.greet(format!("hello vm:{vm} capabilities=bus-v1\n")).1
}

fn refused(root: &Path) -> usize {
    broker_log(root).iter().filter(|line| line.contains("castra.toml was not taken")).count()
}

/// Has it read, and waits until it is refused for `why`; the old policy holds.
fn is_refused(broker: &Broker, why: &str) {
    let before = refused(&broker.root);
    broker.signal(Signal::SIGHUP);
    eventually(why, || (refused(&broker.root) > before).then_some(()));
    let shown = eventually("the status", || {
        let shown = broker.status()["broker"]["reload_refused"].clone();
        shown["reason"].as_str().is_some_and(|reason| reason.contains(why)).then_some(shown)
    });
    assert!(shown["at"].as_str().unwrap().ends_with('Z'), "{shown}");
    let text = String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    assert!(text.contains("was refused, the old settings are in force"), "{text}");
    assert_eq!(answer(broker, "stranger"), "error: unknown-vm", "{why}");
    assert!(answer(broker, "web").starts_with("ok session="), "{why}");
}

#[test]
fn what_is_no_file_with_something_in_it_is_refused_and_a_later_good_one_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (root, file) = (dir.path().join("state"), dir.path().join("c.toml"));
    std::fs::write(&file, POLICY).unwrap();
    let mut command = castra();
    command.env("CASTRA_CONFIG", &file);
    let broker = Broker::start_with(&root, command, &[]);
    std::fs::write(&file, "").unwrap();
    is_refused(&broker, "it is empty");
    let check = castra().args(["config", "check"]).arg(&file).output().unwrap();
    assert!(String::from_utf8(check.stderr).unwrap().contains("it is empty: a broker that runs refuses"));
    std::fs::remove_file(&file).unwrap();
    is_refused(&broker, "No such file");
    nix::unistd::mkfifo(&file, Mode::S_IRWXU).unwrap();
    is_refused(&broker, "it is no regular file");
    // Nobody has the other end open: the answer comes all the same.
    let check = castra().args(["config", "check"]).arg(&file).output().unwrap();
    assert_eq!(check.status.code(), Some(78));
    assert!(String::from_utf8(check.stderr).unwrap().contains("nobody wrote anything into it"));
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    is_refused(&broker, "it is no regular file");
    std::fs::remove_dir(&file).unwrap();
    std::os::unix::fs::symlink("/dev/null", &file).unwrap();
    is_refused(&broker, "it is no regular file");
    std::fs::remove_file(&file).unwrap();
    // Neither lowers trust nor drops all VMs by what is merely not there.
    std::fs::write(&file, "[[vms]]\nname = \"web\"\n").unwrap();
    is_refused(&broker, "write trust = \"open\" to lower it");
    std::fs::write(&file, "broker.trust = \"known\"\n").unwrap();
    is_refused(&broker, "write vms = [] to drop them all");
    // What says so is taken.
    std::fs::write(&file, "vms = []\nbroker.trust = \"open\"\n").unwrap();
    broker.signal(Signal::SIGHUP);
    eventually("an open door", || answer(&broker, "stranger").starts_with("ok session=").then_some(()));
    eventually("the status", || broker.status()["broker"]["reload_refused"].is_null().then_some(()));
    assert_eq!(broker.stop().0, Some(0));
}

#[test]
fn a_pipe_is_read_at_the_start_and_refused_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let (out, mut into) = std::io::pipe().unwrap();
    into.write_all(POLICY.as_bytes()).unwrap();
    drop(into);
    let mut command = castra();
    command.env("CASTRA_CONFIG", "/dev/stdin");
    command.args(["broker", "--tcp", "127.0.0.1:0", "--state-root"]).arg(dir.path().join("state"));
    let mut child = command.stdin(out).stderr(Stdio::null()).spawn().unwrap();
    let root = dir.path().join("state");
    let log =
        |words: &str| eventually(words, || broker_log(&root).into_iter().find(|line| line.contains(words)));
    log("a broker that runs refuses to reload it (SIGHUP)");
    log("broker: running");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGHUP).unwrap();
    log("it is no regular file (a pipe cannot be read twice)");
    child.kill().unwrap();
    child.wait().unwrap();
}
