//! Headers, tags and ids of causes, as an event has them.
//!
//! Always holds: they are within their bounds, and a name stands once. Pure. Owner: `event.rs`.

use crate::core::limits::{HEADER_BYTES, HEADERS, TAGS};
use crate::core::refusal::Refusal;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Appends `,"headers":…`, sorted by name.
///
/// # Errors
/// `bad-headers`.
pub(super) fn encode_headers(out: &mut Vec<u8>, raw: &RawValue) -> Result<(), Refusal> {
    let wrong = |why: String| Refusal::new("bad-headers", why);
    let Headers(headers) = serde_json::from_str(raw.get())
        .map_err(|e| wrong(format!("headers is an object of strings: {e}")))?;
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if headers.len() > HEADERS || bytes > HEADER_BYTES {
        return Err(wrong(format!("headers are at most {HEADERS} and {HEADER_BYTES} bytes in all")));
    }
    out.extend_from_slice(b",\"headers\":");
    serde_json::to_writer(&mut *out, &headers).map_err(|e| wrong(e.to_string()))
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

/// Appends `,"<field>":[…]`, of `tags` or `caused_by`.
///
/// # Errors
/// `bad-tags`, `bad-caused-by`, those of `check`.
pub(super) fn encode_strings(
    out: &mut Vec<u8>,
    field: &'static str,
    raw: &RawValue,
    check: impl FnOnce(&[String]) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let code = if field == "tags" { "bad-tags" } else { "bad-caused-by" };
    let wrong = |e: serde_json::Error| Refusal::new(code, format!("{field} is an array of strings: {e}"));
    let strings: Vec<String> = serde_json::from_str(raw.get()).map_err(wrong)?;
    if strings.len() > TAGS {
        return Err(Refusal::new(code, format!("{field} has at most {TAGS} entries")));
    }
    check(&strings)?;
    out.extend_from_slice(b",\"");
    out.extend_from_slice(field.as_bytes());
    out.extend_from_slice(b"\":");
    serde_json::to_writer(&mut *out, &strings).map_err(wrong)
}
