//! A refusal: what was asked for is not done, and why.
//!
//! Always holds: the code is stable and one of `docs/BUS.md`; the reason is short, whatever of the peer's own is
//! quoted in it (invariant 6). Pure. Owner: whoever refuses.

use super::limits::REASON_BYTES;

/// Something that was asked for and is refused: a stable code and a reason for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {reason}")]
pub struct Refusal {
    /// Kebab-case; scripts rely on it.
    pub code: &'static str,
    /// One sentence.
    pub reason: String,
}

impl Refusal {
    /// A refusal; a reason over [`REASON_BYTES`] is cut.
    pub fn new(code: &'static str, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        if reason.len() > REASON_BYTES {
            reason.truncate(reason.floor_char_boundary(REASON_BYTES - "…".len()));
            reason.push('…');
            reason.shrink_to_fit();
        }
        Refusal { code, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_short_whatever_is_quoted() {
        let refusal = Refusal::new("bad-field", "é".repeat(30_000));
        assert!(refusal.reason.len() <= REASON_BYTES && refusal.reason.ends_with('…'));
        assert_eq!(Refusal::new("bad-field", "short").reason, "short");
    }
}
