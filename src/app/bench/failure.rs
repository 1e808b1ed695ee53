//! Why a bench has no figures, and what is wrong with the ones it has.
//!
//! Always holds: where nothing was measured the sentence says whether a load began. Owner: `mod.rs`.

use crate::app::failure::{Exit, Failure};
use crate::core::bench::BenchError;
use crate::core::bench::link::LinkError;
use crate::core::client::{ClientError, Target};
use crate::core::state_root::StateRoot;
use std::io;

/// Something that figures are not to be believed without: a code, and words.
pub type Problem = (&'static str, String);

/// There are no figures.
pub fn no_figures(root: &StateRoot, target: &Target, error: BenchError) -> Failure {
    match error {
        BenchError::Interrupted => Failure::new(Exit::Degraded, "interrupted", error.to_string()),
        BenchError::Broken => Failure::new(Exit::Io, "internal", error.to_string()),
        BenchError::Link(opened, error) => {
            let mut failure = no_session(root, target, error);
            failure.message = match opened {
                0 => format!("{}; no load began", failure.message),
                _ => format!("{} (after {opened} sessions; no load began)", failure.message),
            };
            failure.with("sessions", opened)
        }
    }
}

fn no_session(root: &StateRoot, target: &Target, error: LinkError) -> Failure {
    match error {
        LinkError::Timeout => Failure::new(
            Exit::Timeout,
            "timeout",
            format!("{target}: {error}; 'castra status' says how a broker on this machine is"),
        ),
        LinkError::Refused(code, _) if code == "unknown-type" => {
            let why = format!(
                "cannot-subscribe: the broker on {target} knows no 'subscribe', it is too old to deliver; 'castra bench \
                 publish' works with it"
            );
            Failure::new(Exit::Refused, "cannot-subscribe", why)
        }
        LinkError::Refused(code, reason) => {
            let exit = if code.starts_with("bad-") { Exit::BadData } else { Exit::Refused };
            let why = format!("{code}: the broker on {target} refused to subscribe: {reason}");
            Failure::new(exit, code, why)
        }
        LinkError::Client(ClientError::Refused(reason)) => {
            let exit = if reason == "reserved-identity" { Exit::Refused } else { Exit::TryAgain };
            let why = format!("{reason}: the broker on {target} gave no session");
            Failure::new(exit, reason, why)
        }
        LinkError::Client(ClientError::Closed(reason)) => {
            let why = format!("{reason}: the broker on {target} ended a session");
            Failure::new(Exit::TryAgain, reason, why)
        }
        LinkError::Client(ClientError::Connect(error)) => match error.kind() {
            io::ErrorKind::PermissionDenied => {
                let why = format!("{target}: {error}; run this as the broker's user or root");
                Failure::new(Exit::Refused, "permission-denied", why)
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::AddrNotAvailable => {
                let why = format!("{target} accepts nobody just now: {error}; ask for fewer connections");
                Failure::new(Exit::TryAgain, "busy", why)
            }
            _ => {
                let hint = match *target == Target::Unix(root.socket()) {
                    true => format!("start one with 'castra broker --state-root {}'", root.path().display()),
                    false => "is that where it listens?".to_owned(),
                };
                Failure::new(
                    Exit::NoBroker,
                    "no-broker",
                    format!("no broker answers on {target} ({error}); {hint}"),
                )
            }
        },
        LinkError::Client(error) => Failure::new(Exit::NoBroker, "no-broker", format!("{target}: {error}")),
    }
}

/// The figures are printed; whether they are those of a broker that did all it should.
pub fn degraded(problems: &[Problem]) -> Result<Exit, Failure> {
    let Some((code, _)) = problems.first() else { return Ok(Exit::Ok) };
    let said: Vec<&str> = problems.iter().map(|(_, words)| words.as_str()).collect();
    let why = format!("{}; 'castra status' and 'castra logs' may say why", said.join(", "));
    Err(Failure::new(Exit::Degraded, *code, why))
}
