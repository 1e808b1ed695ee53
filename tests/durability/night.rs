//! A night on call: what goes wrong one after the other, seen and mended with castra's own commands.

use crate::faults::{Mounted, skip};
use crate::load::{Load, Plan, publish_one};
use crate::support::{Broker, broker_log, castra, eventually, read_log};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::Ordering::SeqCst;

const SMALL: [&str; 2] = ["--segment-bytes", "1048576"];

fn run(root: &Path, args: &[&str]) -> (i32, String) {
    let output: Output = castra().arg("--state-root").arg(root).args(args).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code().unwrap(), said)
}

fn state(root: &Path, want: &str) {
    eventually(want, || {
        let status: Value = serde_json::from_str(&run(root, &["status", "--json"]).1).unwrap();
        (status["broker"]["state"] == want).then_some(())
    });
}

/// Flips one bit in the payload of an event in the middle of the oldest segment; the segment's name.
fn flip_a_bit(root: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(root.join("journal"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".seg"))
        .collect();
    names.sort();
    assert!(names.len() > 1, "one of them is sealed");
    let path = root.join("journal").join(&names[0]);
    let mut bytes = std::fs::read(&path).unwrap();
    let word = b"\"payload\":";
    let places: Vec<usize> =
        bytes.windows(word.len()).enumerate().filter(|(_, w)| w == word).map(|(at, _)| at).collect();
    bytes[places[places.len() / 2] + word.len() + 2] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    names.swap_remove(0)
}

#[test]
fn a_night() {
    let disk = match Mounted::new(96) {
        Ok(disk) => disk,
        Err(why) => return skip("a_night", &why),
    };
    let root = disk.root();
    let broker = Broker::start_args(&root, &SMALL);
    let load = Load::start(&broker, "evening", Plan { publishers: 3, window: 8, pad: 300 });
    load.reach(5_000);

    // The disk fills up: status and the exit code of publish say so.
    let filler = disk.fill();
    eventually("refusals", || (load.refused.load(SeqCst) > 20).then_some(()));
    let mut ledger = load.stop();
    let big = format!("\"{}\"", "x".repeat(50_000));
    eventually("disk-full", || {
        let (code, said) = run(&root, &["bus", "publish", "night", &big]);
        assert!(code == 0 || code == 75, "{code} {said}");
        (code == 75 && said.contains("disk-full")).then_some(())
    });
    state(&root, "disk-full");
    let (code, said) = run(&root, &["status"]);
    assert!(code == 1 && said.contains("broker disk-full") && said.contains("free space"), "{said}");
    // It is freed, and all goes on by itself.
    drop(filler);
    eventually("room", || (run(&root, &["bus", "publish", "night", "1"]).0 == 0).then_some(()));
    state(&root, "running");
    assert_eq!(run(&root, &["status", "-q"]).0, 0);
    assert_eq!(run(&root, &["verify"]).0, 0);

    // A bit flips in a sealed segment: verify names it, and the broker starts all the same, saying so.
    assert_eq!(broker.stop().0, Some(0));
    let segment = flip_a_bit(&root);
    let (code, said) = run(&root, &["verify"]);
    let named = said.lines().find(|line| line.contains(&segment) && line.contains("cannot be read"));
    let range = named.unwrap_or_else(|| panic!("{said}")).to_owned();
    assert!(code == 1 && range.contains("(event"), "{code} {said}");
    let broker = Broker::start_args(&root, &SMALL);
    eventually("the damage in status", || {
        let shown = broker.status()["broker"]["journal"]["damage"][0].as_str()?.to_owned();
        (shown.contains(&segment)).then_some(())
    });
    assert!(run(&root, &["status"]).1.contains(&format!("damage: journal/{segment}")));
    assert!(broker_log(&root).iter().any(|line| line.contains("damage") && line.contains(&segment)));

    // Somebody stops it dead.
    broker.signal(Signal::SIGSTOP);
    state(&root, "unresponsive");
    let (code, said) = run(&root, &["bus", "publish", "night", "2", "--timeout", "200ms"]);
    assert_eq!(code, 124, "{said}");
    broker.signal(Signal::SIGCONT);
    state(&root, "running");

    // A backup under load.
    let load = Load::start(&broker, "morning", Plan { publishers: 3, window: 8, pad: 300 });
    load.reach(1_000);
    let last = publish_one(&broker, "before the backup");
    let acked = load.acked.load(SeqCst);
    let backup = disk.at.join("backup");
    let (code, said) = run(&root, &["backup", backup.to_str().unwrap()]);
    // The damage is copied as it is, and said.
    assert!(code == 1 && said.contains(&segment), "{code} {said}");
    load.reach(acked + 100);
    ledger.merge(load.stop());
    broker.kill();
    let restored = Broker::start_args(&backup, &SMALL);
    let lines: BTreeMap<u64, Value> =
        read_log(&backup, "bus").into_iter().map(|line| (line["seq"].as_u64().unwrap(), line)).collect();
    let before = ledger.acked.range(..=last);
    assert!(before.clone().count() >= 5_000);
    for (seq, sent) in before {
        let line = lines.get(seq).unwrap_or_else(|| panic!("seq {seq} was acked before the backup"));
        let payload: Value = serde_json::from_str(&sent.payload).unwrap();
        assert_eq!((line["vm"].as_str().unwrap(), &line["payload"]), (sent.vm.as_str(), &payload));
    }
    assert!(publish_one(&restored, "day") > last);
    assert_eq!(run(&backup, &["status", "-q"]).0, 0);
}
