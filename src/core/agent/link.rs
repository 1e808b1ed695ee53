//! The way to the broker: found, held, and found again.
//!
//! ```text
//!             opened               ok session=…, our epoch
//! Trying ───────────────▶ Greeting ─────────────────────▶ Open
//!   ▲ │ ▲                    │ error: …, or no answer       │ lost, closed, not heard of
//!   │ └─┘ the next way       ▼                              ▼
//!   └──────────────────── Waiting (back-off with full jitter; slowly after a refusal)
//! ```
//!
//! A serial line stays open from Open to Greeting: it is one stream of bytes, whoever is at its other end.
//! Always holds: one session at a time; no failure ends it, and none makes it try without a wait; what stays wrong is
//! said once. Owner: `mod.rs`.

use super::dial::Dial;
use super::discover::{Way, Ways};
use super::feed::Feed;
use super::greeting::{Answer, Greeting};
use super::handler::told;
use super::outbox::Outbox;
use super::pipe::{Pipe, Step};
use super::pulse::Times;
use super::retry::{Came, Retry};
use super::session::{Ended, Session};
use crate::core::awake::{Instant, sleep_until, timeout};
use crate::core::chance::chance;
use crate::core::client::{Client, ClientError};
use crate::core::follow::may_pass;
use crate::core::identity::VmName;
use bytes::BytesMut;
use std::io;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// A hello has its answer within this time.
const GREETING: Duration = Duration::from_secs(10);

/// The close reason of an earlier session of the same instance.
const REPLACED: &str = "replaced";

/// How it stands with the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is no session; why.
    Away(String),
    /// There is one, over this way.
    Connected(String),
}

/// Who this guest says it is.
#[derive(Clone)]
pub struct Identity {
    /// Its name.
    pub vm: VmName,
    /// What proves it.
    pub token: Option<String>,
}

impl Identity {
    /// The hello line, without its end.
    pub fn hello(&self, instance: &str, epoch: &str) -> String {
        let token = self.token.as_ref().map(|token| format!(" token={token}")).unwrap_or_default();
        format!("hello vm:{} capabilities=bus-v1,heartbeat{token} instance={instance} epoch={epoch}", self.vm)
    }
}

/// A name for this process: a broker ends what is left of its earlier sessions before it answers the hello of the next
/// one, so that late bytes of a connection that was given up are nothing any more.
pub fn instance() -> String {
    format!("{:016x}", chance())
}

/// Everything of it.
pub struct Link<D> {
    /// Opens ways.
    pub dial: D,
    /// Where to look.
    pub ways: Ways,
    /// Who says hello.
    pub identity: Identity,
    /// Which process it is, [`instance`].
    pub instance: String,
    /// What is to be sent.
    pub outbox: Outbox,
    /// What is subscribed.
    pub feed: Option<Feed>,
    /// How long to wait for the host.
    pub times: Times,
    /// Who is told how it stands.
    pub standing: watch::Sender<Standing>,
}

impl<D: Dial> Link<D> {
    /// Holds sessions until it is told to end.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let (mut retry, mut line) = (Retry::default(), None);
        while !*stop.borrow() {
            let mut told_to_end = stop.clone();
            let opened = tokio::select! {
                opened = self.open(&mut line) => opened,
                () = told(&mut told_to_end) => return,
            };
            let came = match opened {
                Ok((way, pipe)) => match self.hold(&way, pipe, &mut line, &mut retry, &mut stop).await {
                    Some(came) => came,
                    None => return,
                },
                Err(NoSession { why, came }) => {
                    self.away(why, true).await;
                    came
                }
            };
            tokio::select! {
                () = sleep(retry.wait(came, chance())) => {}
                () = told(&mut stop) => {}
            }
        }
    }

    /// Holds a session to its end; what came of it, if the agent is not told to end.
    async fn hold(
        &mut self,
        way: &Way,
        mut pipe: Pipe,
        line: &mut Option<(Way, Pipe)>,
        retry: &mut Retry,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Came> {
        self.ways.worked(way);
        tracing::info!(pending = self.outbox.counts().pending, "connected to {way} as {}", self.identity.vm);
        self.standing.send_replace(Standing::Connected(way.to_string()));
        let (since, is_line) = (Instant::now(), matches!(way, Way::Line(_)));
        let mut session = Session::new(&mut pipe, &self.outbox, self.feed.as_mut(), self.times, is_line);
        let ended = session.run(stop).await;
        retry.lasted(since.elapsed(), session.is_useful);
        if is_line && !matches!(ended, Ended::Lost(_)) {
            pipe.forget();
            *line = Some((way.clone(), pipe));
        }
        let mut after = Duration::ZERO;
        let is_replaced = matches!(&ended, Ended::Closed(reason, _) if reason == REPLACED);
        if is_replaced {
            // A copy of this machine goes on as well, and would be ended in turn for ever.
            self.instance = instance();
        }
        let why = match ended {
            Ended::Told => return None,
            Ended::Closed(reason, retry_after) => {
                after = retry_after;
                format!("the broker on {way} closed the session: {reason}")
            }
            Ended::Lost(error) => format!("the connection to {way} was lost: {error}"),
            Ended::Broken(why) => format!("what came from {way} is not bus-v1: {why}"),
            Ended::Silent(time) => format!("the host was not heard on {way} for {} s", time.as_secs()),
            Ended::Stuck(time) => format!("the host took nothing on {way} for {} s", time.as_secs()),
            Ended::Outbox(error) => {
                self.away(error.to_string(), true).await;
                return Some(Came::Refusal);
            }
        };
        self.away(why, !is_replaced).await;
        Some(Came::Nothing(after))
    }

    /// There is no session; said when it was not said before.
    async fn away(&self, why: String, is_bad: bool) {
        let is_new = self.standing.send_if_modified(|standing| {
            let is_new = *standing != Standing::Away(why.clone());
            *standing = Standing::Away(why.clone());
            is_new
        });
        if !is_bad {
            tracing::info!("{why}");
        } else if is_new {
            tracing::warn!("{why}; trying again, what is published meanwhile is kept");
            self.outbox.said(&why).await;
        }
    }

    /// Tries the ways one after the other, until one leads to a session; a refusal is what an operator hears of
    /// if none does.
    async fn open(&mut self, line: &mut Option<(Way, Pipe)>) -> Result<(Way, Pipe), NoSession> {
        let (mut failed, mut refused) = (Vec::new(), Vec::new());
        let mut came = Came::Nothing(Duration::ZERO);
        for way in self.ways.in_order() {
            let epoch = format!("{:016x}", chance());
            let kept = line.take_if(|(of, _)| *of == way).map(|(_, pipe)| pipe);
            let error = match self.greet(&way, &epoch, kept, line).await {
                Ok(pipe) => return Ok((way, pipe)),
                Err(ClientError::Refused(reason)) => {
                    let passes =
                        reason != "too-many-wrong-tokens" && may_pass(&ClientError::Refused(reason.clone()));
                    if !passes {
                        came = Came::Refusal;
                    }
                    let what = what_to_do(&reason, &self.identity);
                    refused.push(format!("the broker on {way} refuses this VM: {what}"));
                    continue;
                }
                Err(ClientError::Connect(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            failed.push(format!("{way}: {error}"));
        }
        let why = match (refused.join("; "), failed.join("; ")) {
            (none, failed) if none.is_empty() => format!("no broker answers ({failed})"),
            (refused, none) if none.is_empty() => refused,
            (refused, failed) => format!("{refused} (and nobody answers on {failed})"),
        };
        Err(NoSession { why, came })
    }

    /// Opens one way and says hello.
    async fn greet(
        &self,
        way: &Way,
        epoch: &str,
        kept: Option<Pipe>,
        line: &mut Option<(Way, Pipe)>,
    ) -> Result<Pipe, ClientError> {
        let hello = self.identity.hello(&self.instance, epoch);
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {GREETING:?}"));
        if matches!(way, Way::Stream(_)) {
            let (reader, writer) = self.dial.dial(way).await.map_err(ClientError::Connect)?;
            let greeted = timeout(GREETING, Client::greet(reader, writer, &hello)).await;
            let (client, answer) = greeted.map_err(|_| ClientError::Lost(late()))??;
            let mut epochs = answer.split_ascii_whitespace().filter_map(|word| word.strip_prefix("epoch="));
            if epochs.any(|other| other != epoch) {
                return Err(ClientError::Protocol(format!("it answers somebody else's hello: {answer:?}")));
            }
            let (reader, writer, input) = client.into_parts();
            return Ok(Pipe::new(reader, writer, input));
        }
        let mut pipe = match kept {
            Some(pipe) => pipe,
            None => {
                let (reader, writer) = self.dial.dial(way).await.map_err(ClientError::Connect)?;
                Pipe::new(reader, writer, BytesMut::new())
            }
        };
        match timeout(GREETING, greet_line(&mut pipe, &hello, epoch)).await {
            Ok(Ok(Answer::Open(rest))) => {
                pipe.input = BytesMut::from(&rest[..]);
                Ok(pipe)
            }
            Ok(Ok(Answer::Refused(reason))) => {
                pipe.forget();
                *line = Some((way.clone(), pipe));
                Err(ClientError::Refused(reason))
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let why = "nobody is at the other end of the line";
                Err(ClientError::Lost(io::Error::new(error.kind(), why)))
            }
            Ok(Err(error)) => Err(ClientError::Lost(error)),
            Err(_) => {
                // The host may connect to it later.
                pipe.forget();
                *line = Some((way.clone(), pipe));
                Err(ClientError::Lost(late()))
            }
        }
    }
}

/// Says hello on a line until there is an answer.
async fn greet_line(pipe: &mut Pipe, hello: &str, epoch: &str) -> io::Result<Answer> {
    let (begun, mut greeting) = (Instant::now(), Greeting::new(hello, epoch));
    loop {
        let left = pipe.input.split();
        if let Some(answer) = greeting.take(&left) {
            return Ok(answer);
        }
        // While the other end takes nothing there is no use in saying it again.
        if pipe.is_written()
            && let Some(bytes) = greeting.due(begun.elapsed())
        {
            pipe.push(&bytes);
        }
        let waits = pipe.is_written();
        tokio::select! {
            step = pipe.step() => match step? {
                Step::Read | Step::Wrote => {}
            },
            () = sleep_until(begun + greeting.next()), if waits => {}
        }
    }
}

struct NoSession {
    why: String,
    came: Came,
}

/// A refusal, and what an operator can do.
fn what_to_do(reason: &str, identity: &Identity) -> String {
    let vm = &identity.vm;
    let hint = match reason {
        "bad-name" | "reserved-identity" => "--vm gives it another name".to_owned(),
        "identity-mismatch" => format!(
            "the host knows it under another name than {vm}: --vm must be that of castra.toml on the host"
        ),
        "unknown-vm" => format!("add it to castra.toml on the host: [[vms]] name = \"{vm}\""),
        "unknown-cid" => format!("add its CID to castra.toml on the host: [[vms]] name = \"{vm}\", cid = …"),
        "wrong-token" | "too-many-wrong-tokens" => {
            format!("--token-file must have the token of {vm} in castra.toml on the host")
        }
        "token-over-network" => {
            "a token is not sent over a network in the clear: use vsock, a serial line or a tunnel".into()
        }
        "not-proven" => {
            format!(
                "the host takes only VMs that prove who they are: give {vm} a token in castra.toml on the host, and --token-file here"
            )
        }
        _ => return reason.to_owned(),
    };
    format!("{reason}: {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::agent::discover::Place;
    use crate::core::agent::outbox::Bounds;
    use crate::core::stream::{Reader, Writer};
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, split};

    /// Dials nobody: only `leads` leads anywhere, to a broker that answers each hello and closes the session.
    #[derive(Clone)]
    struct Fake {
        leads: &'static str,
        /// Is there, and refuses.
        refuses: &'static str,
        dialled: Arc<Mutex<Vec<String>>>,
        greeted: Arc<watch::Sender<u32>>,
    }

    impl Dial for Fake {
        async fn dial(&self, way: &Way) -> io::Result<(Reader, Writer)> {
            self.dialled.lock().unwrap().push(way.to_string());
            let refuses = way.to_string() == self.refuses;
            if way.to_string() != self.leads && !refuses {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, theirs) = tokio::io::duplex(100_000);
            let greeted = self.greeted.clone();
            tokio::spawn(async move {
                let (reader, mut writer) = split(theirs);
                let mut lines = BufReader::new(reader).lines();
                writer.write_all(b"castra-broker 0 ready\n").await.unwrap();
                while let Ok(Some(line)) = lines.next_line().await {
                    if refuses {
                        writer.write_all(b"error: unknown-vm\n").await.unwrap();
                        return;
                    }
                    if let Some((_, epoch)) = line.rsplit_once("epoch=") {
                        let close = br#"{"type":"close","reason":"draining","retry_after_ms":0}"#;
                        writer.write_all(format!("ok session=1 epoch={epoch}\n").as_bytes()).await.unwrap();
                        writer.write_all(&(close.len() as u32).to_be_bytes()).await.unwrap();
                        writer.write_all(close).await.unwrap();
                        greeted.send_modify(|n| *n += 1);
                    }
                }
            });
            let (reader, writer) = split(ours);
            Ok((Box::new(reader), Box::new(writer)))
        }
    }

    /// What `auto` dials until there were two sessions.
    async fn dialled(leads: &'static str, refuses: &'static str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(dir.path(), Bounds::default()).unwrap().outbox;
        let (greeted, mut greetings) = watch::channel(0);
        let fake = Fake { leads, refuses, dialled: Arc::default(), greeted: Arc::new(greeted) };
        let (standing, _stands) = watch::channel(Standing::Away("looking".into()));
        let (stop, stopped) = watch::channel(false);
        let times = Times { beat: Duration::from_secs(10), silence: Duration::from_secs(30) };
        let identity = Identity { vm: VmName::parse("web").unwrap(), token: None };
        let ways = Ways::new(&Place::Auto);
        let (dial, of) = (fake.clone(), outbox.clone());
        let link =
            Link { dial, ways, identity, instance: instance(), outbox: of, feed: None, times, standing };
        let sessions = async {
            greetings.wait_for(|n| *n == 2).await.unwrap();
            stop.send_replace(true);
        };
        timeout(Duration::from_secs(20), async { tokio::join!(link.run(stopped), sessions) })
            .await
            .expect("two sessions");
        outbox.close().await;
        fake.dialled.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn auto_tries_one_way_after_the_other_and_then_what_worked() {
        let (vsock, serial, tcp) = ("vsock:2:7070", "serial:org.castra.bus.0", "tcp:10.0.2.2:7070");
        assert_eq!(dialled(tcp, "").await, [vsock, serial, tcp, tcp]);
        assert_eq!(dialled(vsock, "").await, [vsock, vsock]);
        // A line that is open stays open.
        assert_eq!(dialled(serial, "").await, [vsock, serial]);
        // One that refuses stands in no other one's way.
        assert_eq!(dialled(tcp, vsock).await, [vsock, serial, tcp, tcp]);
    }
}
