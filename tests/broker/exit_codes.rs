//! Every exit code of the table in docs/ARCHITECTURE.md, made by a command as an operator would meet it.

use crate::support::{Broker, castra};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

fn code(root: &Path, args: &[&str]) -> i32 {
    let mut command = castra();
    command.arg("--state-root").arg(root).args(args);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    output.status.code().unwrap()
}

#[test]
fn each_is_made_by_something() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let broker = Broker::start(&root);
    let mut seen = BTreeSet::new();
    let mut check = |want: i32, root: &Path, args: &[&str]| {
        assert_eq!(code(root, args), want, "{args:?}");
        seen.insert(want);
    };
    check(0, &root, &["bus", "publish", "t", "1"]);
    check(1, &root, &["bus", "tail", "--vm", "nobody"]);
    check(2, &root, &["bus", "publish", "--no-such-flag"]);
    check(65, &root, &["bus", "publish", "t", "{"]);
    check(69, dir.path(), &["bus", "publish", "t", "1"]);
    check(73, &root, &["broker", "--no-tcp"]);
    check(77, &root, &["bus", "publish", "$mine", "1"]);
    check(
        78,
        &root,
        &["broker", "--tcp", "192.0.2.1:7070", "--state-root", dir.path().join("b").to_str().unwrap()],
    );
    broker.signal(Signal::SIGSTOP);
    check(124, &root, &["bus", "publish", "t", "1", "--timeout", "100ms"]);
    broker.signal(Signal::SIGCONT);
    // Repairs want the broker stopped.
    check(75, &root, &["verify", "--repair-logs"]);
    assert_eq!(broker.stop().0, Some(0));
    check(74, &root, &["bus", "publish", "t", "--file", "/nonexistent"]);

    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ARCHITECTURE.md")).unwrap();
    let table: BTreeSet<i32> = text
        .lines()
        .skip_while(|line| *line != "## Exit codes")
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(seen, table);
}
