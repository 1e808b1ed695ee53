//! Words of others, in a file or on a terminal.
//!
//! Always holds: what is harmless has no control character (C0, DEL, C1) but the tab, and nothing that turns text around;
//! harmless JSON is the same JSON. Pure. Owner: whoever writes what others said.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether `c` has what stands beside it shown in another order, or on another line.
fn turns_text(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The same text without characters that a terminal obeys or that turn text around, each as JSON escapes it.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| (c.is_control() && c != '\t') || turns_text(c);
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if obeyed(c) => _ = write!(safe, "\\u{:04x}", u32::from(c)),
            c => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert!(matches!(harmless("\"grüße\t日本\""), Cow::Borrowed(_)));
        assert_eq!(harmless("\"a\u{9b}2J\u{7f}\u{1b}[m\""), "\"a\\u009b2J\\u007f\\u001b[m\"");
        assert_eq!(harmless("a\u{202e}b\u{2066}\u{61c}\u{2029}ש"), "a\\u202eb\\u2066\\u061c\\u2029ש");
    }
}
