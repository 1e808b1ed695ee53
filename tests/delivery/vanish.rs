//! Sessions that end together, whatever they were at: nothing of them is left.

use crate::peer::Peer;
use crate::world::{Make, World, run, settle};
use castra::core::bus::Ending;
use castra::core::limits::Limits;
use std::sync::Arc;
use std::time::Duration;

const SESSIONS: usize = 1000;

fn quiet() -> String {
    "somebody does not go".to_owned()
}

fn make() -> Make {
    let limits =
        Limits { queue_events: 16, segment_bytes: 1 << 20, sessions: 2000, ..Make::default().limits };
    Make { limits, ..Make::default() }
}

/// A thousand sessions: idle ones, some with a full queue, some that read the journal, some with publishes under way,
/// some in the middle of a frame.
async fn thousand(world: &World) -> Vec<Peer> {
    let mut peers = Vec::new();
    for n in 0..SESSIONS {
        let mut peer = Peer::new(world, &format!("s{}", n % 40), "", 2048).await;
        peer.subscribe(&format!(r#""topic":"own.{n}""#)).await;
        peer.subscribe(r#""topics":["all.>","a.b"],"sub":"all""#).await;
        peers.push(peer);
    }
    assert_eq!((world.sessions(), world.router.members()), (SESSIONS, 2 * SESSIONS));
    let mut publisher = Peer::new(world, "p", "", 1 << 16).await;
    for n in 0..60 {
        let pad = "x".repeat(200);
        publisher.ask(&format!(r#"{{"type":"publish","topic":"all.{n}","payload":"{pad}"}}"#)).await;
    }
    for (n, peer) in peers.iter_mut().enumerate() {
        match n % 4 {
            0 => peer.send(r#"{"type":"subscribe","topic":">","from":"earliest"}"#),
            1 => peer.send(r#"{"type":"publish","topic":"all.more"}"#),
            2 => peer.send(r#"{"type":"unsubscribe","sub":"all"}"#),
            _ => {}
        }
        // What there is no room for stays where it is.
        tokio::select! {
            biased;
            () = peer.flush() => {}
            () = tokio::task::yield_now() => {}
        }
    }
    settle().await;
    peers.push(publisher);
    peers
}

#[test]
fn a_thousand_that_vanish_leave_nothing() {
    run(quiet, async {
        let world = World::new(make());
        let peers = thousand(&world).await;
        drop(peers);
        world.emptied().await;
        // The bus has it, and the groups.
        assert_eq!(Arc::strong_count(&world.bus.delivery), 2, "nobody holds a queue");
        // And the next ones find everything as it was.
        let mut peer = Peer::new(&world, "next", "", 1 << 16).await;
        let head = peer.subscribe(r#""topic":"a""#).await["next_seq"].as_u64().unwrap();
        assert_eq!(peer.publish_and_event("a").await, head);
        drop(peer);
        world.emptied().await;
        let mut sessions: Vec<u64> = Vec::new();
        for signal in world.end() {
            if signal["action"] == "disconnect" {
                sessions.push(signal["session"].as_u64().unwrap());
            }
        }
        sessions.sort_unstable();
        assert_eq!(sessions, (1..=SESSIONS as u64 + 2).collect::<Vec<u64>>(), "each ended once");
    });
}

#[test]
fn a_thousand_end_once_when_the_broker_drains() {
    run(quiet, async {
        let mut world = World::new(make());
        let mut peers = thousand(&world).await;
        // Some vanish in the same moment, and some never read: these are given up in their time.
        peers.truncate(SESSIONS);
        let (gone, stay) = (peers.split_off(900), peers);
        world.ending.send_replace(Ending::Draining);
        drop(gone);
        for (n, mut peer) in stay.into_iter().enumerate() {
            if n % 100 == 7 {
                std::mem::forget(peer);
                continue;
            }
            let mut last = serde_json::Value::Null;
            while let Some(body) = peer.receive().await {
                last = serde_json::from_slice(&body).unwrap();
            }
            assert_eq!(
                (&last["type"], &last["reason"]),
                (&"close".into(), &"draining".into()),
                "{n}: {last}"
            );
        }
        crate::world::pass(Duration::from_secs(11), Duration::from_millis(500)).await;
        world.all_gone().await;
        world.emptied().await;
        // The bus has it, and the groups.
        assert_eq!(Arc::strong_count(&world.bus.delivery), 2, "nobody holds a queue");
        let mut sessions: Vec<u64> = Vec::new();
        for signal in world.end() {
            if signal["action"] == "disconnect" {
                sessions.push(signal["session"].as_u64().unwrap());
            }
        }
        sessions.sort_unstable();
        assert_eq!(sessions, (1..=SESSIONS as u64 + 1).collect::<Vec<u64>>(), "each ended once");
    });
}
