//! What follows the accept of the vsock door: the context that a connection came from says who it is.

use crate::world::{Make, World, run, settle};
use castra::core::door::vsock;
use castra::core::identity::VmName;
use castra::core::policy::{Policy, Trust, VmEntry};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, duplex, split};

fn policy() -> Arc<Policy> {
    let name = VmName::parse("web").unwrap();
    let (cid, rules) = (Some(42), Arc::default());
    let web = VmEntry { name, cid, socket: None, serial: None, token: None, rules };
    Arc::new(Policy::new(Trust::Proven, Vec::new(), [web]))
}

#[test]
fn a_context_is_its_vm() {
    let test = async {
        let world = World::new(Make { policy: policy(), ..Make::default() });
        for (cid, vm, answer) in [
            (42, "web", "ok session="),
            (42, "db", "error: identity-mismatch"),
            (43, "web", "error: unknown-cid"),
            (2, "host", "error: reserved-identity"),
        ] {
            let (ours, theirs) = duplex(1024);
            world.enter(vsock::connection(split(theirs), cid, 1025));
            let mut guest = BufReader::new(ours);
            let hello = format!("hello vm:{vm} capabilities=bus-v1\n");
            guest.write_all(hello.as_bytes()).await.unwrap();
            let (mut banner, mut said) = (String::new(), String::new());
            guest.read_line(&mut banner).await.unwrap();
            guest.read_line(&mut said).await.unwrap();
            assert!(said.starts_with(answer), "cid {cid}, {vm}: {said}");
        }
        world.emptied().await;
        let path = world.root.join("handshakes/handshake-events.jsonl");
        let records: Vec<serde_json::Value> = loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if text.lines().count() == 4 && text.ends_with('\n') {
                break text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            }
            settle().await;
        };
        assert_eq!(records[0]["remote_addr"], "vsock:cid=42,port=1025");
        assert_eq!((&records[0]["identity"], &records[2]["reason"]), (&"cid".into(), &"unknown-cid".into()));
    };
    run(|| "a guest waits for its answer, or its record is not written".into(), test);
}
