//! A guest that is saved and restored, once and twice: it notices, and what it publishes arrives once.

use crate::support::eventually;
use crate::way::Way;
use crate::world::{VM, World};
use serde_json::Value;
use std::ops::Range;

/// So that the host's silence is noticed soon.
const SOON: &str = "--heartbeat 500ms --silence 2s";

/// Publishes these numbers inside. Their ids are their own: two copies have the same random numbers for a while.
fn publish(numbers: Range<u32>) -> String {
    let (first, last) = (numbers.start, numbers.end - 1);
    format!("for i in $(seq {first} {last}); do castra agent publish load $i --id load-$i || exit; done")
}

fn all(numbers: Range<u32>) -> Vec<Value> {
    numbers.map(Into::into).collect()
}

fn it_goes_on(way: Way) {
    let Some(mut world) = World::begin("it_goes_on", way) else { return };
    world.start_agent(SOON);
    world.eventually_vm("the session", |vm| (vm["sessions"] == 1).then_some(()));
    world.guest().ok(&publish(0..10));
    eventually("the first ones", || (world.published("load").len() >= 10).then_some(()));
    let state = world.save();
    world.eventually_vm("its end", |vm| (vm["sessions"] == 0).then_some(()));
    // Where it was before: its devices are in that folder.
    world.guest = Some(world.restore(&state, "."));
    world.guest().ok(&publish(10..20));
    eventually("the rest", || (world.published("load").len() >= 20).then_some(()));
    assert_eq!(world.published("load"), all(0..20));
    world.eventually_vm("one session", |vm| {
        (vm["sessions"] == 1 && vm["identity"] == way.identity()).then_some(())
    });
    assert_eq!(world.waiting(), 0);
}

#[test]
fn it_goes_on_over_tcp() {
    it_goes_on(Way::Tcp);
}

#[test]
fn it_goes_on_over_serial() {
    it_goes_on(Way::Serial);
}

#[test]
fn two_copies_are_two_sessions_and_what_both_remember_arrives_once() {
    let test = "two_copies_are_two_sessions_and_what_both_remember_arrives_once";
    let Some(mut world) = World::begin(test, Way::Tcp) else { return };
    world.start_agent(SOON);
    world.eventually_vm("the session", |vm| (vm["sessions"] == 1).then_some(()));
    world.kill_broker();
    world.guest().ok(&publish(0..10));
    let state = world.save();
    world.start_broker();
    let mut copies = [world.restore(&state, "one"), world.restore(&state, "two")];
    world.eventually_vm("both", |vm| (vm["sessions"] == 2).then_some(()));
    for (copy, numbers) in copies.iter_mut().zip([10..20, 20..30]) {
        copy.ok(&publish(numbers));
        copy.eventually("castra agent outbox ls --state pending --json", |said| {
            (!said.contains("\"state\":\"pending\"")).then_some(())
        });
    }
    assert_eq!(world.published("load"), all(0..30));
    world.eventually_vm("its name", |vm| (vm["name"] == VM && vm["sessions"] == 2).then_some(()));
}
