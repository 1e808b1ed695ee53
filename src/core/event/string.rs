//! Text as JSON writes it: the one way in which ids, topics and keys are encoded.
//!
//! Always holds: the same text is the same bytes, so encodings are compared instead of texts; no line break. Pure.
//! Owner: `event.rs`.

use crate::core::limits::ID_BYTES;
use crate::core::refusal::Refusal;

/// Appends `text` as the inside of a JSON string.
pub fn string_body(out: &mut Vec<u8>, text: &str) {
    if text.bytes().all(|b| b >= b' ' && b != b'"' && b != b'\\') {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\0'..='\x1f' => out.extend_from_slice(format!("\\u{:04x}", c as u32).as_bytes()),
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Checks that the strings of a JSON are text.
///
/// # Errors
/// `bad-json`: one has half a character.
pub(super) fn check_text(json: &str) -> Result<(), Refusal> {
    let Some(at) = lone_surrogate(json.as_bytes()) else { return Ok(()) };
    let half: String = json[at..].chars().take(6).collect();
    let reason = format!(
        "the payload has half a character, {half} at byte {at}, which is no text: send both halves of the pair"
    );
    Err(Refusal::new("bad-json", reason))
}

/// Where in JSON an escape such as `\ud800` stands that is half a character: what holds it is no text, and many parsers
/// refuse all of it. The JSON is valid otherwise. Without a backslash it is one search for a byte.
fn lone_surrogate(json: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(escape) = memchr::memchr(b'\\', json.get(at..)?).map(|found| at + found) {
        at = escape + 2;
        match unit(json, escape) {
            Some(0xd800..=0xdbff) => match unit(json, escape + 6) {
                Some(0xdc00..=0xdfff) => at = escape + 12,
                _ => return Some(escape),
            },
            Some(0xdc00..=0xdfff) => return Some(escape),
            _ => {}
        }
    }
    None
}

/// The UTF-16 unit of a `\uXXXX` that begins at `at`.
fn unit(json: &[u8], at: usize) -> Option<u16> {
    let digits = json.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// The rule of an id.
///
/// # Errors
/// `bad-id`.
pub(super) fn check_id(id: &str) -> Result<(), Refusal> {
    if id.is_empty() || id.len() > ID_BYTES || id.chars().any(char::is_control) {
        return Err(Refusal::new(
            "bad-id",
            format!("an id is 1-{ID_BYTES} bytes without control characters"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use serde_json::value::RawValue;

    #[test]
    fn half_a_character_is_found_where_it_stands() {
        for (json, at) in [
            (r#""\ud800""#, Some(1)),
            (r#"{"a":["x\n\udc00"]}"#, Some(10)),
            (r#"{"\ud83d":1}"#, Some(2)),
            (r#""\udc00\ud800""#, Some(1)),
            (r#""\ud83d\ude00\uDBFF""#, Some(13)),
            (r#""\ud83d\u0041""#, Some(1)),
            (r#""\ud83d\ude00""#, None),
            (r#""\\ud800""#, None),
            (r#""\\\ud800""#, Some(3)),
            ("[1]", None),
        ] {
            assert_eq!(lone_surrogate(json.as_bytes()), at, "{json}");
        }
    }

    proptest! {
        /// JSON that serde_json takes for text is what is taken here.
        #[test]
        fn it_is_what_a_parser_cannot_read(
            parts in prop::collection::vec(
                prop_oneof![
                    "\\\\u[dD][8-9a-fA-F][0-9a-f]{2}", "\\\\u[0-9a-c][0-9a-f]{3}", "\\\\[\"\\\\/bfnrt]", "[a-z0-9 \u{1F600}]{0,4}",
                ],
                0..12,
            ),
            as_name in any::<bool>(),
        ) {
            let text = parts.concat();
            let json = if as_name { format!(r#"{{"a":[{{"{text}":null}}]}}"#) } else { format!(r#"["{text}",1]"#) };
            prop_assert!(serde_json::from_str::<&RawValue>(&json).is_ok(), "valid as far as a frame is checked: {json}");
            let is_text = serde_json::from_str::<Value>(&json).is_ok();
            prop_assert_eq!(lone_surrogate(json.as_bytes()).is_none(), is_text, "{}", json);
        }
    }
}
