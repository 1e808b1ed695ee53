//! The kernel's own vsock: a broker that listens on it and an agent that dials it, both inside one guest, over its
//! loopback (CID 1). On the machine that runs the tests no such address is dialled.

use crate::ground;
use crate::machine::{Machine, Settings};
use crate::support::skip;
use serde_json::Value;
use std::path::Path;

fn json(said: &str) -> Option<Value> {
    serde_json::from_str(said).ok()
}

#[test]
fn the_cid_names_the_vm() {
    const NAME: &str = "the_cid_names_the_vm";
    let dir = tempfile::tempdir().unwrap();
    let broker = |ground| {
        let program = Path::new(env!("CARGO_BIN_EXE_castra"));
        Ok((ground, ground::with_libraries(program, "castra-broker", dir.path())?))
    };
    let laid = ground::lay().and_then(broker);
    let (ground, mut files) = match laid {
        Ok(laid) => laid,
        Err(why) => return skip(NAME, &why),
    };
    let config = "[[vms]]\nname = \"inner\"\ncid = 1\n";
    files.push(("etc/castra.toml".to_owned(), config.into()));
    let mut guest =
        Machine::boot(&ground, dir.path(), &Settings { memory_mib: 256, files, ..Settings::default() });
    // Its disk is the guest's memory.
    guest.ok("castra-broker broker --state-root /state --config /etc/castra.toml --no-tcp --vsock 7070 \
         --segment-bytes 1MiB >/tmp/broker.log 2>&1 &");
    guest.eventually("cat /tmp/broker.log", |said| said.contains("vsock:").then_some(()));
    guest.ok("castra agent --vm inner --broker vsock:1:7070 >/tmp/agent.log 2>&1 & echo $! >/tmp/agent.pid");
    guest.ok("until castra agent publish build.done '{\"n\":1}'; do sleep 0.1; done");
    let vm = guest.eventually("castra-broker status --json --state-root /state", |said| {
        let vm = json(said)?["vms"].as_array()?.first()?.clone();
        (vm["last_publish_age_ms"] != Value::Null).then_some(vm)
    });
    assert_eq!(
        (&vm["name"], &vm["identity"], &vm["reachable"]),
        (&"inner".into(), &"cid".into(), &true.into())
    );
    let event = guest.eventually("castra-broker bus tail -q -o json --state-root /state build.done", json);
    assert_eq!((&event["vm"], &event["payload"]["n"]), (&"inner".into(), &1.into()), "{event}");

    // The same machine under another name.
    guest.ok("kill $(cat /tmp/agent.pid)");
    guest.ok("castra agent --vm outer --broker vsock:1:7070 --state-dir /tmp/outer >/tmp/outer.log 2>&1 &");
    guest.eventually("cat /state/handshakes/handshake-events.jsonl", |said| {
        let refused = said.lines().filter_map(json).find(|line| line["session_outcome"] == "denied")?;
        assert_eq!(refused["reason"], "identity-mismatch", "{refused}");
        Some(())
    });
}
