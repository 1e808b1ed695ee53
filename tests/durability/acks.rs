//! An ack comes after the fdatasync that covers it.

use crate::faults::{skip, strace};
use crate::support::Broker;
use std::time::{Duration, Instant};

#[test]
fn no_ack_arrives_before_its_fdatasync_returned() {
    const DELAY: Duration = Duration::from_millis(300);
    let Some(command) = strace(&["-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_exit=300000"]) else {
        return skip("no_ack_arrives_before_its_fdatasync_returned", "there is no strace that may trace");
    };
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start_with(&dir.path().join("state"), command, &["--segment-bytes", "1048576"]);
    let mut guest = broker.guest("slow");
    for n in 0..5 {
        let since = Instant::now();
        let ack = guest.ask(format!("{{\"type\":\"publish\",\"payload\":{n}}}"));
        assert_eq!(ack["status"], "ok", "{ack}");
        assert!(since.elapsed() >= DELAY, "acked after {:?}, its fdatasync took {DELAY:?}", since.elapsed());
    }
    // Frames that need no disk are answered meanwhile, by the same session.
    guest.send("{\"type\":\"publish\"}");
    let since = Instant::now();
    assert_eq!(guest.ask("{\"type\":\"heartbeat\"}")["ack"], "heartbeat");
    assert!(since.elapsed() < DELAY);
    assert_eq!(guest.receive().unwrap()["status"], "ok");
}
