//! `castra agent publish`: one event through the agent of this guest; ends when the agent has it on its disk.
//!
//! Always holds: an event has its id before it is sent, so that it can be sent again when no answer came, and is
//! stored once. Owner: [`super::run`].

use crate::app::failure::{Exit, Failure};
use crate::cli::AgentPublishArgs;
use crate::core::chance::chance;
use crate::core::clock;
use crate::core::event::{Publish, Text};
use crate::core::ids::IdSource;
use crate::core::limits::FRAME_BYTES;
use crate::core::refusal::Refusal;
use crate::core::wire::publish::{Defaults, write_body};
use serde_json::value::RawValue;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// An answer is no longer, in bytes.
const ANSWER: u64 = 4096;

pub fn run(args: AgentPublishArgs) -> Result<Exit, Failure> {
    let payload = match args.payload.filter(|text| text != "-") {
        Some(text) => text,
        None => read_payload()?,
    };
    let payload: &RawValue = serde_json::from_str(&payload).map_err(|e| {
        let hint = "nothing was sent; a string needs quotes of its own: '\"text\"'";
        Failure::new(Exit::BadData, "bad-json", format!("bad-json: the payload is not JSON: {e}; {hint}"))
    })?;
    let id = args.id.unwrap_or_else(new_id);
    let event = Publish { payload: Some(payload), id: Some(Text((&id).into())), ..Publish::default() };
    let topic = Some(args.topic.clone());
    let fields =
        Defaults::new(topic, args.key, &args.headers, &args.tags, &args.caused_by).and(args.sid, args.ttl);
    let mut line = Vec::new();
    write_body(&mut line, &fields.fill(event)).map_err(|refusal| of(&refusal))?;
    // JSON has line breaks only between its tokens, where a space does as well.
    for byte in line.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')) {
        *byte = b' ';
    }
    line.push(b'\n');
    let answer = ask(&args.socket, &line, &id, args.timeout)?;
    let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
    if text("status") != "ok" {
        return Err(refused(&text("code"), &text("reason")).with("id", id));
    }
    let said = match args.json {
        true => serde_json::json!({"schema": 1, "id": id, "topic": args.topic}).to_string(),
        false => format!("id={id}"),
    };
    match writeln!(io::stdout(), "{said}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let why =
                format!("kept as id={id}, do not send it again; only this could not be printed: {error}");
            Err(Failure::new(Exit::Io, "io", why).with("id", id))
        }
        _ => Ok(Exit::Ok),
    }
}

fn read_payload() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    io::stdin().take(FRAME_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|e| {
        Failure::new(Exit::Io, "unreadable", format!("stdin cannot be read: {e}; nothing was sent"))
    })?;
    if bytes.len() > FRAME_BYTES {
        let why = format!("the payload is over {FRAME_BYTES} bytes");
        return Err(refused("event-too-large", &why));
    }
    String::from_utf8(bytes).map_err(|e| refused("not-utf8", &format!("the payload is not JSON: {e}")))
}

fn new_id() -> String {
    let mut id = Vec::new();
    IdSource::new(chance()).write(clock::wall_ms(), &mut id);
    String::from_utf8_lossy(&id).into_owned()
}

fn of(refusal: &Refusal) -> Failure {
    refused(refusal.code, &refusal.reason)
}

/// What a refusal means to whoever typed the command.
fn refused(code: &str, reason: &str) -> Failure {
    let wrong = ["bad-", "too-deep", "not-", "no-", "unknown-", "duplicate-", "event-too-large"];
    let (exit, next) = match code {
        "too-many-connections" => (Exit::TryAgain, "nothing was kept, try again"),
        _ if code.starts_with("outbox-") => (Exit::TryAgain, "nothing was kept, try again later"),
        _ if wrong.iter().any(|begin| code.starts_with(begin)) => (Exit::BadData, "nothing was kept"),
        _ => (Exit::Refused, "nothing was kept"),
    };
    Failure::new(exit, code.to_owned(), format!("{code}: {reason}; {next}"))
}

/// Sends the line and waits for its answer.
fn ask(socket: &Path, line: &[u8], id: &str, limit: Duration) -> Result<serde_json::Value, Failure> {
    let stream = UnixStream::connect(socket).map_err(|e| no_agent(socket, &e))?;
    let lost = |error: io::Error| lost(&error, id, limit);
    stream
        .set_read_timeout(Some(limit))
        .and_then(|()| stream.set_write_timeout(Some(limit)))
        .map_err(lost)?;
    // An agent that takes nothing more may have said why.
    let written = (&stream).write_all(line);
    let mut answer = Vec::new();
    let read = BufReader::new(&stream).take(ANSWER).read_until(b'\n', &mut answer);
    match serde_json::from_slice(&answer) {
        Ok(answer) => Ok(answer),
        Err(_) => Err(lost(read.err().or(written.err()).unwrap_or(io::ErrorKind::UnexpectedEof.into()))),
    }
}

fn no_agent(socket: &Path, error: &io::Error) -> Failure {
    let at = socket.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let why = format!("{at}: {error}; run this as a member of the socket's group, or as root");
            Failure::new(Exit::Refused, "permission-denied", why)
        }
        _ => {
            let why = format!(
                "no agent answers on {at} ({error}); nothing was sent. Start one with 'castra agent', or name its \
                 socket with --socket"
            );
            Failure::new(Exit::NoBroker, "no-agent", why)
        }
    }
}

fn lost(error: &io::Error, id: &str, limit: Duration) -> Failure {
    let again = format!("it may be kept or not; send it again with --id {id}, and it is stored once");
    let failure = match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Failure::new(Exit::Timeout, "timeout", format!("no answer within {limit:?}; {again}"))
        }
        _ => {
            let why = format!("outcome-unknown: the agent ended before it answered ({error}); {again}");
            Failure::new(Exit::TryAgain, "outcome-unknown", why)
        }
    };
    failure.with("id", id)
}
