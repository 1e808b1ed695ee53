//! Topics: what an event is about; and patterns: which topics somebody wants.
//!
//! A topic is 1–255 bytes of UTF-8: tokens joined by `.`, none empty, no white space, no control
//! characters, no `*` or `>`. `vm:<name>` is one VM's mailbox, one token whatever dots the name has;
//! `$…` is the broker's own. In a pattern `*` is one token and a last `>` is one or more; they match neither
//! mailboxes nor `$…` unless the pattern begins with that very word (`vm:*`, `$dlq.>`). Pure; a [`Topic`] or
//! [`Pattern`] that exists is valid. Owner: whoever parsed it.

use super::event::string_body;
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

/// Why a text is not a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Without its wildcards it is no topic.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// `*` or `>` with something beside it in its token, or `>` before the end.
    #[error("'*' stands for one whole token, '>' for all that is left and comes last")]
    Wildcard,
}

/// A valid pattern: a topic, or several.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern(Box<str>);

/// Matches every mailbox.
pub(super) const MAILBOXES: &str = "vm:*";

impl Pattern {
    /// Checks `text` against the rules above.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.len() > TOPIC_BYTES {
            return Err(TopicError::TooLong.into());
        }
        if text.starts_with("vm:") {
            if text != MAILBOXES {
                Topic::parse(text)?;
            }
            return Ok(Pattern(text.into()));
        }
        let mut tokens = text.split('.').peekable();
        while let Some(token) = tokens.next() {
            match token {
                "*" => {}
                ">" if tokens.peek().is_none() => {}
                _ if token.contains(['*', '>']) => return Err(PatternError::Wildcard),
                _ => match Topic::parse(token) {
                    // The broker's own topics may be asked for; a token with a colon in it is a plain one.
                    Ok(_) | Err(TopicError::Reserved | TopicError::BadMailbox) => {
                        let plain = |c: char| !c.is_whitespace() && !c.is_control();
                        if !token.chars().all(plain) {
                            return Err(TopicError::BadCharacter.into());
                        }
                    }
                    Err(error) => return Err(error.into()),
                },
            }
        }
        Ok(Pattern(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a topic, and matches nothing else.
    pub fn is_plain(&self) -> bool {
        &*self.0 != MAILBOXES && !self.0.split('.').any(|token| matches!(token, "*" | ">"))
    }

    /// The pattern of topics as they stand in an encoded event: there `"` and `\\` are escaped.
    pub fn encoded(&self) -> Pattern {
        let mut out = Vec::with_capacity(self.0.len());
        string_body(&mut out, &self.0);
        String::from_utf8(out).map_or_else(|_| self.clone(), |text| Pattern(text.into()))
    }

    /// Whether everything that `other` matches is matched by this one, too.
    pub fn covers(&self, other: &Pattern) -> bool {
        let (own, other) = (&*self.0, &*other.0);
        if other.starts_with("vm:") {
            return own == MAILBOXES || own == other;
        }
        if own.starts_with('$') != other.starts_with('$') {
            return false;
        }
        let (mut own, mut other) = (own.split('.'), other.split('.'));
        loop {
            match (own.next(), other.next()) {
                (Some(">"), Some(_)) | (None, None) => return true,
                (Some("*"), Some(token)) if token != ">" => {}
                (Some(own), Some(other)) if own == other => {}
                _ => return false,
            }
        }
    }

    /// Whether some topic is matched by both.
    pub fn meets(&self, other: &Pattern) -> bool {
        let (own, other) = (&*self.0, &*other.0);
        if own.starts_with("vm:") || other.starts_with("vm:") {
            return own == other
                || (own.starts_with("vm:") && other.starts_with("vm:") && [own, other].contains(&MAILBOXES));
        }
        if own.starts_with('$') != other.starts_with('$') {
            return false;
        }
        let (mut own, mut other) = (own.split('.'), other.split('.'));
        loop {
            match (own.next(), other.next()) {
                (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
                (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
                (Some(own), Some(other)) if own == other => {}
                _ => return false,
            }
        }
    }

    /// Whether `topic`, which is valid, is one of these.
    pub fn matches(&self, topic: &str) -> bool {
        if topic.starts_with("vm:") {
            return &*self.0 == MAILBOXES || &*self.0 == topic;
        }
        if topic.starts_with('$') != self.0.starts_with('$') {
            return false;
        }
        let mut topic = topic.split('.');
        for token in self.0.split('.') {
            match (token, topic.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (token, Some(found)) if token == found => {}
                _ => return false,
            }
        }
        topic.next().is_none()
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

    #[test]
    fn patterns() {
        for (pattern, yes, no) in [
            ("a.b", "a.b", "a.b.c a a.c"),
            ("a.*", "a.b a.c", "a a.b.c b.b"),
            ("*.b", "a.b vmx.b", "b a.c $x.b vm:a.b"),
            ("*", "a broadcast", "a.b vm:web $dlq"),
            (">", "a a.b a.b.c", "vm:web $dlq.x"),
            ("a.>", "a.b a.b.c", "a b.a"),
            ("vm:*", "vm:web vm:a.b", "vm a"),
            ("vm:a.b", "vm:a.b", "vm:a vm:a.c"),
            ("$dlq.>", "$dlq.x $dlq.x.y", "$dlq dlq.x"),
            ("$dlq.*", "$dlq.x", "$x.x"),
        ] {
            let parsed = Pattern::parse(pattern).unwrap();
            yes.split(' ').for_each(|topic| assert!(parsed.matches(topic), "{pattern} {topic}"));
            no.split(' ').for_each(|topic| assert!(!parsed.matches(topic), "{pattern} {topic}"));
        }
        for (bad, why) in [
            ("", TopicError::EmptyToken.into()),
            ("a..b", TopicError::EmptyToken.into()),
            ("a b", TopicError::BadCharacter.into()),
            ("vm:", TopicError::BadMailbox.into()),
            ("vm:a*", TopicError::BadMailbox.into()),
            ("vm:>", TopicError::BadMailbox.into()),
            ("$a b", TopicError::BadCharacter.into()),
            (&"x".repeat(256), TopicError::TooLong.into()),
            ("a*", PatternError::Wildcard),
            (">.a", PatternError::Wildcard),
            ("a.>b", PatternError::Wildcard),
        ] {
            assert_eq!(Pattern::parse(bad), Err(why), "{bad:?}");
        }
    }

    proptest! {
        /// A topic is a pattern of itself; and matching agrees with the words of the specification.
        #[test]
        fn patterns_match_what_they_say(
            topic in "(vm:)?[$]?[ab]([.][ab]){0,3}", pattern in "([ab*])([.][ab*]){0,3}([.]>)?"
        ) {
            if let Ok(topic) = Topic::parse(&topic) {
                prop_assert!(Pattern::parse(topic.as_str()).unwrap().matches(topic.as_str()));
            }
            let (want, have): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), topic.split('.').collect());
            let open = want.last() == Some(&">");
            let fixed = if open { &want[..want.len() - 1] } else { &want[..] };
            let long = if open { have.len() > fixed.len() } else { have.len() == fixed.len() };
            let same = fixed.iter().zip(&have).all(|(w, h)| *w == "*" || w == h);
            let plain = !topic.starts_with("vm:") && !topic.starts_with('$');
            prop_assert_eq!(Pattern::parse(&pattern).unwrap().matches(&topic), long && same && plain);
        }

        /// What covers matches all of it; what does not misses something of it.
        #[test]
        fn covering_is_matching_all_of_it(
            own in "([$]?[ab*])([.][ab*]){0,2}([.]>)?|>|vm:[ab*]",
            other in "([$]?[ab*])([.][ab*]){0,2}([.]>)?|>|vm:[ab*]",
        ) {
            let (Ok(own), Ok(other)) = (Pattern::parse(&own), Pattern::parse(&other)) else { return Ok(()) };
            // A token that no pattern names stands for whatever a wildcard takes.
            let some = |rest: &str| match other.as_str() {
                MAILBOXES => "vm:z".to_owned(),
                text => text.split('.').map(|t| match t { "*" => "z", ">" => rest, t => t }).collect::<Vec<_>>().join("."),
            };
            let all = ["z", "z.z", "z.z.z.z"].iter().all(|rest| own.matches(&some(rest)));
            prop_assert_eq!(own.covers(&other), all, "{:?} {:?}", own, other);
        }

        /// Patterns that match the same topic meet, and no others of a few tokens do.
        #[test]
        fn meeting_is_having_a_topic_in_common(
            own in "([$]?[ab*])([.][ab*]){0,2}([.]>)?|>|vm:[ab*]",
            other in "([$]?[ab*])([.][ab*]){0,2}([.]>)?|>|vm:[ab*]",
        ) {
            let (Ok(own), Ok(other)) = (Pattern::parse(&own), Pattern::parse(&other)) else { return Ok(()) };
            let tokens = ["a", "b", "z"];
            let mut topics: Vec<String> = tokens.map(String::from).into();
            for from in [0, 3, 12] {
                let longer = topics[from..].iter().flat_map(|t| tokens.map(|token| format!("{t}.{token}")));
                topics = topics.iter().cloned().chain(longer).collect();
            }
            let broker = topics.iter().map(|topic| format!("${topic}"));
            let all: Vec<String> =
                topics.iter().cloned().chain(broker).chain(["vm:a", "vm:b", "vm:z"].map(String::from)).collect();
            let meet = all.iter().any(|topic| own.matches(topic) && other.matches(topic));
            prop_assert_eq!(own.meets(&other), meet, "{:?} {:?}", own, other);
            prop_assert_eq!(other.meets(&own), meet);
        }

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
