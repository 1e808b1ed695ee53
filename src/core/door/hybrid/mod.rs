//! The hybrid door: vsock as Firecracker, Cloud Hypervisor and vhost-device-vsock offer it.
//!
//! ```text
//! a guest dials CID 2, port 7070 ─▶ its VMM connects to `<the VM's socket>_7070` ─▶ served.rs ─▶ lobby
//! a folder changes, a second is over, a new policy ─▶ look.rs ─▶ plan.rs ─▶ sockets opened and closed
//! ```
//!
//! Always holds: which socket it is says which VM it is; a VM's socket that vanishes takes the broker's beside it along
//! and ends no session; one that the operator takes back, or that is another VM's by now, ends its sessions; all sockets are removed at the end. Owner:
//! `listen.rs`.

pub mod glob;
mod look;
pub mod plan;
mod served;
mod watching;
mod way;

use super::allotment::Allotment;
use super::{Lobby, unix};
use crate::core::identity::VmName;
use crate::core::policy::Policy;
use look::{Seen, Wishes};
use nix::errno::Errno;
use nix::unistd::{Uid, geteuid};
use plan::{Found, Most, Problem, plan};
use served::Served;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::sleep;
use watching::Watch;
use way::{Way, follow};

/// Folders are looked at so often whatever inotify says.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks there is a rest of this at least, and of several times what the look took: a folder where
/// something happens all the time costs a fifth of one core at the most.
const REST: Duration = Duration::from_millis(10);
/// What could not be opened is tried again after so long: trying disturbs whoever listens there.
const AGAIN: Duration = Duration::from_secs(5);

/// Keeps the sockets that the policy asks for, until the broker ends.
pub async fn keep(lobby: Arc<Lobby>, port: u32) {
    let mut policy = lobby.policy();
    let mut keeper = Keeper::new(lobby.clone());
    loop {
        let wishes = Arc::new(Wishes::new(&policy.borrow_and_update(), port));
        keeper.is_new = true;
        // Until there is another policy.
        loop {
            let begun = Instant::now();
            let wishes = wishes.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let more = keeper.look(&wishes);
                (keeper, more, wishes.is_empty())
            });
            let (more, is_idle);
            (keeper, more, is_idle) = match looked.await {
                Ok(looked) => looked,
                Err(error) => return tracing::error!(%error, "hybrid: ended"),
            };
            let rest = REST.max(4 * begun.elapsed());
            tokio::select! {
                () = lobby.ended() => return keeper.close_all(),
                () = another(&mut policy) => break,
                () = keeper.watch.changed(), if !more => {}
                () = sleep(LOOK), if !more && !is_idle => {}
                () = sleep(rest), if more => continue,
            }
            tokio::select! {
                () = lobby.ended() => return keeper.close_all(),
                () = sleep(rest) => keeper.watch.drain(),
            }
        }
    }
}

/// Resolves when there is a new policy.
pub(super) async fn another(policy: &mut watch::Receiver<Arc<Policy>>) {
    if policy.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

struct Keeper {
    lobby: Arc<Lobby>,
    watch: Watch,
    served: BTreeMap<VmName, Served>,
    /// What was ever served and is not taken back, as long as it is or has connections: whose and where, and the path
    /// that led there.
    allotments: BTreeMap<(VmName, PathBuf), (PathBuf, Allotment)>,
    /// Places that could not be had, with why, and when to try again.
    failed: HashMap<PathBuf, (Problem, Instant)>,
    said: BTreeSet<Problem>,
    /// The policy is.
    is_new: bool,
}

impl Keeper {
    fn new(lobby: Arc<Lobby>) -> Self {
        Keeper {
            lobby,
            watch: Watch::new(),
            served: BTreeMap::new(),
            allotments: BTreeMap::new(),
            failed: HashMap::new(),
            said: BTreeSet::new(),
            is_new: true,
        }
    }

    /// Ends the connections that came by what the operator does not allot any more. Blocks.
    fn take_back(&mut self, wishes: &Wishes) {
        self.allotments.retain(|(vm, place), (path, allotment)| {
            let served = self.served.get_mut(vm).filter(|served| served.place == *place);
            if let Some(by) = wishes.allots(vm.as_str(), path, place) {
                served.into_iter().for_each(|served| served.path.clone_from(&by));
                *path = by;
                return true;
            }
            tracing::info!(%vm, socket = %path.display(), "hybrid: castra.toml does not allot it any more");
            allotment.take_back();
            if served.is_some() {
                self.served.remove(vm).into_iter().for_each(Served::close);
            }
            false
        });
        self.failed.clear();
    }

    /// Ends the connections that came by what is another VM's now; `whose` says which VM has which place.
    fn hand_over(&mut self, whose: &HashMap<PathBuf, VmName>) {
        self.allotments.retain(|(vm, place), (path, allotment)| {
            let Some(other) = whose.get(place).filter(|other| *other != vm) else { return true };
            tracing::info!(%vm, socket = %path.display(), "hybrid: taken back; it is the socket of VM {other} now");
            allotment.take_back();
            false
        });
    }

    /// Looks, and does what follows. Whether there is a folder that was not watched before. Blocks.
    fn look(&mut self, wishes: &Wishes) -> bool {
        let is_new = std::mem::take(&mut self.is_new);
        if is_new {
            self.take_back(wishes);
        }
        let most = self.lobby.bus.limits.vms;
        let Ok(Seen { found, folders, orphans, mut problems, .. }) = wishes.look(most.saturating_mul(2))
        else {
            // What could not be seen is not gone.
            self.is_new = is_new;
            self.say([Problem::NoDescriptors].into());
            return false;
        };
        let standing = self.served.iter().map(|(vm, served)| (vm.clone(), served.standing())).collect();
        let plan = plan(found, &standing, Most { sockets: most, path_bytes: unix::PATH_BYTES });
        problems.extend(plan.problems);
        let whose = plan.open.iter().map(|(vm, found)| (found.place.clone(), vm.clone())).collect();
        self.hand_over(&whose);
        for vm in &plan.close {
            let is_anothers = self.served.get(vm).is_some_and(|served| whose.contains_key(&served.place));
            let why = match is_anothers {
                true => "hybrid: closed; it is another VM's socket now",
                false => "hybrid: closed; its VM's socket is there no longer",
            };
            self.close(vm, why);
        }
        self.failed.retain(|place, _| plan.open.values().any(|found| found.place == *place));
        for (vm, found) in plan.open {
            problems.extend(self.open(vm, found).err());
        }
        if is_new {
            self.sweep(orphans);
        }
        self.allotments.retain(|(vm, place), (_, allotment)| {
            !allotment.is_unused() || self.served.get(vm).is_some_and(|served| served.place == *place)
        });
        self.say(problems);
        self.watch.set(&folders)
    }

    fn say(&mut self, problems: BTreeSet<Problem>) {
        for problem in problems.difference(&self.said) {
            match problem.is_usual() {
                true => tracing::info!("hybrid: {problem}"),
                false => tracing::warn!("hybrid: {problem}"),
            }
        }
        self.said = problems;
    }

    fn open(&mut self, vm: VmName, found: Found) -> Result<(), Problem> {
        if let Some((problem, until)) = self.failed.get(&found.place)
            && Instant::now() < *until
        {
            return Err(problem.clone());
        }
        // Its name must be free; there is none to lose when somebody removed it.
        self.close(&vm, "hybrid: made anew: its file was removed, or the VM's has another owner");
        let permit = self.lobby.places.listener().ok_or(Problem::NoDescriptors)?;
        let (path, place) = (found.path.clone(), found.place.clone());
        let (by, allotment) = self.allotments.entry((vm.clone(), place.clone())).or_insert_with(|| {
            (path.clone(), Allotment::new(vm.clone(), format!("hybrid:{}", path.display())))
        });
        by.clone_from(&path);
        match Served::open(&self.lobby, found, allotment.clone(), permit) {
            Ok(served) => {
                tracing::info!(%vm, socket = %path.display(), "hybrid: open");
                self.served.insert(vm, served);
                Ok(())
            }
            Err(error) if is_exhausted(&error) => Err(Problem::NoDescriptors),
            Err(error) => {
                let problem = Problem::NotOpened(path, error.to_string());
                self.failed.insert(place, (problem.clone(), Instant::now() + AGAIN));
                Err(problem)
            }
        }
    }

    fn close(&mut self, vm: &VmName, why: &'static str) {
        if let Some(served) = self.served.remove(vm) {
            tracing::info!(%vm, socket = %served.path.display(), "{why}");
            served.close();
        }
    }

    /// Removes what an earlier broker left beside sockets that are gone, as far as it is the broker's or belongs to whom
    /// the socket would: the owner of its folder.
    fn sweep(&self, orphans: Vec<PathBuf>) {
        let ours: HashSet<_> = self.served.values().map(Served::file).collect();
        let mut others = Vec::new();
        for orphan in orphans {
            // An entry's socket is served before it is there.
            let is_ours = unix::file_id(&orphan).is_some_and(|file| ours.contains(&file));
            let way = follow(orphan.parent().unwrap_or(Path::new("/")));
            let way = way.ok().filter(|way| way.stranger.is_none());
            let owner = way.as_ref().and_then(Way::owner).map(Uid::from_raw);
            let name = Path::new(orphan.file_name().unwrap_or_default());
            let held = way.and_then(|way| way.and(name).ok()).and_then(|way| Some((way.held()?, way)));
            let Some((held, _way)) = held.filter(|_| !is_ours) else { continue };
            if unix::may_replace(&held, owner.or(Some(geteuid()))).is_err() {
                others.push(orphan);
            } else if unix::is_left(&held) {
                tracing::info!(socket = %orphan.display(), "hybrid: removed what an earlier broker left");
                let _ = std::fs::remove_file(&held);
            }
        }
        if let Some(first) = others.first() {
            tracing::warn!(
                first = %first.display(), files = others.len(),
                "hybrid: left alone what is named like the broker's sockets and is none of them; remove it by hand"
            );
        }
    }

    fn close_all(self) {
        self.served.into_values().for_each(Served::close);
    }
}

/// No descriptors or memory, which is no fault of this socket.
fn is_exhausted(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
}
