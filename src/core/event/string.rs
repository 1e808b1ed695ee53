//! Text as JSON writes it: the one way in which ids, topics and keys are encoded.
//!
//! Always holds: the same text is the same bytes, so encodings are compared instead of texts; no line break. Pure.
//! Owner: `event.rs`.

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
