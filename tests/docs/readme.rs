//! README.md: its session and its guest are run against a real broker.

use crate::markdown::{blocks, read};
use crate::support::{Broker, castra, eventually, read_log};
use std::path::Path;
use std::process::{Command, Stdio};

fn block(tag: &str) -> String {
    blocks(&read("README.md")).into_iter().find(|block| block.tag == tag).expect(tag).text
}

/// Whether `said` is `want`, where `…` stands for anything.
fn matches(said: &str, want: &str) -> bool {
    let pieces: Vec<&str> = want.split('…').collect();
    let Some(mut rest) = said.strip_prefix(pieces[0]) else { return false };
    for piece in &pieces[1..] {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.is_empty() || want.ends_with('…')
}

#[test]
fn the_session_goes_as_shown() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let program = castra();
    let bin = Path::new(program.get_program()).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let text = block("console");
    let mut commands: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => commands.push((command, Vec::new())),
            None => commands.last_mut().expect("a command comes first").1.push(line),
        }
    }
    assert_eq!(commands[0].0, "castra broker &");
    for (command, want) in &commands[1..] {
        // What only looks may look again: status is refreshed ten times a second.
        let looks = command.starts_with("castra status") || command.starts_with("castra bus tail");
        eventually(&format!("`{command}` to print {want:?}"), || {
            let mut shell = Command::new("bash");
            shell.args(["-c", command]).env("PATH", &path).env("CASTRA_STATE_ROOT", &broker.root);
            let out = shell.stdin(Stdio::null()).output().unwrap();
            let said = String::from_utf8(out.stdout).unwrap();
            let good = out.status.success()
                && said.lines().count() >= want.len()
                && said.lines().zip(want).all(|(said, want)| matches(said, want));
            assert!(
                good || looks,
                "`{command}` printed {said:?} and {}",
                String::from_utf8_lossy(&out.stderr)
            );
            good.then_some(())
        });
    }
    assert!(text.lines().count() <= 10, "the session has ten lines at the most");
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
