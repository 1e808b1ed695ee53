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
