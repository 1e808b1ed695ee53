//! README.md and docs/OPERATIONS.md: their commands and the guest are run against a real broker.

use crate::markdown::{blocks, read, root};
use crate::session;
use crate::support::{Broker, eventually, read_log, skip};
use clap::Parser;
use std::process::{Command, Stdio};

fn block(tag: &str) -> String {
    blocks(&read("README.md")).into_iter().find(|block| block.tag == tag).expect(tag).text
}

#[test]
fn the_session_goes_as_shown() {
    let dir = tempfile::tempdir().unwrap();
    let text = read("README.md");
    session::run("README.md", &blocks(&text), dir.path());
    assert!(block("console").lines().count() <= 10, "the session has ten lines at the most");
}

#[test]
fn operations_go_as_shown() {
    if Command::new("jq").arg("--version").output().is_err() {
        return skip("operations_go_as_shown", "jq is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    session::run("docs/OPERATIONS.md", &blocks(&read("docs/OPERATIONS.md")), dir.path());
}

/// The two commands that a fresh machine needs: what is typed there is what can be typed.
#[test]
fn the_two_commands_are_there() {
    let text = read("README.md");
    assert!(text.contains("\n    cargo run --release -- broker "), "the first command");
    assert!(text.contains("\n    ./test ") && root().join("test").exists(), "the second command");
    let parsed = castra::cli::Cli::try_parse_from(["castra", "broker"]).unwrap();
    assert!(matches!(parsed.command, castra::cli::Command::Host(castra::cli::HostCommand::Broker(_))));
}

#[test]
fn the_guest_in_bash_publishes() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let port = broker.addr.rsplit(':').next().unwrap();
    let mut guest = Command::new("bash");
    // Nothing but builtins: no program is found.
    let script = format!("PATH=/nonexistent\n{}", block("bash"));
    guest.args(["-c", &script]).env("CASTRA_PORT", port).env_remove("CASTRA_HOST");
    let out = guest.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{said} {}", String::from_utf8_lossy(&out.stderr));
    let ack: serde_json::Value = serde_json::from_str(said.trim_end()).expect("one whole ack");
    assert_eq!(
        (&ack["type"], &ack["status"], &ack["topic"]),
        (&"ack".into(), &"ok".into(), &"greeting".into())
    );
    let line = eventually("the event in the guest's log", || {
        let log = dir.path().join("logs/bus/demo.log");
        log.exists().then(|| read_log(dir.path(), "demo")).and_then(|lines| lines.into_iter().next())
    });
    assert_eq!(
        (&line["seq"], &line["id"], &line["payload"]),
        (&ack["seq"], &ack["id"], &"hello from bash".into())
    );
}
