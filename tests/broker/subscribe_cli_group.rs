//! `castra bus subscribe --group`: members as processes, which print or run commands, and go as they like.

use crate::fake_broker::FakeBroker;
use crate::subscribe::publish;
use crate::subscribe_cli::{HELLO, Subscriber, command};
use crate::support::{Broker, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn stands(broker: &Broker, group: &str) -> Value {
    let output = broker.run(&["bus", "group", "show", group, "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// Waits until everything up to this seq is done.
fn done(broker: &Broker, group: &str, cursor: u64) {
    let is_done = || (stands(broker, group)["cursor"].as_u64() >= Some(cursor)).then_some(());
    eventually("all to be done", is_done);
}

fn member(broker: &Broker, args: &[&str]) -> Subscriber {
    let member = Subscriber::start(&broker.root, &[&["-v"], args].concat());
    let said = member.hear();
    assert!(said.starts_with("castra: subscribed to "), "{said}");
    member
}

#[test]
fn what_is_printed_is_acked_and_a_restart_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    publish(&mut guest, "t");
    let args = ["--group", "g", "t", "--from", "earliest", "-o", "json"];
    let mut one = Subscriber::start(dir.path(), &[&["-v"], &args[..]].concat());
    assert_eq!(one.hear(), "castra: subscribed to t as a member of the new group g, behind event 0");
    let event: Value = serde_json::from_str(&one.line()).unwrap();
    assert_eq!((&event["seq"], &event["topic"], &event["group"]), (&json!(1), &json!("t"), &Value::Null));
    publish(&mut guest, "t");
    one.line();
    done(&broker, "g", 2);
    one.signal(Signal::SIGTERM);
    let (exit, out, _) = one.end();
    assert_eq!((exit, out), (Some(0), vec![]));
    assert_eq!(stands(&broker, "g")["members"], 0);
    publish(&mut guest, "t");
    // What it says now is not what the group is.
    let mut two =
        Subscriber::start(dir.path(), &["-v", "--group", "g", "u", "--max-attempts", "9", "-o", "json"]);
    let differs =
        "castra: group g was there already and keeps its own topics, max_attempts; 'castra bus group show g'";
    assert_eq!(two.hear(), differs);
    assert_eq!(two.hear(), "castra: subscribed to t as a member of group g, behind event 2");
    assert_eq!(serde_json::from_str::<Value>(&two.line()).unwrap()["seq"], 3);
    done(&broker, "g", 3);
    two.signal(Signal::SIGINT);
    assert_eq!(two.end().0, Some(0));
}

#[test]
fn a_reader_that_goes_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let mut member = member(&broker, &["--group", "g", "t"]);
    drop(std::mem::replace(&mut member.follow.lines, std::sync::mpsc::channel().1));
    // The pipe's other end goes with its thread, which a line wakes.
    for _ in 0..2 {
        publish(&mut guest, "t");
    }
    assert_eq!(eventually("its end", || member.follow.child.try_wait().unwrap()).code(), Some(0));
    // What did not go into the pipe is not done: somebody else gets it.
    publish(&mut guest, "t");
    let left = stands(&broker, "g");
    let cursor = left["cursor"].as_u64().unwrap();
    assert_eq!((cursor <= 2, &left["members"]), (true, &json!(0)), "{left}");
    let mut other = Subscriber::start(dir.path(), &["--group", "g", "-o", "json"]);
    let seq = |line: String| serde_json::from_str::<Value>(&line).unwrap()["seq"].as_u64().unwrap();
    let mut seqs: Vec<u64> = (cursor..3).map(|_| seq(other.line())).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, (cursor + 1..=3).collect::<Vec<_>>());
    other.signal(Signal::SIGTERM);
    other.end();
}

#[test]
fn commands_ack_and_nack_and_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let command = "echo $CASTRA_SEQ $CASTRA_GROUP $CASTRA_ATTEMPT $CASTRA_MAX_ATTEMPTS $(jq -r .topic); \
                   if [ $CASTRA_SEQ = 1 ]; then echo first >&2; echo 'no route' >&2; exit 3; fi";
    let mut member = member(&broker, &["--group", "g", "t.*", "--max-attempts", "2", "--exec", command]);
    publish(&mut guest, "t.a");
    publish(&mut guest, "t.b");
    let mut lines: Vec<String> = (0..3).map(|_| member.line()).collect();
    lines.sort();
    assert_eq!(lines, ["1 g 1 2 t.a", "1 g 2 2 t.a", "2 g 1 2 t.b"]);
    let letter = eventually("the dead letter", || {
        broker.log("host").into_iter().find(|line| line["topic"] == "$dlq.g")
    });
    let failures = json!([
        {"attempt": 1, "cause": "nack", "reason": "ended with 3: no route"},
        {"attempt": 2, "cause": "nack", "reason": "ended with 3: no route"},
    ]);
    assert_eq!(letter["payload"]["failures"], failures, "{letter}");
    done(&broker, "g", 2);
    member.signal(Signal::SIGTERM);
    let (exit, _, err) = member.end();
    assert_eq!(exit, Some(1), "a command failed");
    assert!(
        err.contains(&"castra: the command ended with 3 for event 1, attempt 2 of 2".to_owned()),
        "{err:?}"
    );
    assert_eq!(err.iter().filter(|line| *line == "no route").count(), 2, "what commands say is passed on");
}

#[test]
fn a_long_command_keeps_its_event_and_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let go = dir.path().join("go");
    let command =
        format!("echo $CASTRA_SEQ $CASTRA_ATTEMPT; until [ -e {} ]; do sleep 0.02; done", go.display());
    let args = ["--group", "g", "t", "--ack-timeout", "200ms", "--max-in-flight", "2", "--exec", &command];
    let mut member = member(&broker, &[&args[..], &["--max-attempts", "1"]].concat());
    for _ in 0..3 {
        publish(&mut guest, "t");
    }
    let mut lines = [member.line(), member.line()];
    lines.sort();
    assert_eq!(lines, ["1 1", "2 1"], "two at once, and the third waits");
    // Much longer than the group waits for an answer.
    let since = std::time::Instant::now();
    eventually("time to pass", || (since.elapsed().as_millis() > 900).then_some(()));
    assert_eq!(stands(&broker, "g")["held"], 2);
    member.signal(Signal::SIGINT);
    assert_eq!(member.hear(), "castra: the commands that run are waited for; once more ends them");
    std::fs::write(&go, "").unwrap();
    let (exit, out, err) = member.end();
    assert_eq!((exit, out, err), (Some(0), vec![], vec![]), "each ran once, and nothing more was begun");
    let left = stands(&broker, "g");
    assert_eq!(
        (&left["cursor"], &left["members"], &left["waiting"]),
        (&json!(2), &json!(0), &json!(1)),
        "{left}"
    );
    // It was not delivered in vain when there was room for it.
    let next = Subscriber::start(dir.path(), &["--group", "g", "--exec", "echo $CASTRA_SEQ $CASTRA_ATTEMPT"]);
    assert_eq!(next.line(), "3 1");
}

#[test]
fn members_that_are_killed_leave_their_events_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let handled = dir.path().join("handled");
    let command = format!("sleep 0.01; echo $CASTRA_SEQ >> {}", handled.display());
    let args = ["--group", "g", "t", "--from", "earliest", "--max-attempts", "100", "--exec", &command];
    let start = || member(&broker, &args);
    let mut members = vec![start(), start()];
    for _ in 0..60 {
        publish(&mut guest, "t");
    }
    let count = || std::fs::read_to_string(&handled).unwrap_or_default().lines().count();
    for n in 1..=3 {
        eventually("some to be done", || (count() > 10 * n).then_some(()));
        members.remove(0).follow.child.kill().unwrap();
        members.push(start());
    }
    done(&broker, "g", 60);
    let all = std::fs::read_to_string(&handled).unwrap();
    let mut seqs: Vec<u64> = all.lines().map(|line| line.parse().unwrap()).collect();
    seqs.sort_unstable();
    let repeats = seqs.len();
    seqs.dedup();
    assert_eq!(seqs, (1..=60).collect::<Vec<_>>());
    // Who was killed had one event at a time.
    assert!(repeats <= 60 + 3, "{repeats}");
    for member in &mut members {
        member.signal(Signal::SIGTERM);
        member.end();
    }
}

#[test]
fn a_removed_group_and_what_is_typed_wrongly() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut member = member(&broker, &["--group", "g", "t"]);
    assert_eq!(broker.run(&["bus", "group", "rm", "g"]).status.code(), Some(0));
    let (exit, _, err) = member.end();
    assert_eq!((exit, err), (Some(77), vec!["castra: group-removed: the group was removed".to_owned()]));
    for (args, exit) in [
        (&["--group", "g", "-c", "1"][..], 2),
        (&["--max-in-flight", "3"], 2),
        (&["--group", "a b"], 65),
        (&["--group", "g", "--timeout", "50ms"], 124),
    ] {
        assert_eq!(Subscriber::start(dir.path(), args).end().0, Some(exit), "{args:?}");
    }
}

/// A broker that lets a member in and then says nothing: told to end, or out of time, it ends all the same.
#[test]
fn it_ends_before_it_is_a_member() {
    let member = |args: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let broker = FakeBroker::start(dir.path());
        let member = Subscriber::start(dir.path(), &[&["--group", "g", "t"], args].concat());
        (dir, broker, member)
    };
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (_dir, broker, mut member) = member(&[]);
        let mut session = broker.session(HELLO);
        assert_eq!(session.receive().unwrap()["group"], "g");
        member.signal(signal);
        assert_eq!(member.end(), (Some(0), vec![], vec![]));
    }
    let (_dir, broker, mut late) = member(&["--timeout", "100ms"]);
    let session = broker.session(HELLO);
    let (exit, _, err) = late.end();
    drop(session);
    assert_eq!(exit, Some(124), "{err:?}");
    // Not even let in.
    let (_dir, broker, mut early) = member(&["--timeout", "1h", "--exec", "true"]);
    let connection = broker.connection();
    early.signal(Signal::SIGTERM);
    assert_eq!(early.end().0, Some(0));
    drop(connection);
}

#[test]
fn an_ack_that_reaches_nobody_is_said() {
    for args in [&["--exec", "echo go; while [ ! -e \"$GO\" ]; do sleep 0.01; done"][..], &["-o", "json"]] {
        let dir = tempfile::tempdir().unwrap();
        let broker = Broker::start(dir.path());
        let mut guest = broker.guest("dev");
        let mut command = command(dir.path(), &[&["-v", "--group", "g", "t"], args].concat());
        command.env("GO", dir.path().join("go"));
        let mut member = Subscriber::run(command);
        member.hear();
        let is_command = args[0] == "--exec";
        if is_command {
            publish(&mut guest, "t");
            assert_eq!(member.line(), "go");
        }
        broker.kill();
        let lost = member.hear();
        assert!(lost.contains("connecting again"), "{lost}");
        std::fs::write(dir.path().join("go"), "").unwrap();
        // Once it waits for nothing but the broker.
        member.signal(Signal::SIGINT);
        let (exit, _, err) = member.end();
        let said = "castra: 1 answer did not reach the broker, as far as is known; its event comes again";
        let is_said = err.iter().any(|line| line == said);
        assert_eq!((exit, is_said), (Some(is_command.into()), is_command), "{args:?}: {err:?}");
    }
}
