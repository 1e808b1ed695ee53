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

/// A hello from this address of the loopback; the answer to it.
fn greet_from(address: [u8; 4], broker: &Broker, hello: &str) -> String {
    use std::io::{BufRead, BufReader, Write};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((std::net::Ipv4Addr::from(address), 0).into()).unwrap();
        socket.connect(broker.addr.parse().unwrap()).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(hello.as_bytes()).unwrap();
    // A banner of the broker first.
    let mut answer = String::new();
    while !answer.starts_with("ok") && !answer.starts_with("error: ") {
        answer.clear();
        assert!(stream.read_line(&mut answer).unwrap() > 0, "no answer");
    }
    answer.trim_end().to_owned()
}

#[test]
fn guesses_from_many_addresses_slow_the_name_and_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "[[vms]]\nname = \"web\"\ntoken = {TOKEN:?}\n[[vms]]\nname = \"db\"\ntoken = \"another-{TOKEN}\""
    );
    let broker = Broker::start_with(&dir.path().join("state"), command(dir.path(), &text), &[]);
    let hello = |vm: &str, token: &str| format!("hello vm:{vm} capabilities=bus-v1 token={token}\n");
    for n in 0..castra::core::limits::WRONG_TOKENS_OF_NAME as u8 {
        assert_eq!(greet_from([127, 1, 0, n + 1], &broker, &hello("web", "guess")), "error: wrong-token");
    }
    let begun = Instant::now();
    assert_eq!(greet_from([127, 2, 0, 1], &broker, &hello("web", "guess")), "error: wrong-token");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    // However many guess meanwhile, the right one is taken.
    let mut guessing: Vec<Guest> = (0..20).map(|_| Guest::connect(&broker.addr)).collect();
    for guest in &mut guessing {
        use std::io::Write;
        guest.stream.get_mut().write_all(hello("web", "guess").as_bytes()).unwrap();
    }
    let answer = greet_from([127, 3, 0, 1], &broker, &hello("web", TOKEN));
    assert!(answer.starts_with("ok session="), "{answer}");
    // Nor does another VM wait.
    let begun = Instant::now();
    assert!(
        greet_from([127, 2, 0, 1], &broker, &hello("db", &format!("another-{TOKEN}")))
            .starts_with("ok session=")
    );
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn what_a_guest_says_obeys_no_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&dir.path().join("state"));
    let (mut guest, answer) = broker.greet("hello vm:dev capabilities=bus-v1,a\u{9b}2j\u{202e}b\u{7f}\n");
    assert!(answer.starts_with("ok session="), "{answer}");
    let ack = guest.ask("{\"type\":\"subscribe\",\"id\":\"s\",\"topic\":\"t\u{202e}x\"}");
    assert_eq!(ack["status"], "ok", "{ack}");
    let ack = guest.ask("{\"type\":\"publish\",\"id\":\"p\",\"topic\":\"\u{202e}\u{9b}\"}");
    assert_eq!(ack["status"], "error", "{ack}");
    let shown = eventually("the topic in status", || {
        let shown = broker.run(&["status", "--vm", "dev"]);
        let shown = String::from_utf8([shown.stdout, shown.stderr].concat()).unwrap();
        shown.contains("202e").then_some(shown)
    });
    let record = eventually("a record", || {
        let text = std::fs::read_to_string(broker.root.join("handshakes/handshake-events.jsonl")).ok()?;
        text.ends_with('\n').then_some(text)
    });
    let capabilities = records(&broker.root, "handshake-events")[0]["capabilities"].to_string();
    assert!(capabilities.contains("a\u{9b}2j\u{202e}b\u{7f}"), "it is the same JSON: {capabilities}");
    for text in [shown, record, broker_log(&broker.root).join("\n")] {
        let obeyed = |c: &char| c.is_control() && *c != '\n' || *c == '\u{202e}';
        assert_eq!(text.chars().find(obeyed), None, "{text:?}");
    }
}
