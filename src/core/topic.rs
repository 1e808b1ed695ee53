//! Topics: what an event is about.
//!
//! A topic is 1–255 bytes of UTF-8: tokens joined by `.`, none empty, no white space, no control
//! characters, no `*` or `>`. `vm:<name>` is one VM's mailbox, one token whatever dots the name has;
//! `$…` is the broker's own. Pure; a [`Topic`] that exists is valid. Owner: whoever parsed it.

use super::identity::VmName;
use super::limits::TOPIC_BYTES;

/// Why a text is not a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Empty, or an empty token (`a..b`, `.a`, `a.`).
    #[error("a topic is tokens joined by '.', none of them empty")]
    EmptyToken,
    /// Over [`TOPIC_BYTES`].
    #[error("a topic is at most {TOPIC_BYTES} bytes")]
    TooLong,
    /// White space, a control character, `*` or `>`.
    #[error("a topic has no white space, no control characters and no '*' or '>'")]
    BadCharacter,
    /// `vm:` with something behind it that is no VM's name.
    #[error("'vm:' is followed by the name of a VM")]
    BadMailbox,
    /// Begins with `$`.
    #[error("topics that begin with '$' are the broker's own")]
    Reserved,
}

/// A valid topic, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Topic<'a>(&'a str);

impl<'a> Topic<'a> {
    /// The topic of a publish that names none.
    pub const BROADCAST: Topic<'static> = Topic("broadcast");

    /// Checks `text` against the rules above, `$…` included.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn parse(text: &'a str) -> Result<Self, TopicError> {
        if text.len() > TOPIC_BYTES {
            return Err(TopicError::TooLong);
        }
        if text.starts_with('$') {
            return Err(TopicError::Reserved);
        }
        if let Some(name) = text.strip_prefix("vm:") {
            return VmName::parse(name).map(|_| Topic(text)).map_err(|_| TopicError::BadMailbox);
        }
        let mut previous = b'.';
        for &byte in text.as_bytes() {
            match byte {
                b'.' if previous == b'.' => return Err(TopicError::EmptyToken),
                0..=b' ' | 0x7f | b'*' | b'>' => return Err(TopicError::BadCharacter),
                _ => previous = byte,
            }
        }
        if previous == b'.' {
            return Err(TopicError::EmptyToken);
        }
        if !text.is_ascii() && text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(TopicError::BadCharacter);
        }
        Ok(Topic(text))
    }

    /// The text.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rules() {
        for good in ["a", "a.b", "broadcast", "vm:web.1", "überblick.日本", "a:b", "a\"b\\", &"x".repeat(255)]
        {
            assert_eq!(Topic::parse(good).map(Topic::as_str), Ok(good));
        }
        for (bad, why) in [
            ("", TopicError::EmptyToken),
            (".", TopicError::EmptyToken),
            ("a..b", TopicError::EmptyToken),
            (".a", TopicError::EmptyToken),
            ("a.", TopicError::EmptyToken),
            ("a b", TopicError::BadCharacter),
            ("a\u{a0}b", TopicError::BadCharacter),
            ("a\u{85}b", TopicError::BadCharacter),
            ("a.*", TopicError::BadCharacter),
            ("a.>", TopicError::BadCharacter),
            ("a\nb", TopicError::BadCharacter),
            ("$dlq.x", TopicError::Reserved),
            ("vm:", TopicError::BadMailbox),
            ("vm:-x", TopicError::BadMailbox),
            ("vm:a/b", TopicError::BadMailbox),
            (&"x".repeat(256), TopicError::TooLong),
        ] {
            assert_eq!(Topic::parse(bad), Err(why), "{bad:?}");
        }
    }

    proptest! {
        /// The byte loop agrees with the rule as the specification words it.
        #[test]
        fn agrees_with_the_specification(text in "[a-c.* >$\u{a0}\u{7f}é日\n\"]{0,8}|.{0,4}") {
            let tokens = text.split('.').all(|token| {
                !token.is_empty() && !token.chars().any(|c| c.is_whitespace() || c.is_control() || c == '*' || c == '>')
            });
            prop_assume!(!text.starts_with("vm:"));
            prop_assert_eq!(Topic::parse(&text).is_ok(), tokens && !text.starts_with('$'));
        }
    }
}
