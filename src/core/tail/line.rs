//! A line of a log: the event's JSON, and the two numbers at its head that order it.
//!
//! Always holds: a [`Stamp`] is read without parsing the rest, so a line that has one may still be broken
//! further on; an [`EventLine`] is whole. Pure. Owner: whoever reads logs.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// What every line begins with, and what the lines of a log ascend in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The event's place in the journal.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub ts: u64,
}

impl Stamp {
    /// The stamp of a line `{"seq":N,"ts":N,…}`; `None` when it has another shape.
    pub fn of(line: &[u8]) -> Option<Stamp> {
        let (seq, rest) = number(line.strip_prefix(b"{\"seq\":")?)?;
        let (ts, rest) = number(rest.strip_prefix(b",\"ts\":")?)?;
        (rest.starts_with(b",") && rest.ends_with(b"}")).then_some(Stamp { seq, ts })
    }
}

fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    let add = |n: u64, digit: &u8| n.checked_mul(10)?.checked_add(u64::from(digit - b'0'));
    let number = text[..digits].iter().try_fold(0, add).filter(|_| digits > 0)?;
    Some((number, &text[digits..]))
}

/// An event as a log has it, borrowed from its line.
#[derive(Debug, Deserialize)]
pub struct EventLine<'a> {
    /// Its place in the journal.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub ts: u64,
    /// Who published it.
    #[serde(borrow)]
    pub vm: Cow<'a, str>,
    /// What it is about.
    #[serde(borrow)]
    pub topic: Cow<'a, str>,
    /// Its payload, as it was published.
    #[serde(borrow)]
    pub payload: &'a RawValue,
    /// The whole line, without its end.
    #[serde(skip)]
    pub text: &'a str,
}

impl<'a> EventLine<'a> {
    /// The event of a line; `None` when it is none.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        Stamp::of(line)?;
        let text = std::str::from_utf8(line).ok()?;
        let mut event: EventLine<'a> = serde_json::from_str(text).ok()?;
        event.text = text;
        Some(event)
    }

    /// What orders it.
    pub fn stamp(&self) -> Stamp {
        Stamp { seq: self.seq, ts: self.ts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = br#"{"seq":7,"ts":8,"id":"x","vm":"a","topic":"a\"b","payload":{"a": [1]}}"#;
        let event = EventLine::parse(line).unwrap();
        assert_eq!(
            (event.stamp(), Stamp::of(line)),
            (Stamp { seq: 7, ts: 8 }, Some(Stamp { seq: 7, ts: 8 }))
        );
        assert_eq!((&*event.vm, &*event.topic, event.payload.get()), ("a", "a\"b", "{\"a\": [1]}"));
        assert_eq!(event.text.as_bytes(), line);
        for bad in [
            &b""[..],
            b"{",
            b"\0\0\0",
            br#"{"seq":7,"ts":8}"#,
            br#"{"seq":,"ts":8,"vm":"a","topic":"t","payload":1}"#,
            br#"{"seq":99999999999999999999,"ts":8,"vm":"a","topic":"t","payload":1}"#,
            br#"{"seq":7,"ts":8,"vm":"a","topic":"t","payload":1"#,
            br#"{"seq":7,"ts":8,"vm":"a","topic":"t","payload":1}}"#,
            b"{\"seq\":7,\"ts\":8,\"vm\":\"a\",\"topic\":\"\xff\",\"payload\":1}",
        ] {
            assert!(EventLine::parse(bad).is_none(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
