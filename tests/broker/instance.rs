//! A program has one session at a time, and a session that floods is looked at like any other.

use crate::support::{Broker, PATIENCE, castra, eventually};
use nix::sys::signal::Signal;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

#[test]
fn a_program_that_says_hello_again_ends_its_session_before() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let hello = |vm: &str, instance: &str| {
        broker.greet(&format!("hello vm:{vm} capabilities=bus-v1 instance={instance} epoch=e1\n"))
    };
    let (mut old, answer) = hello("web", "a1");
    assert!(answer.starts_with("ok session=") && answer.ends_with(" epoch=e1"), "{answer}");
    let (mut other, _) = hello("web", "b2");
    let (mut same, _) = hello("db", "a1");
    assert_eq!(old.ask(r#"{"type":"publish","id":"1"}"#)["seq"], 1);
    let (mut new, _) = hello("web", "a1");
    // What was under way in the old one comes too late.
    let late = [&42u32.to_be_bytes()[..], br#"{"type":"publish","id":"late","payload":1}"#].concat();
    let _ = old.stream.get_mut().write_all(&late);
    assert_eq!(old.receive().unwrap()["reason"], "replaced");
    for (guest, id, seq) in [(&mut new, "2", 2), (&mut other, "3", 3), (&mut same, "4", 4)] {
        assert_eq!(guest.ask(&format!(r#"{{"type":"publish","id":"{id}"}}"#))["seq"], seq);
    }
    let counted = || broker.status()["broker"]["counters"]["disconnects"]["replaced"] == 1;
    eventually("the counter", || counted().then_some(()));
}

#[test]
fn a_guest_that_floods_is_judged_anew_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("castra.toml");
    let known = "[broker]\ntrust = \"known\"\n[[vms]]\nname = \"good\"\n";
    std::fs::write(&config, format!("{known}[[vms]]\nname = \"evil\"\n")).unwrap();
    let mut command = castra();
    command.env("CASTRA_CONFIG", &config);
    let broker = Broker::start_with(&dir.path().join("root"), command, &[]);
    let mut evil = broker.guest("evil");
    let frame = [&20u32.to_be_bytes()[..], br#"{"type":"heartbeat"}"#].concat().repeat(3_000);
    let (mut out, over) = (evil.stream.get_ref().try_clone().unwrap(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // It fails when the broker has closed.
        scope.spawn(|| {
            loop {
                if over.load(SeqCst) || out.write_all(&frame).is_err() {
                    return;
                }
            }
        });
        (0..10_000).for_each(|_| assert_eq!(evil.receive().unwrap()["ack"], "heartbeat"));
        std::fs::write(&config, known).unwrap();
        broker.signal(Signal::SIGHUP);
        let began = Instant::now();
        // A peer that still sends when its connection is closed may lose the close frame.
        while let Some(frame) = evil.receive().filter(|frame| frame["type"] != "close") {
            assert_eq!(frame["ack"], "heartbeat");
            assert!(began.elapsed() < PATIENCE, "it goes on");
        }
        over.store(true, SeqCst);
    });
    let ended = || broker.status()["broker"]["counters"]["disconnects"]["identity-revoked"] == 1;
    eventually("the end to be counted", || ended().then_some(()));
}
