//! What `castra bus subscribe` says beside the events, and why it ends.
//!
//! Always holds: with `--json` each line on stderr is an object with a stable code; a sentence says what to do. Owner:
//! `mod.rs` and whoever handles events.

use crate::app::failure::{Exit, Failure};
use crate::app::group::may_pass;
use crate::app::stderr::{self, say};
use crate::core::follow::Failed;
use serde_json::{Value, json};

/// Says lines on stderr.
#[derive(Clone, Copy)]
pub struct Sayer {
    json: bool,
    /// Also what is no trouble.
    all: bool,
}

impl Sayer {
    /// Says objects or sentences; `all`: also where stderr is no terminal.
    pub fn new(json: bool, all: bool) -> Self {
        Sayer { json, all: all || stderr::is_terminal() }
    }

    /// Something that should not be.
    pub fn warn(&self, code: &str, text: &str, fields: &[(&str, u64)]) {
        if !self.json {
            return say(text);
        }
        let mut object = json!({"schema": 1, "code": code, "reason": text});
        for (name, value) in fields {
            object[*name] = Value::from(*value);
        }
        // Nobody may be reading.
        stderr::write(format!("{object}\n").as_bytes());
    }

    /// Something that is as it should be.
    pub fn note(&self, code: &str, text: &str, fields: &[(&str, u64)]) {
        if self.all {
            self.warn(code, text, fields);
        }
    }
}

/// Why following ended; `no_session` says why there is none.
pub fn ended(
    failed: Failed,
    no_session: impl FnOnce(crate::core::client::ClientError) -> Failure,
) -> Failure {
    let (code, reason, next) = match failed {
        Failed::NoSession(error) => return no_session(error),
        Failed::OtherJournal { seq, next } => {
            let why = format!(
                "seq-ahead: the broker's journal has another event {seq} than the one that was received: an older backup \
                 was restored, or it is another broker; begin anew, --from says where"
            );
            return Failure::new(exit_of("seq-ahead"), "seq-ahead", why).with("next_seq", next);
        }
        Failed::Refused { code, reason, next } => (code, reason, next),
    };
    let why = match (code.as_str(), next) {
        ("seq-ahead", Some(next)) => format!(
            "seq-ahead: the broker's journal ends before event {next}, with which this was to go on: an older backup was \
             restored, or it is another broker; begin anew, --from says where"
        ),
        ("unknown-type", _) => {
            "unknown-type: this broker delivers no events, it is older than this command; read its \
                                logs with 'castra bus tail -f'"
                .to_owned()
        }
        _ => format!("{code}: {reason}"),
    };
    let failure = Failure::new(exit_of(&code), code, why);
    match next {
        Some(next) => failure.with("next_seq", next),
        None => failure,
    }
}

/// The exit code of a subscription that is refused with `code`.
pub fn exit_of(code: &str) -> Exit {
    match code {
        "seq-ahead" | "unknown-id" | "too-many-subscriptions" => Exit::BadData,
        _ if code.starts_with("bad-") => Exit::BadData,
        "state-expired" => Exit::TryAgain,
        _ if may_pass(code) => Exit::TryAgain,
        // `forbidden-topic`, and what later brokers refuse.
        _ => Exit::Refused,
    }
}
