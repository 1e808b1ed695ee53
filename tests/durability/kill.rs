//! `kill -9` under load. Not a power cut: the page cache survives it.

use crate::load::{Ledger, Load, PLAN, check, log_text, publish_one};
use crate::support::Broker;

const SMALL: [&str; 2] = ["--segment-bytes", "1048576"];

#[test]
fn fifty_kills_lose_nothing_and_repeat_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let mut ledger = Ledger::default();
    for round in 0..50 {
        let broker = Broker::start_args(&root, &SMALL);
        if round > 0 {
            cheap_check(&broker, &ledger);
        }
        if round % 10 == 9 {
            check(&root, &ledger);
        }
        let load = Load::start(&broker, &format!("kill{round}"), PLAN);
        // Sometimes right at the beginning, sometimes a few segments later.
        load.reach([1, 300, 3_000, 50, 1_200][round % 5] + 37 * round);
        broker.kill();
        ledger.merge(load.join());
    }
    let broker = Broker::start_args(&root, &SMALL);
    let head = check(&root, &ledger);
    let segments = broker.status()["broker"]["journal"]["segments"].as_u64().unwrap();
    println!("{} events acked, {} unknown, {segments} segments", ledger.acked.len(), ledger.unknown.len());
    assert!(segments > 50, "each start begins one");
    assert_eq!(publish_one(&broker, "after"), head + 1);
    assert_eq!(broker.stop().0, Some(0));

    // The same from the journal alone.
    let before = log_text(&root, "bus");
    std::fs::remove_dir_all(root.join("logs")).unwrap();
    let broker = Broker::start_args(&root, &SMALL);
    check(&root, &ledger);
    assert!(log_text(&root, "bus") == before, "bus.log is written anew from the journal as it was");
    drop(broker);
}

/// After every restart: as many lines as events, and no fewer than were acked.
fn cheap_check(broker: &Broker, ledger: &Ledger) {
    let text = log_text(&broker.root, "bus");
    let status = broker.status();
    let journal = &status["broker"]["journal"];
    let head = journal["head_seq"].as_u64().unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len() as u64, head);
    assert_eq!(journal["logs_seq"], head);
    assert_eq!(journal["damage"], serde_json::json!([]));
    assert!(head >= ledger.head(), "{head} < {}", ledger.head());
    for (seq, sent) in ledger.acked.iter().rev().take(500) {
        let line = lines[*seq as usize - 1];
        assert!(line.starts_with(&format!("{{\"seq\":{seq},")) && line.contains(&sent.payload), "{line}");
    }
}
