//! What sessions signal: a record, a line of the log and a counter for each, rare enough to be read.

use crate::support::{Broker, broker_log, eventually, records};
use castra::core::end::End;
use castra::core::events::{Recorder, Signals};
use castra::core::identity::VmName;
use castra::core::signals::Signal;
use castra::core::state_root::StateRoot;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::Path;

/// The counters that are not 0, those of ends by their reason.
fn counted(status: &Value) -> BTreeMap<String, u64> {
    let counters = status["broker"]["counters"].as_object().expect("counters");
    let ends = counters["disconnects"].as_object().expect("disconnects");
    let groups = ["disconnects", "handshakes"];
    let all = counters.iter().filter(|(name, _)| !groups.contains(&name.as_str())).chain(ends);
    all.map(|(name, n)| (name.clone(), n.as_u64().unwrap())).filter(|(_, n)| *n > 0).collect()
}

fn counts(broker: &Broker, want: &[(&str, u64)]) {
    let want: BTreeMap<String, u64> = want.iter().map(|(name, n)| (name.to_string(), *n)).collect();
    eventually(&format!("{want:?}"), || (counted(&broker.status()) == want).then_some(()));
}

fn ends(root: &Path) -> BTreeMap<String, String> {
    let text = |record: &Value, field: &str| record[field].as_str().unwrap().to_owned();
    let records = records(root, "bus-events");
    assert!(records.iter().all(|r| r["action"] == "disconnect" && r.get("folded").is_none()), "{records:?}");
    let ends: BTreeMap<_, _> = records.iter().map(|r| (text(r, "vm"), text(r, "reason"))).collect();
    assert_eq!(ends.len(), records.len(), "each session ended once: {records:?}");
    ends
}

#[test]
fn every_end_of_a_session_is_recorded_and_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start_args(dir.path(), &["--idle-time", "600ms"]);
    counts(&broker, &[]);
    let mut silent = broker.guest("silent");
    drop(broker.guest("gone"));
    let mut wrong = broker.guest("wrong");
    wrong.stream.get_mut().write_all(&[0; 4]).unwrap();
    for guest in [&mut wrong, &mut silent] {
        assert_eq!(guest.receive().unwrap()["type"], "close");
    }
    let ended = [("frame-empty", 1), ("heartbeat-timeout", 1), ("peer-closed", 1), ("sessions_opened", 3)];
    counts(&broker, &ended);
    let table = String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    assert!(table.contains("\nsince its start: sessions timed out 1\n"), "{table}");

    let mut last = broker.guest("last");
    assert_eq!(broker.stop().0, Some(0));
    assert_eq!(last.receive().unwrap()["reason"], "draining");
    let want = [("gone", "peer-closed"), ("wrong", "frame-empty"), ("silent", "heartbeat-timeout")];
    let want = want.into_iter().chain([("last", "draining")]);
    let want: BTreeMap<String, String> = want.map(|(vm, end)| (vm.to_owned(), end.to_owned())).collect();
    assert_eq!(ends(dir.path()), want);
    let lines = broker_log(dir.path());
    for reason in want.values() {
        let said = |line: &&String| line.contains(reason) && line.contains("disconnect");
        assert_eq!(lines.iter().filter(said).count(), 1, "{reason}: {lines:?}");
    }

    // What the last one counted is shown until the next begins to count.
    let output =
        crate::support::castra().arg("--state-root").arg(dir.path()).args(["status", "--json"]).output();
    let offline = counted(&serde_json::from_slice(&output.unwrap().stdout).unwrap());
    assert_eq!((offline["draining"], offline["sessions_opened"]), (1, 4));
    counts(&Broker::start(dir.path()), &[]);
}

/// A detail that nobody is to ask for.
struct Unsaid;

impl fmt::Display for Unsaid {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("a folded signal has no detail")
    }
}

#[test]
fn what_a_session_signals_again_and_again_is_folded() {
    let dir = tempfile::tempdir().unwrap();
    let root = StateRoot::resolve(Some(dir.path().to_owned()));
    let _lock = root.open().unwrap();
    let recorder = Recorder::start(&root, 64 << 20).unwrap();
    let session = |n| {
        let vm = VmName::parse("dev").unwrap();
        Signals::new(recorder.clone(), vm, n)
    };
    let (mut one, mut two) = (session(1), session(2));
    for signal in [Signal::BackPressureEntered, Signal::BackPressureLeft, Signal::WriteRetry(0)] {
        one.say(signal, format_args!("{signal:?}"));
        for _ in 0..100 {
            one.say(signal, Unsaid);
        }
    }
    // Another step, another session: said.
    one.say(Signal::WriteRetry(1), "longer");
    two.say(Signal::BackPressureEntered, "the other");
    one.say(Signal::Ended(End::SlowConsumer), "the end");
    one.say(Signal::WriteRetry(2), Unsaid);
    one.say(Signal::Ended(End::IoError), Unsaid);
    two.say(Signal::Ended(End::PeerClosed), "the end");
    recorder.stop();

    let said: Vec<Value> = records(dir.path(), "bus-events")
        .into_iter()
        .map(|r| json!([r["session"], r["reason"], r["action"], r.get("folded"), r["detail"]]))
        .collect();
    assert_eq!(
        Value::from(said),
        json!([
            [1, "back-pressure", "entered", null, "BackPressureEntered"],
            [1, "back-pressure", "left", null, "BackPressureLeft"],
            [1, "slow-consumer", "retry", null, "WriteRetry(0)"],
            [1, "slow-consumer", "retry", null, "longer"],
            [2, "back-pressure", "entered", null, "the other"],
            [1, "slow-consumer", "disconnect", 300, "the end"],
            [2, "peer-closed", "disconnect", null, "the end"],
        ])
    );
    let counted = recorder.counters.read();
    assert_eq!((counted.sessions_opened, counted.signals_folded, counted.write_retries), (2, 300, 102));
    assert_eq!((counted.back_pressure_entered, counted.back_pressure_left), (102, 101));
    assert_eq!((counted.disconnects.slow_consumer, counted.disconnects.io_error), (1, 0));
}

#[test]
fn the_status_of_a_broker_that_counted_nothing_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    broker.guest("dev").ask(r#"{"type":"publish"}"#);
    eventually("the publish", || broker.status()["vms"][0]["last_publish_age_ms"].as_i64());
    assert_eq!(broker.stop().0, Some(0));
    // The same words without what is new.
    let path = dir.path().join("status");
    let mut file = std::fs::read(&path).unwrap();
    let (slot, mut changed) = (file.len() / 2, 0);
    for at in [0, slot] {
        let length = u32::from_le_bytes(file[at + 16..at + 20].try_into().unwrap()) as usize;
        let mut said: Value = serde_json::from_slice(&file[at + 24..at + 24 + length]).unwrap();
        changed += usize::from(said.as_object_mut().unwrap().remove("counters").is_some());
        for vm in said["vms"].as_array_mut().unwrap() {
            vm.as_object_mut().unwrap().remove("topics_more").expect("topics_more");
        }
        let said = serde_json::to_vec(&said).unwrap();
        file[at + 16..at + 20].copy_from_slice(&(said.len() as u32).to_le_bytes());
        file[at + 24..at + 24 + said.len()].copy_from_slice(&said);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&file[at + 8..at + 20]), &said);
        file[at + 20..at + 24].copy_from_slice(&crc.to_le_bytes());
    }
    assert_eq!(changed, 2);
    std::fs::write(&path, file).unwrap();
    let broker = Broker::start(dir.path());
    let shown = broker.status();
    assert_eq!((&shown["vms"][0]["name"], &shown["vms"][0]["topics_more"]), (&json!("dev"), &json!(0)));
    assert_eq!(counted(&shown), BTreeMap::new());
}
