//! A dead letter, as the commands look at it.
//!
//! Always holds: the event in it is taken as it stands, byte for byte. Pure. Owner: `mod.rs`.

use crate::core::client::Event;
use crate::core::event::retry;
use serde::Deserialize;
use serde_json::{Value, json};

/// One of them.
#[derive(Debug, Deserialize)]
pub struct Letter {
    /// Its own seq.
    pub seq: u64,
    /// When it was written.
    pub ts: u64,
    /// What it says.
    pub payload: Payload,
}

/// What it says.
#[derive(Debug, Deserialize)]
pub struct Payload {
    /// How often the event was delivered.
    pub attempts: u32,
    /// The last deliveries in vain.
    pub failures: Vec<Failed>,
    /// The event.
    pub event: Event,
}

/// A delivery in vain.
#[derive(Debug, Deserialize)]
pub struct Failed {
    /// Which one it was.
    pub attempt: u32,
    /// Why.
    pub cause: String,
    /// What the member said.
    #[serde(default)]
    pub reason: String,
}

impl Letter {
    /// Why the last delivery was in vain.
    pub fn reason(&self) -> String {
        self.payload.failures.last().map_or_else(String::new, |last| match &*last.reason {
            "" => last.cause.clone(),
            reason => format!("{}: {reason}", last.cause),
        })
    }

    /// The event for its group once more, and the end of the letter: the body of a frame.
    pub fn again(&self, group: &str) -> String {
        let event = &self.payload.event;
        let mut headers = event.headers.clone();
        headers.insert(retry::HEADER.to_owned(), group.to_owned());
        let mut again = json!({
            "topic": event.topic,
            "id": format!("{}{}", retry::ID, self.seq),
            "headers": headers,
            "caused_by": [event.id],
        });
        if let Some(key) = &event.key {
            again["key"] = key.as_str().into();
        }
        if !event.tags.is_empty() {
            again["tags"] = event.tags.as_slice().into();
        }
        if let Some(sid) = &event.sid {
            again["sid"] = sid.as_str().into();
        }
        // The payload is not parsed, so that its numbers keep their digits.
        let mut again = again.to_string();
        again.pop();
        format!(
            r#"{{"type":"publish","events":[{again},"payload":{}}},{}]}}"#,
            event.json(),
            end(group, event.seq, &format!("retried:{}", self.seq))
        )
    }
}

/// The end of a letter.
pub fn end(group: &str, seq: u64, id: &str) -> Value {
    json!({"topic": topic(group), "key": seq.to_string(), "id": id, "payload": null})
}

/// The topic of a group's letters.
pub fn topic(group: &str) -> String {
    format!("$dlq.{group}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::wire::frame::{Frame, parse};

    #[test]
    fn an_event_goes_out_as_it_came_in() {
        let line = r#"{"seq":9,"ts":2,"id":"dlq:g:7","vm":"host","topic":"$dlq.g","key":"7","payload":{"group":"g","attempts":2,
            "failures":[{"attempt":1,"cause":"timeout"},{"attempt":2,"cause":"nack","reason":"no"}],
            "event":{"seq":7,"ts":1,"id":"i\"1","vm":"web","topic":"t","key":"k","headers":{"a":"1"},"tags":["x"],"sid":"boot-7",
            "payload":{"n":1.50,"n":2}}}}"#;
        let letter: Letter = serde_json::from_str(line).unwrap();
        assert_eq!(letter.reason(), "nack: no");
        let body = letter.again("g");
        assert!(body.contains(r#""payload":{"n":1.50,"n":2}}"#), "{body}");
        let Ok(Frame::PublishAll(events)) = parse(body.as_bytes()) else { panic!("{body}") };
        let text =
            |text: &Option<crate::core::event::Text<'_>>| text.as_ref().unwrap().0.clone().into_owned();
        assert_eq!((text(&events[0].topic), text(&events[0].id)), ("t".into(), "retry:9".into()));
        assert_eq!(events[0].headers.unwrap().get(), r#"{"a":"1","castra-retry":"g"}"#);
        assert_eq!(text(&events[0].sid), "boot-7");
        assert_eq!(events[0].caused_by.unwrap().get(), r#"["i\"1"]"#);
        assert_eq!((text(&events[1].topic), text(&events[1].key)), ("$dlq.g".into(), "7".into()));
        assert!(events[1].payload.is_none_or(|payload| payload.get() == "null"));
    }
}
