//! The way from the router to one session: a bounded queue.
//!
//! ```text
//! router ──offer──▶ [chunk, chunk, left, chunk …] ──pop──▶ session ──▶ socket
//!                    └ full: the subscription leaves here and reads the journal from there on
//! ```
//!
//! Always holds: at most so many events and bytes wait, in one queue and in all (invariant 6), but for one chunk that
//! finds nothing waiting;
//! whoever offers never waits (invariant 7); a chunk that found no room is followed by no other of its subscription.
//! Owner: the session; the router has it as long as it subscribes.

use super::interest::Chunk;
use crate::core::limits::GROUP_ANSWERS;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What a session takes out.
#[derive(Debug)]
pub enum Item {
    /// Events of the subscription of that number.
    Chunk(u32, Chunk),
    /// The subscription of that number gets no more here: what is from this seq on is to be read from the journal.
    Left(u32, u64),
    /// Deliveries to the member of a group that has this number: so many events, and their frames; or an answer to it.
    Held(u64, Bytes, usize),
}

/// The queue of one session.
#[derive(Debug)]
pub struct Outlet {
    queue: Mutex<Queue>,
    ready: Notify,
    most_events: usize,
    most_bytes: usize,
    room: Arc<Room>,
    /// Answers that wait for the disk before they come here.
    awaited: AtomicUsize,
    /// What a group took out last has not arrived yet. Set under the queue's lock.
    in_hand: AtomicBool,
}

/// The place of an answer that waits for the disk. Until it is dropped it counts against its session.
#[derive(Debug)]
pub struct PendingAnswer {
    outlet: Arc<Outlet>,
    answers: usize,
}

impl PendingAnswer {
    /// The session's queue.
    pub fn outlet(&self) -> &Outlet {
        &self.outlet
    }
}

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        let before = self.outlet.awaited.fetch_sub(self.answers, Relaxed);
        if (GROUP_ANSWERS..GROUP_ANSWERS + self.answers).contains(&before) {
            // The session may be read on.
            self.outlet.wake();
        }
    }
}

/// What waits in all queues together.
#[derive(Debug)]
pub struct Room {
    most_bytes: usize,
    bytes: AtomicUsize,
}

impl Room {
    /// Room for so many bytes.
    pub fn new(most_bytes: usize) -> Arc<Self> {
        Arc::new(Room { most_bytes, bytes: AtomicUsize::new(0) })
    }
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    events: usize,
    bytes: usize,
    /// The first seq that found no room, of what was not looked at yet and still stands in the queue.
    overflowed: Option<u64>,
    /// How many have left and were not taken out yet.
    lefts: usize,
    /// What was held filled the queue, and nobody was told yet that it has room again.
    pressed: bool,
    relieved: bool,
}

impl Outlet {
    /// An empty queue for so many events and bytes, which takes of `room` what waits in it.
    pub fn new(most_events: usize, most_bytes: usize, room: Arc<Room>) -> Self {
        Outlet {
            queue: Mutex::default(),
            ready: Notify::new(),
            most_events,
            most_bytes,
            room,
            awaited: AtomicUsize::new(0),
            in_hand: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `chunks` of the subscription `id` in, as far as there is room; false when there was none for all of them,
    /// and the subscription has left.
    pub fn offer(&self, id: u32, chunks: &[Chunk]) -> bool {
        let mut queue = self.lock();
        for chunk in chunks {
            let bytes = chunk.frames.len();
            let has_room = queue.events + chunk.events <= self.most_events
                && queue.bytes + bytes <= self.most_bytes
                && self.room.bytes.load(Relaxed) + bytes <= self.room.most_bytes;
            if !has_room && queue.events > 0 {
                queue.leave(id, chunk.from);
                self.ready.notify_one();
                return false;
            }
            queue.events += chunk.events;
            queue.bytes += bytes;
            self.room.bytes.fetch_add(bytes, Relaxed);
            queue.items.push_back(Item::Chunk(id, chunk.clone()));
        }
        self.ready.notify_one();
        true
    }

    /// Puts in what a group hands to its member; false when it is full by now: the member gets no more until
    /// [`Outlet::take_relief`] says so.
    pub fn hold(&self, member: u64, frames: Bytes, events: usize) -> bool {
        let mut queue = self.lock();
        queue.events += events;
        queue.bytes += frames.len();
        self.room.bytes.fetch_add(frames.len(), Relaxed);
        queue.items.push_back(Item::Held(member, frames, events));
        let is_full = queue.bytes >= self.most_bytes;
        queue.pressed |= is_full;
        drop(queue);
        self.ready.notify_one();
        !is_full
    }

    /// Whether it is full for members of groups.
    pub fn is_full(&self) -> bool {
        self.lock().pressed
    }

    /// Whether it was full for members of groups and has room again since the last call.
    pub fn take_relief(&self) -> bool {
        std::mem::take(&mut self.lock().relieved)
    }

    /// The subscription `id` leaves at `from`: the router could not keep up.
    pub fn leave(&self, id: u32, from: u64) {
        self.lock().leave(id, from);
        self.ready.notify_one();
    }

    /// The next item, if there is one.
    pub fn pop(&self) -> Option<Item> {
        let mut queue = self.lock();
        let item = queue.items.pop_front();
        if matches!(item, Some(Item::Chunk(..) | Item::Left(..))) {
            self.in_hand.store(true, Relaxed);
        }
        match &item {
            Some(Item::Chunk(_, chunk)) => {
                queue.events -= chunk.events;
                queue.bytes -= chunk.frames.len();
                self.room.bytes.fetch_sub(chunk.frames.len(), Relaxed);
            }
            Some(Item::Held(_, frames, events)) => {
                queue.events -= events;
                queue.bytes -= frames.len();
                self.room.bytes.fetch_sub(frames.len(), Relaxed);
            }
            Some(Item::Left(..)) => {
                queue.lefts -= 1;
                if queue.lefts == 0 {
                    queue.overflowed = None;
                }
            }
            None => {}
        }
        if queue.pressed && queue.bytes < self.most_bytes {
            (queue.pressed, queue.relieved) = (false, true);
        }
        item
    }

    /// Throws away what waits.
    pub fn clear(&self) {
        while self.pop().is_some() {}
    }

    /// Whether something waits.
    pub fn is_empty(&self) -> bool {
        self.lock().items.is_empty()
    }

    /// What was taken out has arrived.
    pub fn arrived(&self) {
        self.in_hand.store(false, Relaxed);
    }

    /// Nothing waits, and what was taken out has arrived.
    pub fn is_idle(&self) -> bool {
        self.lock().items.is_empty() && !self.in_hand.load(Relaxed)
    }

    /// More waits than anybody hands out at a time: whoever sends for more is taken from no longer.
    pub fn is_stuffed(&self) -> bool {
        self.lock().bytes > 2 * self.most_bytes
    }

    /// An answer waits for the disk.
    pub fn awaits(self: &Arc<Self>) -> PendingAnswer {
        self.awaits_as(1)
    }

    /// An answer that all further frames of the session wait for.
    pub fn awaits_first(self: &Arc<Self>) -> PendingAnswer {
        self.awaits_as(GROUP_ANSWERS)
    }

    fn awaits_as(self: &Arc<Self>, answers: usize) -> PendingAnswer {
        self.awaited.fetch_add(answers, Relaxed);
        PendingAnswer { outlet: self.clone(), answers }
    }

    /// So many answers wait for the disk that the session is not read on.
    pub fn awaits_enough(&self) -> bool {
        self.awaited.load(Relaxed) >= GROUP_ANSWERS
    }

    /// Events that wait.
    pub fn events(&self) -> usize {
        self.lock().events
    }

    /// The first seq that found no room since the last call.
    pub fn take_overflow(&self) -> Option<u64> {
        self.lock().overflowed.take()
    }

    /// Resolves when something was put in since it last did.
    pub async fn ready(&self) {
        self.ready.notified().await;
    }

    /// The next [`Outlet::ready`] resolves at once.
    pub fn wake(&self) {
        self.ready.notify_one();
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Queue {
    fn leave(&mut self, id: u32, from: u64) {
        self.items.push_back(Item::Left(id, from));
        self.lefts += 1;
        self.overflowed.get_or_insert(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(from: u64, bytes: usize) -> Chunk {
        Chunk { from, to: from, events: 1, expires: false, frames: vec![b'x'; bytes].into() }
    }

    #[test]
    fn what_finds_no_room_leaves_a_mark_behind_what_did() {
        let outlet = Outlet::new(2, 1000, Room::new(1000));
        assert!(!outlet.offer(7, &[chunk(1, 10), chunk(2, 10), chunk(3, 10), chunk(4, 10)]));
        assert_eq!((outlet.events(), outlet.take_overflow(), outlet.take_overflow()), (2, Some(3), None));
        assert!(matches!(outlet.pop(), Some(Item::Chunk(7, Chunk { from: 1, .. }))));
        assert!(matches!(outlet.pop(), Some(Item::Chunk(7, Chunk { from: 2, .. }))));
        assert!(matches!(outlet.pop(), Some(Item::Left(7, 3))));
        assert!(outlet.pop().is_none() && outlet.is_empty());
        // Who has left and was seen to is no overflow any more.
        outlet.leave(7, 9);
        assert!(outlet.pop().is_some() && outlet.take_overflow().is_none());
    }

    #[test]
    fn all_queues_share_one_room() {
        let room = Room::new(100);
        let [one, two] = [(); 2].map(|()| Outlet::new(100, 100, room.clone()));
        assert!(one.offer(1, &[chunk(1, 60)]));
        // A first chunk always fits, a second one only where there is room.
        assert!(!two.offer(1, &[chunk(1, 30), chunk(2, 30)]));
        assert_eq!((one.events(), two.events()), (1, 1));
        drop(one);
        assert!(two.offer(2, &[chunk(3, 60)]));
        two.clear();
        assert_eq!(room.bytes.load(Relaxed), 0);
    }
}
