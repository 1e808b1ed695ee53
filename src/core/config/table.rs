//! Every setting, once: where it stands in castra.toml, what it is, its bounds, where it is kept.
//!
//! Always holds: each field of [`Limits`](crate::core::limits::Limits) is here under its own name, so that whatever
//! bounds the broker can be set (a test of the documents compares them). Pure. Owner: [`super::Settings`].

use super::{LogFormat, LogLevel, Settings};
use crate::core::limits::{LOG_MIN_BYTES, SEGMENT_MIN_BYTES};
use crate::core::policy::Trust;
use ::core::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The section it stands in; empty above all of them.
    pub section: &'static str,
    /// Its name there.
    pub key: &'static str,
    /// What it is: a sentence.
    pub doc: &'static str,
    /// What is printed where there is no value.
    pub(super) example: &'static str,
    pub(super) kind: Kind,
}

/// What a value is, and where it is kept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Path(fn(&mut Settings) -> &mut Option<PathBuf>),
    Paths(fn(&mut Settings) -> &mut Vec<PathBuf>),
    Addresses(fn(&mut Settings) -> &mut Vec<SocketAddr>),
    /// Of sockets of VMs, with one `*`.
    Globs(fn(&mut Settings) -> &mut Vec<PathBuf>),
    /// One address; `None`: nothing is there.
    Address(fn(&mut Settings) -> &mut Option<SocketAddr>),
    /// Of vsock; `None`: no door.
    Port(fn(&mut Settings) -> &mut Option<u32>),
    Trust(fn(&mut Settings) -> &mut Trust),
    Level(fn(&mut Settings) -> &mut LogLevel),
    Format(fn(&mut Settings) -> &mut LogFormat),
    /// With the least and the most.
    Count(fn(&mut Settings) -> Number<'_>, u64, u64),
    Bytes(fn(&mut Settings) -> Number<'_>, u64, u64),
    Time(fn(&mut Settings) -> &mut Duration, Duration, Duration),
}

/// Where a number is kept.
pub(super) enum Number<'a> {
    Usize(&'a mut usize),
    U64(&'a mut u64),
}

impl Number<'_> {
    pub(super) fn get(&self) -> u64 {
        match self {
            Usize(number) => **number as u64,
            U64(number) => **number,
        }
    }
}

use Number::{U64, Usize};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const MANY: u64 = 1_000_000;
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// No clock overflows in that.
const TEN_YEARS: Duration = Duration::from_secs(10 * 31_557_600);

const fn setting(section: &'static str, key: &'static str, kind: Kind, doc: &'static str) -> Setting {
    Setting { section, key, doc, example: "", kind }
}

const fn limit(key: &'static str, kind: Kind, doc: &'static str) -> Setting {
    setting("limits", key, kind, doc)
}

/// All settings, section by section.
pub static SETTINGS: &[Setting] = &[
    Setting {
        section: "",
        key: "state_root",
        doc: "Where everything of one broker is. Default: $XDG_STATE_HOME/castra, else ~/.local/state/castra; the\n\
              # systemd unit says /var/lib/castra: name it here, and the commands find that broker",
        example: "/var/lib/castra",
        kind: Kind::Path(|s| &mut s.state_root),
    },
    setting(
        "broker",
        "tcp",
        Kind::Addresses(|s| &mut s.tcp),
        "TCP addresses to listen on; [] for none. One that is not of the loopback needs trust = \"known\" or \"proven\"",
    ),
    setting(
        "broker",
        "unix",
        Kind::Paths(|s| &mut s.unix),
        "Sockets for guests, beside the host's own castra.sock",
    ),
    Setting {
        section: "broker",
        key: "vsock",
        doc: "The port where guests come in by vsock; which VM it is, its cid says. Not set: no such door",
        example: "7070",
        kind: Kind::Port(|s| &mut s.vsock),
    },
    Setting {
        section: "broker",
        key: "metrics",
        doc: "The address where Prometheus finds /metrics, beside /healthz and /readyz: plain HTTP, and nobody is asked who\n\
              # he is. One that is not of the loopback needs trust = \"known\" or \"proven\". Not set: none",
        example: "127.0.0.1:9464",
        kind: Kind::Address(|s| &mut s.metrics),
    },
    setting(
        "broker",
        "hybrid",
        Kind::Globs(|s| &mut s.hybrid),
        "Where sockets of VMs come and go (hybrid vsock of Firecracker, Cloud Hypervisor, vhost-device-vsock): paths\n\
         # with one * in them, which stands for the VM's name, like [\"/run/vms/*.vsock\"]; the broker listens at each\n\
         # with _7070 (the port of vsock, if another) behind it",
    ),
    setting(
        "broker",
        "trust",
        Kind::Trust(|s| &mut s.trust),
        "Whose names are taken: anybody's (open); those of [[vms]], with its proof where one has a cid, socket, serial\n\
         # or token (known); only those that are proven so (proven). What a * of hybrid finds is known, and proven by its\n\
         # socket. Under open anybody may take the name of a VM that has a proof.\n\
         # A reload (SIGHUP) puts trust, hybrid and [[vms]] in force at once",
    ),
    setting("log", "level", Kind::Level(|s| &mut s.log_level), "How much logs/broker.log says"),
    setting(
        "log",
        "format",
        Kind::Format(|s| &mut s.log_format),
        "How it is written: lines for people, or an object a line",
    ),
    limit(
        "hello_time",
        Kind::Time(|s| &mut s.limits.hello_time, MS.saturating_mul(10), HOUR),
        "Time to say hello",
    ),
    limit(
        "pending_handshakes",
        Kind::Count(|s| Usize(&mut s.limits.pending_handshakes), 1, MANY),
        "Connections that have not said hello; at one more the oldest is dropped",
    ),
    limit("sessions", Kind::Count(|s| Usize(&mut s.limits.sessions), 1, MANY), "Sessions in all"),
    limit(
        "sessions_per_vm",
        Kind::Count(|s| Usize(&mut s.limits.sessions_per_vm), 1, MANY),
        "Sessions of one VM",
    ),
    limit(
        "vms",
        Kind::Count(|s| Usize(&mut s.limits.vms), 1, 100_000),
        "VMs remembered; the longest unreachable goes first",
    ),
    limit(
        "unacked_events",
        Kind::Count(|s| Usize(&mut s.limits.unacked_events), 1, MANY),
        "Events of one session not acknowledged; then it is not read",
    ),
    limit("unacked_bytes", Kind::Bytes(|s| Usize(&mut s.limits.unacked_bytes), 4 * KIB, GIB), "Their bytes"),
    limit(
        "unacked_bytes_in_all",
        // A batch must fit, or it would wait for ever.
        Kind::Bytes(|s| Usize(&mut s.limits.unacked_bytes_in_all), MIB, 64 * GIB),
        "Bytes of all sessions on their way to the disk",
    ),
    limit(
        "subscriptions",
        Kind::Count(|s| Usize(&mut s.limits.subscriptions), 1, 4096),
        "Patterns that one session may subscribe",
    ),
    limit(
        "queue_events",
        Kind::Count(|s| Usize(&mut s.limits.queue_events), 1, MANY),
        "Events that wait in memory for one session; then its subscriptions read the journal",
    ),
    limit("queue_bytes", Kind::Bytes(|s| Usize(&mut s.limits.queue_bytes), KIB, GIB), "Their bytes"),
    limit(
        "queue_bytes_in_all",
        Kind::Bytes(|s| Usize(&mut s.limits.queue_bytes_in_all), MIB, 64 * GIB),
        "The bytes that wait in memory for all sessions",
    ),
    limit(
        "heartbeat_time",
        Kind::Time(|s| &mut s.limits.heartbeat_time, MS.saturating_mul(10), TEN_YEARS),
        "Silence after which a session that asked for it is sent a heartbeat",
    ),
    limit(
        "idle_time",
        Kind::Time(|s| &mut s.limits.idle_time, MS.saturating_mul(10), TEN_YEARS),
        "Silence that ends a session",
    ),
    limit(
        "write_time",
        Kind::Time(|s| &mut s.limits.write_time, MS.saturating_mul(10), HOUR),
        "A socket that takes no byte for so long is closed",
    ),
    limit(
        "linger_time",
        Kind::Time(|s| &mut s.limits.linger_time, MS, MINUTE),
        "After the last words a connection is read on for so long",
    ),
    limit("linger_bytes", Kind::Bytes(|s| Usize(&mut s.limits.linger_bytes), KIB, GIB), "… and so far"),
    limit(
        "drain_time",
        Kind::Time(|s| &mut s.limits.drain_time, MS.saturating_mul(100), MINUTE.saturating_mul(10)),
        "Time to end in; a service's TimeoutStopSec is longer",
    ),
    limit(
        "host_log_time",
        Kind::Time(|s| &mut s.limits.host_log_time, MS, HOUR),
        "The host's publish waits so long for its line in the logs",
    ),
    limit(
        "logs_behind_bytes",
        Kind::Bytes(|s| Usize(&mut s.limits.logs_behind_bytes), MIB, 64 * GIB),
        "Commits that wait for the logs' thread; then publishers wait",
    ),
    limit(
        "open_logs",
        Kind::Count(|s| Usize(&mut s.limits.open_logs), 1, MANY),
        "Log files kept open; a quarter of the descriptors at most",
    ),
    limit(
        "log_bytes",
        Kind::Bytes(|s| U64(&mut s.limits.log_bytes), LOG_MIN_BYTES, 64 * GIB),
        "A log file (logs/bus/*.log, logs/broker.log, handshakes/*.jsonl) rotates at this size",
    ),
    limit(
        "checkpoint_bytes",
        Kind::Bytes(|s| Usize(&mut s.limits.checkpoint_bytes), LOG_MIN_BYTES, GIB),
        "Bytes of log lines after which the logs are synced and a checkpoint is written; 30 s at the latest",
    ),
    limit(
        "reserved_descriptors",
        Kind::Count(|s| U64(&mut s.limits.reserved_descriptors), 16, MANY),
        "Descriptors kept for journal, logs and status",
    ),
    limit(
        "segment_bytes",
        Kind::Bytes(|s| U64(&mut s.limits.segment_bytes), SEGMENT_MIN_BYTES, 4 * GIB),
        "The size of a journal segment, rounded down to whole blocks of 4096 bytes",
    ),
    limit(
        "retain_bytes",
        Kind::Bytes(|s| U64(&mut s.limits.retain_bytes), MIB, 1024 * 1024 * GIB),
        "The oldest segments are removed when the journal is larger",
    ),
    limit(
        "retain_age",
        Kind::Time(|s| &mut s.limits.retain_age, SECOND, TEN_YEARS),
        "Segments are removed when all their events are older",
    ),
];

/// The setting of that name, as [`Setting::name`] says it.
pub fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name() == name)
}
