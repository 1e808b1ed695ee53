//! Which events are wanted.
//!
//! Always holds: an event passes when its topic matches one of the patterns, if there are any, and its line
//! has the expression in it, if there is one. Pure. Owner: the command that was given them.

use super::line::EventLine;
use crate::core::topic::Pattern;
use regex_lite::Regex;

/// What makes a text more than itself, outside of brackets.
const OPERATORS: [char; 14] = ['\\', '.', '+', '*', '?', '(', ')', '|', '[', ']', '{', '}', '^', '$'];

/// A regular expression, or a text that needs none.
#[derive(Debug)]
pub enum Grep {
    /// To be found as it stands; many times faster.
    Text(String),
    /// Any other expression.
    Regex(Regex),
}

impl Grep {
    /// Reads an expression in the syntax of the crate `regex-lite`.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, regex_lite::Error> {
        if !text.contains(OPERATORS) {
            return Ok(Grep::Text(text.to_owned()));
        }
        Regex::new(text).map(Grep::Regex)
    }

    /// Whether it is found in `line`.
    pub fn is_in(&self, line: &str) -> bool {
        match self {
            Grep::Text(text) => line.contains(text.as_str()),
            Grep::Regex(regex) => regex.is_match(line),
        }
    }
}

/// What is asked of an event.
#[derive(Debug, Default)]
pub struct Filter {
    /// One of these; none: any topic.
    pub patterns: Vec<Pattern>,
    /// In its line.
    pub grep: Option<Grep>,
}

impl Filter {
    /// Whether `event` is wanted.
    pub fn keeps(&self, event: &EventLine<'_>) -> bool {
        let topic = self.patterns.is_empty() || self.patterns.iter().any(|p| p.matches(&event.topic));
        topic && self.grep.as_ref().is_none_or(|grep| grep.is_in(event.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_and_expressions() {
        let keeps = |patterns: &[&str], grep: Option<&str>, line: &str| {
            let patterns = patterns.iter().map(|p| Pattern::parse(p).unwrap()).collect();
            let filter = Filter { patterns, grep: grep.map(|g| Grep::parse(g).unwrap()) };
            filter.keeps(&EventLine::parse(line.as_bytes()).unwrap())
        };
        let line = r#"{"seq":1,"ts":2,"vm":"a","topic":"x.\"q\"","payload":{"code": 17}}"#;
        assert!(keeps(&[], None, line));
        assert!(keeps(&["y", "x.*"], None, line), "one of them is enough");
        assert!(keeps(&["x.\"q\""], None, line), "the topic is meant, not its encoding");
        assert!(!keeps(&["y", "vm:*"], None, line));
        assert!(keeps(&[], Some("code\": 1[0-9]"), line) && keeps(&[], Some("payload"), line));
        assert!(!keeps(&[], Some("code: 17"), line) && !keeps(&["y"], Some("payload"), line));
        assert!(Grep::parse("(").is_err());
        // An id is a text: it is what is looked for most.
        for text in ["a b\"c", "01a1fd72-24b2-7775-bce7-b377009b10b4", "a&b~c#d"] {
            assert!(matches!(Grep::parse(text).unwrap(), Grep::Text(_)), "{text}");
        }
    }

    proptest! {
        /// A text that is taken as it stands finds what the expression would.
        #[test]
        fn a_text_is_an_expression_of_itself(text in "[a-c \\-&~#:\"/]{0,6}", line in "[a-c \\-&~#:\"/]{0,20}") {
            let Grep::Text(plain) = Grep::parse(&text).unwrap() else { return Err(TestCaseError::fail("an expression")) };
            prop_assert_eq!(line.contains(&plain), Regex::new(&text).unwrap().is_match(&line));
        }
    }
}
