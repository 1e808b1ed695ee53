//! Which topics keep the newest event of each key.
//!
//! Always holds: dead letters are among them, whatever castra.toml says, and topics of snapshots are not unless they are
//! named. Pure. Owner: [`super::Latest`].

use crate::core::topic::Pattern;

/// The topics of dead letters.
const LETTERS: &str = "$dlq.>";
/// How the topic of a snapshot ends.
pub const SNAPSHOT: &str = ".snapshot";

/// What is compacted.
#[derive(Clone, Debug, Default)]
pub struct Compaction {
    patterns: Vec<Pattern>,
}

impl Compaction {
    /// What these patterns say, and dead letters.
    pub fn new(patterns: impl IntoIterator<Item = Pattern>) -> Self {
        let mut patterns: Vec<Pattern> = patterns.into_iter().chain(Pattern::parse(LETTERS).ok()).collect();
        patterns.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        patterns.dedup();
        Compaction { patterns }
    }

    /// Whether `topic`, as it is typed, is one of them.
    pub fn has(&self, topic: &str) -> bool {
        let is_snapshot = topic.ends_with(SNAPSHOT) && !topic.starts_with('$');
        self.patterns.iter().any(|pattern| match is_snapshot {
            true => pattern.as_str() == topic,
            false => pattern.matches(topic),
        })
    }

    /// Whether there is something beside dead letters.
    pub fn is_configured(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.as_str() != LETTERS)
    }

    /// The patterns that have a topic in common with one of `others`.
    pub fn meeting(&self, others: &[Pattern]) -> Vec<&str> {
        let own = self.patterns.iter().filter(|own| others.iter().any(|other| own.meets(other)));
        own.map(Pattern::as_str).collect()
    }

    /// The patterns as one text, the same for the same ones.
    pub fn text(&self) -> String {
        let texts: Vec<&str> = self.patterns.iter().map(Pattern::as_str).collect();
        serde_json::Value::from(texts).to_string()
    }

    /// Whether what follows those of `text` follows all of these. What is no such text follows nothing.
    pub fn is_within(&self, text: &str) -> bool {
        let texts: Vec<String> = serde_json::from_str(text).unwrap_or_default();
        let old: Vec<Pattern> = texts.iter().filter_map(|text| Pattern::parse(text).ok()).collect();
        // A topic of snapshots is followed only where it is named.
        self.patterns.iter().all(|own| {
            let is_named = own.is_plain() && own.as_str().ends_with(SNAPSHOT);
            old.iter().any(|old| if is_named { old == own } else { old.covers(own) })
        })
    }
}

/// The topic of an event, as it was typed.
pub(super) fn name_of(encoded: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(encoded).ok()?;
    if !text.contains('\\') {
        return Some(text.to_owned());
    }
    serde_json::from_str(&format!("\"{text}\"")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(patterns: &[&str]) -> Compaction {
        Compaction::new(patterns.iter().map(|text| Pattern::parse(text).unwrap()))
    }

    #[test]
    fn letters_always_and_snapshots_only_by_name() {
        let compaction = of(&["a.>", "b", "c.snapshot"]);
        for topic in ["a.x", "a.x.y", "b", "c.snapshot", "$dlq.g", "$dlq.g.h", "$dlq.g.snapshot"] {
            assert!(compaction.has(topic), "{topic}");
        }
        for topic in ["a", "b.snapshot", "a.x.snapshot", "vm:web", "$other", "c"] {
            assert!(!compaction.has(topic), "{topic}");
        }
        assert!(compaction.is_configured() && !of(&[]).is_configured());
    }

    #[test]
    fn what_was_followed_is_known() {
        let text = of(&["a.>", "b"]).text();
        for within in [&["a.x"][..], &["a.*", "b"], &[], &["a.>"]] {
            assert!(of(within).is_within(&text), "{within:?}");
        }
        for more in [&["a.>", "c"][..], &[">"], &["a.x.snapshot"]] {
            assert!(!of(more).is_within(&text), "{more:?}");
        }
        assert!(!of(&[]).is_within("") && of(&["a.snapshot"]).is_within(&of(&["a.snapshot"]).text()));
    }
}
