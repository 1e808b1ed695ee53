//! The bus-v1 session. Next: `journal/commit.rs`.
//!
//! ```text
//! open ──frames──▶ open ──────────────────────────────────────────────┐ acks owed are waited for,
//!   ├ peer closed its side, broken framing, nothing heard for 60 s,    ├▶ close frame ─▶ linger ─▶ over
//!   │ the broker drains, the journal failed                            │
//!   └ the socket took no byte for 10 s while something waited ─────────┴▶ over
//! ```
//!
//! One task a session; it reads no further while its publishes not yet acked reach the limit. Always holds:
//! acks of publishes come in the order of their frames; a frame that is refused ends nothing; whatever ends
//! the session, its presence ends exactly once, with it (a drop). Owner: `door`, which runs it to its end.

use super::bus::{Bus, Ending};
use super::clock;
use super::end::End;
use super::event::Batch;
use super::events::BusEvent;
use super::identity::Role;
use super::ids::IdSource;
use super::journal::{NotCommitted, Outcome, Receipt};
use super::limits::BATCH_BYTES;
use super::owed::{Answer, Aside, Round, answer, answer_behind, answer_not_committed};
use super::status::Presence;
use super::stream::{Reader, Writer, linger};
use super::wire::codec::{LENGTH_BYTES, first_frame};
use super::wire::frame;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

/// The read buffer begins so small, and grows with a busy peer.
const READ_MIN: usize = 4 * 1024;
const READ_MAX: usize = 128 * 1024;
/// A socket that takes nothing is recorded at these seconds before it is given up.
const WRITE_RETRIES: [u64; 3] = [1, 3, 6];

/// A round whose events are on the way to the disk.
struct Owed {
    answers: Vec<Answer>,
    /// Events on the way to the disk.
    in_flight: usize,
    /// What the round takes of the window.
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
    /// Until when a host's acks wait for the logs, while some do.
    patience: Option<Instant>,
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
            patience: None,
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
                linger(&self.bus.limits, &mut self.reader, &mut self.writer).await;
            }
        }
    }

    async fn serve(&mut self) -> End {
        let mut ending = self.ending.clone();
        let ended = ended(&mut ending);
        let idle = sleep_until(self.last_frame + self.bus.limits.idle_time);
        tokio::pin!(ended, idle);
        loop {
            let since = Instant::now();
            if let Err(end) = self.take_frames().await {
                return end;
            }
            if let Err(end) = self.write_out().await {
                return end;
            }
            // While nothing was read their silence was ours.
            self.last_frame += since.elapsed();
            let may_read = self.has_window();
            self.make_room();
            tokio::select! {
                biased;
                why = &mut ended => return why.into(),
                outcome = front_outcome(&mut self.owed), if !self.owed.is_empty() => {
                    self.answer_front(outcome).await;
                    self.answer_ready().await;
                    if !may_read {
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
            (self.input, self.unused, self.output) = (Vec::with_capacity(READ_MIN), None, Vec::new());
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
            let mut round = Round::reusing(self.unused.take());
            while round.bytes() < BATCH_BYTES && self.fits(&round) {
                match first_frame(&input[taken..]) {
                    Ok(Some(body)) => {
                        if let Some(aside) = round.take(body, &self.presence.vm().name, &mut self.ids, now) {
                            self.answer_aside(aside);
                        }
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
                self.unused = Some(round.batch);
                break;
            }
            self.last_frame = Instant::now();
            self.send_round(round).await;
        }
        self.input = input;
        self.input.drain(..taken);
        broken.map_or(Ok(()), Err)
    }

    fn answer_aside(&mut self, aside: Aside) {
        match aside {
            Aside::Heartbeat => {
                self.presence.vm().heartbeat(clock::boot_ms());
                frame::heartbeat_ack(&mut self.output);
            }
            Aside::Forget(name) => match self.bus.forget(self.role, &name) {
                Ok(()) => frame::forget_ack(&mut self.output),
                Err(refusal) => frame::error_ack(&mut self.output, "forget", &refusal, None),
            },
        }
    }

    fn fits(&self, round: &Round) -> bool {
        self.unacked_events + round.events() < self.bus.limits.unacked_events
            && self.unacked_bytes + round.bytes() < self.bus.limits.unacked_bytes
    }

    async fn send_round(&mut self, round: Round) {
        let (events, bytes) = (round.events(), round.bytes());
        let Round { batch, answers, .. } = round;
        if answers.is_empty() {
            self.unused = Some(batch);
            return;
        }
        let in_flight = batch.len();
        let outcome = if batch.is_empty() {
            None
        } else {
            self.presence.vm().published(in_flight, clock::boot_ms());
            Some(self.bus.publish(self.id, batch).await)
        };
        self.unacked_events += events;
        self.unacked_bytes += bytes;
        if self.owed.is_empty() {
            self.patience = None;
        }
        self.owed.push_back(Owed { answers, in_flight, events, bytes, outcome });
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
        self.presence.vm().answered(owed.in_flight);
        let out = &mut self.output;
        let receipt = match outcome {
            None => Receipt::default(),
            Some(Ok(receipt)) => receipt,
            Some(Err(why)) => return answer_not_committed(out, owed.answers, why),
        };
        let last_seq = (receipt.first_seq + receipt.batch.len() as u64).saturating_sub(1);
        if self.role == Role::Host {
            // One wait for all that is owed: the logs are behind for all of it or for none.
            let until = *self.patience.get_or_insert(Instant::now() + self.bus.limits.host_log_time);
            if !self.bus.logs.wait_for(last_seq, until.saturating_duration_since(Instant::now())).await {
                return answer_behind(out, owed.answers, receipt.first_seq);
            }
            self.patience = None;
        }
        answer(out, owed.answers, &receipt);
        self.unused = receipt.batch.emptied();
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
        let in_flight = self.owed.iter().map(|owed| owed.in_flight).sum();
        self.presence.vm().answered(in_flight);
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
