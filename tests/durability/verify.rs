//! `castra verify`: what is damaged is found and named, what is not is left alone, and logs are written anew.

use crate::faults::{Mounted, copy, run, skip};
use crate::load::{Load, PLAN, Plan, check, log_text, logs_reach, publish_one};
use crate::support::{Broker, castra, eventually, read_log};
use castra::core::journal::record::{Decoded, HEAD_BYTES, Kind, decode, salt};
use castra::core::state_root::StateRoot;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

const SMALL: [&str; 2] = ["--segment-bytes", "1048576"];

pub fn verify_with(root: &Path, args: &[&str]) -> Output {
    castra().arg("--state-root").arg(root).arg("verify").args(args).stdin(Stdio::null()).output().unwrap()
}

/// Its exit code and what it says on stdout; stderr is shown when the test fails.
pub fn verify(root: &Path) -> (i32, String) {
    let output = verify_with(root, &[]);
    let said = String::from_utf8(output.stdout).unwrap();
    print!("{said}{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), said)
}

pub fn verify_json(root: &Path, args: &[&str]) -> (i32, Value) {
    let output = verify_with(root, &[&["--json"], args].concat());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).expect(&stderr))
}

/// Kind and events of each finding in the logs.
fn log_damage(said: &Value) -> Vec<(String, String, Value, Value)> {
    let damage = said["logs"]["damage"].as_array().unwrap().iter();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    damage
        .map(|d| (text(&d["log"]), text(&d["kind"]), d["first_seq"].clone(), d["last_seq"].clone()))
        .collect()
}

/// Every file below a folder, with all that a write would change.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let bytes = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            found.insert(path.clone(), (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.mode(), bytes));
            dirs.extend(meta.is_dir().then_some(path));
        }
    }
    found
}

/// A state root with a few events of three VMs and a mailbox, stopped in order.
fn few(dir: &Path) -> PathBuf {
    let root = dir.join("state");
    let broker = Broker::start_args(&root, &SMALL);
    drop(broker.guest("web"));
    for (vm, topic) in [("a", "t"), ("b", "t"), ("a", "vm:web"), ("web", "t"), ("b", "t"), ("a", "t")] {
        let frame = format!("{{\"type\":\"publish\",\"topic\":\"{topic}\",\"payload\":\"of {vm}\"}}");
        assert_eq!(broker.guest(vm).ask(frame)["status"], "ok");
    }
    assert_eq!(broker.stop().0, Some(0));
    root
}

#[test]
fn all_is_read_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let root = few(dir.path());
    let before = tree(&root);
    let (code, said) = verify(&root);
    assert_eq!(code, 0);
    assert!(said.starts_with("whole · events 1..6 in 1 segment of "), "{said}");
    assert!(said.ends_with(" · 13 log lines in 4 files\n"), "{said}");
    let (code, said) = verify_json(&root, &[]);
    assert_eq!((code, &said["schema"], &said["ok"]), (0, &json!(1), &json!(true)));
    assert_eq!((&said["journal"]["head_seq"], &said["logs"]["lines"]), (&json!(6), &json!(13)));
    assert!(tree(&root) == before, "verify wrote something");
    // Nor where there is damage, or a stop that was not in order.
    let broker = Broker::start(&root);
    publish_one(&broker, "last");
    broker.kill();
    fs::write(root.join("logs/bus/a.log"), "garbage\n").unwrap();
    let before = tree(&root);
    assert_eq!(verify(&root).0, 1);
    assert!(tree(&root) == before, "verify wrote something");
}

#[test]
fn a_disk_that_is_read_only_is_enough() {
    let mut disk = match Mounted::new(64) {
        Ok(disk) => disk,
        Err(why) => return skip("a_disk_that_is_read_only_is_enough", &why),
    };
    few(&disk.at);
    disk.remount("ro");
    assert_eq!(verify(&disk.root()).0, 0);
    let (code, said) = verify_json(&disk.root(), &[]);
    assert_eq!((code, &said["logs"]["lines"]), (0, &json!(13)));
    disk.unmount();
}

/// Logs are then read a few at a time, each time past the journal.
#[test]
fn few_descriptors_are_enough() {
    let dir = tempfile::tempdir().unwrap();
    let root = few(dir.path());
    fs::write(root.join("logs/bus/web.log"), "\n").unwrap();
    let with = |files: u32| {
        let program = env!("CARGO_BIN_EXE_castra");
        let line = format!("ulimit -n {files}; exec {program} --state-root {} verify --json", root.display());
        let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = with(20_000);
    assert_eq!(code, Some(1));
    assert_eq!(with(73), (code, said.clone()));
    assert_eq!(with(80), (code, said));
}

#[test]
fn a_state_root_of_somebody_else_is_refused() {
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    let root = few(dir.path());
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    open(dir.path());
    let program = dir.path().join("castra");
    fs::copy(env!("CARGO_BIN_EXE_castra"), &program).unwrap();
    open(&program);
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(&program);
        command.arg("--state-root").arg(&root).args(args).uid(65_534).gid(65_534).output()
    };
    for args in [&["verify"][..], &["verify", "--repair-logs"], &["backup", "/tmp/castra-never"]] {
        match run(args) {
            Err(why) => return skip("a_state_root_of_somebody_else_is_refused", &why.to_string()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(output.status.code(), Some(77), "{said}");
                assert!(said.contains("denied"), "{said}");
            }
        }
    }
}

#[test]
fn every_flipped_byte_of_a_log_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let root = few(dir.path());
    for name in ["bus", "web"] {
        let path = root.join(format!("logs/bus/{name}.log"));
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() > 150);
        for at in 0..bytes.len() {
            for flip in [1, 0x20] {
                let mut flipped = bytes.clone();
                flipped[at] ^= flip;
                fs::write(&path, flipped).unwrap();
                let found =
                    castra::core::verify::verify(&StateRoot::resolve(Some(root.clone())), &mut |_, _| {})
                        .unwrap();
                assert!(
                    !found.is_whole() && found.damaged_logs == [name],
                    "{name}.log, byte {at} ^ {flip}: {found:?}"
                );
            }
        }
        fs::write(&path, bytes).unwrap();
    }
    assert_eq!(verify(&root).0, 0);
}

/// All but the zeros between and behind records, and a marker: nothing was promised with it that events do not say.
#[test]
fn every_flipped_byte_of_the_journal_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let root = few(dir.path());
    let journal = StateRoot::resolve(Some(root.clone())).journal_id().unwrap().unwrap();
    let path = root.join("journal/00000000000000000001.seg");
    let bytes = fs::read(&path).unwrap();
    let (mut at, mut events, mut counts) = (4096, Vec::from([(0, 108)]), 0);
    while let Decoded::Record(head, body, size) = decode(&bytes[at..], salt(journal, 1)) {
        if head.kind == Kind::Event {
            events.push((at, at + HEAD_BYTES + body.len()));
        }
        at += size;
    }
    for byte in (0..120).chain(4096..at) {
        let mut flipped = bytes.clone();
        flipped[byte] ^= 4;
        fs::write(&path, flipped).unwrap();
        let found =
            castra::core::verify::verify(&StateRoot::resolve(Some(root.clone())), &mut |_, _| {}).unwrap();
        let hit = events.iter().position(|(from, to)| (*from..*to).contains(&byte));
        assert_eq!(found.is_whole(), hit.is_none(), "byte {byte}: {found:?}");
        assert!(found.log_damage.is_empty(), "byte {byte}: the logs are right: {found:?}");
        if let Some(seq) = hit.filter(|hit| *hit > 0) {
            let seq = seq as u64;
            assert_eq!(found.damage[0].seqs, seq..seq + 1, "byte {byte}");
            counts += 1;
        }
    }
    assert!(counts > 600 && events.len() == 7);
}

#[test]
fn each_kind_of_damage_is_named_with_its_events() {
    let dir = tempfile::tempdir().unwrap();
    let root = few(dir.path());
    let bus = root.join("logs/bus/bus.log");
    let text = fs::read_to_string(&bus).unwrap();
    let lines: Vec<String> = text.lines().map(|line| line.to_owned() + "\n").collect();
    let with = |order: &[usize]| order.iter().map(|n| lines[n - 1].as_str()).collect::<String>();
    let strange = lines[0].replace("\"seq\":1,", "\"seq\":9,");
    let one =
        |kind: &str, from: u64, to: u64| vec![("bus".to_owned(), kind.to_owned(), json!(from), json!(to))];
    let none = |kind: &str| ("bus".to_owned(), kind.to_owned(), Value::Null, Value::Null);
    for (text, want) in [
        (with(&[1, 2, 5, 6]), one("missing", 3, 4)),
        (with(&[1, 2, 3]), one("missing", 4, 6)),
        (with(&[1, 2, 2, 3, 4, 5, 6]), one("repeated", 2, 2)),
        (with(&[1, 2, 3, 1, 2, 4, 5, 6]), one("out-of-order", 1, 2)),
        (with(&[1, 2, 4, 3, 5, 6]), [one("out-of-order", 4, 4), one("missing", 4, 4)].concat()),
        (
            with(&[1, 2, 3, 4, 5, 6]).replace("of b", "of c"),
            [one("altered", 2, 2), one("altered", 5, 5)].concat(),
        ),
        (with(&[1, 2, 3, 4, 5, 6]) + &strange, one("not-in-journal", 9, 9)),
        (with(&[1, 2, 3, 4, 5, 6]) + "half a li", vec![none("garbage")]),
        (with(&[1, 2, 3]) + "\n\n" + &with(&[4, 5, 6]), vec![none("garbage")]),
        ("\0\0\0\n".to_owned() + &with(&[4, 5, 6]), vec![none("garbage")]),
        (
            with(&[1, 2, 3]) + &"x".repeat(200_000) + &with(&[5, 6]),
            [vec![none("garbage")], one("missing", 4, 5)].concat(),
        ),
        // It begins later: somebody removed it.
        (with(&[4, 5, 6]), vec![]),
        // It has no line at all.
        (String::new(), one("missing", 1, 6)),
    ] {
        fs::write(&bus, &text).unwrap();
        let (code, said) = verify_json(&root, &[]);
        assert_eq!(log_damage(&said), want, "{text:.3000}");
        assert_eq!((code, said["ok"].as_bool()), (i32::from(!want.is_empty()), Some(want.is_empty())));
    }
    // Somebody else's line, and mail: it need not be there, and must be right when it is.
    fs::write(&bus, &text).unwrap();
    let web = root.join("logs/bus/web.log");
    for (text, want) in [
        (with(&[3, 4]), vec![]),
        (with(&[4]), vec![]),
        (
            with(&[3, 4]).replace("of a", "of x"),
            vec![("web".to_owned(), "altered".to_owned(), json!(3), json!(3))],
        ),
        (with(&[2, 4]), vec![("web".to_owned(), "foreign".to_owned(), json!(2), json!(2))]),
    ] {
        fs::write(&web, &text).unwrap();
        assert_eq!(log_damage(&verify_json(&root, &[]).1), want, "{text}");
    }
    let (code, said) = verify(&root);
    assert_eq!(code, 1);
    assert!(said.contains("logs/bus/web.log at byte 0: event 2 is not of this log\n"), "{said}");
    assert!(said.contains("\ndamaged: 0 ranges of the journal, 1 log · events 1..6 in "), "{said}");
}

#[test]
fn what_is_printed_is_bounded_and_the_rest_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start(&root);
    let load = Load::start(&broker, "many", PLAN);
    load.reach(1_000);
    load.stop();
    assert_eq!(broker.stop().0, Some(0));
    let bus = root.join("logs/bus/bus.log");
    let text = fs::read_to_string(&bus).unwrap();
    let odd = |(i, line): (usize, &str)| format!("{}\n", if i % 2 == 0 { line } else { &line[1..] });
    fs::write(&bus, text.lines().enumerate().map(odd).collect::<String>()).unwrap();
    let (code, said) = verify_json(&root, &[]);
    assert_eq!((code, log_damage(&said).len()), (1, 64));
    // Each is no event, and missing.
    let hit = 2 * (text.lines().count() as u64 / 2);
    assert_eq!(said["logs"]["more_damage"], json!(hit - 64));
}

/// A broker that was killed leaves what the next start puts right, and no damage.
#[test]
fn an_unclean_stop_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    for round in 0..8 {
        let broker = Broker::start_args(&root, &SMALL);
        let size = || fs::metadata(root.join("logs/bus/bus.log")).map_or(0, |meta| meta.len());
        let vouched = size();
        let load = Load::start(&broker, &format!("kill{round}"), PLAN);
        load.reach(500 + 400 * round);
        eventually("lines behind the checkpoint", || (size() > vouched + 4_000).then_some(()));
        broker.kill();
        load.join();
        let output = verify_with(&root, &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{} {said}", String::from_utf8_lossy(&output.stdout));
        assert!(said.contains("the next start writes"), "{said}");
        // What no checkpoint vouches for is written anew, whatever stands there.
        let bus = root.join("logs/bus/bus.log");
        let bytes = fs::read(&bus).unwrap();
        fs::write(&bus, &bytes[..bytes.len() - 9]).unwrap();
        assert_eq!(verify(&root).0, 0);
        let mut altered = bytes.clone();
        altered[bytes.len() - 3000] ^= 1;
        fs::write(&bus, altered).unwrap();
        let (code, said) = verify_json(&root, &[]);
        assert_eq!(code, 0, "{said}");
        assert!(said["notes"].to_string().contains("the next start cuts them"), "{said}");
        // Also where a line no longer looks like one.
        let mut broken = bytes.clone();
        let begin =
            bytes[..bytes.len() - 3000].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        broken[begin] ^= 1;
        fs::write(&bus, broken).unwrap();
        let (code, said) = verify_json(&root, &[]);
        assert_eq!(code, 0, "{said}");
        fs::write(&bus, &bytes).unwrap();
    }
}

/// Beside a broker that is under load, whose journal and logs rotate and whose segments are removed.
#[test]
fn no_false_alarm_beside_a_busy_broker() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let retain = ["--retain-bytes", "6000000"];
    let broker = Broker::start_args(&root, &[SMALL, retain].concat());
    let load = Load::start(&broker, "busy", Plan { publishers: 4, window: 64, pad: 4_000 });
    let (mut older, mut looks) = (0, 0);
    // Until a log was rotated, and then some.
    while looks < 12 || !root.join("logs/bus/bus.log.1").exists() {
        let (code, said) = verify_json(&root, &[]);
        assert_eq!(code, 0, "{said}");
        older += said["logs"]["older_than_journal"].as_u64().unwrap();
        looks += 1;
    }
    for _ in 0..5 {
        let (code, said) = verify_json(&root, &[]);
        assert_eq!(code, 0, "{said}");
    }
    // And damage is found all the same: in the middle of what is known, a line is another's.
    let first = broker.status()["broker"]["journal"]["first_seq"].as_u64().unwrap();
    assert!(older > 0 && first > 100, "retention ran");
    load.stop();
    let seq = publish_one(&broker, "last");
    logs_reach(&broker, seq);
    let path = root.join("logs/bus/late.log");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("last", "lost")).unwrap();
    let (code, said) = verify_json(&root, &[]);
    assert_eq!(
        (code, log_damage(&said)),
        (1, vec![("late".into(), "altered".into(), json!(seq), json!(seq))])
    );
    let refused = verify_with(&root, &["--repair-logs"]);
    assert_eq!(refused.status.code(), Some(75));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("stop the broker first"));
    assert!(fs::read_to_string(&path).unwrap().contains("lost"), "nothing was written");
    assert_eq!(broker.stop().0, Some(0));

    // Now it may; files of 64 MiB stay files of 64 MiB, and lines older than the journal stay.
    let before = read_log(&root, "bus");
    let mut bytes = fs::read(root.join("logs/bus/bus.log")).unwrap();
    let middle = bytes.len() - 40;
    bytes[middle] ^= 1;
    fs::write(root.join("logs/bus/bus.log"), &bytes).unwrap();
    let (code, said) = verify_json(&root, &["--repair-logs"]);
    assert_eq!((code, &said["repaired"]["logs"]), (0, &json!(["bus", "late"])), "{said}");
    assert!(read_log(&root, "bus") == before, "the same lines as before the damage");
    for file in castra::core::log_files::files_of(&root.join("logs/bus/bus.log")) {
        assert!(fs::metadata(&file).unwrap().len() <= 64 << 20);
    }
    let kept = root.join(said["repaired"]["damaged_files"][0].as_str().unwrap());
    assert!(fs::read(kept.join("bus.log")).unwrap() == bytes, "the damaged file is kept");
    assert!(kept.join("bus.log.1").exists() && kept.join("late.log").exists());
}

#[test]
fn damaged_logs_are_written_anew_and_nothing_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start_args(&root, &SMALL);
    let load = Load::start(&broker, "repair", PLAN);
    load.reach(4_000);
    let ledger = load.stop();
    assert_eq!(broker.stop().0, Some(0));
    let want: BTreeMap<&str, String> =
        ["bus", "vm0", "vm1", "vm2", "vm3"].iter().map(|name| (*name, log_text(&root, name))).collect();
    let path = |name: &str| root.join(format!("logs/bus/{name}.log"));
    let lines: Vec<&str> = want["bus"].split_inclusive('\n').collect();
    let n = lines.len();
    fs::write(path("bus"), [&lines[..n / 3], &lines[n / 2..]].concat().concat() + "tor").unwrap();
    fs::write(path("vm0"), want["vm1"].as_bytes()).unwrap();
    fs::write(path("vm1"), vec![0xff; 300_000]).unwrap();
    let damaged = tree(&root.join("logs/bus"));
    let (code, said) = verify_json(&root, &["--repair-logs"]);
    assert_eq!((code, &said["repaired"]["logs"]), (0, &json!(["bus", "vm0", "vm1"])), "{said}");
    for (name, text) in &want {
        assert!(log_text(&root, name) == *text, "{name}.log");
    }
    let kept = root.join(said["repaired"]["damaged_files"][0].as_str().unwrap());
    assert!(kept.parent().unwrap() == root.join("logs/damaged"));
    for name in ["bus", "vm0", "vm1"] {
        assert!(fs::read(kept.join(format!("{name}.log"))).unwrap() == damaged[&path(name)].4, "{name}");
    }
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 3);
    assert!(!root.join("logs/repair").exists() && !root.join("logs/repair.new").exists());
    // Once more there is nothing to do; and a broker goes on from there.
    assert_eq!(verify_json(&root, &["--repair-logs"]).1["repaired"]["logs"], json!([]));
    let broker = Broker::start_args(&root, &SMALL);
    let head = check(&root, &ledger);
    let last = publish_one(&broker, "after");
    assert_eq!(last, head + 1);
    logs_reach(&broker, last);
    assert_eq!(verify(&root).0, 0);
}

/// It is killed at each step of putting the new files in place; whoever runs it again ends it.
#[test]
fn a_repair_that_is_killed_is_finished_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let root = few(dir.path());
    // Of one call at a time: each has a count of its own.
    let strace = |call: &str, when: usize, root: &Path| {
        let (trace, inject) =
            (format!("trace=?{call}"), format!("inject=?{call}:signal=SIGKILL:when={when}"));
        let args = ["-f", "-q", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        let program = env!("CARGO_BIN_EXE_castra");
        let mut command = std::process::Command::new("strace");
        command.args(args).arg(program).arg("--state-root").arg(root).args(["verify", "--repair-logs"]);
        command.stdin(Stdio::null()).output()
    };
    if run("strace", &["-V"]).is_err() {
        return skip("a_repair_that_is_killed_is_finished_by_the_next", "strace is not there");
    }
    // A rotated file that will be none, with lines that the journal does not speak for in the new ones.
    let logs = root.join("logs/bus");
    let text = fs::read_to_string(logs.join("bus.log")).unwrap();
    let cut = text.match_indices('\n').nth(2).unwrap().0 + 1;
    fs::write(logs.join("bus.log.1"), &text[..cut]).unwrap();
    fs::write(logs.join("bus.log"), "what?\n".to_owned() + &text[cut..]).unwrap();
    fs::write(logs.join("a.log"), "\n").unwrap();
    let a = log_text(&root, "web");
    // Whether it was killed at all.
    let killed_at = |call: &str, when: usize| {
        let case = dir.path().join("case");
        let _ = fs::remove_dir_all(&case);
        copy(&root, &case);
        let status = strace(call, when, &case).unwrap().status;
        assert!(status.signal().is_some() || status.success(), "{call} {when}: {status}");
        let at = format!("killed at {call} {when}");
        let output = verify_with(&case, &["--repair-logs"]);
        assert_eq!(output.status.code(), Some(0), "{at}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(log_text(&case, "bus"), text, "{at}");
        assert_eq!((log_text(&case, "web"), read_log(&case, "a").len()), (a.clone(), 3), "{at}");
        for gone in ["logs/bus/bus.log.1", "logs/repair", "logs/repair.new"] {
            assert!(!case.join(gone).exists(), "{at}: {gone}");
        }
        let damaged: String = tree(&case.join("logs/damaged"))
            .into_iter()
            .filter(|(path, _)| path.ends_with("bus.log") || path.ends_with("bus.log.1"))
            .map(|(_, file)| String::from_utf8(file.4).unwrap())
            .collect();
        assert!(damaged.contains("what?") && damaged.contains(&text[..cut]), "{at}: {damaged}");
        status.signal().is_some()
    };
    // As the architecture calls them; a folder is removed with unlinkat.
    for (calls, least) in [
        (&["rename", "renameat", "renameat2"][..], 4),
        (&["linkat", "link"], 3),
        (&["unlink", "unlinkat"], 3),
        (&["mkdir", "mkdirat"], 2),
        (&["fsync"], 5),
    ] {
        let kills = |call: &&str| (1..100).take_while(|when| killed_at(call, *when)).count();
        let kills: usize = calls.iter().map(kills).sum();
        assert!((least..99).contains(&kills), "killed at {calls:?}: {kills} times");
    }
}

/// Of a log, removed or emptied; a log that was removed begins anew while a broker runs, and that is no damage.
#[test]
fn a_log_of_all_events_that_is_gone_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let root = few(dir.path());
    let (path, want) = (root.join("logs/bus/bus.log"), log_text(&root, "bus"));
    let missing = |to: u64| vec![("bus".to_owned(), "missing".to_owned(), json!(1), json!(to))];
    for emptied in [false, true] {
        fs::remove_file(&path).unwrap();
        if emptied {
            fs::write(&path, "").unwrap();
        }
        let (code, said) = verify(&root);
        assert_eq!(code, 1);
        assert!(said.starts_with("logs/bus/bus.log: events 1 to 6 are missing\ndamaged: "), "{said}");
        let (_, said) = verify_json(&root, &[]);
        assert_eq!((log_damage(&said), &said["logs"]["damaged"]), (missing(6), &json!(["bus"])));
        let output = verify_with(&root, &["--repair-logs"]);
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(log_text(&root, "bus") == want);
        assert_eq!(said.starts_with("written anew: bus\nwhole · "), !emptied, "{said}");
        assert_eq!(said.contains("files are in logs/damaged/"), emptied, "{said}");
    }
    let broker = Broker::start_args(&root, &SMALL);
    fs::remove_file(&path).unwrap();
    let (code, said) = verify_json(&root, &[]);
    assert_eq!((code, log_damage(&said)), (1, missing(6)));
    let seq = publish_one(&broker, "anew");
    logs_reach(&broker, seq);
    let (code, said) = verify_json(&root, &[]);
    let note = said["notes"][0].as_str().unwrap();
    assert!(
        code == 0 && note.starts_with("bus.log begins later than the journal: events 1 to 6 are"),
        "{said}"
    );
}

#[test]
fn what_logs_lack_and_is_no_damage_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let root = few(dir.path());
    let (logs, want) = (root.join("logs/bus"), log_text(&root, "bus"));
    let noted = |words: &[&str]| {
        let output = verify_with(&root, &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(0), words.len()), "{said}");
        for (line, word) in said.lines().zip(words) {
            assert!(line.starts_with(&format!("castra: {word}")) && line.len() < 4_000, "{said}");
        }
    };
    noted(&[]);
    let lines: Vec<&str> = want.split_inclusive('\n').collect();
    fs::write(logs.join("bus.log"), lines[2..].concat()).unwrap();
    noted(&["bus.log begins later than the journal: events 1 to 2 are not in it"]);
    // Where there are all the files of a log, rotation took the others.
    for (n, line) in lines[1..5].iter().rev().enumerate() {
        fs::write(logs.join(format!("bus.log.{}", n + 1)), line).unwrap();
    }
    fs::write(logs.join("bus.log"), lines[5]).unwrap();
    noted(&[]);
    for gone in ["web", "a"] {
        fs::remove_file(logs.join(format!("{gone}.log"))).unwrap();
    }
    noted(&["these have events in the journal and no log: a, web; "]);

    let broker = Broker::start_args(&root, &SMALL);
    for n in 0..70 {
        let ack = broker.guest(&format!("many{n:02}")).ask(r#"{"type":"publish","topic":"t","payload":1}"#);
        assert_eq!(ack["status"], "ok", "{ack}");
    }
    assert_eq!(broker.stop().0, Some(0));
    (0..70).for_each(|n| fs::remove_file(logs.join(format!("many{n:02}.log"))).unwrap());
    noted(&["these have events in the journal and no log: a, many00, many01, "]);
    let said = String::from_utf8(verify_with(&root, &[]).stderr).unwrap();
    assert!(said.contains("many62 and others; ") && !said.contains("many63"), "{said}");
}

/// As one that was killed while it cleared away left it.
#[test]
fn an_empty_folder_of_a_repair_is_in_nobodys_way() {
    let dir = tempfile::tempdir().unwrap();
    let root = few(dir.path());
    let want = log_text(&root, "bus");
    for damage in ["", "what?\n"] {
        fs::create_dir(root.join("logs/repair")).unwrap();
        fs::write(root.join("logs/bus/bus.log"), format!("{damage}{want}")).unwrap();
        let output = verify_with(&root, &["--repair-logs"]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!root.join("logs/repair").exists() && log_text(&root, "bus") == want);
    }
}

/// What the journal has lost a log may still have; it is kept, and said.
#[test]
fn damage_of_the_journal_is_named_and_not_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start_args(&root, &SMALL);
    let load = Load::start(&broker, "lost", PLAN);
    load.reach(9_000);
    load.stop();
    assert_eq!(broker.stop().0, Some(0));
    let mut segments: Vec<_> =
        fs::read_dir(root.join("journal")).unwrap().map(|e| e.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|e| e == "seg"));
    segments.sort();
    assert!(segments.len() >= 3);
    let name = segments[1].file_name().unwrap().to_str().unwrap().to_owned();
    let mut bytes = fs::read(&segments[1]).unwrap();
    bytes[300_000] ^= 1;
    fs::write(&segments[1], &bytes).unwrap();
    let want = log_text(&root, "bus");

    let (code, said) = verify_json(&root, &[]);
    let damage = &said["journal"]["damage"];
    assert_eq!((code, damage.as_array().unwrap().len(), &damage[0]["segment"]), (1, 1, &json!(name)));
    let seq = damage[0]["first_seq"].as_u64().unwrap();
    assert_eq!((&damage[0]["last_seq"], log_damage(&said)), (&json!(seq), vec![]));
    assert_eq!(said["logs"]["lost_by_journal"], 2, "of bus.log and of the VM's");
    let (code, said) = verify(&root);
    assert_eq!(code, 1);
    assert!(said.starts_with(&format!("journal/{name} at byte ")), "{said}");
    assert!(said.contains(&format!("(event {seq}) cannot be read\n")), "{said}");

    // The broker says the same.
    let broker = Broker::start_args(&root, &SMALL);
    let says = |status: Value| status["broker"]["journal"]["damage"][0].as_str().map(str::to_owned);
    let status = eventually("the damage in the status", || says(broker.status()));
    assert!(said.starts_with(&status), "{status}");
    assert_eq!(verify(&root).0, 1);
    assert_eq!(broker.stop().0, Some(0));

    let torn = want.replacen("\"seq\":17,", "\"seq\":18,", 1);
    fs::write(root.join("logs/bus/bus.log"), torn).unwrap();
    let output = verify_with(&root, &["--repair-logs"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("cannot be repaired") && said.contains("backup"), "{said}");
    assert!(log_text(&root, "bus") == want, "the line that only the log has is kept");

    // A segment that is gone is a range that is gone.
    fs::remove_file(&segments[1]).unwrap();
    let (_, said) = verify_json(&root, &[]);
    let damage = &said["journal"]["damage"][0];
    assert!(damage["first_seq"].as_u64() < Some(seq) && damage["last_seq"].as_u64() > Some(seq), "{said}");
}

/// The end of the journal is gone: what the status, the checkpoint and the logs say is more than it has.
#[test]
fn an_end_that_is_gone_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let root = few(dir.path());
    let path = root.join("journal/00000000000000000001.seg");
    let bytes = fs::read(&path).unwrap();
    let third = bytes.windows(9).rposition(|w| w == b"{\"seq\":3,").unwrap();
    fs::write(&path, &bytes[..third - 48]).unwrap();
    let (code, said) = verify_json(&root, &[]);
    let damage = &said["journal"]["damage"][0];
    assert_eq!((code, &damage["first_seq"], &damage["last_seq"]), (1, &json!(3), &json!(6)), "{said}");
    let (first, last) = (&damage["first_lsn"], &damage["last_lsn"]);
    let (_, words) = verify(&root);
    assert!(words.contains(&format!(": lsn {first} to {last} (events 3 to 6) cannot be read\n")), "{words}");
    // Nothing but the logs says so.
    fs::remove_file(root.join("status")).unwrap();
    fs::remove_file(root.join("logs/checkpoint")).unwrap();
    let (code, said) = verify_json(&root, &[]);
    assert_eq!((code, &said["journal"]["damage"]), (1, &json!([])));
    assert!(
        log_damage(&said).contains(&("bus".into(), "not-in-journal".into(), json!(3), json!(6))),
        "{said}"
    );
    // Nor a word of the newest segment can be read.
    let root = few(&dir.path().join("other"));
    let path = root.join("journal/00000000000000000001.seg");
    fs::write(&path, vec![0; 5000]).unwrap();
    let (code, said) = verify_json(&root, &[]);
    let damage = &said["journal"]["damage"][0];
    assert_eq!((code, &damage["first_seq"], &damage["last_seq"]), (1, &json!(1), &json!(6)), "{said}");
}

/// The names of all fields, of objects in objects as well.
fn fields(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(fields_of) => fields_of.iter().for_each(|(name, value)| {
            names.push(name.clone());
            fields(value, names);
        }),
        Value::Array(items) => items.iter().for_each(|item| fields(item, names)),
        _ => {}
    }
}

#[test]
fn the_help_names_every_field() {
    let dir = tempfile::tempdir().unwrap();
    let root = few(dir.path());
    let path = root.join("journal/00000000000000000001.seg");
    let mut bytes = fs::read(&path).unwrap();
    bytes[4200] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::write(root.join("logs/bus/web.log"), "what?\n").unwrap();
    let help = |command: &str| {
        let output = castra().args([command, "--help"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_once("--json prints").unwrap().1.to_owned()
    };
    let says = |help: &str, names: &[String]| {
        for name in names {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            assert!(help.split(|c| !is_word(c)).any(|word| word == name), "{name} in {help}");
        }
    };
    let mut names = Vec::new();
    let (_, found) = verify_json(&root, &[]);
    fields(&found, &mut names);
    let mut command = castra();
    command.arg("--state-root").arg(&root).arg("backup").arg(dir.path().join("copy")).arg("--json");
    let copied: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    says(&help("backup"), &copied.as_object().unwrap().keys().cloned().collect::<Vec<_>>());
    fields(&verify_json(&root, &["--repair-logs"]).1, &mut names);
    assert!(["first_lsn", "kind", "damaged_files"].iter().all(|name| names.iter().any(|n| n == name)));
    says(&help("verify"), &names);
}

#[test]
fn a_journal_without_events_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    assert_eq!(Broker::start_args(&root, &SMALL).stop().0, Some(0));
    let (code, said) = verify(&root);
    assert!(code == 0 && said.starts_with("whole · no events in "), "{said}");
    let mut command = castra();
    let output = command.arg("--state-root").arg(&root).arg("backup").arg(dir.path().join("copy")).output();
    let said = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(said.starts_with("backup of no events in "), "{said}");
}

#[test]
fn where_there_is_nothing_to_verify() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |root: &Path, args: &[&str], code: i32, words: &str| {
        let output = verify_with(root, args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(code), true), "{said}");
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
    };
    refused(&dir.path().join("none"), &[], 65, "no journal in");
    refused(&dir.path().join("none"), &["--repair-logs"], 65, "no journal in");
    refused(&dir.path().join("none"), &["--json"], 65, "\"code\":\"no-journal\"");
    assert!(!dir.path().join("none").exists());
    let root = few(dir.path());
    let format = fs::read_to_string(root.join("format")).unwrap();
    fs::write(root.join("format"), format.replace("\"format\":1", "\"format\":2")).unwrap();
    refused(&root, &[], 65, "newer");
    fs::write(root.join("format"), "{").unwrap();
    refused(&root, &[], 65, "damaged");
    fs::remove_file(root.join("format")).unwrap();
    for args in [&[][..], &["--repair-logs"], &["--json"]] {
        refused(&root, args, 65, "format is damaged (it is missing, and there is a journal)");
    }
    assert!(!root.join("format").exists());
    fs::write(root.join("format"), r#"{"format":1,"journal":"00000000-0000-0000-0000-000000000007"}"#)
        .unwrap();
    refused(&root, &[], 65, "another journal");
}
