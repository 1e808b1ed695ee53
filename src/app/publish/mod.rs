//! `castra bus publish`: one event from the host; ends when it is durable and in the logs.
//!
//! Always holds: an event has its id before it is sent, so that an answer that never came can be looked for. Owner:
//! [`super::run`]; many events are `jsonl.rs`.

mod failure;
mod jsonl;
mod lines;
mod print;

use super::host::{connect, within};
use super::{Exit, Failure};
use crate::cli::PublishArgs;
use crate::core::chance::chance;
use crate::core::client::Reply;
use crate::core::clock;
use crate::core::event::{Publish, Text};
use crate::core::ids::IdSource;
use crate::core::limits::{EVENT_BYTES, FRAME_BYTES};
use crate::core::refusal::Refusal;
use crate::core::state_root::StateRoot;
use crate::core::wire::publish::{Defaults, stored, write_body};
use failure::{exit_of, lost, no_answer, refused};
use serde_json::value::RawValue;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub fn run(root: &StateRoot, mut args: PublishArgs) -> Result<Exit, Failure> {
    let topic = args.topic.take().or(args.topic_flag.take());
    let fields = Defaults::new(topic, args.key.take(), &args.headers, &args.tags, &args.caused_by)
        .and(args.sid.take(), args.ttl);
    if args.jsonl {
        return jsonl::run(root, &args, fields);
    }
    let typed = args.payload.take().or(args.payload_flag.take());
    let file = args.file.take().or_else(|| typed.as_deref().filter(|text| *text == "-").map(PathBuf::from));
    let payload = match (file, typed) {
        (Some(path), _) => read_payload(&path)?,
        (None, Some(text)) => text,
        (None, None) => "null".to_owned(),
    };
    fits(payload.len())?;
    let payload: &RawValue = serde_json::from_str(&payload).map_err(|e| bad_json(&e))?;
    let id = args.id.unwrap_or_else(new_id);
    let event = Publish { payload: Some(payload), id: Some(Text((&id).into())), ..Publish::default() };
    let mut body = Vec::new();
    write_body(&mut body, &fields.fill(event)).map_err(|refusal| invalid(&refusal))?;
    if args.dry_run {
        let line = stored(&body).map_err(|refusal| invalid(&refusal))?;
        io::stdout().write_all(&line)?;
        return Ok(Exit::Ok);
    }
    let reply = ask(root, &body, &id, args.timeout)?;
    if reply.status == "ok" {
        return say(&reply, &id, args.json);
    }
    let (code, reason) = (reply.code.as_deref(), reply.reason.as_deref());
    Err(refused(root, &id, code.unwrap_or("refused"), reason.unwrap_or("no reason given"), reply.seq))
}

/// The input that `path` names; `-` is stdin.
pub fn open(path: &Path) -> Result<Box<dyn Read + Send>, Failure> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    Ok(Box::new(file))
}

/// `path` cannot be read.
pub fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let name = if path.as_os_str() == "-" { "stdin".into() } else { path.display().to_string() };
    Failure::new(Exit::Io, "unreadable", format!("{name} cannot be read: {error}"))
}

fn read_payload(path: &Path) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let limit = FRAME_BYTES as u64 + 1;
    open(path)?.take(limit).read_to_end(&mut bytes).map_err(|e| unreadable(path, &e))?;
    // What was cut off may have left half a character; it is too large before it is anything else.
    fits(bytes.len())?;
    String::from_utf8(bytes).map_err(|e| {
        let why = format!("not-utf8: the payload is not JSON: {e}; nothing was sent");
        Failure::new(Exit::BadData, "not-utf8", why)
    })
}

fn fits(bytes: usize) -> Result<(), Failure> {
    if bytes <= FRAME_BYTES {
        return Ok(());
    }
    let why = format!(
        "event-too-large: an event has at most {EVENT_BYTES} bytes; nothing was sent. Publish where the data is instead"
    );
    Err(Failure::new(Exit::BadData, "event-too-large", why))
}

fn bad_json(error: &serde_json::Error) -> Failure {
    let hint = "nothing was sent; a string needs quotes of its own: '\"text\"'";
    let why = format!("bad-json: the payload is not JSON: {error}; {hint}");
    Failure::new(Exit::BadData, "bad-json", why).with("line", error.line()).with("column", error.column())
}

fn invalid(refusal: &Refusal) -> Failure {
    Failure::new(exit_of(refusal.code), refusal.code, format!("{refusal}; nothing was sent"))
}

fn new_id() -> String {
    let mut id = Vec::new();
    IdSource::new(chance()).write(clock::wall_ms(), &mut id);
    String::from_utf8_lossy(&id).into_owned()
}

/// Sends one publish and waits for its answer.
fn ask(root: &StateRoot, body: &[u8], id: &str, limit: Duration) -> Result<Reply, Failure> {
    let sent = Cell::new(false);
    let publish = async {
        let mut client = connect(root).await?;
        sent.set(true);
        // A broker that took nothing more may have said why.
        let written = client.send(body).await;
        match (client.receive().await, written) {
            (Ok(reply), _) => Ok(reply),
            (Err(error), _) => Err(lost(id, &error)),
        }
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::system)?;
    runtime
        .block_on(async { within(limit, publish).await })
        .unwrap_or_else(|_| Err(no_answer(limit, sent.get().then_some(id))))
}

/// Prints what was stored.
fn say(reply: &Reply, id: &str, json: bool) -> Result<Exit, Failure> {
    let seq = reply.seq.unwrap_or(0);
    let said = match json {
        true => {
            let mut said = serde_json::json!({"schema": 1, "seq": seq, "id": id, "topic": reply.topic});
            if reply.duplicate {
                said["duplicate"] = true.into();
            }
            said.to_string()
        }
        false if reply.duplicate => format!("seq={seq} id={id} duplicate"),
        false => format!("seq={seq} id={id}"),
    };
    match writeln!(io::stdout(), "{said}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let why = format!(
                "stored as seq={seq} id={id}, do not send it again; only this could not be printed: {error}"
            );
            Err(Failure::new(Exit::Io, "io", why).with("seq", seq).with("id", id))
        }
        _ => Ok(Exit::Ok),
    }
}
