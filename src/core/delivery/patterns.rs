//! Patterns, and which of them a topic is one of: a tree, so that nothing walks over all subscriptions.
//!
//! ```text
//! plain  "a.b" ─▶ values                 a hash table; mailboxes stand here under their one token
//! tree   root ─ "a" ─ * ─▶ values        "a.*"
//!               └ "a" ─ > ─▶ values      "a.>"
//! ```
//!
//! Always holds: a topic finds what [`Pattern::matches`] says, each value once for each of its patterns; what was put
//! in and taken out again leaves nothing behind. Pure. Owner: `router.rs`.

use crate::core::topic::{MAILBOXES, Pattern};
use std::collections::HashMap;

/// Values under patterns.
#[derive(Debug)]
pub struct Patterns<T> {
    plain: HashMap<Box<str>, Vec<T>>,
    mailboxes: Vec<T>,
    tree: Node<T>,
}

#[derive(Debug)]
struct Node<T> {
    /// Of patterns that end here.
    here: Vec<T>,
    /// Of patterns that go on with a last `>`.
    rest: Vec<T>,
    star: Option<Box<Node<T>>>,
    tokens: HashMap<Box<str>, Node<T>>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Node { here: Vec::new(), rest: Vec::new(), star: None, tokens: HashMap::new() }
    }
}

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Patterns { plain: HashMap::new(), mailboxes: Vec::new(), tree: Node::default() }
    }
}

impl<T: Copy + PartialEq> Patterns<T> {
    /// Puts `value` under `pattern`.
    pub fn insert(&mut self, pattern: &Pattern, value: T) {
        let text = pattern.as_str();
        if text == MAILBOXES {
            self.mailboxes.push(value);
        } else if pattern.is_plain() {
            self.plain.entry(text.into()).or_default().push(value);
        } else {
            self.tree.at(text).push(value);
        }
    }

    /// Takes it out again, once.
    pub fn remove(&mut self, pattern: &Pattern, value: T) {
        let text = pattern.as_str();
        if text == MAILBOXES {
            take(&mut self.mailboxes, value);
        } else if pattern.is_plain() {
            if let Some(values) = self.plain.get_mut(text) {
                take(values, value);
                if values.is_empty() {
                    self.plain.remove(text);
                }
            }
        } else {
            self.tree.remove(Some(text), value);
        }
    }

    /// Everything whose pattern matches `topic`, which is valid.
    pub fn find(&self, topic: &str, found: &mut Vec<T>) {
        found.extend(self.plain.get(topic).into_iter().flatten());
        if topic.starts_with("vm:") {
            found.extend(&self.mailboxes);
        } else if topic.starts_with('$') {
            // No wildcard stands for the first token of the broker's own topics.
            let (token, rest) = cut(topic);
            if let (Some(node), Some(rest)) = (self.tree.tokens.get(token), rest) {
                node.find(rest, found);
            }
        } else {
            self.tree.find(topic, found);
        }
    }

    /// Nothing is under any pattern.
    pub fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.mailboxes.is_empty() && self.tree.is_empty()
    }
}

impl<T: Copy + PartialEq> Node<T> {
    /// Where the values of `pattern` are; what is missing on the way is made.
    fn at(&mut self, pattern: &str) -> &mut Vec<T> {
        let (token, rest) = cut(pattern);
        let next = match token {
            ">" => return &mut self.rest,
            "*" => &mut **self.star.get_or_insert_default(),
            token => self.tokens.entry(token.into()).or_default(),
        };
        match rest {
            Some(rest) => next.at(rest),
            None => &mut next.here,
        }
    }

    fn remove(&mut self, pattern: Option<&str>, value: T) {
        let Some(pattern) = pattern else { return take(&mut self.here, value) };
        let (token, rest) = cut(pattern);
        match token {
            ">" => take(&mut self.rest, value),
            "*" => {
                if let Some(star) = &mut self.star {
                    star.remove(rest, value);
                    if star.is_empty() {
                        self.star = None;
                    }
                }
            }
            token => {
                if let Some(next) = self.tokens.get_mut(token) {
                    next.remove(rest, value);
                    if next.is_empty() {
                        self.tokens.remove(token);
                    }
                }
            }
        }
    }

    /// `topic` is what is left of it, one token at least.
    fn find(&self, topic: &str, found: &mut Vec<T>) {
        found.extend(&self.rest);
        let (token, rest) = cut(topic);
        for next in [self.tokens.get(token), self.star.as_deref()].into_iter().flatten() {
            match rest {
                Some(rest) => next.find(rest, found),
                None => found.extend(&next.here),
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.here.is_empty() && self.rest.is_empty() && self.star.is_none() && self.tokens.is_empty()
    }
}

/// The first token, and what follows its dot.
fn cut(text: &str) -> (&str, Option<&str>) {
    match text.split_once('.') {
        Some((token, rest)) => (token, Some(rest)),
        None => (text, None),
    }
}

fn take<T: PartialEq>(values: &mut Vec<T>, value: T) {
    if let Some(i) = values.iter().position(|v| *v == value) {
        values.swap_remove(i);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::topic::Topic;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            "[ab*]([.][ab*]){0,3}([.]>)?",
            "[$][ab]([.][ab*]){0,2}([.]>)?",
            "vm:[ab]([.][ab])?",
            Just(">".into()),
            Just("vm:*".into())
        ]
    }

    proptest! {
        #[test]
        fn finds_what_the_patterns_match(texts in vec(text(), 0..30), gone in vec(any::<bool>(), 30), topics in vec(text(), 0..30)) {
            let patterns: Vec<Pattern> = texts.iter().map(|t| Pattern::parse(t).unwrap()).collect();
            let mut tree = Patterns::default();
            patterns.iter().enumerate().for_each(|(i, p)| tree.insert(p, i));
            let kept = |i: &usize| !gone[*i];
            (0..patterns.len()).filter(|i| !kept(i)).for_each(|i| tree.remove(&patterns[i], i));
            for topic in topics.iter().filter(|t| Topic::parse(t).is_ok() || (t.starts_with('$') && !t.contains(['*', '>']))) {
                let mut found = Vec::new();
                tree.find(topic, &mut found);
                found.sort_unstable();
                let want: Vec<usize> = (0..patterns.len()).filter(kept).filter(|i| patterns[*i].matches(topic)).collect();
                prop_assert_eq!(found, want, "{}", topic);
            }
            (0..patterns.len()).filter(kept).for_each(|i| tree.remove(&patterns[i], i));
            prop_assert!(tree.is_empty());
        }
    }
}
