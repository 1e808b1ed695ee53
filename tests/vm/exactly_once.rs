//! What is published inside arrives once and in order, while both sides are killed again and again.

use crate::ground;
use crate::machine::Settings;
use crate::support::skip;
use crate::way::Way;
use crate::world::{VM, World, over_every_way};
use std::time::{Duration, Instant};

const EVENTS: usize = 10_000;
/// Who is killed, each time so many more events have arrived.
const KILLED: [Side; 8] = [
    Side::Broker,
    Side::Agent,
    Side::Broker,
    Side::Broker,
    Side::Agent,
    Side::Broker,
    Side::Agent,
    Side::Broker,
];
const BETWEEN: usize = EVENTS / (KILLED.len() + 1);
/// For the whole of it; half a minute on a quiet machine.
const LIMIT: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Broker,
    Agent,
}

/// vhost-device-vsock does not always tell the guest that a broker is gone: the agent has to notice, and soon.
const AGENT: &str = "--heartbeat 1s --silence 5s";

over_every_way!(ten_thousand_arrive);

fn ten_thousand_arrive(way: Way) {
    let test = "ten_thousand_arrive";
    let scratch = tempfile::tempdir().unwrap();
    let socat = ground::find("socat").ok_or_else(|| "there is no socat".to_owned());
    let mut files = match socat.and_then(|path| ground::with_libraries(&path, "socat", scratch.path())) {
        Ok(files) => files,
        Err(why) => return skip(test, &why),
    };
    files.push(("bin/publish-all".to_owned(), include_bytes!("publish-all.sh").to_vec()));
    let settings = Settings { memory_mib: 192, files, ..Settings::default() };
    let Some(mut world) = World::begin_with(test, way, settings) else { return };
    world.start_agent(AGENT);
    world.eventually_vm("the session", |vm| (vm["sessions"] == 1).then_some(()));
    world.guest().ok("echo 0 >/tmp/reached");
    world.guest().ok(&format!("publish-all {EVENTS} >/tmp/publish.log 2>&1 &"));

    let since = Instant::now();
    let log = world.root().join(format!("logs/bus/{VM}.log"));
    let arrived = || {
        let text = std::fs::read(&log).unwrap_or_default();
        text.iter().filter(|byte| **byte == b'\n').count()
    };
    let wait = |what: &str, until: &mut dyn FnMut() -> bool| {
        while !until() {
            assert!(since.elapsed() < LIMIT, "waited for {what}: {} of {EVENTS} are there", arrived());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    for (n, side) in KILLED.into_iter().enumerate() {
        wait("more events", &mut || arrived() >= BETWEEN * (n + 1));
        match side {
            Side::Agent => {
                world.kill_agent();
                world.start_agent(AGENT);
            }
            Side::Broker => {
                world.kill_broker();
                // Some are published while it is away.
                let reached = |world: &mut World| -> usize {
                    world.guest().ok("cat /tmp/reached").trim().parse().unwrap_or(0)
                };
                let more = EVENTS.min(reached(&mut world) + 200);
                wait("the outbox to fill", &mut || reached(&mut world) >= more);
                world.start_broker();
            }
        }
    }
    wait("all events", &mut || arrived() >= EVENTS);
    wait("nothing to wait", &mut || world.waiting() == 0);
    let all: Vec<serde_json::Value> = (0..EVENTS).map(Into::into).collect();
    let published = world.published("count");
    assert!(
        published == all,
        "{} events, {:?} …",
        published.len(),
        published.iter().zip(&all).find(|(a, b)| a != b)
    );
    // And the journal is as the logs are.
    assert!(world.broker().run(&["verify"]).status.success());
    println!("{EVENTS} events in {:?}", since.elapsed());
}
