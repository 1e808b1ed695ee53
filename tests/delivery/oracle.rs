//! What a subscription must be sent, in the words of the specification; nothing of it is the code's own.
//!
//! Always holds: [`Account::audit`] accepts only what is exactly right: each event that the patterns select from
//! `next_seq` on, in order, once, byte for byte, or in a gap that was said and is one.

use crate::world::Stored;
use std::collections::HashMap;

/// Whether `pattern` selects `topic`.
///
/// "`*` is one token and a last `>` is one or more. Wildcards match neither mailboxes nor `$…` unless the pattern begins
/// with that very word." A mailbox is one token, whatever dots its name has.
pub fn selects(pattern: &str, topic: &str) -> bool {
    fn tokens(text: &str) -> Vec<&str> {
        if text.starts_with("vm:") { vec![text] } else { text.split('.').collect() }
    }
    fn go(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern, topic) {
            ([], []) => true,
            ([">"], [_, ..]) => true,
            (["*", pattern @ ..], [_, topic @ ..]) => go(pattern, topic),
            ([want, pattern @ ..], [have, topic @ ..]) => want == have && go(pattern, topic),
            _ => false,
        }
    }
    if topic.starts_with("vm:") && pattern == "vm:*" {
        return true;
    }
    let own =
        |text: &str| if text.starts_with("vm:") { Some('v') } else { text.starts_with('$').then_some('$') };
    own(pattern) == own(topic) && go(&tokens(pattern), &tokens(topic))
}

/// Something a subscription was sent.
#[derive(Clone, Debug)]
pub enum Sent {
    /// From `"seq":` on.
    Event(u64, Vec<u8>),
    Gap(u64, u64),
}

/// One subscription from its ack to its end, as its session saw it.
#[derive(Clone, Debug)]
pub struct Account {
    pub who: String,
    pub patterns: Vec<String>,
    pub next_seq: u64,
    pub sent: Vec<Sent>,
    /// It was seen to the end: all up to this seq must have come.
    pub complete_to: Option<u64>,
}

impl Account {
    /// Everything before this seq was sent or said to be gone.
    pub fn at(&self) -> u64 {
        match self.sent.last() {
            Some(Sent::Event(seq, _)) => seq + 1,
            Some(Sent::Gap(_, to)) => to + 1,
            None => self.next_seq,
        }
    }

    /// Whether any of its patterns selects `topic`.
    pub fn selects(&self, topic: &str) -> bool {
        self.patterns.iter().any(|pattern| selects(pattern, topic))
    }

    /// Checks all of it against what was stored.
    pub fn audit(&self, stored: &[Stored]) -> Result<(), String> {
        let wrong =
            |what: String| Err(format!("{} {:?} from {}: {what}", self.who, self.patterns, self.next_seq));
        let end = self.complete_to.map_or(0, |to| to + 1).max(self.at());
        // Patterns and topics are few, events many.
        let mut known = HashMap::<&str, bool>::new();
        let mut sent = self.sent.iter().peekable();
        // Behind the last gap.
        let mut clear = self.next_seq;
        for event in stored.iter().skip(self.next_seq as usize - 1).take_while(|event| event.seq < end) {
            while let Some(Sent::Gap(from, to)) =
                sent.next_if(|s| matches!(s, Sent::Gap(from, _) if *from <= event.seq))
            {
                if *from < clear || to < from {
                    return wrong(format!("a gap {from}-{to} behind {clear}"));
                }
                clear = to + 1;
            }
            if !*known.entry(&event.topic).or_insert_with(|| self.selects(&event.topic)) || event.seq < clear
            {
                continue;
            }
            match sent.next() {
                Some(Sent::Event(seq, rest)) if *seq == event.seq && **rest == event.line[1..] => {
                    clear = seq + 1
                }
                Some(Sent::Event(seq, rest)) if *seq == event.seq => {
                    return wrong(format!(
                        "event {seq} is not what was stored: {}",
                        String::from_utf8_lossy(rest)
                    ));
                }
                other => {
                    let got = match other {
                        Some(Sent::Event(seq, _)) => format!("event {seq}"),
                        Some(Sent::Gap(from, to)) => format!("a gap {from}-{to}"),
                        None => "nothing more".to_owned(),
                    };
                    return wrong(format!("event {} ({}) is due, and came: {got}", event.seq, event.topic));
                }
            }
        }
        match sent.next() {
            Some(Sent::Event(seq, _)) => wrong(format!("event {seq} came, which is not due")),
            _ => Ok(()),
        }
    }
}

#[test]
fn the_oracle_knows_the_specification() {
    for (pattern, yes, no) in [
        ("a.*", "a.b a.c", "a a.b.c b.b"),
        ("*", "a vmx", "a.b vm:web vm:a.b $dlq"),
        (">", "a a.b a.b.c vmx.a", "vm:web vm:a.b $dlq.x"),
        ("*.b", "a.b", "vm:a.b $x.b"),
        ("a.>", "a.b a.b.c", "a b.a"),
        ("vm:*", "vm:web vm:a.b", "vm a"),
        ("vm:a.b", "vm:a.b", "vm:a vm:a.c"),
        ("$dlq.>", "$dlq.x $dlq.x.y", "$dlq dlq.x"),
    ] {
        yes.split(' ').for_each(|topic| assert!(selects(pattern, topic), "{pattern} {topic}"));
        no.split(' ').for_each(|topic| assert!(!selects(pattern, topic), "{pattern} {topic}"));
    }
}

/// Whatever is wrong with a delivery is found, or the tests are blind.
#[test]
fn the_oracle_finds_what_is_wrong() {
    let topics = ["a", "b", "a", "a", "b", "a"];
    let stored: Vec<Stored> = (1..)
        .zip(topics)
        .map(|(seq, topic)| {
            let line = format!(r#"{{"seq":{seq},"topic":"{topic}"}}"#).into_bytes();
            Stored { seq, ts: 0, id: String::new(), topic: topic.into(), line }
        })
        .collect();
    let event = |seq: u64| Sent::Event(seq, stored[seq as usize - 1].line[1..].to_vec());
    let account = |next_seq, sent: &[Sent], complete_to| {
        let (who, patterns) = ("x".to_owned(), vec!["a".to_owned()]);
        Account { who, patterns, next_seq, sent: sent.to_vec(), complete_to }.audit(&stored).is_ok()
    };
    assert!(account(1, &[event(1), event(3), event(4), event(6)], Some(6)));
    assert!(account(2, &[event(3), event(4)], None));
    assert!(account(2, &[], None) && account(5, &[event(6)], Some(6)));
    assert!(account(1, &[event(1), Sent::Gap(2, 3), event(4), event(6)], Some(6)));
    assert!(account(1, &[Sent::Gap(1, 5), event(6)], Some(6)));
    assert!(account(1, &[event(1), Sent::Gap(2, 6)], Some(6)));
    let lost = [event(1), event(4), event(6)];
    let twice = [event(1), event(3), event(3), event(4)];
    let swapped = [event(1), event(4), event(3), event(6)];
    let foreign = [event(1), event(2), event(3)];
    let covered = [event(1), Sent::Gap(2, 4), event(4), event(6)];
    let early = [event(1), event(3)];
    let garbled = [event(1), Sent::Event(3, b"x".to_vec())];
    let back = [event(1), event(3), Sent::Gap(2, 5)];
    for sent in [&lost[..], &twice, &swapped, &foreign, &covered, &garbled, &back] {
        assert!(!account(1, sent, None), "{sent:?}");
    }
    assert!(!account(2, &early, None) && !account(1, &early, Some(6)) && !account(2, &[], Some(6)));
    let behind = [event(1), event(3), event(4), event(6), event(6)];
    assert!(!account(1, &behind, None) && !account(1, &behind, Some(6)));
}
