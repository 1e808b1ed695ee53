//! What is cut or renamed among the logs is durable before a checkpoint vouches for it: the order of the calls.

use crate::faults::{run, skip};
use crate::load::{Load, PLAN};
use crate::support::{Broker, eventually};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

const SIZES: &str = "[limits]\nlog_bytes = \"64 KiB\"\ncheckpoint_bytes = \"64 KiB\"\n";

/// The calls that a broker makes below `root` until it has come up, served some load and ended, one a line.
fn calls(root: &Path, config: &str, trace: &Path) -> String {
    let mut command = Command::new("strace");
    let calls = "trace=openat,rename,renameat,renameat2,ftruncate,fsync,fdatasync,write";
    command.args(["-D", "-f", "-y", "-q", "-s", "0", "-e", calls, "-o"]).arg(trace);
    command.arg(env!("CARGO_BIN_EXE_castra")).env("CASTRA_CONFIG", config);
    let broker = Broker::start_with(root, command, &[]);
    let load = Load::start(&broker, "traced", PLAN);
    // Some MiB of lines: several checkpoints however fast the disk is.
    load.reach(6_000);
    load.stop();
    assert_eq!(broker.stop().0, Some(0));
    eventually("the end of the trace", || {
        let text = std::fs::read_to_string(trace).unwrap();
        text.contains("+++ exited with 0 +++").then_some(text)
    })
}

/// The path in `<…>` of a descriptor, or the quoted ones.
fn paths(call: &str) -> Vec<&str> {
    let between = |open: char, close: char| {
        let mut rest = call;
        let mut found = Vec::new();
        while let Some((_, behind)) = rest.split_once(open) {
            let Some((path, more)) = behind.split_once(close) else { break };
            found.push(path);
            rest = more;
        }
        found
    };
    let quoted: Vec<&str> = between('"', '"').into_iter().filter(|path| path.starts_with('/')).collect();
    if quoted.is_empty() { between('<', '>') } else { quoted }
}

#[test]
fn every_cut_and_rename_is_synced_before_the_next_checkpoint() {
    const NAME: &str = "every_cut_and_rename_is_synced_before_the_next_checkpoint";
    if run("strace", &["-D", "-f", "-o", "/dev/null", "true"]).is_err() {
        return skip(NAME, "there is no strace that may trace");
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let (root, config, trace) = (dir.join("state"), dir.join("castra.toml"), dir.join("trace"));
    std::fs::write(&config, SIZES).unwrap();
    let config = config.to_str().unwrap();
    // One that was killed behind a rotation leaves rotated files which the next start cuts.
    let broker = Broker::start_args(&root, &["--config", config]);
    let load = Load::start(&broker, "killed", PLAN);
    load.reach(2_000);
    eventually("a rotated log", || root.join("logs/bus/bus.log.1").exists().then_some(()));
    broker.kill();
    load.join();
    // As if the checkpoint had stayed behind: all files of all logs are cut.
    std::fs::write(root.join("logs/checkpoint"), "{\"logs_seq\":1}\n").unwrap();

    let (bus, logs) = (root.join("logs/bus"), root.join("logs"));
    let in_bus = |path: &str| Path::new(path).parent() == Some(&bus);
    let text = calls(&root, config, &trace);
    // Calls that another thread's call interrupts are two lines: the path stands in the first, which is what counts.
    let (mut cut, mut names, mut begun) = (BTreeSet::new(), false, BTreeMap::new());
    let (mut cuts, mut renames, mut checkpoints) = (0, 0, 0);
    for line in text.lines() {
        let (pid, call) = line.split_once(' ').unwrap();
        let call = call.trim_start();
        let resumed = call.starts_with("<...");
        if call.ends_with("<unfinished ...>") {
            begun.insert(pid, call);
            continue;
        }
        let whole = if resumed { begun.remove(pid).unwrap_or_default() } else { call };
        if call.ends_with("= -1 ENOENT (No such file or directory)") {
            continue;
        }
        let at = paths(whole);
        let Some(path) = at.first() else { continue };
        if whole.starts_with("ftruncate(") && in_bus(path) {
            cuts += 1;
            cut.insert(path.to_string());
        } else if whole.starts_with("rename") && in_bus(path) {
            assert!(!names, "a rename before the last one is durable: {whole}");
            let name = |path: &str| path.to_owned();
            let (from, to) = (name(path), name(at[1]));
            assert!(!cut.remove(&from), "a file is renamed that was cut and not synced: {whole}");
            cut.remove(&to);
            (names, renames) = (true, renames + 1);
        } else if whole.starts_with("fsync(") || whole.starts_with("fdatasync(") {
            cut.remove(*path);
            names &= Path::new(path) != bus;
        } else if whole.starts_with("rename") && at.get(1) == Some(&logs.join("checkpoint").to_str().unwrap())
        {
            checkpoints += 1;
            assert!(cut.is_empty() && !names, "vouched for and not synced: {cut:?}, names {names}");
        }
    }
    assert!(cuts > 2 && renames > 2 && checkpoints > 2, "{cuts} {renames} {checkpoints}");
}

/// A folder that somebody else made is on the disk once it is a state root.
#[test]
fn what_leads_to_a_new_state_root_is_synced() {
    const NAME: &str = "what_leads_to_a_new_state_root_is_synced";
    if run("strace", &["-D", "-f", "-o", "/dev/null", "true"]).is_err() {
        return skip(NAME, "there is no strace that may trace");
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let (root, config, trace) = (dir.join("above/state"), dir.join("castra.toml"), dir.join("trace"));
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(&config, SIZES).unwrap();
    let text = calls(&root, config.to_str().unwrap(), &trace);
    let first = |what: &str| {
        let found = text.lines().position(|line| line.contains(what));
        found.unwrap_or_else(|| panic!("no {what}"))
    };
    let format = first(&format!("\"{}\"", root.join("format").display()));
    for above in [dir.join("above"), dir.clone()] {
        let synced = first(&format!("<{}>)", above.display()));
        assert!(text.lines().nth(synced).unwrap().contains("fsync("), "{above:?}");
        let renamed = text.lines().skip(format).position(|line| line.contains("rename")).unwrap() + format;
        assert!(synced < renamed, "{above:?} is synced after format got its name");
    }
}
