//! `castra backup`: what was acked before it began is in it, whatever the broker does meanwhile.

use crate::faults::{Mounted, copy, run, skip};
use crate::load::{Load, PLAN, check, log_text, publish_one};
use crate::support::{Broker, Guest, PATIENCE, castra, eventually, frame};
use crate::verify::{verify, verify_json};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

const SMALL: [&str; 2] = ["--segment-bytes", "1048576"];

fn backup(root: &Path, dir: &Path, args: &[&str]) -> Output {
    let mut command = castra();
    command.arg("--state-root").arg(root).arg("backup").arg(dir).args(args);
    command.stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Guests that publish as fast as they may, and what of it was acked so far, with its seq.
struct Busy {
    acked: Arc<Mutex<Vec<(u64, String)>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    fn start(broker: &Broker, guests: usize, pad: usize) -> Self {
        let (acked, stop): (Arc<Mutex<Vec<_>>>, Arc<AtomicBool>) = Default::default();
        let publisher = |i: usize| {
            let (acked, stop) = (acked.clone(), stop.clone());
            let mut guest = broker.guest(&format!("busy{i}"));
            std::thread::spawn(move || publish(&mut guest, i, pad, &acked, &stop))
        };
        let threads = (0..guests).map(publisher).collect();
        Busy { acked, stop, threads }
    }

    fn acked(&self) -> Vec<(u64, String)> {
        self.acked.lock().unwrap().clone()
    }

    fn reach(&self, n: usize) {
        let until = Instant::now() + 3 * PATIENCE;
        while self.acked.lock().unwrap().len() < n {
            assert!(Instant::now() < until, "{n} acks");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn stop(self) {
        self.stop.store(true, SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

fn publish(guest: &mut Guest, i: usize, pad: usize, acked: &Mutex<Vec<(u64, String)>>, stop: &AtomicBool) {
    let (mut flying, mut n) = (VecDeque::new(), 0);
    while !stop.load(SeqCst) || !flying.is_empty() {
        let mut bytes = Vec::new();
        while flying.len() < 64 && !stop.load(SeqCst) {
            n += 1;
            let payload = format!("{i}/{n}/{}", "x".repeat(pad));
            bytes
                .extend(frame(format!("{{\"type\":\"publish\",\"topic\":\"t\",\"payload\":\"{payload}\"}}")));
            flying.push_back(format!("{i}/{n}/"));
        }
        guest.stream.get_mut().write_all(&bytes).unwrap();
        let mut answers = Vec::new();
        while flying.len() > if stop.load(SeqCst) { 0 } else { 32 } {
            let ack = guest.receive().expect("an ack");
            assert_eq!(ack["status"], "ok", "{ack}");
            answers.push((ack["seq"].as_u64().unwrap(), flying.pop_front().unwrap()));
        }
        acked.lock().unwrap().extend(answers);
    }
}

/// Starts a broker on the copy: everything that was acked is there, once, in order. The newest event.
fn restores(dir: &Path, acked: &[(u64, String)]) -> u64 {
    let broker = Broker::start_args(dir, &SMALL);
    let tail = broker.run(&["bus", "tail", "-n", "100000000", "-o", "json"]);
    let text = String::from_utf8(tail.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for (line, seq) in lines.iter().zip(1u64..) {
        assert!(line.starts_with(&format!("{{\"seq\":{seq},")), "bus.log is dense: {line:.60}");
    }
    for (seq, payload) in acked {
        let line = lines.get(*seq as usize - 1).unwrap_or_else(|| panic!("{seq} was acked and is gone"));
        assert!(line.contains(&format!("\"payload\":\"{payload}")), "{seq}: {line:.200}");
    }
    let head = lines.len() as u64;
    let after = publish_one(&broker, "after");
    assert_eq!(after, head + 1);
    assert_eq!(broker.status()["broker"]["journal"]["damage"], json!([]));
    assert_eq!(broker.stop().0, Some(0));
    head
}

#[test]
fn under_load_nothing_acked_before_it_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start_args(&root, &[&SMALL[..], &["--retain-bytes", "5000000"]].concat());
    let busy = Busy::start(&broker, 4, 1_500);
    let (mut begun, mut firsts) = (Vec::new(), Vec::new());
    for round in 1..=6 {
        busy.reach(5_000 * round);
        let acked = busy.acked();
        let to = dir.path().join(format!("backup{round}"));
        let output = backup(&root, &to, &[]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let last = acked.iter().map(|(seq, _)| *seq).max().unwrap();
        let words = said(&output);
        let (first, head) =
            words.split_once("events ").unwrap().1.split_once(" in ").unwrap().0.split_once("..").unwrap();
        assert!(head.parse::<u64>().unwrap() >= last, "{words}");
        assert!(words.ends_with("verified)\n") && words.starts_with("backup of events "), "{words}");
        firsts.push(first.parse::<u64>().unwrap());
        begun.push((to, acked));
    }
    assert!(firsts[5] > firsts[0], "retention ran: {firsts:?}");
    busy.stop();
    drop(broker);
    for (to, acked) in begun {
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o700);
        let (code, found) = verify_json(&to, &[]);
        assert_eq!((code, found["logs"]["damage"].as_array().unwrap().len()), (0, 0), "{found}");
        let head = restores(&to, &acked);
        assert!(head >= acked.len() as u64);
        assert_eq!(verify(&to).0, 0);
    }
}

#[test]
fn a_stopped_broker_and_one_that_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let mut ledger = crate::load::Ledger::default();
    for (round, kill) in [(1, false), (2, true), (3, false)] {
        let broker = Broker::start_args(&root, &SMALL);
        let load = Load::start(&broker, &format!("r{round}"), PLAN);
        load.reach(2_000);
        match kill {
            true => {
                broker.kill();
                ledger.merge(load.join());
            }
            false => {
                ledger.merge(load.stop());
                assert_eq!(broker.stop().0, Some(0));
            }
        }
        fs::write(root.join("castra.toml"), "# mine\n").unwrap();
        let to = dir.path().join(format!("copy{round}"));
        // An empty folder will do.
        fs::create_dir(&to).unwrap();
        let output = backup(&root, &to, &["--json"]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&object["schema"], &object["ok"], &object["journal"]["first_seq"]),
            (&json!(1), &json!(true), &json!(1))
        );
        assert_eq!(object["dir"], json!(to.canonicalize().unwrap()));
        assert!(!to.join("castra.toml").exists(), "nobody reads one here");
        for file in
            ["format", "status", "logs/checkpoint", "logs/broker.log", "handshakes/handshake-events.jsonl"]
        {
            assert!(to.join(file).exists(), "{file}");
        }
        assert_eq!(verify(&to).0, 0);
        let broker = Broker::start_args(&to, &SMALL);
        let head = check(&to, &ledger);
        assert_eq!(object["journal"]["head_seq"], json!(head));
        let vms = broker.status()["vms"].as_array().unwrap().len();
        assert_eq!(vms, PLAN.publishers, "the VMs are remembered");
        assert_eq!(publish_one(&broker, "after"), head + 1);
    }
}

#[test]
fn damage_is_copied_as_it_is_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start_args(&root, &SMALL);
    let load = Load::start(&broker, "damage", PLAN);
    load.reach(6_000);
    load.stop();
    assert_eq!(broker.stop().0, Some(0));
    let segment = root.join("journal/00000000000000000001.seg");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[200_000] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let log = root.join("logs/bus/vm1.log");
    fs::write(&log, fs::read_to_string(&log).unwrap().replacen("payload", "paylaod", 3)).unwrap();
    let (_, mut want) = verify_json(&root, &[]);
    let to = dir.path().join("copy");
    let output = backup(&root, &to, &[]);
    let words = said(&output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("with the damage of its source") && words.contains("cannot be read"), "{words}");
    let (code, mut found) = verify_json(&to, &[]);
    // The newest segment was cut to its records.
    (want["journal"]["bytes"], found["journal"]["bytes"]) = (Value::Null, Value::Null);
    assert_eq!((code, &found), (1, &want));
    assert!(log_text(&to, "vm1") == log_text(&root, "vm1"));
    drop(Broker::start_args(&to, &SMALL));
}

#[test]
fn where_no_backup_can_be_made() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start_args(&root, &SMALL);
    publish_one(&broker, "one");
    let refused = |root: &Path, to: &Path, code: i32, words: &str| {
        let output = backup(root, to, &[]);
        let text = said(&output);
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(code), true), "{text}");
        assert!(text.starts_with("castra: ") && text.contains(words) && text.lines().count() == 1, "{text}");
    };
    let there = dir.path().join("there");
    fs::create_dir(&there).unwrap();
    fs::write(there.join("mine"), "").unwrap();
    refused(&root, &there, 73, "not empty");
    refused(&root, &there.join("mine"), 73, "no folder");
    refused(&root, &root.join("backup"), 73, "inside the state root");
    refused(&root, &root.join("logs/backup"), 73, "inside the state root");
    refused(&root, &root, 73, "inside the state root");
    refused(&root, &dir.path().join("no/such/folder"), 73, "folder above it");
    refused(&root, Path::new("/"), 73, "");
    refused(&dir.path().join("none"), &dir.path().join("b"), 65, "no journal in");
    fs::create_dir(dir.path().join("left.partial")).unwrap();
    refused(&root, &dir.path().join("left"), 73, "left.partial: it is of a backup that was interrupted");
    let output = backup(&root, &there, &["--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&output.stderr).unwrap()["code"], "cannot-create");
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["left.partial", "state", "there"], "nothing was left behind");

    // A journal that no broker starts on.
    let copied = dir.path().join("unusable");
    broker.stop();
    copy(&root, &copied);
    fs::write(copied.join("journal/00000000000000000001.seg"), [0; 5000]).unwrap();
    refused(&copied, &dir.path().join("b"), 65, "what it held is lost");
    fs::remove_file(copied.join("format")).unwrap();
    refused(&copied, &dir.path().join("b"), 65, "format is damaged (it is missing, and there is a journal)");
    assert!(!dir.path().join("b").exists() && !dir.path().join("b.partial").exists());
}

#[test]
fn a_disk_without_room_is_said_with_both_figures() {
    let disk = match Mounted::new(16) {
        Ok(disk) => disk,
        Err(why) => return skip("a_disk_without_room_is_said_with_both_figures", &why),
    };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start_args(&root, &SMALL);
    let busy = Busy::start(&broker, 2, 3_000);
    busy.reach(5_000);
    busy.stop();
    let to = disk.at.join("copy");
    let output = backup(&root, &to, &[]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(75), "{text}");
    let figures: Vec<u64> = text.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(figures.len() == 2 && figures[0] > 15_000_000 && figures[1] < 16 << 20, "{text}");
    assert_eq!(fs::read_dir(&disk.at).unwrap().count(), 1, "lost+found");
    // The mount point itself cannot be renamed over.
    fs::remove_dir(disk.at.join("lost+found")).unwrap();
    let output = backup(&root, &disk.at, &[]);
    assert_eq!(output.status.code(), Some(73), "{}", said(&output));
    assert!(said(&output).contains("mount point"), "{}", said(&output));
}

/// SIGINT in the middle: what there is has the name of something unfinished.
#[test]
fn an_interruption_leaves_nothing_that_looks_whole() {
    if run("strace", &["-V"]).is_err() {
        return skip("an_interruption_leaves_nothing_that_looks_whole", "strace is not there");
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let broker = Broker::start_args(&root, &SMALL);
    publish_one(&broker, "one");
    let to = dir.path().join("copy");
    let mut slow = Command::new("strace");
    slow.args([
        "-D",
        "-f",
        "-q",
        "-o",
        "/dev/null",
        "-e",
        "trace=fsync",
        "-e",
        "inject=fsync:delay_enter=300000",
    ]);
    slow.arg(env!("CARGO_BIN_EXE_castra")).arg("--state-root").arg(&root).arg("backup").arg(&to);
    let mut child = slow.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let partial = dir.path().join("copy.partial");
    eventually("the copy", || partial.join("journal").exists().then_some(()));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT)
        .unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(!to.exists() && partial.exists());
    assert_eq!(backup(&root, &to, &[]).status.code(), Some(73));
    fs::remove_dir_all(&partial).unwrap();
    assert_eq!(backup(&root, &to, &[]).status.code(), Some(0));
}

/// Root makes backups of what somebody else may write to.
#[test]
fn links_and_pipes_in_a_state_root_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let broker = Broker::start(&root);
    assert!(broker.run(&["bus", "publish", "t", "1"]).status.success());
    assert_eq!(broker.stop().0, Some(0));
    let secret = dir.path().join("secret");
    fs::write(&secret, "a secret\n").unwrap();
    let odd = root.join("handshakes/bus-events.jsonl");
    for make in ["ln -s", "mkfifo"] {
        let _ = fs::remove_file(&odd);
        let to = if make == "mkfifo" { String::new() } else { secret.display().to_string() };
        let script = format!("{make} {to} {}", odd.display());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
        let output = backup(&root, &dir.path().join("copy"), &[]);
        let said = said(&output);
        assert!(
            output.status.code() == Some(74)
                && said.contains("bus-events.jsonl: it is a link, or no plain file"),
            "{said}"
        );
        assert!(!dir.path().join("copy").exists() && !dir.path().join("copy.partial").exists());
    }
}
