//! What an operator can set, and how it is written: castra.toml.
//!
//! ```text
//! flags > environment > castra.toml > defaults ──▶ Settings ──print──▶ castra.toml
//! ```
//!
//! [`table`] has a line for each setting: its name, what it is, its bounds, where it is kept. `parse.rs` reads a
//! file by it, `vms.rs` its `[[vms]]`, `topics.rs` its `[[topics]]`; [`Settings::print`] writes one. `advice.rs` says what is wrong with the whole,
//! `tokens.rs` makes a [`Policy`](super::policy::Policy) of it. Always holds: what is printed parses to the same, tokens
//! aside; what is not in the table is refused with its line and column, and so is what is out of bounds. Pure, but for
//! `tokens.rs`. Owner: `app/config.rs` reads the files and the flags.

pub mod advice;
mod parse;
pub mod table;
pub mod tokens;
pub mod topics;
pub mod vms;

use super::door::hybrid::glob::Glob;
use super::limits::Limits;
use super::policy::Trust;
pub use parse::{Mistake, Place, Places, Reading};
// The address alone: no socket is opened here.
use ::core::net::{Ipv4Addr, SocketAddr};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use table::{Kind, Number};
pub use table::{SETTINGS, Setting};
use topics::TopicSetting;
use vms::VmSetting;

/// Guests dial this port unless somebody says otherwise.
pub const TCP_PORT: u16 = 7070;
/// Behind the path of a VM's socket, where the broker listens.
pub const HYBRID_SUFFIX: &str = "_7070";

/// The longest path of a socket that the broker makes, in bytes, as its door has it.
const SOCKET_BYTES: usize = 103;

/// What stands above the settings in a printed castra.toml.
const HEAD: &str = "\
# castra.toml: what castra is told. A flag goes before its environment variable, that before this file, and
# this file before the defaults. It is read from --config FILE or $CASTRA_CONFIG, else from
# $XDG_CONFIG_HOME/castra/castra.toml (~/.config/castra/castra.toml), else from /etc/castra/castra.toml.
# `castra broker --print-config` prints what is in force, `castra config check` what is wrong as well.
#
# Times have a unit: \"500ms\", \"90s\", \"12h\", \"7days\". Bytes are a number, or \"64 KiB\", \"64 MiB\", \"1 GiB\".
";

/// How much the broker's own log says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// What must not happen.
    Error,
    /// What may become that.
    Warn,
    /// What happens.
    #[default]
    Info,
    /// What is of use to whoever looks for a fault.
    Debug,
    /// Everything.
    Trace,
}

/// How the broker's own log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// The words of [`LogLevel`].
pub const LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
/// The words of [`LogFormat`].
pub const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];

/// The words of [`Trust`].
pub const TRUSTS: [(&str, Trust); 3] =
    [("open", Trust::Open), ("known", Trust::Known), ("proven", Trust::Proven)];

/// As castra.toml has it.
pub fn trust_word(trust: Trust) -> &'static str {
    word(&TRUSTS, trust)
}

/// All that can be set. The defaults are those of the documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where everything is; `None`: the default place of this user.
    pub state_root: Option<PathBuf>,
    /// TCP addresses to listen on.
    pub tcp: Vec<SocketAddr>,
    /// Sockets for guests, beside the host's own.
    pub unix: Vec<PathBuf>,
    /// The port for guests that come over vsock.
    pub vsock: Option<u32>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Paths of hybrid vsock sockets, with one `*` each.
    pub hybrid: Vec<PathBuf>,
    /// Whose names are taken.
    pub trust: Trust,
    /// How much the broker's own log says.
    pub log_level: LogLevel,
    /// How it is written.
    pub log_format: LogFormat,
    /// The bounds.
    pub limits: Limits,
    /// What is said of topics, as it stands in the file; none is there twice.
    pub topics: Vec<TopicSetting>,
    /// The VMs, as they stand in the file; no name, cid or path is there twice.
    pub vms: Vec<VmSetting>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            state_root: None,
            tcp: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, TCP_PORT))],
            unix: Vec::new(),
            vsock: None,
            metrics: None,
            hybrid: Vec::new(),
            trust: Trust::default(),
            log_level: LogLevel::default(),
            log_format: LogFormat::default(),
            limits: Limits::default(),
            topics: Vec::new(),
            vms: Vec::new(),
        }
    }
}

impl Settings {
    /// Takes in a castra.toml. What it does not say, or says wrongly, stays as it is.
    pub fn read(&mut self, text: &str) -> Reading {
        parse::read(self, text)
    }

    /// A complete castra.toml with a comment above each setting: what it is, its bounds, and what `origin` says of
    /// where its value is from. With `commented` the settings are comments as well.
    pub fn print(&self, commented: bool, origin: impl Fn(&Setting) -> Option<String>) -> String {
        let mut out = HEAD.to_owned();
        let mut section = "";
        for setting in SETTINGS {
            if setting.section != section {
                section = setting.section;
                // Into a string: cannot fail.
                let _ = write!(out, "\n[{section}]");
            }
            let bounds = setting.bounds().map_or(String::new(), |bounds| format!(" {bounds}."));
            let _ = writeln!(out, "\n# {}.{bounds}", setting.doc);
            if let Some(origin) = origin(setting) {
                let _ = writeln!(out, "# Here: {origin}.");
            }
            let value = setting.text(self);
            let hash = if commented || value.is_none() { "# " } else { "" };
            let value = value.unwrap_or_else(|| setting.example_text());
            let _ = writeln!(out, "{hash}{} = {value}", setting.key);
        }
        topics::print(&mut out, &self.topics);
        vms::print(&mut out, &self.vms);
        out
    }
}

impl Setting {
    /// `section.key`, or the key alone.
    pub fn name(&self) -> String {
        if self.section.is_empty() { self.key.to_owned() } else { format!("{}.{}", self.section, self.key) }
    }

    /// What is allowed, for people.
    pub fn bounds(&self) -> Option<String> {
        let words = |words: Vec<&str>| format!("One of {}", words.join(", "));
        match self.kind {
            Kind::Path(_) | Kind::Paths(_) | Kind::Globs(_) | Kind::Addresses(_) | Kind::Address(_) => None,
            Kind::Port(_) => Some(format!("1 to {}", u32::MAX - 1)),
            Kind::Trust(_) => Some(words(TRUSTS.map(|(word, _)| word).into())),
            Kind::Level(_) => Some(words(LEVELS.map(|(word, _)| word).into())),
            Kind::Format(_) => Some(words(FORMATS.map(|(word, _)| word).into())),
            Kind::Count(_, least, most) => Some(format!("{least} to {most}")),
            Kind::Bytes(_, least, most) => Some(format!("{} to {}", bytes_text(least), bytes_text(most))),
            Kind::Time(_, least, most) => Some(format!("{} to {}", time_text(least), time_text(most))),
        }
    }

    /// Its value as castra.toml has it; `None`: not set, and its default is none that could be written.
    pub fn text(&self, settings: &Settings) -> Option<String> {
        // The table's accessors lend what can be changed.
        let mut settings = settings.clone();
        let settings = &mut settings;
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        let path = |path: &PathBuf| quoted(&path.to_string_lossy());
        Some(match self.kind {
            Kind::Path(at) => return at(settings).as_ref().map(path),
            Kind::Paths(at) | Kind::Globs(at) => list(at(settings).iter().map(path).collect()),
            Kind::Port(at) => return at(settings).map(|port| port.to_string()),
            Kind::Address(at) => return at(settings).map(|addr| quoted(&addr.to_string())),
            Kind::Trust(at) => quoted(word(&TRUSTS, *at(settings))),
            Kind::Addresses(at) => list(at(settings).iter().map(|a| quoted(&a.to_string())).collect()),
            Kind::Level(at) => quoted(word(&LEVELS, *at(settings))),
            Kind::Format(at) => quoted(word(&FORMATS, *at(settings))),
            Kind::Count(at, ..) => at(settings).get().to_string(),
            Kind::Bytes(at, ..) => match at(settings).get() {
                bytes if bytes_text(bytes).ends_with('B') => quoted(&bytes_text(bytes)),
                bytes => bytes.to_string(),
            },
            Kind::Time(at, ..) => quoted(&time_text(*at(settings))),
        })
    }

    /// What is printed where there is no value.
    fn example_text(&self) -> String {
        if matches!(self.kind, Kind::Port(_)) { self.example.to_owned() } else { quoted(self.example) }
    }

    /// Takes a value as a flag or a string of castra.toml says it.
    ///
    /// # Errors
    /// What is allowed.
    pub fn set(&self, settings: &mut Settings, text: &str) -> Result<(), String> {
        let number = |text: &str| text.trim().parse::<u64>().ok();
        match self.kind {
            Kind::Path(at) => *at(settings) = Some(PathBuf::from(text)),
            Kind::Paths(at) => at(settings).push(PathBuf::from(text)),
            Kind::Addresses(at) => at(settings).push(address(text)?),
            Kind::Address(at) => *at(settings) = Some(address(text)?),
            Kind::Globs(at) => at(settings).push(check_glob(text)?),
            Kind::Port(_) => self.set_number(settings, number(text).ok_or_else(|| self.no_value(text))?)?,
            Kind::Trust(at) => *at(settings) = meant(&TRUSTS, text)?,
            Kind::Level(at) => *at(settings) = meant(&LEVELS, text)?,
            Kind::Format(at) => *at(settings) = meant(&FORMATS, text)?,
            Kind::Count(..) => self.set_number(settings, number(text).ok_or_else(|| self.no_value(text))?)?,
            Kind::Bytes(..) => {
                self.set_number(settings, parse_bytes(text).ok_or_else(|| self.no_value(text))?)?;
            }
            Kind::Time(at, least, most) => {
                let time = humantime::parse_duration(text).map_err(|_| self.no_value(text))?;
                if time < least || time > most {
                    return Err(self.out_of_bounds(text));
                }
                *at(settings) = time;
            }
        }
        Ok(())
    }

    /// Takes a value that is a number of castra.toml.
    ///
    /// # Errors
    /// What is allowed.
    pub fn set_number(&self, settings: &mut Settings, number: u64) -> Result<(), String> {
        match self.kind {
            Kind::Port(at) => match u32::try_from(number) {
                Ok(port) if port != 0 && port != u32::MAX => *at(settings) = Some(port),
                _ => return Err(self.out_of_bounds(&number.to_string())),
            },
            Kind::Count(_, least, most) | Kind::Bytes(_, least, most) if number < least || number > most => {
                return Err(self.out_of_bounds(&number.to_string()));
            }
            Kind::Count(at, ..) | Kind::Bytes(at, ..) => match at(settings) {
                Number::Usize(slot) => *slot = usize::try_from(number).unwrap_or(usize::MAX),
                Number::U64(slot) => *slot = number,
            },
            _ => return Err(format!("{number} is a number, and {}", self.wanted())),
        }
        Ok(())
    }

    /// Empties a list.
    fn clear(&self, settings: &mut Settings) {
        match self.kind {
            Kind::Paths(at) | Kind::Globs(at) => at(settings).clear(),
            Kind::Addresses(at) => at(settings).clear(),
            _ => {}
        }
    }

    fn no_value(&self, text: &str) -> String {
        format!("{text:?} will not do: {}", self.wanted())
    }

    fn out_of_bounds(&self, text: &str) -> String {
        format!("{text} is out of bounds: {} is {}", self.key, self.bounds().unwrap_or_default())
    }

    /// How a value looks.
    fn wanted(&self) -> String {
        match self.kind {
            Kind::Path(_) => "a path is wanted, like \"/var/lib/castra\"".into(),
            Kind::Paths(_) => "a list of paths is wanted, like [\"/run/castra/guest.sock\"]".into(),
            Kind::Globs(_) => "a list of paths with one * is wanted, like [\"/run/vms/*.vsock\"]".into(),
            Kind::Port(_) => format!("a port is wanted, like {TCP_PORT}"),
            Kind::Addresses(_) => format!("a list of addresses is wanted, like [\"127.0.0.1:{TCP_PORT}\"]"),
            Kind::Address(_) => format!("an address is wanted, like {:?}", self.example),
            Kind::Trust(_) | Kind::Level(_) | Kind::Format(_) => {
                format!(
                    "one of these words is wanted: {}",
                    self.bounds().unwrap_or_default().replace("One of ", "")
                )
            }
            Kind::Count(..) => "a number is wanted, without a unit".into(),
            Kind::Bytes(..) => "bytes are wanted: a number, or one with a unit, like \"64 MiB\"".into(),
            Kind::Time(..) => "a time with its unit is wanted, like \"500ms\", \"90s\" or \"7days\"".into(),
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let why = |_| format!("{text:?} is no address; one is an IP and a port, like \"127.0.0.1:{TCP_PORT}\"");
    text.parse().map_err(why)
}

fn word<T: PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, v)| *v == value).map_or("", |(word, _)| word)
}

fn meant<T: Copy>(words: &[(&'static str, T)], text: &str) -> Result<T, String> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("{text:?} is none of {}", known.join(", "))
    })
}

/// A path of sockets: absolute, with one `*`, and short enough for a socket that has one letter in its place.
fn check_glob(text: &str) -> Result<PathBuf, String> {
    // By the door's own eyes: what it would not look at is not taken.
    Glob::parse(Path::new(text))
        .map_err(|why| format!("{text:?} is no path of sockets, like \"/run/vms/*.vsock\": {why}"))?;
    check_socket(text).map(|()| PathBuf::from(text))
}

/// Whether the broker can listen behind a VM's socket at this path, as far as its length goes.
fn check_socket(text: &str) -> Result<(), String> {
    let most = SOCKET_BYTES - HYBRID_SUFFIX.len();
    if text.ends_with('/') || text.contains('\0') {
        return Err(format!("{text:?} is no path of a socket"));
    }
    match text.len() {
        bytes if bytes > most => Err(format!(
            "the path has {bytes} bytes, and at most {most} are possible for a socket; choose a shorter one"
        )),
        _ => Ok(()),
    }
}

/// A basic string of TOML: one of JSON, but for the last control character.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// `64 MiB`, or the number alone when no unit divides it.
fn bytes_text(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size));
    unit.map_or(bytes.to_string(), |(unit, size)| format!("{} {unit}", bytes / size))
}

/// `64 MiB`, `64MiB`, `67108864`; units in any case. `None`: no such number.
/// Reads a size: a number, with or without a unit.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let size = match unit.trim_start() {
        "" | "B" => 1,
        unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    number.parse::<u64>().ok()?.checked_mul(size)
}

fn time_text(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::config::vms::Secret;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    fn path() -> impl Strategy<Value = PathBuf> {
        any::<String>().prop_map(|text| PathBuf::from(format!("/{text}")))
    }

    fn settings() -> impl Strategy<Value = Settings> {
        let numbers = vec((any::<u64>(), any::<bool>()), SETTINGS.len());
        // As addresses are written: without the labels that an address of IPv6 may carry.
        let address = any::<(::core::net::IpAddr, u16)>().prop_map(SocketAddr::from);
        let globs =
            "/run/[a-z ä\"]{0,9}[*][.a-z/]{0,9}x".prop_filter("a glob", |text| check_glob(text).is_ok());
        let lists = (vec(address, 0..4), vec(path(), 0..4), vec(globs, 0..3));
        let sections = (topics::tests::topics(), vms::tests::vms());
        (option::of(path()), lists, numbers, sections).prop_map(
            |(state_root, (tcp, unix, globs), numbers, (topics, vms))| {
                let hybrid = globs.into_iter().map(PathBuf::from).collect();
                let mut settings =
                    Settings { state_root, tcp, unix, hybrid, topics, vms, ..Settings::default() };
                for (setting, (number, round)) in SETTINGS.iter().zip(numbers) {
                    let within = |least: u64, most: u64| {
                        let exact = least + number % (most - least + 1);
                        if round { (exact >> 20 << 20).max(least) } else { exact }
                    };
                    match setting.kind {
                        Kind::Count(_, least, most) | Kind::Bytes(_, least, most) => {
                            setting.set_number(&mut settings, within(least, most)).unwrap();
                        }
                        Kind::Time(at, least, most) => {
                            let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap();
                            *at(&mut settings) = Duration::from_nanos(within(nanos(least), nanos(most)));
                        }
                        Kind::Level(at) => *at(&mut settings) = LEVELS[number as usize % LEVELS.len()].1,
                        Kind::Format(at) => *at(&mut settings) = FORMATS[number as usize % FORMATS.len()].1,
                        Kind::Port(at) => {
                            *at(&mut settings) = u32::try_from(number % 9000).ok().filter(|port| *port > 0)
                        }
                        Kind::Address(at) => {
                            let port = u16::try_from(number % 65_536).unwrap();
                            *at(&mut settings) = round.then(|| SocketAddr::from(([127, 0, 0, 1], port)))
                        }
                        Kind::Trust(at) => *at(&mut settings) = TRUSTS[number as usize % TRUSTS.len()].1,
                        Kind::Path(_) | Kind::Paths(_) | Kind::Globs(_) | Kind::Addresses(_) => {}
                    }
                }
                settings
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(settings in settings(), told in any::<bool>()) {
            let text = settings.print(false, |setting| told.then(|| format!("about {}", setting.name())));
            let mut again = Settings::default();
            let reading = again.read(&text);
            prop_assert_eq!(&reading.mistakes, &[]);
            let hidden = |vm: &mut VmSetting| vm.secret.take_if(|secret| matches!(secret, Secret::Token(_)));
            let mut settings = settings;
            settings.vms.iter_mut().for_each(|vm| drop(hidden(vm)));
            prop_assert_eq!(&again, &settings);
            prop_assert_eq!(reading.places.vms.len(), settings.vms.len());
            let is_set = [settings.state_root.is_some(), settings.vsock.is_some(), settings.metrics.is_some()];
            let unset = is_set.iter().filter(|is_set| !**is_set).count();
            prop_assert_eq!(reading.said.len(), SETTINGS.len() - unset);
            prop_assert!(!text.contains(vms::tests::SECRET));
        }
    }

    #[test]
    fn a_template_says_nothing_and_its_lines_are_the_defaults() {
        let template = Settings::default().print(true, |_| None);
        let mut settings = Settings::default();
        let reading = settings.read(&template);
        assert_eq!((reading.said.len(), reading.mistakes.len()), (0, 0), "{reading:?}");
        assert_eq!(settings, Settings::default());
        // Each line by itself is a setting again when its hash is taken away.
        let is_setting = |line: &str| SETTINGS.iter().any(|s| line.starts_with(&format!("# {} = ", s.key)));
        let uncommented = template.lines().map(|line| if is_setting(line) { &line[2..] } else { line });
        let text: String = uncommented.flat_map(|line| [line, "\n"]).collect();
        let reading = settings.read(&text);
        assert_eq!((reading.said.len(), reading.mistakes.len()), (SETTINGS.len(), 0), "{reading:?}");
        assert_eq!(settings.state_root.take(), Some(PathBuf::from("/var/lib/castra")));
        assert_eq!(settings.vsock.take(), Some(TCP_PORT.into()));
        assert_eq!(settings.metrics.take(), "127.0.0.1:9464".parse().ok());
        assert_eq!(settings, Settings::default());
        // So are the lines about topics and VMs; a VM has a token or the file of one.
        let (_, rest) = template.split_once("# [[topics]]\n").unwrap();
        let (topic, example) = rest.split_once("# [[vms]]\n").unwrap();
        let lines = topic.lines().filter(|line| line.contains(" = "));
        let text: String = lines.flat_map(|line| [&line[2..], "\n"]).collect();
        let reading = settings.read(&format!("[[topics]]\n{text}"));
        assert!(reading.mistakes.is_empty() && reading.warnings.is_empty(), "{reading:?}");
        assert!(settings.topics[0].compaction && settings.topics[0].snapshot_every.is_some());
        let lines = example.lines().filter(|line| line.contains(" = ") && !line.starts_with("# token ="));
        let text: String = lines.flat_map(|line| [&line[2..], "\n"]).collect();
        let reading = settings.read(&format!("[[vms]]\n{text}"));
        assert!(reading.mistakes.is_empty() && reading.warnings.is_empty(), "{reading:?}");
        let vm = &settings.vms[0];
        assert!(
            vm.cid.is_some() && vm.socket.is_some() && vm.serial.is_some() && vm.secret.is_some(),
            "{vm:?}"
        );
        assert!(vm.rules.publish.is_some() && vm.rules.subscribe.is_some(), "{vm:?}");
    }

    #[test]
    fn sockets_are_as_long_as_their_door_makes_them() {
        assert_eq!(SOCKET_BYTES, crate::core::door::unix::PATH_BYTES);
    }

    #[test]
    fn the_defaults_are_within_their_bounds() {
        for setting in SETTINGS {
            let mut settings = Settings::default();
            if let (None, Some(text)) = (setting.example.strip_prefix('/'), setting.text(&settings))
                && !text.starts_with('[')
            {
                setting.set(&mut settings, text.trim_matches('"')).unwrap();
                assert_eq!(settings, Settings::default(), "{}", setting.name());
            }
            assert!(
                std::ptr::eq(table::find(&setting.name()).unwrap(), setting),
                "{} is there twice",
                setting.name()
            );
        }
    }
}
