//! One connection: frames out and in.
//!
//! Always holds: a frame that is handed out was whole; nothing waits longer than the caller's timeout.
//! Owner: whoever connected.

use super::target::Target;
use crate::core::limits::HELLO_BYTES;
use crate::core::stream::{Reader, Writer};
use crate::core::wire::codec::{CodecError, FrameCodec, LENGTH_BYTES, first_frame};
use crate::core::wire::received::{Ack, Received};
use bytes::{Buf, BytesMut};
use serde::Deserialize;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::codec::{Decoder, Encoder};

const READ_BYTES: usize = 16 * 1024;

/// Why there is no session, or no longer one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("{0}")]
    Connect(io::Error),
    /// The broker answered the hello with an error; its reason.
    #[error("the broker refused the handshake: {0}")]
    Refused(String),
    /// The broker closed the session; its reason.
    #[error("the broker closed the session: {0}")]
    Closed(String),
    /// What came is not bus-v1.
    #[error("what answers there is no castra broker: {0}")]
    Protocol(String),
    /// The connection failed.
    #[error("the connection was lost: {0}")]
    Lost(#[from] io::Error),
}

/// A frame from the broker, as far as clients look at it.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs, reason = "the fields of docs/BUS.md")]
pub struct Reply {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub ack: String,
    #[serde(default)]
    pub status: String,
    pub code: Option<String>,
    pub reason: Option<String>,
    pub topic: Option<String>,
    pub seq: Option<u64>,
    #[serde(default)]
    pub duplicate: bool,
    pub id: Option<String>,
}

/// One session.
pub struct Client {
    sender: Sender,
    receiver: Receiver,
}

/// Sends frames.
pub struct Sender {
    writer: Writer,
}

/// Receives frames.
pub struct Receiver {
    reader: Reader,
    input: BytesMut,
}

impl Client {
    /// Connects and says `hello` (the line without its end).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn connect(target: &Target, hello: &str) -> Result<Self, ClientError> {
        let (reader, writer) = target.open().await.map_err(ClientError::Connect)?;
        Ok(Self::greet(reader, writer, hello).await?.0)
    }

    /// Says `hello` on a connection that is new; the answer comes with the session.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn greet(reader: Reader, writer: Writer, hello: &str) -> Result<(Self, String), ClientError> {
        let (sender, receiver) = (Sender { writer }, Receiver { reader, input: BytesMut::new() });
        let mut client = Client { sender, receiver };
        let banner = client.receiver.line().await?;
        if !banner.starts_with("castra-broker ") {
            return Err(ClientError::Protocol(format!("it says {banner:?}")));
        }
        client.sender.writer.write_all(format!("{hello}\n").as_bytes()).await?;
        let answer = client.receiver.line().await?;
        match answer.strip_prefix("error: ") {
            Some(reason) => Err(ClientError::Refused(reason.to_owned())),
            None if answer.starts_with("ok session=") => Ok((client, answer)),
            None if answer == "ok" => Err(ClientError::Refused("the hello asked for no bus-v1".into())),
            None => Err(ClientError::Protocol(format!("it answers {answer:?}"))),
        }
    }

    /// Both directions, for tasks of their own.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// Its halves, and what was read and not taken yet, for somebody who has a loop of its own.
    pub fn into_parts(self) -> (Reader, Writer, BytesMut) {
        (self.receiver.reader, self.sender.writer, self.receiver.input)
    }

    /// As [`Sender::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&mut self, body: &[u8]) -> Result<(), ClientError> {
        self.sender.send([body]).await
    }

    /// As [`Receiver::receive`].
    ///
    /// # Errors
    /// As there.
    pub async fn receive(&mut self) -> Result<Reply, ClientError> {
        self.receiver.receive().await
    }
}

impl Sender {
    /// Sends frames, each body a JSON object, in one write.
    ///
    /// # Errors
    /// The connection failed, or a body is no frame (empty, over 65,536 bytes).
    pub async fn send<'a>(&mut self, bodies: impl IntoIterator<Item = &'a [u8]>) -> Result<(), ClientError> {
        let mut frames = BytesMut::new();
        for body in bodies {
            FrameCodec.encode(body, &mut frames).map_err(broken)?;
        }
        self.write(&frames).await
    }

    /// Sends what the connection takes of bytes that are frames already; how many. When it is dropped before it is
    /// done, none were sent.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn write_some(&mut self, frames: &[u8]) -> Result<usize, ClientError> {
        match self.writer.write(frames).await? {
            0 => Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            sent => Ok(sent),
        }
    }

    /// Sends bytes that are frames already.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn write(&mut self, frames: &[u8]) -> Result<(), ClientError> {
        Ok(self.writer.write_all(frames).await?)
    }
}

impl Receiver {
    async fn line(&mut self) -> Result<String, ClientError> {
        loop {
            if let Some(end) = self.input.iter().position(|b| *b == b'\n') {
                let line = self.input.split_to(end + 1);
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.input.len() > HELLO_BYTES {
                return Err(ClientError::Protocol("its first line has no end".into()));
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<(), ClientError> {
        self.input.reserve(READ_BYTES);
        match self.reader.read_buf(&mut self.input).await? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            _ => Ok(()),
        }
    }

    /// The next frame's body.
    ///
    /// # Errors
    /// The connection failed, or what came is no frame.
    pub async fn frame(&mut self) -> Result<BytesMut, ClientError> {
        loop {
            if let Some(body) = FrameCodec.decode(&mut self.input).map_err(broken)? {
                return Ok(body);
            }
            self.more().await?;
        }
    }

    /// Waits for acks of publishes, and hands out, in order, all that came together.
    ///
    /// # Errors
    /// [`ClientError`], behind the acks that came before; a close frame is `Closed`.
    pub async fn acks(&mut self, mut each: impl FnMut(&Ack<'_>)) -> Result<(), ClientError> {
        let mut any = false;
        loop {
            while let Some(body) = first_frame(&self.input).map_err(broken)? {
                let ack: Ack<'_> =
                    serde_json::from_slice(body).map_err(|e| ClientError::Protocol(e.to_string()))?;
                match ack.kind.0.as_ref() {
                    "close" => {
                        let reason = ack.reason.map(|reason| reason.0.into_owned());
                        return Err(ClientError::Closed(reason.unwrap_or_default()));
                    }
                    "ack" if ack.ack.as_ref().is_none_or(|of| of.0 != "heartbeat") => {
                        any = true;
                        each(&ack);
                    }
                    _ => {}
                }
                let length = LENGTH_BYTES + body.len();
                self.input.advance(length);
            }
            if any {
                return Ok(());
            }
            self.more().await?;
        }
    }

    /// Waits for frames of any kind, and hands out, in order, all that came together. When it is dropped before it
    /// is done, nothing is lost.
    ///
    /// # Errors
    /// The connection failed, or what came is no frame.
    pub async fn each(&mut self, mut take: impl FnMut(Received<'_>)) -> Result<(), ClientError> {
        self.bodies(|body| {
            take(Received::parse(body).map_err(|e| ClientError::Protocol(e.to_string()))?);
            Ok(())
        })
        .await
    }

    /// The same with the bodies of frames, until `take` fails.
    ///
    /// # Errors
    /// As there, or what `take` says.
    pub async fn bodies(
        &mut self,
        mut take: impl FnMut(&mut [u8]) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let mut any = false;
        loop {
            while let Some(length) = first_frame(&self.input).map_err(broken)?.map(<[u8]>::len) {
                take(&mut self.input[LENGTH_BYTES..LENGTH_BYTES + length])?;
                self.input.advance(LENGTH_BYTES + length);
                any = true;
            }
            if any {
                return Ok(());
            }
            self.more().await?;
        }
    }

    /// The next ack.
    ///
    /// # Errors
    /// [`ClientError`]; a close frame is `Closed`.
    pub async fn receive(&mut self) -> Result<Reply, ClientError> {
        loop {
            let body = self.frame().await?;
            let reply: Reply =
                serde_json::from_slice(&body).map_err(|e| ClientError::Protocol(e.to_string()))?;
            match reply.kind.as_str() {
                "close" => return Err(ClientError::Closed(reply.reason.unwrap_or_default())),
                "ack" => return Ok(reply),
                // Heartbeats, and what later brokers send: frames of unknown type are ignored.
                _ => {}
            }
        }
    }
}

fn broken(error: CodecError) -> ClientError {
    match error {
        CodecError::Io(error) => ClientError::Lost(error),
        other => ClientError::Protocol(other.to_string()),
    }
}
