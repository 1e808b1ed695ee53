//! `--subscribe … --exec`: a command for each event, once in order, over restarts of everything.

use crate::program::{Agent, at};
use crate::support::{Broker, eventually};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// Publishes events of the host, with these payloads.
fn publish(broker: &Broker, topic: &str, payloads: impl IntoIterator<Item = u32>) {
    for payload in payloads {
        let output = broker.run(&["bus", "publish", topic, &payload.to_string()]);
        assert!(output.status.success(), "{output:?}");
    }
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn wait_for(path: &Path, count: usize) -> Vec<String> {
    eventually(&format!("{count} lines"), || Some(lines(path)).filter(|lines| lines.len() >= count))
}

/// A handler that writes what it is told into this file.
fn handler(file: &Path) -> String {
    let file = file.display();
    format!(
        r#"read -r line; case $line in *'"id":"'"$CASTRA_ID"'"'*) ;; *) exit 9;; esac; echo "$CASTRA_SEQ $CASTRA_VM $CASTRA_TOPIC ${{line##*payload}}" >> {file}"#
    )
}

#[test]
fn events_are_handled_once_in_order_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (root, out) = (dir.path().join("state"), dir.path().join("out"));
    let broker = Broker::start(&root);
    publish(&broker, "a.b", [0]);
    let exec = handler(&out);
    let args = ["--subscribe", "a.*", "--subscribe", "vm:web", "--exec", &exec];
    let agent = Agent::start(dir.path(), &at(&root), &args);
    agent.wait_for("subscribed");
    assert_eq!(agent.stop(), Some(0));
    // What was published while it was away, though it had handled nothing yet.
    publish(&broker, "a.b", [1, 2]);
    publish(&broker, "other", [3]);
    publish(&broker, "vm:web", [4]);
    let agent = Agent::start(dir.path(), &at(&root), &args);
    let first = wait_for(&out, 3);
    assert_eq!(first, [r#"2 host a.b ":1}"#, r#"3 host a.b ":2}"#, r#"5 host vm:web ":4}"#]);
    // The broker goes and comes, then the agent.
    assert_eq!(broker.stop().0, Some(0));
    let broker = Broker::start(&root);
    publish(&broker, "a.c", [5]);
    wait_for(&out, 4);
    agent.kill();
    publish(&broker, "a.d", [6]);
    let agent = Agent::start(dir.path(), &at(&root), &args);
    // One that was killed between the command's end and the cursor runs the command again.
    let once = |count| {
        eventually(&format!("{count} events"), || {
            let mut lines = lines(&out);
            lines.dedup();
            (lines.len() >= count).then_some(lines)
        })
    };
    assert_eq!(&once(5)[3..], [r#"6 host a.c ":5}"#, r#"7 host a.d ":6}"#]);
    // The other order of the same patterns is the same subscription.
    assert_eq!(agent.stop(), Some(0));
    publish(&broker, "a.e", [7]);
    let args = ["--subscribe", "vm:web", "--subscribe", "a.*", "--exec", &exec, "--from", "earliest"];
    let agent = Agent::start(dir.path(), &at(&root), &args);
    assert_eq!(&once(6)[5..], [r#"8 host a.e ":7}"#]);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_handler_that_fails_is_run_again_and_at_last_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let (root, out) = (dir.path().join("state"), dir.path().join("out"));
    let broker = Broker::start(&root);
    // Event 1 is handled at the second attempt, event 2 never.
    let exec = format!(
        "echo $CASTRA_SEQ >> {0}; case $CASTRA_SEQ in 1) test $(grep -c 1 {0}) -ge 2;; 2) exit 3;; esac",
        out.display()
    );
    publish(&broker, "a", [1, 2, 3]);
    let args = ["--subscribe", "a", "--exec", &exec, "--from", "earliest"];
    let agent = Agent::start(dir.path(), &at(&root), &args);
    agent.wait_for("the handler ended with exit status: 1 for event 1; trying it again");
    wait_for(&out, 3);
    // At least half a second between two attempts, 16 at the most in all.
    let begun = Instant::now();
    while lines(&out).len() < 8 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", agent.said());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(lines(&out), ["1", "1", "2", "2", "2", "2", "2", "3"]);
    assert!(begun.elapsed() > Duration::from_millis(1500), "{:?}", begun.elapsed());
    agent.wait_for("for event 2, 5 times; the event is passed over");
    assert_eq!(agent.stop(), Some(0));
    publish(&broker, "a", [4]);
    let agent = Agent::start(dir.path(), &at(&root), &args);
    assert_eq!(&wait_for(&out, 9)[8..], ["4"]);
    drop(agent);
}

#[test]
fn a_command_that_runs_at_the_end_may_finish() {
    let dir = tempfile::tempdir().unwrap();
    let (root, out) = (dir.path().join("state"), dir.path().join("out"));
    let broker = Broker::start(&root);
    publish(&broker, "a", [1, 2]);
    let exec = format!("echo begun $CASTRA_SEQ >> {0}; sleep 1; echo done $CASTRA_SEQ >> {0}", out.display());
    let args = ["--subscribe", "a", "--exec", &exec, "--from", "earliest"];
    let agent = Agent::start(dir.path(), &at(&root), &args);
    wait_for(&out, 1);
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(lines(&out), ["begun 1", "done 1"]);
    let agent = Agent::start(dir.path(), &at(&root), &args);
    assert_eq!(&wait_for(&out, 4)[2..], ["begun 2", "done 2"]);
    drop(agent);
}

#[test]
fn another_journal_is_begun_at_its_earliest_event() {
    let dir = tempfile::tempdir().unwrap();
    let (root, out) = (dir.path().join("state"), dir.path().join("out"));
    let broker = Broker::start(&root);
    let exec = handler(&out);
    let args = ["--subscribe", "a", "--exec", &exec];
    let agent = Agent::start(dir.path(), &at(&root), &args);
    agent.wait_for("subscribed");
    publish(&broker, "a", [1, 2, 3]);
    wait_for(&out, 3);
    assert_eq!(broker.stop().0, Some(0));
    // Shorter than the one that was handled, then with another event in its place.
    for (round, payloads) in [(1, vec![11]), (2, vec![21, 22, 23])] {
        let (other, before) = (dir.path().join(format!("other{round}")), lines(&out).len());
        let next = Broker::start(&other);
        publish(&next, "a", payloads.iter().copied());
        assert_eq!(next.stop().0, Some(0));
        std::fs::remove_dir_all(&root).unwrap();
        std::fs::rename(&other, &root).unwrap();
        let broker = Broker::start(&root);
        let all = wait_for(&out, before + payloads.len());
        let want: Vec<String> =
            payloads.iter().enumerate().map(|(i, p)| format!("{} host a \":{p}}}", i + 1)).collect();
        assert_eq!(all[before..], want);
        agent.wait_for_times("the broker's journal is not the one that was received from", round);
        assert_eq!(broker.stop().0, Some(0));
    }
}

#[test]
fn a_slow_handler_costs_no_memory_and_no_session() {
    let dir = tempfile::tempdir().unwrap();
    let (root, out, go) = (dir.path().join("state"), dir.path().join("out"), dir.path().join("go"));
    let broker = Broker::start(&root);
    let exec =
        format!("until test -e {}; do sleep 0.1; done; echo $CASTRA_SEQ >> {}", go.display(), out.display());
    let args = ["--subscribe", "a", "--exec", &exec, "--heartbeat", "300ms", "--silence", "2s"];
    let agent = Agent::start(dir.path(), &at(&root), &args);
    agent.wait_for("subscribed");
    let mut guest = broker.guest("other");
    let payload = "x".repeat(50_000);
    // 3 MB, three times what may wait.
    for _ in 0..60 {
        let ack = guest.ask(format!(r#"{{"type":"publish","topic":"a","payload":"{payload}"}}"#));
        assert_eq!(ack["status"], "ok");
    }
    // Publishing goes on in the same session meanwhile.
    agent.program().publish(r#"{"topic":"t","id":"own"}"#);
    agent.drained();
    std::thread::sleep(Duration::from_secs(3));
    assert!(!agent.said().contains("not heard") && agent.said().matches("connected to").count() == 1);
    std::fs::write(&go, "").unwrap();
    let want: Vec<String> = (1..=60).map(|seq| seq.to_string()).collect();
    assert_eq!(wait_for(&out, 60), want);
}
