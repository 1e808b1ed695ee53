//! One session of a bench: its bytes out and in, and a sign of life now and then.
//!
//! Always holds: a frame that is handed out was whole, and lies in a buffer that is used again; the broker's
//! heartbeats are answered; a session that says nothing else says one of its own. Owner: the session's task.

use crate::core::awake::{Instant, sleep_until, timeout};
use crate::core::client::{Client, ClientError, Target};
use crate::core::event::{Text, string_body};
use crate::core::stream::{Reader, Writer};
use crate::core::wire::codec::{LENGTH_BYTES, first_frame};
use bytes::{Buf, BytesMut};
use serde::Deserialize;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A session that sent nothing for so long says that it lives; a broker that asks for it does so earlier.
const BEAT: Duration = Duration::from_secs(30);
/// The broker has so long for each answer before the load begins.
const ANSWER: Duration = Duration::from_secs(10);
const HEARTBEAT: &[u8] = b"{\"type\":\"heartbeat\"}";
/// Room for one read: a busy subscriber gets many events with each, an idle session takes little memory.
const READ_BUSY: usize = 32 * 1024;
const READ_IDLE: usize = 1024;

/// Why there is no session to bench with.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No session.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// The broker refused to subscribe: its code and reason.
    #[error("{0}: {1}")]
    Refused(String, String),
    /// Nothing came within 10 s.
    #[error("no answer within {ANSWER:?}")]
    Timeout,
}

/// A frame that is not the usual one, as far as anybody looks at it.
#[derive(Debug, Deserialize)]
pub struct Said<'a> {
    #[serde(rename = "type", borrow)]
    kind: Text<'a>,
    #[serde(borrow)]
    ack: Option<Text<'a>>,
    #[serde(borrow)]
    status: Option<Text<'a>>,
    #[serde(borrow)]
    code: Option<Text<'a>>,
    #[serde(borrow)]
    reason: Option<Text<'a>>,
    /// What an ack of a publish says.
    pub seq: Option<u64>,
}

impl<'a> Said<'a> {
    /// Reads a frame's body; `None` when it is no frame of the protocol.
    pub fn read(body: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// Whether it answers a frame of type `of`, or one whose type could not be read.
    pub fn answers(&self, of: &str) -> bool {
        let ack = self.ack.as_ref().map(|ack| ack.0.as_ref());
        self.kind.0 == "ack" && (ack == Some(of) || ack == Some("frame"))
    }

    /// Whether it delivers an event.
    pub fn is_event(&self) -> bool {
        self.kind.0 == "event"
    }

    /// The code of a refusal, and its reason.
    pub fn refused(&self) -> Option<(&str, &str)> {
        let good = self.status.as_ref().is_some_and(|status| status.0 == "ok");
        (!good).then(|| {
            (
                self.code.as_ref().map_or("refused", |code| code.0.as_ref()),
                self.reason.as_ref().map_or("no reason given", |reason| reason.0.as_ref()),
            )
        })
    }
}

/// One session.
pub struct Link {
    reader: Reader,
    writer: Writer,
    input: BytesMut,
    room: usize,
    /// Frames to be written; the first `written` bytes are.
    out: Vec<u8>,
    written: usize,
    beat: Instant,
}

impl Link {
    /// Opens one for the guest `name`.
    ///
    /// # Errors
    /// [`LinkError`]; nothing is waited for longer than 10 s.
    pub async fn connect(target: &Target, name: &str) -> Result<Self, LinkError> {
        let hello = format!("hello vm:{name} capabilities=bus-v1,heartbeat");
        let client =
            timeout(ANSWER, Client::connect(target, &hello)).await.map_err(|_| LinkError::Timeout)??;
        let (reader, writer, input) = client.into_parts();
        let beat = Instant::now() + BEAT;
        Ok(Link { reader, writer, input, room: READ_IDLE, out: Vec::new(), written: 0, beat })
    }

    /// Subscribes to `topic`, as it is named.
    ///
    /// # Errors
    /// [`LinkError`], as above.
    pub async fn subscribe(&mut self, topic: &str) -> Result<(), LinkError> {
        let mut body = b"{\"type\":\"subscribe\",\"topic\":\"".to_vec();
        string_body(&mut body, topic);
        body.extend_from_slice(b"\"}");
        self.push(&body);
        let answered = async {
            let mut answer = None;
            while answer.is_none() {
                self.step().await?;
                self.take(|body| {
                    let said = Said::read(body).filter(|said| said.answers("subscribe"));
                    answer = answer.take().or_else(|| {
                        said.map(|said| said.refused().map(|(code, why)| (code.to_owned(), why.to_owned())))
                    });
                    false
                })?;
            }
            Ok(answer.flatten())
        };
        match timeout(ANSWER, answered).await {
            Err(_) => Err(LinkError::Timeout),
            Ok(Err(why)) => Err(ClientError::Closed(why).into()),
            Ok(Ok(Some((code, reason)))) => Err(LinkError::Refused(code, reason)),
            Ok(Ok(None)) => Ok(()),
        }
    }

    /// Much will come: reads are large from now on.
    pub fn expect_much(&mut self) {
        self.room = READ_BUSY;
    }

    /// Whether all that was to be written is.
    pub fn is_written(&self) -> bool {
        self.written == self.out.len()
    }

    /// Where frames are put that are to be written.
    pub fn out(&mut self) -> &mut Vec<u8> {
        if self.is_written() {
            self.out.clear();
            self.written = 0;
        }
        &mut self.out
    }

    fn push(&mut self, body: &[u8]) {
        let out = self.out();
        out.extend_from_slice(&(body.len() as u32).to_be_bytes());
        out.extend_from_slice(body);
    }

    /// Asks for a sign of life.
    pub fn push_heartbeat(&mut self) {
        self.push(HEARTBEAT);
    }

    /// Writes or reads something, whichever is possible first. May be dropped at any time.
    ///
    /// # Errors
    /// The session is over; why, in the words of the protocol or `connection-lost`.
    pub async fn step(&mut self) -> Result<(), String> {
        let lost = |_| "connection-lost".to_owned();
        self.input.reserve(self.room);
        tokio::select! {
            biased;
            n = self.writer.write(&self.out[self.written..]), if self.written < self.out.len() => {
                self.written += n.map_err(lost)?;
                self.beat = Instant::now() + BEAT;
            }
            n = self.reader.read_buf(&mut self.input) => {
                if n.map_err(lost)? == 0 {
                    return Err("connection-lost".into());
                }
            }
            () = sleep_until(self.beat) => {
                self.beat = Instant::now() + BEAT;
                self.push_heartbeat();
            }
        }
        Ok(())
    }

    /// Hands out the frames that came. What `own` does not take for itself is looked at here.
    ///
    /// # Errors
    /// As [`Link::step`], behind the frames that came before.
    pub fn take(&mut self, mut own: impl FnMut(&[u8]) -> bool) -> Result<(), String> {
        let (mut taken, mut asked) = (0, false);
        let end = loop {
            match first_frame(&self.input[taken..]) {
                Ok(None) => break Ok(()),
                Err(_) => break Err("broken-framing".to_owned()),
                Ok(Some(body)) => {
                    taken += LENGTH_BYTES + body.len();
                    if own(body) {
                        continue;
                    }
                    let said = Said::read(body);
                    match said.as_ref().map(|said| said.kind.0.as_ref()) {
                        Some("heartbeat") => asked = true,
                        Some("close") => {
                            let reason = said.and_then(|said| said.reason).map(|reason| reason.0);
                            break Err(
                                reason.map_or_else(|| "closed".to_owned(), |reason| reason.into_owned())
                            );
                        }
                        _ => {}
                    }
                }
            }
        };
        self.input.advance(taken);
        if asked {
            self.push_heartbeat();
        }
        end
    }
}
