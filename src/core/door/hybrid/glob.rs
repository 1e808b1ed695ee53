//! Where sockets of VMs come and go: a path with one `*`, which stands for the VM's name.
//!
//! ```text
//! /run/vms/*.vsock            folder /run/vms,      what matches is the socket
//! /srv/jail/*/root/v.sock     folder /srv/jail,     what matches is a folder, and the socket is below it
//! ```
//!
//! Always holds: a path that was made of a name gives that name back. Pure. Owner: `look.rs` reads the folders.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// Such a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    folder: PathBuf,
    before: String,
    after: String,
    /// What follows the component with the `*`.
    below: PathBuf,
}

impl Glob {
    /// Reads one.
    ///
    /// # Errors
    /// Why it is none, for people.
    pub fn parse(path: &Path) -> Result<Self, &'static str> {
        let text = path.to_str().ok_or("it is not UTF-8")?;
        if !path.is_absolute() {
            return Err("it does not begin with '/'");
        }
        // As it is written: the components of a path leave '.' out.
        if text.ends_with('/') || text.split('/').any(|part| matches!(part, "." | "..")) {
            return Err("it ends with '/', or has '.' or '..' in it");
        }
        if text.matches('*').count() != 1 {
            return Err("it does not have exactly one '*', which stands for the VM's name");
        }
        let (before, after) = text.split_once('*').unwrap_or_default();
        let (folder, before) = before.rsplit_once('/').unwrap_or_default();
        let (after, below) = after.split_once('/').unwrap_or((after, ""));
        let folder = PathBuf::from(if folder.is_empty() { "/" } else { folder });
        Ok(Glob { folder, before: before.to_owned(), after: after.to_owned(), below: below.into() })
    }

    /// The folder whose entries may match.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the entries that match are sockets themselves, not folders with one.
    pub fn is_flat(&self) -> bool {
        self.below.as_os_str().is_empty()
    }

    /// What the `*` stands for in an entry of the folder.
    pub fn star<'a>(&self, entry: &'a OsStr) -> Option<&'a str> {
        let star = entry.to_str()?.strip_prefix(&*self.before)?.strip_suffix(&*self.after)?;
        (!star.is_empty()).then_some(star)
    }

    /// The socket that belongs to an entry of the folder.
    pub fn socket(&self, entry: &OsStr) -> PathBuf {
        let path = self.folder.join(entry);
        if self.is_flat() { path } else { path.join(&self.below) }
    }

    /// The socket of this name.
    pub fn socket_of(&self, name: &str) -> PathBuf {
        self.socket(OsStr::new(&format!("{}{name}{}", self.before, self.after)))
    }

    /// What the `*` stands for in the path of a socket.
    pub fn name_of<'a>(&self, socket: &'a Path) -> Option<&'a str> {
        let entry = socket.strip_prefix(&self.folder).ok()?.components().next()?;
        let Component::Normal(entry) = entry else { return None };
        self.star(entry).filter(|_| self.socket(entry) == socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn globs() {
        let name = |glob: &str, path: &str| {
            Glob::parse(Path::new(glob)).unwrap().name_of(Path::new(path)).map(str::to_owned)
        };
        for (glob, path, star) in [
            ("/run/vms/*.vsock", "/run/vms/web.vsock", Some("web")),
            ("/run/vms/*.vsock", "/run/vms/web.vsock_7070", None),
            ("/run/vms/*.vsock", "/run/vms/.vsock", None),
            ("/run/vms/*.vsock", "/run/vms/a/b.vsock", None),
            ("/run/vms/vm-*", "/run/vms/vm-a.b", Some("a.b")),
            ("/*/v.sock", "/web/v.sock", Some("web")),
            ("/srv/fc/*/root/v.sock", "/srv/fc/7/root/v.sock", Some("7")),
            ("/srv/fc/*/root/v.sock", "/srv/fc/7/root/w.sock", None),
            ("/srv/fc/*/root/v.sock", "/srv/fc/7/v.sock", None),
            ("/a/x*x", "/a/x", None),
        ] {
            assert_eq!(name(glob, path).as_deref(), star, "{glob} {path}");
        }
        for bad in [
            "run/*.sock",
            "/run/x.sock",
            "/run/*/*.sock",
            "/run/../*.sock",
            "/run/*/../x",
            "/./*.sock",
            "/run/*/",
            "",
        ] {
            assert!(Glob::parse(Path::new(bad)).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_name_comes_back(
            folder in "(/[a-z]{1,3}){0,3}", before in "[a-z.]{0,3}", after in "[a-z.]{0,3}",
            below in "(/[a-z]{1,3}){0,2}", name in "[A-Za-z0-9][A-Za-z0-9._-]{0,8}",
        ) {
            let path = |star: &str| PathBuf::from(format!("{folder}/{before}{star}{after}{below}"));
            let glob = Glob::parse(&path("*")).unwrap();
            let whole = path(&name);
            prop_assert_eq!(glob.name_of(&whole), Some(&*name));
            prop_assert_eq!(glob.socket_of(&name), path(&name));
        }
    }
}
