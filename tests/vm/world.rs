//! A broker on this machine and one guest with an agent: what the tests of behaviour begin with.

use crate::ground::{self, Ground};
use crate::machine::{Machine, Settings};
use crate::support::{Broker, eventually, skip};
use crate::way::Way;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Child;

/// The guest's name on the bus.
pub const VM: &str = "web";

/// Both sides.
pub struct World {
    pub guest: Option<Machine>,
    broker: Option<Broker>,
    carrier: Option<Child>,
    ground: Ground,
    settings: Settings,
    way: Way,
    port: u16,
    dir: tempfile::TempDir,
}

impl World {
    /// A running broker, and a booted guest whose agent is not started yet; `None` where it cannot be had.
    pub fn begin(test: &str, way: Way) -> Option<Self> {
        Self::begin_with(test, way, Settings::default())
    }

    /// The same with further files or more memory.
    pub fn begin_with(test: &str, way: Way, settings: Settings) -> Option<Self> {
        let test = format!("{way:?}::{test}").to_lowercase();
        let ground = match way.missing().map_or_else(ground::lay, Err) {
            Ok(ground) => ground,
            Err(why) => {
                skip(&test, &why);
                return None;
            }
        };
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("castra.toml"), way.config(dir.path(), VM)).unwrap();
        // A broker that comes back has the address it had.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let carrier = way.carrier(dir.path(), VM);
        // What is said before the VM begins, too, may have to name the broker.
        let named = |text: &String| {
            let socket = dir.path().join("guests.sock");
            text.replace("{broker}", &way.broker(port)).replace("{socket}", socket.to_str().unwrap())
        };
        let devices = if settings.devices.is_empty() { way.devices(dir.path()) } else { settings.devices };
        let settings = Settings {
            append: named(&settings.append),
            devices: devices.iter().map(named).collect(),
            ..settings
        };
        let mut world = World { guest: None, broker: None, carrier, ground, settings, way, port, dir };
        world.start_broker();
        world.guest = Some(Machine::boot(&world.ground, world.dir.path(), &world.settings));
        Some(world)
    }

    /// Writes the guest to a file, and ends it.
    pub fn save(&mut self) -> PathBuf {
        let state = self.dir.path().join("state-of-the-guest");
        self.guest().save(&state);
        self.guest.take().unwrap().kill();
        state
    }

    /// A copy of the guest that goes on, in a folder of this name.
    pub fn restore(&self, state: &Path, folder: &str) -> Machine {
        let dir = self.dir.path().join(folder);
        std::fs::create_dir_all(&dir).unwrap();
        Machine::restore(&self.ground, &dir, &self.settings, state)
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn start_broker(&mut self) {
        let (config, tcp) = (self.dir.path().join("castra.toml"), format!("127.0.0.1:{}", self.port));
        let unix = self.dir.path().join("guests.sock");
        let args = ["--config", config.to_str().unwrap(), "--tcp", &tcp, "--unix", unix.to_str().unwrap()];
        self.broker = Some(Broker::start_args(&self.root(), &args));
    }

    /// `kill -9`.
    pub fn kill_broker(&mut self) {
        self.broker.take().unwrap().kill();
    }

    pub fn broker(&self) -> &Broker {
        self.broker.as_ref().unwrap()
    }

    pub fn guest(&mut self) -> &mut Machine {
        self.guest.as_mut().unwrap()
    }

    /// Starts the agent inside, with further arguments.
    pub fn start_agent(&mut self, more: &str) {
        let broker = self.way.broker(self.port);
        self.start_agent_with(&format!("--vm {VM} --broker {broker} {more}"));
    }

    /// The same with these arguments only.
    pub fn start_agent_with(&mut self, arguments: &str) {
        let line = format!("castra agent {arguments} >>/tmp/agent.log 2>&1 & echo $! >/tmp/agent.pid");
        self.guest().ok(&line);
    }

    /// `kill -9`.
    pub fn kill_agent(&mut self) {
        self.guest().ok("kill -9 $(cat /tmp/agent.pid)");
        self.guest().eventually("kill -0 $(cat /tmp/agent.pid) || echo gone", |said| {
            said.contains("gone").then_some(())
        });
    }

    /// Waits until status shows the guest so.
    pub fn eventually_vm<T>(&self, what: &str, mut found: impl FnMut(&Value) -> Option<T>) -> T {
        eventually(what, || {
            let status = self.broker().status();
            let vm = status["vms"].as_array()?.iter().find(|vm| vm["name"] == VM)?;
            found(vm)
        })
    }

    /// How many events wait in the guest's outbox.
    pub fn waiting(&mut self) -> usize {
        let said = self.guest().run("castra agent outbox ls --state pending --json").1;
        said.lines().filter(|line| line.contains("\"state\":\"pending\"")).count()
    }

    /// The payloads that the guest published to `topic`, in the order of its log.
    pub fn published(&self, topic: &str) -> Vec<Value> {
        if !self.root().join(format!("logs/bus/{VM}.log")).exists() {
            return Vec::new();
        }
        let lines = self.broker().log(VM).into_iter();
        lines.filter(|line| line["topic"] == topic).map(|mut line| line["payload"].take()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut carrier) = self.carrier.take() {
            let _ = carrier.kill();
            let _ = carrier.wait();
        }
    }
}

/// The same tests over every way.
macro_rules! over_every_way {
    ($($test:ident),+ $(,)?) => {
        mod tcp {
            $(#[test] fn $test() { super::$test(crate::way::Way::Tcp); })+
        }
        mod serial {
            $(#[test] fn $test() { super::$test(crate::way::Way::Serial); })+
        }
        mod vsock {
            $(#[test] fn $test() { super::$test(crate::way::Way::Vsock); })+
        }
    };
}
pub(crate) use over_every_way;
