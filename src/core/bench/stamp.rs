//! The events of a bench: made once, and stamped with their number and the moment they were due.
//!
//! A payload is a JSON string of the size that was asked for: the run, the event's number and its moment in digits
//! of a fixed width, then `x`. So it is written by copying, and read without a JSON tree. Always holds: what is no
//! event of this run is none. Pure. Owner: the publishers write stamps, the subscribers read them.

use crate::core::event::{Batch, Publish, Text, string_body};
use crate::core::identity::VmName;
use crate::core::limits::NAME_BYTES;
use crate::core::refusal::Refusal;
use crate::core::wire::publish::write_body;
use serde_json::value::RawValue;

/// The shortest payload, in bytes: the quotes of a string.
pub const PAYLOAD_MIN: usize = 2;
/// The shortest payload that has room for a stamp, in bytes.
pub const STAMPED_MIN: usize = 2 + STAMP;

const RUN: usize = 8;
const NUMBER: usize = 12;
const MOMENT: usize = 16;
/// `run-number-moment`.
const STAMP: usize = RUN + 1 + NUMBER + 1 + MOMENT;
/// As long as the ids that the broker gives.
const ID: [u8; 36] = [b'0'; 36];

/// What one run publishes.
#[derive(Clone, Debug)]
pub struct Template {
    frame: Vec<u8>,
    /// Where the stamp begins, if there is room for one.
    stamp: Option<usize>,
    run: [u8; RUN],
    size: usize,
    ack: Vec<u8>,
}

impl Template {
    /// Events about `topic` with payloads of `size` bytes ([`PAYLOAD_MIN`] at least) of the run `run`.
    ///
    /// # Errors
    /// What the broker would refuse such an event with, whatever the publisher's name.
    pub fn new(topic: &str, size: usize, run: u32) -> Result<Self, Refusal> {
        let mut digits = [0; RUN];
        write_hex(&mut digits, u64::from(run));
        let fill = "x".repeat(size.saturating_sub(PAYLOAD_MIN));
        let payload = RawValue::from_string(format!("\"{fill}\""))
            .map_err(|error| Refusal::new("bad-json", error.to_string()))?;
        let publish =
            Publish { topic: Some(Text(topic.into())), payload: Some(&payload), ..Publish::default() };
        let mut body = Vec::new();
        write_body(&mut body, &publish)?;
        if let Ok(longest) = VmName::parse(&"x".repeat(NAME_BYTES)) {
            Batch::default().push(&longest, &publish, |out| out.extend_from_slice(&ID))?;
        }
        let mut frame = (body.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(&body);
        let stamp = frame.len().checked_sub(size).filter(|_| size >= STAMPED_MIN);
        if let Some(at) = stamp {
            frame[at..at + STAMP].fill(b'-');
            frame[at..at + RUN].copy_from_slice(&digits);
        }
        let mut ack = b"{\"type\":\"ack\",\"ack\":\"publish\",\"status\":\"ok\",\"topic\":\"".to_vec();
        string_body(&mut ack, topic);
        ack.extend_from_slice(b"\",\"seq\":");
        Ok(Template { frame, stamp, run: digits, size, ack })
    }

    /// The bytes of one frame, its length included.
    pub fn frame_bytes(&self) -> usize {
        self.frame.len()
    }

    /// Appends the frame of event `number`, due at `moment` (nanoseconds since the run began).
    pub fn write(&self, out: &mut Vec<u8>, number: u64, moment: u64) {
        let frame = out.len();
        out.extend_from_slice(&self.frame);
        if let Some(stamp) = self.stamp {
            let at = frame + stamp + RUN + 1;
            write_hex(&mut out[at..at + NUMBER], number);
            let at = at + NUMBER + 1;
            write_hex(&mut out[at..at + MOMENT], moment);
        }
    }

    /// Number and moment of an event, given the body of its frame; `None` when it is not of this run.
    pub fn read(&self, body: &[u8]) -> Option<(u64, u64)> {
        // The payload is the last field, unless a later broker has one behind it.
        let usual = body.len().checked_sub(self.size).and_then(|at| body.get(at..at + STAMP));
        let stamp = match usual {
            Some(stamp) if stamp.starts_with(&self.run) => stamp,
            _ => body.windows(STAMP).find(|window| window.starts_with(&self.run))?,
        };
        let number = read_hex(&stamp[RUN + 1..RUN + 1 + NUMBER])?;
        Some((number, read_hex(&stamp[STAMP - MOMENT..])?))
    }

    /// The seq in an ack that looks as the broker's acks usually do; `None` when it has to be parsed.
    pub fn acked_seq(&self, body: &[u8]) -> Option<u64> {
        let digits = body.strip_prefix(self.ack.as_slice())?;
        let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
    }
}

/// The low digits of `value`, as many as there is room for.
fn write_hex(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

fn read_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, digit| Some(value << 4 | u64::from((*digit as char).to_digit(16)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::limits::EVENT_BYTES;
    use crate::core::wire::codec::first_frame;
    use crate::core::wire::frame::{self, Frame, publish_ack};
    use proptest::prelude::*;

    /// The event that the broker makes of a frame.
    fn encoded(frame: &[u8]) -> (Batch, String) {
        let Ok(Frame::Publish(publish)) = frame::parse(first_frame(frame).unwrap().unwrap()) else {
            panic!()
        };
        let mut batch = Batch::default();
        batch.push(&VmName::parse("bench-1").unwrap(), &publish, |out| out.extend_from_slice(&ID)).unwrap();
        let tail = String::from_utf8(batch.tail(&batch.drafts()[0]).to_vec()).unwrap();
        (batch, tail.trim_end().to_owned())
    }

    proptest! {
        #[test]
        fn what_was_stamped_is_read(size in PAYLOAD_MIN..600, run: u32, number in 0u64..1 << 48, moment: u64) {
            let template = Template::new("a.b", size, run).unwrap();
            let mut frame = Vec::new();
            template.write(&mut frame, number, moment);
            prop_assert_eq!(frame.len(), template.frame_bytes());
            let (batch, tail) = encoded(&frame);
            let payload = tail.split("\"payload\":").nth(1).unwrap();
            prop_assert_eq!(payload.len(), size + 1);
            let want = (size >= STAMPED_MIN).then_some((number, moment));
            for event in [
                format!("{{\"type\":\"event\",\"sub\":\"bench\",\"seq\":1,\"ts\":2,{tail}"),
                format!("{{\"type\":\"event\",{},\"later\":true}}", tail.strip_suffix('}').unwrap()),
            ] {
                prop_assert_eq!(template.read(event.as_bytes()), want, "{}", event);
            }
            let other = Template::new("a.b", size, run ^ 1).unwrap();
            prop_assert_eq!(other.read(tail.as_bytes()), None);
            let mut ack = Vec::new();
            publish_ack(&mut ack, &batch, &batch.drafts()[0], number, false);
            prop_assert_eq!(template.acked_seq(&ack[4..]), Some(number));
        }

        #[test]
        fn no_bytes_are_an_event_or_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let template = Template::new("t", 64, 7).unwrap();
            prop_assert_eq!(template.read(&body), None);
            prop_assert_eq!(template.acked_seq(&body), None);
        }
    }

    #[test]
    fn what_the_broker_would_refuse_is_refused() {
        assert_eq!(Template::new("a b", 64, 1).unwrap_err().code, "bad-topic");
        assert_eq!(Template::new("t", EVENT_BYTES, 1).unwrap_err().code, "event-too-large");
        assert_eq!(Template::new("t", 1 << 20, 1).unwrap_err().code, "event-too-large");
    }
}
