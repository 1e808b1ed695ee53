//! `castra bus publish`: one event from the host; ends when it is durable and in the logs.

use super::{Exit, Failure};
use crate::cli::PublishArgs;
use crate::core::client::{Client, ClientError, Reply, Target};
use crate::core::limits::FRAME_BYTES;
use crate::core::state_root::StateRoot;
use serde_json::value::RawValue;
use std::io::{self, Read, Write};

const HELLO: &str = "hello vm:host capabilities=bus-v1,host-bus";

pub fn run(root: &StateRoot, args: PublishArgs) -> Result<Exit, Failure> {
    let payload = match args.payload.or(args.payload_flag) {
        Some(dash) if dash == "-" => {
            let mut text = String::new();
            let limit = FRAME_BYTES as u64 + 1;
            io::stdin()
                .take(limit)
                .read_to_string(&mut text)
                .map_err(|e| Failure::new(Exit::BadData, format!("stdin: {e}")))?;
            text
        }
        Some(text) => text,
        None => "null".to_owned(),
    };
    let payload = RawValue::from_string(payload.trim().to_owned()).map_err(|e| {
        let hint = "a string needs quotes of its own: '\"text\"'";
        Failure::new(Exit::BadData, format!("the payload is not JSON: {e}; {hint}"))
    })?;
    let mut frame = serde_json::Map::new();
    frame.insert("type".into(), "publish".into());
    frame.extend(args.topic.or(args.topic_flag).map(|topic| ("topic".to_owned(), topic.into())));
    frame.extend(args.id.map(|id| ("id".to_owned(), id.into())));
    // The payload goes as it was typed, behind the rest.
    let mut body = serde_json::Value::Object(frame).to_string();
    body.truncate(body.len() - 1);
    let body = format!("{body},\"payload\":{payload}}}");
    if body.len() > FRAME_BYTES {
        return Err(Failure::new(
            Exit::BadData,
            format!("event-too-large: a frame has at most {FRAME_BYTES} bytes"),
        ));
    }

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let published = async { tokio::time::timeout(args.timeout, publish(root, body.as_bytes())).await };
    let reply = match runtime.block_on(published) {
        Ok(reply) => reply?,
        Err(_) => {
            let why = "no answer within the timeout; the event may be stored or not: look with 'castra bus tail', or send it again with the same --id";
            return Err(Failure::new(Exit::Timeout, why));
        }
    };
    if reply.status == "ok" {
        writeln!(io::stdout(), "seq={} id={}", reply.seq.unwrap_or(0), reply.id.unwrap_or_default())?;
        return Ok(Exit::Ok);
    }
    Err(refused(&reply))
}

async fn publish(root: &StateRoot, body: &[u8]) -> Result<Reply, Failure> {
    let socket = root.socket();
    let mut client = match Client::connect(&Target::Unix(socket.clone()), HELLO).await {
        Ok(client) => client,
        Err(ClientError::Connect(error)) => {
            let why = format!(
                "no broker answers on {} ({error}); start one with 'castra broker'",
                socket.display()
            );
            return Err(Failure::new(Exit::NoBroker, why));
        }
        Err(ClientError::Refused(reason)) => {
            let why = format!(
                "the broker refused the host's session ({reason}); run this as the broker's user or root"
            );
            return Err(Failure::new(if reason == "draining" { Exit::TryAgain } else { Exit::Refused }, why));
        }
        Err(error) => return Err(Failure::new(Exit::NoBroker, error.to_string())),
    };
    let unknown = |error: ClientError| {
        let why = format!(
            "outcome-unknown: {error}; the event may be stored or not, send it again with the same --id"
        );
        Failure::new(Exit::TryAgain, why)
    };
    client.send(body).await.map_err(unknown)?;
    client.receive().await.map_err(unknown)
}

fn refused(reply: &Reply) -> Failure {
    let code = reply.code.as_deref().unwrap_or("refused");
    let exit = match code {
        "disk-full" | "logs-behind" | "outcome-unknown" => Exit::TryAgain,
        "bad-topic" | "reserved-identity" => Exit::Refused,
        _ => Exit::BadData,
    };
    let seq = reply.seq.map_or(String::new(), |seq| format!(" (seq={seq})"));
    Failure::new(exit, format!("{code}: {}{seq}", reply.reason.as_deref().unwrap_or("no reason given")))
}
