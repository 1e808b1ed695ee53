//! A broker within the test, with a policy that the test makes and changes, and what it says.
//!
//! Always holds: everything is below a temporary folder of its own; lines are told apart by it.

use crate::support::{LocalGuest, PATIENCE, eventually};
use castra::core::broker::{self, BrokerError, Config};
use castra::core::door::listen::Handed;
use castra::core::events::Recorder;
use castra::core::identity::VmName;
use castra::core::limits::Limits;
use castra::core::policy::{Policy, Trust, VmEntry};
use castra::core::service::Supervisor;
use castra::core::state_root::StateRoot;
use castra::core::status::Snapshot;
use serde_json::Value;
use std::fs::File;
use std::io::{BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

static SAID: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Said;

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        SAID.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Nobody(Mutex<Option<oneshot::Sender<Vec<String>>>>);

impl Supervisor for Nobody {
    fn ready(&self, listeners: &[String]) {
        if let Some(sender) = self.0.lock().unwrap().take() {
            sender.send(listeners.to_vec()).unwrap();
        }
    }
    fn status(&self, _: &Snapshot) {}
    fn patience(&self) -> Option<Duration> {
        None
    }
    fn alive(&self) {}
}

/// What the operator says of VMs.
#[derive(Clone, Default)]
pub struct Say {
    pub trust: Trust,
    pub hybrid: Vec<PathBuf>,
    pub vms: Vec<VmEntry>,
}

impl Say {
    pub fn policy(&self) -> Arc<Policy> {
        Arc::new(Policy::new(self.trust, self.hybrid.clone(), self.vms.clone()))
    }

    pub fn socket(mut self, vm: &str, path: &Path) -> Self {
        self.vms.push(VmEntry { socket: Some(path.to_owned()), ..entry(vm) });
        self
    }

    pub fn serial(mut self, vm: &str, path: &Path) -> Self {
        self.vms.push(VmEntry { serial: Some(path.to_owned()), ..entry(vm) });
        self
    }

    pub fn glob(mut self, path: impl Into<PathBuf>) -> Self {
        self.hybrid.push(path.into());
        self
    }
}

fn entry(vm: &str) -> VmEntry {
    let name = VmName::parse(vm).unwrap();
    VmEntry { name, cid: None, socket: None, serial: None, token: None, rules: Arc::default() }
}

/// A folder for everything.
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        // Everything of this process; tests look for their own folder in it.
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(|| Said).finish();
        let _ = tracing::subscriber::set_global_default(lines);
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("vms")).unwrap();
        Place { dir }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// The socket of a VM, where the globs of these tests find it.
    pub fn vm(&self, name: &str) -> PathBuf {
        self.path(&format!("vms/{name}.vsock"))
    }

    /// Starts a VMM, as far as the broker can tell: its socket is there.
    pub fn boot(&self, name: &str) -> UnixListener {
        UnixListener::bind(self.vm(name)).unwrap()
    }

    pub fn glob(&self) -> Say {
        Say::default().glob(self.vm("*"))
    }

    /// The lines that were said with this in them, and this place.
    pub fn said(&self, what: &str) -> Vec<String> {
        let place = self.dir.path().to_str().unwrap();
        self.said_by_all(what).into_iter().filter(|line| line.contains(place)).collect()
    }

    /// The same, of whatever place.
    pub fn said_by_all(&self, what: &str) -> Vec<String> {
        let text = String::from_utf8(SAID.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(what)).map(str::to_owned).collect()
    }

    /// Waits until something was said.
    pub fn hears(&self, what: &str) -> String {
        eventually(what, || self.said(what).pop())
    }

    pub fn broker(&self, say: &Say) -> World {
        self.start(say, &[], None, Limits::default()).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn start(
        &self,
        say: &Say,
        tcp: &[SocketAddr],
        vsock: Option<u32>,
        limits: Limits,
    ) -> Result<World, BrokerError> {
        let root = StateRoot::resolve(Some(self.path("root")));
        let (journal_id, lock) = root.open().unwrap();
        let recorder = Recorder::start(&root, 64 << 20).unwrap();
        let (policy, in_force) = watch::channel(say.policy());
        let limits = Limits { segment_bytes: 1 << 20, ..limits };
        let (tcp, handed) = (tcp.to_vec(), Handed::default());
        let config = Config {
            root,
            tcp,
            unix: Vec::new(),
            vsock,
            metrics: None,
            policy: in_force,
            topics: Vec::new(),
            handed,
            limits,
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (ready, listeners) = oneshot::channel();
        let (shutdown, stop) = oneshot::channel::<()>();
        let supervisor = Arc::new(Nobody(Mutex::new(Some(ready))));
        let stop = async { drop(stop.await) };
        let mut ended = runtime.spawn(broker::run(config, recorder.clone(), journal_id, supervisor, stop));
        let listeners = runtime.block_on(async {
            tokio::select! {
                biased;
                Ok(listeners) = listeners => Ok(listeners),
                ended = &mut ended => Err(ended.unwrap().unwrap_err()),
            }
        })?;
        Ok(World { policy, runtime, ended, shutdown, listeners, recorder, root: self.path("root"), lock })
    }
}

pub struct World {
    policy: watch::Sender<Arc<Policy>>,
    runtime: Runtime,
    ended: JoinHandle<Result<(), BrokerError>>,
    shutdown: oneshot::Sender<()>,
    pub listeners: Vec<String>,
    recorder: Arc<Recorder>,
    pub root: PathBuf,
    lock: File,
}

impl World {
    /// castra.toml was changed and read again.
    pub fn reload(&self, say: &Say) {
        self.policy.send_replace(say.policy());
    }

    /// SIGTERM, as it were.
    pub fn stop(self) {
        drop(self.shutdown);
        self.runtime.block_on(self.ended).unwrap().unwrap();
        self.recorder.stop();
        drop(self.lock);
    }
}

/// Where the broker listens for the VM at `socket`.
pub fn beside(socket: &Path) -> PathBuf {
    PathBuf::from(format!("{}_7070", socket.display()))
}

/// Which file it is.
pub fn inode(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).unwrap().ino()
}

/// A guest of the VM at `socket` that says hello as `vm`: what it is answered, as soon as somebody listens there.
pub fn dial(socket: &Path, vm: &str) -> (LocalGuest, String) {
    let path = beside(socket);
    let stream = eventually("the broker's socket", || UnixStream::connect(&path).ok());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut guest = LocalGuest { stream: BufReader::new(stream) };
    assert!(guest.line().starts_with("castra-broker "));
    guest.stream.get_mut().write_all(format!("hello vm:{vm} capabilities=bus-v1\n").as_bytes()).unwrap();
    let answer = guest.line();
    (guest, answer)
}

/// A guest with a session.
pub fn session(socket: &Path, vm: &str) -> LocalGuest {
    let (guest, answer) = dial(socket, vm);
    assert!(answer.starts_with("ok session="), "{answer}");
    guest
}

/// Publishes, and is told so.
pub fn publishes(guest: &mut LocalGuest) {
    let ack: Value = guest.ask(r#"{"type":"publish","topic":"t"}"#);
    assert_eq!(ack["status"], "ok", "{ack}");
}

/// Waits until nothing is at `path`.
pub fn gone(path: &Path) {
    eventually("it to be gone", || std::fs::symlink_metadata(path).err());
}
