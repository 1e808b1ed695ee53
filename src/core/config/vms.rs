//! `[[vms]]` of castra.toml: what the operator says of each VM.
//!
//! Always holds: of the VMs that were taken in no two have a name, a cid or a path in common; a token is printed
//! nowhere, also not where it is wrong. Pure. Owner: [`super::Settings`].

use super::parse::{Place, Reader, Value, entries, unknown};
use super::{Settings, check_socket, quoted};
use crate::core::identity::VmName;
use crate::core::limits::{TOKEN_BYTES, VM_ENTRIES, VM_PATTERNS};
use crate::core::policy::{Rules, Token};
use crate::core::topic::Pattern;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{Display, Write};
use std::hash::Hash;
use std::ops::Range;
use std::path::PathBuf;
use toml::de::{DeArray, DeTable, DeValue};

/// What it is called in the file.
pub(super) const SECTION: &str = "vms";
/// A token that is shorter is said to be.
pub(super) const SHORT_TOKEN: usize = 16;
/// The highest vsock context that a guest can have; the one above stands for any.
const CID_MAX: u64 = u32::MAX as u64 - 1;

/// What can be said of a VM: the key, what it is, an example.
const KEYS: [(&str, &str, &str); 8] = [
    ("name", "Its name, as its hello has it; everything else may be left out", "\"web\""),
    ("cid", "Its vsock context (1, or 3 to 4294967294): whoever comes by it is this VM", "42"),
    (
        "socket",
        "Its hybrid vsock socket; the broker listens at this path with _7070 (the port of vsock) behind it",
        "\"/run/vms/web.vsock\"",
    ),
    (
        "serial",
        "The socket of its virtio-serial port org.castra.bus.0, which the VMM owns",
        "\"/run/vms/web.serial\"",
    ),
    (
        "token",
        "What proves it where nothing else does: 1 to 256 printable characters of ASCII without spaces; or",
        "\"…\"",
    ),
    (
        "token_file",
        "the file that has it: one line, of the broker's user or root, and 0600",
        "\"/var/lib/castra/tokens/web\"",
    ),
    (
        "publish",
        "What it may publish: topics and patterns; [] is nothing. Not set: everything that does not begin with $",
        "[\"build.>\", \"vm:db\"]",
    ),
    (
        "subscribe",
        "What it may subscribe beside its own mailbox; [] is nothing else. Not set: everything but other\n\
         # mailboxes and what begins with $",
        "[\"deploy.*\"]",
    ),
];

/// What is said of one VM.
#[derive(Clone, Debug, PartialEq)]
pub struct VmSetting {
    /// Its name.
    pub name: VmName,
    /// The vsock context it is allotted.
    pub cid: Option<u32>,
    /// Its hybrid vsock socket.
    pub socket: Option<PathBuf>,
    /// The socket of its virtio-serial port.
    pub serial: Option<PathBuf>,
    /// What it proves itself with.
    pub secret: Option<Secret>,
    /// What it may do.
    pub rules: Rules,
}

/// Where a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// Here.
    Token(Token),
    /// In this file.
    File(PathBuf),
}

/// Where what is said of one VM stands.
#[derive(Clone, Debug, Default)]
pub struct VmPlaces {
    /// The first word about it.
    pub at: Place,
    keys: BTreeMap<&'static str, Place>,
}

impl VmPlaces {
    /// Of the value of `key`; where the VM is, when it does not have that.
    pub fn of(&self, key: &str) -> Place {
        self.keys.get(key).copied().unwrap_or(self.at)
    }
}

/// Whether `text` can be said in a hello as a token.
///
/// # Errors
/// What is allowed; the text is not in it.
pub(super) fn check_token(text: &str) -> Result<Token, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    if plain && (1..=TOKEN_BYTES).contains(&text.len()) {
        return Ok(Token::new(text));
    }
    Err(format!(
        "a token is 1 to {TOKEN_BYTES} printable characters of ASCII without spaces, and this is none"
    ))
}

/// What was said before, and where.
#[derive(Default)]
struct Seen {
    names: HashMap<VmName, Place>,
    cids: HashMap<u32, Place>,
    paths: HashMap<PathBuf, Place>,
}

/// Says where the same was before, if it was.
fn once<T: Eq + Hash>(
    seen: &mut HashMap<T, Place>,
    value: T,
    place: Place,
    what: impl Display,
) -> Result<(), String> {
    match seen.get(&value) {
        Some(first) => Err(format!("{what} is there twice; the first is in line {}", first.line)),
        None => {
            seen.insert(value, place);
            Ok(())
        }
    }
}

pub(super) fn take(reader: &mut Reader<'_>, settings: &mut Settings, items: &DeArray<'_>) {
    let mut seen = Seen::default();
    settings.vms.clear();
    for (n, item) in items.iter().enumerate() {
        if n == VM_ENTRIES {
            return reader.wrong(&item.span(), format!("there are more than {VM_ENTRIES} [[vms]]"));
        }
        match item.get_ref() {
            DeValue::Table(table) => take_one(reader, settings, &mut seen, table, &item.span()),
            _ => reader.wrong(&item.span(), "each VM is a section of its own, to be written [[vms]]"),
        }
    }
}

fn take_one(
    reader: &mut Reader<'_>,
    settings: &mut Settings,
    seen: &mut Seen,
    table: &DeTable<'_>,
    at: &Range<usize>,
) {
    let mut places = VmPlaces { at: reader.place(at), keys: BTreeMap::new() };
    let mut name = None;
    let (mut cid, mut socket, mut serial, mut secret) = (None, None, None, None);
    let mut rules = Rules::default();
    for (key, value) in entries(table) {
        let Some((known, ..)) = KEYS.iter().find(|(known, ..)| known == key.get_ref()) else {
            unknown(reader, key, " in [[vms]]", KEYS.iter().map(|(known, ..)| *known));
            continue;
        };
        let place = reader.place(&value.span());
        places.keys.insert(known, place);
        let taken = match *known {
            "name" => text(value).and_then(check_name).and_then(|found| {
                once(&mut seen.names, found.clone(), place, format_args!("the VM {found}"))?;
                name = Some(found);
                Ok(())
            }),
            "cid" => number(value).and_then(|found| {
                once(&mut seen.cids, found, place, format_args!("cid {found}"))?;
                cid = Some(found);
                Ok(())
            }),
            "socket" | "serial" => text(value).and_then(check_path).and_then(|path| {
                once(&mut seen.paths, path.clone(), place, path.display())?;
                *(if *known == "socket" { &mut socket } else { &mut serial }) = Some(path);
                Ok(())
            }),
            "token" | "token_file" if secret.is_some() => {
                Err("a VM has a token or a token_file, not both".to_owned())
            }
            "token" => text(value).and_then(check_token).map(|token| {
                if text(value).is_ok_and(|text| text.len() < SHORT_TOKEN) {
                    reader.warn(&value.span(), format!("vms.token: {}", short_token()));
                }
                secret = Some(Secret::Token(token));
            }),
            "token_file" => text(value).and_then(check_file).map(|path| secret = Some(Secret::File(path))),
            "publish" => patterns(reader, "publish", value).map(|found| rules.publish = Some(found)),
            _ => patterns(reader, "subscribe", value).map(|found| rules.subscribe = Some(found)),
        };
        if let Err(why) = taken {
            reader.wrong(&value.span(), format!("vms.{known}: {why}"));
        }
    }
    if !places.keys.contains_key("name") {
        return reader.wrong(at, "a VM has a name: say name = \"…\"");
    }
    if let Some(name) = name {
        settings.vms.push(VmSetting { name, cid, socket, serial, secret, rules });
        reader.stands(places);
    }
}

/// What is said of a token that can be guessed.
pub(super) fn short_token() -> String {
    format!("it is shorter than {SHORT_TOKEN} characters; `openssl rand -hex 16` makes a good one")
}

fn text<'a>(value: &'a Value<'_>) -> Result<&'a str, String> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text),
        _ => Err("a text is wanted, in quotes".to_owned()),
    }
}

fn number(value: &Value<'_>) -> Result<u32, String> {
    let wanted = format!("a vsock context of a guest is wanted: 1, or 3 to {CID_MAX}");
    let DeValue::Integer(number) = value.get_ref() else { return Err(wanted) };
    let parsed = u64::from_str_radix(number.as_str(), number.radix());
    let fits = parsed.ok().filter(|cid| *cid == 1 || (3..=CID_MAX).contains(cid));
    fits.and_then(|cid| u32::try_from(cid).ok())
        .ok_or_else(|| format!("{} is nobody's: {wanted}", number.as_str()))
}

fn check_name(text: &str) -> Result<VmName, String> {
    let name = VmName::parse(text).map_err(|error| format!("{text:?} is no VM's name: {error}"))?;
    if name.is_reserved() {
        Err(format!("{text:?} is nobody's name: host and bus are the broker's own"))
    } else {
        Ok(name)
    }
}

fn check_path(text: &str) -> Result<PathBuf, String> {
    check_file(text)?;
    check_socket(text).map(|()| PathBuf::from(text))
}

fn check_file(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') {
        return Err(format!("{text:?} is no absolute path; in castra.toml a path begins with /"));
    }
    // Where it leads would depend on what is there; two spellings of one path would be two.
    if text.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(format!("{text:?} has . or .. in it: say the path without"));
    }
    Ok(PathBuf::from(text))
}

/// The patterns that are right; those that are not are said.
fn patterns(reader: &mut Reader<'_>, key: &str, value: &Value<'_>) -> Result<Vec<Pattern>, String> {
    let DeValue::Array(items) = value.get_ref() else {
        return Err("a list of topics and patterns is wanted, like [\"build.>\"]; [] is nothing".to_owned());
    };
    if items.len() > VM_PATTERNS {
        return Err(format!("these are {} patterns, and at most {VM_PATTERNS} are possible", items.len()));
    }
    let mut found = Vec::with_capacity(items.len());
    for item in items.iter() {
        let parsed = text(item).and_then(|text| {
            Pattern::parse(text).map_err(|error| format!("{text:?} is no topic and no pattern: {error}"))
        });
        match parsed {
            Ok(pattern) => found.push(pattern),
            Err(why) => reader.wrong(&item.span(), format!("vms.{key}: {why}")),
        }
    }
    Ok(found)
}

/// The VMs as castra.toml has them, without their tokens; where there is none, an example, as comments.
pub(super) fn print(out: &mut String, vms: &[VmSetting]) {
    // Into a string: cannot fail.
    if vms.is_empty() {
        out.push_str("\n# A section for each VM that something is to be said of.\n# [[vms]]\n");
        for (key, doc, example) in KEYS {
            let end = if doc.ends_with("; or") { "" } else { "." };
            let _ = writeln!(out, "# {doc}{end}\n# {key} = {example}");
        }
    }
    for vm in vms {
        let path = |path: &PathBuf| quoted(&path.to_string_lossy());
        let list = |list: &Vec<Pattern>| {
            let items: Vec<String> = list.iter().map(|pattern| quoted(pattern.as_str())).collect();
            format!("[{}]", items.join(", "))
        };
        let file = vm.secret.as_ref().and_then(|secret| match secret {
            Secret::Token(_) => None,
            Secret::File(file) => Some(path(file)),
        });
        out.push_str("\n[[vms]]\n");
        for (key, value) in [
            ("name", Some(quoted(vm.name.as_str()))),
            ("cid", vm.cid.map(|cid| cid.to_string())),
            ("socket", vm.socket.as_ref().map(path)),
            ("serial", vm.serial.as_ref().map(path)),
            ("token_file", file),
            ("publish", vm.rules.publish.as_ref().map(list)),
            ("subscribe", vm.rules.subscribe.as_ref().map(list)),
        ] {
            if let Some(value) = value {
                let _ = writeln!(out, "{key} = {value}");
            }
        }
        if matches!(vm.secret, Some(Secret::Token(_))) {
            out.push_str("# token: it is set, and not shown.\n");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;

    /// Stands in every token of [`vms`], and nowhere else.
    pub const SECRET: &str = "(secret)";

    /// Any VMs.
    pub fn vms() -> impl Strategy<Value = Vec<VmSetting>> {
        let secret = prop_oneof![
            Just(Secret::Token(Token::new(SECRET))),
            "/.{0,20}".prop_filter_map("a path", |path| check_file(&path).ok()).prop_map(Secret::File),
        ];
        let patterns = || {
            let pattern = "[a-zä\"]{1,3}([.][a-z*]){0,2}([.]>)?|vm:[a-z*]|[$]dlq[.]>";
            let pattern = pattern.prop_filter_map("a pattern", |text| Pattern::parse(&text).ok());
            option::of(vec(pattern, 0..3))
        };
        let vm = (any::<[bool; 3]>(), option::of(secret), patterns(), patterns());
        let named = ("[A-Za-z0-9][A-Za-z0-9._-]{0,9}", vm);
        let all = btree_map(3u32..9000, named, 0..5);
        all.prop_map(|all| {
            let mut names = std::collections::HashSet::new();
            let vms = all.into_iter().filter_map(|(n, (name, (has, secret, publish, subscribe)))| {
                let name = VmName::parse(&name).ok().filter(|name| !name.is_reserved())?;
                let path = |has: bool, kind| has.then(|| PathBuf::from(format!("/run/{n} ä\"\\.{kind}")));
                let rules = Rules { publish, subscribe };
                let (socket, serial) = (path(has[0], "vsock"), path(has[1], "serial"));
                let cid = has[2].then_some(n);
                names.insert(name.clone()).then_some(VmSetting { name, cid, socket, serial, secret, rules })
            });
            vms.collect()
        })
    }

    /// Line, column and words of each mistake.
    fn mistakes(text: &str) -> Vec<(usize, usize, String)> {
        let reading = Settings::default().read(text);
        let each = reading.mistakes.into_iter().map(|mistake| {
            let place = mistake.place.unwrap();
            (place.line, place.column, mistake.message)
        });
        each.collect()
    }

    #[test]
    fn a_mistake_of_a_vm_says_where_and_what_is_allowed() {
        let long = format!("\"/{}\"", "x".repeat(98));
        let token = format!("\"{}\"", "t".repeat(257));
        for (line, column, words) in [
            ("cid = 0", 7, "0 is nobody's: a vsock context of a guest is wanted: 1, or 3 to 4294967294"),
            ("cid = 2", 7, "2 is nobody's"),
            ("cid = 4294967295", 7, "is nobody's"),
            ("cid = -1", 7, "is nobody's"),
            ("cid = \"42\"", 7, "a vsock context of a guest is wanted"),
            ("socket = \"run/web\"", 10, "begins with /"),
            ("socket = \"/run/\"", 10, "is no path of a socket"),
            (&format!("socket = {long}"), 10, "the path has 99 bytes, and at most 98 are possible"),
            ("socket = \"/run/../x\"", 10, "has . or .. in it"),
            ("socket = \"/run/./x\"", 10, "has . or .. in it"),
            ("serial = \"/run/x/..\"", 10, "has . or .. in it"),
            ("token_file = \"/run/credentials/../x\"", 14, "has . or .. in it"),
            ("serial = 7", 10, "a text is wanted"),
            ("token = \"two words\"", 9, "1 to 256 printable characters of ASCII without spaces"),
            ("token = \"ü\"", 9, "printable"),
            ("token = \"\"", 9, "1 to 256"),
            (&format!("token = {token}"), 9, "1 to 256"),
            ("token_file = \"x\"", 14, "begins with /"),
            ("publish = \"build.>\"", 11, "a list of topics and patterns is wanted"),
            ("publish = [\"a\", \"b.*x\"]", 17, "\"b.*x\" is no topic and no pattern"),
            ("subscribe = [7]", 14, "a text is wanted"),
            ("tokenfile = \"/x\"", 1, "in [[vms]]; did you mean token_file?"),
            ("adress = 1", 1, "known are name, cid, socket, serial, token, token_file, publish, subscribe"),
        ] {
            let found = mistakes(&format!("[[vms]]\nname = \"web\"\n{line}\n"));
            assert!(
                matches!(&found[..], [(3, at, message)] if *at == column && message.contains(words)),
                "{line}: {found:?}"
            );
            assert!(!found[0].2.contains("two words"), "a token is not shown: {found:?}");
        }
        for (text, line, column, words) in [
            ("[vms]\nname = \"web\"", 1, 2, "to be written [[vms]]"),
            ("vms = [1]", 1, 8, "to be written [[vms]]"),
            ("\n[[vms]]\ncid = 3", 2, 1, "a VM has a name"),
            ("[[vms]]\nname = \"-\"", 2, 8, "\"-\" is no VM's name: a name is 1-128"),
            ("[[vms]]\nname = \"Host\"", 2, 8, "is nobody's name"),
            ("[[vms]]\nname = \"bus\"", 2, 8, "is nobody's name"),
            ("vms = [{name = \"a\"}, {name = \"a\"}]", 1, 30, "there twice"),
        ] {
            let found = mistakes(text);
            assert!(
                matches!(&found[..], [(l, c, message)] if (*l, *c) == (line, column) && message.contains(words)),
                "{text}: {found:?}"
            );
        }
        let many: String = (0..=VM_ENTRIES).map(|n| format!("[[vms]]\nname = \"v{n}\"\n")).collect();
        let found = mistakes(&many);
        assert!(
            matches!(&found[..], [(20_001, _, why)] if why == "there are more than 10000 [[vms]]"),
            "{found:?}"
        );
        let list = vec!["\"a\""; VM_PATTERNS + 1].join(",");
        let found = mistakes(&format!("[[vms]]\nname = \"a\"\npublish = [{list}]"));
        assert!(found[0].2.contains("these are 65 patterns, and at most 64"), "{found:?}");
    }

    #[test]
    fn what_is_there_twice_names_the_first() {
        let text = "[[vms]]\nname = \"a\"\ncid = 7\nsocket = \"/run/s\"\n\
                    [[vms]]\nname = \"b\"\nserial = \"/run//s\"\ncid = 0x7\ntoken = \"x\"\ntoken_file = \"/t\"\n\
                    [[vms]]\nname = \"a\"\nhello_tme = 1\n[limit]\n";
        let found = mistakes(text);
        let want = [
            (7, "vms.serial: /run//s is there twice; the first is in line 4"),
            (8, "vms.cid: cid 7 is there twice; the first is in line 3"),
            (10, "vms.token_file: a VM has a token or a token_file, not both"),
            (12, "vms.name: the VM a is there twice; the first is in line 2"),
            (13, "there is no setting \"hello_tme\" in [[vms]]"),
            (14, "there is no setting \"limit\"; did you mean limits?"),
        ];
        assert_eq!(found.len(), want.len(), "{found:?}");
        for ((line, _, message), (at, words)) in found.iter().zip(want) {
            assert!(*line == at && message.contains(words), "{found:?}");
        }
    }

    #[test]
    fn names_that_differ_by_case_are_two() {
        assert_eq!(mistakes("[[vms]]\nname = \"a\"\n[[vms]]\nname = \"A\"\ncid = 1"), []);
    }

    #[test]
    fn many_vms_are_read_fast_and_right() {
        let text: String = (3..10_003)
            .map(|n| format!("[[vms]]\nname = \"v{n}\"\ncid = {n}\nsocket = \"/run/{n}\"\ntoken = \"{n}-{n}-{n}-{n}\"\n"))
            .collect();
        let mut settings = Settings::default();
        let reading = settings.read(&text);
        assert_eq!((reading.mistakes.len(), settings.vms.len()), (0, VM_ENTRIES));
        assert_eq!(reading.places.vms[9_999].of("cid"), Place { line: 49_998, column: 7 });
    }
}
