//! Disks that fill up and are freed again, are full at the start, or are read-only.

use crate::faults::{Mounted, skip};
use crate::load::{Load, PLAN, Plan, check, log_text, logs_reach, publish_one};
use crate::support::{Broker, Guest, castra, eventually};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

pub const SMALL: [&str; 2] = ["--segment-bytes", "2097152"];

/// Publishes until the answer is `code` ("ok" for an ack).
pub fn until(guest: &mut Guest, code: &str) {
    static PROBES: AtomicUsize = AtomicUsize::new(0);
    eventually(code, || {
        let n = PROBES.fetch_add(1, SeqCst);
        let ack = guest.ask(format!("{{\"type\":\"publish\",\"payload\":\"probe {n}\"}}"));
        let said = if ack["status"] == "ok" { &ack["status"] } else { &ack["code"] };
        (said == code).then_some(())
    });
}

/// Publishes a line for each number; what is to be sent again is left. Whether the disk was full.
fn publish_lines(broker: &Broker, left: &mut Vec<u64>) -> bool {
    let pad = "x".repeat(1_000);
    let line = |n: &u64| format!("{{\"topic\":\"lines\",\"key\":\"{n}\",\"payload\":\"line {n} {pad}\"}}\n");
    let file = broker.root.parent().unwrap().with_extension("lines");
    std::fs::write(&file, left.iter().map(line).collect::<String>()).unwrap();
    let output = broker.run(&["bus", "publish", "--jsonl", "--json", "--file", file.to_str().unwrap()]);
    if output.status.success() {
        left.clear();
        return false;
    }
    let said: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((&said["code"], output.status.code()), (&"disk-full".into(), Some(75)), "{said}");
    let (resume, ranges) = (said["resume_line"].as_u64().unwrap(), said["not_stored"].as_array().unwrap());
    let is_open = |line: u64| {
        let within = |range: &serde_json::Value| {
            (range[0].as_u64().unwrap()..=range[1].as_u64().unwrap()).contains(&line)
        };
        line >= resume || ranges.iter().any(within)
    };
    *left = left.iter().zip(1..).filter(|(_, line)| is_open(*line)).map(|(n, _)| *n).collect();
    true
}

#[test]
fn a_disk_that_fills_up_refuses_and_resumes_by_itself() {
    let disk = match Mounted::new(64) {
        Ok(disk) => disk,
        Err(why) => return skip("a_disk_that_fills_up_refuses_and_resumes_by_itself", &why),
    };
    let broker = Broker::start_args(&disk.root(), &SMALL);
    let load = Load::start(&broker, "full", Plan { publishers: 3, window: 8, pad: 200 });
    load.reach(200);
    let filler = disk.fill();
    eventually("refusals", || (load.refused.load(SeqCst) > 20).then_some(()));
    eventually("disk-full", || (broker.status()["broker"]["state"] == "disk-full").then_some(()));
    let status = broker.run(&["status", "--json"]);
    assert_eq!(status.status.code(), Some(1), "not running");

    // What the broker writes of itself took its last bytes, if there were any.
    let mut guest = broker.guest("probe");
    until(&mut guest, "disk-full");
    let mut n = 0;
    eventually("disk-full of the command", || {
        n += 1;
        let published = broker.run(&["bus", "publish", "t", &n.to_string()]);
        let said = String::from_utf8_lossy(&published.stderr).into_owned();
        assert_eq!(published.status.code(), Some(75), "{said}");
        // Small events go on to find room at the end of a segment that the last large one did not fit.
        said.contains("disk-full").then_some(())
    });
    assert_eq!(guest.ask("{\"type\":\"heartbeat\"}")["status"], "ok");

    let mut left: Vec<u64> = (1..=2_000).collect();
    let stopped = publish_lines(&broker, &mut left);
    assert!(stopped && !left.is_empty());

    let acked = load.acked.load(SeqCst);
    drop(filler);
    load.reach(acked + 500);
    until(&mut guest, "ok");
    eventually("running", || (broker.status()["broker"]["state"] == "running").then_some(()));
    assert!(!publish_lines(&broker, &mut left) && left.is_empty());
    let mut published: Vec<u64> =
        broker.log("host").iter().filter_map(|event| event["key"].as_str()?.parse().ok()).collect();
    published.sort_unstable();
    assert!(published == (1..=2_000).collect::<Vec<_>>(), "each line once");
    let ledger = load.stop();
    for heard in &ledger.heard {
        assert!(heard.iter().all(|what| what == "disk-full"), "the sessions lived: {heard:?}");
    }
    assert!(ledger.unknown.is_empty() && !ledger.refused.is_empty());
    // The last of the sessions' events is stored; one more is behind all of them.
    logs_reach(&broker, publish_one(&broker, "last"));
    assert_eq!(broker.status()["broker"]["logs_stalled"], serde_json::Value::Null);
    let head = check(&disk.root(), &ledger);
    println!("{} acked, {} refused", ledger.acked.len(), ledger.refused.len());

    // Full again, and killed there.
    let filler = disk.fill();
    broker.kill();
    drop(filler);
    let broker = Broker::start_args(&disk.root(), &SMALL);
    check(&disk.root(), &ledger);
    assert_eq!(publish_one(&broker, "after"), head + 1);
}

#[test]
fn a_broker_whose_disk_is_full_is_not_ready_and_is_well() {
    let test = "a_broker_whose_disk_is_full_is_not_ready_and_is_well";
    let disk = match Mounted::new(64) {
        Ok(disk) => disk,
        Err(why) => return skip(test, &why),
    };
    let args = [&SMALL[..], &["--metrics", "127.0.0.1:0"]].concat();
    let broker = Broker::start_args(&disk.root(), &args);
    let listeners = broker.status()["broker"]["listeners"].to_string();
    let at = listeners.split("metrics:").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    };
    let is = |page: &str, status: &str, body: &str| page.starts_with(status) && page.ends_with(body);
    let mut guest = broker.guest("web");
    until(&mut guest, "ok");
    assert!(is(&get("/readyz"), "HTTP/1.1 200 ", "\r\n\r\nrunning\n"));
    let filler = disk.fill();
    let (pad, mut n) = ("x".repeat(50_000), 0);
    eventually("a refusal", || {
        n += 1;
        let ack = guest.ask(format!("{{\"type\":\"publish\",\"payload\":\"{n} {pad}\"}}"));
        (ack["code"] == "disk-full").then_some(())
    });
    eventually("not ready", || is(&get("/readyz"), "HTTP/1.1 503 ", "\r\n\r\ndisk-full\n").then_some(()));
    assert!(is(&get("/healthz"), "HTTP/1.1 200 ", "\r\n\r\nok\n"));
    eventually("few bytes that are free", || {
        let page = get("/metrics");
        let free = page.split("\ncastra_disk_free_bytes ").nth(1)?.lines().next()?.parse::<u64>().unwrap();
        (free < 4 << 20 && page.contains("castra_state{state=\"disk-full\"} 1")).then_some(())
    });
    drop(filler);
    until(&mut guest, "ok");
    eventually("ready", || is(&get("/readyz"), "HTTP/1.1 200 ", "running\n").then_some(()));
}

#[test]
fn what_was_under_way_behind_a_refused_event_is_not_stored_before_it() {
    let test = "what_was_under_way_behind_a_refused_event_is_not_stored_before_it";
    let disk = match Mounted::new(64) {
        Ok(disk) => disk,
        Err(why) => return skip(test, &why),
    };
    let broker = Broker::start_args(&disk.root(), &SMALL);
    let mut guest = broker.guest("web");
    let _filler = disk.fill();
    // Large ones find no room long before small ones do, and each is a batch of its own.
    let (pad, mut n) = ("x".repeat(50_000), 0);
    let (stored, refused) = eventually("a burst of which something is refused", || {
        let burst = 40;
        for i in 0..burst {
            let pad = if i % 2 == 0 { &pad } else { "" };
            guest.send(format!("{{\"type\":\"publish\",\"payload\":\"{n} {pad}\"}}"));
            n += 1;
        }
        let acks = (0..burst).map(|_| guest.receive().unwrap()["status"] == "ok").collect::<Vec<_>>();
        let stored = acks.iter().take_while(|ok| **ok).count();
        (stored < burst).then(|| (stored, acks[stored..].iter().filter(|ok| !**ok).count()))
    });
    assert_eq!(stored + refused, 40, "something behind the first refused event was stored");
}

/// A start either works, or says what is wrong and what is full.
fn starts_or_says(disk: &Mounted, codes: &[i32], says: &str) -> Option<Broker> {
    match Broker::try_start(&disk.root(), castra(), &SMALL) {
        Ok(broker) => Some(broker),
        Err((code, said)) => {
            assert!(codes.contains(&code.unwrap()), "{code:?}: {said}");
            assert!(said.contains(says) && said.contains("castra: ") && !said.contains("panicked"), "{said}");
            println!("{said}");
            None
        }
    }
}

#[test]
fn a_start_on_a_full_disk_says_so() {
    let disk = match Mounted::new(64) {
        Ok(disk) => disk,
        Err(why) => return skip("a_start_on_a_full_disk_says_so", &why),
    };
    // Nothing there yet.
    let filler = disk.fill();
    assert!(starts_or_says(&disk, &[73, 74], "No space left").is_none(), "it cannot even make its status");
    drop(filler);

    // Stopped with all in order: it starts, and refuses.
    let broker = Broker::start_args(&disk.root(), &SMALL);
    let load = Load::start(&broker, "a", PLAN);
    load.reach(3_000);
    let mut ledger = load.stop();
    assert_eq!(broker.stop().0, Some(0));
    let filler = disk.fill();
    if let Some(broker) = starts_or_says(&disk, &[74], "No space left") {
        check(&disk.root(), &ledger);
        let load = Load::start(&broker, "spare", PLAN);
        eventually("refusals", || (load.refused.load(SeqCst) > 20).then_some(()));
        eventually("disk-full", || (broker.status()["broker"]["state"] == "disk-full").then_some(()));
        drop(filler);
        until(&mut broker.guest("probe"), "ok");
        broker.kill();
        ledger.merge(load.join());
    }

    // Killed under load, the tail is to be rewritten and the logs to be written on.
    let broker = Broker::start_args(&disk.root(), &SMALL);
    let load = Load::start(&broker, "b", PLAN);
    load.reach(3_000);
    broker.kill();
    ledger.merge(load.join());
    let filler = disk.fill();
    drop(starts_or_says(&disk, &[74], "No space left"));
    // Nor is there room for logs that are gone.
    drop(filler);
    let logs = disk.root().join("logs");
    for file in std::fs::read_dir(logs.join("bus")).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let _ = std::fs::remove_file(logs.join("checkpoint"));
    let filler = disk.fill();
    let says = "free 256 MiB there, then start the broker again";
    assert!(starts_or_says(&disk, &[74], says).is_none(), "it has no room for its logs");
    drop(filler);
    let broker = Broker::start_args(&disk.root(), &SMALL);
    let head = check(&disk.root(), &ledger);
    assert_eq!(publish_one(&broker, "after"), head + 1);
}

#[test]
fn a_read_only_disk_is_named_and_can_be_read() {
    let disk = match Mounted::new(64) {
        Ok(disk) => disk,
        Err(why) => return skip("a_read_only_disk_is_named_and_can_be_read", &why),
    };
    let root = disk.root();
    std::fs::create_dir(disk.at.join("fresh")).unwrap();
    let broker = Broker::start_args(&root, &SMALL);
    assert_eq!(publish_one(&broker, "one"), 1);
    logs_reach(&broker, 1);
    assert_eq!(broker.stop().0, Some(0));
    disk.remount("ro");
    assert!(starts_or_says(&disk, &[73, 74], "Read-only file system").is_none());
    let fresh = Broker::try_start(&disk.at.join("fresh/state"), castra(), &[]);
    let (code, said) = fresh.err().expect("no start");
    assert_eq!(code, Some(73), "{said}");
    let run = |args: &[&str]| castra().arg("--state-root").arg(&root).args(args).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&run(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["broker"]["state"], "offline");
    let tail = run(&["bus", "tail", "-o", "raw"]);
    assert_eq!((tail.status.code(), tail.stdout), (Some(0), b"\"one\"\n".to_vec()));
    disk.remount("rw");
    let broker = Broker::start_args(&root, &SMALL);
    assert_eq!(log_text(&root, "bus").lines().count(), 1);
    assert_eq!(publish_one(&broker, "two"), 2);
}
