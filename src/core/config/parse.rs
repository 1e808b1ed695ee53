//! Reads a castra.toml into [`Settings`], and says where it is wrong.
//!
//! Always holds: a key that is not known is an error, with the nearest one that is; a mistake has the line and
//! column of the key or the value it is about, from 1, counted in characters; all mistakes are said, as far as the
//! file is TOML. Pure. Owner: [`Settings::read`].

use super::table::Kind;
use super::vms::{self, VmPlaces};
use super::{SETTINGS, Setting, Settings, topics};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where something stands in a castra.toml.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

/// What is wrong with a castra.toml, or deserves a word.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Where; `None`: a flag or the environment says it.
    pub place: Option<Place>,
    /// What is wrong there, and what is allowed; one line.
    pub message: String,
}

/// Where the values stand.
#[derive(Clone, Debug, Default)]
pub struct Places {
    settings: BTreeMap<&'static str, Vec<Place>>,
    /// Of the VMs, in the order of [`Settings::vms`].
    pub vms: Vec<VmPlaces>,
    /// The file says `vms = []`: that there are none is meant so.
    pub no_vms: bool,
}

impl Places {
    /// Of the value of the setting `key`, or of the `n`th value where it is a list; its key is the only one of that
    /// name. `None`: the file does not say it.
    pub fn of(&self, key: &str, n: usize) -> Option<Place> {
        self.settings.get(key)?.get(n).copied()
    }

    /// The setting `key` is not the file's any more.
    pub fn forget(&mut self, key: &str) {
        self.settings.remove(key);
    }
}

/// What a castra.toml says.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The settings it has.
    pub said: Vec<&'static Setting>,
    /// What is wrong, as it stands in the file.
    pub mistakes: Vec<Mistake>,
    /// What deserves a word.
    pub warnings: Vec<Mistake>,
    /// Where it says what.
    pub places: Places,
}

pub(super) type Key<'i> = Spanned<Cow<'i, str>>;
pub(super) type Value<'i> = Spanned<DeValue<'i>>;

/// A text and what was found in it so far.
pub(super) struct Reader<'t> {
    text: &'t str,
    /// Where the lines begin.
    lines: Vec<usize>,
    reading: Reading,
}

impl Reader<'_> {
    pub fn place(&self, at: &Range<usize>) -> Place {
        let at = at.start.min(self.text.len());
        let line = self.lines.partition_point(|begins| *begins <= at);
        let begins = self.lines.get(line.wrapping_sub(1)).copied().unwrap_or_default();
        let before = self.text.get(begins..at).unwrap_or_default();
        Place { line: line.max(1), column: before.chars().count() + 1 }
    }

    pub fn wrong(&mut self, at: &Range<usize>, message: impl Into<String>) {
        let mistake = Mistake { place: Some(self.place(at)), message: message.into() };
        self.reading.mistakes.push(mistake);
    }

    pub fn warn(&mut self, at: &Range<usize>, message: impl Into<String>) {
        let warning = Mistake { place: Some(self.place(at)), message: message.into() };
        self.reading.warnings.push(warning);
    }

    /// Where a VM stands that was just taken in.
    pub fn stands(&mut self, vm: VmPlaces) {
        self.reading.places.vms.push(vm);
    }
}

pub(super) fn read(settings: &mut Settings, text: &str) -> Reading {
    let begins = text.match_indices('\n').map(|(at, _)| at + 1);
    let lines = std::iter::once(0).chain(begins).collect();
    let mut reader = Reader { text, lines, reading: Reading::default() };
    match DeTable::parse(text) {
        Ok(table) => take(&mut reader, settings, table.get_ref()),
        Err(error) => {
            reader.wrong(&error.span().unwrap_or_default(), error.message().replace('\n', " "));
        }
    }
    let mut reading = reader.reading;
    reading.mistakes.sort();
    reading
}

/// The entries of a table as they stand in the file.
pub(super) fn entries<'a, 'i>(table: &'a DeTable<'i>) -> Vec<(&'a Key<'i>, &'a Value<'i>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

fn take(reader: &mut Reader<'_>, settings: &mut Settings, table: &DeTable<'_>) {
    for (key, value) in entries(table) {
        if let Some(setting) = SETTINGS.iter().find(|s| s.section.is_empty() && s.key == key.get_ref()) {
            assign(reader, settings, setting, value);
        } else if let Some(section) = SETTINGS.iter().find(|s| s.section == key.get_ref()) {
            let section = section.section;
            let DeValue::Table(inner) = value.get_ref() else {
                reader.wrong(&key.span(), format!("{section} is a section, to be written [{section}]"));
                continue;
            };
            for (key, value) in entries(inner) {
                let known = SETTINGS.iter().filter(|s| s.section == section);
                match known.clone().find(|s| s.key == key.get_ref()) {
                    Some(setting) => assign(reader, settings, setting, value),
                    None => unknown(reader, key, &format!(" in [{section}]"), known.map(|s| s.key)),
                }
            }
        } else if key.get_ref() == vms::SECTION {
            match value.get_ref() {
                DeValue::Array(items) => {
                    reader.reading.places.no_vms = items.is_empty();
                    vms::take(reader, settings, items);
                }
                _ => reader.wrong(&key.span(), "each VM is a section of its own, to be written [[vms]]"),
            }
        } else if key.get_ref() == topics::SECTION {
            match value.get_ref() {
                DeValue::Array(items) => topics::take(reader, settings, items),
                _ => {
                    reader.wrong(&key.span(), "each topic is a section of its own, to be written [[topics]]")
                }
            }
        } else {
            let known = SETTINGS.iter().map(|s| if s.section.is_empty() { s.key } else { s.section });
            unknown(reader, key, "", known.chain([topics::SECTION, vms::SECTION]));
        }
    }
}

fn assign(reader: &mut Reader<'_>, settings: &mut Settings, setting: &'static Setting, value: &Value<'_>) {
    let items: &[Value<'_>] = match (setting.kind, value.get_ref()) {
        (Kind::Paths(_) | Kind::Globs(_) | Kind::Addresses(_), DeValue::Array(items)) => {
            setting.clear(settings);
            items
        }
        (Kind::Paths(_) | Kind::Globs(_) | Kind::Addresses(_), _) => {
            return reader.wrong(&value.span(), format!("{}: {}", setting.name(), setting.wanted()));
        }
        _ => std::slice::from_ref(value),
    };
    let mut places = Vec::new();
    for item in items {
        match set(settings, setting, item.get_ref()) {
            Ok(()) => places.push(reader.place(&item.span())),
            Err(why) => reader.wrong(&item.span(), format!("{}: {why}", setting.name())),
        }
    }
    reader.reading.places.settings.insert(setting.key, places);
    reader.reading.said.push(setting);
}

fn set(settings: &mut Settings, setting: &Setting, value: &DeValue<'_>) -> Result<(), String> {
    match (setting.kind, value) {
        (Kind::Count(..) | Kind::Port(_), DeValue::String(_)) => Err(setting.wanted()),
        // What it would be relative to depends on who reads the file.
        (Kind::Path(_) | Kind::Paths(_), DeValue::String(text)) if !text.starts_with('/') => {
            Err(format!("{text:?} is no absolute path; in castra.toml a path begins with /"))
        }
        (_, DeValue::String(text)) => setting.set(settings, text),
        (Kind::Count(..) | Kind::Bytes(..) | Kind::Port(_), DeValue::Integer(number)) => {
            let parsed = u64::from_str_radix(number.as_str(), number.radix());
            parsed
                .map_err(|_| setting.out_of_bounds(number.as_str()))
                .and_then(|number| setting.set_number(settings, number))
        }
        _ => Err(setting.wanted()),
    }
}

/// There is no such key.
pub(super) fn unknown(
    reader: &mut Reader<'_>,
    key: &Key<'_>,
    place: &str,
    known: impl Iterator<Item = &'static str>,
) {
    let mut known: Vec<&str> = known.collect();
    known.dedup();
    let said = key.get_ref();
    let near = known.iter().map(|name| (distance(said, name), *name)).min();
    let hint = match near {
        Some((far, name)) if far <= 1 + name.len() / 4 => format!("did you mean {name}?"),
        _ if known.len() <= 8 => format!("known are {}", known.join(", ")),
        _ => "`castra broker --print-config` shows what there is".to_owned(),
    };
    reader.wrong(&key.span(), format!("there is no setting {said:?}{place}; {hint}"));
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
        let mut mistakes = Settings::default().read(text).mistakes;
        assert!(mistakes.iter().all(|mistake| !mistake.message.contains('\n')), "{text}: {mistakes:?}");
        assert!(!mistakes.is_empty(), "{text}");
        let Mistake { place, message } = mistakes.remove(0);
        let place = place.unwrap();
        (place.line, place.column, message)
    }

    #[test]
    fn a_mistake_says_where_and_what_is_allowed() {
        for (text, line, column, words) in [
            (
                "hello_time = \"1s\"",
                1,
                1,
                "there is no setting \"hello_time\"; known are state_root, broker, log, limits, topics, vms",
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
            assert!(
                settings.read(&format!("[limits]\nsegment_bytes = {text}")).mistakes.is_empty(),
                "{text}"
            );
            assert_eq!(settings.limits.segment_bytes, bytes, "{text}");
        }
    }

    proptest! {
        /// Whatever is read, a mistake is somewhere in it.
        #[test]
        fn a_mistake_is_in_the_file(text in "[a-z_=\\[\\]\"0-9 .\n#ä-]{0,80}") {
            for mistake in Settings::default().read(&text).mistakes {
                let Place { line, column } = mistake.place.unwrap();
                let lines: Vec<&str> = text.split('\n').collect();
                prop_assert!((1..=lines.len()).contains(&line));
                prop_assert!((1..=lines[line - 1].chars().count() + 1).contains(&column));
            }
        }
    }
}
