//! What is in force: flags, then the environment (`clap` has read it), then castra.toml, then the defaults.
//!
//! Always holds: a file that was named must be there; one of the usual places may be missing, and what is there
//! must be readable and right, or the command ends with exit code 78 and each mistake with file, line and column.
//! Tokens are read for the broker and `castra config check` alone. Owner: [`super::run`] loads it for every command that
//! looks at a state root.

use super::{Exit, Failure};
use crate::cli::BrokerArgs;
use crate::core::config::advice::{Is, advise};
use crate::core::config::vms::{Secret, VmSetting};
use crate::core::config::{Mistake, Place, Places, Settings, table, tokens, trust_word};
use crate::core::limits::CONFIG_BYTES;
use crate::core::policy::{Policy, Trust};
use crate::core::state_root::StateRoot;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const SYSTEM: &str = "/etc/castra/castra.toml";
/// Named for no castra.toml.
const NONE: &str = "/dev/null";

/// The settings, and where each that is no default is from.
#[derive(Debug, Default)]
pub struct Config {
    /// What is in force.
    pub settings: Settings,
    /// The castra.toml that was read.
    pub file: Option<PathBuf>,
    /// What is wrong.
    pub mistakes: Vec<Mistake>,
    /// What deserves a word.
    pub warnings: Vec<Mistake>,
    origins: BTreeMap<String, String>,
    places: Places,
    /// Who may read and write the file; 0 for what is no file, such as /dev/null.
    mode: u32,
    /// All that is wrong is that anybody could come in.
    only_open: bool,
}

/// Reads the castra.toml that was `given`, else the first of the usual ones that is there.
pub fn load(given: Option<&Path>) -> Result<Config, Failure> {
    let config = take(given, |path| read(File::open(path)?))?;
    config.refuse_mistakes().map(|()| config)
}

/// The same for a broker that runs: what stands there must be a regular file with something in it.
pub fn load_again(given: Option<&Path>) -> Result<Config, Failure> {
    let config = take(given, read_again)?;
    config.refuse_mistakes().map(|()| config)
}

/// The same without waiting for the writer of a FIFO; what is wrong is in [`Config::mistakes`].
pub fn look(given: Option<&Path>) -> Result<Config, Failure> {
    take(given, |path| read(open(path)?))
}

fn take(given: Option<&Path>, read: impl Fn(&Path) -> io::Result<(String, u32)>) -> Result<Config, Failure> {
    let mut config = Config::default();
    let Some(path) = given.map(Path::to_owned).or_else(usual_place) else { return Ok(config) };
    let (text, mode) = read(&path).map_err(|e| {
        let what = "name another with --config, or /dev/null for none";
        Failure::new(Exit::BadConfig, "config-unreadable", format!("{}: {e}; {what}", path.display()))
    })?;
    let read = config.settings.read(&text);
    let from = format!("from {}", path.display());
    config.origins = read.said.iter().map(|setting| (setting.name(), from.clone())).collect();
    (config.mistakes, config.warnings, config.places) = (read.mistakes, read.warnings, read.places);
    (config.file, config.mode) = (Some(path), mode);
    config.warnings.extend(config.no_reload().map(|message| Mistake { place: None, message }));
    Ok(config)
}

/// The first of the usual ones that is there.
fn usual_place() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let own = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    let places = own.map(|dir| dir.join("castra/castra.toml")).into_iter().chain([PathBuf::from(SYSTEM)]);
    places.into_iter().find(|path| path.metadata().is_ok())
}

/// [`read`] of what must be a regular file with something in it.
fn read_again(path: &Path) -> io::Result<(String, u32)> {
    if path == Path::new(NONE) {
        return Ok((String::new(), 0));
    }
    let file = open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file (a pipe cannot be read twice)"));
    }
    let (text, mode) = read_open(file)?;
    if text.trim().is_empty() {
        return Err(io::Error::other("it is empty"));
    }
    Ok((text, mode))
}

/// The text, and who may read and write it. A pipe is read to its end; one that gives nothing is an error, because
/// whoever should have written it has failed.
fn read(file: File) -> io::Result<(String, u32)> {
    let is_pipe = file.metadata()?.file_type().is_fifo();
    if is_pipe {
        fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    }
    let (text, mode) = read_open(file)?;
    if is_pipe && text.trim().is_empty() {
        return Err(io::Error::other("it is a pipe, and nobody wrote anything into it"));
    }
    Ok((text, mode))
}

/// Does not wait for somebody to open the other end of a FIFO.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

/// The text of at most [`CONFIG_BYTES`], and the mode.
fn read_open(file: File) -> io::Result<(String, u32)> {
    let mut text = String::new();
    let is = file.metadata()?;
    let mode = if is.is_file() { is.mode() & 0o7777 } else { 0 };
    file.take(CONFIG_BYTES as u64 + 1).read_to_string(&mut text)?;
    if text.len() > CONFIG_BYTES {
        return Err(io::Error::other(format!("it is larger than {CONFIG_BYTES} bytes")));
    }
    Ok((text, mode))
}

/// What is there, links followed.
fn look_at(path: &Path) -> Is {
    let Ok(is) = path.metadata() else { return Is::Absent };
    match (is.file_type(), is.mode() & 0o002) {
        (what, 0) if what.is_dir() => Is::Folder,
        (what, _) if what.is_dir() => Is::SharedFolder,
        (what, _) if what.is_socket() => Is::Socket,
        _ => Is::Other,
    }
}

impl Config {
    /// The state root: the one that was given, else that of castra.toml, else the usual one.
    pub fn state_root(&mut self, given: Option<PathBuf>) -> StateRoot {
        if given.is_some() {
            self.given("state_root");
        }
        StateRoot::resolve(given.or_else(|| self.settings.state_root.clone()))
    }

    /// Puts what was typed over what the file says.
    pub fn take(&mut self, args: &BrokerArgs) -> Result<(), Failure> {
        for (name, flag, value) in [
            ("broker.vsock", "--vsock", &args.vsock),
            ("broker.metrics", "--metrics", &args.metrics),
            ("broker.trust", "--trust", &args.trust),
            ("limits.segment_bytes", "--segment-bytes", &args.segment_bytes),
            ("limits.retain_bytes", "--retain-bytes", &args.retain_bytes),
            ("limits.retain_age", "--retain-age", &args.retain_age),
            ("limits.idle_time", "--idle-time", &args.idle_time),
            ("log.level", "--log-level", &args.log_level),
            ("log.format", "--log-format", &args.log_format),
        ] {
            if let (Some(setting), Some(value)) = (table::find(name), value) {
                let variable = flag.replace("--", "CASTRA_").replace('-', "_").to_uppercase();
                setting.set(&mut self.settings, value).map_err(|why| {
                    Failure::new(Exit::Usage, "usage", format!("{flag} (or {variable}): {why}"))
                })?;
                self.given(name);
            }
        }
        if args.no_tcp || !args.tcp.is_empty() {
            self.settings.tcp = if args.no_tcp { Vec::new() } else { args.tcp.clone() };
            self.given("broker.tcp");
        }
        if !args.unix.is_empty() {
            self.settings.unix.clone_from(&args.unix);
            self.given("broker.unix");
        }
        Ok(())
    }

    /// Why a reload would refuse this file, if it would.
    fn no_reload(&self) -> Option<String> {
        let path = self.file.as_deref().filter(|path| *path != Path::new(NONE))?;
        let is = path.metadata().ok();
        let why = match is {
            Some(is) if is.is_file() && is.len() > 0 => return None,
            Some(is) if is.is_file() => "it is empty",
            _ => "it is no regular file",
        };
        Some(format!("{}: {why}: a broker that runs refuses to reload it (SIGHUP)", path.display()))
    }

    /// What a reload from a policy with `trust`, and with VMs or without, would open although the file does not say so.
    pub fn weakens(&self, trust: Trust, has_vms: bool) -> Option<String> {
        let rank = |trust| match trust {
            Trust::Open => 0,
            Trust::Known => 1,
            Trust::Proven => 2,
        };
        let (old, new) = (trust_word(trust), trust_word(self.settings.trust));
        if rank(self.settings.trust) < rank(trust) && !self.origins.contains_key("broker.trust") {
            return Some(format!(
                "broker.trust: it is not set, which means {new:?}, and {old:?} is in force: write trust = {new:?} to lower it"
            ));
        }
        let drops = has_vms && self.settings.vms.is_empty() && !self.places.no_vms;
        drops.then(|| {
            "vms: there are no [[vms]], and some are in force: write vms = [] to drop them all".to_owned()
        })
    }

    fn given(&mut self, name: &str) {
        self.origins.insert(name.to_owned(), "given by a flag or the environment".to_owned());
        self.places.forget(name.rsplit('.').next().unwrap_or(name));
    }

    /// Reads the tokens, looks at all of it, and says who may do what; what is wrong is in [`Config::mistakes`]. Token
    /// files of `owners`, and of root, are trusted.
    pub fn examine(&mut self, owners: &[u32]) -> Policy {
        let tokens = tokens::read(&self.settings, &self.places, owners);
        let advice = advise(&self.settings, &self.places, look_at);
        self.only_open = self.mistakes.is_empty() && tokens.mistakes.is_empty();
        self.mistakes.extend(tokens.mistakes.iter().cloned().chain(advice.wrong));
        self.warnings.extend(tokens.warnings.iter().cloned().chain(advice.warnings));
        self.look_at_mode();
        self.mistakes.sort();
        self.warnings.sort();
        tokens.policy(&self.settings)
    }

    /// Who may read a token in castra.toml has it; who may write there says who comes in.
    fn look_at_mode(&mut self) {
        let mode = self.mode;
        let shown = |vm: &VmSetting| matches!(vm.secret, Some(Secret::Token(_)));
        if let Some(n) = self.settings.vms.iter().position(shown).filter(|_| mode & 0o044 != 0) {
            let place = self.places.vms.get(n).map(|vm| vm.of("token"));
            let who = if mode & 0o004 != 0 { "anybody on this machine" } else { "its group" };
            let what = "`chmod go-r` it, or say token_file";
            let message = format!("vms.token: {who} can read this file (mode {mode:04o}): {what}");
            self.warnings.push(Mistake { place, message });
        }
        if mode & 0o022 != 0 {
            let who = if mode & 0o002 != 0 { "anybody on this machine" } else { "its group" };
            let what = "and so say who comes in: `chmod go-w` it";
            let message = format!("{who} can write this file (mode {mode:04o}), {what}");
            self.warnings.push(Mistake { place: Some(Place { line: 1, column: 1 }), message });
        }
    }

    /// `FILE:LINE:COLUMN: what`.
    pub fn line(&self, mistake: &Mistake) -> String {
        match (&self.file, mistake.place) {
            (Some(file), Some(place)) => {
                format!("{}:{}:{}: {}", file.display(), place.line, place.column, mistake.message)
            }
            _ => mistake.message.clone(),
        }
    }

    /// Whether a command may go on with it.
    ///
    /// # Errors
    /// All mistakes, a line each.
    pub fn refuse_mistakes(&self) -> Result<(), Failure> {
        if self.mistakes.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = self.mistakes.iter().map(|mistake| self.line(mistake)).collect();
        let code = if self.only_open { "not-loopback" } else { "bad-config" };
        let failure = Failure::new(Exit::BadConfig, code, lines.join("\n"));
        Err(failure.with("mistakes", objects(&self.mistakes)))
    }

    /// All of it as a castra.toml, for a broker on `root`.
    pub fn print(&self, root: &StateRoot) -> Result<String, Failure> {
        let mut settings = self.settings.clone();
        let absolute = |path: &Path| {
            let path = std::path::absolute(path)?;
            path.to_str().ok_or(io::ErrorKind::InvalidData)?;
            Ok(path)
        };
        let bad = |path: &Path| {
            let why = format!("{}: castra.toml is UTF-8, and this path is not", path.display());
            move |_: io::Error| Failure::new(Exit::BadData, "not-utf8", why)
        };
        settings.state_root = Some(absolute(root.path()).map_err(bad(root.path()))?);
        for path in &mut settings.unix {
            *path = absolute(path).map_err(bad(path))?;
        }
        Ok(settings.print(false, |setting| self.origins.get(&setting.name()).cloned()))
    }

    /// Settings that this one and `other` do not have in common, but for those that a reload puts in force.
    pub fn differs(&self, other: &Config) -> Vec<String> {
        let reloads = ["broker.trust", "broker.hybrid"];
        let others = table::SETTINGS.iter().filter(|setting| !reloads.contains(&&*setting.name()));
        let differ = others.filter(|setting| setting.text(&self.settings) != setting.text(&other.settings));
        let topics = (self.settings.topics != other.settings.topics).then(|| "topics".to_owned());
        differ.map(|setting| setting.name()).chain(topics).collect()
    }
}

/// Mistakes for scripts.
pub fn objects(mistakes: &[Mistake]) -> serde_json::Value {
    let object = |mistake: &Mistake| {
        let (line, column) = (mistake.place.map(|p| p.line), mistake.place.map(|p| p.column));
        serde_json::json!({"line": line, "column": column, "message": mistake.message})
    };
    mistakes.iter().map(object).collect()
}
