//! The line of progress of commands that take their time: drawn on a terminal, taken away again, and nowhere else.

use crate::support::{Broker, castra, eventually, skip};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const COLUMNS: usize = 40;

/// Runs `line` in a shell on a terminal.
fn on_terminal(line: &str) -> Command {
    let mut command = Command::new("script");
    command.args(["-qec", &format!("stty rows 24 cols {COLUMNS}; {line}"), "/dev/null"]);
    command.env("CASTRA_CONFIG", "/dev/null").env("TERM", "xterm").env("TZ", "UTC");
    command
}

fn has(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

/// What was drawn over itself, each time; it must fit its line, and be gone in the end.
fn drawn(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.split("\r\x1b[K").skip(1).collect();
    let (last, before) = lines.split_last().expect("something drawn");
    assert!(!before.is_empty() && !last.contains(" % "), "{text:?}");
    for line in before {
        assert!(!line.is_empty() && line.chars().count() < COLUMNS, "{line:?} in {text:?}");
    }
    before.to_vec()
}

#[test]
fn a_bench_draws_what_it_counts() {
    const NAME: &str = "a_bench_draws_what_it_counts";
    if !has("script", &["--version"]) {
        return skip(NAME, "script is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let program = env!("CARGO_BIN_EXE_castra");
    let line = format!("'{program}' --state-root '{}' bench publish --duration 700ms", broker.root.display());
    let output = on_terminal(&line).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let lines = drawn(&text);
    assert!(lines.iter().all(|line| line.starts_with("bench: ")), "{text:?}");
    assert!(lines.iter().any(|line| line.contains(" of 700ms, ") && line.contains(" acked")), "{text:?}");
}

#[test]
fn verify_and_backup_draw_on_a_terminal_alone() {
    const NAME: &str = "verify_and_backup_draw_on_a_terminal_alone";
    if !has("script", &["--version"]) {
        return skip(NAME, "script is not installed");
    }
    if !has("strace", &["-D", "-f", "-o", "/dev/null", "-e", "trace=none", "true"]) {
        return skip(NAME, "there is no strace that may trace");
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start_args(&root, &["--segment-bytes", "1MiB"]);
    assert!(broker.run(&["bus", "publish", "t"]).status.success());
    assert_eq!(broker.stop().0, Some(0));
    // Every read takes longer than a line of progress waits for.
    let slow = |args: &str| {
        format!(
            "strace -D -f -q -o /dev/null -e trace=pread64 -e inject=pread64:delay_enter=120000 '{}' --state-root '{}' {args}",
            env!("CARGO_BIN_EXE_castra"),
            root.display(),
        )
    };
    for (command, words) in
        [("verify", &["verify: "][..]), ("backup", &["backup: copying, ", "backup: verifying"])]
    {
        let to = |name: &str| match command {
            "backup" => format!("backup '{}'", dir.path().join(name).display()),
            _ => command.to_owned(),
        };
        let mut terminal = on_terminal(&slow(&to("one")));
        let output = terminal.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        let lines = drawn(&text);
        assert!(words.iter().all(|w| lines.iter().any(|line| line.starts_with(w))), "{command}: {text:?}");
        let mut piped = Command::new("sh");
        let output =
            piped.args(["-c", &slow(&to("other"))]).env("CASTRA_CONFIG", "/dev/null").output().unwrap();
        assert_eq!(
            (output.status.code(), String::from_utf8(output.stderr).unwrap()),
            (Some(0), String::new())
        );
        assert!(!output.stdout.contains(&0x1b) && !output.stdout.is_empty());
    }
}

/// Feeds `castra bus publish --jsonl` line by line until what it said is enough; all that it said.
fn feed(mut command: Command, fifo: &Path, mut enough: impl FnMut(&str) -> bool) -> String {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let said = Arc::new(Mutex::new(Vec::new()));
    let reader = |mut stream: Box<dyn Read + Send>| {
        let said = said.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut bytes) {
                said.lock().unwrap().extend_from_slice(&bytes[..n]);
            }
        })
    };
    let readers =
        [reader(Box::new(child.stdout.take().unwrap())), reader(Box::new(child.stderr.take().unwrap()))];
    let text = || String::from_utf8(said.lock().unwrap().clone()).unwrap();
    let mut input = std::fs::OpenOptions::new().write(true).open(fifo).unwrap();
    eventually("enough", || {
        input.write_all(b"{\"topic\":\"t\"}\n").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        enough(&text()).then_some(())
    });
    drop(input);
    assert!(child.wait().unwrap().success(), "{}", text());
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    text()
}

#[test]
fn publishing_many_lines_draws_on_a_terminal_alone() {
    if !has("script", &["--version"]) {
        return skip("publishing_many_lines_draws_on_a_terminal_alone", "script is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let _broker = Broker::start(&dir.path().join("state"));
    let fifo = dir.path().join("lines");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let line = format!(
        "'{}' --state-root '{}' bus publish --jsonl --file '{}' >/dev/null",
        castra().get_program().display(),
        dir.path().join("state").display(),
        fifo.display()
    );
    let text = feed(on_terminal(&line), &fifo, |said| said.matches(" stored, 0 refused, ").count() > 1);
    assert!(drawn(&text).iter().all(|line| line.ends_with("/s")), "{text:?}");
    let mut piped = Command::new("sh");
    piped.args(["-c", &line]).env("CASTRA_CONFIG", "/dev/null").env("TERM", "xterm");
    // Long enough for several.
    let begun = Instant::now();
    assert_eq!(feed(piped, &fifo, |_| begun.elapsed() > Duration::from_millis(500)), "");
}
