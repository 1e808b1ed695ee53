//! Who proves a name by a token: what is recorded of it, who is refused, and who is slowed down.

use crate::support::{Broker, Guest, LocalGuest, broker_log, castra, eventually, records};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const TOKEN: &str = "0123456789abcdef";

fn command(dir: &Path, text: &str) -> Command {
    let file = dir.join("c.toml");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = castra();
    command.env("CASTRA_CONFIG", &file);
    command
}

fn greet(broker: &Broker, vm: &str, token: &str) -> (Guest, String) {
    broker.greet(format!("hello vm:{vm} capabilities=bus-v1 token={token}\n"))
}

#[test]
fn what_proved_a_name_is_on_every_record_and_in_status() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("[[vms]]\nname = \"web\"\ntoken = {TOKEN:?}\n[[vms]]\nname = \"db\"");
    let broker = Broker::start_with(&dir.path().join("state"), command(dir.path(), &text), &[]);
    let (_web, answer) = greet(&broker, "web", TOKEN);
    assert!(answer.starts_with("ok session="), "{answer}");
    // One for a VM that has none is no fault, and proves nothing.
    let (_db, answer) = greet(&broker, "db", TOKEN);
    assert!(answer.starts_with("ok session="), "{answer}");
    for wrong in ["", "0123456789abcdeF", "0123456789abcde", "0123456789abcdef0"] {
        assert_eq!(greet(&broker, "web", wrong).1, "error: wrong-token", "{wrong:?}");
    }
    let want = [("web", "granted", "token"), ("db", "granted", "name"), ("web", "denied", "null")];
    eventually("records", || {
        let records = records(&broker.root, "handshake-events");
        let has = |(vm, outcome, identity): &(&str, &str, &str)| {
            records.iter().any(|record| {
                let is =
                    if record["identity"].is_null() { "null" } else { record["identity"].as_str().unwrap() };
                record["vm"] == *vm && record["session_outcome"] == *outcome && is == *identity
            })
        };
        want.iter().all(has).then_some(())
    });
    let denied = eventually("the refused ones", || {
        let records = records(&broker.root, "handshake-events");
        (records.iter().filter(|record| record["reason"] == "wrong-token").count() == 4).then_some(records)
    });
    let identity = |vm: &str| {
        let status = broker.status();
        let vms = status["vms"].as_array().unwrap();
        vms.iter().find(|v| v["name"] == vm).map(|v| v["identity"].as_str().unwrap().to_owned())
    };
    eventually("status", || (identity("web")? == "token" && identity("db")? == "name").then_some(()));
    let everything =
        [broker_log(&broker.root).join("\n"), format!("{denied:?}"), broker.status().to_string()];
    assert!(!everything.concat().contains(TOKEN), "a token is shown: {everything:?}");
}

/// A VM that was restored from a snapshot has the session token of another: it is bound to its connection.
#[test]
fn the_session_token_of_another_connection_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "broker.trust = \"proven\"\n[[vms]]\nname = \"web\"\ntoken = {TOKEN:?}\n[[vms]]\nname = \"db\""
    );
    let broker = Broker::start_with(&dir.path().join("state"), command(dir.path(), &text), &[]);
    let (_web, answer) = greet(&broker, "web", TOKEN);
    let session = answer.strip_prefix("ok session=").unwrap().split(' ').next().unwrap();
    assert_eq!(greet(&broker, "web", session).1, "error: wrong-token");
    assert_eq!(greet(&broker, "db", session).1, "error: not-proven");
    assert_eq!(
        broker.greet(format!("hello vm:web capabilities=bus-v1 session={session}\n")).1,
        "error: not-proven"
    );
    let (_second, answer) = greet(&broker, "web", TOKEN);
    assert!(answer.starts_with("ok session=") && !answer.contains(session), "{answer}");
}

#[test]
fn five_wrong_tokens_slow_their_peer_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let guests = dir.path().join("guests.sock");
    let text = format!(
        "broker.unix = [{guests:?}]\n[[vms]]\nname = \"web\"\ntoken = {TOKEN:?}\n[[vms]]\nname = \"db\""
    );
    let broker = Broker::start_with(&dir.path().join("state"), command(dir.path(), &text), &[]);
    for _ in 0..5 {
        assert_eq!(greet(&broker, "web", "guess").1, "error: wrong-token");
    }
    // Right or wrong, its tokens are looked at one a second, those that come together one after the other.
    let begun = Instant::now();
    let mut waiting: Vec<Guest> = (0..3).map(|_| Guest::connect(&broker.addr)).collect();
    for guest in &mut waiting {
        use std::io::Write;
        let hello = format!("hello vm:web capabilities=bus-v1 token={TOKEN}\n");
        guest.stream.get_mut().write_all(hello.as_bytes()).unwrap();
    }
    // Whoever says none does not wait, nor does another peer.
    let at_once = Instant::now();
    let _db = broker.guest("db");
    let hello = format!("hello vm:web capabilities=bus-v1 token={TOKEN}\n");
    let (_other, answer) = LocalGuest::greet(&guests, &hello);
    assert!(answer.starts_with("ok session="), "{answer}");
    let at_once = at_once.elapsed();
    for guest in &mut waiting {
        let answer = guest.line();
        assert!(answer.starts_with("ok session="), "{answer}");
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2) && took > at_once, "{took:?} {at_once:?}");
    assert_eq!(broker_log(&broker.root).iter().filter(|line| line.contains("many wrong tokens")).count(), 1);
}
