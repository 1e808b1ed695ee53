//! An agent that is told nothing finds its broker, and its name, by what the hypervisor says or offers.

use crate::machine::Settings;
use crate::support::skip;
use crate::way::Way;
use crate::world::{VM, World, over_every_way};

over_every_way!(it_finds_its_broker);

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// The agent has this VM's session over `way`.
fn is_there(world: &World, way: Way) {
    world.eventually_vm("the session", |vm| {
        assert_eq!(vm["identity"], way.identity(), "{vm}");
        (vm["sessions"] == 1).then_some(())
    });
}

fn it_finds_its_broker(way: Way) {
    let mut settings = Settings::default();
    if way == Way::Tcp {
        if crate::ground::find("socat").is_none() {
            return skip("it_finds_its_broker", "there is no socat");
        }
        // The gateway's address and port 7070, without a broker there on this machine.
        settings.devices =
            words("-netdev user,id=n0,ipv6=off,host=10.0.2.9,restrict=on,guestfwd=tcp:10.0.2.2:7070-cmd:@");
        settings.devices[1] = settings.devices[1].replace('@', "socat STDIO UNIX-CONNECT:{socket}");
        settings.devices.extend(words("-device virtio-net-device,netdev=n0"));
    }
    let Some(mut world) = World::begin_with("it_finds_its_broker", way, settings) else { return };
    world.start_agent_with(&format!("--vm {VM}"));
    is_there(&world, way);
}

#[test]
fn the_kernel_is_told_where_and_who() {
    let append = format!("castra.vm={VM} castra.broker={{broker}}");
    let settings = Settings { append, ..Settings::default() };
    let Some(mut world) = World::begin_with("the_kernel_is_told_where_and_who", Way::Tcp, settings) else {
        return;
    };
    world.start_agent_with("");
    is_there(&world, Way::Tcp);
}

#[test]
fn the_firmware_is_told_where() {
    let mut devices = words("-netdev user,id=n0,ipv6=off -device virtio-net-device,netdev=n0");
    devices.extend(words("-fw_cfg name=opt/io.systemd.credentials/castra.broker,string={broker}"));
    let settings = Settings { devices, ..Settings::default() };
    let Some(mut world) = World::begin_with("the_firmware_is_told_where", Way::Tcp, settings) else { return };
    world.start_agent_with(&format!("--vm {VM}"));
    is_there(&world, Way::Tcp);
}
