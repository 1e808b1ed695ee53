//! Where the agent looks for its broker, and who it says it is: out of what was typed, the kernel's command line and
//! credentials.
//!
//! Always holds: what somebody said is taken before what is guessed, and what is no place is refused with its source.
//! Pure: the texts are arguments. Owner: `app/agent`, which reads them.

use crate::core::client::Target;
use crate::core::identity::VmName;
use std::fmt;
use std::str::FromStr;

/// The name of the virtio-serial port that the broker serves.
pub const PORT_NAME: &str = "org.castra.bus.0";
/// Where the host is for a guest with vsock.
const HOST_VSOCK: Target = Target::Vsock(2, 7070);
/// Where the host is for a guest of QEMU's user network.
const HOST_TCP: &str = "10.0.2.2:7070";
/// The kernel's parameter and the credential that name the broker.
pub const BROKER_KEY: &str = "castra.broker";
/// The kernel's parameter that names this guest.
pub const VM_KEY: &str = "castra.vm";

/// A way to a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A connection, new each time.
    Stream(Target),
    /// A serial line, by the name of its virtio-serial port or the path of its device: one stream of bytes, whoever
    /// is at its other end.
    Line(String),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Stream(target) => target.fmt(f),
            Way::Line(port) => write!(f, "serial:{port}"),
        }
    }
}

/// What is said of where the broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is to be found.
    Auto,
    /// There.
    At(Way),
}

/// What is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a broker is at auto, vsock:CID:PORT, serial[:NAME], serial:/dev/PATH, tcp:HOST:PORT or unix:PATH")]
pub struct PlaceError;

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        if text == "auto" {
            return Ok(Place::Auto);
        }
        let way = match text.strip_prefix("serial") {
            Some("") => Way::Line(PORT_NAME.to_owned()),
            Some(port) => match port.strip_prefix(':') {
                Some(port) if !port.is_empty() && !port.contains(char::is_whitespace) => {
                    Way::Line(port.to_owned())
                }
                _ => return Err(PlaceError),
            },
            None => Way::Stream(text.parse().map_err(|_| PlaceError)?),
        };
        Ok(Place::At(way))
    }
}

impl Place {
    /// The ways to try, in this order.
    pub fn ways(&self) -> Vec<Way> {
        match self {
            Place::At(way) => vec![way.clone()],
            Place::Auto => vec![
                Way::Stream(HOST_VSOCK),
                Way::Line(PORT_NAME.to_owned()),
                Way::Stream(Target::Tcp(HOST_TCP.to_owned())),
            ],
        }
    }
}

/// Texts in which somebody may have said where the broker is, those that go first first.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// `--broker`, or its variable; `auto` is as if nothing was typed.
    pub typed: Option<String>,
    /// `/proc/cmdline`.
    pub cmdline: Option<String>,
    /// The credential `castra.broker`, of systemd.
    pub credential: Option<String>,
    /// The same as QEMU's firmware has it.
    pub firmware: Option<String>,
}

/// A place that makes no sense, and who said it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{from} {text:?}: {error}")]
pub struct BadPlace {
    /// Who said it.
    pub from: &'static str,
    /// What was said.
    pub text: String,
    /// What is wrong with it.
    pub error: PlaceError,
}

impl Said {
    /// Where the broker is.
    ///
    /// # Errors
    /// What goes first of what was said is no place.
    pub fn place(&self) -> Result<Place, BadPlace> {
        let cmdline = self.cmdline.as_deref().and_then(|text| kernel_word(text, BROKER_KEY));
        let all = [
            ("--broker", self.typed.clone()),
            ("castra.broker= of the kernel command line", cmdline),
            ("the credential castra.broker", self.credential.clone()),
            ("the firmware's credential castra.broker", self.firmware.clone()),
        ];
        for (from, text) in all {
            let Some(text) = text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()) else {
                continue;
            };
            match text.parse() {
                Ok(Place::Auto) => {}
                Ok(place) => return Ok(place),
                Err(error) => return Err(BadPlace { from, text, error }),
            }
        }
        Ok(Place::Auto)
    }
}

/// The value of a parameter on the kernel's command line, the last one when it is there several times.
pub fn kernel_word(cmdline: &str, key: &str) -> Option<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in cmdline.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_ascii_whitespace() && !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.iter().rev().find_map(|word| word.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
}

/// What this guest is called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoName {
    /// What was said is no name.
    #[error(
        "{from} {text:?} is no VM's name: 1-128 of A-Z a-z 0-9 . _ -, starting with a letter or digit, not host or bus"
    )]
    Bad {
        /// Who said it.
        from: &'static str,
        /// What was said.
        text: String,
    },
    /// Nobody said one, and the host name is none.
    #[error("nobody says what this VM is called, and its host name {0:?} does not; --vm says it")]
    Unsaid(String),
}

/// The name: what was typed, else `castra.vm=` of the kernel command line, else the host name.
///
/// # Errors
/// There is none.
pub fn vm_name(typed: Option<&str>, cmdline: Option<&str>, host_name: &str) -> Result<VmName, NoName> {
    let name = |text: &str| VmName::parse(text).ok().filter(|name| !name.is_reserved());
    let kernel = cmdline.and_then(|text| kernel_word(text, VM_KEY));
    let said = [("--vm", typed), ("castra.vm= of the kernel command line", kernel.as_deref())];
    for (from, text) in said {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            let plain = text.strip_prefix("vm:").unwrap_or(text);
            return name(plain).ok_or_else(|| NoName::Bad { from, text: text.to_owned() });
        }
    }
    let host_name = host_name.trim();
    // Many machines are called so, and none of them was given that name.
    name(host_name)
        .filter(|name| !name.as_str().starts_with("localhost"))
        .ok_or_else(|| NoName::Unsaid(host_name.to_owned()))
}

/// The ways to the broker, the one that worked last time first.
#[derive(Clone, Debug)]
pub struct Ways {
    all: Vec<Way>,
    first: usize,
}

impl Ways {
    /// All ways to this place.
    pub fn new(place: &Place) -> Self {
        Ways { all: place.ways(), first: 0 }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// In the order in which they are to be tried now.
    pub fn in_order(&self) -> Vec<Way> {
        let rest = self.all.iter().enumerate().filter(|(i, _)| *i != self.first).map(|(_, way)| way);
        self.all.get(self.first).into_iter().chain(rest).cloned().collect()
    }

    /// This one led to a broker.
    pub fn worked(&mut self, way: &Way) {
        self.first = self.all.iter().position(|known| known == way).unwrap_or(self.first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn places() {
        for (text, want) in [
            ("auto", None),
            ("serial", Some("serial:org.castra.bus.0")),
            ("serial:com.example.0", Some("serial:com.example.0")),
            ("serial:/dev/vport0p1", Some("serial:/dev/vport0p1")),
            ("vsock:2:7071", Some("vsock:2:7071")),
            ("tcp:10.0.2.2:7070", Some("tcp:10.0.2.2:7070")),
            ("unix:/run/c.sock", Some("unix:/run/c.sock")),
        ] {
            let place: Place = text.parse().unwrap();
            let said = match place {
                Place::Auto => None,
                Place::At(way) => Some(way.to_string()),
            };
            assert_eq!(said.as_deref(), want, "{text}");
        }
        for bad in ["", "Auto", "serial:", "serialx", "serial:a b", "vsock:2", "tcp:7070", "7070"] {
            assert_eq!(bad.parse::<Place>(), Err(PlaceError), "{bad}");
        }
        let ways: Vec<String> = Place::Auto.ways().iter().map(Way::to_string).collect();
        assert_eq!(ways, ["vsock:2:7070", "serial:org.castra.bus.0", "tcp:10.0.2.2:7070"]);
    }

    #[test]
    fn what_was_said_goes_before_what_is_guessed() {
        let text = |text: &str| Some(text.to_owned());
        let at = |text: &str| Ok(text.parse::<Place>().unwrap());
        let mut said = Said::default();
        assert_eq!(said.place(), Ok(Place::Auto));
        said.firmware = text("tcp:f:1\n");
        assert_eq!(said.place(), at("tcp:f:1"));
        said.credential = text("tcp:c:1\n");
        assert_eq!(said.place(), at("tcp:c:1"));
        said.cmdline = text("ro quiet castra.broker=tcp:old:1 castra.broker=tcp:k:1 castra.vm=web\n");
        assert_eq!(said.place(), at("tcp:k:1"));
        said.typed = text("auto");
        assert_eq!(said.place(), at("tcp:k:1"), "auto is what is so without it");
        said.typed = text("tcp:t:1");
        assert_eq!(said.place(), at("tcp:t:1"));
        said.typed = None;
        said.cmdline = text("castra.broker=7070");
        let bad = said.place().unwrap_err().to_string();
        assert!(
            bad.starts_with("castra.broker= of the kernel command line \"7070\": a broker is at"),
            "{bad}"
        );
        said.cmdline = text("castra.broker= castra.brokers=x");
        assert_eq!(said.place(), at("tcp:c:1"), "nothing said");
    }

    #[test]
    fn names() {
        let name = |typed, cmdline, host| vm_name(typed, cmdline, host).map(|name| name.to_string());
        assert_eq!(name(Some("web"), Some("castra.vm=k"), "h").unwrap(), "web");
        assert_eq!(name(Some("vm:web"), None, "h").unwrap(), "web");
        assert_eq!(name(None, Some("a castra.vm=k b"), "h").unwrap(), "k");
        assert_eq!(name(Some(""), None, "devbox.lan\n").unwrap(), "devbox.lan");
        for (typed, cmdline, host, why) in [
            (Some("a b"), None, "h", "--vm \"a b\" is no VM's name"),
            (None, Some("castra.vm=Host"), "h", "castra.vm= of the kernel command line \"Host\""),
            (None, None, "localhost", "its host name \"localhost\" does not; --vm says it"),
            (None, None, "(none)", "its host name \"(none)\" does not"),
        ] {
            let said = vm_name(typed, cmdline, host).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn the_way_that_worked_is_tried_first() {
        let mut ways = Ways::new(&Place::Auto);
        let order = |ways: &Ways| {
            let text: Vec<_> = ways.in_order().iter().map(|way| way.to_string()[..3].to_owned()).collect();
            text.join(" ")
        };
        assert_eq!(order(&ways), "vso ser tcp");
        let last = ways.in_order()[2].clone();
        ways.worked(&last);
        assert_eq!(order(&ways), "tcp vso ser");
        ways.worked(&Way::Line("unknown".into()));
        assert_eq!(order(&ways), "tcp vso ser");
    }

    proptest! {
        #[test]
        fn a_parameter_is_found_wherever_it_stands(before in "[a-z =.]{0,30}", value in "[a-z:0-9/.]{1,20}", after in "[a-z .]{0,30}", quote in any::<bool>()) {
            let value_said = if quote { format!("\"{value}\"") } else { value.clone() };
            let line = format!("{before} castra.broker={value_said} {after}\n");
            prop_assert_eq!(kernel_word(&line, BROKER_KEY), Some(value));
        }

        #[test]
        fn no_text_panics(text in any::<String>(), key in "[a-z.]{0,5}") {
            let _ = kernel_word(&text, &key);
            let _ = text.parse::<Place>();
            let _ = vm_name(None, Some(&text), &text);
        }
    }
}
