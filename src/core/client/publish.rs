//! Publishing one event.
//!
//! Always holds: an event has its id before it is sent, so that one in doubt is sent again as the same one. Owner:
//! whoever publishes.

use super::Bus;
use super::error::Error;
use super::word::{Command, Publishing};
use crate::core::limits::FRAME_BYTES;
use crate::core::wire::codec::FrameCodec;
use bytes::BytesMut;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::codec::Encoder;

/// An event that is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its place in the one order of all events.
    pub seq: u64,
    /// Its id: the one that was given, or a UUIDv7.
    pub id: String,
    /// An event of the id that was given had been stored before; this is its seq, and nothing more was stored.
    pub duplicate: bool,
}

/// An event that is to be published: done when this is awaited.
#[must_use = "nothing is published before it is awaited"]
#[derive(Debug)]
pub struct Publish<'a> {
    bus: &'a Bus,
    event: Fields,
    payload: Result<Box<RawValue>, Error>,
}

#[derive(Debug, Serialize)]
struct Fields {
    #[serde(rename = "type")]
    kind: &'static str,
    topic: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    caused_by: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
}

impl<'a> Publish<'a> {
    pub(super) fn new(bus: &'a Bus, topic: String, payload: impl Serialize) -> Self {
        let event = Fields {
            kind: "publish",
            topic,
            id: None,
            key: None,
            headers: BTreeMap::new(),
            tags: Vec::new(),
            caused_by: Vec::new(),
            sid: None,
            ttl_ms: None,
            payload: None,
        };
        let payload = to_raw_value(&payload).map_err(|e| Error::Payload(Arc::new(e)));
        Publish { bus, event, payload }
    }

    /// With this id, 1 to 128 bytes: the same id from the same VM again, as long as the broker remembers it, is stored
    /// once. Without one it gets a UUIDv7.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.event.id = Some(id.into());
        self
    }

    /// What it is the latest state of, 1 to 255 bytes.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.event.key = Some(key.into());
        self
    }

    /// With this header; 32 of 1 KiB in all at the most.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.event.headers.insert(name.into(), value.into());
        self
    }

    /// With these tags; 32 of 1 KiB in all at the most.
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.event.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// The ids of what caused it; 32 at the most.
    pub fn caused_by(mut self, ids: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.event.caused_by.extend(ids.into_iter().map(Into::into));
        self
    }

    /// The publisher's session, as it likes to call it.
    pub fn sid(mut self, sid: impl Into<String>) -> Self {
        self.event.sid = Some(sid.into());
        self
    }

    /// Not to be delivered when it is older than this; whole milliseconds.
    pub fn ttl(mut self, time: Duration) -> Self {
        self.event.ttl_ms = Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        self
    }

    async fn send(self) -> Result<Published, Error> {
        let Publish { bus, mut event, payload } = self;
        event.payload = Some(payload?);
        let is_given = event.id.is_some();
        let id = event.id.get_or_insert_with(|| bus.new_id()).clone();
        // Only the payload could fail, and it did not.
        let body = serde_json::to_vec(&event).map_err(|e| Error::Payload(Arc::new(e)))?;
        let mut frame = BytesMut::new();
        FrameCodec.encode(&body[..], &mut frame).map_err(|_| {
            let why = format!("its frame is {} bytes, at most {FRAME_BYTES} are allowed", body.len());
            Error::refused("event-too-large", why)
        })?;
        let permit = bus.publishing().await?;
        let (answer, answered) = oneshot::channel();
        let frame = frame.freeze();
        bus.command(Command::Publish(Publishing { id, is_given, frame, answer, permit })).await?;
        answered.await.unwrap_or(Err(Error::Closed))
    }
}

impl<'a> IntoFuture for Publish<'a> {
    type Output = Result<Published, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}
