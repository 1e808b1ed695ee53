//! What one commit made durable.
//!
//! Always holds: the bytes are those that stand in the segment; records that are no events are among them and are not
//! handed out. Owner: `writer.rs` makes them; the router and the logs read them as long as they like.

use crate::core::event::{Event, Layout};
use std::sync::Arc;

/// Events that one fdatasync made durable, for the views.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    pub(super) bytes: Vec<u8>,
    pub(super) events: Vec<Placed>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub seq: u64,
    pub ts: u64,
    pub at: u32,
    pub len: u32,
    pub layout: Layout,
}

impl Committed {
    /// The events, in order.
    pub fn events(&self) -> impl Iterator<Item = Event<'_>> {
        self.events_from(0)
    }

    fn event(&self, placed: &Placed) -> Event<'_> {
        let line = &self.bytes[placed.at as usize..(placed.at + placed.len) as usize];
        Event { seq: placed.seq, ts: placed.ts, line, layout: placed.layout }
    }

    /// The events but for so many, in order.
    pub fn events_from(&self, skip: usize) -> impl Iterator<Item = Event<'_>> {
        self.events.get(skip..).unwrap_or_default().iter().map(|e| self.event(e))
    }

    /// The first event's seq.
    pub fn first_seq(&self) -> Option<u64> {
        self.events.first().map(|e| e.seq)
    }

    /// The last event's seq.
    pub fn last_seq(&self) -> Option<u64> {
        self.events.last().map(|e| e.seq)
    }

    /// How much it holds, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// The chunk being filled; begins as a used one that nobody reads any more.
pub(super) fn free_chunk<'a>(
    chunk: &'a mut Arc<Committed>,
    used: &mut Vec<Arc<Committed>>,
) -> &'a mut Committed {
    if chunk.bytes.is_empty()
        && let Some(i) = used.iter_mut().position(|old| Arc::get_mut(old).is_some())
    {
        *chunk = used.swap_remove(i);
        if let Some(old) = Arc::get_mut(chunk) {
            old.bytes.clear();
            old.events.clear();
        }
        // Those still read are freed by their readers; only a few are kept for reuse.
        used.truncate(4);
    }
    Arc::make_mut(chunk)
}
