//! `castra agent publish` and `castra agent outbox`, beside a real agent that finds no broker, or is killed.

use crate::support::{castra, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// An agent whose host is away.
struct Alone {
    dir: PathBuf,
    child: Child,
}

impl Alone {
    fn start(dir: &Path, args: &[&str]) -> Self {
        let mut command = castra();
        command.args(["agent", "--vm", "web", "--broker"]).arg(format!("unix:{}/none", dir.display()));
        command
            .arg("--state-dir")
            .arg(dir.join("state"))
            .arg("--socket")
            .arg(dir.join("agent.sock"))
            .args(args);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let agent = Alone { dir: dir.to_owned(), child };
        eventually("the agent's socket", || UnixStream::connect(agent.socket()).ok());
        agent
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    fn run(&self, args: &[&str]) -> Output {
        run(&self.dir, args, "")
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn stop(mut self) -> Option<i32> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `castra agent ARGS` on the files of an agent in `dir`.
fn run(dir: &Path, args: &[&str], stdin: &str) -> Output {
    let mut command = castra();
    command
        .env("CASTRA_AGENT_STATE_DIR", dir.join("state"))
        .env("CASTRA_AGENT_SOCKET", dir.join("agent.sock"));
    command.arg("agent").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that does not read it has ended.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// What `ls --json` lists, without the sum.
fn listed(dir: &Path, args: &[&str]) -> Vec<Value> {
    let output = run(dir, &[&["outbox", "ls", "--json"], args].concat(), "");
    let (code, out, err) = said(&output);
    assert_eq!(code, Some(0), "{err}");
    let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line.get("n").is_some()).collect()
}

#[test]
fn publish_ends_when_the_agent_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Alone::start(dir.path(), &[]);
    let args = ["publish", "t", "{\"a\":\n 1}", "--id", "i", "--key", "k", "--header", "h=v=w", "--tag", "x"];
    assert_eq!(said(&agent.run(&args)), (Some(0), "id=i\n".into(), String::new()));
    let (code, out, _) = said(&run(dir.path(), &["publish", "t2", "--json"], "\"from stdin\"\n"));
    let published: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &published["topic"]), (Some(0), &"t2".into()));
    let rows = listed(dir.path(), &[]);
    let want = serde_json::json!({
        "type": "publish", "topic": "t", "id": "i", "key": "k", "headers": {"h": "v=w"}, "tags": ["x"],
        "payload": {"a": 1},
    });
    assert_eq!(rows[0]["event"], want);
    assert_eq!((&rows[1]["id"], &rows[1]["event"]["payload"]), (&published["id"], &"from stdin".into()));
    // What is refused, and with which exit code.
    for (args, exit, code) in [
        (vec!["publish", "t", "nonsense"], 65, "bad-json"),
        (vec!["publish", "a b", "1"], 65, "bad-topic"),
        (vec!["publish", "$x", "1"], 77, "reserved-topic"),
        (vec!["publish", "t", "1", "--id", ""], 65, "bad-id"),
        (vec!["publish", "t", "1", "--socket", "/nowhere/agent.sock"], 69, "no-agent"),
    ] {
        let (status, _, err) = said(&agent.run(&[&args[..], &["--json"]].concat()));
        let failure: Value = serde_json::from_str(&err).expect(&err);
        assert_eq!((status, &failure["code"]), (Some(exit), &code.into()), "{args:?}");
        assert_eq!(agent.run(&args).status.code(), Some(exit));
    }
    let second = castra()
        .args(["agent", "--vm", "web", "--broker", "tcp:127.0.0.1:1", "--state-dir"])
        .arg(dir.path().join("state"))
        .arg("--socket")
        .arg(dir.path().join("other.sock"))
        .output()
        .unwrap();
    let (code, _, err) = said(&second);
    assert_eq!(code, Some(73), "{err}");
    assert!(err.contains("in use by another agent (pid "), "{err}");
    assert_eq!(agent.stop(), Some(0));
    assert!(!dir.path().join("agent.sock").exists());
    assert_eq!(listed(dir.path(), &[]).len(), 2);
}

#[test]
fn a_full_outbox_is_exit_75() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Alone::start(dir.path(), &["--outbox-bytes", "1MiB"]);
    let large = format!("\"{}\"", "x".repeat(60_000));
    for _ in 0..17 {
        assert_eq!(agent.run(&["publish", "t", &large]).status.code(), Some(0));
    }
    let (code, _, err) = said(&agent.run(&["publish", "t", &large]));
    assert_eq!(code, Some(75), "{err}");
    assert!(err.starts_with("castra: outbox-full: 17 events are pending"), "{err}");
}

#[test]
fn what_is_in_the_outbox_is_listed_retried_and_purged() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) = said(&run(dir.path(), &["outbox", "ls"], ""));
    assert_eq!(code, Some(65), "{err}");
    assert!(err.contains("no outbox"), "{err}");
    let agent = Alone::start(dir.path(), &["--outbox-age", "300ms"]);
    for id in ["a", "b", "c"] {
        assert_eq!(agent.run(&["publish", "t", "1", "--id", id]).status.code(), Some(0));
    }
    eventually("expired", || (listed(dir.path(), &["--state", "error"]).len() == 3).then_some(()));
    assert_eq!(agent.stop(), Some(0));
    let agent = Alone::start(dir.path(), &[]);
    assert_eq!(agent.run(&["publish", "t", "2", "--id", "d"]).status.code(), Some(0));

    let (code, out, _) = said(&agent.run(&["outbox", "ls"]));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((code, lines.len()), (Some(0), 5), "{out}");
    assert!(
        lines[0].starts_with("       1  error    20") && lines[0].contains("Z  t  id=a  expired: "),
        "{out}"
    );
    assert!(lines[3].starts_with("       4  pending  20") && lines[3].ends_with("  t  id=d"), "{out}");
    assert!(lines[4].starts_with("1 pending ("), "{out}");
    assert!(lines[4].contains(" bytes), 3 in error, 0 sent, 3 expired"), "{out}");
    assert_eq!(listed(dir.path(), &["-n", "2"]).len(), 2);

    let retried = agent.run(&["outbox", "retry", "b", "none"]);
    let want = "castra: no event in the state error has the id none\n";
    assert_eq!(said(&retried), (Some(1), "retried 1\n".into(), want.into()));
    assert_eq!(agent.run(&["outbox", "retry", "--all"]).status.code(), Some(0));
    let order: Vec<Value> = listed(dir.path(), &[]).iter().map(|row| row["id"].clone()).collect();
    assert_eq!(order, ["d", "b", "a", "c"]);
    let nothing = agent.run(&["outbox", "retry", "--all", "--json"]);
    let want = "{\"removed\":0,\"retried\":0,\"schema\":1,\"unknown\":[]}\n";
    assert_eq!((nothing.status.code(), nothing.stdout.as_slice()), (Some(1), want.as_bytes()));
    assert_eq!(said(&agent.run(&["outbox", "purge", "d", "a"])).1, "purged 2\n");
    assert_eq!(listed(dir.path(), &["--state", "pending"]).len(), 2);
    assert_eq!(agent.run(&["outbox", "purge"]).status.code(), Some(2));
    // It works on the files of an agent that does not run as well.
    agent.kill();
    assert_eq!(said(&run(dir.path(), &["outbox", "purge", "b"], "")).1, "purged 1\n");
    assert_eq!(listed(dir.path(), &[]).len(), 1);

    // What a damaged one still says.
    let path = dir.path().join("state/outbox.db");
    let aside = dir.path().join("state/outbox.db.damaged-1");
    std::fs::rename(&path, &aside).unwrap();
    assert_eq!(listed(dir.path(), &["--file", aside.to_str().unwrap()])[0]["id"], "c");
    std::fs::write(&aside, "no database\n".repeat(500)).unwrap();
    let (code, _, err) = said(&run(dir.path(), &["outbox", "ls", "--file", aside.to_str().unwrap()], ""));
    assert!(code == Some(65) && err.contains("file is not a database"), "{code:?}: {err}");
}

#[test]
fn an_event_that_failed_is_not_kept_twice_by_a_put_or_a_retry() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Alone::start(dir.path(), &["--outbox-age", "300ms"]);
    assert_eq!(agent.run(&["publish", "t", "1", "--id", "a"]).status.code(), Some(0));
    eventually("expired", || (listed(dir.path(), &["--state", "error"]).len() == 1).then_some(()));
    assert_eq!(agent.stop(), Some(0));
    let agent = Alone::start(dir.path(), &[]);
    // Whoever publishes it again wants it to be sent now.
    assert_eq!(agent.run(&["publish", "t", "2", "--id", "a"]).status.code(), Some(0));
    let rows = |state: &str| {
        let rows = listed(dir.path(), &["--state", state]);
        rows.iter().map(|row| format!("{} {}", row["id"], row["event"]["payload"])).collect::<Vec<_>>()
    };
    assert_eq!((rows("pending"), rows("error").len()), (vec!["\"a\" 2".to_owned()], 0));

    // A file may have more of an id: b failed twice, a is pending as well, c was sent.
    let path = dir.path().join("state/outbox.db");
    let insert = |state: u8, id: &str, payload: u8| {
        let frame = format!("{{\"type\":\"publish\",\"payload\":{payload}}}");
        let insert = "INSERT INTO event (state, id, topic, put_ts, since, weight, frame) VALUES (?1, ?2, 't', 1, 0, 160, ?3)";
        let db = rusqlite::Connection::open(&path).unwrap();
        db.busy_timeout(crate::support::PATIENCE).unwrap();
        db.execute(insert, (state, id, (state != 1).then(|| frame.into_bytes()))).unwrap();
    };
    for (state, id, payload) in [(2, "b", 3), (2, "b", 4), (2, "a", 5), (1, "c", 6), (2, "c", 7)] {
        insert(state, id, payload);
    }
    let (code, out, _) = said(&agent.run(&["outbox", "retry", "--all", "--json"]));
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "{\"removed\":3,\"retried\":1,\"schema\":1,\"unknown\":[]}\n")
    );
    assert_eq!(rows("pending"), ["\"a\" 2", "\"b\" 4"]);
    assert_eq!((rows("sent").len(), rows("error").len()), (1, 0));
    insert(2, "a", 8);
    let want = "retried 0, removed 1 that are pending or sent already\n";
    assert_eq!(said(&agent.run(&["outbox", "retry", "a"])), (Some(0), want.into(), String::new()));
    assert_eq!(rows("pending"), ["\"a\" 2", "\"b\" 4"]);
}

#[test]
fn what_was_answered_survives_a_kill_and_is_kept_once() {
    const PROGRAMS: usize = 4;
    const EACH: usize = 1_500;
    let dir = tempfile::tempdir().unwrap();
    let answered = AtomicUsize::new(0);
    let mut agent = Alone::start(dir.path(), &[]);
    let agent = std::thread::scope(|scope| {
        for program in 0..PROGRAMS {
            let (socket, answered) = (agent.socket(), &answered);
            // Sends again what was not answered, with the same ids, until all is.
            scope.spawn(move || {
                let mut next = 0;
                while next < EACH {
                    let Ok(stream) = UnixStream::connect(&socket) else {
                        std::thread::yield_now();
                        continue;
                    };
                    let mut answers = BufReader::new(stream.try_clone().unwrap());
                    'connected: while next < EACH {
                        let until = (next + 20).min(EACH);
                        let lines: String = (next..until)
                            .map(|n| format!("{{\"id\":\"{program}-{n}\",\"payload\":{n}}}\n"))
                            .collect();
                        if (&stream).write_all(lines.as_bytes()).is_err() {
                            break;
                        }
                        while next < until {
                            let mut line = String::new();
                            if answers.read_line(&mut line).unwrap_or(0) == 0 || !line.ends_with('\n') {
                                break 'connected;
                            }
                            assert!(line.contains(&format!("\"id\":\"{program}-{next}\"")), "{line}");
                            next += 1;
                            answered.fetch_add(1, SeqCst);
                        }
                    }
                }
            });
        }
        for kills in 1..=3 {
            eventually("answers", || (answered.load(SeqCst) > kills * PROGRAMS * EACH / 5).then_some(()));
            let dir = agent.dir.clone();
            agent.kill();
            agent = Alone::start(&dir, &[]);
        }
        agent
    });
    agent.kill();
    let rows = listed(dir.path(), &["--state", "pending"]);
    assert_eq!(rows.len(), PROGRAMS * EACH, "each once");
    for program in 0..PROGRAMS {
        let own = rows.iter().filter(|row| row["id"].as_str().unwrap().starts_with(&format!("{program}-")));
        assert!(own.map(|row| row["event"]["payload"].as_u64().unwrap()).eq(0..EACH as u64), "in order");
    }
}
