//! `castra bus publish`: one event from the host; ends when it is durable and in the logs.

use super::{Exit, Failure};
use crate::cli::PublishArgs;
use crate::core::client::{Client, ClientError, Reply, Target};
use crate::core::limits::{EVENT_BYTES, FRAME_BYTES};
use crate::core::state_root::StateRoot;
use serde_json::value::RawValue;
use std::cell::Cell;
use std::io::{self, Read, Write};

/// What to do when nobody said whether the event is stored.
const LOOK: &str = "the event may be stored or not: look with 'castra bus tail' before you send it again";
const HELLO: &str = "hello vm:host capabilities=bus-v1,host-bus";

pub fn run(root: &StateRoot, args: PublishArgs) -> Result<Exit, Failure> {
    let payload = match args.payload.or(args.payload_flag) {
        Some(dash) if dash == "-" => {
            let bad = |e: String| Failure::new(Exit::BadData, "bad-stdin", format!("stdin: {e}"));
            let mut text = Vec::new();
            let limit = FRAME_BYTES as u64 + 1;
            io::stdin().take(limit).read_to_end(&mut text).map_err(|e| bad(e.to_string()))?;
            // What was cut off may have left half a character; it is too large before it is anything else.
            fits(text.len())?;
            String::from_utf8(text).map_err(|e| bad(e.to_string()))?
        }
        Some(text) => text,
        None => "null".to_owned(),
    };
    fits(payload.len())?;
    let payload = RawValue::from_string(payload.trim().to_owned()).map_err(|e| {
        let hint = "a string needs quotes of its own: '\"text\"'";
        Failure::new(Exit::BadData, "bad-json", format!("the payload is not JSON: {e}; {hint}"))
    })?;
    let mut frame = serde_json::Map::new();
    frame.insert("type".into(), "publish".into());
    frame.extend(args.topic.or(args.topic_flag).map(|topic| ("topic".to_owned(), topic.into())));
    frame.extend(args.id.map(|id| ("id".to_owned(), id.into())));
    // The payload goes as it was typed, behind the rest.
    let mut body = serde_json::Value::Object(frame).to_string();
    body.truncate(body.len() - 1);
    let body = format!("{body},\"payload\":{payload}}}");
    fits(body.len())?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sent = Cell::new(false);
    let published = async { tokio::time::timeout(args.timeout, publish(root, body.as_bytes(), &sent)).await };
    let reply = match runtime.block_on(published) {
        Ok(reply) => reply?,
        Err(_) => {
            let what =
                if sent.get() { LOOK } else { "nothing was sent; 'castra status' says how the broker is" };
            let why = format!("no answer within {:?}; {what}", args.timeout);
            return Err(Failure::new(Exit::Timeout, "timeout", why));
        }
    };
    if reply.status == "ok" {
        let stored = format!("seq={} id={}", reply.seq.unwrap_or(0), reply.id.unwrap_or_default());
        return match writeln!(io::stdout(), "{stored}") {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                let why = format!(
                    "stored as {stored}, do not send it again; only this could not be printed: {error}"
                );
                Err(Failure::new(Exit::Io, "io", why))
            }
            _ => Ok(Exit::Ok),
        };
    }
    Err(refused(&reply))
}

fn fits(bytes: usize) -> Result<(), Failure> {
    let why = || format!("event-too-large: an event has at most {EVENT_BYTES} bytes");
    if bytes > FRAME_BYTES { Err(Failure::new(Exit::BadData, "event-too-large", why())) } else { Ok(()) }
}

async fn publish(root: &StateRoot, body: &[u8], sent: &Cell<bool>) -> Result<Reply, Failure> {
    let socket = root.socket();
    let mut client = match Client::connect(&Target::Unix(socket.clone()), HELLO).await {
        Ok(client) => client,
        Err(ClientError::Connect(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            let why = format!("{}: {error}; run this as the broker's user or root", socket.display());
            return Err(Failure::new(Exit::Refused, "permission-denied", why));
        }
        Err(ClientError::Connect(error)) => {
            let why = format!(
                "no broker answers on {} ({error}); start one with 'castra broker'",
                socket.display()
            );
            return Err(Failure::new(Exit::NoBroker, "no-broker", why));
        }
        Err(ClientError::Refused(reason)) if reason == "reserved-identity" => {
            let why = "reserved-identity: only the broker's user and root publish as the host";
            return Err(Failure::new(Exit::Refused, "reserved-identity", why));
        }
        Err(ClientError::Refused(reason)) => {
            let why = format!("{reason}: the broker gave no session; nothing was sent, try again");
            return Err(Failure::new(Exit::TryAgain, reason, why));
        }
        Err(error) => return Err(Failure::new(Exit::NoBroker, "no-broker", error.to_string())),
    };
    let unknown = |error: ClientError| {
        let why = format!("outcome-unknown: {error}; {LOOK}");
        Failure::new(Exit::TryAgain, "outcome-unknown", why)
    };
    sent.set(true);
    client.send(body).await.map_err(unknown)?;
    client.receive().await.map_err(unknown)
}

fn refused(reply: &Reply) -> Failure {
    let code = reply.code.as_deref().unwrap_or("refused");
    let exit = match code {
        "disk-full" | "logs-behind" | "outcome-unknown" => Exit::TryAgain,
        "reserved-topic" => Exit::Refused,
        _ => Exit::BadData,
    };
    let seq = reply.seq.map_or(String::new(), |seq| format!(" (seq={seq})"));
    Failure::new(
        exit,
        code.to_owned(),
        format!("{code}: {}{seq}", reply.reason.as_deref().unwrap_or("no reason given")),
    )
}
