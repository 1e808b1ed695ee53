//! Looks at the folders where sockets of VMs come and go.
//!
//! Always holds: it only looks; what it reads of a folder is bounded; links are followed as `way.rs` says, also one in
//! place of the socket itself (a VMM binds no link, so its socket is where that leads to). Blocks. Owner: `mod.rs`.

use super::glob::Glob;
use super::is_exhausted;
use super::plan::{By, Found, Is, Problem};
use super::way::{Way, follow};
use crate::core::policy::Policy;
use nix::sys::stat::SFlag;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

/// Links in place of a socket that are followed to tell how long its path is.
const LINKS: usize = 40;

/// What is looked for.
#[derive(Clone, Default)]
pub struct Wishes {
    entries: Vec<(String, PathBuf)>,
    globs: Vec<Glob>,
    bad: BTreeSet<Problem>,
    /// What the broker's sockets have behind the path of a VM's.
    suffix: String,
}

/// What was seen.
#[derive(Default)]
pub struct Seen {
    /// Paths of VMs' sockets.
    pub found: Vec<Found>,
    /// Folders where that may change.
    pub folders: BTreeSet<PathBuf>,
    /// Sockets named like the broker's own whose VM's socket is not there.
    pub orphans: Vec<PathBuf>,
    /// What could not be looked at.
    pub problems: BTreeSet<Problem>,
    /// The last folder, and the way to it: most sockets are in the same.
    last: Option<(PathBuf, Way)>,
}

impl Wishes {
    /// What `policy` says, the broker being called at `port`.
    pub fn new(policy: &Policy, port: u32) -> Self {
        let mut wishes = Wishes { suffix: format!("_{port}"), ..Wishes::default() };
        for vm in policy.vms() {
            wishes.entries.extend(vm.socket.iter().map(|path| (vm.name.as_str().to_owned(), path.clone())));
        }
        for path in &policy.hybrid {
            match Glob::parse(path) {
                Ok(glob) => wishes.globs.push(glob),
                Err(why) => drop(wishes.bad.insert(Problem::BadGlob(path.clone(), why))),
            }
        }
        wishes
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.globs.is_empty() && self.bad.is_empty()
    }

    /// By which path castra.toml allots `place`, which was found at `path`, to `vm`: what it says of a VM goes before
    /// globs. That nothing is there any more, nor a link that led there, takes nothing back.
    pub fn allots(&self, vm: &str, path: &Path, place: &Path) -> Option<PathBuf> {
        let leads = |from: &Path| {
            let way = follow(from).ok().filter(|way| way.stranger.is_none());
            way.is_some_and(|way| with_suffix(&way.path, &self.suffix) == place)
        };
        if let Some((_, own)) = self.entries.iter().find(|(name, _)| name == vm) {
            return (own == path || leads(own)).then(|| own.clone());
        }
        if self.globs.iter().any(|glob| glob.name_of(path) == Some(vm)) {
            return Some(path.to_owned());
        }
        self.globs.iter().map(|glob| glob.socket_of(vm)).find(|path| leads(path))
    }

    /// Looks everywhere; takes about `most` matches of each glob.
    ///
    /// # Errors
    /// No descriptors or memory: nothing is known.
    pub fn look(&self, most: usize) -> io::Result<Seen> {
        let mut seen = Seen { problems: self.bad.clone(), ..Seen::default() };
        for (vm, path) in &self.entries {
            let found = seen.at(vm, By::Entry, path, &self.suffix)?;
            seen.found.push(found);
            seen.watch(path);
        }
        for glob in &self.globs {
            if let Err(error) = self.match_all(glob, most, &mut seen) {
                if is_exhausted(&error) {
                    return Err(error);
                }
                let folder = glob.folder().to_owned();
                seen.problems.insert(match error.kind() {
                    io::ErrorKind::NotFound => Problem::NoFolder(glob.socket(OsStr::new("*"))),
                    _ => Problem::Unreadable(folder, error.to_string()),
                });
            }
        }
        Ok(seen)
    }

    fn match_all(&self, glob: &Glob, most: usize, seen: &mut Seen) -> io::Result<()> {
        seen.watch(&glob.folder().join("*"));
        if let Some(uid) = follow(glob.folder())?.stranger {
            seen.problems.insert(Problem::Stranger(glob.socket_of("*"), uid));
            return Ok(());
        }
        let mut matched = 0;
        for entry in std::fs::read_dir(glob.folder())? {
            let name = entry?.file_name();
            if glob.is_flat()
                && let Some(path) = self.whose(glob, &name)
            {
                if !path.exists() && glob.star(path.file_name().unwrap_or_default()).is_some() {
                    seen.orphans.push(glob.folder().join(&name));
                }
                continue;
            }
            let Some(star) = glob.star(&name) else { continue };
            matched += 1;
            if matched > most {
                seen.problems.insert(Problem::TooMany(most));
                return Ok(());
            }
            let path = glob.socket(&name);
            let found = seen.at(star, By::Glob, &path, &self.suffix)?;
            seen.found.push(found);
            if !glob.is_flat() {
                seen.watch(&path);
            }
        }
        Ok(())
    }

    /// Whose socket a name of the broker's own stands beside.
    fn whose(&self, glob: &Glob, name: &OsStr) -> Option<PathBuf> {
        let name = name.to_str()?;
        let name = name.strip_suffix(".new").unwrap_or(name);
        name.strip_suffix(&*self.suffix).map(|own| glob.folder().join(own))
    }
}

impl Seen {
    fn at(&mut self, vm: &str, by: By, path: &Path, suffix: &str) -> io::Result<Found> {
        let way = self.way(path)?;
        let is = match way.stranger {
            Some(uid) => Is::Astray(uid),
            None if way.is_a(SFlag::S_IFSOCK) => Is::Socket,
            None if way.is.is_some() => Is::Other,
            None if way.has_folder() => Is::Absent,
            None => Is::FolderAbsent,
        };
        Ok(Found {
            vm: vm.to_owned(),
            by,
            links: way.links,
            path: path.to_owned(),
            listen: with_suffix(&known_as(path), suffix),
            place: with_suffix(&way.path, suffix),
            is,
            owner: way.owner().unwrap_or(0),
        })
    }

    fn way(&mut self, path: &Path) -> io::Result<Way> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let name = Path::new(path.file_name().unwrap_or_default());
        if let Some((last, way)) = &self.last
            && last == folder
        {
            return way.and(name);
        }
        let (_, way) = self.last.insert((folder.to_owned(), follow(folder)?));
        way.and(name)
    }

    /// Watches the folder of `path`, or the next one up that is there.
    fn watch(&mut self, path: &Path) {
        let mut folders = path.ancestors().skip(1);
        self.folders.extend(
            folders.find(|folder| self.folders.contains(*folder) || folder.is_dir()).map(Path::to_owned),
        );
    }
}

/// How a VMM knows the socket at `path`: by where a link in place of it leads to.
fn known_as(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match std::fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => break,
        }
    }
    path
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
