//! What the operator says of VMs: which there are, what proves them, what each may do.
//!
//! ```text
//! castra.toml ─▶ Policy ──judge(peer, hello)──▶ Admitted: who it is, what proved that, its Rules
//!     │ SIGHUP      └──── the same again, for every session that is open ──▶ goes on, or ends
//!     └───────────▶ a new Policy takes the old one's place
//! ```
//!
//! Always holds: a proof names exactly one VM, and what it proves goes before what a peer calls itself; a token is
//! compared in constant time and written nowhere. Pure. Owner: `broker.rs` has the one in force.

use super::identity::{Identity, Origin, Peer, Role, VmName};
use super::refusal::Refusal;
use super::topic::Pattern;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Whose names are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Any name, as it comes.
    #[default]
    Open,
    /// Names that castra.toml has; where it has a proof of one, that is demanded.
    Known,
    /// Names that are proven.
    Proven,
}

/// A secret of one VM.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(Box<str>);

impl Token {
    /// Of a text that can stand in a hello.
    pub fn new(text: &str) -> Self {
        Token(text.into())
    }

    /// Whether `said` is it; takes as long for whatever is said of the same length.
    pub fn is(&self, said: &str) -> bool {
        self.0.as_bytes().ct_eq(said.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(not shown)")
    }
}

/// What castra.toml says of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmEntry {
    /// Its name.
    pub name: VmName,
    /// The vsock context it is allotted.
    pub cid: Option<u32>,
    /// Its hybrid vsock socket; the broker listens at this path with `_7070` behind it.
    pub socket: Option<PathBuf>,
    /// The socket of its virtio-serial port, which the VMM owns.
    pub serial: Option<PathBuf>,
    /// What it proves itself with.
    pub token: Option<Token>,
    /// What it may publish.
    pub rules: Arc<Rules>,
}

impl VmEntry {
    /// Whether there is anything that proves it.
    pub fn has_proof(&self) -> bool {
        self.cid.is_some() || self.socket.is_some() || self.serial.is_some() || self.token.is_some()
    }
}

/// What a VM may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// What it may publish; `None`: everything but `$…`.
    pub publish: Option<Vec<Pattern>>,
    /// What it may subscribe beside its own mailbox; `None`: everything but other mailboxes and `$…`.
    pub subscribe: Option<Vec<Pattern>>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Whose names are taken.
    pub trust: Trust,
    /// Paths of hybrid vsock sockets, with one `*` each, which stands for the VM's name.
    pub hybrid: Vec<PathBuf>,
    vms: BTreeMap<VmName, VmEntry>,
    cids: HashMap<u32, VmName>,
    any: Arc<Rules>,
}

/// Who a peer says that it is, and how it came.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The way it came by.
    pub peer: Peer,
    /// The name it goes by.
    pub name: VmName,
    /// It asks for the host's rights.
    pub asks_host_bus: bool,
    /// The token it said.
    pub token: Option<Token>,
}

/// What a peer that is let in is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Who it speaks as.
    pub role: Role,
    /// What proved its name.
    pub identity: Identity,
    /// What it may do.
    pub rules: Arc<Rules>,
}

/// Why a peer is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// `host`, `bus` or `host-bus` from somebody who may not.
    #[error("reserved-identity")]
    ReservedIdentity,
    /// No VM is allotted this vsock context.
    #[error("unknown-cid")]
    UnknownCid,
    /// The way it came by is another VM's.
    #[error("identity-mismatch")]
    IdentityMismatch,
    /// castra.toml has no such VM, and only those that it has are let in.
    #[error("unknown-vm")]
    UnknownVm,
    /// Nothing proves the name, and only proven ones are let in.
    #[error("not-proven")]
    NotProven,
    /// It is not this VM's token.
    #[error("wrong-token")]
    WrongToken,
    /// A token came over a network, where nothing hides it.
    #[error("token-over-network")]
    TokenOverNetwork,
}

impl Denied {
    /// As the peer and the record get it.
    pub fn reason(self) -> &'static str {
        match self {
            Denied::ReservedIdentity => "reserved-identity",
            Denied::UnknownCid => "unknown-cid",
            Denied::IdentityMismatch => "identity-mismatch",
            Denied::UnknownVm => "unknown-vm",
            Denied::NotProven => "not-proven",
            Denied::WrongToken => "wrong-token",
            Denied::TokenOverNetwork => "token-over-network",
        }
    }
}

impl Policy {
    /// Of these VMs; no name and no cid stands twice among them.
    pub fn new(trust: Trust, hybrid: Vec<PathBuf>, vms: impl IntoIterator<Item = VmEntry>) -> Self {
        let vms: BTreeMap<VmName, VmEntry> = vms.into_iter().map(|vm| (vm.name.clone(), vm)).collect();
        let cids = vms.values().filter_map(|vm| Some((vm.cid?, vm.name.clone()))).collect();
        Policy { trust, hybrid, vms, cids, any: Arc::default() }
    }

    /// The VMs that castra.toml has, by name.
    pub fn vms(&self) -> impl Iterator<Item = &VmEntry> {
        self.vms.values()
    }

    /// Decides whether a peer is what it says.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn judge(&self, claim: &Claim) -> Result<Admitted, Denied> {
        let Claim { peer, name, asks_host_bus, token } = claim;
        if name.as_str() == "host" && peer.origin == Origin::Host {
            return Ok(Admitted { role: Role::Host, identity: Identity::Socket, rules: self.any.clone() });
        }
        if name.is_reserved() || *asks_host_bus {
            return Err(Denied::ReservedIdentity);
        }
        let entry = self.vms.get(name);
        let allotted = match &peer.origin {
            Origin::Cid(cid) => Some((self.cids.get(cid).ok_or(Denied::UnknownCid)?, Identity::Cid)),
            Origin::Allotted(vm) => Some((vm, Identity::Socket)),
            Origin::Host | Origin::Local | Origin::Remote => None,
        };
        if allotted.is_some_and(|(vm, _)| vm != name) {
            return Err(Denied::IdentityMismatch);
        }
        let by_token = self.look_at_token(&peer.origin, entry, token.as_ref())?;
        let identity = allotted.map(|(_, by)| by).or(by_token).unwrap_or(Identity::Name);
        match (self.trust, identity) {
            (Trust::Proven, Identity::Name) => return Err(Denied::NotProven),
            (Trust::Known, Identity::Name) if entry.is_none() => return Err(Denied::UnknownVm),
            // Who can prove it has to: or leaving the proof out would do what a wrong one does not.
            (Trust::Known, Identity::Name) if entry.is_some_and(VmEntry::has_proof) => {
                return Err(Denied::NotProven);
            }
            _ => {}
        }
        let rules = entry.map_or(&self.any, |vm| &vm.rules).clone();
        Ok(Admitted { role: Role::Guest, identity, rules })
    }

    /// What the token proves, if anything. One for a VM that has none proves nothing, and does no harm.
    fn look_at_token(
        &self,
        origin: &Origin,
        entry: Option<&VmEntry>,
        said: Option<&Token>,
    ) -> Result<Option<Identity>, Denied> {
        match (said, entry.and_then(|vm| vm.token.as_ref())) {
            (None, _) => Ok(None),
            (Some(_), _) if *origin == Origin::Remote => Err(Denied::TokenOverNetwork),
            (Some(_), None) => Ok(None),
            (Some(said), Some(own)) if own.is(&said.0) => Ok(Some(Identity::Token)),
            (Some(_), Some(_)) => Err(Denied::WrongToken),
        }
    }
}

impl Rules {
    /// Whether its VM may publish to `topic`, which is valid. `None` is the default topic.
    ///
    /// # Errors
    /// `forbidden-topic`.
    pub fn may_publish(&self, topic: &str) -> Result<(), Refusal> {
        match &self.publish {
            Some(patterns) if !patterns.iter().any(|pattern| pattern.matches(topic)) => {
                let why = format!("'{topic:.64}': castra.toml on the host does not let this VM publish it");
                Err(Refusal::new("forbidden-topic", why))
            }
            _ => Ok(()),
        }
    }

    /// Whether a session of `role` may subscribe `pattern` as `name`. Wildcards match no mailboxes and nothing of the
    /// broker's own, so only a pattern that names them asks for them.
    ///
    /// # Errors
    /// `forbidden-topic`.
    pub fn may_subscribe(&self, role: Role, name: &VmName, pattern: &Pattern) -> Result<(), Refusal> {
        let text = pattern.as_str();
        let mailbox = text.strip_prefix("vm:");
        if role == Role::Host || mailbox == Some(name.as_str()) {
            return Ok(());
        }
        let why = match &self.subscribe {
            Some(allowed) if allowed.iter().any(|allowed| allowed.covers(pattern)) => return Ok(()),
            Some(_) => {
                format!("'{text:.64}': castra.toml on the host does not let this VM subscribe all of it")
            }
            None if mailbox.is_some() => {
                format!("'{text:.64}': a guest subscribes its own mailbox only, which is 'vm:{name}'")
            }
            None if text.starts_with('$') => {
                format!("'{text:.64}': topics that begin with '$' are for the host")
            }
            None => return Ok(()),
        };
        Err(Refusal::new("forbidden-topic", why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> VmName {
        VmName::parse(text).unwrap()
    }

    fn entry(text: &str, cid: Option<u32>, token: Option<&str>) -> VmEntry {
        let token = token.map(Token::new);
        VmEntry { name: name(text), cid, socket: None, serial: None, token, rules: Arc::default() }
    }

    fn policy(trust: Trust) -> Policy {
        let vms = [
            entry("web", Some(42), None),
            entry("db", None, Some("secret-of-db")),
            entry("plain", None, None),
        ];
        Policy::new(trust, Vec::new(), vms)
    }

    fn judge(trust: Trust, origin: Origin, vm: &str, token: Option<&str>) -> Result<Identity, Denied> {
        let peer = Peer { address: String::new(), origin };
        let claim = Claim { peer, name: name(vm), asks_host_bus: false, token: token.map(Token::new) };
        policy(trust).judge(&claim).map(|admitted| admitted.identity)
    }

    #[test]
    fn trust_says_whose_names_are_taken() {
        use Denied::{NotProven, TokenOverNetwork, UnknownVm, WrongToken};
        let names = [("plain", None), ("db", Some("secret-of-db")), ("db", Some("guess")), ("new", None)];
        for (trust, answers) in [
            (Trust::Open, [Ok(Identity::Name), Ok(Identity::Token), Err(WrongToken), Ok(Identity::Name)]),
            (Trust::Known, [Ok(Identity::Name), Ok(Identity::Token), Err(WrongToken), Err(UnknownVm)]),
            (Trust::Proven, [Err(NotProven), Ok(Identity::Token), Err(WrongToken), Err(NotProven)]),
        ] {
            for ((vm, token), answer) in names.iter().zip(answers) {
                assert_eq!(judge(trust, Origin::Local, vm, *token), answer, "{trust:?} {vm} {token:?}");
            }
            let bare = judge(trust, Origin::Local, "db", None);
            assert_eq!(bare, if trust == Trust::Open { Ok(Identity::Name) } else { Err(NotProven) });
            let remote = |token| judge(trust, Origin::Remote, "db", token);
            assert_eq!(remote(Some("secret-of-db")), Err(TokenOverNetwork), "right or wrong");
            assert_eq!(remote(None).is_ok(), trust == Trust::Open);
        }
        // What another session was given as its token proves nothing, and a VM without one needs none.
        assert_eq!(judge(Trust::Open, Origin::Local, "plain", Some("20b25f")), Ok(Identity::Name));
    }

    #[test]
    fn what_the_host_allotted_goes_before_what_a_peer_says() {
        for trust in [Trust::Open, Trust::Known, Trust::Proven] {
            let cid = |cid, vm| judge(trust, Origin::Cid(cid), vm, None);
            assert_eq!(cid(42, "web"), Ok(Identity::Cid));
            assert_eq!(cid(42, "db"), Err(Denied::IdentityMismatch));
            assert_eq!(cid(7, "web"), Err(Denied::UnknownCid));
            let socket = |of, vm, token| judge(trust, Origin::Allotted(name(of)), vm, token);
            assert_eq!(
                socket("fresh", "fresh", None),
                Ok(Identity::Socket),
                "a glob of castra.toml found it"
            );
            assert_eq!(socket("fresh", "web", None), Err(Denied::IdentityMismatch));
            assert_eq!(socket("db", "db", Some("guess")), Err(Denied::WrongToken));
            for vm in ["host", "HOST", "bus"] {
                assert_eq!(cid(42, vm), Err(Denied::ReservedIdentity));
                assert_eq!(socket(vm, vm, None), Err(Denied::ReservedIdentity));
                let local = judge(trust, Origin::Local, vm, None);
                assert_eq!(local, Err(Denied::ReservedIdentity));
            }
            assert!(judge(trust, Origin::Host, "host", None).is_ok());
            assert_eq!(judge(trust, Origin::Host, "Host", None), Err(Denied::ReservedIdentity));
        }
    }

    #[test]
    fn rules_bound_what_a_vm_may_do() {
        let patterns = |texts: &[&str]| Some(texts.iter().map(|t| Pattern::parse(t).unwrap()).collect());
        let rules = Rules {
            publish: patterns(&["build.>", "vm:db"]),
            subscribe: patterns(&["deploy.*", "vm:db", "$dlq.>"]),
        };
        for (topic, may) in [("build.a.b", true), ("vm:db", true), ("vm:web", false), ("build", false)] {
            assert_eq!(rules.may_publish(topic).is_ok(), may, "{topic}");
        }
        assert!(Rules::default().may_publish("vm:any").is_ok());
        let own = name("web");
        let may = |rules: &Rules, role, pattern: &str| {
            rules.may_subscribe(role, &own, &Pattern::parse(pattern).unwrap()).is_ok()
        };
        for (pattern, listed, free) in [
            ("deploy.now", true, true),
            ("deploy.*", true, true),
            ("deploy.>", false, true),
            (">", false, true),
            ("vm:web", true, true),
            ("vm:db", true, false),
            ("vm:*", false, false),
            ("$dlq.x", true, false),
            ("$other", false, false),
        ] {
            assert_eq!(may(&rules, Role::Guest, pattern), listed, "{pattern}");
            assert_eq!(may(&Rules::default(), Role::Guest, pattern), free, "{pattern}");
            assert!(may(&rules, Role::Host, pattern), "{pattern}");
        }
    }

    #[test]
    fn tokens_are_shown_nowhere() {
        assert!(!format!("{:?}", entry("db", None, Some("secret-of-db"))).contains("secret"));
    }
}
