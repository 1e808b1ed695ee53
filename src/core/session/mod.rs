//! The bus-v1 session. Next: `journal/commit.rs` for what is published, `delivery/router.rs` for what comes back.
//!
//! `state.rs` has the drawing. One task a session, which reads, writes and waits for the disk side by side:
//! `publishing.rs` is the way to the journal, `subscribing.rs` the way back, `grouping.rs` the same for groups, `asking.rs` what is asked of the newest events per key, `output.rs` what is to be written, `pulse.rs`
//! when it takes too long. Always holds: a frame that is refused ends nothing; whatever ends the session, its presence
//! and its subscriptions end exactly once, with the state open and not with the connection. Owner: `door`, which runs
//! it to its end.

mod asking;
mod grouping;
mod keeping;
mod output;
mod publishing;
mod pulse;
mod rights;
pub mod state;
mod subscribing;

use super::bus::{Bus, Ending};
use super::chance::chance;
use super::end::End;
use super::events::Signals;
use super::ids::IdSource;
use super::instances::Place;
use super::limits::OUTPUT_BYTES;
use super::policy::{Admitted, Claim};
use super::signals::Signal;
use super::status::{Presence, Vm};
use super::stream::{Reader, Writer, linger};
use super::wire::frame;
use crate::core::awake::{Instant, sleep_until};
use asking::Asking;
use grouping::Grouping;
use output::{Output, SLICES};
use publishing::Publishing;
use pulse::{Due, Pulse};
use rights::Rights;
use state::{Input, State};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use subscribing::Subscribing;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{self, Sleep};

/// The read buffer begins so small, and grows with a busy peer.
const READ_MIN: usize = 4 * 1024;
const READ_MAX: usize = 128 * 1024;
/// Stands for never.
const LONG: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// One session.
pub struct Session<'a> {
    bus: &'a Bus,
    vm: Arc<Vm>,
    /// Until it ends for everybody but the peer.
    presence: Option<Presence>,
    rights: Rights,
    id: u64,
    signals: Signals,
    ids: IdSource,
    begun: Instant,
    pulse: Pulse,
    reader: Reader,
    writer: Writer,
    /// What was read and not taken yet.
    input: Vec<u8>,
    /// The last read filled the buffer: there was more.
    filled: bool,
    /// A whole frame of it waits.
    is_held: bool,
    output: Output,
    publishing: Publishing,
    subscribing: Subscribing,
    grouping: Grouping,
    asking: Asking,
    ending: watch::Receiver<Ending>,
}

impl<'a> Session<'a> {
    /// A session of a peer that was let in and may want heartbeats; `input` is what it sent behind its hello.
    pub fn new(
        bus: &'a Bus,
        presence: Presence,
        claim: Claim,
        admitted: Admitted,
        wants_heartbeats: bool,
        (reader, writer): (Reader, Writer),
        input: Vec<u8>,
    ) -> Self {
        let limits = &bus.limits;
        let (id, vm) = (bus.next_session_id(), presence.vm().clone());
        // In time for an answer, however the two are set.
        let heartbeat_time = wants_heartbeats.then_some(limits.heartbeat_time.min(limits.idle_time / 3));
        Session {
            bus,
            rights: Rights::new(claim, admitted, bus.policy.clone()),
            id,
            signals: Signals::new(bus.recorder.clone(), vm.name.clone(), id),
            ids: IdSource::new(chance()),
            begun: Instant::now(),
            pulse: Pulse::new(limits.idle_time, limits.write_time, heartbeat_time),
            reader,
            writer,
            input,
            filled: false,
            is_held: false,
            output: Output::default(),
            publishing: Publishing::new(vm.clone()),
            subscribing: Subscribing::new(bus.delivery.clone(), presence.standing().clone(), limits),
            grouping: Grouping::default(),
            asking: Asking::default(),
            ending: bus.ending.clone(),
            vm,
            presence: Some(presence),
        }
    }

    /// Its number in records.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Runs it to its end, which is when its `turn` is over at the latest.
    pub async fn run(mut self, turn: Option<Place>) {
        let mut end = self.serve(turn.as_ref()).await;
        drop(turn);
        let mut state = State::Open.next(Input::Ended(end));
        // To everybody but the peer it is gone.
        self.grouping.clear();
        self.asking = Asking::default();
        self.subscribing.clear();
        drop(self.presence.take());
        let until = Instant::now() + self.bus.limits.write_time;
        if state == State::Settling {
            let settled = self.settle(until).await;
            end = settled.err().unwrap_or(end);
            state = state.next(settled.map_or_else(Input::Ended, |()| Input::Settled));
        }
        let mut is_told = false;
        if state == State::Closing {
            self.output.own(|out| frame::close(out, end.reason(), end.retry_after_ms()));
            is_told = self.flush(until).await.is_ok();
        }
        let how =
            if is_told { "the session ended" } else { "the session ended, and the peer could not be told" };
        self.signals.say(Signal::Ended(end), how);
        if is_told {
            linger(&self.bus.limits, &mut self.reader, &mut self.writer).await;
        }
    }

    /// Since it began.
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    async fn serve(&mut self, turn: Option<&Place>) -> End {
        let (mut ending, outlet) = (self.ending.clone(), self.subscribing.outlet.clone());
        let ended = ended(&mut ending);
        let alarm = time::sleep_until((self.begun + LONG).timer());
        tokio::pin!(ended, alarm);
        loop {
            // Publishes may wait here for a place.
            self.pulse.reads(false, self.now());
            if let Err(end) = self.take_frames(turn).await {
                return end;
            }
            self.deliver();
            if let Err(end) = self.write_some().await {
                return end;
            }
            // Frames that were read already and had to wait may wait for nothing else.
            if self.is_held && self.may_take() {
                continue;
            }
            // What is left when the output has room must not wait for something to happen.
            if self.output.len() < OUTPUT_BYTES {
                self.subscribing.read_on(&self.bus.latest);
                if !outlet.is_empty() {
                    outlet.wake();
                }
            }
            let may_read = !self.is_held && self.may_take();
            self.pulse.reads(may_read, self.now());
            self.make_room();
            self.arm(alarm.as_mut());
            tokio::select! {
                biased;
                why = &mut ended => return why.into(),
                () = replaced(turn) => return End::Replaced,
                () = self.rights.changed() => if let Err(end) = self.take_policy() {
                    return end;
                },
                written = poll_fn(|cx| poll_write(&mut self.writer, &self.output, cx)), if !self.output.is_empty() => {
                    if let Err(end) = self.wrote(written) {
                        return end;
                    }
                }
                outcome = self.publishing.outcome(), if !self.publishing.owed.is_empty() => {
                    self.answer_front(outcome).await;
                    self.answer_ready().await;
                }
                read = self.reader.read_buf(&mut self.input), if may_read => match read {
                    Ok(0) => return End::PeerClosed,
                    Ok(_) => self.filled = self.input.len() == self.input.capacity(),
                    // A door says so of a way in that the operator took back; no socket does.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return End::IdentityRevoked,
                    Err(_) => return End::IoError,
                },
                done = self.subscribing.done() => {
                    if let Err(end) = self.take_done(done) {
                        return end;
                    }
                }
                answer = self.asking.answer() => self.output.share(answer.into()),
                () = outlet.ready() => {}
                () = &mut alarm => if let Err(end) = self.look() {
                    return end;
                },
            }
        }
    }

    /// Sets the alarm when something is due before it rings, or it rang.
    fn arm(&self, mut alarm: Pin<&mut Sleep>) {
        let due = (self.begun + self.pulse.next().min(LONG)).timer();
        if due < alarm.deadline() || alarm.is_elapsed() {
            alarm.as_mut().reset(due);
        }
    }

    /// Does what is due.
    fn look(&mut self) -> Result<(), End> {
        while let Some(due) = self.pulse.look(self.now()) {
            match due {
                Due::Heartbeat => {
                    self.output.own(frame::heartbeat);
                    self.signals.say(Signal::HeartbeatSent, "nothing was heard for a while");
                }
                Due::Silent => return Err(End::HeartbeatTimeout),
                Due::Retry(step, after) => {
                    let bytes = self.output.len();
                    let detail = format_args!("{bytes} bytes wait and none was taken for {after:?}");
                    self.signals.say(Signal::WriteRetry(step), detail);
                }
                Due::Slow => return Err(End::SlowConsumer),
            }
        }
        Ok(())
    }

    /// Room for the next read: twice as much when the last one filled it, little again when all is quiet.
    fn make_room(&mut self) {
        let room = self.input.capacity();
        if self.publishing.owed.is_empty() && self.input.is_empty() && room > READ_MIN && !self.filled {
            (self.input, self.publishing.unused) = (Vec::with_capacity(READ_MIN), None);
            self.output.shrink();
        } else if self.filled || self.input.len() == room {
            self.input.reserve(
                (2 * room).clamp(READ_MIN, READ_MAX).max(self.input.len() + READ_MIN) - self.input.len(),
            );
            self.filled = false;
        }
    }

    /// Writes as much as the socket takes at once.
    async fn write_some(&mut self) -> Result<(), End> {
        while !self.output.is_empty() {
            let written = poll_fn(|cx| match poll_write(&mut self.writer, &self.output, cx) {
                Poll::Ready(written) => Poll::Ready(Some(written)),
                Poll::Pending => Poll::Ready(None),
            });
            match written.await {
                Some(written) => self.wrote(written)?,
                None => {
                    self.pulse.sticks(self.now());
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn wrote(&mut self, written: io::Result<usize>) -> Result<(), End> {
        match written {
            Ok(0) | Err(_) => Err(End::IoError),
            Ok(written) => {
                self.output.advance(written);
                self.pulse.flows();
                Ok(())
            }
        }
    }

    /// Writes all of the output, before `until`.
    async fn flush(&mut self, until: Instant) -> Result<(), End> {
        let alarm = time::sleep_until((self.begun + LONG).timer());
        tokio::pin!(alarm);
        // Nothing is read any more: only the socket's steps are due.
        self.pulse.reads(false, self.now());
        loop {
            self.write_some().await?;
            if self.output.is_empty() {
                return Ok(());
            }
            self.arm(alarm.as_mut());
            tokio::select! {
                written = poll_fn(|cx| poll_write(&mut self.writer, &self.output, cx)) => self.wrote(written)?,
                () = &mut alarm => self.look()?,
                () = sleep_until(until) => return Err(End::SlowConsumer),
            }
        }
    }

    /// Waits for what is owed, so that its acks stand before the close frame.
    async fn settle(&mut self, until: Instant) -> Result<(), End> {
        while !self.publishing.owed.is_empty() {
            let outcome = self.publishing.outcome().await;
            self.answer_front(outcome).await;
            self.flush(until).await?;
        }
        Ok(())
    }
}

/// Writes some of `output`, in one call.
fn poll_write(writer: &mut Writer, output: &Output, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let mut slices = [IoSlice::new(b""); SLICES];
    let count = output.slices(&mut slices);
    Pin::new(writer).poll_write_vectored(cx, &slices[..count])
}

/// Resolves when the same program has begun another session.
async fn replaced(turn: Option<&Place>) {
    match turn {
        Some(turn) => turn.ended().await,
        None => std::future::pending().await,
    }
}

/// Resolves when sessions must end, with why.
async fn ended(ending: &mut watch::Receiver<Ending>) -> Ending {
    ending.wait_for(|e| *e != Ending::No).await.map_or(Ending::Draining, |e| *e)
}
