//! The doors of VMs as an operator has them: castra.toml, SIGHUP, a broker that is killed and comes back.

use crate::doors_world::{beside, gone, publishes, session};
use crate::support::{Broker, castra, eventually};
use nix::sys::signal::Signal;
use std::os::unix::net::UnixListener;

#[test]
fn castra_toml_opens_and_shuts_the_doors_of_vms() {
    let dir = tempfile::tempdir().unwrap();
    let path = |below: &str| dir.path().join(below);
    std::fs::create_dir(path("vms")).unwrap();
    let config = path("castra.toml");
    let say = |text: &str| std::fs::write(&config, text).unwrap();
    let glob = format!("[broker]\ntrust = \"proven\"\nhybrid = [{:?}]\n", path("vms/*.vsock"));
    say(&glob);
    let start = || {
        let mut command = castra();
        command.env("CASTRA_CONFIG", &config);
        Broker::start_with(&path("root"), command, &[])
    };
    let web = path("vms/web.vsock");
    let _vmm = UnixListener::bind(&web).unwrap();
    let broker = start();
    session(&web, "web");
    let vm = eventually("web in status", || {
        Some(broker.status()["vms"][0].clone()).filter(|vm| vm["name"] == "web")
    });
    assert_eq!(vm["identity"], "socket");
    let listens = |broker: &Broker, what: String| {
        eventually(&what, || {
            broker.status()["broker"]["listeners"].to_string().contains(&what).then_some(())
        });
    };
    listens(&broker, format!("hybrid:{}", path("vms/*.vsock").display()));
    broker.kill();
    assert!(beside(&web).exists(), "nobody removed it");
    let broker = start();
    let mut guest = session(&web, "web");

    // A line and a socket more; what is there stays.
    let (serial, other) = (path("db.serial"), path("other.sock"));
    let line = UnixListener::bind(&serial).unwrap();
    say(&format!(
        "{glob}[[vms]]\nname = \"db\"\nserial = {serial:?}\n[[vms]]\nname = \"other\"\nsocket = {other:?}\n"
    ));
    broker.signal(Signal::SIGHUP);
    session(&other, "other");
    line.set_nonblocking(true).unwrap();
    eventually("the broker at the line", || line.accept().ok());
    listens(&broker, format!("serial:{}", serial.display()));
    publishes(&mut guest);

    say("vms = []\n[broker]\ntrust = \"proven\"\n");
    broker.signal(Signal::SIGHUP);
    assert_eq!(guest.receive()["reason"], "identity-revoked");
    gone(&beside(&web));
    gone(&beside(&other));
    assert_eq!(broker.stop().0, Some(0));
}
