//! Processes that stand still and go on: the broker by SIGSTOP, a client by a runtime that its program blocks. What was
//! sent in time and lies in a socket counts.

use crate::groups::{delivery, join};
use crate::subscribe::publish;
use crate::support::{Broker, broker_log, eventually};
use castra::core::client::{Bus, Target, Times};
use castra::core::follow::{Begin, Follow, News, Room};
use castra::core::topic::Pattern;
use nix::sys::signal::Signal;
use serde_json::json;
use std::cell::Cell;
use std::time::Duration;

/// Longer than every limit of these tests: the pause itself, not a wait for something.
const PAUSE: Duration = Duration::from_secs(5);
const HEARTBEAT: &str = r#"{"type":"heartbeat"}"#;

#[test]
fn a_broker_that_was_stopped_ends_no_session_and_takes_the_acks_that_wait() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start_args(dir.path(), &["--idle-time", "3s"]);
    let mut guests: Vec<_> = (0..20).map(|n| broker.guest(&format!("vm{n}"))).collect();
    let mut member = broker.guest("worker");
    let group = r#""topic":"job","group":"g","from":"earliest","ack_timeout_ms":2000,"max_attempts":1"#;
    join(&mut member, group);
    let seqs: Vec<u64> = (0..5).map(|_| publish(&mut guests[0], "job")).collect();
    seqs.iter().for_each(|seq| assert_eq!(delivery(&mut member, "g"), (*seq, 1)));
    guests.iter_mut().for_each(|guest| assert_eq!(guest.ask(HEARTBEAT)["ack"], "heartbeat"));
    broker.signal(Signal::SIGSTOP);
    // In time, but nobody reads it.
    member.send(json!({"type": "ack", "group": "g", "seqs": seqs}).to_string());
    guests.iter_mut().for_each(|guest| guest.send(HEARTBEAT));
    std::thread::sleep(PAUSE);
    broker.signal(Signal::SIGCONT);
    for guest in &mut guests {
        assert_eq!(guest.receive().expect("an answer")["ack"], "heartbeat");
    }
    let shown = eventually("the acks", || {
        let shown = member.ask(r#"{"type":"group","group":"g"}"#);
        (shown["cursor"] == seqs[4]).then_some(shown)
    });
    assert_eq!((&shown["dead"], &shown["held"], &shown["members"]), (&json!(0), &json!(0), &json!(1)));
    let own = broker.status()["broker"].take();
    let ended = own["counters"]["disconnects"].as_object().unwrap();
    assert!(ended.values().all(|n| *n == 0), "{ended:?}");
    assert_eq!(own["pauses"]["count"], 1, "{own}");
    let last = own["pauses"]["last_ms"].as_u64().unwrap();
    assert!((4_000..60_000).contains(&last) && own["pauses"]["last_age_ms"].is_u64(), "{own}");
    let table = String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    assert!(table.contains("the broker was paused for"), "{table}");
    eventually("the line in broker.log", || {
        let said = |line: &String| line.contains("WARN") && line.contains("was paused");
        broker_log(&broker.root).iter().any(said).then_some(())
    });
    // From here on time counts again: who is silent ends.
    assert_eq!(guests[0].receive().expect("a close frame")["reason"], "heartbeat-timeout");
}

/// A deadline has all of its rest after a pause, also one that was half over.
#[test]
fn who_was_about_to_say_hello_when_the_broker_was_stopped_may_still_say_it() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    // The hello time is 5 s.
    let mut slow = crate::support::Guest::connect(&broker.addr);
    broker.signal(Signal::SIGSTOP);
    std::thread::sleep(PAUSE + Duration::from_secs(1));
    broker.signal(Signal::SIGCONT);
    // It has looked at its timers.
    assert_eq!(broker.guest("other").ask(HEARTBEAT)["ack"], "heartbeat");
    std::io::Write::write_all(slow.stream.get_mut(), b"hello vm:slow capabilities=bus-v1\n").unwrap();
    assert!(slow.line().starts_with("ok"), "let in");
    assert_eq!(slow.ask(HEARTBEAT)["ack"], "heartbeat");
    assert_eq!(broker.status()["broker"]["counters"]["handshakes"]["timeout"], 0);
}

fn times() -> Times {
    let ms = Duration::from_millis;
    Times { connect: ms(3000), heartbeat: ms(1500), silence: ms(2000) }
}

/// On one thread, so that a program that blocks it stops all of the client.
fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

/// Until whoever looks at the clock has looked.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(600)).await;
}

#[test]
fn a_bus_whose_program_stood_still_keeps_its_session() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    run(async {
        let target = Target::Unix(broker.root.join("castra.sock"));
        let hello = "hello vm:app capabilities=bus-v1,heartbeat";
        let bus = Bus::connect_as(&target, hello, times()).await.unwrap();
        bus.publish("a", 1).await.unwrap();
        a_moment().await;
        std::thread::sleep(PAUSE);
        a_moment().await;
        bus.publish("a", 2).await.unwrap();
    });
    assert_eq!(broker.status()["broker"]["counters"]["sessions_opened"], 1);
}

#[test]
fn a_subscriber_that_stood_still_keeps_its_session() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut publisher = broker.guest("p");
    run(async {
        let follow = Follow {
            target: Target::Unix(broker.root.join("castra.sock")),
            hello: "hello vm:app capabilities=bus-v1,heartbeat".to_owned(),
            patterns: vec![Pattern::parse("a").unwrap()],
            begin: Begin::Latest,
            times: times(),
        };
        let client = follow.connect().await.unwrap();
        let (room, events, lost, live) = (Room::default(), Cell::new(0), Cell::new(0), Cell::new(false));
        let follows = follow.run(client, &room, |news| match news {
            News::Events(lines) => {
                events.set(events.get() + 1);
                room.give_back(lines.len());
            }
            News::Lost(..) => lost.set(lost.get() + 1),
            News::Subscribed(_) => live.set(true),
            News::Gap(_) | News::Anew => {}
        });
        let watches = async {
            while !live.get() {
                a_moment().await;
            }
            std::thread::sleep(PAUSE);
            a_moment().await;
            publish(&mut publisher, "a");
            while events.get() == 0 {
                a_moment().await;
            }
        };
        tokio::select! {
            failed = follows => panic!("{failed:?}"),
            () = watches => {}
        }
        assert_eq!((events.get(), lost.get()), (1, 0));
    });
    assert_eq!(broker.status()["broker"]["counters"]["sessions_opened"], 2);
}

/// A command that was stopped (Ctrl-Z) while its answer was on the way prints it when it goes on.
#[test]
fn a_command_that_was_stopped_takes_the_answer_that_waits() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    broker.signal(Signal::SIGSTOP);
    let mut command = crate::support::castra();
    command.arg("--state-root").arg(&broker.root).args(["bus", "publish", "a", "1", "--timeout", "3s"]);
    let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    eventually("it is connected", || {
        let path = format!("/proc/{}/fd", child.id());
        let open = std::fs::read_dir(path).ok()?.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        (open.filter(|to| to.to_string_lossy().starts_with("socket:")).count() > 0).then_some(())
    });
    std::thread::sleep(Duration::from_millis(700));
    nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    std::thread::sleep(PAUSE);
    broker.signal(Signal::SIGCONT);
    nix::sys::signal::kill(pid, Signal::SIGCONT).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
}
