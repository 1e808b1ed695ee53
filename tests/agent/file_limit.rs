//! An agent that may write only small files (`ulimit -f`): it refuses what it cannot keep, and no signal ends it.

use crate::program::Agent;
use crate::support::{castra, eventually, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn agent(dir: &Path, args: &[&str]) -> Command {
    let mut command = castra();
    let castra = std::mem::replace(&mut command, Command::new("timeout"));
    castra.get_envs().for_each(|(name, value)| match value {
        Some(value) => _ = command.env(name, value),
        None => _ = command.env_remove(name),
    });
    command.arg("20").args(args).arg(castra.get_program());
    command.args(["agent", "--vm", "web", "--broker", "unix:/nowhere/castra.sock", "--state-dir"]);
    command.arg(dir.join("agent")).arg("--socket").arg(dir.join("agent.sock"));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn put(dir: &Path, payload: &str) -> Output {
    let mut command = castra();
    command.args(["agent", "publish", "--socket"]).arg(dir.join("agent.sock")).args(["t", payload]);
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn what_has_no_room_is_refused_and_the_rest_is_kept() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skip("what_has_no_room_is_refused_and_the_rest_is_kept", "prlimit is not installed");
    }
    let payload = format!("{:?}", "x".repeat(8000));
    for bytes in [0, 1, 4096, 20_000, 40_000, 100_000, 300_000] {
        let dir = tempfile::tempdir().unwrap();
        let mut running = agent(dir.path(), &["prlimit", &format!("--fsize={bytes}")]).spawn().unwrap();
        let first = eventually("the agent's socket, or its end", || {
            if let Some(status) = running.try_wait().unwrap() {
                panic!("{bytes}: {status}");
            }
            Some(put(dir.path(), &payload)).filter(|output| output.status.code() != Some(69))
        });
        let (mut kept, mut answer) = (0, first);
        while answer.status.success() {
            kept += 1;
            assert!(kept < 100, "{bytes}: no bound");
            answer = put(dir.path(), &payload);
        }
        let said = String::from_utf8_lossy(&answer.stderr);
        assert_eq!(answer.status.code(), Some(75), "{bytes}: {said}");
        assert!(said.contains("ulimit -f"), "{bytes}: {said}");
        // It is refused again, and not waited for.
        assert_eq!(put(dir.path(), &payload).status.code(), Some(75), "{bytes}");
        kill(Pid::from_raw(running.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(running.wait().unwrap().code(), Some(0), "{bytes}");

        let agent = Agent::start(dir.path(), "unix:/nowhere/castra.sock", &[]);
        let pending = agent.outbox().iter().filter(|event| event["state"] == "pending").count();
        assert_eq!(pending, kept, "{bytes}");
        assert_eq!(put(dir.path(), &payload).status.code(), Some(0), "{bytes}");
    }
}

#[test]
fn an_end_of_processor_time_is_an_orderly_end() {
    let dir = tempfile::tempdir().unwrap();
    let running = agent(dir.path(), &["env"]).spawn().unwrap();
    eventually("the agent's socket", || put(dir.path(), "1").status.success().then_some(()));
    // Of `timeout`, whose child it is.
    let children = format!("/proc/{0}/task/{0}/children", running.id());
    let pid = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGXCPU).unwrap();
    let output = running.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.contains("RLIMIT_CPU"), "{said}");
}
