//! Whoever has the other end of the agent's stderr stops reading.

use crate::support::castra;
use crate::support::unread::Unread;
use std::io::BufRead;

#[test]
fn programs_publish_and_the_agent_ends_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let (state, socket) = (dir.path().join("agent"), dir.path().join("agent.sock"));
    let nobody = format!("unix:{}", dir.path().join("nobody.sock").display());
    let mut command = castra();
    command.args(["agent", "--vm", "web", "--log-level", "trace", "--broker", &nobody]);
    let mut agent = Unread::start(command.arg("--state-dir").arg(&state).arg("--socket").arg(&socket));
    let mut said = String::new();
    while !said.contains("programs publish at") {
        assert!(agent.out.read_line(&mut said).unwrap() > 0, "{said}");
    }
    agent.fill();
    for n in 0..5 {
        let id = n.to_string();
        let args = ["agent", "publish", "t", "1", "--id", &id, "--timeout", "10s", "--socket"];
        let done = castra().args(args).arg(&socket).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    assert_eq!(agent.end(), Some(0));
}
