//! `castra status` and `castra vm forget` as an operator types them: one VM, quiet, watching, narrow terminals,
//! files of other versions, and a VM that is forgotten.

use crate::support::{Broker, LocalGuest, castra, eventually, skip};
use castra::core::state_root::StateRoot;
use castra::core::status_file;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn run(root: &Path, args: &[&str]) -> Output {
    castra().arg("--state-root").arg(root).args(args).output().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn names(root: &Path) -> Vec<String> {
    let shown: Value = serde_json::from_slice(&run(root, &["status", "--json"]).stdout).unwrap();
    shown["vms"].as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect()
}

/// A broker with a VM that has a session and one that said hello and left.
fn broker_of_two(root: &Path) -> (Broker, crate::support::Guest) {
    let broker = Broker::start(root);
    let guest = broker.guest("web");
    broker.greet("hello vm:legacy\n");
    eventually("both", || (names(root) == ["legacy", "web"]).then_some(()));
    (broker, guest)
}

#[test]
fn one_vm_and_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, mut guest) = broker_of_two(dir.path());
    let (code, out, err) = said(&run(dir.path(), &["status", "--vm", "web", "--json"]));
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(shown["vms"].as_array().unwrap().len(), 1);
    assert_eq!((&shown["vms"][0]["name"], &shown["last_handshake_vm"]), (&json!("web"), &json!("web")));
    let (code, out, _) = said(&run(dir.path(), &["status", "--vm", "web"]));
    assert!(code == Some(0) && out.contains("web") && !out.contains("legacy"), "{out}");
    assert!(out.contains("\n  IN FLIGHT 0\n  TOPICS -\n"), "{out}");
    for topic in ["build.*", "a.b"] {
        let ask = json!({"type": "subscribe", "topic": topic}).to_string();
        assert_eq!(guest.ask(&ask)["status"], "ok");
    }
    eventually("its topics", || {
        let (_, out, _) = said(&run(dir.path(), &["status", "--vm", "web"]));
        out.contains("\n  LAG 0\n  QUEUED 0\n  IN FLIGHT 0\n  TOPICS a.b\n  TOPICS build.*\nBROKER")
            .then_some(())
    });
    let (_, out, _) = said(&run(dir.path(), &["status"]));
    let head = out.lines().find(|line| line.starts_with("VM")).unwrap();
    assert!(head.ends_with("LAG  QUEUED  IN FLIGHT  TOPICS"), "{out}");
    assert!(out.lines().any(|line| line.starts_with("web ") && line.ends_with("0  a.b build.*")), "{out}");

    assert_eq!(said(&run(dir.path(), &["status", "-q"])), (Some(0), String::new(), String::new()));
    assert_eq!(
        said(&run(dir.path(), &["status", "-q", "--vm", "web"])),
        (Some(0), String::new(), String::new())
    );
    let (code, out, err) = said(&run(dir.path(), &["status", "--vm", "nobody"]));
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.starts_with("castra: no VM nobody is remembered; 'castra status' shows"), "{err}");
    let (code, _, err) = said(&run(dir.path(), &["status", "--vm", "nobody", "--json"]));
    let failure: Value = serde_json::from_str(&err).unwrap();
    assert_eq!(code, Some(1));
    assert_eq!(
        (&failure["schema"], &failure["code"], &failure["exit"]),
        (&json!(1), &json!("unknown-vm"), &json!(1))
    );
    assert_eq!(broker.stop().0, Some(0));
    // The VM is remembered; nothing reaches it.
    assert_eq!(run(dir.path(), &["status", "-q", "--vm", "web"]).status.code(), Some(1));
    assert_eq!(run(dir.path(), &["status", "-q"]).status.code(), Some(1));
    assert_eq!(run(dir.path(), &["status", "-q", "--watch"]).status.code(), Some(2));
    assert_eq!(run(dir.path(), &["status", "-q", "--json"]).status.code(), Some(2));
}

#[test]
fn watching_sees_what_changes_and_ends_with_its_reader() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = castra();
    command.arg("--state-root").arg(dir.path()).args(["status", "--watch", "--json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut until = |what: &str, good: &dyn Fn(&Value) -> bool| {
        let found = lines.by_ref().take(20).any(|line| good(&serde_json::from_str(&line).unwrap()));
        assert!(found, "{what}");
    };
    until("offline", &|s| s["broker"]["state"] == "offline");
    let broker = Broker::start(dir.path());
    let guest = broker.guest("web");
    until("a session", &|s| s["broker"]["state"] == "running" && s["vms"][0]["sessions"] == 1);
    drop(guest);
    until("none", &|s| s["vms"][0]["sessions"] == 0);
    broker.kill();
    until("offline again", &|s| s["broker"]["state"] == "offline");
    drop(lines);
    let code = eventually("its end", || child.try_wait().unwrap()).code();
    assert_eq!(code, Some(0));
}

#[test]
fn a_forgotten_vm_is_gone_and_comes_back_with_its_next_hello() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, guest) = broker_of_two(dir.path());
    let (code, out, err) = said(&run(dir.path(), &["vm", "forget", "legacy"]));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.starts_with("legacy is forgotten"), "{out}");
    // At once: the command waits until the status shows it.
    assert_eq!(names(dir.path()), ["web"]);

    let (code, _, err) = said(&run(dir.path(), &["vm", "forget", "web"]));
    assert!(
        code == Some(77) && err.starts_with("castra: vm-has-sessions: web has a session"),
        "{code:?} {err}"
    );
    for (name, want, word) in
        [("legacy", 1, "no VM legacy"), ("a/b", 65, "no VM's name"), ("host", 1, "no VM host")]
    {
        let (code, _, err) = said(&run(dir.path(), &["vm", "forget", name]));
        assert!(code == Some(want) && err.contains(word), "{code:?} {err}");
    }
    drop(guest);
    eventually("its session's end", || {
        run(dir.path(), &["vm", "forget", "web"]).status.success().then_some(())
    });
    assert_eq!(names(dir.path()), Vec::<String>::new());
    broker.greet("hello vm:legacy\n");
    eventually("legacy again", || (names(dir.path()) == ["legacy"]).then_some(()));
    // Not remembered over a restart either.
    broker.greet("hello vm:other\n");
    eventually("other", || (names(dir.path()) == ["legacy", "other"]).then_some(()));
    assert!(run(dir.path(), &["vm", "forget", "legacy"]).status.success());
    assert_eq!(broker.stop().0, Some(0));
    let broker = Broker::start(dir.path());
    assert_eq!(names(dir.path()), ["other"]);
    broker.kill();

    // Without a broker.
    assert!(run(dir.path(), &["vm", "forget", "other"]).status.success());
    assert_eq!(names(dir.path()), Vec::<String>::new());
    assert_eq!(run(dir.path(), &["vm", "forget", "other"]).status.code(), Some(1));
    let _broker = Broker::start(dir.path());
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn only_the_host_has_a_vm_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, mut guest) = broker_of_two(dir.path());
    let ask = r#"{"type":"forget","vm":"legacy"}"#;
    let answer = guest.ask(ask);
    assert_eq!((&answer["ack"], &answer["code"]), (&json!("forget"), &json!("host-only")));
    let socket = dir.path().join("castra.sock");
    let (mut host, _) = LocalGuest::greet(&socket, "hello vm:host capabilities=bus-v1,host-bus\n");
    for (body, code) in [
        (r#"{"type":"forget"}"#, "bad-field"),
        (r#"{"type":"forget","vm":7}"#, "bad-field"),
        (r#"{"type":"forget","vm":"../x"}"#, "bad-name"),
        (r#"{"type":"forget","vm":"web"}"#, "vm-has-sessions"),
        (r#"{"type":"forget","vm":"nobody"}"#, "unknown-vm"),
    ] {
        let answer = host.ask(body);
        assert_eq!((&answer["ack"], &answer["code"]), (&json!("forget"), &json!(code)), "{body}");
    }
    assert_eq!(host.ask(ask), json!({"type":"ack","ack":"forget","status":"ok"}));
    // A publish may say `vm` and anything in it: the broker stamps its own.
    assert_eq!(guest.ask(r#"{"type":"publish","vm":{"x":1}}"#)["status"], "ok");
    drop(broker);
}

/// Writes a status file of one slot, whatever its JSON is.
fn write_status(root: &Path, json: &Value) {
    let json = serde_json::to_vec(json).unwrap();
    let mut slot = b"castra\0S".to_vec();
    slot.extend_from_slice(&1u64.to_le_bytes());
    slot.extend_from_slice(&(json.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&slot[8..20]), &json);
    slot.extend_from_slice(&crc.to_le_bytes());
    slot.extend_from_slice(&json);
    slot.resize(64 * 1024, 0);
    std::fs::write(root.join("status"), [vec![0; 64 * 1024], slot].concat()).unwrap();
}

#[test]
fn a_status_of_another_version() {
    let dir = tempfile::tempdir().unwrap();
    let (broker, guest) = broker_of_two(dir.path());
    drop(guest);
    assert_eq!(broker.stop().0, Some(0));
    let root = StateRoot::resolve(Some(dir.path().to_owned()));
    let today = serde_json::to_value(status_file::read(&root.status()).unwrap().unwrap()).unwrap();

    let mut later = today.clone();
    later["schema"] = json!(2);
    later["broker"] = json!("something else");
    write_status(dir.path(), &later);
    let (code, out, err) = said(&run(dir.path(), &["status"]));
    // That no broker runs is known all the same; what the last one knew is not.
    assert!(code == Some(1) && out.starts_with("broker offline"), "{code:?} {out}");
    assert!(err.contains("has schema 2, this castra reads 1; use the castra that"), "{err}");
    let (_, lock) = root.open().unwrap();
    let (code, out, err) = said(&run(dir.path(), &["status"]));
    assert_eq!((code, out.as_str()), (Some(65), ""));
    assert!(err.contains("has schema 2"), "{err}");
    drop(lock);

    // A later one of the same schema says more, an earlier one said less of a VM.
    let mut more = today.clone();
    more["news"] = json!([1, 2]);
    more["vms"][0]["news"] = json!({"a": 1});
    more["vms"][1] = json!({"name": "web", "handshake": null});
    write_status(dir.path(), &more);
    assert_eq!(names(dir.path()), ["legacy", "web"]);
    let broker = Broker::start(dir.path());
    assert_eq!(names(dir.path()), ["legacy", "web"]);
    broker.kill();
    // A broker starts all the same on one that it cannot read, and says so.
    write_status(dir.path(), &later);
    let broker = Broker::start(dir.path());
    assert!(crate::support::broker_log(dir.path()).iter().any(|line| line.contains("schema 2")));
    assert_eq!(names(dir.path()), Vec::<String>::new());
    drop(broker);
}

#[test]
fn a_state_root_that_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let (code, _, err) = said(&run(&file, &["status"]));
    assert!(code == Some(65) && err.contains("--state-root must name the folder"), "{code:?} {err}");
    if nix::unistd::geteuid().is_root() {
        let broker = Broker::start(dir.path().join("root").as_path());
        // Whoever is not the broker's user may not even look.
        let mut command = castra();
        let copy = dir.path().join("castra");
        std::fs::copy(command.get_program(), &copy).unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        command = Command::new(copy);
        command.env("CASTRA_CONFIG", "/dev/null").uid(65534).gid(65534);
        command.arg("--state-root").arg(&broker.root);
        for args in [&["status"][..], &["vm", "forget", "x"], &["bus", "publish", "t"], &["bus", "tail"]] {
            let mut command = Command::new(command.get_program());
            command.env("CASTRA_CONFIG", "/dev/null").uid(65534).gid(65534);
            let output = command.arg("--state-root").arg(&broker.root).args(args).output().unwrap();
            let (code, _, err) = said(&output);
            assert!(
                code == Some(77) && err.contains("as the broker's user or root"),
                "{args:?} {code:?} {err}"
            );
        }
    } else {
        skip("a_state_root_that_is_none", "not root: cannot run a command as somebody else");
    }
}

/// Runs a command on a terminal of so many columns; what it drew.
fn on_terminal(root: &Path, columns: u32, args: &str, env: &str) -> Option<String> {
    if Command::new("script").arg("--version").output().is_err() {
        skip("terminals_narrow_and_colourful", "script is not installed");
        return None;
    }
    let program = castra();
    let line = format!(
        "stty rows 24 cols {columns}; {env} CASTRA_STATE_ROOT='{}' '{}' {args}",
        root.display(),
        program.get_program().display()
    );
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("CASTRA_CONFIG", "/dev/null").env("TERM", "xterm");
    let output = script.env_remove("NO_COLOR").stdin(Stdio::null()).output().unwrap();
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn terminals_narrow_and_colourful() {
    let dir = tempfile::tempdir().unwrap();
    let (_broker, mut guest) = broker_of_two(dir.path());
    let ask = json!({"type": "subscribe", "topic": "build.of-something-long"}).to_string();
    assert_eq!(guest.ask(&ask)["status"], "ok");
    let plain = |text: &str| {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('\x1b') {
            out.push_str(before);
            rest = behind.split_once('m').map_or("", |(_, rest)| rest);
        }
        out + rest
    };
    let Some(narrow) = on_terminal(dir.path(), 20, "status", "") else { return };
    assert!(plain(&narrow).lines().all(|line| line.trim_end().chars().count() <= 20), "{narrow:?}");
    assert!(plain(&narrow).contains("\nweb\r\n  BROKER reachable"), "{narrow:?}");
    eventually("its topic", || {
        let (_, out, _) = said(&run(dir.path(), &["status"]));
        out.contains("build.of-something-long").then_some(())
    });
    // What finds no room is left out: the topics first, then what waits.
    for (columns, ends, last) in
        [(120, "TOPICS", "TOPICS"), (84, "IN FLIGHT", "IN FLIGHT"), (70, "LAG", "LAG")]
    {
        let some = plain(&on_terminal(dir.path(), columns, "status", "").unwrap());
        let head = some.lines().find(|line| line.starts_with("VM")).unwrap();
        assert!(head.trim_end().ends_with(ends), "{columns}: {some}");
        assert!(some.lines().all(|line| line.trim_end().chars().count() <= columns as usize), "{some}");
        let legend = some.lines().rfind(|line| !line.trim().is_empty()).unwrap();
        assert!(legend.starts_with(last), "{columns}: {some}");
    }
    let wide = on_terminal(dir.path(), 120, "status", "").unwrap();
    assert!(wide.contains("\x1b[32m") && plain(&wide).contains("VM      BROKER"), "{wide:?}");
    for env in ["NO_COLOR=1", "TERM=dumb"] {
        let without = on_terminal(dir.path(), 120, "status", env).unwrap();
        assert!(!without.contains('\x1b'), "{without:?}");
    }
    assert!(!String::from_utf8(run(dir.path(), &["status"]).stdout).unwrap().contains('\x1b'));
}

#[test]
fn a_clock_step_makes_nothing_older() {
    let dir = tempfile::tempdir().unwrap();
    let (_broker, _guest) = broker_of_two(dir.path());
    if Command::new("faketime").arg("--version").output().is_err() {
        return skip("a_clock_step_makes_nothing_older", "faketime is not installed");
    }
    let year = |mut command: Command| String::from_utf8(command.arg("+%Y").output().unwrap().stdout).unwrap();
    let mut faked = Command::new("faketime");
    faked.args(["-f", "+365d", "date"]);
    assert_ne!(year(faked), year(Command::new("date")), "faketime moves the clock");
    // The reader's wall clock is a year ahead: ages are of CLOCK_BOOTTIME.
    let program = castra();
    let mut command = Command::new("faketime");
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").args(["-f", "+365d"]).arg(program.get_program());
    command.env("CASTRA_CONFIG", "/dev/null").arg("--state-root").arg(dir.path()).args(["status", "--json"]);
    let output = command.output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &shown["reachable"]), (Some(0), &json!(true)), "{shown}");
    assert!(shown["vms"][0]["last_handshake_age_ms"].as_i64().unwrap() < 60_000, "{shown}");
}

/// What it costs is measured by hand (docs/PERFORMANCE.md); here it would hang if it asked the broker anything.
#[test]
fn a_thousand_vms_of_a_broker_that_is_stopped_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    for n in 0..1000 {
        assert_eq!(broker.greet(format!("hello vm:vm-{n:04}\n")).1, "ok");
    }
    eventually("all", || (names(dir.path()).len() == 1000).then_some(()));
    broker.signal(Signal::SIGSTOP);
    assert_eq!(names(dir.path()).len(), 1000);
    let (code, out, _) = said(&run(dir.path(), &["status"]));
    assert!(code.is_some() && out.lines().count() > 1000, "{code:?}");
}

#[test]
fn a_clock_that_was_set_back_is_said() {
    const NAME: &str = "a_clock_that_was_set_back_is_said";
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    if !Path::new(library).exists() {
        return skip(NAME, "libfaketime is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut ahead = castra();
    ahead.env("LD_PRELOAD", library).env("FAKETIME", "+1h").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let broker = Broker::start_with(dir.path(), ahead, &[]);
    broker.guest("web").ask(r#"{"type":"publish"}"#);
    assert_eq!(broker.stop().0, Some(0));

    let broker = Broker::start(dir.path());
    broker.guest("web").ask(r#"{"type":"publish"}"#);
    let ahead = eventually("it in status", || {
        broker.status()["broker"]["journal"]["ts_ahead_ms"].as_u64().filter(|ms| *ms > 0)
    });
    assert!((3_500_000..=3_600_000).contains(&ahead), "{ahead}");
    let (_, out, _) = said(&run(dir.path(), &["status"]));
    assert!(out.contains("the clock was set back: ts stands still for 5"), "{out}");
    // Nothing went back along seq.
    let events = eventually("both lines", || Some(broker.log("web")).filter(|lines| lines.len() == 2));
    assert_eq!(events[0]["ts"], events[1]["ts"]);
}
