//! A bus-v1 client: one connection, frames out and in. Used by the commands.
//!
//! Always holds: a frame that is handed out was whole; nothing waits longer than the caller's timeout.
//! Owner: whoever connected.

use super::limits::HELLO_BYTES;
use super::stream::{Reader, Writer};
use super::wire::codec::{CodecError, FrameCodec, LENGTH_BYTES, first_frame};
use super::wire::received::{Ack, Received};
use bytes::{Buf, BytesMut};
use serde::Deserialize;
use std::path::PathBuf;
use std::str::FromStr;
use std::{fmt, io};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::codec::{Decoder, Encoder};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockStream};

const READ_BYTES: usize = 16 * 1024;

/// Where a broker listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `HOST:PORT`; the host is an address or a name.
    Tcp(String),
    /// A socket's path.
    Unix(PathBuf),
    /// `CID:PORT`, out of a virtual machine; the host's CID is 2.
    Vsock(u32, u32),
}

/// What is no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a broker is at tcp:HOST:PORT, unix:PATH or vsock:CID:PORT")]
pub struct TargetError;

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text.split_once(':') {
            Some(("tcp", address)) => match address.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                    Ok(Target::Tcp(address.to_owned()))
                }
                _ => Err(TargetError),
            },
            Some(("unix", path)) if !path.is_empty() => Ok(Target::Unix(path.into())),
            Some(("vsock", address)) => {
                let parts = address.split_once(':').ok_or(TargetError)?;
                match (parts.0.parse(), parts.1.parse()) {
                    (Ok(cid), Ok(port)) if cid != VMADDR_CID_ANY => Ok(Target::Vsock(cid, port)),
                    _ => Err(TargetError),
                }
            }
            _ => Err(TargetError),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp(address) => write!(f, "tcp:{address}"),
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
            Target::Vsock(cid, port) => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

impl Target {
    /// Connects; nothing is said yet.
    ///
    /// # Errors
    /// Nobody listens there, or the system cannot go there.
    pub async fn open(&self) -> io::Result<(Reader, Writer)> {
        Ok(match self {
            Target::Tcp(addr) => {
                let stream = TcpStream::connect(addr.as_str()).await?;
                stream.set_nodelay(true)?;
                let (reader, writer) = stream.into_split();
                (Box::new(reader), Box::new(writer))
            }
            Target::Unix(path) => {
                let (reader, writer) = UnixStream::connect(path).await?.into_split();
                (Box::new(reader), Box::new(writer))
            }
            Target::Vsock(cid, port) => {
                let (reader, writer) = VsockStream::connect(VsockAddr::new(*cid, *port)).await?.into_split();
                (Box::new(reader), Box::new(writer))
            }
        })
    }
}

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
        let mut any = false;
        loop {
            while let Some(length) = first_frame(&self.input).map_err(broken)?.map(<[u8]>::len) {
                let body = &mut self.input[LENGTH_BYTES..LENGTH_BYTES + length];
                take(Received::parse(body).map_err(|e| ClientError::Protocol(e.to_string()))?);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        for good in [
            "tcp:127.0.0.1:7070",
            "tcp:[::1]:1",
            "tcp:host.lan:65535",
            "unix:/run/castra.sock",
            "unix:a:b",
            "vsock:2:7070",
        ] {
            assert_eq!(good.parse::<Target>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "tcp",
            "tcp:",
            "tcp:7070",
            "tcp::7070",
            "tcp:a:x",
            "tcp:a:65536",
            "unix:",
            "vsock:2",
            "vsock:a:1",
            "vsock:4294967295:1",
        ] {
            assert_eq!(bad.parse::<Target>(), Err(TargetError), "{bad}");
        }
    }
}
