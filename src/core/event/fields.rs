//! Headers, tags and ids of causes, as an event has them.
//!
//! Always holds: they are within their bounds, and a name stands once. Pure. Owner: `event.rs`.

use crate::core::limits::{HEADER_BYTES, HEADERS, TAG_BYTES, TAGS};
use crate::core::refusal::Refusal;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Reads headers.
///
/// # Errors
/// `bad-headers`.
pub(in crate::core) fn read_headers(raw: &RawValue) -> Result<BTreeMap<String, String>, Refusal> {
    let wrong = |why: String| Refusal::new("bad-headers", why);
    let Headers(headers) = serde_json::from_str(raw.get())
        .map_err(|e| wrong(format!("headers is an object of strings: {e}")))?;
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if headers.len() > HEADERS || bytes > HEADER_BYTES {
        return Err(wrong(format!("headers are at most {HEADERS} and {HEADER_BYTES} bytes in all")));
    }
    Ok(headers)
}

/// Reads tags.
///
/// # Errors
/// `bad-tags`.
pub(in crate::core) fn read_tags(raw: &RawValue) -> Result<Vec<String>, Refusal> {
    let tags = strings("tags", "bad-tags", raw)?;
    if tags.iter().map(String::len).sum::<usize>() > TAG_BYTES || tags.iter().any(String::is_empty) {
        return Err(Refusal::new("bad-tags", format!("tags are not empty and {TAG_BYTES} bytes in all")));
    }
    Ok(tags)
}

/// Reads the ids of causes.
///
/// # Errors
/// `bad-caused-by`.
pub(super) fn read_caused_by(raw: &RawValue) -> Result<Vec<String>, Refusal> {
    strings("caused_by", "bad-caused-by", raw)
}

fn strings(field: &str, code: &'static str, raw: &RawValue) -> Result<Vec<String>, Refusal> {
    let wrong = |e: serde_json::Error| Refusal::new(code, format!("{field} is an array of strings: {e}"));
    let strings: Vec<String> = serde_json::from_str(raw.get()).map_err(wrong)?;
    match strings.len() {
        0..=TAGS => Ok(strings),
        _ => Err(Refusal::new(code, format!("{field} has at most {TAGS} entries"))),
    }
}

/// Appends `,"<field>":…`.
pub(super) fn encode(out: &mut Vec<u8>, field: &str, value: &impl Serialize) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(field.as_bytes());
    out.extend_from_slice(b"\":");
    // Strings can always be written to memory.
    let _ = serde_json::to_writer(out, value);
}

/// An object of strings; a name that stands twice is an error, as in a frame.
struct Headers(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Headers;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Headers, A::Error> {
                let mut headers = BTreeMap::new();
                while let Some((name, value)) = fields.next_entry::<String, String>()? {
                    if let Some(_first) = headers.insert(name, value) {
                        return Err(serde::de::Error::custom("a name stands twice"));
                    }
                }
                Ok(Headers(headers))
            }
        }
        json.deserialize_map(Names)
    }
}
