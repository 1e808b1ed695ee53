//! An outbox that is ill: its disk is full from the start, its file is found damaged at work, its machine loses power.

use crate::fake_broker::{FakeBroker, Session};
use crate::faults::{Mounted, skip};
use crate::program::{Agent, Program, at};
use crate::support::{Broker, eventually};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

const NOWHERE: &str = "unix:/nowhere/castra.sock";

fn line(id: &str, size: usize) -> String {
    json!({"topic": "t", "id": id, "payload": "x".repeat(size)}).to_string()
}

/// Publishes this until it is refused; the code.
fn until_refused(program: &mut Program) -> Value {
    eventually("a refusal", || {
        let answer = program.ask(&line("refused", 30_000));
        (answer["status"] == "error").then(|| answer["code"].clone())
    })
}

#[test]
fn an_agent_that_begins_on_a_full_disk_says_so_and_gets_well_by_itself() {
    let disk = match Mounted::new(16) {
        Ok(disk) => disk,
        Err(why) => {
            return skip("an_agent_that_begins_on_a_full_disk_says_so_and_gets_well_by_itself", &why);
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let (state, out) = (disk.at.join("new/agent"), dir.path().join("out"));
    let notify = dir.path().join("notify");
    let told = UnixDatagram::bind(&notify).unwrap();
    let env = [("NOTIFY_SOCKET", notify.to_str().unwrap())];
    let broker = Broker::start(&dir.path().join("state"));
    let exec = format!("echo $CASTRA_TOPIC >> {}", out.display());
    let args = ["--subscribe", "a", "--exec", &exec];
    let start = || Agent::start_in(&state, dir.path(), &at(&broker.root), &args, &env);

    // Not even the folder can be made.
    let filler = disk.fill();
    let agent = start();
    agent.wait_for("outbox-disk-full: the disk of the outbox is full");
    assert_eq!(agent.program().ask("{}")["code"], "outbox-disk-full");
    let listed = agent.castra(&["outbox", "ls", "--json"]);
    let failure: Value = serde_json::from_slice(&listed.stderr).unwrap();
    assert_eq!((listed.status.code(), &failure["code"]), (Some(75), &json!("outbox-disk-full")));
    eventually("the status", || {
        let mut bytes = [0; 4096];
        let n = told.recv(&mut bytes).unwrap();
        let status = std::str::from_utf8(&bytes[..n]).unwrap();
        status
            .contains("connected over")
            .then(|| assert!(status.contains("refused: outbox-disk-full"), "{status}"))
    });
    drop(filler);
    agent.wait_for("the outbox works again");
    agent.program().publish(r#"{"topic":"t","id":"first"}"#);
    agent.drained();
    agent.wait_for("subscribed");
    assert!(broker.run(&["bus", "publish", "a", "1"]).status.success());
    eventually("the handler", || out.exists().then_some(()));
    assert!(agent.outbox().pop().unwrap()["counts"]["refused"].as_u64() >= Some(1));
    assert_eq!(agent.stop(), Some(0));

    // What was kept before is not sent while its database cannot be opened, and after that it is.
    let agent = Agent::start_in(&state, dir.path(), NOWHERE, &[], &[]);
    agent.program().publish(r#"{"topic":"t","id":"kept"}"#);
    assert_eq!(agent.stop(), Some(0));
    let filler = disk.fill();
    let agent = start();
    agent.wait_for("outbox-disk-full");
    agent.wait_for("connected to");
    assert_eq!(agent.castra(&["outbox", "ls"]).status.code(), Some(75));
    drop(filler);
    agent.drained();
    eventually("the log", || (broker.log("web").len() == 2).then_some(()));
    assert_eq!(broker.log("web")[1]["id"], "kept");

    // It fills while the agent runs: nothing can be written down, and the list says why all the same.
    let filler = disk.fill();
    assert_eq!(until_refused(&mut agent.program()), "outbox-disk-full");
    let last = agent.outbox().pop().unwrap();
    assert!(last["last_error"].as_str().unwrap().starts_with("outbox-disk-full"), "{last}");
    drop(filler);
    agent.wait_for_times("the outbox works again", 2);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn what_is_really_wrong_ends_the_agent_at_once() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("folder/outbox.db")).unwrap();
    std::fs::create_dir(dir.path().join("foreign")).unwrap();
    std::fs::write(dir.path().join("foreign/letter"), "dear").unwrap();
    for (state, code) in [("folder", 74), ("foreign", 73)] {
        let mut command = crate::support::castra();
        command.args(["agent", "--vm", "web", "--broker", NOWHERE, "--socket"]).arg(dir.path().join("sock"));
        let output = command.arg("--state-dir").arg(dir.path().join(state)).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{state}: {output:?}");
    }
}

/// Damages a database where `quick_check` does not look: it can be read, and takes no more events.
fn harm(path: &std::path::Path) {
    let db = rusqlite::Connection::open(path).unwrap();
    db.execute_batch(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = 'CREATE TABLE sqlite_sequence(name,seq,more)' WHERE name = 'sqlite_sequence';",
    )
    .unwrap();
}

#[test]
fn damage_that_no_check_sees_puts_the_file_aside_the_second_time_it_is_met() {
    const EVENTS: u64 = 17;
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path(), NOWHERE, &[]);
    for n in 0..EVENTS {
        agent.program().publish(&line(&n.to_string(), 10));
    }
    assert_eq!(agent.stop(), Some(0));
    harm(&dir.path().join("agent/outbox.db"));
    let agent = Agent::start(dir.path(), NOWHERE, &[]);
    assert_eq!(agent.outbox().pop().unwrap()["counts"]["pending"], EVENTS, "{}", agent.said());
    let mut program = agent.program();
    let mut refused = HashSet::new();
    eventually("a new file", || {
        let answer = program.ask(&line("new", 10));
        if answer["status"] != "ok" {
            refused.insert(answer["code"].to_string());
        }
        (answer["status"] == "ok").then_some(())
    });
    assert_eq!(refused, HashSet::from([json!("outbox-damaged").to_string()]));
    assert_eq!(agent.said().matches("outbox-damaged: ").count(), 2, "{}", agent.said());
    let aside = std::fs::read_dir(dir.path().join("agent")).unwrap();
    let aside =
        aside.map(|entry| entry.unwrap().path()).find(|path| path.to_string_lossy().contains(".damaged-"));
    let aside = aside.unwrap().display().to_string();
    let said = format!("{EVENTS} events were pending in {aside}");
    assert!(agent.said().contains(&said), "{said}: {}", agent.said());
    let counts = agent.outbox().pop().unwrap()["counts"].clone();
    assert_eq!((&counts["pending"], &counts["lost"]), (&json!(1), &json!(EVENTS)), "{counts}");
    let listed = agent.castra(&["outbox", "ls", "--json", "--state", "pending", "--file", &aside]);
    assert_eq!(String::from_utf8(listed.stdout).unwrap().lines().count() as u64, EVENTS + 1);
    eventually("why nothing is sent, in the new file", || {
        let last = agent.outbox().pop()?;
        last["last_error"].as_str().filter(|error| error.starts_with("no broker answers")).map(|_| ())
    });
    // The count is of the life of the outbox.
    assert_eq!(agent.stop(), Some(0));
    let agent = Agent::start(dir.path(), NOWHERE, &[]);
    assert_eq!(agent.outbox().pop().unwrap()["counts"]["lost"], EVENTS);
}

/// Acknowledges what comes until so many different events are stored; the ids that came, in order.
fn store(session: &mut Session, stored: &mut HashSet<String>, until: usize) -> Vec<String> {
    let mut came = Vec::new();
    while stored.len() < until {
        let frame = session.receive().expect("a frame");
        if frame["type"] == "publish" {
            let id = frame["id"].as_str().unwrap().to_owned();
            stored.insert(id.clone());
            came.push(id);
            session.ack(&frame, came.len() as u64);
        }
    }
    came
}

#[test]
fn a_power_cut_repeats_no_more_than_the_broker_remembers() {
    const NAME: &str = "a_power_cut_repeats_no_more_than_the_broker_remembers";
    let mut disk = match Mounted::new(64) {
        Ok(disk) => disk,
        Err(why) => return skip(NAME, &why),
    };
    let switch = match disk.switch() {
        Ok(switch) => switch,
        Err(why) => return skip(NAME, &why),
    };
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeBroker::start(dir.path());
    let agent = Agent::start_in(&disk.root(), dir.path(), &at(dir.path()), &[], &[]);
    let mut program = agent.program();
    for n in 0..1000 {
        program.send(&line(&n.to_string(), 100)).unwrap();
        if n % 100 == 99 {
            (0..100).for_each(|_| assert_eq!(program.answer().unwrap()["status"], "ok"));
        }
    }
    // No put syncs the marks from here on.
    let (mut session, _) = fake.guest();
    let mut stored = HashSet::new();
    // And the last ones are fewer than make it ask for more, which would sync the rest.
    for acked in [700, 760] {
        store(&mut session, &mut stored, acked);
        eventually("the marks", || (agent.outbox().pop()?["counts"]["sent"] == acked).then_some(()));
    }
    if let Err(why) = switch.cut() {
        return skip(NAME, &why);
    }
    agent.kill();
    disk.unmount();
    disk.mount().unwrap();
    let agent = Agent::start_in(&disk.root(), dir.path(), &at(dir.path()), &[], &[]);
    let (mut session, _) = fake.guest();
    let before = stored.clone();
    let came = store(&mut session, &mut stored, 1000);
    let repeats = came.iter().filter(|id| before.contains(*id)).count();
    println!("{repeats} repeats");
    assert!(repeats <= 192, "{repeats} repeats");
    assert!(came.iter().map(|id| id.parse::<u32>().unwrap()).is_sorted(), "in order");
    drop(agent);
}

/// A second process that holds `outbox.db`, until it is dropped.
struct Lock(rusqlite::Connection);

impl Lock {
    fn take(agent: &Agent) -> Self {
        let db = rusqlite::Connection::open(agent.state.join("outbox.db")).unwrap();
        db.busy_timeout(crate::support::PATIENCE).unwrap();
        db.execute_batch("BEGIN EXCLUSIVE").unwrap();
        Lock(db)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.execute_batch("ROLLBACK");
    }
}

#[test]
fn an_outbox_that_somebody_else_has_locked_is_said_at_once_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let agent = Agent::start(dir.path(), &at(&root), &[]);
    let mut local = agent.program();
    // The broker is away: these are pending.
    (0..3).for_each(|n| local.publish(&line(&format!("a{n}"), 10)));
    let lock = Lock::take(&agent);
    let begun = Instant::now();
    assert_eq!(local.ask(&line("refused", 10))["code"], "outbox-busy");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    // From here on nobody waits for the lock: fifty would be fifty seconds.
    for n in 0..50 {
        assert_eq!(local.ask(&line(&format!("refused{n}"), 10))["code"], "outbox-busy");
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(agent.said().matches("ERROR outbox-busy: another process has locked").count(), 1);
    let begun = Instant::now();
    let purged = agent.castra(&["outbox", "purge", "--error"]);
    assert_eq!(purged.status.code(), Some(75), "{purged:?}");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    // It can be read, and what is in it is sent.
    assert_eq!(agent.outbox().len(), 4);
    let broker = Broker::start(&root);
    eventually("the events", || (broker.status()["broker"]["journal"]["head_seq"] == 3).then_some(()));
    drop(lock);
    agent.wait_for("the outbox works again");
    local.publish(&line("b0", 10));
    agent.drained();
    // The log is written behind the acks.
    let ids = || -> Vec<Value> { broker.log("web").iter().map(|event| event["id"].clone()).collect() };
    eventually("the log", || (ids().len() >= 4).then_some(()));
    assert_eq!(ids(), ["a0", "a1", "a2", "b0"]);
}

#[test]
fn an_agent_ends_while_somebody_else_has_its_outbox_locked() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start(&root);
    let agent = Agent::start(dir.path(), &at(&root), &[]);
    agent.program().publish(&line("a0", 10));
    agent.drained();
    let lock = Lock::take(&agent);
    let mut local = agent.program();
    assert_eq!(local.ask(&line("refused", 10))["code"], "outbox-busy");
    let begun = Instant::now();
    assert_eq!(agent.stop(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // One that begins while it is locked says so as well, and ends as soon.
    let agent = Agent::start(dir.path(), &at(&root), &[]);
    assert_eq!(agent.program().ask(&line("refused", 10))["code"], "outbox-busy");
    let begun = Instant::now();
    assert_eq!(agent.stop(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(lock);
    let agent = Agent::start(dir.path(), &at(&root), &[]);
    agent.program().publish(&line("a1", 10));
    agent.drained();
    eventually("both in the log", || (broker.log("web").len() == 2).then_some(()));
}
