//! `castra bus subscribe` and the real broker: nothing is printed twice or left out, though it is killed.

use crate::subscribe_cli::{Subscriber, command};
use crate::support::{Broker, castra, eventually};
use crate::tail::publish;
use nix::sys::signal::Signal;
use std::path::Path;

fn printed(root: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = command(root, &[args, &["--timeout", "20s"]].concat()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn it_prints_what_the_log_has() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    (1..=5).for_each(|n| publish(&mut guest, n));
    guest.ask(r#"{"type":"publish","topic":"vm:web","id":"mail","payload":{"to": "web"}}"#);
    guest.ask(r#"{"type":"publish","topic":"a.b","payload":"last"}"#);
    eventually("the log", || (broker.log("bus").len() == 7).then_some(()));
    let log = castra().arg("--state-root").arg(dir.path()).args(["bus", "tail", "-q", "-o", "json"]).output();
    let log = String::from_utf8(log.unwrap().stdout).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    let all = ["--from", "earliest", "-o", "json", ">", "vm:*", "-c", "7"];
    assert_eq!(printed(dir.path(), &all), (Some(0), log.clone(), String::new()));
    // Mailboxes are nobody's by default.
    let (exit, out, _) = printed(dir.path(), &["--from", "@5", "-o", "json", "-c", "2"]);
    assert_eq!((exit, out), (Some(0), format!("{}\n{}\n", lines[4], lines[6])));
    let (exit, out, _) = printed(dir.path(), &["--from", "id:mail", "-o", "raw", "a.*", "-c", "1"]);
    assert_eq!((exit, out.as_str()), (Some(0), "\"last\"\n"));
    let (exit, out, _) = printed(dir.path(), &["--from", "1h", "-o", "raw", "t", "-c", "5"]);
    assert_eq!((exit, out.as_str()), (Some(0), "1\n2\n3\n4\n5\n"));
    // As a guest: its own mailbox and no other.
    let tcp = format!("tcp:{}", broker.addr);
    let web = ["--broker", &tcp, "--vm", "web", "--from", "earliest", "-o", "json"];
    let (exit, out, _) = printed(Path::new("/proc/nothing"), &[&web[..], &["vm:web", "-c", "1"]].concat());
    assert_eq!((exit, out), (Some(0), format!("{}\n", lines[5])));
    for other in ["vm:dev", "vm:*", "$x"] {
        let (exit, _, err) = printed(Path::new("/proc/nothing"), &[&web[..], &[other]].concat());
        assert!(exit == Some(77) && err.starts_with("castra: forbidden-topic: "), "{other}: {exit:?} {err}");
    }
    for (from, code) in [("@99", "seq-ahead"), ("id:none", "unknown-id")] {
        let (exit, _, err) = printed(dir.path(), &["--from", from]);
        assert!(exit == Some(65) && err.starts_with(&format!("castra: {code}: ")), "{from}: {exit:?} {err}");
    }
}

#[test]
fn a_backup_that_is_restored_is_another_journal() {
    let dir = tempfile::tempdir().unwrap();
    let (root, backup) = (dir.path().join("root"), dir.path().join("backup"));
    let broker = Broker::start(&root);
    let mut guest = broker.guest("dev");
    (1..=3).for_each(|n| publish(&mut guest, n));
    let args = ["backup", backup.to_str().unwrap()];
    assert!(broker.run(&args).status.success());
    let mut subscriber = Subscriber::start(&root, &["-o", "raw", "--from", "earliest"]);
    (4..=6).for_each(|n| publish(&mut guest, n));
    (1..=6).for_each(|n| assert_eq!(subscriber.line(), n.to_string()));
    broker.kill();
    // The place of each event after the third is taken before it connects again.
    let restored = Broker::start(&backup);
    let mut guest = restored.guest("dev");
    (103..=107).for_each(|n| publish(&mut guest, n));
    assert_eq!(restored.stop().0, Some(0));
    std::fs::remove_dir_all(&root).unwrap();
    std::fs::rename(&backup, &root).unwrap();
    let _broker = Broker::start(&root);
    let (exit, out, said) = subscriber.end();
    assert_eq!((exit, out), (Some(65), vec![]), "{said:?}");
    assert!(said.last().unwrap().contains("another event 6 than the one that was received"), "{said:?}");
}

#[test]
fn nothing_twice_and_nothing_left_out_over_kills_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path());
    let subscriber = Subscriber::start(dir.path(), &["-v", "-o", "raw"]);
    let exec = format!("printf '%s ' $CASTRA_SEQ >> {}", dir.path().join("seen").display());
    let mut running = Subscriber::start(dir.path(), &["-v", "--exec", &exec]);
    assert!(subscriber.hear().contains("subscribed to > from event 1 on"));
    assert!(running.hear().contains("subscribed to > from event 1 on"));
    let mut acked = 0;
    for round in 0..6 {
        // Acked is never lost; what was sent and not acked may be there or not, so each is acked.
        let mut guest = broker.guest("dev");
        for _ in 0..50 {
            acked += 1;
            publish(&mut guest, acked);
        }
        // It does not wait for the subscriber to have them all.
        if round % 3 == 2 {
            assert_eq!(broker.stop().0, Some(0));
        } else {
            broker.kill();
        }
        broker = Broker::start(dir.path());
    }
    for n in 1..=acked {
        assert_eq!(subscriber.line(), n.to_string());
    }
    assert!(crate::subscribe_cli::is_quiet(&subscriber));
    let want: String = (1..=acked).map(|n| format!("{n} ")).collect();
    let seen = || std::fs::read_to_string(dir.path().join("seen")).unwrap_or_default();
    eventually("all commands", || (seen().len() >= want.len()).then_some(()));
    assert_eq!(seen(), want);
    running.signal(Signal::SIGTERM);
    assert_eq!(running.end().0, Some(0));
}
