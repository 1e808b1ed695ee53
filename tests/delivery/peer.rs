//! A guest at the other end of a pipe: raw frames, read one by one, at its own pace.
//!
//! Always holds: it may be dropped at any moment, and the pipe is closed then, whatever was under way; writing never
//! waits for reading.

use crate::world::World;
use serde_json::Value;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// One connection.
pub struct Peer {
    pipe: DuplexStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Nothing more is written once `output` is out.
    finished: bool,
    /// So much is taken from the pipe at a time.
    pub sip: usize,
}

impl Peer {
    /// A session of `vm`, whose pipe holds so many bytes each way.
    pub async fn new(world: &World, vm: &str, capabilities: &str, bytes: usize) -> Peer {
        let host = vm == "host";
        let host_bus = if host { ",host-bus" } else { "" };
        let output = format!("hello vm:{vm} capabilities=bus-v1{host_bus}{capabilities}\n").into_bytes();
        let pipe = world.connect(bytes, host);
        let mut peer = Peer { pipe, input: Vec::new(), output, finished: false, sip: 64 * 1024 };
        for want in ["castra-broker ", "ok session="] {
            let line = peer.line().await;
            assert!(line.starts_with(want), "{line}");
        }
        peer
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.input.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                return String::from_utf8(line).unwrap();
            }
            assert!(self.more().await, "the line is whole");
        }
    }

    /// Sends a frame, as soon as there is room for it.
    pub fn send(&mut self, body: &str) {
        self.output.extend_from_slice(&(body.len() as u32).to_be_bytes());
        self.output.extend_from_slice(body.as_bytes());
    }

    /// Sends nothing more.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Reads some bytes and writes what there is room for; false at the end of the stream. Nothing is lost when this is
    /// not waited for.
    pub async fn more(&mut self) -> bool {
        let mut buffer = vec![0; self.sip];
        poll_fn(|cx| {
            while !self.output.is_empty() {
                match Pin::new(&mut self.pipe).poll_write(cx, &self.output) {
                    Poll::Ready(Ok(n)) => drop(self.output.drain(..n)),
                    // The broker has closed it; what it said before can still be read.
                    Poll::Ready(Err(_)) => self.output.clear(),
                    Poll::Pending => break,
                }
            }
            if self.finished && self.output.is_empty() {
                let _ = Pin::new(&mut self.pipe).poll_shutdown(cx);
            }
            let mut read = ReadBuf::new(&mut buffer);
            match Pin::new(&mut self.pipe).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) => {
                    self.input.extend_from_slice(read.filled());
                    Poll::Ready(!read.filled().is_empty())
                }
                Poll::Ready(Err(_)) => Poll::Ready(false),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Writes all that was sent, and reads nothing.
    pub async fn flush(&mut self) {
        poll_fn(|cx| {
            while !self.output.is_empty() {
                match Pin::new(&mut self.pipe).poll_write(cx, &self.output) {
                    Poll::Ready(Ok(n)) => drop(self.output.drain(..n)),
                    Poll::Ready(Err(_)) => self.output.clear(),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(())
        })
        .await;
    }

    /// The next frame that was read whole.
    pub fn taken(&mut self) -> Option<Vec<u8>> {
        let length = u32::from_be_bytes(*self.input.first_chunk::<4>()?) as usize;
        assert!((1..=65_536).contains(&length), "a frame of {length} bytes");
        let body = self.input.get(4..4 + length)?.to_vec();
        self.input.drain(..4 + length);
        Some(body)
    }

    /// The next frame; `None` at the end of the stream, before which there is no half of one.
    pub async fn receive(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(body) = self.taken() {
                return Some(body);
            }
            if !self.more().await {
                assert!(self.input.is_empty(), "half a frame: {:?}", String::from_utf8_lossy(&self.input));
                return None;
            }
        }
    }

    /// The next frame, parsed.
    pub async fn json(&mut self) -> Value {
        serde_json::from_slice(&self.receive().await.expect("a frame")).unwrap()
    }

    /// Sends a frame and returns the next one.
    pub async fn ask(&mut self, body: &str) -> Value {
        self.send(body);
        self.json().await
    }

    /// Subscribes and returns the ack.
    pub async fn subscribe(&mut self, fields: &str) -> Value {
        let ack = self.ask(&format!(r#"{{"type":"subscribe",{fields}}}"#)).await;
        assert_eq!(ack["status"], "ok", "{ack}");
        ack
    }

    /// Publishes one event and returns its seq.
    pub async fn publish(&mut self, topic: &str) -> u64 {
        let ack = self.ask(&format!(r#"{{"type":"publish","topic":"{topic}"}}"#)).await;
        ack["seq"].as_u64().unwrap_or_else(|| panic!("{ack}"))
    }

    /// Publishes one event to a topic that is subscribed, and returns the seq that came back with it.
    pub async fn publish_and_event(&mut self, topic: &str) -> u64 {
        self.send(&format!(r#"{{"type":"publish","topic":"{topic}"}}"#));
        let mut frames = [self.json().await, self.json().await];
        frames.sort_by_key(|frame| frame["type"].to_string());
        assert_eq!(
            (&frames[0]["ack"], &frames[1]["type"]),
            (&"publish".into(), &"event".into()),
            "{frames:?}"
        );
        assert_eq!(frames[0]["seq"], frames[1]["seq"]);
        frames[1]["seq"].as_u64().unwrap()
    }

    /// The next frame, an event of that subscription; its seq.
    pub async fn event(&mut self, sub: &str) -> u64 {
        let event = self.json().await;
        assert_eq!((&event["type"], &event["sub"]), (&"event".into(), &sub.into()), "{event}");
        event["seq"].as_u64().unwrap()
    }

    /// What is there to be read just now, parsed.
    pub async fn now(&mut self) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            tokio::select! {
                biased;
                frame = self.receive() => match frame {
                    Some(frame) => all.push(serde_json::from_slice(&frame).unwrap()),
                    None => return all,
                },
                () = tokio::task::yield_now() => return all,
            }
        }
    }
}
