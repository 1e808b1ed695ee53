//! deploy/systemd: the units are right, shut in as far as systemd can tell, and the broker can live in there.

use crate::support::{Broker, eventually, skip};
use castra::core::limits as bounds;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The most that `systemd-analyze security` may find, in tenths.
const EXPOSURE: &str = "20";

fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(name)
}

/// Its version, if there is one that can look at a file.
fn analyze() -> Result<Command, String> {
    let output = Command::new("systemd-analyze").arg("--version").output();
    let output = output.map_err(|_| "there is no systemd-analyze".to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().nth(1).and_then(|v| v.parse::<u32>().ok()).unwrap_or(0);
    if version < 250 {
        Err(format!("systemd-analyze is of version {version}, 250 is wanted"))
    } else {
        Ok(Command::new("systemd-analyze"))
    }
}

/// The values of all lines `key=value` of a unit.
fn values(unit: &Path, key: &str) -> Vec<String> {
    let text = std::fs::read_to_string(unit).unwrap();
    text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned)).collect()
}

#[test]
fn the_service_is_shut_in() {
    let mut command = match analyze() {
        Ok(command) => command,
        Err(why) => return skip("the_service_is_shut_in", &why),
    };
    command.args(["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE]);
    let output = command.arg(unit("castra.service")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", said.lines().last().unwrap_or_default());
}

#[test]
fn the_units_are_valid() {
    let mut command = match analyze() {
        Ok(command) => command,
        Err(why) => return skip("the_units_are_valid", &why),
    };
    let dir = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_castra");
    let mut units = Vec::new();
    for name in ["castra.service", "castra.socket"] {
        let text = std::fs::read_to_string(unit(name)).unwrap();
        // It is not installed here.
        let path = dir.path().join(name);
        std::fs::write(&path, text.replace("/usr/bin/castra", program)).unwrap();
        units.push(path);
    }
    let output = command.args(["verify", "--man=no"]).args(units).output().unwrap();
    // Before 253 there is no reload that it waits for; it says so, and keeps the type in the line before.
    let known = |line: &&str| !line.ends_with("Failed to parse service type, ignoring: notify-reload");
    let said = String::from_utf8_lossy(&output.stderr).lines().filter(known).collect::<Vec<_>>().join("\n");
    assert_eq!(values(&unit("castra.service"), "Type"), ["notify", "notify-reload"]);
    assert!(output.status.success() && !said.contains("castra.s"), "{said}");
}

#[test]
fn the_service_says_what_the_broker_can_do() {
    let service = unit("castra.service");
    // The command of the unit is one: the program parses it.
    let command = values(&service, "ExecStart").pop().unwrap();
    let mut words = command.split(' ');
    assert_eq!(words.next(), Some("/usr/bin/castra"));
    let printed = crate::support::castra().args(words).arg("--print-config").output().unwrap();
    let text = String::from_utf8(printed.stdout).unwrap();
    let mut settings = castra::core::config::Settings::default();
    assert!(settings.read(&text).mistakes.is_empty());
    assert_eq!(settings.state_root.as_deref(), Some(Path::new("/var/lib/castra")));
    assert_eq!(values(&service, "StateDirectory"), ["castra"]);
    // Its end is waited for longer than it takes.
    let seconds = |key: &str| humantime::parse_duration(&values(&service, key)[0]).unwrap();
    assert!(seconds("TimeoutStopSec") > 2 * settings.limits.drain_time);
    let descriptors: u64 = values(&service, "LimitNOFILE")[0].parse().unwrap();
    let limits = &settings.limits;
    let wanted = limits.sessions + limits.pending_handshakes + limits.open_logs;
    assert!(descriptors >= wanted as u64 + limits.reserved_descriptors);
    // No core file has tokens; and its memory is more than its bounds are together, but not twice as much.
    assert_eq!(values(&service, "LimitCORE"), ["0"]);
    let tasks: usize = values(&service, "TasksMax")[0].parse().unwrap();
    assert!(tasks >= 512 + 2 * castra::core::broker::THREADS, "on machines of 512 processors: {tasks}");
    let queues = limits.unacked_bytes_in_all
        + limits.queue_bytes_in_all
        + 2 * limits.logs_behind_bytes
        + bounds::GROUPS_BYTES_HELD
        + bounds::GROUPS_QUEUE_BYTES
        + bounds::ROUTER_BYTES
        + bounds::LATEST_BYTES
        + bounds::SEEN_VMS * 6400;
    let connections =
        (limits.sessions + limits.pending_handshakes) * (bounds::OUTPUT_BYTES + bounds::FRAME_BYTES);
    let memory = values(&service, "MemoryMax")[0].strip_suffix('G').unwrap().parse::<usize>().unwrap() << 30;
    let sum = queues + connections;
    assert!((sum..2 * sum).contains(&memory), "{queues} + {connections} bytes");
    // What the socket opens is what the broker would.
    let listen: Vec<std::net::SocketAddr> =
        values(&unit("castra.socket"), "ListenStream").iter().map(|a| a.parse().unwrap()).collect();
    assert_eq!(listen, settings.tcp);
}

/// The calls that a set of systemd stands for.
fn members(sets: &HashMap<String, Vec<String>>, name: &str) -> BTreeSet<String> {
    if !name.starts_with('@') {
        return [name.to_owned()].into();
    }
    sets[name].iter().flat_map(|member| members(sets, member)).collect()
}

#[test]
fn every_call_of_the_broker_passes_the_filter() {
    const NAME: &str = "every_call_of_the_broker_passes_the_filter";
    let mut command = match analyze() {
        Ok(command) => command,
        Err(why) => return skip(NAME, &why),
    };
    let listing = command.args(["syscall-filter", "--no-pager"]).output().unwrap();
    let mut sets: HashMap<String, Vec<String>> = HashMap::new();
    let mut set = String::new();
    for line in String::from_utf8(listing.stdout).unwrap().lines() {
        match line.trim() {
            name if line.starts_with('@') => set = name.to_owned(),
            member if line.starts_with(' ') && !member.starts_with('#') => {
                sets.entry(set.clone()).or_default().push(member.to_owned());
            }
            _ => {}
        }
    }
    let mut allowed = BTreeSet::new();
    for line in values(&unit("castra.service"), "SystemCallFilter") {
        let (removes, names) = line.strip_prefix('~').map_or((false, line.as_str()), |rest| (true, rest));
        for call in names.split(' ').flat_map(|name| members(&sets, name)) {
            if removes {
                allowed.remove(&call)
            } else {
                allowed.insert(call)
            };
        }
    }
    assert!(allowed.contains("fdatasync") && !allowed.contains("mount"), "{allowed:?}");

    let dir = tempfile::tempdir().unwrap();
    let (root, trace) = (dir.path().join("state"), dir.path().join("trace"));
    let mut command = Command::new("strace");
    // Not behind its own program: the trace is whole when it ends.
    command.args(["-f", "-qq", "-e", "signal=none", "-o"]).arg(&trace).arg(env!("CARGO_BIN_EXE_castra"));
    command
        .env("CASTRA_CONFIG", "/dev/null")
        .env("NOTIFY_SOCKET", dir.path().join("none"))
        .env("WATCHDOG_USEC", "100000");
    if Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output().is_err() {
        return skip(NAME, "there is no strace that may trace");
    }
    let own = dir.path().join("guests.sock");
    let broker =
        Broker::start_with(&root, command, &["--segment-bytes", "1MiB", "--unix", own.to_str().unwrap()]);
    let pid = || -> Option<i32> { broker.status()["broker"]["pid"].as_i64()?.try_into().ok() };
    let pid = nix::unistd::Pid::from_raw(pid().unwrap());
    // Enough for segments to roll, logs to rotate past a checkpoint, and everything that is done now and then.
    let mut guest = broker.guest("dev");
    let payload = "x".repeat(50_000);
    for _ in 0..60 {
        guest.send(format!(r#"{{"type":"publish","payload":"{payload}"}}"#));
    }
    (0..60).for_each(|_| drop(guest.receive().unwrap()));
    assert!(broker.run(&["bus", "publish", "t"]).status.success());
    std::fs::rename(root.join("logs/broker.log"), dir.path().join("moved")).unwrap();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
    eventually("a new log", || root.join("logs/broker.log").exists().then_some(()));
    drop(guest);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(broker.wait().0, Some(0));

    let text = std::fs::read_to_string(&trace).unwrap();
    let mut calls = BTreeSet::new();
    for line in text.lines() {
        // `123 write(1, …`, and not `123 <... write resumed>`.
        let call = line.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
        let name: String = call.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        if call[name.len()..].starts_with('(') {
            calls.insert(name);
        }
    }
    assert!(calls.len() > 30 && calls.contains("fdatasync") && calls.contains("accept4"), "{calls:?}");
    let refused: Vec<&String> = calls.difference(&allowed).collect();
    assert!(refused.is_empty(), "deploy/systemd/castra.service does not allow {refused:?}");
    let families = values(&unit("castra.service"), "RestrictAddressFamilies").pop().unwrap();
    assert!(["AF_UNIX", "AF_INET", "AF_INET6", "AF_VSOCK"].iter().all(|family| families.contains(family)));
    println!("{} calls of {} that are allowed", calls.len(), allowed.len());
}
