//! What depends on time, with a clock that the test moves: heartbeats, silence, sockets that take nothing.

use crate::peer::Peer;
use crate::sim::Call;
use crate::world::{Make, World, pass, run, settle};
use castra::core::events::BusEvent;
use castra::core::limits::Limits;
use serde_json::json;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

const S: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(100);

fn quiet() -> String {
    "a clock".to_owned()
}

/// What came at which second, up to `until`; the type of a frame, or the reason of a close frame.
async fn heard(peer: &mut Peer, until: u64) -> Vec<(u64, String)> {
    let mut all = Vec::new();
    for tenth in 0..until * 10 {
        pass(STEP, STEP).await;
        for frame in peer.now().await {
            let what = frame["reason"].as_str().or(frame["type"].as_str()).unwrap().to_owned();
            assert_eq!(tenth % 10, 9, "{what} at {tenth} tenths");
            all.push((tenth / 10 + 1, what));
        }
    }
    all
}

fn said(all: &[(u64, &str)]) -> Vec<(u64, String)> {
    all.iter().map(|(at, what)| (*at, (*what).to_owned())).collect()
}

#[test]
fn who_asked_gets_heartbeats_and_silence_ends_a_session() {
    run(quiet, async {
        let world = World::new(Make::default());
        let mut asked = Peer::new(&world, "asked", ",heartbeat", 4096).await;
        asked.subscribe(r#""topic":"a""#).await;
        assert_eq!(
            heard(&mut asked, 70).await,
            said(&[(20, "heartbeat"), (40, "heartbeat"), (60, "heartbeat-timeout")])
        );
        let mut other = Peer::new(&world, "other", "", 4096).await;
        other.subscribe(r#""topic":"a""#).await;
        assert_eq!(heard(&mut other, 70).await, said(&[(60, "heartbeat-timeout")]));
        drop((asked, other));
        world.emptied().await;
    });
}

/// What is said to be life: any whole frame, a refused one too. What is none: half a frame, and being sent events.
#[test]
fn any_frame_proves_life_and_nothing_else_does() {
    run(quiet, async {
        let world = World::new(Make::default());
        let mut alive = Peer::new(&world, "alive", ",heartbeat", 4096).await;
        for body in [r#"{"type":"heartbeat"}"#, "{}", r#"{"type":"unsubscribe","sub":"x"}"#, "[1]"] {
            assert_eq!(heard(&mut alive, 19).await, []);
            alive.ask(body).await;
        }
        let mut passive = Peer::new(&world, "passive", ",heartbeat", 4096).await;
        passive.subscribe(r#""topic":"a""#).await;
        let mut publisher = Peer::new(&world, "p", "", 4096).await;
        let mut beats = Vec::new();
        for second in 1..=60 {
            publisher.publish("a").await;
            pass(S, STEP).await;
            settle().await;
            for frame in passive.now().await {
                match frame["type"].as_str().unwrap() {
                    "event" => {}
                    _ => beats.push((second, frame["reason"].as_str().unwrap_or("heartbeat").to_owned())),
                }
            }
        }
        assert_eq!(beats, said(&[(20, "heartbeat"), (40, "heartbeat"), (60, "heartbeat-timeout")]));
    });
}

/// What is recorded of a session whose socket takes nothing from the beginning, but for a little after `sips`: after
/// how many tenths of a second, and what.
fn stuck(sips: Option<u64>) -> Vec<(u64, String)> {
    run(quiet, async {
        let world = World::new(Make::default());
        let mut stuck = Peer::new(&world, "stuck", "", 1024).await;
        stuck.sip = 100;
        stuck.subscribe(r#""topic":"a""#).await;
        let mut publisher = Peer::new(&world, "p", ",heartbeat", 1 << 16).await;
        let filler = "x".repeat(2000);
        publisher.ask(&format!(r#"{{"type":"publish","topic":"a","payload":"{filler}"}}"#)).await;
        settle().await;
        let end = 100 + sips.unwrap_or(0);
        for tenth in 1..=end + 10 {
            world.bus.recorder.bus_event(&BusEvent {
                timestamp: tenth,
                vm: "mark",
                session: 0,
                reason: "mark",
                action: "mark",
                folded: 0,
                detail: "",
            });
            pass(STEP, STEP).await;
            if Some(tenth) == sips {
                stuck.more().await;
                settle().await;
            }
            assert_eq!(world.sessions(), 1 + usize::from(tenth < end), "after {tenth} tenths");
        }
        assert_eq!(world.router.members(), 0);
        drop((stuck, publisher));
        world.emptied().await;
        let (mut now, mut seen) = (0, Vec::new());
        for signal in world.end() {
            match (signal["vm"].as_str().unwrap(), signal["action"].as_str().unwrap()) {
                ("mark", _) => now = signal["timestamp"].as_u64().unwrap(),
                ("stuck", action) => {
                    assert_eq!(signal["reason"], "slow-consumer", "{signal}");
                    seen.push((now, action.to_owned()));
                }
                _ => {}
            }
        }
        seen
    })
}

#[test]
fn a_socket_that_takes_nothing_is_retried_and_given_up() {
    let retries = [(10, "retry"), (30, "retry"), (60, "retry")];
    assert_eq!(stuck(None), said(&[&retries[..], &[(100, "disconnect")]].concat()));
    // A little is enough to begin anew; the same steps again are not said again.
    assert_eq!(stuck(Some(90)), said(&[&retries[..], &[(190, "disconnect")]].concat()));
}

/// A disk whose syncs wait until it is let go on.
async fn hold(world: &World) -> impl Fn(bool) + use<> {
    // The next segment is there: the commits' syncs are the only ones, and the hook is called by one thread.
    while !world.disk.files().keys().any(|name| name.starts_with("spare.") && name != "spare.new") {
        settle().await;
    }
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let held = gate.clone();
    world.disk.hook(Box::new(move |_, call| {
        if call == Call::Sync {
            drop(held.1.wait_while(held.0.lock().unwrap(), |held| *held).unwrap());
        }
    }));
    move |held| {
        *gate.0.lock().unwrap() = held;
        gate.1.notify_all();
    }
}

#[test]
fn who_waits_for_the_disk_is_not_silent() {
    run(quiet, async {
        let limits = Limits { unacked_events: 2, ..Make::default().limits };
        let world = World::new(Make { limits, ..Make::default() });
        let mut peer = Peer::new(&world, "p", "", 1 << 16).await;
        peer.publish("a").await;
        let hold = hold(&world).await;
        hold(true);
        for n in 0..6 {
            peer.send(&format!(r#"{{"type":"publish","id":"{n}"}}"#));
        }
        peer.flush().await;
        settle().await;
        pass(S * 600, S * 5).await;
        assert_eq!((peer.now().await, world.sessions()), (vec![], 1));
        hold(false);
        for n in 0..6 {
            assert_eq!(peer.json().await["id"], n.to_string());
        }
        // From here on its silence is its own.
        assert_eq!(heard(&mut peer, 70).await, said(&[(60, "heartbeat-timeout")]));
    });
}

/// The bytes under way of all sessions are used up by others: the stall is the broker's.
#[test]
fn who_waits_for_a_place_among_the_bytes_under_way_is_not_silent() {
    run(quiet, async {
        let limits = Limits { unacked_bytes_in_all: 8 * 1024, ..Make::default().limits };
        let world = World::new(Make { limits, ..Make::default() });
        let mut others = Vec::new();
        let mut peer = Peer::new(&world, "p", "", 1 << 16).await;
        peer.publish("a").await;
        let hold = hold(&world).await;
        hold(true);
        for n in 0..12 {
            let mut other = Peer::new(&world, &format!("other{n}"), "", 1 << 16).await;
            other.send(&format!(r#"{{"type":"publish","payload":"{}"}}"#, "x".repeat(900)));
            other.flush().await;
            settle().await;
            others.push(other);
        }
        peer.send(r#"{"type":"publish","id":"late"}"#);
        peer.flush().await;
        settle().await;
        pass(S * 200, S * 5).await;
        hold(false);
        assert_eq!(peer.json().await["id"], "late");
        assert_eq!(heard(&mut peer, 30).await, []);
        assert_eq!(peer.ask(r#"{"type":"heartbeat"}"#).await["ack"], "heartbeat");
    });
}

/// A thousand that fall silent in the same moment end in the same moment, once each.
#[test]
fn a_thousand_that_fall_silent_end_once_each() {
    run(quiet, async {
        let world = World::new(Make::default());
        let mut peers = Vec::new();
        for n in 0..1000 {
            let mut peer = Peer::new(&world, &format!("s{}", n % 50), "", 4096).await;
            peer.subscribe(&format!(r#""topic":"t{n}""#)).await;
            peers.push(peer);
        }
        assert_eq!((world.sessions(), world.router.members()), (1000, 1000));
        pass(S * 59 + STEP * 9, S).await;
        assert_eq!((world.sessions(), world.router.members()), (1000, 1000));
        pass(STEP, STEP).await;
        for mut peer in peers {
            assert_eq!(peer.json().await["reason"], "heartbeat-timeout");
            assert_eq!(peer.receive().await, None);
        }
        world.emptied().await;
        let mut ended: Vec<u64> = Vec::new();
        for signal in world.end() {
            assert_eq!(signal["reason"], json!("heartbeat-timeout"), "{signal}");
            ended.push(signal["session"].as_u64().unwrap());
        }
        ended.sort_unstable();
        assert_eq!(ended, (1..=1000).collect::<Vec<u64>>());
    });
}
