//! What the commands print, held as snapshots: a change of it is seen, and meant, in `snapshots/`.
//!
//! After a change that is meant: `INSTA_UPDATE=always cargo test --test docs`, and read the difference.

use crate::support::{Broker, castra, eventually};
use clap::CommandFactory;
use serde_json::Value;
use std::process::Stdio;

/// Every command with its words, `[]` for castra itself.
fn commands(command: &clap::Command, words: &[String], all: &mut Vec<Vec<String>>) {
    all.push(words.to_vec());
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set()) {
        let words: Vec<String> = words.iter().cloned().chain([sub.get_name().to_owned()]).collect();
        commands(sub, &words, all);
    }
}

#[test]
fn the_help_of_every_command() {
    let (root, mut all) = (castra::cli::Cli::command(), Vec::new());
    commands(&root, &[], &mut all);
    assert!(all.len() >= 8, "{all:?}");
    for words in all {
        let output = castra().args(&words).arg("--help").env_remove("COLUMNS").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let name = words.join(" ");
        assert!(output.status.success(), "castra {name} --help");
        let groups = castra::cli::Cli::command();
        let mut group = &groups;
        for word in &words {
            group = group.find_subcommand(word).unwrap();
        }
        assert!(
            group.has_subcommands() || help.contains("Examples:\n  "),
            "castra {name} --help has no examples"
        );
        insta::assert_snapshot!(format!("help {name}").trim().replace(' ', "-"), help);
    }
}

/// The same with every value replaced by the name of its type: what scripts rely on is the names and types.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields.iter().map(|(name, v)| (name.clone(), shape(v))).collect(),
        Value::Array(items) => Value::Array(items.iter().take(1).map(shape).collect()),
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
    }
}

/// Without the ages, which differ from run to run.
fn without_ages(text: &str) -> String {
    let age = regex_lite::Regex::new(r"\b\d+(ms|s|m|h)\b( \d+s)?").unwrap();
    // The column is as wide as what was in it.
    let spaces = regex_lite::Regex::new(r" {2,}").unwrap();
    spaces.replace_all(&age.replace_all(text, "<age>"), "  ").into_owned()
}

#[test]
fn a_field_of_status_keeps_its_name_and_type() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("web");
    guest.ask(r#"{"type":"publish"}"#);
    guest.ask(r#"{"type":"heartbeat"}"#);
    let shown = eventually("all of it", || {
        let shown = broker.status();
        let vm = &shown["vms"][0];
        let level = shown["broker"]["journal"]["logs_seq"] == 1;
        (level && vm["last_publish_age_ms"].is_i64() && vm["last_heartbeat_age_ms"].is_i64()).then_some(shown)
    });
    insta::assert_snapshot!("status-json", serde_json::to_string_pretty(&shape(&shown)).unwrap());
    let text = String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    insta::assert_snapshot!("status-table", without_ages(&text));
    // Every field is in the help.
    let help = String::from_utf8(castra().args(["status", "--help"]).output().unwrap().stdout).unwrap();
    let broker = &shown["broker"];
    for names in [&shown, broker, &broker["journal"], &broker["counters"], &shown["vms"][0]] {
        for name in names.as_object().unwrap().keys().filter(|name| !["broker", "vms"].contains(&&***name)) {
            assert!(help.contains(name.as_str()), "status --help does not say what {name} is");
        }
    }
}

/// Without a broker, without anything: what an operator is told first.
#[test]
fn sentences_that_help() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let mut all = String::new();
    for words in [
        &["status"][..],
        &["status", "--vm", "web"],
        &["bus", "publish", "t", "{"],
        &["bus", "publish", "t", "1"],
        &["bus", "publish", "t..x", "1", "--dry-run"],
        &["bus", "tail"],
        &["bus", "tail", "--vm", "web"],
        &["bus", "tail", "a*"],
        &["bus", "tail", "--since", "yesterday"],
        &["bus", "tail", "--since", "1m", "--until", "2m"],
        &["bus", "subscribe"],
        &["bus", "subscribe", "--from", "soon"],
        &["bus", "subscribe", "--broker", "7070", "--vm", "web"],
        &["logs"],
        &["verify"],
        &["backup", "/proc/x"],
        &["vm", "forget", "web"],
        &["broker", "--config", "/nonexistent/castra.toml"],
        &["broker", "--no-tcp", "--segment-bytes", "1"],
        &["nonsense"],
    ] {
        let mut command = castra();
        command.arg("--state-root").arg(&root).args(words).stdin(Stdio::null());
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        all += &format!("$ castra {}\n{said}[exit {}]\n\n", words.join(" "), output.status.code().unwrap());
    }
    insta::assert_snapshot!("sentences", all.replace(root.to_str().unwrap(), "<root>"));
}
