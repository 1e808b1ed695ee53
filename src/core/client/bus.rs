//! A session with a broker that is made anew when it is lost.
//!
//! Always holds: clones are the same bus; it ends with the last of them. Owner: the program.

use super::connection::ClientError;
use super::consumer::Context;
use super::error::{Error, check_group};
use super::event::Event;
use super::listen::Listen;
use super::nack::Nack;
use super::publish::Publish;
use super::subscribe::{Handler, Only, Subscribe, Take};
use super::target::Target;
use super::task::Task;
use super::word::{Asking, Command, Word};
use crate::core::chance::chance;
use crate::core::clock;
use crate::core::follow::{Begin, Follow, Times};
use crate::core::identity::VmName;
use crate::core::ids::IdSource;
use crate::core::limits::{DRAIN_EVENTS, HELLO_BYTES};
use crate::core::topic::Pattern;
use crate::core::wire::codec::FrameCodec;
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde_json::Value;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_util::codec::Encoder;

/// Commands that wait for the task; then whoever gives one waits before that.
const WAITING: usize = 64;

/// A bus. Clones are the same one, with the same session. It needs a tokio runtime, and ends with the last clone;
/// [`Bus::close`] ends it in good order.
#[derive(Clone)]
pub struct Bus(Arc<Inner>);

struct Inner {
    target: Target,
    hello: String,
    times: Times,
    commands: mpsc::Sender<Command>,
    words: mpsc::UnboundedSender<Word>,
    ids: Mutex<IdSource>,
    publishing: Arc<Semaphore>,
    members: AtomicU64,
    lost: watch::Receiver<Option<Arc<ClientError>>>,
    /// Its end is the task's.
    _alive: oneshot::Sender<Infallible>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bus({})", self.0.target)
    }
}

impl Bus {
    /// Connects as this VM.
    ///
    /// # Errors
    /// There is no session: nobody listens there, or the name is refused. A connection that is lost later is made anew,
    /// for as long as it takes.
    pub async fn connect(target: &Target, vm: &str) -> Result<Self, Error> {
        let vm = VmName::parse(vm).map_err(|e| Error::refused("bad-name", e.to_string()))?;
        Self::connect_as(target, &format!("hello vm:{vm} capabilities=bus-v1,heartbeat"), Times::default())
            .await
    }

    /// The same with a hello line of one's own (`docs/BUS.md`; without its end), which may have a token, and times.
    ///
    /// # Errors
    /// As [`Bus::connect`].
    pub async fn connect_as(target: &Target, hello: &str, times: Times) -> Result<Self, Error> {
        if hello.contains(['\n', '\r']) || hello.len() >= HELLO_BYTES {
            let why = format!("a hello is one line of less than {HELLO_BYTES} bytes");
            return Err(Error::refused("bad-hello", why));
        }
        let client = Task::connect(target, hello, &times).await?;
        let (commands, for_task) = mpsc::channel(WAITING);
        let (words, said) = mpsc::unbounded_channel();
        let (alive, is_alive) = oneshot::channel();
        let (is_lost, lost) = watch::channel(None);
        let (target, hello) = (target.clone(), hello.to_owned());
        let task = Task {
            target: target.clone(),
            hello: hello.clone(),
            times,
            commands: for_task,
            words: said,
            lost: is_lost,
            alive: is_alive,
        };
        tokio::spawn(task.run(client));
        Ok(Bus(Arc::new(Inner {
            target,
            hello,
            times,
            commands,
            words,
            ids: Mutex::new(IdSource::new(chance())),
            publishing: Arc::new(Semaphore::new(DRAIN_EVENTS)),
            members: AtomicU64::new(0),
            lost,
            _alive: alive,
        })))
    }

    /// Publishes something that can be written as JSON; the answer comes when it is durable. 128 events are under way at
    /// once; whoever publishes more waits. While there is no broker it waits for one: give it a timeout of your own, and
    /// an [id](Publish::id), so that it can be tried again.
    ///
    /// # Errors
    /// The broker refused it (`disk-full`, `forbidden-topic` …), it is no JSON, or the bus is closed.
    pub fn publish(&self, topic: impl Into<String>, payload: impl Serialize) -> Publish<'_> {
        Publish::new(self, topic.into(), payload)
    }

    /// Has `handler` do what is published to a topic (or what a pattern matches), together with the group's other members
    /// on whatever machine: each event is handled by one of them, again and again until it went well.
    ///
    /// # Errors
    /// The broker refused it (`forbidden-topic`, `bad-pattern` …), this bus is a member already, or it is closed.
    pub fn subscribe<F, Fut>(
        &self,
        topic: impl Into<String>,
        group: impl Into<String>,
        handler: F,
    ) -> Subscribe<'_, Handler>
    where
        F: FnMut(Event, Context) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), Nack>> + Send + 'static,
    {
        Subscribe::new(self, topic.into(), group.into(), Handler::new(handler))
    }

    /// The same for somebody who takes events one by one.
    ///
    /// # Errors
    /// As [`Bus::subscribe`].
    pub fn consume(&self, topic: impl Into<String>, group: impl Into<String>) -> Subscribe<'_, Take> {
        Subscribe::new(self, topic.into(), group.into(), Take)
    }

    /// Has a group be there, so that it keeps what is published from now on; nobody is a member by this.
    ///
    /// # Errors
    /// As [`Bus::subscribe`].
    pub fn create_group(&self, topic: impl Into<String>, group: impl Into<String>) -> Subscribe<'_, Only> {
        Subscribe::new(self, topic.into(), group.into(), Only)
    }

    /// Listens to what is published to a topic, or what a pattern matches, over a connection of its own. Nobody remembers
    /// how far it came.
    ///
    /// # Errors
    /// The broker refused it, or there is no session.
    pub fn listen(&self, pattern: impl Into<String>) -> Listen<'_> {
        Listen::new(self, pattern.into())
    }

    /// Asks what is answered by one ack of the same type: a frame of `docs/BUS.md` with these fields.
    ///
    /// # Errors
    /// The broker refused it, the bus is closed, or the answer has a number that is no [`Value`]: see
    /// [`Bus::ask_json`].
    pub async fn ask(&self, kind: &str, fields: Value) -> Result<Value, Error> {
        read(&self.ask_json(kind, fields).await?)
    }

    /// The same; the answer is the ack as the broker sent it, so payloads in it are what was published, digit by digit.
    ///
    /// # Errors
    /// The broker refused it, or the bus is closed.
    pub async fn ask_json(&self, kind: &str, fields: Value) -> Result<Bytes, Error> {
        let mut frame = fields;
        frame["type"] = kind.into();
        let group = frame["group"].as_str().map(str::to_owned);
        group.as_deref().map_or(Ok(()), check_group)?;
        let mut bytes = BytesMut::new();
        let encoded = FrameCodec.encode(frame.to_string().as_bytes(), &mut bytes);
        encoded.map_err(|e| Error::refused("frame-too-large", e.to_string()))?;
        self.asked(kind, group, bytes.freeze()).await
    }

    pub(super) async fn asked(
        &self,
        kind: &str,
        group: Option<String>,
        frame: Bytes,
    ) -> Result<Bytes, Error> {
        let (answer, answered) = oneshot::channel();
        let asking = Asking { kind: kind.to_owned(), group, frame, answer, is_sent: false, is_again: false };
        self.command(Command::Ask(asking)).await?;
        answered.await.unwrap_or(Err(Error::Closed))
    }

    /// Why there is no session just now, if so: for somebody who wants to say it. What is under way waits meanwhile.
    pub fn lost(&self) -> watch::Receiver<Option<Arc<ClientError>>> {
        self.0.lost.clone()
    }

    /// Ends it in good order: subscriptions let their handlers come to their end, what is under way is answered. A
    /// [`Consumer`](super::Consumer) has to leave for that. While there is no broker this waits for one; dropping the bus
    /// waits for nothing.
    pub async fn close(self) {
        let (closed, is_closed) = oneshot::channel();
        if self.command(Command::Close(closed)).await.is_ok() {
            let _ = is_closed.await;
        }
    }

    pub(super) async fn command(&self, command: Command) -> Result<(), Error> {
        self.0.commands.send(command).await.map_err(|_| Error::Closed)
    }

    pub(super) fn words(&self) -> mpsc::UnboundedSender<Word> {
        self.0.words.clone()
    }

    pub(super) fn next_number(&self) -> u64 {
        self.0.members.fetch_add(1, Relaxed)
    }

    /// Room for one more event on its way.
    pub(super) async fn publishing(&self) -> Result<OwnedSemaphorePermit, Error> {
        self.0.publishing.clone().acquire_owned().await.map_err(|_| Error::Closed)
    }

    pub(super) fn new_id(&self) -> String {
        let mut id = Vec::new();
        let mut ids = self.0.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.write(clock::wall_ms(), &mut id);
        String::from_utf8_lossy(&id).into_owned()
    }

    pub(super) fn follow(&self, patterns: Vec<Pattern>, begin: Begin) -> Follow {
        let Inner { target, hello, times, .. } = &*self.0;
        Follow { target: target.clone(), hello: hello.clone(), patterns, begin, times: *times }
    }
}

/// Reads what the broker answered.
pub(super) fn read<T: serde::de::DeserializeOwned>(answer: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(answer)
        .map_err(|e| Error::refused("bad-answer", format!("what the broker answered cannot be read: {e}")))
}
