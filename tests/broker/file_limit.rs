//! What `ulimit` bounds: an error with a sentence and an exit code, never the end by a signal.

use crate::support::{Broker, castra, eventually, skip};
use nix::sys::signal::Signal;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

/// `castra`, which may write files of so many bytes.
fn limited(bytes: u64) -> Command {
    let mut command = castra();
    let castra = std::mem::replace(&mut command, Command::new("prlimit"));
    for (name, value) in castra.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.arg(format!("--fsize={bytes}")).arg(castra.get_program());
    command
}

fn is_there(test: &str) -> bool {
    let is_there = Command::new("prlimit").arg("--version").output().is_ok();
    if !is_there {
        skip(test, "prlimit is not installed");
    }
    is_there
}

#[test]
fn a_broker_that_may_not_write_its_files_says_so() {
    if !is_there("a_broker_that_may_not_write_its_files_says_so") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    for bytes in [0, 1, 4096, 100_000, 2 << 20, (64 << 20) - 1] {
        let (code, said) = Broker::try_start(&root, limited(bytes), &[]).err().expect("no start");
        assert_eq!(code, Some(73), "{bytes}: {said}");
        assert!(said.contains("RLIMIT_FSIZE") && said.contains("ulimit -f"), "{bytes}: {said}");
        assert!(!root.exists(), "{bytes}");
    }
    let broker = Broker::start_with(&root, limited(64 << 20), &[]);
    assert_eq!(broker.guest("dev").ask(r#"{"type":"publish"}"#)["seq"], 1);
    assert_eq!(broker.stop().0, Some(0));
}

#[test]
fn a_bound_that_comes_later_refuses_and_passes() {
    if !is_there("a_bound_that_comes_later_refuses_and_passes") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("castra.toml");
    let text = "[limits]\nsegment_bytes = \"1MiB\"\n[[topics]]\ntopic = \"t.>\"\ncompaction = true\n";
    std::fs::write(&config, text).unwrap();
    let root = dir.path().join("state");
    let mut command = castra();
    command.env("CASTRA_CONFIG", &config);
    let broker = Broker::start_with(&root, command, &[]);
    let bound = |bytes: &str| {
        let pid = broker.pid().to_string();
        let set = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}:")]).status();
        assert!(set.unwrap().success());
    };
    let mut guest = broker.guest("dev");
    let body = "x".repeat(30_000);
    let mut publish = |n: u64| {
        guest.ask(format!(r#"{{"type":"publish","id":"{n}","topic":"t.a","key":"k{n}","payload":"{body}"}}"#))
    };
    assert_eq!(publish(0)["status"], "ok");
    for bytes in ["0", "40960", "524288"] {
        bound(bytes);
        let refused = (1..200).map(&mut publish).find(|answer| answer["status"] != "ok").expect("a refusal");
        assert_eq!(refused["code"], "disk-full", "{bytes}: {refused}");
        assert_eq!(broker.status()["broker"]["pid"], broker.pid(), "{bytes}");
        bound("unlimited");
        eventually("room again", || (publish(1000)["status"] == "ok").then_some(()));
    }
    // What was not written meanwhile is made up for.
    let stored = eventually("the logs", || {
        let sent = broker.run(&["bus", "publish", "t.b", "1"]);
        (sent.status.code() == Some(0)).then_some(sent)
    });
    assert!(stored.stderr.is_empty(), "{stored:?}");
    eventually("the newest of a key", || {
        broker.run(&["bus", "latest", "t.a", "k1000"]).status.success().then_some(())
    });
    assert_eq!(broker.stop().0, Some(0));
    let checked = castra().arg("--state-root").arg(&root).arg("verify").output().unwrap();
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// Runs it with its output in a file; its exit code and what it said.
fn into_file(mut command: Command, file: &Path) -> (Option<i32>, String) {
    let output = command.stdout(File::create(file).unwrap()).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn commands_say_that_their_output_has_no_room() {
    if !is_there("commands_say_that_their_output_has_no_room") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&dir.path().join("state"));
    let body = format!("{:?}", "x".repeat(10_000));
    (0..3).for_each(|_| assert!(broker.run(&["bus", "publish", "t", &body]).status.success()));
    let out = dir.path().join("out");
    for args in [
        &["bus", "tail", "-n", "3"][..],
        &["bus", "subscribe", "t", "--from", "earliest", "-c", "3"],
        &["bus", "subscribe", "t", "--from", "earliest", "--group", "g"],
        &["status", "--json"],
        &["completions", "bash"],
    ] {
        for bytes in [0, 100] {
            let mut command = limited(bytes);
            command.arg("--state-root").arg(&broker.root).args(args);
            let (code, said) = into_file(command, &out);
            assert_eq!(code, Some(74), "{args:?} {bytes}: {said}");
            assert!(said.contains("ulimit -f"), "{args:?} {bytes}: {said}");
        }
    }
    let mut backup = limited(20_000);
    backup.arg("--state-root").arg(&broker.root).arg("backup").arg(dir.path().join("backup"));
    let (code, said) = into_file(backup, &out);
    assert_eq!(code, Some(74), "{said}");
    assert!(said.contains("ulimit -f"), "{said}");
    assert_eq!(broker.stop().0, Some(0));
}

#[test]
fn an_end_of_processor_time_is_an_orderly_end() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    broker.guest("dev").ask(r#"{"type":"publish"}"#);
    broker.signal(Signal::SIGXCPU);
    let (code, said) = broker.wait();
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("RLIMIT_CPU") && said.contains("ulimit -t"), "{said}");
    assert_eq!(Broker::start(dir.path()).guest("dev").ask(r#"{"type":"publish"}"#)["seq"], 2);
}
