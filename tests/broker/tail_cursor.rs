//! `castra bus tail --cursor`: the next run goes on where the last one ended.

use crate::support::{Broker, eventually};
use crate::tail::{logs_of, printed, publish, tail};
use crate::tail_range::{line, refused, write_log};
use std::path::Path;

fn numbers(root: &Path, args: &[&str]) -> Vec<u64> {
    printed(root, &[&["-q", "-o", "raw"], args].concat()).lines().filter_map(|l| l.parse().ok()).collect()
}

#[test]
fn a_run_goes_on_behind_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let (root, file) = (dir.path().join("root"), dir.path().join("my.cursor"));
    let cursor = file.to_str().unwrap();
    logs_of(&root, 30);
    // The first run begins with the oldest event, or where it is told to.
    assert_eq!(numbers(&root, &["--cursor", cursor, "-c", "12"]), (1..=12).collect::<Vec<_>>());
    let said: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let format: serde_json::Value =
        serde_json::from_slice(&std::fs::read(root.join("format")).unwrap()).unwrap();
    assert_eq!((said["seq"].as_u64(), &said["journal"]), (Some(12), &format["journal"]));
    assert_eq!(numbers(&root, &["--cursor", cursor, "-c", "3", "-n", "1", "--since", "@1"]), [13, 14, 15]);
    let rest = numbers(&root, &["--cursor", cursor]);
    assert_eq!(rest, (16..=30).collect::<Vec<_>>());
    assert_eq!(
        refused(&root, &["-q", "--cursor", cursor]),
        (Some(1), String::new()),
        "all of them were printed"
    );
    let other = dir.path().join("other");
    assert_eq!(numbers(&root, &["--cursor", other.to_str().unwrap(), "-n", "3"]), [29, 30]);

    // Followed, over a restart of the broker.
    let follow = crate::tail::Follow::start(&root, &["-q", "-o", "raw", "--cursor", cursor]);
    let broker = Broker::start(&root);
    let mut guest = broker.guest("dev");
    for n in 31..=33 {
        publish(&mut guest, n);
        follow.expect([n]);
    }
    let written = || std::fs::read_to_string(&file).unwrap().contains("\"seq\":34,").then_some(());
    eventually("the cursor", written);
    drop(follow);
    publish(&mut guest, 34);
    eventually("its line", || (broker.log("bus").len() == 35).then_some(()));
    assert_eq!(numbers(&root, &["--cursor", cursor]), [34]);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "nothing but the root and the two cursors: {left:?}");
}

/// Whoever waits for what comes, and is interrupted before it does, gets it in the next run.
#[test]
fn a_run_that_printed_nothing_passes_nothing_over() {
    let dir = tempfile::tempdir().unwrap();
    let (root, file) = (dir.path().join("root"), dir.path().join("my.cursor"));
    let cursor = file.to_str().unwrap();
    logs_of(&root, 5);
    let follow = crate::tail::Follow::start(&root, &["-q", "-o", "raw", "-n", "0", "--cursor", cursor]);
    eventually("the cursor", || file.exists().then_some(()));
    drop(follow);
    let broker = Broker::start(&root);
    publish(&mut broker.guest("dev"), 77);
    eventually("its line", || (broker.log("bus").len() == 7).then_some(()));
    assert_eq!(numbers(&root, &["-n", "0", "--cursor", cursor]), [77]);
    // Events that do not match are no reason to begin elsewhere.
    let other = dir.path().join("other");
    let other = other.to_str().unwrap();
    assert_eq!(refused(&root, &["-q", "--cursor", other, "nothing.like.it"]).0, Some(1));
    assert_eq!(numbers(&root, &["--cursor", other]).len(), 6, "all but the one to web");
}

/// A copy goes on with other events of the same seqs; those are not taken for the ones that were printed.
#[test]
fn a_cursor_from_before_a_backup_was_restored_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (root, copy, file) = (dir.path().join("root"), dir.path().join("copy"), dir.path().join("my.cursor"));
    let cursor = file.to_str().unwrap();
    let broker = Broker::start(&root);
    let mut guest = broker.guest("dev");
    (1..=3).for_each(|n| publish(&mut guest, n));
    assert!(broker.run(&["backup", copy.to_str().unwrap()]).status.success());
    (4..=6).for_each(|n| publish(&mut guest, n));
    eventually("the lines", || (broker.log("bus").len() == 6).then_some(()));
    assert_eq!(numbers(&root, &["--cursor", cursor]).len(), 6);
    assert_eq!(broker.stop().0, Some(0));

    let broker = Broker::start(&copy);
    let mut guest = broker.guest("dev");
    (14..=17).for_each(|n| publish(&mut guest, n));
    eventually("the lines", || (broker.log("bus").len() == 7).then_some(()));
    let (code, said) = refused(&copy, &["-q", "--cursor", cursor]);
    assert!(code == Some(65) && said.contains("a backup was restored since"), "{code:?} {said}");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(numbers(&copy, &["--cursor", cursor]), [1, 2, 3, 14, 15, 16, 17]);
}

/// In a folder of somebody else's a name that can be guessed may be a link to anything.
#[test]
fn what_stands_beside_a_cursor_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (root, file, victim) =
        (dir.path().join("root"), dir.path().join("my.cursor"), dir.path().join("victim"));
    logs_of(&root, 2);
    std::fs::write(&victim, "precious").unwrap();
    // The name that it once had: with the pid of this very shell, which becomes the command.
    let program = crate::support::castra();
    let script = format!(
        "ln -s '{}' '{}'.$$.new; exec '{}' --state-root '{}' bus tail -q --cursor '{}'",
        victim.display(),
        file.display(),
        program.get_program().display(),
        root.display(),
        file.display()
    );
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script]).env("CASTRA_CONFIG", "/dev/null");
    assert!(shell.output().unwrap().status.success() && file.exists());
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn a_cursor_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    logs_of(&root, 3);
    let other = dir.path().join("other");
    logs_of(&other, 3);
    let foreign = dir.path().join("foreign");
    numbers(&other, &["--cursor", foreign.to_str().unwrap()]);
    let broken = dir.path().join("broken");
    std::fs::write(&broken, "{\"seq\":").unwrap();
    for (file, code, said) in [
        (&foreign, 65, "is of another journal"),
        (&broken, 65, "is no cursor"),
        (&dir.path().join("none/c"), 73, "cannot be written"),
        (&broken.join("c"), 73, "can be no file"),
        (&dir.path().to_owned(), 73, "can be no file"),
    ] {
        let before = std::fs::read(file).ok();
        let (exit, stderr) = refused(&root, &["-q", "--cursor", file.to_str().unwrap()]);
        assert!(exit == Some(code) && stderr.contains(said), "{}: {exit:?} {stderr}", file.display());
        assert_eq!(std::fs::read(file).ok(), before, "it is as it was");
    }
}

#[test]
fn what_was_rotated_away_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    logs_of(root, 3);
    let file = root.join("c");
    let cursor = file.to_str().unwrap();
    assert_eq!(numbers(root, &["--cursor", cursor, "-c", "2"]), [1, 2]);
    let lines = |seqs: std::ops::RangeInclusive<u64>| seqs.map(|seq| line(seq, "a", "t")).collect::<String>();
    write_log(root, "bus.log", &lines(7..=9));
    let said = |args: &[&str]| {
        let output = tail(root, &[&["-q", "-o", "raw"], args].concat());
        assert_eq!(output.stdout, b"7\n8\n9\n");
        String::from_utf8(output.stderr).unwrap()
    };
    let from = |n| {
        format!("castra: events {n} to 6 are not in the log any more; they were rotated away, or are lost\n")
    };
    assert_eq!(said(&["--since", "@5"]), from(5));
    assert_eq!(said(&["--since", "@7"]), "");
    assert_eq!(said(&["--cursor", cursor]), from(3));
    // A VM's own log has not every seq.
    write_log(root, "a.log", &lines(7..=9));
    assert_eq!(said(&["--vm", "a", "--since", "@5"]), "");

    // A state root that was restored: the cursor has seen more than there is.
    write_log(root, "bus.log", &lines(1..=4));
    let (exit, stderr) = refused(root, &["-q", "--cursor", cursor]);
    assert!(exit == Some(1) && stderr.contains("the cursor is at event 9, the log ends with 4"), "{stderr}");
}
