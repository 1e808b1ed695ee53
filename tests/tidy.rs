//! The layout's rules, held by a test: who may import whom, what is pure, where is printed, how long files are.
//!
//! Each rule prints `file:line` and what to do about it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::path::{Path, PathBuf};

/// A file without its tests has so many lines at the most.
const LINES: usize = 400;

/// They open no file and no socket and read no clock. The modules of `wire` are found by their folder.
const PURE: [&str; 82] = [
    "src/core/harmless.rs",
    "src/core/event.rs",
    "src/core/event/fields.rs",
    "src/core/event/letter.rs",
    "src/core/event/retry.rs",
    "src/core/event/string.rs",
    "src/core/topic.rs",
    "src/core/identity.rs",
    "src/core/limits.rs",
    "src/core/config/advice.rs",
    "src/core/config/mod.rs",
    "src/core/config/parse.rs",
    "src/core/config/table.rs",
    "src/core/config/topics.rs",
    "src/core/config/vms.rs",
    "src/core/counters.rs",
    "src/core/signals.rs",
    "src/core/standing.rs",
    "src/core/metrics/request.rs",
    "src/core/metrics/text.rs",
    "src/core/status.rs",
    "src/core/status/latest.rs",
    "src/core/status/totals.rs",
    "src/core/status_report.rs",
    "src/core/owed.rs",
    "src/core/policy.rs",
    "src/core/throttle.rs",
    "src/core/backoff.rs",
    "src/core/burst.rs",
    "src/core/end.rs",
    "src/core/ids.rs",
    "src/core/lines.rs",
    "src/core/refusal.rs",
    "src/core/door/hybrid/glob.rs",
    "src/core/door/hybrid/plan.rs",
    "src/core/delivery/group.rs",
    "src/core/delivery/group/answers.rs",
    "src/core/delivery/group/figures.rs",
    "src/core/delivery/group/members.rs",
    "src/core/delivery/group/outcome.rs",
    "src/core/delivery/group/progress.rs",
    "src/core/delivery/group/queue.rs",
    "src/core/delivery/group/ranges.rs",
    "src/core/delivery/interest.rs",
    "src/core/delivery/patterns.rs",
    "src/core/delivery/redelivery.rs",
    "src/core/delivery/subscription.rs",
    "src/core/session/output.rs",
    "src/core/session/pulse.rs",
    "src/core/session/state.rs",
    "src/core/journal/notes.rs",
    "src/core/journal/record.rs",
    "src/core/journal/repeats.rs",
    "src/core/journal/retain.rs",
    "src/core/journal/seen.rs",
    "src/core/journal/snapshot.rs",
    "src/core/journal/turns.rs",
    "src/core/journal/window.rs",
    "src/core/tail/filter.rs",
    "src/core/tail/line.rs",
    "src/core/tail/when.rs",
    "src/core/agent/discover.rs",
    "src/core/agent/drain.rs",
    "src/core/agent/greeting.rs",
    "src/core/agent/pulse.rs",
    "src/core/agent/retry.rs",
    "src/core/bench/histogram.rs",
    "src/core/bench/seen.rs",
    "src/core/bench/stamp.rs",
    "src/core/latest/change.rs",
    "src/core/latest/compaction.rs",
    "src/core/delivery/groups/notes.rs",
    "src/core/delivery/groups/letters.rs",
    "src/core/delivery/groups/taken.rs",
    "src/core/delivery/groups/frames.rs",
    "src/core/delivery/groups/passing.rs",
    "src/core/wire/group.rs",
    "src/core/journal/ages.rs",
    "src/core/journal/timeline.rs",
    "src/core/retention/mod.rs",
    "src/core/retention/tally.rs",
    "src/core/status/snapshot.rs",
];

struct Source {
    path: String,
    /// Without tests and comments, with line numbers.
    code: Vec<(usize, String)>,
    /// Lines before the tests, comments included.
    lines: usize,
    first: String,
    /// Its header names its owner; what can be typed has none.
    owned: bool,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join("src"), &mut paths);
    paths.sort();
    let source = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        // Tests come last in a file.
        let own: Vec<&str> = text.lines().take_while(|line| *line != "#[cfg(test)]").collect();
        let code = own.iter().enumerate().map(|(i, line)| (i + 1, without_comment(line)));
        Source {
            path: path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(),
            code: code.filter(|(_, line)| !line.trim().is_empty()).collect(),
            lines: own.len(),
            first: own.first().copied().unwrap_or_default().to_owned(),
            owned: path.starts_with(root().join("src/cli"))
                || path.ends_with("src/cli.rs")
                || own
                    .iter()
                    .take_while(|line| line.starts_with("//!"))
                    .any(|line| line.contains("Owner") || line.contains(" owns ")),
        }
    };
    let sources: Vec<Source> = paths.into_iter().map(source).collect();
    assert!(sources.len() > 20, "the sources were not found");
    sources
}

/// The line up to `//`, unless that stands in a string.
fn without_comment(line: &str) -> String {
    let ends = line.match_indices("//").find(|(at, _)| line[..*at].matches('"').count().is_multiple_of(2));
    ends.map_or(line, |(at, _)| &line[..at]).to_owned()
}

/// Every place in `files` where one of `words` stands.
fn ban(files: impl Fn(&Source) -> bool, words: &[&str], what_to_do: &str) {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| files(source)) {
        for (number, line) in &source.code {
            for word in words.iter().filter(|word| line.contains(**word)) {
                broken.push(format!("{}:{number}: `{word}`: {what_to_do}", source.path));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

fn is_pure(source: &Source) -> bool {
    PURE.contains(&source.path.as_str()) || source.path.starts_with("src/core/wire/")
}

#[test]
fn core_does_not_know_the_commands() {
    let words = ["crate::app", "crate::cli", "clap"];
    ban(
        |s| s.path.starts_with("src/core/"),
        &words,
        "app imports core, never back; pass what is needed as an argument",
    );
    ban(|s| s.path.starts_with("src/cli"), &["crate::"], "cli is what can be typed and nothing else");
}

#[test]
fn doors_do_not_know_the_journal() {
    let words = ["journal::", "::journal"];
    ban(
        |s| s.path.starts_with("src/core/door/"),
        &words,
        "doors use Bus (publish, presence), never the journal",
    );
}

#[test]
fn pure_modules_are_pure() {
    for path in PURE {
        assert!(
            root().join(path).exists(),
            "tests/tidy.rs lists {path}, which is not there: take it from the list"
        );
    }
    let words = [
        "tokio::",
        "std::fs",
        "std::net",
        "std::os",
        "std::env",
        "std::thread",
        "nix::",
        "SystemTime",
        "Instant",
        "clock::",
        "use std::{",
    ];
    ban(is_pure, &words, "a pure module opens no file and no socket and reads no clock: make it an argument");
}

/// A pause of the process is not time that a peer was silent.
#[test]
fn deadlines_are_in_awake_time() {
    let uses = |code: &str| {
        let imports = code.strip_prefix("use tokio::time::").unwrap_or_default();
        let words = imports.split(|c: char| !c.is_alphanumeric() && c != '_');
        let imported = words.into_iter().any(|word| word.starts_with("timeout") || word == "sleep_until");
        imported || ["time::timeout", "tokio::time::sleep_until"].iter().any(|word| code.contains(word))
    };
    // Until when a load lasts, and a command's own time limit: nobody is judged by them.
    let allowed = ["src/core/awake.rs", "src/core/bench/mod.rs", "src/app/subscribe/mod.rs"];
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !allowed.contains(&source.path.as_str())) {
        let lines = source.code.iter().filter(|(_, code)| uses(code));
        broken.extend(lines.map(|(n, code)| format!("{}:{n}: {code}", source.path)));
    }
    assert!(
        broken.is_empty(),
        "a pause of the process would end these early: use core::awake instead\n{}",
        broken.join("\n")
    );
}

#[test]
fn printing_is_for_the_commands() {
    let words = [
        "println!",
        "print!(",
        "eprint",
        "io::stdout",
        "io::stderr",
        "stdout()",
        "stderr()",
        "dbg!",
        "process::exit",
    ];
    let elsewhere = |s: &Source| !s.path.starts_with("src/app/");
    ban(
        elsewhere,
        &words,
        "printing and exit codes belong to src/app; return a value or an error, or trace it",
    );
}

#[test]
fn one_thread_waits_for_stderr() {
    // What is over soon may wait itself.
    let allowed = ["src/app/stderr.rs", "src/app/config_check.rs"];
    let words =
        ["io::stderr().write", "write!(io::stderr", "writeln!(io::stderr", "io::stderr().lock", "eprint"];
    let elsewhere = |s: &Source| !allowed.contains(&s.path.as_str());
    ban(elsewhere, &words, "a stderr that nobody reads blocks: say it with app/stderr.rs");
}

#[test]
fn nothing_panics() {
    let words = [
        ".unwrap()",
        ".expect(",
        ".unwrap_err()",
        ".expect_err(",
        "panic!",
        "unreachable!",
        "unimplemented!",
        "todo!",
        "unsafe ",
        " assert!(",
        "assert_eq!(",
    ];
    let lines = |s: &Source| !s.path.is_empty();
    ban(lines, &words, "the broker does not panic: return an error, or write it so that it cannot fail");
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let mut broken = Vec::new();
    for source in sources() {
        let Source { path, lines, first, owned, .. } = source;
        if lines > LINES {
            broken.push(format!(
                "{path}:{lines}: {lines} lines without tests, {LINES} are allowed: split it by what it owns"
            ));
        }
        if !owned && !["src/main.rs", "src/lib.rs", "src/core/mod.rs"].contains(&path.as_str()) {
            broken.push(format!("{path}:1: its header does not say who owns it (\"Owner: …\")"));
        }
        if !first.starts_with("//! ") {
            broken.push(format!(
                "{path}:1: begins without a `//!` header: say its purpose, what always holds, its owner"
            ));
        }
        if path.split(['/', '.']).any(|part| matches!(part, "utils" | "util" | "common" | "helpers" | "misc"))
        {
            broken.push(format!("{path}:1: a name that says nothing: call it by what it does"));
        }
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (mut section, mut wanted) = ("", Vec::new());
    for (i, line) in manifest.lines().enumerate() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if section.ends_with("dependencies")
            && let Some((name, _)) = line.split_once('=')
        {
            wanted.push((i + 1, name.trim().to_owned()));
        }
    }
    let text = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let listed: Vec<&str> = text
        .lines()
        .skip_while(|line| *line != "## Dependencies")
        .skip(1)
        .take_while(|line| !line.starts_with('#'))
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    for (line, name) in &wanted {
        let has = listed.contains(&name.as_str());
        assert!(
            has,
            "Cargo.toml:{line}: {name} has no line of reason in docs/ARCHITECTURE.md, Dependencies: write one, or do without it"
        );
    }
    for name in &listed {
        let has = wanted.iter().any(|(_, wanted)| wanted == name);
        assert!(has, "docs/ARCHITECTURE.md, Dependencies: {name} is not in Cargo.toml: take its line out");
    }
}
