//! Over every way: the guest is seen, heard and told; a broker that is away is waited for; a VM that is killed is gone.

use crate::support::eventually;
use crate::way::Way;
use crate::world::{VM, World, over_every_way};

over_every_way!(
    it_is_seen_heard_and_told,
    what_is_published_while_the_broker_is_away_waits_for_it,
    a_vm_that_is_killed_is_gone,
);

fn it_is_seen_heard_and_told(way: Way) {
    let Some(mut world) = World::begin("it_is_seen_heard_and_told", way) else { return };
    world.start_agent("--subscribe 'news.*' --exec 'cat >>/tmp/heard'");
    world.eventually_vm("the session", |vm| {
        assert_eq!(vm["identity"], way.identity(), "{vm}");
        (vm["reachable"] == true && vm["sessions"] == 1 && vm["bus_subscribed"] == true).then_some(())
    });
    let status = world.broker().status();
    assert_eq!(status["last_handshake_vm"], VM);
    let handshakes = crate::support::records(&world.root(), "handshake-events");
    assert!(handshakes.iter().any(|line| line["vm"] == VM && line["session_outcome"] == "granted"));

    // Heard.
    world.guest().ok(r#"castra agent publish build.done '{"ok":true}'"#);
    eventually("the event", || (!world.published("build.done").is_empty()).then_some(()));
    let tail = world.broker().run(&["bus", "tail", "-q", "-o", "json", "--vm", VM, "build.done"]);
    let event: serde_json::Value = serde_json::from_slice(&tail.stdout).unwrap();
    assert_eq!((&event["vm"], &event["payload"]["ok"]), (&VM.into(), &true.into()), "{event}");

    // Told.
    assert!(world.broker().run(&["bus", "publish", "news.today", r#"{"hello":"guest"}"#]).status.success());
    let heard = world.guest().eventually("cat /tmp/heard", |said| serde_json::from_str(said).ok());
    let heard: serde_json::Value = heard;
    assert_eq!((&heard["topic"], &heard["payload"]["hello"]), (&"news.today".into(), &"guest".into()));
    assert_eq!(heard["vm"], "host");
}

fn what_is_published_while_the_broker_is_away_waits_for_it(way: Way) {
    let test = "what_is_published_while_the_broker_is_away_waits_for_it";
    let Some(mut world) = World::begin(test, way) else { return };
    world.start_agent("");
    world.eventually_vm("the session", |vm| (vm["sessions"] == 1).then_some(()));
    for round in 0..2 {
        world.kill_broker();
        world.guest().ok(&format!(
            "for i in 0 1 2 3 4 5 6 7 8 9; do castra agent publish load $(({round} * 10 + i)) || exit; done"
        ));
        // Nobody has it but the guest.
        assert_eq!(world.waiting(), 10);
        world.start_broker();
        let all: Vec<serde_json::Value> = (0..(round + 1) * 10).map(Into::into).collect();
        eventually("the outbox to drain", || (world.published("load").len() >= all.len()).then_some(()));
        assert_eq!(world.published("load"), all);
        eventually("nothing to wait", || (world.waiting() == 0).then_some(()));
    }
}

fn a_vm_that_is_killed_is_gone(way: Way) {
    let Some(mut world) = World::begin("a_vm_that_is_killed_is_gone", way) else { return };
    world.start_agent("--subscribe 'news.*' --exec 'cat'");
    world.eventually_vm("the subscription", |vm| (vm["bus_subscribed"] == true).then_some(()));
    world.guest.take().unwrap().kill();
    world.eventually_vm("its end", |vm| {
        (vm["sessions"] == 0 && vm["bus_subscribed"] == false && vm["topics"].as_array()?.is_empty())
            .then_some(())
    });
}
