//! Why a publish failed, as an operator is told: what happened to the event, and what to do next.
//!
//! Always holds: each sentence says whether the event is stored, is not, or may be. Owner: `bus_publish.rs` and
//! `publish_jsonl.rs`.

use super::{Exit, Failure};
use crate::core::client::ClientError;
use crate::core::door::unix::PATH_BYTES;
use crate::core::state_root::StateRoot;
use std::io;
use std::time::Duration;

/// The exit code of an event that is refused with `code`.
pub fn exit_of(code: &str) -> Exit {
    let wrong = ["bad-", "half-", "too-", "not-", "no-", "unknown-", "duplicate-", "event-too-large"];
    match code {
        "disk-full" | "logs-behind" | "outcome-unknown" => Exit::TryAgain,
        _ if wrong.iter().any(|begin| code.starts_with(begin)) => Exit::BadData,
        // `reserved-topic`, and what later brokers refuse.
        _ => Exit::Refused,
    }
}

/// How to find out what became of an event.
fn look(id: &str) -> String {
    format!(
        "it may be stored or not: look with 'castra bus tail --grep {id}' before you send it again, with --id {id}"
    )
}

/// The answer was a refusal.
pub fn refused(root: &StateRoot, id: &str, code: &str, reason: &str, seq: Option<u64>) -> Failure {
    let message = match (code, seq) {
        ("disk-full", _) => format!("disk-full: nothing was stored: {}; then send it again", disk_full(root)),
        ("outcome-unknown", _) => {
            format!("outcome-unknown: the broker ended, or its disk failed, before it said so; {}", look(id))
        }
        ("logs-behind", Some(seq)) => {
            let why = "it is stored, do not send it again; the logs show it when they have caught up";
            format!("logs-behind: {why} (seq={seq} id={id})")
        }
        _ => format!("{code}: {reason}; nothing was stored"),
    };
    let failure = Failure::new(exit_of(code), code.to_owned(), message).with("id", id);
    match seq {
        Some(seq) => failure.with("seq", seq),
        None => failure,
    }
}

/// What a full disk means.
pub fn disk_full(root: &StateRoot) -> String {
    let path = root.path().display();
    format!(
        "the disk of {path} is full and nothing was stored; free space there, publishing resumes by itself"
    )
}

/// There is no session.
pub fn no_session(root: &StateRoot, error: ClientError) -> Failure {
    let (socket, path) = (root.socket(), root.path().display());
    let at = socket.display();
    match error {
        ClientError::Connect(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let why = format!("{at}: {error}; run this as the broker's user or root");
            Failure::new(Exit::Refused, "permission-denied", why)
        }
        ClientError::Connect(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let why = format!("the broker on {at} accepts nobody just now; nothing was sent, try again");
            Failure::new(Exit::TryAgain, "busy", why)
        }
        ClientError::Refused(reason) if reason == "reserved-identity" => {
            let why =
                "reserved-identity: only the broker's user and root publish as the host; nothing was sent";
            Failure::new(Exit::Refused, reason, why)
        }
        ClientError::Refused(reason) => {
            let why = format!("{reason}: the broker gave no session; nothing was sent, try again");
            Failure::new(Exit::TryAgain, reason, why)
        }
        ClientError::Connect(error) => {
            let why = format!(
                "no broker answers on {at} ({error}); start one with 'castra broker --state-root {path}'"
            );
            Failure::new(Exit::NoBroker, "no-broker", why)
        }
        error => {
            let why = format!("{at}: {error}; nothing was sent, 'castra status' says how the broker is");
            Failure::new(Exit::NoBroker, "no-broker", why)
        }
    }
}

/// A socket of this state root cannot be.
pub fn check_path(root: &StateRoot) -> Result<(), Failure> {
    let socket = root.socket();
    let bytes = socket.as_os_str().len();
    if bytes <= PATH_BYTES {
        return Ok(());
    }
    let why = format!(
        "{}: no broker can be there: the path of its socket has {bytes} bytes, at most {PATH_BYTES} are possible; \
         choose a shorter --state-root",
        socket.display()
    );
    Err(Failure::new(Exit::BadData, "path-too-long", why))
}

/// Nothing came within `limit`; `sent` is the id of what was sent until then.
pub fn no_answer(limit: Duration, sent: Option<&str>) -> Failure {
    let failure =
        |what| Failure::new(Exit::Timeout, "timeout", format!("no answer within {limit:?}; {what}"));
    match sent {
        Some(id) => failure(look(id)).with("id", id),
        None => failure("nothing was sent, 'castra status' says how the broker is".to_owned()),
    }
}

/// The session ended before the answer came.
pub fn lost(id: &str, error: &ClientError) -> Failure {
    match error {
        // The broker answers all that it took before it closes a session.
        ClientError::Closed(reason) => {
            let why =
                format!("{reason}: {error} before it took the event; nothing was stored, send it again");
            Failure::new(Exit::TryAgain, reason.clone(), why)
        }
        _ => {
            let why = format!("outcome-unknown: {error}; {}", look(id));
            Failure::new(Exit::TryAgain, "outcome-unknown", why).with("id", id)
        }
    }
}
