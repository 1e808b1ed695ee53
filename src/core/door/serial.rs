//! The serial door: virtio-serial channels, sockets that the VMMs own and the broker connects to.
//!
//! ```text
//! castra.toml ─▶ a task for each VM: connect ─┬ there ─▶ lobby, until it ends ─┐
//!       ▲                                     └ not there                      ├─▶ wait ─▶ connect …
//!       │ a new policy: lines begin and end     └──────────────────────────────┘
//! ```
//!
//! The line outlives sessions and guests: after a session whose frames went wrong (a guest that rebooted in the middle
//! of one) the broker hangs up and greets again; the guest's side finds the banner or says hello until it is answered.
//! Always holds: nothing is tried more often than every `SOON`; a VM that is down is said once, and so is
//! one that is back. Owner: `listen.rs`.

use super::Lobby;
use super::allotment::Allotment;
use super::hybrid::another;
use crate::core::identity::VmName;
use crate::core::policy::Policy;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

/// The first wait after a line ended: a VMM that restarts has its socket back about then.
const SOON: Duration = Duration::from_millis(100);
/// The waits double up to this while a VM is down: a thousand of them cost a thousand failed connects a second, which
/// is a hundredth of a core, and a guest is greeted before it has booted.
const LATER: Duration = Duration::from_secs(1);

/// Keeps the lines that the policy asks for, until the broker ends.
pub async fn keep(lobby: Arc<Lobby>) {
    let mut policy = lobby.policy();
    let mut lines: BTreeMap<(VmName, PathBuf), Allotment> = BTreeMap::new();
    loop {
        let wanted = wanted(&policy.borrow_and_update());
        lines.retain(|line, allotment| {
            let holds = wanted.contains(line);
            if !holds {
                tracing::info!(vm = %line.0, socket = %line.1.display(), "serial: castra.toml does not allot it any more");
                allotment.take_back();
            }
            holds
        });
        for line in wanted {
            lines.entry(line).or_insert_with_key(|(vm, path)| {
                let allotment = Allotment::new(vm.clone(), format!("serial:{}", path.display()));
                tokio::spawn(tend(lobby.clone(), vm.clone(), path.clone(), allotment.clone()));
                allotment
            });
        }
        tokio::select! {
            () = lobby.ended() => return,
            () = another(&mut policy) => {}
        }
    }
}

/// The lines of a policy; a line has one VM.
fn wanted(policy: &Policy) -> BTreeSet<(VmName, PathBuf)> {
    let mut taken = BTreeMap::new();
    let lines = policy.vms().filter_map(|vm| Some((vm.name.clone(), vm.serial.clone()?)));
    lines
        .filter(|(vm, path)| {
            let owner: &VmName = taken.entry(path.clone()).or_insert_with(|| vm.clone());
            if owner != vm {
                tracing::warn!(%vm, socket = %path.display(), "serial: this is the line of VM {owner}; it is served as that");
            }
            owner == vm
        })
        .collect()
}

/// Why there is no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Down {
    /// Nobody is there yet, or any more.
    Nobody,
    /// What is there is no socket.
    NotSocket,
    /// Something else.
    Failed(io::ErrorKind),
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Down::Nobody => f.write_str("nobody is there"),
            Down::NotSocket => f.write_str("what is there is no socket"),
            Down::Failed(kind) => write!(f, "{kind}"),
        }
    }
}

/// One line, again and again.
async fn tend(lobby: Arc<Lobby>, vm: VmName, path: PathBuf, allotment: Allotment) {
    let (mut wait, mut said) = (SOON, None);
    loop {
        let Some(place) = lobby.place().await else { return };
        let begun = Instant::now();
        match connect(&path).await {
            Ok(stream) => {
                said = None;
                let attended = lobby.attend(place, allotment.connection(stream, true));
                tokio::pin!(attended);
                // One that is gone at once is worth no line.
                let is_steady = tokio::select! {
                    () = &mut attended => false,
                    () = sleep(LATER) => true,
                };
                if is_steady {
                    tracing::info!(%vm, socket = %path.display(), "serial: connected");
                    attended.await;
                    tracing::info!(%vm, socket = %path.display(), "serial: the connection ended; made anew as soon as it can be");
                }
            }
            Err(down) if said != Some(down) => {
                said = Some(down);
                match down {
                    Down::Nobody => {
                        tracing::info!(%vm, socket = %path.display(), "serial: {down}; tried again until there is");
                    }
                    _ => tracing::warn!(%vm, socket = %path.display(), "serial: {down}; tried again"),
                }
            }
            Err(_) => {}
        }
        wait = if begun.elapsed() >= LATER { SOON } else { (2 * wait).min(LATER) };
        tokio::select! {
            () = lobby.ended() => return,
            () = allotment.taken_back() => return,
            () = sleep(wait) => {}
        }
    }
}

async fn connect(path: &Path) -> Result<UnixStream, Down> {
    UnixStream::connect(path).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Down::Nobody,
        // Also what connecting to a plain file says.
        io::ErrorKind::ConnectionRefused
            if std::fs::metadata(path).is_ok_and(|is| !is.file_type().is_socket()) =>
        {
            Down::NotSocket
        }
        io::ErrorKind::ConnectionRefused => Down::Nobody,
        kind => Down::Failed(kind),
    })
}
