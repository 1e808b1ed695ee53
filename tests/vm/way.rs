//! How a guest reaches its broker: TCP over user networking, a virtio-serial port, vsock through vhost-user.
//!
//! Always holds: nothing here has a fixed port or a path outside the VM's own folder.

use crate::ground::find;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The guest dials its gateway, which is this machine's loopback.
    Tcp,
    /// A port whose other end is a socket that QEMU owns.
    Serial,
    /// The guest dials CID 2; it arrives at a unix socket beside the VM's own.
    Vsock,
}

impl Way {
    /// What is missing here.
    pub fn missing(self) -> Option<String> {
        let wanted = (self == Way::Vsock).then_some("vhost-device-vsock")?;
        find(wanted).is_none().then(|| format!("there is no {wanted}; ./test installs one"))
    }

    /// Devices of QEMU.
    pub fn devices(self, dir: &Path) -> Vec<String> {
        let words = match self {
            Way::Tcp => "-netdev user,id=n0,ipv6=off -device virtio-net-device,netdev=n0".to_owned(),
            Way::Serial => format!(
                "-chardev socket,id=c0,path={},server=on,wait=off -device virtio-serial-device,max_ports=2 \
                 -device virtserialport,chardev=c0,name=org.castra.bus.0,nr=1",
                serial(dir).display()
            ),
            Way::Vsock => format!(
                "-chardev socket,id=vu0,path={},reconnect=0 -device vhost-user-vsock-device,chardev=vu0",
                dir.join("vhost.sock").display()
            ),
        };
        words.split_whitespace().map(str::to_owned).collect()
    }

    /// The process beside QEMU that carries it, which is there when this returns.
    pub fn carrier(self, dir: &Path, vm: &str) -> Option<Child> {
        let program = (self == Way::Vsock).then(|| find("vhost-device-vsock"))??;
        let (vhost, hybrid) = (dir.join("vhost.sock"), hybrid(dir, vm));
        let mut command = Command::new(program);
        let options = format!("guest-cid=42,socket={},uds-path={}", vhost.display(), hybrid.display());
        let errors = File::create(dir.join("carrier.stderr")).unwrap();
        command.args(["--vm", &options]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let child = command.spawn().unwrap();
        crate::support::eventually("vhost-device-vsock", || vhost.exists().then_some(()));
        Some(child)
    }

    /// The broker's castra.toml.
    pub fn config(self, dir: &Path, vm: &str) -> String {
        match self {
            Way::Tcp => String::new(),
            Way::Serial => format!("[[vms]]\nname = \"{vm}\"\nserial = \"{}\"\n", serial(dir).display()),
            // The name of the VM is what the star stands for.
            Way::Vsock => format!("[broker]\nhybrid = [\"{}\"]\n", hybrid(dir, "*").display()),
        }
    }

    /// What the agent is told; `port` is the broker's over TCP.
    pub fn broker(self, port: u16) -> String {
        match self {
            Way::Tcp => format!("tcp:10.0.2.2:{port}"),
            Way::Serial => "serial".to_owned(),
            Way::Vsock => "vsock:2:7070".to_owned(),
        }
    }

    /// What proves the VM.
    pub fn identity(self) -> &'static str {
        match self {
            Way::Tcp => "name",
            Way::Serial | Way::Vsock => "socket",
        }
    }
}

fn serial(dir: &Path) -> PathBuf {
    dir.join("bus0.sock")
}

fn hybrid(dir: &Path, vm: &str) -> PathBuf {
    dir.join(format!("{vm}.vsock"))
}
