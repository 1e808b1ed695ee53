//! SIGHUP: castra.toml is read anew, under guests that are connected.

use crate::groups::{code, delivery, join};
use crate::service::Manager;
use crate::support::{Broker, Guest, broker_log, castra, eventually, records};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

const TAKEN: &str = "config: castra.toml is read anew and in force";
const REFUSED: &str = "config: castra.toml was not taken; what was in force stays so";

/// A broker with a castra.toml that changes.
struct Configured {
    file: PathBuf,
    broker: Broker,
}

impl Configured {
    fn start(dir: &Path, text: &str) -> Self {
        Self::start_args(dir, text, &[])
    }

    fn start_args(dir: &Path, text: &str, args: &[&str]) -> Self {
        let file = dir.join("c.toml");
        write(&file, text);
        let mut command = castra();
        command.env("CASTRA_CONFIG", &file);
        let broker = Broker::start_with(&dir.join("state"), command, args);
        Configured { file, broker }
    }

    fn log(&self, words: &str) -> Vec<String> {
        broker_log(&self.broker.root).into_iter().filter(|line| line.contains(words)).collect()
    }

    /// Has it read anew, and waits for what the broker says of it; the line.
    fn reload(&self, text: &str, answer: &str) -> String {
        write(&self.file, text);
        let before = self.log(answer).len();
        self.broker.signal(Signal::SIGHUP);
        eventually(answer, || self.log(answer).get(before).cloned())
    }

    fn greet(&self, vm: &str, token: &str) -> (Guest, String) {
        let token = if token.is_empty() { String::new() } else { format!(" token={token}") };
        let (guest, answer) = self.broker.greet(format!("hello vm:{vm} capabilities=bus-v1{token}\n"));
        (guest, answer.split('=').next().unwrap().to_owned())
    }

    fn guest(&self, vm: &str, token: &str) -> Guest {
        let (guest, answer) = self.greet(vm, token);
        assert_eq!(answer, "ok session", "{vm}");
        guest
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn vm(name: &str, more: &str) -> String {
    format!("[[vms]]\nname = \"{name}\"\n{more}\n")
}

fn is_alive(guest: &mut Guest) {
    assert_eq!(guest.ask(r#"{"type":"heartbeat"}"#)["ack"], "heartbeat");
}

fn is_revoked(guest: &mut Guest) {
    let close = guest.receive().expect("a close frame");
    assert_eq!((&close["type"], &close["reason"]), (&"close".into(), &"identity-revoked".into()), "{close}");
    assert_eq!(guest.receive(), None);
}

#[test]
fn a_session_goes_on_while_its_identity_holds_and_ends_when_it_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let token = |name: &str| format!("token = \"0123456789-of-{name}\"");
    let known = "broker.trust = \"known\"\n";
    let before = [
        known,
        &vm("same", &token("same")),
        &vm("other", &token("other")),
        &vm("plain", ""),
        &vm("gone", ""),
    ]
    .concat();
    let configured = Configured::start(dir.path(), &before);
    let mut same = configured.guest("same", "0123456789-of-same");
    let mut other = configured.guest("other", "0123456789-of-other");
    let mut unproven = configured.guest("plain", "");
    let mut gone = configured.guest("gone", "");
    assert_eq!(configured.greet("new", "").1, "error: unknown-vm");
    assert_eq!(same.ask(r#"{"type":"subscribe","topic":"news"}"#)["status"], "ok");

    let after = [
        known,
        &vm("same", &token("same")),
        &vm("other", &token("another")),
        &vm("plain", ""),
        &vm("new", ""),
    ]
    .concat();
    let said = configured.reload(&after, TAKEN);
    assert!(said.contains(r#"trust="known" vms=4 added=1 removed=1 changed=1"#), "{said}");
    is_revoked(&mut other);
    is_revoked(&mut gone);
    is_alive(&mut same);
    is_alive(&mut unproven);
    let _new = configured.guest("new", "");
    assert_eq!(configured.greet("gone", "").1, "error: unknown-vm");
    assert_eq!(configured.greet("other", "0123456789-of-other").1, "error: wrong-token");
    let _other = configured.guest("other", "0123456789-of-another");
    let ended = eventually("records", || {
        let records = records(&configured.broker.root, "bus-events");
        let mut vms: Vec<Value> =
            records.iter().filter(|r| r["reason"] == "identity-revoked").map(|r| r["vm"].clone()).collect();
        vms.sort_by_key(ToString::to_string);
        (vms.len() >= 2).then_some(vms)
    });
    assert_eq!(ended, ["gone", "other"]);

    // From known to proven: what is only a name ends. The connection that began before the first reload is the same.
    let said = configured.reload(&after.replace("known", "proven"), TAKEN);
    assert!(said.contains(r#"trust="proven" vms=4 added=0 removed=0 changed=0"#), "{said}");
    is_revoked(&mut unproven);
    assert_eq!(configured.greet("new", "").1, "error: not-proven");
    is_alive(&mut same);
    assert!(configured.broker.run(&["bus", "publish", "news"]).status.success(), "the host stays the host");
    assert_eq!(same.receive().unwrap()["topic"], "news");
}

#[test]
fn rules_change_at_once_and_end_nothing_but_what_they_forbid() {
    let dir = tempfile::tempdir().unwrap();
    let configured = Configured::start(dir.path(), &vm("web", ""));
    let mut web = configured.guest("web", "");
    for sub in [r#"{"type":"subscribe","topic":"x.>"}"#, r#"{"type":"subscribe","topic":"y"}"#] {
        assert_eq!(web.ask(sub)["status"], "ok");
    }
    assert_eq!(web.ask(r#"{"type":"publish","topic":"z"}"#)["status"], "ok");

    let said = configured.reload(&vm("web", "publish = [\"y\"]\nsubscribe = [\"y\", \"w.*\"]"), TAKEN);
    assert!(said.contains("added=0 removed=0 changed=1"), "{said}");
    let ended = web.receive().unwrap();
    let fields = (&ended["type"], &ended["sub"], &ended["code"]);
    assert_eq!(fields, (&"unsubscribed".into(), &"x.>".into(), &"forbidden-topic".into()), "{ended}");
    assert!(ended["reason"].as_str().unwrap().contains("castra.toml"), "{ended}");
    for topic in ["x.a", "y"] {
        assert!(configured.broker.run(&["bus", "publish", topic]).status.success());
    }
    assert_eq!(web.receive().unwrap()["topic"], "y", "the other subscription goes on, and x.a is not sent");
    for (frame, code) in [
        (r#"{"type":"publish","topic":"z"}"#, "forbidden-topic"),
        (r#"{"type":"publish"}"#, "forbidden-topic"),
        (r#"{"type":"subscribe","topic":"x.>"}"#, "forbidden-topic"),
        (r#"{"type":"subscribe","topic":"w.>"}"#, "forbidden-topic"),
    ] {
        let answer = web.ask(frame);
        assert_eq!(
            (&answer["status"], &answer["code"]),
            (&"error".into(), &code.into()),
            "{frame}: {answer}"
        );
    }
    for frame in [r#"{"type":"subscribe","topic":"w.*"}"#, r#"{"type":"subscribe","topic":"vm:web"}"#] {
        assert_eq!(web.ask(frame)["status"], "ok", "{frame}");
    }

    configured.reload(&vm("web", ""), TAKEN);
    assert_eq!(web.ask(r#"{"type":"subscribe","topic":"x.>"}"#)["status"], "ok");
    assert_eq!(web.ask(r#"{"type":"publish","topic":"z"}"#)["status"], "ok");
}

#[test]
fn a_membership_that_the_rules_forbid_ends_and_others_have_what_it_held() {
    let dir = tempfile::tempdir().unwrap();
    let configured = Configured::start(dir.path(), &[vm("one", ""), vm("two", "")].concat());
    let mut one = configured.guest("one", "");
    for topic in ["jobs", "news"] {
        join(&mut one, &format!(r#""topic":"{topic}.a","group":"{topic}""#));
    }
    let host = |topic: &str| assert!(configured.broker.run(&["bus", "publish", topic]).status.success());
    for seq in 1..=2 {
        host("jobs.a");
        assert_eq!(delivery(&mut one, "jobs"), (seq, 1));
    }
    let mut two = configured.guest("two", "");
    join(&mut two, r#""topic":"jobs.a","group":"jobs""#);

    let said = configured.reload(&[vm("one", "subscribe = [\"news.*\"]"), vm("two", "")].concat(), TAKEN);
    assert!(said.contains("changed=1"), "{said}");
    let ended = one.receive().unwrap();
    let fields = ["type", "group", "code", "sub"].map(|name| &ended[name]);
    assert_eq!(json!(fields), json!(["unsubscribed", "jobs", "forbidden-topic", null]), "{ended}");
    assert!(ended["reason"].as_str().unwrap().contains("castra.toml"), "{ended}");
    // What it held is the other's, at once, and an attempt was what it had begun; what it says of that now counts for
    // nothing.
    assert_eq!([(); 2].map(|()| delivery(&mut two, "jobs")), [(1, 2), (2, 1)]);
    let answer = one.ask(r#"{"type":"ack","group":"jobs","seq":1,"confirm":true}"#);
    assert_eq!(code(&answer), "not-a-member");
    for wish in [r#""type":"subscribe","topic":"jobs.a""#, r#""type":"subscribe","topic":"news.a""#] {
        // Neither by naming what it may not have, nor by naming something else.
        let answer = one.ask(format!(r#"{{{wish},"group":"jobs"}}"#));
        assert_eq!(code(&answer), "forbidden-topic", "{wish}");
    }
    host("jobs.a");
    assert_eq!(delivery(&mut two, "jobs"), (3, 1));
    let answer = two.ask(r#"{"type":"ack","group":"jobs","through":3,"confirm":true}"#);
    assert_eq!(answer["events"], 3, "{answer}");
    let stands = two.ask(r#"{"type":"group","group":"jobs"}"#);
    assert_eq!(json!([stands["members"], stands["cursor"]]), json!([1, 3]), "{stands}");
    // Its other membership goes on, and so does the session.
    host("news.a");
    assert_eq!(delivery(&mut one, "news"), (4, 1));
    is_alive(&mut one);
    eventually("a record", || {
        let all = records(&configured.broker.root, "bus-events");
        all.into_iter().find(|said| {
            said["reason"] == "forbidden-topic" && said["detail"].as_str().unwrap().contains("group 'jobs'")
        })
    });
    // And it may come back when it may have them again.
    configured.reload(&[vm("one", ""), vm("two", "")].concat(), TAKEN);
    join(&mut one, r#""topic":"jobs.a","group":"jobs""#);
}

#[test]
fn a_castra_toml_that_is_wrong_changes_nothing_and_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::new(dir.path());
    let good = ["broker.trust = \"known\"\n", &vm("web", "")].concat();
    let file = dir.path().join("c.toml");
    write(&file, &good);
    let mut command = castra();
    command.env("CASTRA_CONFIG", &file).env("NOTIFY_SOCKET", &manager.path);
    let broker = Broker::start_with(&dir.path().join("state"), command, &[]);
    let configured = Configured { file, broker };
    let ready = manager.wait(0, "READY=1");
    let mut web = configured.guest("web", "");

    let token = dir.path().join("token");
    write(&token, "0123456789abcdef");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    for (text, place) in [
        ("[[vms]]\nname = \"web\"\ncid = 2\n".to_owned(), "c.toml:3:7: vms.cid: 2 is nobody's"),
        ("[".to_owned(), "c.toml:1:"),
        (format!("[[vms]]\nname = \"web\"\ntoken_file = {token:?}"), "c.toml:3:14: vms.token_file: "),
    ] {
        let heard = manager.heard.len();
        configured.reload(&text, REFUSED);
        assert_eq!(
            configured.log(&format!("config: {}", dir.path().join(place).display())).len(),
            1,
            "{place}"
        );
        // A manager that waits for the reload hears of its end, and that it came to nothing.
        let reloading = manager.wait(heard.max(ready + 1), "RELOADING=1");
        assert!(manager.wait(reloading, "READY=1") > reloading);
        manager.wait(reloading, "STATUS=castra.toml is wrong and was not taken");
        is_alive(&mut web);
        assert_eq!(configured.greet("db", "").1, "error: unknown-vm");
    }
    let _second = configured.guest("web", "");
    manager.wait(0, "STATUS=running; no events; sessions 2, VMs 1; castra.toml is wrong");
    std::fs::remove_file(&configured.file).unwrap();
    configured.broker.signal(Signal::SIGHUP);
    eventually("a file that is gone", || configured.log("No such file").pop());
    assert_eq!(configured.greet("db", "").1, "error: unknown-vm");

    let heard = manager.heard.len();
    configured.reload(&[&*good, &vm("db", "")].concat(), TAKEN);
    let reloading = manager.wait(heard, "RELOADING=1");
    let usec = manager.heard[reloading + 1].1.strip_prefix("MONOTONIC_USEC=").expect("in the same message");
    assert!(usec.parse::<u64>().unwrap() > 0);
    manager.wait(reloading, "STATUS=castra.toml was read anew");
    let _db = configured.guest("db", "");
    let taken = manager.heard.len();
    manager.wait(taken, "STATUS=running; no events; sessions 3, VMs 2");
    assert!(!manager.heard[taken..].iter().any(|(_, line)| line.contains("is wrong")), "{:?}", manager.heard);
    is_alive(&mut web);
}

#[test]
fn what_needs_a_restart_is_said_and_flags_go_before() {
    let dir = tempfile::tempdir().unwrap();
    let configured = Configured::start_args(dir.path(), "broker.trust = \"open\"", &["--trust", "known"]);
    assert_eq!(configured.greet("web", "").1, "error: unknown-vm");
    let text = "broker.trust = \"open\"\nbroker.tcp = [\"127.0.0.1:1\"]\n[limits]\nidle_time = \"5s\"\nvms = 9\n\
                [[vms]]\nname = \"web\"\n";
    let said = configured.reload(text, TAKEN);
    assert!(said.contains(r#"trust="known" vms=1"#), "the flag stays: {said}");
    let later = eventually("what needs a restart", || configured.log("takes effect at the next start").pop());
    assert!(later.ends_with("takes effect at the next start: limits.vms, limits.idle_time"), "{later}");
    let _web = configured.guest("web", "");
    assert_eq!(configured.greet("db", "").1, "error: unknown-vm");
}

#[test]
fn what_deserves_a_word_is_in_the_log_with_its_place_at_start_and_at_reload() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial");
    std::fs::write(&path, "").unwrap();
    let text = ["broker.trust = \"known\"\n", &vm("web", &format!("serial = {path:?}"))].concat();
    let configured = Configured::start(dir.path(), &text);
    let place = |line: usize| {
        format!("config: {}:{line}:10: vms.serial: {} is there", configured.file.display(), path.display())
    };
    eventually("a word at the start", || configured.log(&place(4)).pop());
    configured.reload(&["\n", &*text].concat(), TAKEN);
    eventually("a word at the reload", || configured.log(&place(5)).pop());
}

/// `[::ffff:127.0.0.1]` is of the loopback to the door, and so to whoever looks whether trust may be open.
#[test]
fn the_loopback_is_the_same_to_the_door_and_to_a_reload() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--trust", "open", "--tcp", "[::ffff:127.0.0.1]:0"];
    let configured = Configured::start_args(dir.path(), "", &args);
    configured.reload(&vm("web", ""), TAKEN);
    assert!(configured.log(REFUSED).is_empty());
}

#[test]
fn token_files_are_read_anew() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    write(&token, "the-first-0123456789\n");
    let text = ["broker.trust = \"proven\"\n", &vm("web", &format!("token_file = {token:?}"))].concat();
    let configured = Configured::start(dir.path(), &text);
    let mut web = configured.guest("web", "the-first-0123456789");
    let said = configured.reload(&text, TAKEN);
    assert!(said.contains("added=0 removed=0 changed=0"), "{said}");
    is_alive(&mut web);
    write(&token, "the-second-0123456789\n");
    assert!(configured.reload(&text, TAKEN).contains("changed=1"));
    is_revoked(&mut web);
    assert_eq!(configured.greet("web", "the-first-0123456789").1, "error: wrong-token");
    let _web = configured.guest("web", "the-second-0123456789");
    let log = broker_log(&configured.broker.root).join("\n");
    assert!(!log.contains("0123456789"), "a token is in broker.log: {log}");
}

/// It is held from the first moment: here while castra.toml, a pipe, is not there yet, and while it starts.
#[test]
fn a_hangup_ends_no_broker_however_early_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("c.toml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let mut command = castra();
    command.args(["broker", "--tcp", "127.0.0.1:0", "--config"]).arg(&pipe);
    command.arg("--state-root").arg(dir.path().join("state"));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let hangs_up = |child: &std::process::Child, field: &str| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap() & 1 == 1
    };
    eventually("a signal that is held", || hangs_up(&child, "SigBlk:").then_some(()));
    let hang_up = |child: &std::process::Child| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGHUP).unwrap();
    };
    hang_up(&child);
    std::fs::write(&pipe, "broker.trust = \"known\"").unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let (addr, running) = std::sync::mpsc::channel();
    let listens = std::thread::spawn(move || {
        let mut line = String::new();
        while stderr.read_line(&mut line).unwrap() > 0 {
            if let Some((_, rest)) = line.split_once("listening on tcp:") {
                addr.send(rest.split(' ').next().unwrap().to_owned()).unwrap();
            }
            line.clear();
        }
    });
    let addr = eventually("the broker", || {
        hang_up(&child);
        running.try_recv().ok()
    });
    // A pipe is not read twice, so those that came changed nothing; a file is.
    std::fs::remove_file(&pipe).unwrap();
    std::fs::write(&pipe, ["broker.trust = \"known\"\n", &vm("web", "")].concat()).unwrap();
    hang_up(&child);
    eventually("the new castra.toml", || {
        let mut guest = Guest::connect(&addr);
        guest.stream.get_mut().write_all(b"hello vm:web capabilities=bus-v1\n").unwrap();
        guest.line().starts_with("ok session=").then_some(())
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    listens.join().unwrap();
}
