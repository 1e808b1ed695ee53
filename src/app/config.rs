//! What is in force: flags, then the environment (`clap` has read it), then castra.toml, then the defaults.
//!
//! Always holds: a file that was named must be there; one of the usual places may be missing, and what is there
//! must be readable and right, or the command ends with exit code 78, file, line and column. Owner:
//! [`super::run`] loads it for every command that looks at a state root.

use super::{Exit, Failure};
use crate::cli::BrokerArgs;
use crate::core::config::{Settings, table};
use crate::core::state_root::StateRoot;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A castra.toml of more is none, in bytes.
const FILE_BYTES: u64 = 1024 * 1024;
const SYSTEM: &str = "/etc/castra/castra.toml";

/// The settings, and where each that is no default is from.
#[derive(Debug, Default)]
pub struct Config {
    /// What is in force.
    pub settings: Settings,
    origins: BTreeMap<String, String>,
}

/// Reads the castra.toml that was `given`, else the first of the usual ones that is there.
pub fn load(given: Option<&Path>) -> Result<Config, Failure> {
    let usual = || usual_places().into_iter().find(|path| path.metadata().is_ok());
    let mut config = Config::default();
    let Some(path) = given.map(Path::to_owned).or_else(usual) else { return Ok(config) };
    let text = read(&path).map_err(|e| {
        let what = "name another with --config, or /dev/null for none";
        Failure::new(Exit::BadConfig, "config-unreadable", format!("{}: {e}; {what}", path.display()))
    })?;
    let said = config.settings.read(&text).map_err(|mistake| {
        let place = format!("{}:{}:{}", path.display(), mistake.line, mistake.column);
        Failure::new(Exit::BadConfig, "bad-config", format!("{place}: {}", mistake.message))
    })?;
    config.origins =
        said.iter().map(|setting| (setting.name(), format!("from {}", path.display()))).collect();
    Ok(config)
}

fn usual_places() -> Vec<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let own = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    own.map(|dir| dir.join("castra/castra.toml")).into_iter().chain([PathBuf::from(SYSTEM)]).collect()
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES {
        return Err(io::Error::other(format!("it is larger than {FILE_BYTES} bytes")));
    }
    Ok(text)
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

    fn given(&mut self, name: &str) {
        self.origins.insert(name.to_owned(), "given by a flag or the environment".to_owned());
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
}
