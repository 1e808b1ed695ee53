//! `castra bus subscribe --exec`: a command for each event, whatever it does and however it ends.

use crate::fake_broker::{FakeBroker, Session, delivered, line};
use crate::subscribe_cli::{HELLO, Subscriber};
use crate::support::{Broker, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `args` until it ends, against a broker that delivers these events.
fn run(args: &[&str], seqs: std::ops::RangeInclusive<u64>) -> (Option<i32>, Vec<String>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let (mut subscriber, mut session) = start(dir.path(), args);
    session.events(seqs);
    subscriber.end()
}

/// One that is subscribed from event 1 on, in a folder of its own.
fn start(root: &Path, args: &[&str]) -> (Subscriber, Session) {
    let broker = FakeBroker::start(root);
    let mut command: Command = crate::subscribe_cli::command(root, args);
    command.current_dir(root);
    let subscriber = Subscriber::run(command);
    let mut session = broker.session(HELLO);
    session.subscribed(json!("latest"), 1);
    (subscriber, session)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_command_gets_its_event() {
    let show = "cat; echo $CASTRA_SEQ $CASTRA_TS $CASTRA_ID $CASTRA_VM $CASTRA_TOPIC; echo said >&2";
    let (exit, out, err) = run(&["-c", "2", "--exec", show], 1..=2);
    let want = [line(1, "t", "1"), "1 1000 id-1 dev t".into(), line(2, "t", "2"), "2 2000 id-2 dev t".into()];
    assert_eq!((exit, out), (Some(0), want.to_vec()));
    assert_eq!(err, ["said", "said"]);
}

#[test]
fn one_after_the_other_in_order() {
    // Each would overtake the one before.
    let slow = "sleep 0.$((3 - CASTRA_SEQ)); echo $CASTRA_SEQ; echo $CASTRA_SEQ";
    let (exit, out, _) = run(&["-c", "3", "--exec", slow], 1..=3);
    assert_eq!((exit, out.concat().as_str()), (Some(0), "112233"));
}

#[test]
fn a_command_that_fails_is_counted_and_the_next_one_runs() {
    let fail = "case $CASTRA_SEQ in 1) exit 3;; 2) kill -9 $$;; esac; echo $CASTRA_SEQ";
    let (exit, out, err) = run(&["-c", "3", "--exec", fail], 1..=3);
    assert_eq!((exit, out), (Some(1), vec!["3".to_owned()]));
    let said = [
        "castra: the command ended with 3 for event 1",
        "castra: the command was ended by signal 9 for event 2",
    ];
    assert_eq!(err, said);
    let (_, _, err) = run(&["-c", "1", "--json", "--exec", "exit 7"], 1..=1);
    let said: Value = serde_json::from_str(&err.concat()).unwrap();
    let why = "the command ended with 7 for event 1";
    let want = json!({"schema": 1, "code": "command-failed", "reason": why, "seq": 1, "status": 7});
    assert_eq!(said, want);
}

#[test]
fn a_command_need_not_read() {
    let dir = tempfile::tempdir().unwrap();
    // `exec <&-` closes it while the line, which fills a pipe, is still written.
    let (mut subscriber, mut session) =
        start(dir.path(), &["-c", "3", "--exec", "exec <&-; echo $CASTRA_SEQ"]);
    for seq in 1..=3 {
        session.send_bytes(delivered(&line(seq, "t", &format!("\"{}\"", "x".repeat(60_000)))));
    }
    let (exit, out, err) = subscriber.end();
    assert_eq!((exit, out.concat().as_str(), err), (Some(0), "123", vec![]));
}

#[test]
fn what_came_is_handed_on_though_time_ran_out_or_the_broker_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let broker = FakeBroker::start(dir.path());
    let mut subscriber = Subscriber::start(dir.path(), &["--exec", "sleep 0.1; echo $CASTRA_SEQ"]);
    let mut session = broker.session(HELLO);
    session.subscribed(json!("latest"), 1);
    session.events(1..=3);
    drop(session);
    broker.answer("error: reserved-identity");
    let (exit, out, _) = subscriber.end();
    assert_eq!((exit, out.concat().as_str()), (Some(77), "123"));
    // The command that runs is asked to end, with all it began; the next one does not begin.
    let trap = "trap 'echo b; exit 0' TERM; echo a; sleep 60 & wait";
    let (exit, out, err) = run(&["--timeout", "500ms", "--exec", trap], 1..=3);
    assert_eq!((exit, out.concat().as_str()), (Some(124), "ab"));
    assert_eq!(err, ["castra: time ran out after 500ms, 1 events were handed to the command"]);
    // Who does not obey is killed.
    let deaf = "trap '' TERM; echo a; while :; do sleep 0.1; done";
    for (command, signal) in [("echo a; sleep 60", 15), (deaf, 9)] {
        let (exit, out, err) = run(&["--timeout", "500ms", "--exec", command], 1..=3);
        assert_eq!((exit, out.concat().as_str()), (Some(124), "a"));
        let said = [
            &format!("castra: the command was ended by signal {signal} for event 1"),
            "castra: time ran out after 500ms, 1 events were handed to the command",
        ];
        assert_eq!(err, said);
    }
}

#[test]
fn a_signal_lets_the_command_finish_and_a_second_one_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let command = "echo $CASTRA_SEQ > began; while [ ! -e go ]; do sleep 0.01; done; echo done";
    let (mut subscriber, mut session) = start(dir.path(), &["-v", "--exec", command]);
    session.events(1..=2);
    eventually("the command", || (read(&dir.path().join("began")) == "1\n").then_some(()));
    assert_eq!(subscriber.hear(), "castra: subscribed to > from event 1 on");
    subscriber.signal(Signal::SIGTERM);
    assert_eq!(subscriber.hear(), "castra: the command that runs is waited for; once more ends it");
    std::fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(subscriber.end(), (Some(0), vec!["done".to_owned()], vec![]));
    assert_eq!(read(&dir.path().join("began")), "1\n", "no other one began");

    for (trap, how) in [("", "15"), ("trap '' TERM;", "9")] {
        let dir = tempfile::tempdir().unwrap();
        let command = format!("{trap} echo began; while :; do sleep 0.01; done");
        let (mut subscriber, mut session) = start(dir.path(), &["-v", "--exec", &command]);
        session.events(1..=1);
        assert_eq!(subscriber.line(), "began");
        subscriber.hear();
        subscriber.signal(Signal::SIGINT);
        subscriber.hear();
        subscriber.signal(Signal::SIGINT);
        if !trap.is_empty() {
            // Who insists.
            eventually("its end", || {
                subscriber.signal(Signal::SIGINT);
                subscriber.follow.child.try_wait().unwrap()
            });
        }
        let (exit, _, said) = subscriber.end();
        let want = format!("castra: the command was ended by signal {how} for event 1");
        assert_eq!((exit, said), (Some(1), vec![want]));
    }
}

#[test]
fn what_waits_for_a_command_is_bounded_and_comes_later() {
    const EVENTS: u64 = 100;
    let dir = tempfile::tempdir().unwrap();
    let broker = FakeBroker::start(dir.path());
    let wait = "while [ ! -e go ]; do sleep 0.01; done; echo $CASTRA_SEQ";
    let args = ["--from", "@1", "-c", "100", "--exec", wait];
    let mut command = crate::subscribe_cli::command(dir.path(), &args);
    let mut subscriber = Subscriber::run({
        command.current_dir(dir.path());
        command
    });
    let mut session = broker.session(HELLO);
    session.subscribed(json!({"seq": 1}), 1);
    let payload = format!("\"{}\"", "x".repeat(60_000));
    let big = |seq| delivered(&line(seq, "t", &payload));
    // More than may wait: it says stop, though the socket would take more, and lives on.
    (1..=25).for_each(|seq| session.send_bytes(big(seq)));
    assert_eq!(session.receive().unwrap(), json!({"type": "unsubscribe", "sub": "cli"}));
    session.send(&json!({"type": "ack", "ack": "unsubscribe", "status": "ok", "sub": "cli"}));
    std::fs::write(dir.path().join("go"), "").unwrap();
    // It stops again, or has them all.
    while let Some(asked) = session.receive() {
        if asked["type"] == "unsubscribe" {
            session.send(&json!({"type": "ack", "ack": "unsubscribe", "status": "ok", "sub": "cli"}));
            continue;
        }
        let from = asked["from"]["seq"].as_u64().unwrap();
        assert!((18..=EVENTS).contains(&from), "{asked}");
        session.accept(from);
        for seq in from..=EVENTS {
            let _ = session.try_send(big(seq));
        }
    }
    let (exit, out, _) = subscriber.end();
    let want: Vec<String> = (1..=EVENTS).map(|seq| seq.to_string()).collect();
    assert_eq!((exit, out), (Some(0), want));
}

/// How many entries `/proc/PID/WHAT` has.
fn entries(subscriber: &Subscriber, what: &str) -> usize {
    std::fs::read_dir(format!("/proc/{}/{what}", subscriber.follow.child.id())).unwrap().count()
}

/// Starts a member of group `g` on topic `t`, allowed to have so many descriptors.
fn member(broker: &Broker, descriptors: u64, args: &[&str]) -> Subscriber {
    let member = crate::subscribe_cli::command(&broker.root, &["-v", "--group", "g", "t"]);
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"")]);
    limited.arg(member.get_program()).args(member.get_args()).args(args);
    limited.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let member = Subscriber::run(limited);
    let said = member.hear();
    assert!(said.starts_with("castra: subscribed to "), "{said}");
    member
}

fn publish_events(broker: &Broker, count: usize) {
    let mut guest = broker.guest("dev");
    for _ in 0..count {
        crate::subscribe::publish(&mut guest, "t");
    }
}

fn all_are_done(broker: &Broker, count: u64) {
    eventually("all to be done", || {
        let output = broker.run(&["bus", "group", "show", "g", "--json"]);
        let group: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (group["cursor"].as_u64() >= Some(count)).then_some(())
    });
}

fn no_dead_letters(broker: &Broker) {
    let letters = broker.run(&["bus", "dlq", "ls", "g"]).stdout;
    assert_eq!(String::from_utf8(letters).unwrap(), "");
}

#[test]
fn what_a_command_leaves_running_holds_nothing_of_the_member() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let pids = dir.path().join("pids");
    // One holds stderr, the other one stdin and the event that nobody reads, too.
    let command = format!(
        "exec 3<&0 >>{0}; sleep 60 & echo $!; sleep 60 <&3 & echo $!; echo $CASTRA_SEQ >&2",
        pids.display()
    );
    let mut member = member(&broker, 64, &["--from", "earliest", "--max-attempts", "1", "--exec", &command]);
    let (descriptors, threads) = (entries(&member, "fd"), entries(&member, "task"));
    publish_events(&broker, 60);
    all_are_done(&broker, 60);
    // What was read of stderr until it was closed is passed on.
    eventually("the descriptors", || (entries(&member, "fd") <= descriptors).then_some(()));
    // The thread that writes to stderr may have begun after they were counted.
    assert!(entries(&member, "task") <= threads + 1, "no thread is left");
    no_dead_letters(&broker);
    member.signal(Signal::SIGTERM);
    let (exit, _, err) = member.end();
    for pid in read(&pids).lines() {
        // They are the test's own, and it ends them.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
    }
    assert_eq!(exit, Some(0));
    let passed_on = (1..=60).filter(|seq| err.contains(&seq.to_string())).count();
    let is_closed = |line: &&String| line.contains("was closed, because something that it left running");
    assert_eq!((passed_on, err.iter().filter(is_closed).count()), (60, 2), "{err:?}");
    let all = "castra: the stderr of 60 commands was closed, ";
    assert!(err.iter().any(|line| line.starts_with(all)), "the first one and all: {err:?}");
}

#[test]
fn a_command_that_cannot_be_started_for_want_of_descriptors_waits() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let args = ["--from", "earliest", "--max-attempts", "1", "--max-in-flight", "30"];
    let mut member = member(&broker, 40, &[&args[..], &["--exec", "sleep 0.2"]].concat());
    publish_events(&broker, 60);
    all_are_done(&broker, 60);
    no_dead_letters(&broker);
    member.signal(Signal::SIGTERM);
    let (exit, _, err) = member.end();
    assert_eq!(exit, Some(0), "{err:?}");
    let waits = |line: &String| line.contains("cannot be started now: Too many open files");
    assert!(err.iter().any(waits), "{err:?}");
}

#[test]
fn a_command_has_the_default_action_of_every_signal() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    publish_events(&broker, 1);
    let show = "grep SigIgn /proc/self/status";
    // Those from 32 on are the C library's own.
    let ignored = |status: &str| {
        let line = status.lines().find(|line| line.starts_with("SigIgn:")).unwrap();
        u64::from_str_radix(line[7..].trim(), 16).unwrap() & 0x7fff_ffff
    };
    // What whoever started it ignores stays so; a Rust program, as this test, ignores SIGPIPE by itself.
    let pipe = 1 << (Signal::SIGPIPE as u32 - 1);
    let want = ignored(&read(Path::new("/proc/self/status"))) & !pipe;
    let member = member(&broker, 1024, &["--from", "earliest", "--exec", show]);
    assert_eq!(ignored(&member.line()), want);
}
