//! Why a publish failed, as an operator is told: what happened to the event, and what to do next.
//!
//! Always holds: each sentence says whether the event is stored, is not, or may be. Owner: `mod.rs` and `jsonl.rs`.

use crate::app::failure::{Exit, Failure};
use crate::core::client::ClientError;
use crate::core::state_root::StateRoot;
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
        "it may be stored or not: send it again with --id {id}, then it is stored once; 'castra bus tail --grep {id}' shows it"
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
    format!("the disk of {path} is full; free space there, publishing resumes by itself")
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
