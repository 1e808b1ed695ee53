//! An agent as a process, and a local program that publishes through it.

use crate::support::{castra, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::{Arc, Mutex};

/// A running agent; ended by its pid when it is dropped.
pub struct Agent {
    child: Child,
    dir: PathBuf,
    pub state: PathBuf,
    said: Arc<Mutex<String>>,
}

impl Agent {
    /// Starts one for `broker`, its files in `dir`, and waits until programs can publish.
    pub fn start(dir: &Path, broker: &str, args: &[&str]) -> Self {
        Self::start_env(dir, broker, args, &[])
    }

    pub fn start_env(dir: &Path, broker: &str, args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::start_in(&dir.join("agent"), dir, broker, args, env)
    }

    /// The same with its outbox in `state`.
    pub fn start_in(state: &Path, dir: &Path, broker: &str, args: &[&str], env: &[(&str, &str)]) -> Self {
        assert!(broker != "auto" && !broker.starts_with("vsock"), "nobody dials vsock on this machine");
        let mut command = castra();
        command.args(["agent", "--vm", "web", "--broker", broker]).args(args);
        command.arg("--state-dir").arg(state).arg("--socket").arg(dir.join("agent.sock"));
        command.envs(env.iter().copied()).env_remove("JOURNAL_STREAM");
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (said, stderr) = (Arc::new(Mutex::new(String::new())), child.stderr.take().unwrap());
        let saying = said.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                saying.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        let agent = Agent { child, dir: dir.to_owned(), state: state.to_owned(), said };
        agent.wait_for("programs publish at");
        agent
    }

    /// What it has said on stderr.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits until it says this.
    pub fn wait_for(&self, what: &str) {
        self.wait_for_times(what, 1);
    }

    /// Waits until it has said this so often.
    pub fn wait_for_times(&self, what: &str, times: usize) {
        eventually(&format!("{what:?}, {times} times"), || {
            (self.said().matches(what).count() >= times).then_some(())
        });
    }

    /// A program that publishes.
    pub fn program(&self) -> Program {
        program(&self.dir)
    }

    /// `castra agent outbox ls --json` of its files: the lines.
    pub fn outbox(&self) -> Vec<Value> {
        let output = self.castra(&["outbox", "ls", "--json"]);
        String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// `castra agent …` for its files.
    pub fn castra(&self, args: &[&str]) -> Output {
        let mut command = castra();
        command.env("CASTRA_AGENT_STATE_DIR", &self.state);
        command.env("CASTRA_AGENT_SOCKET", self.dir.join("agent.sock"));
        command.arg("agent").args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Waits until nothing is pending.
    pub fn drained(&self) {
        eventually("an empty outbox", || {
            let lines = self.outbox();
            (lines.last()?["counts"]["pending"] == 0).then_some(())
        });
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and its exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        eventually("its end", || self.child.try_wait().unwrap()).code()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection to an agent's socket.
pub struct Program {
    stream: BufReader<UnixStream>,
}

/// The same, of the agent of this folder.
pub fn program(dir: &Path) -> Program {
    let stream = eventually("the agent's socket", || UnixStream::connect(dir.join("agent.sock")).ok());
    stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    Program { stream: BufReader::new(stream) }
}

impl Program {
    /// Publishes this line, and waits until it is kept.
    pub fn publish(&mut self, line: &str) {
        let answer = self.ask(line);
        assert_eq!(answer["status"], "ok", "{answer}");
    }

    /// The answer to this line.
    pub fn ask(&mut self, line: &str) -> Value {
        self.send(line).unwrap();
        self.answer().expect("an answer")
    }

    pub fn send(&mut self, line: &str) -> std::io::Result<()> {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())
    }

    pub fn answer(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(n) if n > 0 && line.ends_with('\n') => Some(serde_json::from_str(&line).unwrap()),
            _ => None,
        }
    }
}

/// The broker's socket in `root`, as an agent names it.
pub fn at(root: &Path) -> String {
    format!("unix:{}", root.join("castra.sock").display())
}
