//! Where a path leads to, link by link.
//!
//! Always holds: a link is followed only when it belongs to root or to the broker's own uid: whoever owns a VM's folder
//! points the broker nowhere else. Every step is from a folder that is held, so nothing that is moved meanwhile leads
//! astray. Blocks. Owner: `look.rs` and `served.rs`.

use super::is_exhausted;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::geteuid;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Links that are followed on one way; the kernel follows as many.
const LINKS: usize = 40;

/// A way that was gone.
#[derive(Clone)]
pub struct Way {
    /// Without links, as far as it was followed.
    pub path: PathBuf,
    /// Links on the way that were followed.
    pub links: usize,
    /// The uid of the link that was not followed.
    pub stranger: Option<u32>,
    /// What is there.
    pub is: Option<FileStat>,
    /// The folder that it is in, if that is there.
    folder: Option<Arc<OwnedFd>>,
    itself: Option<Arc<OwnedFd>>,
}

/// Goes `path`, which is absolute.
///
/// # Errors
/// No descriptors or memory. Where nothing is, the way ends without an error.
pub fn follow(path: &Path) -> io::Result<Way> {
    let root = Some(open(nix::fcntl::AT_FDCWD, OsStr::new("/"))?);
    Way { path: "/".into(), links: 0, stranger: None, is: None, folder: None, itself: root }.and(path)
}

impl Way {
    /// Goes on from the folder that this leads to.
    ///
    /// # Errors
    /// Those of [`follow`].
    pub fn and(&self, path: &Path) -> io::Result<Way> {
        let mut way = self.clone();
        let mut ahead = parts(path);
        while let Some(part) = ahead.pop() {
            let here = way.itself.take().filter(|_| way.stranger.is_none());
            way.folder = None;
            let next = here.as_ref().map(|here| open(here, &part)).transpose();
            let next = match next {
                Err(error) if is_exhausted(&error) => return Err(error),
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => None,
                next => {
                    way.folder.clone_from(&here);
                    next.ok().flatten()
                }
            };
            let (Some(here), Some(next)) = (here, next) else {
                // Nothing is here, so nothing is further on.
                way.is = None;
                way.folder = way.folder.filter(|_| ahead.is_empty());
                way.path.push(part);
                way.path.extend(ahead.iter().rev());
                return Ok(way);
            };
            let is = fstat(&next)?;
            if !is_a(&is, SFlag::S_IFLNK) {
                match part == ".." {
                    true => drop(way.path.pop()),
                    false => way.path.push(part),
                }
                (way.is, way.itself) = (Some(is), Some(next));
                continue;
            }
            way.is = None;
            if ![0, geteuid().as_raw()].contains(&is.st_uid) {
                way.stranger = Some(is.st_uid);
                way.path.push(part);
            } else if way.links == LINKS {
                way.path.push(part);
            } else {
                way.links += 1;
                let target = PathBuf::from(readlinkat(&next, "")?);
                way.itself = Some(here);
                if target.is_absolute() {
                    (way.path, way.itself) = ("/".into(), Some(open(nix::fcntl::AT_FDCWD, OsStr::new("/"))?));
                }
                ahead.extend(parts(&target));
            }
        }
        if let (None, Some(itself)) = (&way.is, &way.itself) {
            way.is = Some(fstat(itself)?);
        }
        Ok(way)
    }

    /// Whether something of this kind is there.
    pub fn is_a(&self, kind: SFlag) -> bool {
        self.is.as_ref().is_some_and(|is| is_a(is, kind))
    }

    /// Whether the folder is there that it is in.
    pub fn has_folder(&self) -> bool {
        self.folder.is_some()
    }

    /// The uid that owns what is there, or else its folder.
    pub fn owner(&self) -> Option<u32> {
        let folder = || self.folder.as_ref().and_then(|folder| fstat(folder).ok());
        self.is.or_else(folder).map(|is| is.st_uid)
    }

    /// A path of it that leads to the folder that was found, whatever was put in its place; as long as this is kept.
    pub fn held(&self) -> Option<PathBuf> {
        let folder = self.folder.as_ref()?;
        Some(Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(self.path.file_name()?))
    }
}

fn is_a(is: &FileStat, kind: SFlag) -> bool {
    is.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

fn open(folder: impl std::os::fd::AsFd, part: &OsStr) -> io::Result<Arc<OwnedFd>> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(Arc::new(openat(folder, part, flags, Mode::empty())?))
}

/// The last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let part = |part| match part {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().rev().filter_map(part).collect()
}
