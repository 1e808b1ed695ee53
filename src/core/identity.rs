//! Who is who: names of VMs, and what a peer may call itself.
//!
//! Always holds: two names never share a file (the characters are those of a plain file name, and a
//! name that differs only by case is another name on another file); `host` and `bus` are nobody's.
//! Pure. Owner: the handshake, which asks [`admit`] once per connection.

use super::limits::NAME_BYTES;
use super::refusal::Refusal;
use super::topic::Pattern;
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
    /// Checks the characters and the length; reserved names pass (see [`admit`]).
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
    /// For people and records: `127.0.0.1:4711`, `unix:uid=0,pid=12`.
    pub address: String,
    /// The connection came over `castra.sock` from the broker's own uid or root.
    pub may_be_host: bool,
}

/// Who a session speaks as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The operator's side.
    Host,
    /// A VM.
    Guest,
}

/// A name or capability that this peer may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reserved-identity")]
pub struct ReservedIdentity;

/// Decides what a peer that says `name` and these capabilities is.
///
/// # Errors
/// [`ReservedIdentity`]: `host`, `bus` or `host-bus` from somebody who may not.
pub fn admit(peer: &Peer, name: &VmName, asks_host_bus: bool) -> Result<Role, ReservedIdentity> {
    if name.as_str() == "host" && peer.may_be_host {
        return Ok(Role::Host);
    }
    if name.is_reserved() || asks_host_bus {
        return Err(ReservedIdentity);
    }
    Ok(Role::Guest)
}

/// Whether a session may subscribe `pattern`: wildcards match no mailboxes and nothing of the broker's own, so only a
/// pattern that names them asks for them.
///
/// # Errors
/// `forbidden-topic`.
pub fn may_subscribe(role: Role, name: &VmName, pattern: &Pattern) -> Result<(), Refusal> {
    let text = pattern.as_str();
    let why = match text.strip_prefix("vm:") {
        _ if role == Role::Host => return Ok(()),
        Some(mailbox) if mailbox == name.as_str() => return Ok(()),
        Some(_) => format!("'{text:.64}': a guest subscribes its own mailbox only, which is 'vm:{name}'"),
        None if text.starts_with('$') => format!("'{text:.64}': topics that begin with '$' are for the host"),
        None => return Ok(()),
    };
    Err(Refusal::new("forbidden-topic", why))
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

    #[test]
    fn only_the_hosts_socket_has_the_host() {
        let tcp = Peer { address: "t".into(), may_be_host: false };
        let own = Peer { address: "u".into(), may_be_host: true };
        let name = |n| VmName::parse(n).unwrap();
        assert_eq!(admit(&own, &name("host"), true), Ok(Role::Host));
        assert_eq!(admit(&own, &name("web"), false), Ok(Role::Guest));
        for (peer, n, host_bus) in [
            (&tcp, "host", true),
            (&tcp, "HOST", false),
            (&own, "Host", true),
            (&own, "bus", false),
            (&tcp, "web", true),
            (&own, "web", true),
        ] {
            assert_eq!(admit(peer, &name(n), host_bus), Err(ReservedIdentity), "{n}");
        }
    }
}
