//! What is wrong with settings as a whole, each being right by itself, and what deserves a word.
//!
//! Always holds: what is said has the place in castra.toml that it is about, if it is from there. Pure: what is at
//! a path is asked of the caller. Owner: `app/config.rs`.

use super::parse::{Mistake, Place, Places};
use super::vms::VmSetting;
use super::{HYBRID_SUFFIX, Settings, bytes_text, time_text};
use crate::core::door::tcp::is_loopback;
use crate::core::policy::Trust;
// The address alone: no socket is opened here.
use ::core::net::SocketAddr;
use std::path::Path;

/// What there is to say.
#[derive(Debug, Default)]
pub struct Advice {
    /// A broker does not start so.
    pub wrong: Vec<Mistake>,
    /// It does, and something is likely not meant so.
    pub warnings: Vec<Mistake>,
}

/// What there is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// Nothing, or nothing that can be seen.
    Absent,
    /// A folder.
    Folder,
    /// A folder in which everybody may write.
    SharedFolder,
    /// A socket.
    Socket,
    /// Something else.
    Other,
}

/// Looks at all of it; `look` says what is at a path. Places are those of the values that castra.toml decides.
pub fn advise(settings: &Settings, places: &Places, look: impl Fn(&Path) -> Is) -> Advice {
    let mut advice = Advice::default();
    let trust = settings.trust;
    let is_folder = |path: &Path| matches!(look(path), Is::Folder | Is::SharedFolder);
    for (n, addr) in settings.tcp.iter().enumerate().filter(|(_, addr)| !is_loopback(addr)) {
        let place = places.of("tcp", n);
        match trust {
            Trust::Open => advice.wrong.push(Mistake { place, message: open_to_all(addr) }),
            Trust::Proven => advice.warn(
                place,
                format!("broker.tcp: nobody comes in by {addr}: under trust = \"proven\" a name is proven, and tokens are refused over a network"),
            ),
            Trust::Known => advice.warn(
                place,
                format!("broker.tcp: {addr} is not of the loopback: names are not proven there, nothing is encrypted, and tokens are refused"),
            ),
        }
    }
    if let Some(addr) = settings.metrics.filter(|addr| !is_loopback(addr)) {
        let place = places.of("metrics", 0);
        match trust {
            Trust::Open => advice.wrong.push(Mistake { place, message: metrics_to_all(&addr) }),
            Trust::Known | Trust::Proven => advice.warn(
                place,
                format!("broker.metrics: {addr} is not of the loopback: whoever reaches it sees what is counted, topics by name"),
            ),
        }
    }
    if trust != Trust::Open && settings.vms.is_empty() && settings.hybrid.is_empty() {
        let word = if trust == Trust::Known { "known" } else { "proven" };
        let why =
            format!("broker.trust: under {word:?} no guest is let in, as there are no [[vms]] and no hybrid");
        advice.warn(places.of("trust", 0), why);
    }
    let gone =
        |path: &Path| path.parent().filter(|folder| !is_folder(folder)).map(|f| f.display().to_string());
    for (n, glob) in settings.hybrid.iter().enumerate() {
        // Up to the folder that has a star in its name, or in the names within.
        let fixed = glob.ancestors().find(|path| !path.as_os_str().as_encoded_bytes().contains(&b'*'));
        let Some(folder) = fixed else { continue };
        let shown = folder.display();
        let why = match look(folder) {
            Is::Folder => continue,
            Is::SharedFolder => {
                format!(
                    "broker.hybrid: everybody may write to {shown}, and so be a VM of any name; chmod o-w it"
                )
            }
            Is::Absent | Is::Socket | Is::Other => {
                format!("broker.hybrid: there is no folder {shown}; sockets in it are found once it is there")
            }
        };
        advice.warn(places.of("hybrid", n), why);
    }
    for topic in &settings.topics {
        let (keep, limits) = (topic.retention, &settings.limits);
        let of = |key: &str, most: String| {
            format!(
                "topics.retention: {:?} keeps no more than the journal, whose {key} in [limits] is {most}: raise that",
                topic.topic.as_str()
            )
        };
        if keep.age.is_some_and(|age| age > limits.retain_age) {
            advice
                .wrong
                .push(Mistake { place: None, message: of("retain_age", time_text(limits.retain_age)) });
        }
        if keep.bytes.is_some_and(|bytes| bytes > limits.retain_bytes) {
            advice
                .wrong
                .push(Mistake { place: None, message: of("retain_bytes", bytes_text(limits.retain_bytes)) });
        }
    }
    for (n, vm) in settings.vms.iter().enumerate() {
        let (name, at) = (&vm.name, |key| places.vms.get(n).map(|vm| vm.of(key)));
        if vm.cid.is_some() && settings.vsock.is_none() {
            let why =
                format!("vms.cid: {name} cannot come in by vsock: say vsock = 7070 in [broker], or --vsock");
            advice.warn(at("cid"), why);
        }
        if let Some(folder) = vm.socket.as_deref().and_then(gone) {
            let why = format!(
                "vms.socket: there is no folder {folder}; the broker listens at the socket's path with {HYBRID_SUFFIX} behind it"
            );
            advice.warn(at("socket"), why);
        }
        for (key, path) in [("socket", &vm.socket), ("serial", &vm.serial)] {
            let there = path.as_deref().map(|path| (path, look(path)));
            if let Some((path, Is::Folder | Is::SharedFolder | Is::Other)) = there {
                let why = format!("vms.{key}: {} is there, and it is no socket", path.display());
                advice.warn(at(key), format!("{why}: {name} does not come in by it"));
            }
        }
        if trust == Trust::Proven && !has_proof(vm) && settings.hybrid.is_empty() {
            let why = format!(
                "vms.name: {name} is never let in under trust = \"proven\": give it a cid, socket, serial or token"
            );
            advice.warn(at("name"), why);
        }
    }
    if let Some(n) = settings.vms.iter().position(has_proof).filter(|_| trust == Trust::Open) {
        let name = &settings.vms[n].name;
        let why = format!(
            "vms.name: under trust = \"open\" anybody may take the names of VMs that have a proof, as {name} has; say trust = \"known\" or \"proven\""
        );
        advice.warn(places.vms.get(n).map(|vm| vm.of("name")), why);
    }
    advice.warnings.sort();
    advice
}

/// Whether there is anything that proves it.
fn has_proof(vm: &VmSetting) -> bool {
    vm.cid.is_some() || vm.socket.is_some() || vm.serial.is_some() || vm.secret.is_some()
}

/// Anybody could come in by `addr`.
pub fn open_to_all(addr: &SocketAddr) -> String {
    format!(
        "broker.tcp: {addr} is not of the loopback: under trust = \"open\" whoever reaches it takes any name; say \
         trust = \"known\", or use a tunnel"
    )
}

/// Anybody could see metrics at `addr`.
pub fn metrics_to_all(addr: &SocketAddr) -> String {
    format!(
        "broker.metrics: {addr} is not of the loopback: under trust = \"open\" nothing is shown beyond this machine; say \
         trust = \"known\", or use a tunnel"
    )
}

impl Advice {
    fn warn(&mut self, place: Option<Place>, message: String) {
        self.warnings.push(Mistake { place, message });
    }
}
