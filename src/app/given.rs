//! What was typed, checked before anything is done with it: a VM's name, a pattern, a time, an expression, a state root.
//!
//! Always holds: what is refused is named as it was typed. Owner: the commands.

use super::failure::{Exit, Failure};
use crate::core::clock;
use crate::core::follow::Begin;
use crate::core::identity::VmName;
use crate::core::limits::ID_BYTES;
use crate::core::state_root::StateRoot;
use crate::core::tail::filter::Grep;
use crate::core::tail::when::{When, WhenError};
use crate::core::topic::Pattern;
use jiff::tz::TimeZone;
use nix::unistd::{AccessFlags, access};
use std::io;

/// A VM's name; `vm:web`, as its mailbox is called, is `web`.
///
/// # Errors
/// It is none.
pub fn vm_name(text: &str) -> Result<VmName, Failure> {
    let bad = |why: String| Failure::new(Exit::BadData, "bad-name", why);
    let plain = text.strip_prefix("vm:").unwrap_or(text);
    let name = VmName::parse(plain).map_err(|e| bad(format!("{text:?} is no VM's name: {e}")))?;
    if name.as_str().eq_ignore_ascii_case("bus") {
        return Err(bad(format!("{name} is no VM's name; what everybody published is shown without --vm")));
    }
    Ok(name)
}

/// Reads a pattern.
///
/// # Errors
/// It is none.
pub fn pattern(text: &str) -> Result<Pattern, Failure> {
    let why = |e| format!("{text:?} is no topic and no pattern: {e}");
    Pattern::parse(text).map_err(|e| Failure::new(Exit::BadData, "bad-pattern", why(e)))
}

/// Reads a time, or a seq; local times are those of this machine.
///
/// # Errors
/// It is neither.
pub fn when(text: &str) -> Result<When, WhenError> {
    When::parse(text, clock::wall_ms(), &TimeZone::system())
}

/// Reads where to begin: `latest`, `earliest`, `state` (but a group), a time, a seq or an id; `what` it was typed as.
///
/// # Errors
/// It is none of these.
pub fn begin(what: &str, text: &str, is_group: bool) -> Result<Begin, Failure> {
    let bad = |why: String| Failure::new(Exit::BadData, "bad-from", format!("{what} {why}"));
    if let Some(id) = text.strip_prefix("id:") {
        if id.is_empty() || id.len() > ID_BYTES || id.contains(char::is_control) {
            return Err(bad(format!("{text:?}: an id is 1-{ID_BYTES} bytes without control characters")));
        }
        return Ok(Begin::Id(id.to_owned()));
    }
    if let Some(seq) = text.strip_prefix("seq:").or(text.strip_prefix('@')) {
        let seq =
            seq.parse::<u64>().map_err(|_| bad(format!("{text:?}: a seq is a whole number below 2^64")))?;
        // There is no event 0: all of them, as `bus tail --since` has it.
        return Ok(Begin::Seq(seq.max(1)));
    }
    let words = match is_group {
        true => "latest, earliest, seq:N, id:ID or a time",
        false => "latest, earliest, state, seq:N, id:ID or a time",
    };
    match text {
        "latest" => Ok(Begin::Latest),
        "earliest" => Ok(Begin::Earliest),
        "state" if is_group => Err(bad(format!("is {words}; a group does not begin at the state"))),
        "state" => Ok(Begin::State(0)),
        _ => match when(text) {
            Ok(When::Seq(seq)) => Ok(Begin::Seq(seq.max(1))),
            Ok(When::Time(ms)) => Ok(Begin::Time(ms)),
            Err(e) => Err(bad(format!("is {words}, and {e}"))),
        },
    }
}

/// Reads an expression.
///
/// # Errors
/// It is none.
pub fn grep(text: &str) -> Result<Grep, Failure> {
    let why = |e| format!("--grep {text:?} is no regular expression: {e}");
    Grep::parse(text).map_err(|e| Failure::new(Exit::BadData, "bad-regex", why(e)))
}

/// Whether a state root can be looked into; it need not be there yet.
///
/// # Errors
/// It is no folder, or somebody else's.
pub fn check_root(root: &StateRoot) -> Result<(), Failure> {
    let path = root.path();
    let looked = match std::fs::metadata(path) {
        Ok(is) if !is.is_dir() => Err(io::ErrorKind::NotADirectory.into()),
        Ok(_) => access(path, AccessFlags::R_OK | AccessFlags::X_OK).map_err(io::Error::from),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    };
    looked.map_err(|e| Failure::unreadable(path, &e))
}
