//! A real power cut: a loop-mounted ext4, shut down by `FS_IOC_SHUTDOWN` under load.

use crate::faults::{Mounted, skip};
use crate::load::{Ledger, Load, PLAN, check, publish_one};
use crate::support::Broker;

const SMALL: [&str; 2] = ["--segment-bytes", "1048576"];

#[test]
fn ten_power_cuts_lose_nothing_and_repeat_nothing() {
    const NAME: &str = "ten_power_cuts_lose_nothing_and_repeat_nothing";
    let mut disk = match Mounted::new(256) {
        Ok(disk) => disk,
        Err(why) => return skip(NAME, &why),
    };
    let mut ledger = Ledger::default();
    for round in 0..10 {
        let broker = Broker::start_args(&disk.root(), &SMALL);
        check(&disk.root(), &ledger);
        assert_eq!(broker.status()["broker"]["journal"]["damage"], serde_json::json!([]));
        let switch = match disk.switch() {
            Ok(switch) => switch,
            Err(why) => return skip(NAME, &why),
        };
        let load = Load::start(&broker, &format!("cut{round}"), PLAN);
        load.reach([1, 5_000, 400][round % 3]);
        if let Err(why) = switch.cut() {
            return skip(NAME, &why);
        }
        let (code, said) = broker.wait();
        assert_eq!(code, Some(74), "{said}");
        assert!(said.contains("could not be made durable"), "{said}");
        ledger.merge(load.join());
        disk.unmount();
        disk.mount().unwrap();
    }
    let broker = Broker::start_args(&disk.root(), &SMALL);
    let head = check(&disk.root(), &ledger);
    println!("{} events acked, {} unknown", ledger.acked.len(), ledger.unknown.len());
    assert_eq!(publish_one(&broker, "after"), head + 1);
    assert_eq!(broker.stop().0, Some(0));
}
