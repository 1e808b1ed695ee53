//! `[[topics]]` of castra.toml: what the operator says of topics.
//!
//! Always holds: no two that were taken in name the same topic or pattern; snapshots are made of what is compacted
//! alone. Pure. Owner: [`super::Settings`].

use super::parse::{Place, Reader, Value, entries, unknown};
use super::{Settings, bytes_text, parse_bytes, quoted, time_text};
use crate::core::limits::TOPIC_ENTRIES;
use crate::core::topic::Pattern;
use std::collections::HashMap;
use std::fmt::Write;
use std::ops::Range;
use std::time::Duration;
use toml::de::{DeArray, DeTable, DeValue};

/// What it is called in the file.
pub(super) const SECTION: &str = "topics";
/// Snapshots are made so often at the most, and at the least.
const EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(366 * 24 * 3600));

/// What can be said of a topic: the key, what it is, an example.
const KEYS: [(&str, &str, &str); 4] = [
    (
        "topic",
        "A topic or a pattern, as in a subscription: wildcards match neither mailboxes nor what begins with $",
        "\"config.>\"",
    ),
    (
        "compaction",
        "Whether the newest event of each key is kept for ever, whatever retention removes: `castra bus latest` and\n\
         # subscriptions from \"state\" have them. An event whose payload is null deletes its key. Wildcards leave out\n\
         # topics that end with .snapshot",
        "true",
    ),
    (
        "snapshot_every",
        "How often the newest event of each key is published to <topic>.snapshot, if something changed. Not set: only\n\
         # when `castra bus snapshot` asks for it. 1s to 1year; only with compaction, and not for mailboxes or $…",
        "\"1h\"",
    ),
    (
        "retention",
        "How long events are of use: an age, bytes or a number of events, or a list of them. What is older or more is\n\
         # delivered no more. The first of the [[topics]] that matches a topic counts, and none keeps anything longer\n\
         # than [limits] keeps the journal",
        "[\"3 days\", \"100 MiB\", \"100000 events\"]",
    ),
];

/// What is said of the topics of one pattern.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicSetting {
    /// Which.
    pub topic: Pattern,
    /// The newest event of each key is kept for ever.
    pub compaction: bool,
    /// A snapshot is published so often.
    pub snapshot_every: Option<Duration>,
    /// How long events are of use.
    pub retention: Keep,
}

/// How long events are of use; nothing set is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Not older than this.
    pub age: Option<Duration>,
    /// The newest ones of so many bytes in all.
    pub bytes: Option<u64>,
    /// So many of the newest ones.
    pub events: Option<u64>,
}

pub(super) fn take(reader: &mut Reader<'_>, settings: &mut Settings, items: &DeArray<'_>) {
    let mut seen = HashMap::new();
    settings.topics.clear();
    for (n, item) in items.iter().enumerate() {
        if n == TOPIC_ENTRIES {
            return reader.wrong(&item.span(), format!("there are more than {TOPIC_ENTRIES} [[topics]]"));
        }
        match item.get_ref() {
            DeValue::Table(table) => take_one(reader, settings, &mut seen, table, &item.span()),
            _ => reader.wrong(&item.span(), "each topic is a section of its own, to be written [[topics]]"),
        }
    }
}

fn take_one(
    reader: &mut Reader<'_>,
    settings: &mut Settings,
    seen: &mut HashMap<Pattern, Place>,
    table: &DeTable<'_>,
    at: &Range<usize>,
) {
    let (mut topic, mut is_named, mut every_at) = (None, false, None);
    let (mut compaction, mut snapshot_every, mut retention) = (false, None, Keep::default());
    for (key, value) in entries(table) {
        let Some((known, ..)) = KEYS.iter().find(|(known, ..)| known == key.get_ref()) else {
            unknown(reader, key, " in [[topics]]", KEYS.iter().map(|(known, ..)| *known));
            continue;
        };
        let taken = match *known {
            "topic" => {
                is_named = true;
                let place = reader.place(&value.span());
                pattern(value, seen, place).map(|found| topic = Some(found))
            }
            "compaction" => truth(value).map(|is| compaction = is),
            "retention" => keep(value).map(|keep| retention = keep),
            _ => {
                every_at = Some(value.span());
                every(value).map(|time| snapshot_every = Some(time))
            }
        };
        if let Err(why) = taken {
            reader.wrong(&value.span(), format!("topics.{known}: {why}"));
        }
    }
    if !is_named {
        return reader.wrong(at, "which topics: say topic = \"…\"");
    }
    if let Some(at) = every_at.clone().filter(|_| !compaction) {
        return reader
            .wrong(&at, "topics.snapshot_every: only with compaction = true is there anything to publish");
    }
    // Wildcards match none of these.
    let has_none = |topic: &Pattern| topic.as_str().starts_with("vm:") || topic.as_str().starts_with('$');
    if let Some(at) = every_at.filter(|_| topic.as_ref().is_some_and(has_none)) {
        let why =
            "topics.snapshot_every: mailboxes and topics that begin with $ have no snapshots; leave it out";
        return reader.wrong(&at, why);
    }
    if let Some(topic) = topic {
        settings.topics.push(TopicSetting { topic, compaction, snapshot_every, retention });
    }
}

fn pattern(value: &Value<'_>, seen: &mut HashMap<Pattern, Place>, place: Place) -> Result<Pattern, String> {
    let DeValue::String(text) = value.get_ref() else {
        return Err("a topic or a pattern is wanted, in quotes".to_owned());
    };
    let pattern = Pattern::parse(text).map_err(|e| format!("{text:?} is no topic and no pattern: {e}"))?;
    if let Some(first) = seen.get(&pattern) {
        return Err(format!("{text:?} is there twice; the first is in line {}", first.line));
    }
    seen.insert(pattern.clone(), place);
    Ok(pattern)
}

fn truth(value: &Value<'_>) -> Result<bool, String> {
    match value.get_ref() {
        DeValue::Boolean(is) => Ok(*is),
        _ => Err("true or false is wanted, without quotes".to_owned()),
    }
}

fn keep(value: &Value<'_>) -> Result<Keep, String> {
    let wanted = "an age, bytes or a number of events is wanted, like \"3 days\", \"10 GiB\" or \"1000 events\", or a list";
    let texts: Option<Vec<&str>> = match value.get_ref() {
        DeValue::String(text) => Some(vec![text]),
        DeValue::Array(items) => items.iter().map(|item| item.get_ref().as_str()).collect(),
        _ => None,
    };
    let mut keep = Keep::default();
    for text in texts.ok_or(wanted)? {
        let events = text.strip_suffix("events").or(text.strip_suffix("event")).map(str::trim_end);
        let is_twice = if let Some(events) = events {
            let events: u64 = events.parse().map_err(|_| format!("{text:?} will not do: {wanted}"))?;
            if events == 0 {
                return Err(format!("{text:?} would keep nothing: leave the topic out"));
            }
            keep.events.replace(events).is_some()
        } else if text.ends_with('B')
            && let Some(bytes) = parse_bytes(text).filter(|bytes| *bytes > 0)
        {
            keep.bytes.replace(bytes).is_some()
        } else if let Some(age) =
            humantime::parse_duration(text).ok().filter(|age| *age >= Duration::from_millis(1))
        {
            keep.age.replace(age).is_some()
        } else {
            return Err(format!("{text:?} will not do: {wanted}"));
        };
        if is_twice {
            return Err(format!("{text:?} is the second bound of its kind"));
        }
    }
    Ok(keep)
}

impl Keep {
    fn print(&self) -> Option<String> {
        let bytes = |bytes| match bytes_text(bytes) {
            text if text.ends_with('B') => text,
            text => format!("{text} B"),
        };
        let all = [
            self.age.map(time_text),
            self.bytes.map(bytes),
            self.events.map(|events| format!("{events} events")),
        ];
        let all: Vec<String> = all.into_iter().flatten().map(|text| quoted(&text)).collect();
        (!all.is_empty()).then(|| format!("[{}]", all.join(", ")))
    }
}

fn every(value: &Value<'_>) -> Result<Duration, String> {
    let wanted = "a time with its unit is wanted, like \"10min\" or \"1h\"";
    let DeValue::String(text) = value.get_ref() else { return Err(wanted.to_owned()) };
    let time = humantime::parse_duration(text).map_err(|_| format!("{text:?} will not do: {wanted}"))?;
    let (least, most) = EVERY;
    if time < least || time > most {
        let bounds = format!("{} to {}", time_text(least), time_text(most));
        return Err(format!("{text} is out of bounds: snapshot_every is {bounds}"));
    }
    Ok(time)
}

/// The topics as castra.toml has them; where there is none, an example, as comments.
pub(super) fn print(out: &mut String, topics: &[TopicSetting]) {
    // Into a string: cannot fail.
    if topics.is_empty() {
        out.push_str(
            "\n# A section for each topic or pattern that something is to be said of.\n# [[topics]]\n",
        );
        for (key, doc, example) in KEYS {
            let _ = writeln!(out, "# {doc}.\n# {key} = {example}");
        }
    }
    for topic in topics {
        let every = topic.snapshot_every.map(|time| quoted(&time_text(time)));
        let _ = writeln!(out, "\n[[topics]]\ntopic = {}", quoted(topic.topic.as_str()));
        for (key, value) in [
            ("compaction", topic.compaction.then(|| "true".to_owned())),
            ("snapshot_every", every),
            ("retention", topic.retention.print()),
        ] {
            if let Some(value) = value {
                let _ = writeln!(out, "{key} = {value}");
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::collection::btree_map;
    use proptest::option;
    use proptest::prelude::*;

    fn keeps() -> impl Strategy<Value = Keep> {
        let age = option::of((1..10u64.pow(10)).prop_map(Duration::from_millis));
        (age, option::of(1u64..1 << 40), option::of(1u64..)).prop_map(|(age, bytes, events)| Keep {
            age,
            bytes,
            events,
        })
    }

    #[test]
    fn what_is_kept_is_said_in_words() {
        let read = |value: &str| {
            let mut settings = Settings::default();
            let found = settings.read(&format!("[[topics]]\ntopic = \"a\"\nretention = {value}\n"));
            match found.mistakes.first() {
                Some(mistake) => Err(mistake.message.clone()),
                None => Ok(settings.topics[0].retention),
            }
        };
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(read("\"3 days\""), Ok(Keep { age: Some(3 * day), ..Keep::default() }));
        let all = Keep { age: Some(day), bytes: Some(10 << 30), events: Some(7) };
        assert_eq!(read("[\"10 GiB\", \"7 events\", \"1d\"]"), Ok(all));
        for (wrong, words) in [
            ("3", "is wanted, like \"3 days\""),
            ("[3]", "is wanted, like"),
            ("\"often\"", "\"often\" will not do"),
            ("\"-1 events\"", "will not do"),
            ("\"0 events\"", "would keep nothing"),
            ("[\"1 day\", \"2 days\"]", "\"2 days\" is the second bound of its kind"),
        ] {
            let said = read(wrong).unwrap_err();
            assert!(said.contains(words), "{wrong}: {said}");
        }
    }

    /// Any topics.
    pub fn topics() -> impl Strategy<Value = Vec<TopicSetting>> {
        let every = (1..366 * 24 * 3600u64).prop_map(Duration::from_secs);
        let all = btree_map(
            "[a-zä\"]{1,3}([.][a-z*]){0,2}([.]>)?|[$]dlq[.]>",
            (any::<bool>(), option::of(every), keeps()),
            0..5,
        );
        all.prop_map(|all| {
            let topic = |(text, (compaction, every, retention)): (String, (bool, Option<Duration>, Keep))| {
                let topic = Pattern::parse(&text).ok()?;
                Some(TopicSetting {
                    topic,
                    compaction,
                    snapshot_every: every.filter(|_| compaction && !text.starts_with('$')),
                    retention,
                })
            };
            all.into_iter().filter_map(topic).collect()
        })
    }

    #[test]
    fn a_mistake_of_a_topic_says_where_and_what_is_allowed() {
        for (line, column, words) in [
            ("topic = 1", 9, "a topic or a pattern is wanted, in quotes"),
            ("topic = \"a.>.b\"", 9, "\"a.>.b\" is no topic and no pattern"),
            ("topic = \"b\"", 9, "\"b\" is there twice; the first is in line 2"),
            ("topic = \"a\"\ncompaction = \"yes\"", 14, "true or false is wanted"),
            ("topic = \"a\"\nsnapshot_every = \"1h\"", 18, "only with compaction = true"),
            (
                "topic = \"vm:*\"\ncompaction = true\nsnapshot_every = \"1h\"",
                18,
                "mailboxes and topics that begin with $ have no snapshots",
            ),
            ("topic = \"$dlq.>\"\ncompaction = true\nsnapshot_every = \"1h\"", 18, "have no snapshots"),
            (
                "topic = \"a\"\nretain = 1",
                1,
                "in [[topics]]; known are topic, compaction, snapshot_every, retention",
            ),
            ("topic = \"a\"\ncompactoin = true", 1, "did you mean compaction?"),
            ("compaction = true", 1, "which topics: say topic"),
        ] {
            let text = format!("[[topics]]\ntopic = \"b\"\n[[topics]]\n{line}\n");
            let found = Settings::default().read(&text).mistakes;
            let at = found.first().and_then(|mistake| mistake.place).map(|place| place.column);
            assert!(
                found.len() == 1 && at == Some(column) && found[0].message.contains(words),
                "{line}: {found:?}"
            );
        }
        for (every, words) in [
            ("3600", "a time with its unit is wanted"),
            ("\"soon\"", "\"soon\" will not do"),
            ("\"10ms\"", "out of bounds: snapshot_every is 1s to 1year"),
        ] {
            let text = format!("[[topics]]\ntopic = \"a\"\ncompaction = true\nsnapshot_every = {every}\n");
            let found = Settings::default().read(&text).mistakes;
            assert!(found.len() == 1 && found[0].message.contains(words), "{every}: {found:?}");
        }
        let many: String = (0..=TOPIC_ENTRIES).map(|n| format!("[[topics]]\ntopic = \"t{n}\"\n")).collect();
        let found = Settings::default().read(&many).mistakes;
        assert!(found.len() == 1 && found[0].message.contains("there are more than"), "{found:?}");
        for text in ["[topics]\ntopic = \"a\"", "topics = [1]"] {
            let found = Settings::default().read(text).mistakes;
            assert!(found[0].message.contains("to be written [[topics]]"), "{found:?}");
        }
    }
}
