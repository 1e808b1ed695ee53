//! TCP beyond the loopback, and vsock where there is one.

use crate::doors_world::{Place, Say};
use crate::support::Guest;
use castra::core::limits::Limits;
use castra::core::policy::Trust;
use std::net::SocketAddr;

const EVERYWHERE: [&str; 2] = ["0.0.0.0:0", "[::ffff:0.0.0.0]:0"];

#[test]
fn tcp_is_for_other_machines_where_names_are_known() {
    for addr in EVERYWHERE.map(|addr| addr.parse::<SocketAddr>().unwrap()) {
        let place = Place::new();
        let Err(error) = place.start(&Say::default(), &[addr], None, Limits::default()) else {
            panic!("{addr} under open");
        };
        let said = error.to_string();
        assert!(said.contains("not a loopback address") && said.contains("trust = \"known\""), "{said}");
    }
    for trust in [Trust::Known, Trust::Proven] {
        let place = Place::new();
        let say = Say { trust, ..Say::default() };
        let world = place.start(&say, &[EVERYWHERE[0].parse().unwrap()], None, Limits::default()).unwrap();
        let port = world.listeners.iter().find_map(|l| l.strip_prefix("tcp:0.0.0.0:")).unwrap();
        let mut guest = Guest::connect(&format!("127.0.0.1:{port}"));
        std::io::Write::write_all(guest.stream.get_mut(), b"hello vm:web capabilities=bus-v1\n").unwrap();
        let reason = if trust == Trust::Known { "error: unknown-vm" } else { "error: not-proven" };
        assert_eq!(guest.line(), reason);
        world.stop();
    }
}

#[test]
fn vsock_is_served_or_said_to_be_missing() {
    let place = Place::new();
    // Nobody is dialled; a port of the dynamic range that is not this process's neighbour's.
    let port = 0x4000_0000 + std::process::id();
    let world = place.start(&Say::default(), &[], Some(port), Limits::default()).unwrap();
    let is_served = world.listeners.contains(&format!("vsock:{port}"));
    let missing = place.said_by_all(&format!("port={port}"));
    assert_eq!((is_served, missing.len()), (is_served, usize::from(!is_served)), "{missing:?}");
    if is_served {
        // A port that is taken is an error as on every other door.
        let other = Place::new();
        let error = other.start(&Say::default(), &[], Some(port), Limits::default()).err().unwrap();
        assert!(error.to_string().starts_with(&format!("cannot listen on vsock:{port}: ")), "{error}");
    }
    world.stop();
}
