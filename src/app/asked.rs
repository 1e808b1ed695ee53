//! Questions to a running broker, each a frame and its ack, over one session as the host.
//!
//! Always holds: an answer that does not come in time is an error that says so; a refusal has the exit code of its kind.
//! Owner: `latest.rs`, `dlq/`.

use super::failure::{Exit, Failure};
use super::host;
use crate::core::client::{ClientError, Receiver, Sender};
use crate::core::state_root::StateRoot;
use bytes::BytesMut;
use serde::Deserialize;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The broker answers within a few seconds, or something is wrong with it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A session in which questions are asked.
pub struct Asked {
    runtime: Runtime,
    sender: Sender,
    receiver: Receiver,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    ack: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    reason: String,
}

impl Asked {
    /// Connects.
    ///
    /// # Errors
    /// There is no session.
    pub fn connect(root: &StateRoot) -> Result<Self, Failure> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::system)?;
        let client = runtime.block_on(async { host::within(PATIENCE, host::connect(root)).await });
        let (sender, receiver) = client.map_err(|_| late(PATIENCE))??.split();
        Ok(Asked { runtime, sender, receiver })
    }

    /// The body of the ack to `frame`.
    ///
    /// # Errors
    /// It is refused, or does not come in time.
    pub fn ask(&mut self, frame: &serde_json::Value, patience: Duration) -> Result<BytesMut, Failure> {
        self.ask_text(frame["type"].as_str().unwrap_or_default(), &frame.to_string(), patience)
    }

    /// The same for a frame of type `kind` that is written already.
    ///
    /// # Errors
    /// As [`Asked::ask`].
    pub fn ask_text(&mut self, kind: &str, frame: &str, patience: Duration) -> Result<BytesMut, Failure> {
        let Asked { runtime, sender, receiver } = self;
        let lost = |error: ClientError| {
            Failure::new(Exit::TryAgain, "connection-lost", format!("{error}; try it again"))
        };
        let asked = async {
            sender.send([frame.as_bytes()]).await.map_err(lost)?;
            loop {
                let body = receiver.frame().await.map_err(lost)?;
                let reply: Reply =
                    serde_json::from_slice(&body).map_err(|e| lost(ClientError::Protocol(e.to_string())))?;
                match reply.kind.as_str() {
                    "ack" if reply.ack == kind || reply.ack == "frame" => {
                        return answered(reply, body);
                    }
                    "close" => return Err(lost(ClientError::Closed(reply.reason))),
                    _ => {}
                }
            }
        };
        runtime.block_on(async { host::within(patience, asked).await }).map_err(|_| late(patience))?
    }
}

fn answered(reply: Reply, body: BytesMut) -> Result<BytesMut, Failure> {
    if reply.status == "ok" {
        return Ok(body);
    }
    let exit = match reply.code.as_str() {
        "not-compacted" => Exit::BadConfig,
        "view-behind" | "disk-full" | "outcome-unknown" | "logs-behind" => Exit::TryAgain,
        "forbidden-topic" | "host-only" => Exit::Refused,
        _ => Exit::BadData,
    };
    let why = format!("{}: {}", reply.code, reply.reason);
    Err(Failure::new(exit, reply.code, why))
}

fn late(patience: Duration) -> Failure {
    let why = format!("no answer within {patience:?}; 'castra status' says how the broker is");
    Failure::new(Exit::Timeout, "timeout", why)
}
