//! The broker's own log: how much it says, in which form, and that it can be moved away.

use crate::support::{Broker, LocalGuest, broker_log, castra, eventually, records};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn levels_say_more_or_less() {
    let dir = tempfile::tempdir().unwrap();
    for (level, says_info) in
        [("error", false), ("warn", false), ("info", true), ("debug", true), ("trace", true)]
    {
        let root = dir.path().join(level);
        let mut command = castra();
        command.env("CASTRA_LOG_LEVEL", level);
        let broker = Broker::start_with(&root, command, &[]);
        drop(broker.guest("dev"));
        assert_eq!(broker.stop().0, Some(0));
        assert_eq!(
            broker_log(&root).iter().any(|line| line.contains("broker: running")),
            says_info,
            "{level}"
        );
    }
}

#[test]
fn json_is_an_object_a_line_in_the_log_and_on_stderr() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let mut command = castra();
    command.args(["broker", "--state-root"]).arg(&root).args([
        "--tcp",
        "127.0.0.1:0",
        "--log-format",
        "json",
    ]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let log = root.join("logs/broker.log");
    eventually("a broker that runs", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("broker: running")).then_some(())
    });
    // A second one fails, and says so in the same way.
    let second = castra().args(["broker", "--log-format=json", "--state-root"]).arg(&root).output().unwrap();
    let failure = &objects(&String::from_utf8(second.stderr).unwrap())[0];
    assert_eq!((&failure["code"], &failure["exit"]), (&"state-root-in-use".into(), &73.into()));
    // A folder in the way of a file: an error, in both places.
    std::fs::remove_file(root.join("status")).unwrap();
    std::fs::create_dir_all(root.join("status.new/x")).unwrap();
    eventually("an error", || std::fs::read_to_string(&log).unwrap().contains("ERROR").then_some(()));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let said = objects(&said);
    assert!(said[0]["listeners"][0].as_str().unwrap().starts_with("tcp:127.0.0.1:"), "{said:?}");
    let error = said.iter().find(|line| line["level"] == "ERROR").expect("the error");
    let logged = objects(&std::fs::read_to_string(&log).unwrap());
    assert!(logged.contains(error), "{logged:?}");
    let running = logged.iter().find(|line| line["message"] == "broker: running").unwrap();
    assert_eq!((&running["level"], &running["pid"]), (&"INFO".into(), &child.id().into()));
    assert!(running["timestamp"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn what_a_guest_says_does_nothing_to_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    for format in ["text", "json"] {
        let root = dir.path().join(format);
        let mut command = castra();
        command.args(["broker", "--no-tcp", "--log-format", format, "--state-root"]).arg(&root);
        let mut broker = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        let log = root.join("logs/broker.log");
        let until = |words: &str| {
            eventually(words, || {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                (text.ends_with('\n') && text.contains(words)).then_some(text)
            })
        };
        until("broker: running");
        let words = "a\x1b[2J\x07,b\0\x08\x0b\x0e\x7f,c\u{9b}2J\u{85}\u{2028}\u{202e}";
        let hello = format!("hello vm:dev capabilities={words}\n");
        assert_eq!(LocalGuest::greet(&root.join("castra.sock"), &hello).1, "ok");
        let text = until("handshake-only");
        broker.kill().unwrap();
        broker.wait().unwrap();
        let does_something = |c: &char| c.is_control() && *c != '\n' || "\u{2028}\u{202e}".contains(*c);
        assert_eq!(text.chars().find(does_something), None, "{text:?}");
        let line = text.lines().find(|line| line.contains("handshake-only")).unwrap();
        assert!(["1b", "[2j", "202e"].iter().all(|said| line.contains(said)), "{line}");
    }
}

/// What logrotate does, again and again, while a line is written for each of many handshakes.
#[test]
fn files_that_are_moved_away_are_opened_anew_and_nothing_is_lost() {
    const VMS: usize = 600;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start(&root);
    let files = ["logs/broker.log", "handshakes/handshake-events.jsonl"].map(|file| root.join(file));
    drop(broker.guest("first"));
    eventually("both files", || files.iter().all(|file| file.exists()).then_some(()));
    let moved = |n: usize| format!("{n}.moved");
    let mut turns = 0;
    for n in 0..VMS {
        drop(broker.guest(&format!("vm{n}")));
        if n % 100 == 50 {
            for file in &files {
                std::fs::rename(file, file.with_extension(moved(turns))).unwrap();
            }
            broker.signal(Signal::SIGUSR1);
            turns += 1;
            // The log begins with the words that it does; only what comes then is sure to be in new files.
            eventually("a new log", || files[0].exists().then_some(()));
            drop(broker.guest(&format!("turn{n}")));
            eventually("new records", || files[1].exists().then_some(()));
        }
    }
    let name = |n: usize| format!("vm{n}");
    eventually("every record", || {
        let mut text = String::new();
        for file in (0..turns).map(|n| files[1].with_extension(moved(n))).chain([files[1].clone()]) {
            text += &std::fs::read_to_string(file).unwrap();
        }
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let seen: Vec<String> = objects(whole).iter().map(|r| r["vm"].as_str().unwrap().to_owned()).collect();
        let unique: HashSet<&String> = seen.iter().collect();
        assert_eq!(unique.len(), seen.len(), "no record is there twice");
        (0..VMS).all(|n| unique.contains(&name(n))).then_some(())
    });
    let logged = |file: &Path| std::fs::read_to_string(file).unwrap();
    // The records of a round are written before its lines.
    eventually("every line", || {
        let all: String = (0..turns).map(|n| logged(&files[0].with_extension(moved(n)))).collect::<String>()
            + &logged(&files[0]);
        (0..VMS).all(|n| all.contains(&format!("vm=\"{}\"", name(n)))).then_some(())
    });
    assert!(logged(&files[0]).contains("opened anew") && !records(&root, "handshake-events").is_empty());
    assert_eq!(broker.status()["broker"]["signals_dropped"], 0);
}

#[test]
fn a_start_that_fails_is_said_in_the_log_too() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let first = Broker::start(&dir.path().join("other"));
    let (code, said) = Broker::try_start(&root, castra(), &["--tcp", &first.addr]).err().unwrap();
    assert_eq!(code, Some(73));
    assert_eq!(said.lines().count(), 1, "once on stderr: {said}");
    let why = said.trim_end().strip_prefix("castra: ").unwrap();
    let last = broker_log(&root).pop().unwrap();
    assert!(last.contains("ERROR") && last.contains(why) && last.contains("cannot-listen"), "{last}");
}
