//! Reads the tokens of the VMs, and makes the policy of it all.
//!
//! Always holds: a file that somebody else can read or write is not read; what was read is in the policy and in no
//! message; no two VMs have one token. Owner: `app/config.rs`.

use super::vms::{SHORT_TOKEN, Secret, check_token, short_token};
use super::{Mistake, Places, Settings};
use crate::core::limits::TOKEN_FILE_BYTES;
use crate::core::policy::{Policy, Token, VmEntry};
use nix::fcntl::OFlag;
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// Nobody but the owner.
const OTHERS: u32 = 0o077;
/// The same where a service manager keeps what it hands over: there the bits of the group are the mask of a list that
/// names the service's user.
const STRANGERS: u32 = 0o027;
/// That place; only root can write it.
const CREDENTIALS: &str = "/run/credentials";

/// What came of reading the tokens.
#[derive(Debug, Default)]
pub struct Tokens {
    /// Of each VM in the order of [`Settings::vms`].
    tokens: Vec<Option<Token>>,
    /// What is wrong.
    pub mistakes: Vec<Mistake>,
    /// What deserves a word.
    pub warnings: Vec<Mistake>,
}

/// Reads them; files that belong to one of `owners` are trusted.
pub fn read(settings: &Settings, places: &Places, owners: &[u32]) -> Tokens {
    let mut found = Tokens::default();
    let mut seen: HashMap<Token, usize> = HashMap::new();
    for (n, vm) in settings.vms.iter().enumerate() {
        let key = if matches!(vm.secret, Some(Secret::File(_))) { "token_file" } else { "token" };
        let place = |n: usize, key: &str| places.vms.get(n).map(|vm| vm.of(key));
        let message = |why: String| Mistake { place: place(n, key), message: format!("vms.{key}: {why}") };
        let token = match &vm.secret {
            None => None,
            Some(Secret::Token(token)) => Some(token.clone()),
            Some(Secret::File(path)) => match read_file(path, owners) {
                Ok((token, is_short)) => {
                    if is_short {
                        found.warnings.push(message(short_token()));
                    }
                    Some(token)
                }
                Err(why) => {
                    found.mistakes.push(message(format!("{}: {why}", path.display())));
                    None
                }
            },
        };
        if let Some(first) = token.clone().and_then(|token| seen.insert(token, n)) {
            let (vm, line) = (&settings.vms[first].name, place(first, "").map_or(0, |place| place.line));
            let why =
                format!("it is the token of {vm} as well, which begins in line {line}; each VM has its own");
            found.mistakes.push(message(why));
        }
        found.tokens.push(token);
    }
    found
}

impl Tokens {
    /// What is in force with them.
    pub fn policy(self, settings: &Settings) -> Policy {
        let vms = settings.vms.iter().zip(self.tokens).map(|(vm, token)| VmEntry {
            name: vm.name.clone(),
            cid: vm.cid,
            socket: vm.socket.clone(),
            serial: vm.serial.clone(),
            token,
            rules: Arc::new(vm.rules.clone()),
        });
        Policy::new(settings.trust, settings.hybrid.clone(), vms)
    }
}

/// The token of a file, and whether it is a short one; or why it is not taken.
fn read_file(path: &Path, owners: &[u32]) -> Result<(Token, bool), String> {
    // A pipe that nobody writes into must not keep anybody waiting.
    let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    let file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => format!("{error}; the broker's user must be able to read it"),
        _ => error.to_string(),
    })?;
    let is = file.metadata().map_err(|error| error.to_string())?;
    if !is.is_file() {
        return Err("it is no regular file".to_owned());
    }
    if is.uid() != 0 && !owners.contains(&is.uid()) {
        return Err(format!("it belongs to user {}, and not to the broker's user or root", is.uid()));
    }
    let shut = if path.starts_with(CREDENTIALS) { STRANGERS } else { OTHERS };
    if is.mode() & shut != 0 {
        let mode = is.mode() & 0o7777;
        return Err(format!(
            "others can read or write it (mode {mode:04o}): `chmod 600` it, and give the VM a new token"
        ));
    }
    let mut text = String::new();
    let read = file.take(TOKEN_FILE_BYTES as u64 + 1).read_to_string(&mut text);
    read.map_err(|error| error.to_string())?;
    if text.len() > TOKEN_FILE_BYTES {
        return Err(format!("it is larger than {TOKEN_FILE_BYTES} bytes"));
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.contains('\n') {
        return Err("it has more than one line".to_owned());
    }
    Ok((check_token(line)?, line.len() < SHORT_TOKEN))
}
