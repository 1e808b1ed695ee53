//! Runs the `console` blocks of a document, as an operator would: one bash, command by command.
//!
//! A line that begins with `$ ` is typed; the lines up to the next one are what it prints, stdout and stderr as
//! they come, with `…` for anything; a line of `…` alone stands for any lines. `castra` is the program under test
//! with a state root of its own and a port of its own. What only looks (`castra status`, `castra bus tail`,
//! `castra logs`) is typed again until it prints that: status is refreshed ten times a second. A broker that is
//! put into the background is waited for.

use crate::markdown::Block;
use crate::support::{castra, eventually};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Ends what a command printed; no command prints it.
const MARK: char = '\u{1e}';

/// One bash that lives as long as the document.
struct Shell {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Shell {
    fn start(dir: &Path) -> Self {
        let program = castra();
        let bin = Path::new(program.get_program()).parent().unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.args(["--norc", "--noprofile"]).current_dir(dir);
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => bash.env(name, value),
                None => bash.env_remove(name),
            };
        }
        bash.env("PATH", path).env("CASTRA_STATE_ROOT", dir.join("root")).env("CASTRA_TCP", "127.0.0.1:0");
        let mut child = bash.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut shell = Shell { child, stdin, stdout };
        shell.run("exec 2>&1");
        shell
    }

    /// Types one command; what it printed.
    fn run(&mut self, command: &str) -> String {
        // `$?` is for the next command what it was.
        let typed = format!("{{ (exit ${{__:-0}})\n{command}\n}} </dev/null\n__=$?; printf '{MARK}\\n'");
        writeln!(self.stdin, "{typed}").unwrap();
        let mut said = String::new();
        loop {
            let mut line = String::new();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "`{command}` ended the shell: {said}");
            match line.strip_suffix(&format!("{MARK}\n")) {
                Some(rest) => return said + rest,
                None => said.push_str(&line),
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = writeln!(self.stdin, "kill -9 $(jobs -p); wait; exit");
        let _ = self.child.wait();
    }
}

/// Runs every `console` block of `doc` in `dir`, in order, and compares.
pub fn run(doc: &str, blocks: &[Block], dir: &Path) {
    let mut shell = Shell::start(dir);
    let blocks: Vec<&Block> = blocks.iter().filter(|block| block.tag == "console").collect();
    assert!(!blocks.is_empty(), "{doc} has no console block");
    for block in blocks {
        for (command, want) in commands(block) {
            let place = format!("{doc}:{}", block.line);
            let looks = ["castra status", "castra bus tail", "castra logs"]
                .iter()
                .any(|look| command.starts_with(look));
            let starts = command.starts_with("castra broker") && command.ends_with('&');
            let mut said = String::new();
            eventually(&format!("{place}: `{command}` to print {want:?}"), || {
                said = shell.run(&command);
                let good = starts || matches_lines(&said.lines().collect::<Vec<_>>(), &want);
                assert!(good || looks, "{place}: `{command}` printed {said:?}, not {want:?}");
                good.then_some(())
            });
            if starts {
                // It says so when its doors are open; that is no part of what the next command prints.
                eventually(&format!("{place}: the broker"), || {
                    said += &shell.run("sleep 0.05");
                    said.contains("castra: broker running").then_some(())
                });
            }
        }
    }
}

/// The commands of a block with the lines that each prints; a backslash at the end goes on in the next line.
fn commands(block: &Block) -> Vec<(String, Vec<String>)> {
    let mut commands: Vec<(String, Vec<String>)> = Vec::new();
    for line in block.text.lines() {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push((command.to_owned(), Vec::new())),
            (None, Some((command, want))) if want.is_empty() && command.ends_with('\\') => {
                command.push('\n');
                command.push_str(line);
            }
            (None, Some((_, want))) => want.push(line.to_owned()),
            (None, None) => panic!("line {}: a command comes first", block.line),
        }
    }
    commands
}

/// Whether these lines are those that are wanted; a line of `…` alone is any number of lines.
fn matches_lines(said: &[&str], want: &[String]) -> bool {
    match want.split_first() {
        None => said.is_empty(),
        Some((any, rest)) if any.trim() == "…" => {
            (0..=said.len()).any(|skip| matches_lines(&said[skip..], rest))
        }
        Some((first, rest)) => {
            said.split_first().is_some_and(|(line, said)| matches(line, first) && matches_lines(said, rest))
        }
    }
}

/// Whether `said` is `want`, where `…` stands for anything.
pub fn matches(said: &str, want: &str) -> bool {
    let pieces: Vec<&str> = want.split('…').collect();
    let Some(mut rest) = said.strip_prefix(pieces[0]) else { return false };
    for (i, piece) in pieces.iter().enumerate().skip(1) {
        let at = if i + 1 == pieces.len() { rest.len().checked_sub(piece.len()) } else { rest.find(piece) };
        let Some(at) = at.filter(|at| rest[*at..].starts_with(piece)) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.is_empty()
}

#[test]
fn what_a_document_shows_is_compared() {
    for (said, want, good) in [
        ("a", "a", true),
        ("a", "b", false),
        ("a 1 b", "a … b", true),
        ("a 1 c", "a … b", false),
        ("seq=1 id=x", "seq=1 id=…", true),
        ("ab", "a", false),
        ("x b b", "x … b", true),
    ] {
        assert_eq!(matches(said, want), good, "{said} {want}");
    }
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<String>>();
    assert!(matches_lines(&["a", "b", "c"], &lines("a\n…\nc")));
    assert!(!matches_lines(&["a", "b", "c"], &lines("a\nb")));
    assert!(!matches_lines(&["a"], &lines("a\nb")));
}
