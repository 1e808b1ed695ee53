//! An event on its way into the outbox: checked, with its id, as the frame that will be sent.
//!
//! Always holds: what the broker would refuse for its form is refused here, by the broker's own code and with its
//! codes, so that nothing is kept that can never be sent. Owner: the local door.

use crate::core::event::{Batch, Publish, Text};
use crate::core::identity::VmName;
use crate::core::ids::IdSource;
use crate::core::refusal::Refusal;
use crate::core::topic::Topic;
use crate::core::wire::frame::parse_event;
use crate::core::wire::publish::write_body;

/// One event to be kept. Its frame is made once, and is what the broker is sent however often it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub(super) id: String,
    pub(super) topic: String,
    pub(super) frame: Vec<u8>,
}

impl Put {
    /// Checks an event that `vm` publishes. One without an id is given a new one of `ids`.
    ///
    /// # Errors
    /// What the broker would refuse it with (`bad-topic`, `event-too-large`, …).
    pub fn new(vm: &VmName, event: Publish<'_>, ids: &mut IdSource, now_ms: u64) -> Result<Self, Refusal> {
        let id = match &event.id {
            Some(Text(id)) => id.clone().into_owned(),
            None => {
                let mut id = Vec::new();
                ids.write(now_ms, &mut id);
                String::from_utf8_lossy(&id).into_owned()
            }
        };
        let topic = event.topic.as_ref().map_or_else(|| Topic::BROADCAST.as_str().into(), |t| t.0.clone());
        let topic = String::from(topic);
        let event = Publish { id: Some(Text((&id).into())), ..event };
        let mut frame = Vec::new();
        write_body(&mut frame, &event)?;
        Batch::default().push(vm, &event, |_| {})?;
        Ok(Put { id, topic, frame })
    }

    /// The same of a line: one JSON object with the fields of a publish. `type` and what is unknown are ignored.
    ///
    /// # Errors
    /// Those of [`Put::new`], and what is wrong with the line (`bad-json`, `not-an-object`, …).
    pub fn parse(vm: &VmName, line: &[u8], ids: &mut IdSource, now_ms: u64) -> Result<Self, Refusal> {
        Put::new(vm, parse_event(line)?, ids, now_ms)
    }

    /// The publisher's id, or the one that it was given.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it is about.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The body of its publish frame.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }
}
