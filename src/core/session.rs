//! The bus-v1 session. Next: `journal/commit.rs`.
//!
//!     open ──frames──▶ open ──────────────────────────────────────────────┐ acks owed are waited for,
//!       ├ peer closed its side, broken framing, nothing heard for 60 s,    ├▶ close frame ─▶ linger ─▶ over
//!       │ the broker drains, the journal failed                            │
//!       └ the socket took no byte for 10 s while something waited ─────────┴▶ over
//!
//! One task a session; it reads no further while its publishes not yet acked reach the limit. Always holds:
//! acks of publishes come in the order of their frames; a frame that is refused ends nothing; whatever ends
//! the session, its presence ends exactly once, with it (a drop). Owner: `door`, which runs it to its end.

use super::bus::{Bus, Ending};
use super::clock;
use super::event::{Batch, IdSource, Refusal};
use super::events::BusEvent;
use super::identity::Role;
use super::journal::{NotCommitted, Outcome, Receipt};
use super::limits::BATCH_BYTES;
use super::status::Presence;
use super::wire::codec::{CodecError, LENGTH_BYTES, first_frame};
use super::wire::frame::{self, Frame};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

/// A socket's reading half.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// A socket's writing half.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// The read buffer begins so small, and grows with a busy peer.
const READ_MIN: usize = 4 * 1024;
const READ_MAX: usize = 128 * 1024;
/// A socket that takes nothing is recorded at these seconds before it is given up.
const WRITE_RETRIES: [u64; 3] = [1, 3, 6];

/// Why a session ended. The names are the reasons in close frames and records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    PeerClosed,
    FrameEmpty,
    FrameTooLarge,
    IoError,
    HeartbeatTimeout,
    SlowConsumer,
    Draining,
    JournalFailed,
}

impl End {
    fn reason(self) -> &'static str {
        match self {
            End::PeerClosed => "peer-closed",
            End::FrameEmpty => "frame-empty",
            End::FrameTooLarge => "frame-too-large",
            End::IoError => "io-error",
            End::HeartbeatTimeout => "heartbeat-timeout",
            End::SlowConsumer => "slow-consumer",
            End::Draining => "draining",
            End::JournalFailed => "journal-failed",
        }
    }

    /// When it makes sense to come back, in milliseconds.
    fn retry_after_ms(self) -> u64 {
        match self {
            End::Draining | End::JournalFailed => 1000,
            _ => 0,
        }
    }
}

impl From<Ending> for End {
    fn from(ending: Ending) -> Self {
        if ending == Ending::JournalFailed { End::JournalFailed } else { End::Draining }
    }
}

impl From<CodecError> for End {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::Empty => End::FrameEmpty,
            CodecError::TooLarge(_) => End::FrameTooLarge,
            CodecError::Io(_) => End::IoError,
        }
    }
}

/// What is owed for some frames, in their order.
enum Answer {
    /// So many publishes of one event each.
    Events(usize),
    /// One publish of so many events.
    Group(usize),
    /// A refusal.
    Refused(&'static str, Box<Refusal>),
}

/// Frames that were taken together.
struct Round {
    batch: Batch,
    answers: Vec<Answer>,
}

/// A round whose events are on the way to the disk.
struct Owed {
    answers: Vec<Answer>,
    events: usize,
    bytes: usize,
    outcome: Option<oneshot::Receiver<Outcome>>,
}

/// One session.
pub struct Session<'a> {
    bus: &'a Bus,
    presence: Presence,
    role: Role,
    id: u64,
    ids: IdSource,
    reader: Reader,
    writer: Writer,
    /// What was read and not taken yet.
    input: Vec<u8>,
    /// The last read filled the buffer: there was more.
    filled: bool,
    /// What is to be written.
    output: Vec<u8>,
    owed: VecDeque<Owed>,
    /// A batch that came back, for its memory.
    unused: Option<Batch>,
    unacked_events: usize,
    unacked_bytes: usize,
    last_frame: Instant,
    ending: watch::Receiver<Ending>,
}

impl<'a> Session<'a> {
    /// A session of a peer that was let in; `input` is what it sent behind its hello.
    pub fn new(
        bus: &'a Bus,
        presence: Presence,
        role: Role,
        reader: Reader,
        writer: Writer,
        input: Vec<u8>,
    ) -> Self {
        Session {
            bus,
            presence,
            role,
            id: bus.next_session_id(),
            ids: IdSource::new(uuid::Uuid::new_v4().as_u128()),
            reader,
            writer,
            input,
            filled: false,
            output: Vec::new(),
            owed: VecDeque::new(),
            unused: None,
            unacked_events: 0,
            unacked_bytes: 0,
            last_frame: Instant::now(),
            ending: bus.ending.clone(),
        }
    }

    /// Its number in records.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Runs it to its end.
    pub async fn run(mut self) {
        let end = match self.serve().await {
            End::SlowConsumer => End::SlowConsumer,
            end => self.settle(end).await,
        };
        self.signal(end.reason(), "disconnect", "the session ended");
        if end != End::SlowConsumer && end != End::IoError {
            frame::close(&mut self.output, end.reason(), end.retry_after_ms());
            if self.write_out().await.is_ok() {
                linger(self.bus, &mut self.reader, &mut self.writer).await;
            }
        }
    }

    async fn serve(&mut self) -> End {
        let mut ending = self.ending.clone();
        let ended = ended(&mut ending);
        let idle = sleep_until(self.last_frame + self.bus.limits.idle_time);
        tokio::pin!(ended, idle);
        loop {
            if let Err(end) = self.take_frames().await {
                return end;
            }
            if let Err(end) = self.write_out().await {
                return end;
            }
            let may_read = self.has_window();
            self.make_room();
            tokio::select! {
                biased;
                why = &mut ended => return why.into(),
                outcome = front_outcome(&mut self.owed), if !self.owed.is_empty() => {
                    self.answer_front(outcome).await;
                    self.answer_ready().await;
                    if !may_read {
                        // While nothing was read their silence was ours.
                        self.last_frame = Instant::now();
                    }
                }
                read = self.reader.read_buf(&mut self.input), if may_read => match read {
                    Ok(0) => return End::PeerClosed,
                    Ok(_) => self.filled = self.input.len() == self.input.capacity(),
                    Err(_) => return End::IoError,
                },
                () = &mut idle, if may_read => {
                    let due = self.last_frame + self.bus.limits.idle_time;
                    if due <= Instant::now() {
                        return End::HeartbeatTimeout;
                    }
                    idle.as_mut().reset(due);
                }
            }
        }
    }

    /// Room for the next read: twice as much when the last one filled it, little again when all is quiet.
    fn make_room(&mut self) {
        let room = self.input.capacity();
        if self.owed.is_empty() && self.input.is_empty() && room > READ_MIN && !self.filled {
            (self.input, self.unused) = (Vec::with_capacity(READ_MIN), None);
        } else if self.filled || self.input.len() == room {
            self.input.reserve(
                (2 * room).clamp(READ_MIN, READ_MAX).max(self.input.len() + READ_MIN) - self.input.len(),
            );
            self.filled = false;
        }
    }

    fn has_window(&self) -> bool {
        self.unacked_events < self.bus.limits.unacked_events
            && self.unacked_bytes < self.bus.limits.unacked_bytes
    }

    /// Turns what was read into rounds, as far as the window goes.
    async fn take_frames(&mut self) -> Result<(), End> {
        let input = std::mem::take(&mut self.input);
        let (mut taken, mut broken) = (0, None);
        while self.has_window() && broken.is_none() {
            let before = taken;
            let now = clock::wall_ms();
            let mut round = Round { batch: self.unused.take().unwrap_or_default(), answers: Vec::new() };
            while round.batch.bytes() < BATCH_BYTES && self.fits(&round.batch) {
                match first_frame(&input[taken..]) {
                    Ok(Some(body)) => {
                        self.take_frame(body, now, &mut round);
                        taken += LENGTH_BYTES + body.len();
                    }
                    Ok(None) => break,
                    Err(error) => {
                        broken = Some(End::from(error));
                        break;
                    }
                }
            }
            if taken == before {
                break;
            }
            self.last_frame = Instant::now();
            self.send_round(round).await;
        }
        self.input = input;
        self.input.drain(..taken);
        broken.map_or(Ok(()), Err)
    }

    fn fits(&self, batch: &Batch) -> bool {
        self.unacked_events + batch.len() < self.bus.limits.unacked_events
            && self.unacked_bytes + batch.bytes() < self.bus.limits.unacked_bytes
    }

    fn take_frame(&mut self, body: &[u8], now: u64, round: &mut Round) {
        let Round { batch, answers } = round;
        let vm = self.presence.vm();
        let refused = match frame::parse(body) {
            Ok(Frame::Publish(publish)) => {
                match batch.push(&vm.name, &publish, |out| self.ids.write(now, out)) {
                    Ok(()) => {
                        match answers.last_mut() {
                            Some(Answer::Events(n)) => *n += 1,
                            _ => answers.push(Answer::Events(1)),
                        }
                        return;
                    }
                    Err(refusal) => ("publish", refusal),
                }
            }
            Ok(Frame::PublishAll(events)) => {
                let from = batch.len();
                let pushed = events
                    .iter()
                    .try_for_each(|publish| batch.push(&vm.name, publish, |out| self.ids.write(now, out)));
                match pushed {
                    Ok(()) => {
                        batch.join(from);
                        return answers.push(Answer::Group(events.len()));
                    }
                    Err(mut refusal) => {
                        refusal.reason =
                            format!("event {} of {}: {}", batch.len() - from, events.len(), refusal.reason);
                        batch.truncate(from);
                        ("publish", refusal)
                    }
                }
            }
            Ok(Frame::Heartbeat) => {
                vm.heartbeat(clock::boot_ms());
                return frame::heartbeat_ack(&mut self.output);
            }
            Err((kind, refusal)) => (kind, refusal),
        };
        answers.push(Answer::Refused(refused.0, Box::new(refused.1)));
    }

    async fn send_round(&mut self, round: Round) {
        let Round { batch, answers } = round;
        let (events, bytes) = (batch.len(), batch.bytes());
        if answers.is_empty() {
            self.unused = Some(batch);
            return;
        }
        let outcome = if batch.is_empty() {
            None
        } else {
            self.presence.vm().published(events, clock::boot_ms());
            Some(self.bus.publish(batch).await)
        };
        self.unacked_events += events;
        self.unacked_bytes += bytes;
        self.owed.push_back(Owed { answers, events, bytes, outcome });
        self.answer_ready().await;
    }

    /// Answers every round whose outcome is known, in order.
    async fn answer_ready(&mut self) {
        while let Some(front) = self.owed.front_mut() {
            let outcome = match &mut front.outcome {
                None => None,
                Some(receiver) => match receiver.try_recv() {
                    Ok(outcome) => Some(outcome),
                    Err(oneshot::error::TryRecvError::Empty) => return,
                    Err(oneshot::error::TryRecvError::Closed) => Some(Err(NotCommitted::Unknown)),
                },
            };
            self.answer_front(outcome).await;
        }
    }

    async fn answer_front(&mut self, outcome: Option<Outcome>) {
        let Some(owed) = self.owed.pop_front() else { return };
        self.unacked_events -= owed.events;
        self.unacked_bytes -= owed.bytes;
        self.presence.vm().answered(owed.events);
        let out = &mut self.output;
        let receipt = match outcome {
            None => Receipt { first_seq: 0, batch: Batch::default() },
            Some(Ok(receipt)) => receipt,
            Some(Err(reason)) => return answer_all(out, owed.answers, &not_committed(reason)),
        };
        let last_seq = receipt.first_seq + receipt.batch.len() as u64 - u64::from(!receipt.batch.is_empty());
        if self.role == Role::Host && !self.bus.logs.wait_for(last_seq, self.bus.limits.host_log_time).await {
            return answer_behind(out, owed.answers, receipt.first_seq);
        }
        let mut drafts = receipt.batch.drafts().iter().zip(receipt.first_seq..);
        for answer in owed.answers {
            match answer {
                Answer::Events(n) => {
                    drafts
                        .by_ref()
                        .take(n)
                        .for_each(|(draft, seq)| frame::publish_ack(out, &receipt.batch, draft, seq));
                }
                Answer::Group(n) => {
                    let first = drafts.next().map_or(0, |(_, seq)| seq);
                    drafts.by_ref().take(n - 1).for_each(drop);
                    frame::publish_all_ack(out, first, n);
                }
                Answer::Refused(kind, refusal) => frame::error_ack(out, kind, &refusal, None),
            }
        }
        drop(drafts);
        self.unused = Some(receipt.batch).and_then(Batch::emptied);
    }

    /// Writes all of `output`. A socket that takes nothing is recorded, and given up in the end.
    async fn write_out(&mut self) -> Result<(), End> {
        let mut written = 0;
        while written < self.output.len() {
            let since = Instant::now();
            let mut steps = WRITE_RETRIES.iter();
            loop {
                let step = steps.next();
                let wait = step
                    .map_or(self.bus.limits.write_time, |s| Duration::from_secs(*s))
                    .min(self.bus.limits.write_time);
                match timeout_at(since + wait, self.writer.write(&self.output[written..])).await {
                    Ok(Ok(0)) | Ok(Err(_)) => return Err(End::IoError),
                    Ok(Ok(n)) => {
                        written += n;
                        break;
                    }
                    Err(_) if step.is_none() || wait == self.bus.limits.write_time => {
                        return Err(End::SlowConsumer);
                    }
                    Err(_) => {
                        let detail = format!(
                            "{} bytes wait and none was taken for {wait:?}",
                            self.output.len() - written
                        );
                        self.signal(End::SlowConsumer.reason(), "retry", &detail);
                    }
                }
            }
        }
        self.output.clear();
        if self.output.capacity() > READ_MAX {
            self.output = Vec::new();
        }
        Ok(())
    }

    /// Waits for what is owed, so that its acks stand before the close frame.
    async fn settle(&mut self, end: End) -> End {
        while !self.owed.is_empty() {
            let outcome = front_outcome(&mut self.owed).await;
            self.answer_front(outcome).await;
            if let Err(end) = self.write_out().await {
                return end;
            }
        }
        end
    }

    fn signal(&self, reason: &str, action: &'static str, detail: &str) {
        let vm = self.presence.vm().name.as_str();
        let timestamp = clock::wall_ms() / 1000;
        tracing::info!(vm, session = self.id, reason, action, detail, "session");
        self.bus.recorder.bus_event(&BusEvent { timestamp, vm, session: self.id, reason, action, detail });
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // What is still owed is owed to nobody.
        self.presence.vm().answered(self.unacked_events);
    }
}

/// Resolves when sessions must end, with why.
async fn ended(ending: &mut watch::Receiver<Ending>) -> Ending {
    ending.wait_for(|e| *e != Ending::No).await.map_or(Ending::Draining, |e| *e)
}

async fn front_outcome(owed: &mut VecDeque<Owed>) -> Option<Outcome> {
    match owed.front_mut().and_then(|owed| owed.outcome.as_mut()) {
        Some(outcome) => Some(outcome.await.unwrap_or(Err(NotCommitted::Unknown))),
        None => None,
    }
}

fn not_committed(reason: NotCommitted) -> Refusal {
    match reason {
        NotCommitted::DiskFull => Refusal::new(
            "disk-full",
            "the host's disk is full; nothing was stored. Send it again later, publishing resumes by itself",
        ),
        NotCommitted::Unknown => Refusal::new(
            "outcome-unknown",
            "the host's disk failed; the event may be stored or not. Send it again with the same id",
        ),
    }
}

/// Every publish gets this refusal; what was refused already keeps its own.
fn answer_all(out: &mut Vec<u8>, answers: Vec<Answer>, why: &Refusal) {
    for answer in answers {
        match answer {
            Answer::Events(n) => (0..n).for_each(|_| frame::error_ack(out, "publish", why, None)),
            Answer::Group(_) => frame::error_ack(out, "publish", why, None),
            Answer::Refused(kind, refusal) => frame::error_ack(out, kind, &refusal, None),
        }
    }
}

/// Stored, but the logs do not show it yet: each ack says so, with its seq.
fn answer_behind(out: &mut Vec<u8>, answers: Vec<Answer>, mut seq: u64) {
    let why = Refusal::new(
        "logs-behind",
        "stored, do not send it again; the logs will show it when they have caught up",
    );
    for answer in answers {
        match answer {
            Answer::Events(n) => {
                (seq..seq + n as u64).for_each(|seq| frame::error_ack(out, "publish", &why, Some(seq)));
                seq += n as u64;
            }
            Answer::Group(n) => {
                frame::error_ack(out, "publish", &why, Some(seq));
                seq += n as u64;
            }
            Answer::Refused(kind, refusal) => frame::error_ack(out, kind, &refusal, None),
        }
    }
}

/// Ends writing and reads on for a moment: a close with unread bytes would be a reset, and the last words
/// would be lost.
pub async fn linger(bus: &Bus, reader: &mut Reader, writer: &mut Writer) {
    let until = Instant::now() + bus.limits.linger_time;
    if writer.shutdown().await.is_err() {
        return;
    }
    let (mut left, mut sink) = (bus.limits.linger_bytes, [0; 4096]);
    while left > 0 {
        match timeout_at(until, reader.read(&mut sink)).await {
            Ok(Ok(n)) if n > 0 => left = left.saturating_sub(n),
            _ => return,
        }
    }
}
