//! What an agent is started with, what it refuses, and what a service manager hears of it.

use crate::faults::{skip, strace};
use crate::program::{Agent, at};
use crate::support::{Broker, castra, eventually};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "secret\n").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    let token = token.to_str().unwrap();
    for (args, code, why) in [
        (&["--broker", "7070"][..], 2, "--broker \"7070\": a broker is at auto, vsock:CID:PORT, serial"),
        (&["--vm", "a b"], 2, "--vm \"a b\" is no VM's name"),
        (&["--vm", "host"], 2, "--vm \"host\" is no VM's name"),
        (&["--subscribe", "a..b", "--exec", "true"], 65, "\"a..b\" is no topic and no pattern"),
        (&["--subscribe", "a"], 2, "--exec <CMD>"),
        (&["--exec", "true"], 2, "--subscribe <PATTERN>"),
        (&["--outbox-bytes", "1"], 2, "--outbox-bytes \"1\": a size of 1MiB or more"),
        (&["--silence", "1s", "--heartbeat", "1s"], 2, "--silence must be longer than --heartbeat"),
        (&["--token-file", token], 78, "others can read the token file"),
        (&["--token-file", "/nowhere/token"], 78, "cannot be read"),
    ] {
        let mut command = castra();
        command.args(["agent", "--state-dir"]).arg(dir.path().join("agent"));
        command.arg("--socket").arg(dir.path().join("agent.sock"));
        if !args.contains(&"--broker") {
            command.args(["--broker", "unix:/nowhere/castra.sock"]);
        }
        if !args.contains(&"--vm") {
            command.args(["--vm", "web"]);
        }
        let output = command.args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(why), "{args:?}: {said}");
        assert!(!dir.path().join("agent").exists(), "{args:?}");
    }
}

#[test]
fn a_second_agent_leaves_the_first_one_alone() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), "unix:/nowhere/castra.sock", &[]);
    let mut command = castra();
    command.args(["agent", "--vm", "b", "--broker", "unix:/nowhere/castra.sock", "--state-dir"]);
    let output = command
        .arg(dir.path().join("agent"))
        .arg("--socket")
        .arg(dir.path().join("b.sock"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(73) && said.contains("is in use by another agent"), "{said}");
    let mut command = castra();
    command.args(["agent", "--vm", "b", "--broker", "unix:/nowhere/castra.sock", "--state-dir"]);
    let other = dir.path().join("other");
    let output = command.arg(other).arg("--socket").arg(dir.path().join("agent.sock")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(73) && said.contains("no socket can be made at"), "{said}");
    agent.program().publish("{}");
}

#[test]
fn the_group_of_the_socket_is_no_way_to_a_file_behind_a_link() {
    // Another file is put in the socket's place before its group and mode are set.
    let Some(mut command) = strace(&["-e", "trace=rename", "-e", "inject=rename:delay_exit=2000000"]) else {
        return skip(
            "the_group_of_the_socket_is_no_way_to_a_file_behind_a_link",
            "there is no strace that may trace",
        );
    };
    let dir = tempfile::tempdir().unwrap();
    let (socket, link) = (dir.path().join("agent.sock"), dir.path().join("link"));
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    command.args(["agent", "--vm", "web", "--broker", "unix:/nowhere/castra.sock", "--state-dir"]);
    command.arg(dir.path().join("agent")).arg("--socket").arg(&socket).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    eventually("the socket", || std::fs::symlink_metadata(&socket).ok());
    std::fs::rename(&link, &socket).unwrap();
    let code = eventually("its end", || {
        let is_open = std::fs::metadata(&secret).unwrap().permissions().mode() & 0o777 != 0o600;
        if is_open {
            child.kill().unwrap();
        }
        child.try_wait().unwrap().map(|status| (status.code(), is_open))
    });
    assert_eq!(code, (Some(73), false));
}

#[test]
fn the_service_manager_hears_how_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let notify = dir.path().join("notify");
    let socket = UnixDatagram::bind(&notify).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut heard = String::new();
    let mut wait = |what: &str| {
        eventually(what, || {
            let mut bytes = [0; 4096];
            while let Ok(n) = socket.recv(&mut bytes) {
                heard.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
                heard.push('\n');
            }
            heard.contains(what).then_some(())
        });
        heard.clone()
    };
    let root = dir.path().join("state");
    let env = [("NOTIFY_SOCKET", notify.to_str().unwrap()), ("WATCHDOG_USEC", "400000")];
    let agent = Agent::start_env(dir.path(), &at(&root), &[], &env);
    // Programs can publish: the broker may come when it likes.
    wait("READY=1");
    agent.program().publish("{}");
    wait("STATUS=not connected: no broker answers");
    wait("outbox: 1 pending, 0 in error");
    wait("WATCHDOG=1");
    let broker = Broker::start(&root);
    wait("STATUS=connected over unix:");
    wait("outbox: 0 pending, 0 in error");
    eventually("the VM in the status", || (broker.status()["vms"][0]["name"] == "web").then_some(()));
    assert_eq!(agent.stop(), Some(0));
    let all = wait("STOPPING=1");
    assert_eq!(all.matches("READY=1").count(), 1, "{all}");
}
