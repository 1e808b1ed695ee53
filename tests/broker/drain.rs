//! The orderly end: what is owed is answered, everybody is told, and it takes less than 5 s.

use crate::support::{Broker, Guest, broker_log, frame, read_log};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::Write;
use std::time::{Duration, Instant};

/// Keeps a window of publishes in flight until the close frame; the acked (seq, payload) and the close frame.
fn publish_until_closed(mut guest: Guest) -> (Vec<(u64, u64)>, Value) {
    let (mut acked, mut sent) = (Vec::new(), 0);
    loop {
        while sent < acked.len() as u64 + 200 {
            if guest.try_send(format!(r#"{{"type":"publish","payload":{sent}}}"#)).is_err() {
                break;
            }
            sent += 1;
        }
        let frame = guest.receive().expect("a close frame before the end");
        match frame["type"].as_str() {
            Some("ack") => acked.push((frame["seq"].as_u64().unwrap(), acked.len() as u64)),
            _ => return (acked, frame),
        }
    }
}

fn drains_on(signal: Signal) {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut idle = broker.guest("idle");
    let mut pending = Guest::connect(&broker.addr);
    let busy: Vec<_> = (0..3)
        .map(|n| {
            let guest = broker.guest(&format!("busy{n}"));
            std::thread::spawn(move || publish_until_closed(guest))
        })
        .collect();
    crate::support::eventually("some events", || {
        (broker.status()["broker"]["journal"]["head_seq"].as_u64()? > 1000).then_some(())
    });
    let since = Instant::now();
    broker.signal(signal);
    let close = json!({"type":"close","reason":"draining","retry_after_ms":1000});
    assert_eq!(idle.receive(), Some(close.clone()));
    assert!(idle.receive().is_none());
    assert_eq!(pending.line(), "error: draining");
    let busy: Vec<_> = busy.into_iter().map(|thread| thread.join().unwrap()).collect();
    drop((idle, pending));
    assert_eq!(broker.wait(), (Some(0), String::new()));
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    for (n, (acked, last)) in busy.into_iter().enumerate() {
        assert_eq!(last, close);
        let log: Vec<(u64, u64)> = read_log(dir.path(), &format!("busy{n}"))
            .iter()
            .map(|e| (e["seq"].as_u64().unwrap(), e["payload"].as_u64().unwrap()))
            .collect();
        assert!(acked.len() > 100);
        assert_eq!(acked, log, "what was stored is what was acked");
    }
    assert!(!dir.path().join("castra.sock").exists());
    assert!(broker_log(dir.path()).iter().any(|line| line.contains("draining")));
    // Nothing is left to complete: the logs are as they were.
    let before = std::fs::read(dir.path().join("logs/bus/bus.log")).unwrap();
    let _broker = Broker::start(dir.path());
    assert_eq!(std::fs::read(dir.path().join("logs/bus/bus.log")).unwrap(), before);
}

#[test]
fn sigterm_drains() {
    drains_on(Signal::SIGTERM);
}

#[test]
fn sigint_drains() {
    drains_on(Signal::SIGINT);
}

#[test]
fn peers_that_do_not_listen_do_not_hold_up_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut deaf = broker.guest("deaf");
    nix::sys::socket::setsockopt(deaf.stream.get_ref(), nix::sys::socket::sockopt::RcvBuf, &4096).unwrap();
    deaf.stream.get_ref().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let many: Vec<u8> = (0..1000).flat_map(|_| frame(r#"{"type":"publish"}"#)).collect();
    while deaf.stream.get_mut().write_all(&many).is_ok() {}
    // And one that goes on talking, and never closes.
    let (talker, mut writer) = {
        let guest = broker.guest("talker");
        let writer = guest.stream.get_ref().try_clone().unwrap();
        (guest, writer)
    };
    let talk =
        std::thread::spawn(move || while writer.write_all(&frame(r#"{"type":"heartbeat"}"#)).is_ok() {});
    let (code, took) = broker.stop();
    assert_eq!(code, Some(0));
    println!("ended after {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop((deaf, talker));
    talk.join().unwrap();
}
