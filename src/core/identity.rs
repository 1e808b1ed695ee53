//! Who is who: names of VMs, the ways that peers come by, what proves a name.
//!
//! Always holds: two names never share a file (the characters are those of a plain file name, and a
//! name that differs only by case is another name on another file); `host` and `bus` are nobody's.
//! Pure. Owner: whoever parsed it; `policy.rs` decides who is let in.

use super::limits::NAME_BYTES;
use std::fmt;
use std::sync::Arc;

/// A VM's valid name: 1–128 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmName(Arc<str>);

/// The text is no VM's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name is 1-128 of A-Z a-z 0-9 . _ -, starting with a letter or digit")]
pub struct NameError;

impl VmName {
    /// Checks the characters and the length; reserved names pass.
    ///
    /// # Errors
    /// [`NameError`] when a rule is broken.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let bytes = text.as_bytes();
        let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let valid = (1..=NAME_BYTES).contains(&bytes.len())
            && bytes[0].is_ascii_alphanumeric()
            && bytes.iter().all(plain);
        if valid { Ok(VmName(text.into())) } else { Err(NameError) }
    }

    /// The name of the host itself, in events and as a log.
    pub fn host() -> Self {
        VmName("host".into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `host` and `bus`, in any case: never a guest's.
    pub fn is_reserved(&self) -> bool {
        self.0.eq_ignore_ascii_case("host") || self.0.eq_ignore_ascii_case("bus")
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a door knows about a connection before the first byte.
#[derive(Clone, Debug)]
pub struct Peer {
    /// For people and records: `127.0.0.1:4711`, `unix:uid=0,pid=12`, `vsock:cid=42,port=1025`, `hybrid:/run/web.vsock`,
    /// `serial:/run/web.serial`.
    pub address: String,
    /// What the way it came by says of it.
    pub origin: Origin,
}

impl Peer {
    /// Whoever can be told from others before a hello: an address without its port, a uid, a VM.
    pub fn source(&self) -> String {
        match &self.origin {
            Origin::Cid(cid) => format!("cid {cid}"),
            Origin::Allotted(vm) => format!("vm {vm}"),
            Origin::Host | Origin::Local | Origin::Remote => {
                self.address.rsplit_once([':', ',']).map_or(&*self.address, |(source, _)| source).to_owned()
            }
        }
    }
}

/// What the way that a connection came by says of its peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `castra.sock`, from the broker's own uid or root.
    Host,
    /// A socket of this machine that anybody may share: TCP on loopback, a socket for guests.
    Local,
    /// TCP from another machine.
    Remote,
    /// The vsock context of a VM.
    Cid(u32),
    /// A socket or a serial line that the host allotted to this VM alone.
    Allotted(VmName),
}

impl Origin {
    /// What the way proves, of the VM that it belongs to.
    pub fn proof(&self) -> Option<Identity> {
        match self {
            Origin::Cid(_) => Some(Identity::Cid),
            Origin::Allotted(_) => Some(Identity::Socket),
            Origin::Host | Origin::Local | Origin::Remote => None,
        }
    }
}

/// What proves a name; a stronger one is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// The vsock context that the host allotted.
    Cid,
    /// The socket or serial line that the host allotted.
    Socket,
    /// A token.
    Token,
    /// Nothing: it is only a name.
    Name,
}

impl Identity {
    /// As records and status say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Identity::Cid => "cid",
            Identity::Socket => "socket",
            Identity::Token => "token",
            Identity::Name => "name",
        }
    }

    /// What [`Identity::as_str`] says; anything else is nothing.
    pub fn meant(text: &str) -> Self {
        [Identity::Cid, Identity::Socket, Identity::Token]
            .into_iter()
            .find(|identity| identity.as_str() == text)
            .unwrap_or(Identity::Name)
    }
}

/// Who a session speaks as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The operator's side.
    Host,
    /// A VM.
    Guest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "A-b_c.d", "0", &"x".repeat(128)] {
            assert!(VmName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "_a", "a/b", "a b", "ä", "a\0", &"x".repeat(129)] {
            assert!(VmName::parse(bad).is_err(), "{bad}");
        }
    }
}
