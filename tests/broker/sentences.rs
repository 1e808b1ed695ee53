//! What every command says of the same mistake: alike, helpful, with the same exit code.

use crate::support::{Broker, castra, eventually};
use serde_json::Value;
use std::path::Path;
use std::process::{Output, Stdio};

fn run(root: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = castra();
    let output: Output =
        command.arg("--state-root").arg(root).args(args).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The commands that look at a state root.
const COMMANDS: [&[&str]; 9] = [
    &["status"],
    &["vm", "forget", "web"],
    &["bus", "publish", "t"],
    &["bus", "tail"],
    &["logs"],
    &["verify"],
    &["verify", "--repair-logs"],
    &["backup", "copy"],
    &["bench", "publish"],
];

#[test]
fn a_state_root_that_is_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for args in COMMANDS {
        let (code, out, err) = run(&file, args);
        assert_eq!((code, out.as_str()), (Some(65), ""), "{args:?} {err}");
        assert!(err.contains("not a folder; --state-root must name"), "{args:?} {err}");
    }
    assert_eq!(run(&file, &["broker", "--no-tcp"]).0, Some(73));
}

#[test]
fn a_stdout_that_cannot_be_written_is_not_the_brokers_disk() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    assert_eq!(run(dir.path(), &["bus", "publish", "t", "1"]).0, Some(0));
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["bus", "tail", "-q"],
        &["logs"],
        &["verify"],
        &["vm", "forget", "x"],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = castra();
        let output = command.arg("--state-root").arg(dir.path()).args(args).stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        if args[0] == "vm" {
            assert_eq!(output.status.code(), Some(1), "nothing is printed: {said}");
        } else {
            assert_eq!(output.status.code(), Some(74), "{args:?} {said}");
            assert!(said.contains("stdout cannot be written: No space left"), "{args:?} {said}");
        }
    }
    drop(broker);
}

#[test]
fn usage_is_an_object_for_those_who_asked_for_objects() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["status", "--json", "--nope"][..],
        &["bus", "publish", "t", "--json", "--timeout", "5"],
        &["vm", "forget", "--json"],
    ] {
        let (code, out, err) = run(dir.path(), args);
        let object: Value = serde_json::from_str(&err).expect(&err);
        assert_eq!((code, out.as_str(), &object["code"]), (Some(2), "", &Value::from("usage")), "{args:?}");
        assert_eq!((&object["schema"], &object["exit"]), (&Value::from(1), &Value::from(2)));
    }
    let (code, out, err) = run(dir.path(), &["status", "--nope"]);
    assert!(code == Some(2) && out.is_empty() && err.starts_with("error: unexpected argument"), "{err}");
    let (code, out, err) = run(dir.path(), &["status", "--json", "--help"]);
    assert!(code == Some(0) && out.contains("Examples:") && err.is_empty(), "{err}");
}

#[test]
fn variables_that_are_set_to_nothing_are_not_set() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = castra();
    command.env("CASTRA_STATE_ROOT", "").env("CASTRA_CONFIG", "").env("XDG_STATE_HOME", dir.path());
    let output = command.env("XDG_CONFIG_HOME", dir.path()).args(["status"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains(&format!("no broker runs in {}", dir.path().join("castra").display())), "{said}");
}

#[test]
fn a_broker_whose_socket_is_gone_is_not_to_be_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    std::fs::remove_file(dir.path().join("castra.sock")).unwrap();
    for args in [&["bus", "publish", "t"][..], &["vm", "forget", "web"]] {
        let (code, _, err) = run(dir.path(), args);
        assert!(code == Some(69) && err.contains("a broker runs in") && !err.contains("start one"), "{err}");
    }
    drop(broker);
    eventually("its end", || {
        run(dir.path(), &["bus", "publish", "t"]).2.contains("start one with").then_some(())
    });
}

#[test]
fn a_vm_is_named_alike_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    broker.guest("web").ask(r#"{"type":"publish","payload":"hi"}"#);
    eventually("its line", || dir.path().join("logs/bus/web.log").exists().then_some(()));
    for name in ["web", "vm:web"] {
        eventually(name, || run(dir.path(), &["status", "-q", "--vm", name]).0.filter(|code| *code == 0));
        let (code, out, _) = run(dir.path(), &["bus", "tail", "-o", "raw", "--vm", name]);
        assert_eq!((code, out.as_str()), (Some(0), "\"hi\"\n"));
    }
    for args in [&["status", "--vm", "a/b"][..], &["bus", "tail", "--vm", "a/b"], &["vm", "forget", "a/b"]] {
        let (code, _, err) = run(dir.path(), args);
        assert!(code == Some(65) && err.contains("\"a/b\" is no VM's name"), "{args:?} {err}");
    }
    eventually("its end", || run(dir.path(), &["vm", "forget", "vm:web"]).0.filter(|code| *code == 0));
}

#[test]
fn what_was_not_asked_for_is_not_missing() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    for n in ["1", "2", "3", "4"] {
        assert_eq!(run(dir.path(), &["bus", "publish", "t", n]).0, Some(0));
    }
    let (code, out, err) = run(dir.path(), &["bus", "tail", "--since", "@1", "-n", "1", "-o", "raw"]);
    assert_eq!((code, out.as_str()), (Some(0), "4\n"));
    assert!(!err.contains("not in the log"), "{err}");
    drop(broker);
}

/// Whoever reads a log that has stopped is told where it did, and why.
#[test]
fn a_tail_says_that_the_logs_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("web");
    guest.ask(r#"{"type":"publish"}"#);
    let log = dir.path().join("logs/bus/bus.log");
    eventually("the first line", || (broker.status()["broker"]["journal"]["logs_seq"] == 1).then_some(()));
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    guest.ask(r#"{"type":"publish"}"#);
    eventually("stalled logs", || broker.status()["broker"]["logs_stalled"].as_str().map(drop));
    let (_, _, err) = run(dir.path(), &["bus", "tail", "--vm", "web"]);
    assert!(err.contains("web: reachable") && err.contains("; the logs end at 1 of 2: "), "{err}");
}

/// A start that fails leaves what the broker before it said.
#[test]
fn a_start_that_fails_takes_nothing_from_status() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    assert_eq!(run(dir.path(), &["bus", "publish", "t", "1"]).0, Some(0));
    assert_eq!(broker.stop().0, Some(0));
    let log = dir.path().join("logs/bus/bus.log");
    std::fs::rename(&log, dir.path().join("kept")).unwrap();
    std::fs::create_dir(&log).unwrap();
    assert!(Broker::try_start(dir.path(), castra(), &[]).is_err());
    let (code, out, _) = run(dir.path(), &["status"]);
    assert!(code == Some(1) && out.starts_with("broker offline · events 1..1"), "{out}");
}
