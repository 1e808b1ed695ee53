//! The host as the agent sees it: one that is gone without a word, that refuses, that is in no hurry.

use crate::fake_broker::FakeBroker;
use crate::program::{Agent, at};
use crate::support::{Broker, eventually};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

const SHORT: [&str; 4] = ["--heartbeat", "200ms", "--silence", "1s"];

#[test]
fn a_host_that_is_gone_is_noticed_by_its_silence() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeBroker::start(dir.path());
    let agent = Agent::start(dir.path(), &at(dir.path()), &SHORT);
    let (mut session, _) = fake.guest();
    // One that answers is kept for longer than the silence.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        assert_eq!(session.receive().unwrap()["type"], "heartbeat");
        session.send_bytes(r#"{"type":"ack","ack":"heartbeat","status":"ok"}"#);
    }
    assert!(!fake.is_called() && !agent.said().contains("was not heard"), "{}", agent.said());
    // The connection stays open, and nothing comes any more.
    let (mut next, _) = fake.guest();
    agent.wait_for("the host was not heard on");
    while let Some(frame) = session.receive() {
        assert_eq!(frame["type"], "heartbeat");
    }
    // A broker asks for a sign of life as well.
    next.send_bytes(r#"{"type":"heartbeat"}"#);
    assert_eq!(next.receive().unwrap()["type"], "heartbeat");
}

#[test]
fn what_an_operator_has_to_mend_is_said_once_with_what_to_do_and_asked_slowly() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeBroker::start(dir.path());
    let token = dir.path().join("token");
    std::fs::write(&token, "secret-of-web\n").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let agent = Agent::start(dir.path(), &at(dir.path()), &["--token-file", token.to_str().unwrap()]);
    let (mut stream, hello) = fake.connection();
    assert!(hello.contains(" token=secret-of-web instance="), "{hello}");
    std::io::Write::write_all(stream.get_mut(), b"error: wrong-token\n").unwrap();
    drop(stream);
    agent.wait_for(
        "refuses this VM: wrong-token: --token-file must have the token of web in castra.toml on the host",
    );
    let since = Instant::now();
    eventually("the next attempt", || fake.is_called().then_some(()));
    assert!(since.elapsed() > Duration::from_secs(2), "no busy loop: {:?}", since.elapsed());
    fake.answer("error: wrong-token");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(agent.said().matches("wrong-token").count(), 1, "{}", agent.said());
    assert!(!agent.said().contains("secret-of-web"));
    // Meanwhile programs publish, and it ends as it is told.
    agent.program().publish(r#"{"topic":"t"}"#);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_broker_that_asks_for_patience_gets_it() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeBroker::start(dir.path());
    let agent = Agent::start(dir.path(), &at(dir.path()), &[]);
    let (mut session, _) = fake.guest();
    session.close_for("draining", 1500);
    drop(session);
    let since = Instant::now();
    let (mut session, _) = fake.guest();
    assert!(since.elapsed() >= Duration::from_millis(1400), "{:?}", since.elapsed());
    // What is no bus-v1 is left.
    session.try_send_raw(&[0, 0, 0, 0]).unwrap();
    agent.wait_for("is not bus-v1");
    let (mut session, _) = fake.guest();
    session.send_bytes("no JSON");
    agent.wait_for_times("is not bus-v1", 2);
    // Somebody else's answer is none.
    let (mut stream, _) = fake.connection();
    std::io::Write::write_all(stream.get_mut(), b"ok session=1 epoch=0123\n").unwrap();
    agent.wait_for("it answers somebody else's hello");
}

#[test]
fn heartbeats_that_come_together_have_one_answer_and_what_nobody_knows_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeBroker::start(dir.path());
    let agent = Agent::start(dir.path(), &at(dir.path()), &[]);
    let (mut session, _) = fake.guest();
    session.send_bytes(r#"{"type":"advice","seq":"soon","gap":[]}"#);
    let body = br#"{"type":"heartbeat"}"#;
    let frame = [&(body.len() as u32).to_be_bytes()[..], body].concat();
    session.try_send_raw(&frame.repeat(10_000)).unwrap();
    agent.program().publish(r#"{"topic":"t"}"#);
    let (mut answers, mut is_published) = (0, false);
    while !is_published || answers == 0 {
        let frame = session.receive().unwrap();
        answers += u32::from(frame["type"] == "heartbeat");
        is_published |= frame["type"] == "publish";
    }
    assert!(answers < 2000, "{answers}");
    assert!(!agent.said().contains("is not bus-v1"), "{}", agent.said());
}

/// An agent that was stopped finds its host silent for as long: what waits in the socket, or comes at once, counts.
#[test]
fn an_agent_that_was_stopped_keeps_its_session() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start(&root);
    let agent = Agent::start(dir.path(), &at(&root), &["--heartbeat", "500ms", "--silence", "2s"]);
    agent.wait_for("connected to");
    agent.program().publish(r#"{"topic":"t","id":"a0"}"#);
    agent.drained();
    agent.signal(Signal::SIGSTOP);
    // The pause itself.
    std::thread::sleep(Duration::from_secs(5));
    agent.signal(Signal::SIGCONT);
    agent.program().publish(r#"{"topic":"t","id":"a1"}"#);
    agent.drained();
    agent.wait_for("was paused");
    assert!(!agent.said().contains("was not heard"), "{}", agent.said());
    assert_eq!(broker.status()["broker"]["counters"]["sessions_opened"], 1);
    // And a host that is silent from here on is gone.
    broker.signal(Signal::SIGSTOP);
    agent.wait_for("the host was not heard on");
    broker.signal(Signal::SIGCONT);
}
