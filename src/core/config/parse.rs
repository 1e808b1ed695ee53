//! Reads a castra.toml into [`Settings`], and says where it is wrong.
//!
//! Always holds: a key that is not known is an error, with the nearest one that is; a mistake has the line and
//! column of the key or the value it is about, from 1, counted in characters. Pure. Owner: [`Settings::read`].

use super::table::Kind;
use super::{SETTINGS, Setting, Settings};
use std::borrow::Cow;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is wrong with a castra.toml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong there, and what is allowed; one line.
    pub message: String,
}

type Key<'i> = Spanned<Cow<'i, str>>;
type Wrong = (Range<usize>, String);

pub(super) fn read(settings: &mut Settings, text: &str) -> Result<Vec<&'static Setting>, Mistake> {
    let parsed = DeTable::parse(text)
        .map_err(|error| (error.span().unwrap_or_default(), error.message().replace('\n', " ")));
    parsed
        .and_then(|table| take(settings, table.get_ref()))
        .map_err(|(at, message)| mistake(text, &at, message))
}

fn mistake(text: &str, at: &Range<usize>, message: String) -> Mistake {
    let before = text.get(..at.start.min(text.len())).unwrap_or(text);
    let line = before.rfind('\n').map_or(before, |end| &before[end + 1..]);
    Mistake { line: before.matches('\n').count() + 1, column: line.chars().count() + 1, message }
}

/// The entries of a table as they stand in the file.
fn entries<'a, 'i>(table: &'a DeTable<'i>) -> Vec<(&'a Key<'i>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

fn take(settings: &mut Settings, table: &DeTable<'_>) -> Result<Vec<&'static Setting>, Wrong> {
    let mut said = Vec::new();
    for (key, value) in entries(table) {
        if let Some(setting) = SETTINGS.iter().find(|s| s.section.is_empty() && s.key == key.get_ref()) {
            assign(settings, setting, value)?;
            said.push(setting);
        } else if let Some(section) = SETTINGS.iter().find(|s| s.section == key.get_ref()) {
            let section = section.section;
            let DeValue::Table(inner) = value.get_ref() else {
                return Err((key.span(), format!("{section} is a section, to be written [{section}]")));
            };
            for (key, value) in entries(inner) {
                let known = SETTINGS.iter().filter(|s| s.section == section);
                let Some(setting) = known.clone().find(|s| s.key == key.get_ref()) else {
                    return Err(unknown(key, &format!(" in [{section}]"), known.map(|s| s.key)));
                };
                assign(settings, setting, value)?;
                said.push(setting);
            }
        } else {
            let known = SETTINGS.iter().map(|s| if s.section.is_empty() { s.key } else { s.section });
            return Err(unknown(key, "", known));
        }
    }
    Ok(said)
}

fn assign(settings: &mut Settings, setting: &Setting, value: &Spanned<DeValue<'_>>) -> Result<(), Wrong> {
    let wrong = |at: &Spanned<DeValue<'_>>, why| (at.span(), format!("{}: {why}", setting.name()));
    let text = |settings: &mut Settings, at, text: &str| {
        // What it would be relative to depends on who reads the file.
        let path = matches!(setting.kind, Kind::Path(_) | Kind::Paths(_));
        let set = if path && !text.starts_with('/') {
            Err(format!("{text:?} is no absolute path; in castra.toml a path begins with /"))
        } else {
            setting.set(settings, text)
        };
        set.map_err(|why| wrong(at, why))
    };
    match (setting.kind, value.get_ref()) {
        (Kind::Paths(_) | Kind::Addresses(_), DeValue::Array(items)) => {
            setting.clear(settings);
            items.iter().try_for_each(|item| match item.get_ref() {
                DeValue::String(said) => text(settings, item, said),
                _ => Err(wrong(item, setting.wanted())),
            })
        }
        (Kind::Paths(_) | Kind::Addresses(_), _) | (Kind::Count(..), DeValue::String(_)) => {
            Err(wrong(value, setting.wanted()))
        }
        (_, DeValue::String(said)) => text(settings, value, said),
        (Kind::Count(..) | Kind::Bytes(..), DeValue::Integer(number)) => {
            let parsed = u64::from_str_radix(number.as_str(), number.radix());
            let set = parsed.map_err(|_| setting.out_of_bounds(number.as_str()));
            set.and_then(|number| setting.set_number(settings, number)).map_err(|why| wrong(value, why))
        }
        _ => Err(wrong(value, setting.wanted())),
    }
}

fn unknown(key: &Key<'_>, place: &str, known: impl Iterator<Item = &'static str>) -> Wrong {
    let mut known: Vec<&str> = known.collect();
    known.dedup();
    let said = key.get_ref();
    let near = known.iter().map(|name| (distance(said, name), *name)).min();
    let hint = match near {
        Some((far, name)) if far <= 1 + name.len() / 4 => format!("did you mean {name}?"),
        _ if known.len() <= 8 => format!("known are {}", known.join(", ")),
        _ => "`castra broker --print-config` shows what there is".to_owned(),
    };
    (key.span(), format!("there is no setting {said:?}{place}; {hint}"))
}

/// How many letters are to be put in, taken out or changed to make one of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let cost = corner + usize::from(from != *to);
            corner = row[j + 1];
            row[j + 1] = cost.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wrong(text: &str) -> (usize, usize, String) {
        let mistake = Settings::default().read(text).expect_err(text);
        assert!(!mistake.message.contains('\n'), "{text}: {}", mistake.message);
        (mistake.line, mistake.column, mistake.message)
    }

    #[test]
    fn a_mistake_says_where_and_what_is_allowed() {
        for (text, line, column, words) in [
            (
                "hello_time = \"1s\"",
                1,
                1,
                "there is no setting \"hello_time\"; known are state_root, broker, log, limits",
            ),
            ("\n[limits]\nhello_tme = \"1s\"", 3, 1, "in [limits]; did you mean hello_time?"),
            ("[limits]\n x_y_z = 1", 2, 2, "--print-config"),
            ("[limit]", 1, 2, "did you mean limits?"),
            ("limits = 3", 1, 1, "to be written [limits]"),
            ("[[log]]", 1, 3, "to be written [log]"),
            (
                "[log]\nlevel = \"loud\"",
                2,
                9,
                "log.level: \"loud\" is none of error, warn, info, debug, trace",
            ),
            ("[log]\nformat = 1", 2, 10, "one of these words is wanted: text, json"),
            ("[limits]\nidle_time = 60", 2, 13, "a time with its unit is wanted"),
            ("[limits]\nidle_time = \"soon\"", 2, 13, "\"soon\" will not do"),
            ("[limits]\nidle_time = \"0s\"", 2, 13, "0s is out of bounds: idle_time is 10ms to 10years"),
            (
                "[limits]\nsegment_bytes = \"64 KiB\"",
                2,
                17,
                "is out of bounds: segment_bytes is 1 MiB to 4 GiB",
            ),
            ("[limits]\nsegment_bytes = -1", 2, 17, "-1 is out of bounds"),
            ("[limits]\nsegment_bytes = \"64 XiB\"", 2, 17, "bytes are wanted"),
            ("[limits]\nsegment_bytes = 1.5", 2, 17, "bytes are wanted"),
            ("[limits]\nretain_bytes = \"99999999999 TiB\"", 2, 16, "bytes are wanted"),
            ("[limits]\nsessions = 0", 2, 12, "sessions is 1 to 1000000"),
            ("[limits]\nsessions = \"9\"", 2, 12, "without a unit"),
            ("[limits]\nsessions = true", 2, 12, "a number is wanted"),
            ("[broker]\ntcp = \"127.0.0.1:1\"", 2, 7, "a list of addresses is wanted"),
            (
                "[broker]\ntcp = [\"127.0.0.1:1\",\n  \"localhost:1\"]",
                3,
                3,
                "is no address; one is an IP and a port",
            ),
            ("[broker]\ntcp = [1]", 2, 8, "a list of addresses"),
            ("[broker]\nunix = [\"run/x\"]", 2, 9, "begins with /"),
            ("state_root = \"~/castra\"", 1, 14, "begins with /"),
            ("state_root = 1", 1, 14, "a path is wanted"),
            // The file's own first mistake, whatever its keys are called.
            ("[log]\nlevel = 1\n[broker]\ntcp = 1", 2, 9, "log.level"),
            ("# ä\n\"ä\" = 1", 2, 1, "there is no setting"),
            ("[log]\nlevel = \"info\"\nlevel = \"info\"", 3, 1, "duplicate"),
        ] {
            let (l, c, message) = wrong(text);
            assert!((l, c) == (line, column) && message.contains(words), "{text:?}: {l}:{c}: {message}");
        }
        for broken in ["[", "a", "a =", "[log]\nlevel = \"", "= 1", "[limits]\nsessions = 1 2", "\u{0}"] {
            let (line, _, message) = wrong(broken);
            assert!(line <= 2 && !message.is_empty(), "{broken:?}: {line}: {message}");
        }
    }

    #[test]
    fn bytes_have_units() {
        for (text, bytes) in [
            ("67108864", 1 << 26),
            ("\"64 MiB\"", 1 << 26),
            ("\"64MiB\"", 1 << 26),
            ("\"1 gib\"", 1 << 30),
            ("0x100_0000", 1 << 24),
            ("\"65536 kib\"", 1 << 26),
            ("\"2097152 B\"", 1 << 21),
        ] {
            let mut settings = Settings::default();
            settings.read(&format!("[limits]\nsegment_bytes = {text}")).expect(text);
            assert_eq!(settings.limits.segment_bytes, bytes, "{text}");
        }
    }

    proptest! {
        /// Whatever is read, a mistake is somewhere in it.
        #[test]
        fn a_mistake_is_in_the_file(text in "[a-z_=\\[\\]\"0-9 .\n#ä-]{0,80}") {
            if let Err(mistake) = Settings::default().read(&text) {
                let lines: Vec<&str> = text.split('\n').collect();
                prop_assert!((1..=lines.len()).contains(&mistake.line));
                prop_assert!((1..=lines[mistake.line - 1].chars().count() + 1).contains(&mistake.column));
            }
        }
    }
}
