//! Events and their one encoding.
//!
//! An event is one JSON object on one line:
//! `{"seq":…,"ts":…,"id":…,"vm":…,"topic":…[,"ttl_ms":…][,"key":…][,"headers":…][,"tags":…][,"caused_by":…]
//! [,"sid":…],"payload":…}\n`.
//! A [`Draft`] is that line from `"id"` on: what is known before the journal gives `seq` and `ts`. The same bytes go
//! to the journal, the logs and the subscribers; the payload is never parsed into a tree. Always holds: an encoded
//! event is at most [`EVENT_BYTES`], valid UTF-8 and has no line break but its last byte. Pure. Owner: the session
//! fills a [`Batch`]; the journal takes it and gives it back.

mod fields;
mod letter;
pub mod retry;
mod string;

use super::identity::VmName;
use super::limits::{BATCH_BYTES, EVENT_BYTES, KEY_BYTES, SID_BYTES, TTL_MS};
use super::refusal::Refusal;
use super::topic::{Topic, TopicError};
use fields::{encode, read_caused_by};
pub(in crate::core) use fields::{read_headers, read_tags};
pub use letter::Letter;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::ops::Range;
pub use string::string_body;
use string::{check_id, check_text};

/// A string that borrows from the frame unless it has escapes.
#[derive(Debug, Deserialize)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// What a publisher says of one event; everything may be left out.
#[derive(Debug, Default, Deserialize)]
pub struct Publish<'a> {
    /// The topic; `broadcast` when left out.
    #[serde(borrow, default)]
    pub topic: Option<Text<'a>>,
    /// Any JSON; `null` when left out.
    #[serde(borrow, default)]
    pub payload: Option<&'a RawValue>,
    /// The publisher's id for the event; a UUIDv7 is made when left out.
    #[serde(borrow, default)]
    pub id: Option<Text<'a>>,
    /// What the event is the latest state of.
    #[serde(borrow, default)]
    pub key: Option<Text<'a>>,
    /// An object of strings.
    #[serde(borrow, default)]
    pub headers: Option<&'a RawValue>,
    /// An array of strings.
    #[serde(borrow, default)]
    pub tags: Option<&'a RawValue>,
    /// An array of ids.
    #[serde(borrow, default)]
    pub caused_by: Option<&'a RawValue>,
    /// The publisher's own name for the session, boot or run that the event comes from.
    #[serde(borrow, default)]
    pub sid: Option<Text<'a>>,
    /// It is delivered no later than so long after its `ts`, in milliseconds.
    #[serde(default)]
    pub ttl_ms: Option<u64>,
}

/// One event of a [`Batch`]: where its bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draft {
    start: u32,
    end: u32,
    /// From `start` to the first byte of the VM's name.
    vm_at: u16,
    vm_len: u8,
    /// The encoded topic, without its quotes.
    topic_len: u16,
    /// The next draft belongs to the same publish: both or none.
    pub joined: bool,
    /// The publisher gave the id: the same again is a repeat.
    pub own_id: bool,
    /// It has a `ttl_ms`.
    pub expires: bool,
}

/// Before an id in the encoding.
const ID: &[u8] = b"\"id\":\"";
/// Between a VM's name and its topic.
const VM_TO_TOPIC: &str = "\",\"topic\":\"";
/// Between an id and the VM's name.
const ID_TO_VM: &str = "\",\"vm\":\"";
/// Before a `ttl_ms`.
const TTL: &[u8] = b",\"ttl_ms\":";
/// `{"seq":` 20 digits `,"ts":` 20 digits `,` at the most.
const PREFIX_BYTES: usize = 54;

/// Events on their way to the journal: one buffer, and where each of them lies in it.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    drafts: Vec<Draft>,
}

impl Batch {
    /// Encodes one event of `vm` at the end of the batch. `new_id` writes an id when the publisher gave none.
    ///
    /// # Errors
    /// A [`Refusal`] when a field breaks its rule; the batch is as it was.
    pub fn push(
        &mut self,
        vm: &VmName,
        publish: &Publish<'_>,
        new_id: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Refusal> {
        // Not of what the broker wraps: what an older one stored is passed on as it is.
        publish.payload.map_or(Ok(()), |payload| check_text(payload.get()))?;
        let topic = match &publish.topic {
            None => Topic::BROADCAST,
            Some(text) if letter::is_end(vm, publish) => {
                return self.push_to(&text.0, vm, publish, new_id, EVENT_BYTES);
            }
            Some(text) => Topic::parse(&text.0).map_err(|e| match e {
                TopicError::Reserved => Refusal::new("reserved-topic", e.to_string()),
                _ => Refusal::new("bad-topic", e.to_string()),
            })?,
        };
        self.push_to(topic.as_str(), vm, publish, new_id, EVENT_BYTES)
    }

    fn push_to(
        &mut self,
        topic: &str,
        vm: &VmName,
        publish: &Publish<'_>,
        new_id: impl FnOnce(&mut Vec<u8>),
        most_bytes: usize,
    ) -> Result<(), Refusal> {
        let start = self.bytes.len();
        let draft = self.encode(topic, vm, publish, new_id, most_bytes);
        match draft {
            Ok(draft) => self.drafts.push(draft),
            Err(_) => self.bytes.truncate(start),
        }
        draft.map(drop)
    }

    fn encode(
        &mut self,
        topic: &str,
        vm: &VmName,
        publish: &Publish<'_>,
        new_id: impl FnOnce(&mut Vec<u8>),
        most_bytes: usize,
    ) -> Result<Draft, Refusal> {
        let out = &mut self.bytes;
        let start = out.len();
        out.extend_from_slice(ID);
        match &publish.id {
            None => new_id(out),
            Some(id) => {
                check_id(&id.0)?;
                string_body(out, &id.0);
            }
        }
        out.extend_from_slice(ID_TO_VM.as_bytes());
        let vm_at = out.len() - start;
        out.extend_from_slice(vm.as_str().as_bytes());
        out.extend_from_slice(VM_TO_TOPIC.as_bytes());
        let topic_at = out.len();
        string_body(out, topic);
        let topic_len = out.len() - topic_at;
        out.push(b'"');
        if let Some(ttl) = publish.ttl_ms {
            if !(1..=TTL_MS).contains(&ttl) {
                return Err(Refusal::new("bad-ttl", format!("ttl_ms is 1 to {TTL_MS}")));
            }
            // Right behind the topic, where it is found without reading the rest.
            out.extend_from_slice(TTL);
            out.extend_from_slice(itoa::Buffer::new().format(ttl).as_bytes());
        }
        if let Some(Text(key)) = &publish.key {
            if key.is_empty() || key.len() > KEY_BYTES {
                return Err(Refusal::new("bad-key", format!("a key is 1-{KEY_BYTES} bytes")));
            }
            out.extend_from_slice(b",\"key\":\"");
            string_body(out, key);
            out.push(b'"');
        }
        if let Some(headers) = publish.headers {
            encode(out, "headers", &read_headers(headers)?);
        }
        if let Some(tags) = publish.tags {
            encode(out, "tags", &read_tags(tags)?);
        }
        if let Some(ids) = publish.caused_by {
            let ids = read_caused_by(ids)?;
            ids.iter().try_for_each(|id| check_id(id))?;
            encode(out, "caused_by", &ids);
        }
        if let Some(Text(sid)) = &publish.sid {
            if sid.is_empty() || sid.len() > SID_BYTES || sid.chars().any(char::is_control) {
                let why = format!("a sid is 1-{SID_BYTES} bytes without control characters");
                return Err(Refusal::new("bad-sid", why));
            }
            out.extend_from_slice(b",\"sid\":\"");
            string_body(out, sid);
            out.push(b'"');
        }
        out.extend_from_slice(b",\"payload\":");
        let payload_at = out.len();
        out.extend_from_slice(publish.payload.map_or("null", RawValue::get).as_bytes());
        // JSON has line breaks only between its tokens, where a space does as well.
        for byte in &mut out[payload_at..] {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        out.extend_from_slice(b"}\n");
        let bytes = PREFIX_BYTES + out.len() - 1 - start;
        if bytes > most_bytes {
            let reason = format!("the event is {bytes} bytes encoded, at most {most_bytes} are allowed");
            return Err(Refusal::new("event-too-large", reason));
        }
        Ok(Draft {
            start: start as u32,
            end: out.len() as u32,
            vm_at: vm_at as u16,
            vm_len: vm.as_str().len() as u8,
            topic_len: topic_len as u16,
            joined: false,
            own_id: publish.id.is_some(),
            expires: publish.ttl_ms.is_some(),
        })
    }

    /// Makes the drafts from `from` on one publish: all of them or none.
    pub fn join(&mut self, from: usize) {
        let last = self.drafts.len().saturating_sub(1);
        for draft in &mut self.drafts[from..last] {
            draft.joined = true;
        }
    }

    /// Forgets the drafts from `from` on.
    pub fn truncate(&mut self, from: usize) {
        if let Some(draft) = self.drafts.get(from) {
            self.bytes.truncate(draft.start as usize);
            self.drafts.truncate(from);
        }
    }

    /// The same memory without its events; `None` when it is more than is worth keeping.
    pub fn emptied(mut self) -> Option<Self> {
        self.bytes.clear();
        self.drafts.clear();
        (self.bytes.capacity() <= 2 * BATCH_BYTES).then_some(self)
    }

    /// The events, in order.
    pub fn drafts(&self) -> &[Draft] {
        &self.drafts
    }

    /// How many events.
    pub fn len(&self) -> usize {
        self.drafts.len()
    }

    /// No event yet.
    pub fn is_empty(&self) -> bool {
        self.drafts.is_empty()
    }

    /// The size of all encodings, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The line of `draft` from `"id"` to its newline.
    pub fn tail(&self, draft: &Draft) -> &[u8] {
        &self.bytes[draft.start as usize..draft.end as usize]
    }

    /// The id, encoded, without its quotes.
    pub fn id(&self, draft: &Draft) -> &[u8] {
        &self.tail(draft)[ID.len()..draft.vm_at as usize - ID_TO_VM.len()]
    }

    /// Who published it.
    pub fn vm(&self, draft: &Draft) -> &[u8] {
        &self.tail(draft)[Layout::of(draft, 0).vm()]
    }

    /// The topic, encoded, without its quotes.
    pub fn topic(&self, draft: &Draft) -> &[u8] {
        &self.tail(draft)[Layout::of(draft, 0).topic()]
    }
}

/// Where in an event's line its VM and topic stand, whose its id is, and whether it has a `ttl_ms`; kept in the journal's record headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// From the line's start to the VM's name.
    pub vm_at: u16,
    /// The length of the VM's name.
    pub vm_len: u8,
    /// The length of the encoded topic, without its quotes.
    pub topic_len: u16,
    /// The id is the publisher's own.
    pub own_id: bool,
    /// It has a `ttl_ms`.
    pub expires: bool,
}

impl Layout {
    /// The layout of a draft's line whose `{"seq":…,"ts":…,` is `prefix` bytes long.
    pub fn of(draft: &Draft, prefix: usize) -> Self {
        let Draft { vm_len, topic_len, own_id, expires, .. } = *draft;
        Layout { vm_at: prefix as u16 + draft.vm_at, vm_len, topic_len, own_id, expires }
    }

    /// Where the VM's name stands.
    pub fn vm(self) -> Range<usize> {
        let at = self.vm_at as usize;
        at..at + self.vm_len as usize
    }

    /// Where the encoded topic stands.
    pub fn topic(self) -> Range<usize> {
        let at = self.vm().end + VM_TO_TOPIC.len();
        at..at + self.topic_len as usize
    }
}

/// A durable event, borrowed from the journal's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its place in the one global order, from 1.
    pub seq: u64,
    /// Wall time in milliseconds; never goes back along `seq`.
    pub ts: u64,
    /// The JSON object and its newline.
    pub line: &'a [u8],
    /// Where VM and topic stand in the line.
    pub layout: Layout,
}

impl<'a> Event<'a> {
    /// Who published it.
    pub fn vm(&self) -> &'a [u8] {
        self.line.get(self.layout.vm()).unwrap_or_default()
    }

    /// The topic, encoded, without its quotes.
    pub fn topic(&self) -> &'a [u8] {
        self.line.get(self.layout.topic()).unwrap_or_default()
    }

    /// So many milliseconds after it was published it is delivered no more, if it has a `ttl_ms`.
    pub fn ttl_ms(&self) -> Option<u64> {
        self.layout.expires.then(|| self.line.get(self.layout.topic().end + 1..).and_then(ttl_of))?
    }

    /// Its id, encoded, without its quotes.
    pub fn id(&self) -> &'a [u8] {
        // Before it there are only numbers.
        let at = self.line.windows(ID.len()).position(|window| window == ID).map_or(0, |at| at + ID.len());
        self.line.get(at..self.id_end()).unwrap_or_default()
    }

    fn id_end(&self) -> usize {
        (self.layout.vm_at as usize).saturating_sub(ID_TO_VM.len())
    }

    /// Its id is this one, encoded as [`string_body`] does.
    pub fn has_id(&self, encoded: &[u8]) -> bool {
        let head = self.line.get(..self.id_end()).unwrap_or_default();
        // Quotes inside an id have a backslash before them: these six bytes are where it begins.
        head.strip_suffix(encoded).is_some_and(|head| head.ends_with(ID))
    }

    /// The VM whose mailbox (`vm:<name>`) this was sent to. A name has nothing that JSON escapes.
    pub fn mailbox(&self) -> Option<&'a [u8]> {
        self.topic().strip_prefix(b"vm:")
    }
}

/// The `ttl_ms` of an event whose line goes on like this behind its topic.
fn ttl_of(rest: &[u8]) -> Option<u64> {
    let digits = rest.strip_prefix(TTL)?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vm() -> VmName {
        VmName::parse("dev.box").unwrap()
    }

    fn push(batch: &mut Batch, json: &str) -> Result<(), Refusal> {
        let publish: Publish<'_> = serde_json::from_str(json).unwrap();
        batch.push(&vm(), &publish, |out| out.extend_from_slice(b"the-id"))
    }

    #[test]
    fn how_long_it_is_of_use_stands_behind_the_topic() {
        let mut batch = Batch::default();
        push(&mut batch, r#"{"topic":"t","ttl_ms":5000,"key":"k","headers":{"ttl_ms":"1"},"sid":"b\"7"}"#)
            .unwrap();
        let draft = batch.drafts()[0];
        let tail = "\"topic\":\"t\",\"ttl_ms\":5000,\"key\":\"k\",\"headers\":{\"ttl_ms\":\"1\"},\"sid\":\"b\\\"7\",\"payload\":null}\n";
        assert!(std::str::from_utf8(batch.tail(&draft)).unwrap().ends_with(tail));
        let line = [b"{\"seq\":1,\"ts\":7,", batch.tail(&draft)].concat();
        let event = Event { seq: 1, ts: 7, line: &line, layout: Layout::of(&draft, 16) };
        assert_eq!(event.ttl_ms(), Some(5000));
        for (wrong, code) in [
            (r#"{"ttl_ms":0}"#, "bad-ttl"),
            (r#"{"ttl_ms":315360000001}"#, "bad-ttl"),
            (r#"{"sid":""}"#, "bad-sid"),
            (r#"{"sid":"a\u0007"}"#, "bad-sid"),
        ] {
            assert_eq!(push(&mut batch, wrong).unwrap_err().code, code);
        }
        push(&mut batch, r#"{"topic":"t","key":",\"ttl_ms\":5"}"#).unwrap();
        let draft = batch.drafts()[1];
        let line = [b"{\"seq\":1,\"ts\":7,", batch.tail(&draft)].concat();
        assert_eq!(Event { seq: 1, ts: 7, line: &line, layout: Layout::of(&draft, 16) }.ttl_ms(), None);
    }

    #[test]
    fn the_encoding_and_its_parts() {
        let mut batch = Batch::default();
        push(&mut batch, "{}").unwrap();
        push(
            &mut batch,
            r#"{"topic":"a\"b.c","id":"i\\1","key":"k","headers":{"b":"2","a":"1"},"tags":["t"],"caused_by":["x"],"payload":[1,
            2]}"#,
        )
        .unwrap();
        let [first, second] = batch.drafts() else { panic!() };
        assert_eq!(
            batch.tail(first),
            b"\"id\":\"the-id\",\"vm\":\"dev.box\",\"topic\":\"broadcast\",\"payload\":null}\n"
        );
        assert_eq!((batch.id(first), batch.topic(first)), (&b"the-id"[..], &b"broadcast"[..]));
        assert_eq!((batch.id(second), batch.topic(second)), (&b"i\\\\1"[..], &b"a\\\"b.c"[..]));
        assert_eq!((first.own_id, second.own_id), (false, true));
        let text = String::from_utf8(batch.tail(second).to_vec()).unwrap();
        assert!(text.ends_with(
            "\"key\":\"k\",\"headers\":{\"a\":\"1\",\"b\":\"2\"},\"tags\":[\"t\"],\"caused_by\":[\"x\"],\"payload\":[1,             2]}\n"
        ), "{text}");
    }

    #[test]
    fn refusals_leave_the_batch_as_it_was() {
        let mut batch = Batch::default();
        push(&mut batch, "{}").unwrap();
        let before = batch.bytes();
        let big = format!("{{\"payload\":\"{}\"}}", "x".repeat(EVENT_BYTES - 110));
        let many = format!("{{\"tags\":{:?}}}", vec!["t"; 33]);
        let long = format!("{{\"id\":\"{}\"}}", "i".repeat(129));
        for (json, code) in [
            (r#"{"topic":"a..b"}"#, "bad-topic"),
            (r#"{"topic":"$dlq.x"}"#, "reserved-topic"),
            (r#"{"id":""}"#, "bad-id"),
            (long.as_str(), "bad-id"),
            (r#"{"id":"a\u0000"}"#, "bad-id"),
            (r#"{"key":""}"#, "bad-key"),
            (r#"{"headers":["a"]}"#, "bad-headers"),
            (r#"{"headers":{"a":1}}"#, "bad-headers"),
            (r#"{"headers":{"a":"1","a":"2"}}"#, "bad-headers"),
            (r#"{"tags":{"a":1}}"#, "bad-tags"),
            (r#"{"tags":[""]}"#, "bad-tags"),
            (many.as_str(), "bad-tags"),
            (r#"{"caused_by":[""]}"#, "bad-id"),
            (big.as_str(), "event-too-large"),
        ] {
            assert_eq!(push(&mut batch, json).unwrap_err().code, code, "{json:.60}");
            assert_eq!((batch.len(), batch.bytes()), (1, before));
        }
    }

    proptest! {
        /// Whatever strings and payload: one line, valid JSON, the same values, the parts where they are said to be.
        #[test]
        fn any_event_is_one_json_line(topic in "[^.\\s*>$\\p{C}]{1,20}", id in "\\PC{1,20}", key in ".{1,20}", text in ".*") {
            prop_assume!(!topic.starts_with("vm:"));
            prop_assume!(key.len() <= KEY_BYTES && text.len() < 4000);
            let payload = serde_json::json!({"text": text});
            let frame = serde_json::json!({"topic": topic, "id": id, "key": key, "payload": payload});
            let mut batch = Batch::default();
            push(&mut batch, &serde_json::to_string_pretty(&frame).unwrap()).unwrap();
            let draft = batch.drafts()[0];
            let tail = batch.tail(&draft);
            prop_assert_eq!(tail.iter().filter(|b| **b == b'\n').count(), 1);
            let line = [&b"{\"seq\":1,\"ts\":2,"[..], tail].concat();
            let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
            for (field, want) in frame.as_object().unwrap() {
                prop_assert_eq!(&value[field], want);
            }
            let event = Event { seq: 1, ts: 2, line: &line, layout: Layout::of(&draft, line.len() - tail.len()) };
            prop_assert_eq!(event.vm(), b"dev.box");
            prop_assert_eq!(event.topic(), batch.topic(&draft));
            prop_assert_eq!((event.vm(), event.id()), (batch.vm(&draft), batch.id(&draft)));
            let quoted = [b"\"", event.topic(), b"\""].concat();
            prop_assert_eq!(serde_json::from_slice::<String>(&quoted).unwrap(), topic);
        }
    }
}
