//! A system that gives too few threads: whatever needs one says so and ends, or does without. Only root can be somebody
//! with so few.

use crate::support::{Broker, castra, eventually, skip};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A user of its own for each test: threads are counted by user.
struct Somebody {
    uid: u32,
    dir: tempfile::TempDir,
}

impl Somebody {
    /// None where that needs more than there is.
    fn new(test: &str, uid: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        if chown(dir.path(), Some(uid), None).is_err() {
            skip(test, "not root: nobody else to be");
            return None;
        }
        let has = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
        if !has("setpriv") || !has("prlimit") {
            skip(test, "setpriv or prlimit is not installed");
            return None;
        }
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_castra"), dir.path().join("castra")).unwrap();
        Some(Somebody { uid, dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `castra` as this user, who may have so many threads at the most, and 20 s.
    fn castra(&self, threads: usize) -> Command {
        let mut command = castra();
        let own = std::mem::replace(&mut command, Command::new("timeout"));
        own.get_envs().for_each(|(name, value)| match value {
            Some(value) => _ = command.env(name, value),
            None => _ = command.env_remove(name),
        });
        command.args(["20", "setpriv", &format!("--reuid={}", self.uid), "--clear-groups", "prlimit"]);
        command.arg(format!("--nproc={threads}:{threads}")).arg(self.path("castra"));
        command
    }
}

/// It was said what is missing, and what to do.
fn said_so(code: Option<i32>, said: &str) {
    assert_eq!(code, Some(75), "{said}");
    assert!(!said.contains("panic"), "{said}");
    assert!(said.contains("too few threads") && said.contains("ulimit -u"), "{said}");
}

#[test]
fn a_broker_has_all_its_threads_or_says_that_it_has_not() {
    let Some(somebody) = Somebody::new("a_broker_has_all_its_threads_or_says_that_it_has_not", 64_101) else {
        return;
    };
    let root = somebody.path("state");
    let (mut ran, mut limit) = (0, 0);
    while ran < 3 {
        limit += 1;
        assert!(limit < 32 + std::thread::available_parallelism().unwrap().get(), "none was enough");
        match Broker::try_start(&root, somebody.castra(limit), &[]) {
            Err((code, said)) => {
                said_so(code, &said);
                assert!(ran == 0, "fewer were enough: {limit}");
                assert!(limit < 3 || !root.join("journal").exists(), "nothing is opened: {limit}");
            }
            Ok(broker) => {
                ran += 1;
                let mut guest = broker.guest("dev");
                assert_eq!(guest.ask(r#"{"type":"publish"}"#)["seq"], ran, "{limit}");
                // What reads the journal does so without a further thread.
                guest.ask(r#"{"type":"subscribe","topic":">","from":"earliest"}"#);
                for seq in 1..=ran {
                    assert_eq!(guest.receive().unwrap()["seq"], seq, "{limit}");
                }
                assert_eq!(broker.stop().0, Some(0), "{limit}");
            }
        }
    }
    assert!(limit > 3, "every limit was enough");
}

#[test]
fn commands_say_that_they_get_no_thread() {
    let Some(somebody) = Somebody::new("commands_say_that_they_get_no_thread", 64_102) else { return };
    let root = somebody.path("state");
    let broker = Broker::start_with(&root, somebody.castra(1000), &[]);
    for args in [
        &["bus", "subscribe", "-c", "1"][..],
        &["bus", "subscribe", "-c", "1", "--exec", "true"],
        &["bus", "subscribe", "--group", "g"],
        &["bus", "subscribe", "--group", "g", "--exec", "true"],
        &["bus", "publish", "--jsonl"],
        &["bench", "publish", "--duration", "1s"],
        &["broker"],
    ] {
        let mut command = somebody.castra(1);
        command.arg("--state-root").arg(&root).args(args).stdin(Stdio::null());
        let output = command.output().unwrap();
        said_so(output.status.code(), &String::from_utf8_lossy(&output.stderr));
    }
    // One that needs none.
    let mut command = somebody.castra(1);
    let sent = command.arg("--state-root").arg(&root).args(["bus", "publish", "t"]).output().unwrap();
    assert_eq!(sent.status.code(), Some(0), "{}", String::from_utf8_lossy(&sent.stderr));
    assert_eq!(broker.stop().0, Some(0));
}

fn publishes(socket: &Path) -> Option<i32> {
    let mut command = castra();
    command.args(["agent", "publish", "--socket"]).arg(socket).args(["t", "1"]);
    command.stdin(Stdio::null()).output().unwrap().status.code()
}

#[test]
fn an_agent_has_its_threads_and_goes_on_without_one_for_a_name() {
    let Some(somebody) = Somebody::new("an_agent_has_its_threads_and_goes_on_without_one_for_a_name", 64_103)
    else {
        return;
    };
    let socket = somebody.path("agent.sock");
    for limit in 1.. {
        let mut command = somebody.castra(limit);
        // A name: to look it up takes a thread.
        command.args(["agent", "--vm", "web", "--broker", "tcp:localhost:1", "--state-dir"]);
        command.arg(somebody.path("agent")).arg("--socket").arg(&socket);
        let mut agent = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let ended = eventually("the agent's socket, or its end", || {
            let ended = agent.try_wait().unwrap();
            (ended.is_some() || publishes(&socket) == Some(0)).then_some(ended)
        });
        let runs = ended.is_none();
        if runs {
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(agent.id() as i32),
                nix::sys::signal::Signal::SIGTERM,
            )
            .unwrap();
        }
        let output = agent.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panic"), "{said}");
        if runs {
            assert_eq!(output.status.code(), Some(0), "{said}");
            assert!(limit > 1, "every limit was enough");
            return;
        }
        said_so(output.status.code(), &said);
        assert!(limit < 8, "none was enough");
    }
}
