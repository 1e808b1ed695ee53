//! The first words of a connection: the banner, and the hello that is waited for.
//!
//! Always holds: a hello comes within its time, or on a line whenever it comes; what was sent behind it stays. Owner: the
//! door, once per connection.

use super::{NEVER, Outcome, VERSION};
use crate::core::awake::{Instant, timeout_at};
use crate::core::bus::Bus;
use crate::core::stream::{Reader, Writer};
use crate::core::wire::handshake::{Hello, HelloError, parse_hello, skip_to_hello, take_line};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A handshake that came to no hello.
pub(super) struct Refused {
    pub reason: String,
    pub outcome: Outcome,
}

impl Refused {
    pub fn denied(reason: &'static str) -> Self {
        Refused { reason: reason.to_owned(), outcome: Outcome::Denied(reason) }
    }
}

impl From<HelloError> for Refused {
    fn from(error: HelloError) -> Self {
        Refused::denied(error.reason())
    }
}

/// Says the banner and reads the hello; what was sent behind it stays in `input`. `None`: gone.
pub(super) async fn hear_hello(
    bus: &Bus,
    is_line: bool,
    reader: &mut Reader,
    writer: &mut Writer,
    input: &mut Vec<u8>,
) -> Result<Option<Hello>, Refused> {
    let until = Instant::now() + if is_line { NEVER } else { bus.limits.hello_time };
    let late = |_| Refused { reason: "hello-timeout".to_owned(), outcome: Outcome::Timeout };
    let banner = format!("castra-broker {VERSION} ready\n");
    if timeout_at(until, writer.write_all(banner.as_bytes())).await.map_err(late)?.is_err() {
        return Ok(None);
    }
    loop {
        if is_line {
            if let Some(line) = skip_to_hello(input) {
                return Ok(Some(parse_hello(&line)?));
            }
        } else if let Some((line, taken)) = take_line(input)? {
            let hello = parse_hello(line)?;
            input.drain(..taken);
            return Ok(Some(hello));
        }
        match timeout_at(until, reader.read_buf(input)).await.map_err(late)? {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
}
