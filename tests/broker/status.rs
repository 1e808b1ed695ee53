//! `castra status`: reads what the broker maintains and never waits for it.

use crate::support::{Broker, castra, eventually, slow_disk};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

fn run(root: &Path, args: &[&str]) -> Output {
    castra().arg("--state-root").arg(root).arg("status").args(args).output().unwrap()
}

fn status(root: &Path) -> (i32, Value) {
    let output = run(root, &["--json"]);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn state(root: &Path, want: &str) -> (i32, Value) {
    eventually(want, || Some(status(root)).filter(|(_, s)| s["broker"]["state"] == want))
}

#[test]
fn without_a_state_root_the_broker_is_offline() {
    let dir = tempfile::tempdir().unwrap();
    for root in [dir.path().join("none"), dir.path().join("none/at/all"), dir.path().to_owned()] {
        let (code, status) = status(&root);
        assert_eq!((code, &status["schema"], &status["reachable"]), (1, &json!(1), &json!(false)));
        assert_eq!((&status["broker"]["state"], &status["vms"]), (&json!("offline"), &json!([])));
        assert_eq!(status["last_handshake_vm"], Value::Null);
    }
    let text = run(dir.path(), &[]);
    assert_eq!(text.status.code(), Some(1));
    assert!(String::from_utf8(text.stdout).unwrap().contains("offline"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it made nothing");
}

#[test]
fn a_running_broker_shows_itself_and_its_vms() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    broker.greet("hello vm:first capabilities=zeta,alpha\n");
    // Two in one millisecond would be as new as each other.
    eventually("its age", || {
        (status(dir.path()).1["vms"][0]["last_handshake_age_ms"].as_i64()? > 1).then_some(())
    });
    let mut guest = broker.guest("second");
    for _ in 0..7 {
        guest.ask(r#"{"type":"publish"}"#);
    }
    let (code, shown) = eventually("the events in status", || {
        Some(status(dir.path())).filter(|(_, s)| {
            s["broker"]["journal"]["logs_seq"] == 7 && s["vms"][1]["last_publish_age_ms"].is_i64()
        })
    });
    assert_eq!(code, 0);
    assert_eq!(
        keys(&shown),
        [
            "broker",
            "groups",
            "groups_count",
            "last_handshake_age_ms",
            "last_handshake_vm",
            "reachable",
            "schema",
            "vms"
        ]
    );
    let own = &shown["broker"];
    assert_eq!(
        keys(own),
        [
            "counters",
            "journal",
            "latest",
            "listeners",
            "logs_stalled",
            "pauses",
            "pid",
            "reload_refused",
            "signals_dropped",
            "started_at",
            "state",
            "uptime_ms",
            "version"
        ]
    );
    assert_eq!((&own["state"], &own["pid"]), (&json!("running"), &json!(broker.pid())));
    assert_eq!((&own["version"], &own["logs_stalled"]), (&json!(env!("CARGO_PKG_VERSION")), &Value::Null));
    assert_eq!(
        own["listeners"],
        json!([format!("tcp:{}", broker.addr), format!("unix:{}", dir.path().join("castra.sock").display())])
    );
    assert!((0..60_000).contains(&own["uptime_ms"].as_i64().unwrap()), "{own}");
    assert!(own["started_at"].as_str().unwrap().ends_with('Z'));
    let journal = &own["journal"];
    assert_eq!(
        keys(journal),
        [
            "bytes",
            "damage",
            "first_seq",
            "grace",
            "head_seq",
            "ids_left_out",
            "logs_seq",
            "removed",
            "segments",
            "ts_ahead_ms"
        ]
    );
    assert_eq!((&journal["first_seq"], &journal["head_seq"]), (&json!(1), &json!(7)));
    assert_eq!(journal["ts_ahead_ms"], 0);
    assert!(journal["bytes"].as_u64().unwrap() > 0 && journal["segments"].as_u64().unwrap() >= 1);

    assert_eq!((&shown["reachable"], &shown["last_handshake_vm"]), (&json!(true), &json!("second")));
    let mut second = shown["vms"][1].clone();
    for age in ["last_handshake_age_ms", "last_publish_age_ms"] {
        assert!((0..20_000).contains(&second[age].take().as_i64().unwrap()), "{age}");
    }
    assert_eq!(
        second,
        json!({"name":"second","reachable":true,"last_handshake_age_ms":null,"capabilities":["bus-v1"],"identity":"name",
               "sessions":1,"bus_subscribed":false,"topics":[],"topics_more":0,"last_publish_age_ms":null,"last_heartbeat_age_ms":null,
               "queued":0,"lag":0,"in_flight":0})
    );
    let first = &shown["vms"][0];
    assert_eq!((&first["name"], &first["sessions"]), (&json!("first"), &json!(0)));
    assert_eq!(
        (&first["capabilities"], &first["last_publish_age_ms"]),
        (&json!(["alpha", "zeta"]), &Value::Null)
    );

    let text = String::from_utf8(run(dir.path(), &[]).stdout).unwrap();
    assert!(
        text.starts_with("broker running") && text.contains("second") && text.contains("first"),
        "{text}"
    );

    // Ages and the uptime grow while nothing happens.
    let age = |s: &Value| {
        [&s["vms"][1]["last_publish_age_ms"], &s["broker"]["uptime_ms"]].map(|v| v.as_i64().unwrap())
    };
    let before = age(&shown);
    eventually("greater ages", || {
        let now = age(&status(dir.path()).1);
        (now[0] >= before[0] + 300 && now[1] >= before[1] + 300).then_some(())
    });
}

#[test]
fn a_session_shows_at_once_and_is_gone_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let sessions = |n: u64| {
        let since = Instant::now();
        eventually("the session", || (status(dir.path()).1["vms"][0]["sessions"] == n).then_some(()));
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    };
    let guest = broker.guest("dev");
    sessions(1);
    drop(guest);
    sessions(0);
}

#[test]
fn vms_are_remembered_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    broker.guest("dev").ask(r#"{"type":"publish"}"#);
    eventually("the publish", || broker.status()["vms"][0]["last_publish_age_ms"].as_i64());
    assert_eq!(broker.stop().0, Some(0));
    let (code, gone) = status(dir.path());
    assert_eq!(
        (code, &gone["broker"]["state"], &gone["broker"]["pid"]),
        (1, &json!("offline"), &Value::Null)
    );
    assert_eq!((&gone["broker"]["listeners"], &gone["broker"]["uptime_ms"]), (&json!([]), &Value::Null));
    assert_eq!(
        (&gone["broker"]["journal"]["head_seq"], &gone["broker"]["journal"]["logs_seq"]),
        (&json!(1), &json!(1))
    );
    assert_eq!((&gone["vms"][0]["name"], &gone["vms"][0]["reachable"]), (&json!("dev"), &json!(false)));
    let age = |s: &Value| s["vms"][0]["last_publish_age_ms"].as_i64().unwrap();

    let broker = Broker::start(dir.path());
    let (code, back) = status(dir.path());
    assert_eq!((code, &back["broker"]["pid"]), (0, &json!(broker.pid())));
    let vm = &back["vms"][0];
    assert_eq!(
        (&vm["name"], &vm["sessions"], &vm["capabilities"]),
        (&json!("dev"), &json!(0), &json!(["bus-v1"]))
    );
    assert!(age(&back) >= age(&gone), "{} after {}", age(&back), age(&gone));
    // The same after a broker that could say nothing in the end.
    broker.kill();
    assert_eq!(state(dir.path(), "offline").1["vms"][0]["name"], "dev");
    let _broker = Broker::start(dir.path());
    assert!(age(&status(dir.path()).1) >= age(&back));
}

#[test]
fn a_broker_that_stands_still_is_unresponsive() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let _guest = broker.guest("dev");
    eventually("the session", || (broker.status()["vms"][0]["sessions"] == 1).then_some(()));
    broker.signal(Signal::SIGSTOP);
    let (code, stopped) = state(dir.path(), "unresponsive");
    assert_eq!((code, &stopped["broker"]["pid"]), (1, &json!(broker.pid())));
    assert_eq!((&stopped["reachable"], &stopped["vms"][0]["reachable"]), (&json!(false), &json!(false)));
    assert_eq!(run(dir.path(), &[]).status.code(), Some(1));
    broker.signal(Signal::SIGCONT);
    let (code, running) = state(dir.path(), "running");
    assert_eq!((code, &running["vms"][0]["reachable"]), (0, &json!(true)));
}

#[test]
fn a_broker_that_has_the_lock_and_said_nothing_yet_is_starting() {
    let dir = tempfile::tempdir().unwrap();
    let root = castra::core::state_root::StateRoot::resolve(Some(dir.path().to_owned()));
    let (_, lock) = root.open().unwrap();
    let (code, shown) = status(dir.path());
    assert_eq!((code, &shown["broker"]["state"]), (1, &json!("starting")));
    drop(lock);
    assert_eq!(status(dir.path()).1["broker"]["state"], "offline");

    // What the broker before it said is not what this one says.
    let old = Broker::start(dir.path());
    let _guest = old.guest("dev");
    let pid = old.pid();
    eventually("the VM", || old.status()["vms"][0]["name"].as_str().map(drop));
    old.kill();
    let (_, _lock) = root.open().unwrap();
    let (code, shown) = status(dir.path());
    assert_eq!((code, &shown["broker"]["state"]), (1, &json!("starting")));
    assert_ne!(shown["broker"]["pid"], pid);
    assert_eq!((&shown["vms"][0]["name"], &shown["vms"][0]["sessions"]), (&json!("dev"), &json!(0)));
}

#[test]
fn a_start_that_takes_long_is_starting_all_the_while() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    broker.guest("dev").ask(r#"{"type":"publish"}"#);
    broker.kill();
    let states = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut states: Vec<String> = Vec::new();
            eventually("running", || {
                let now = status(dir.path()).1["broker"]["state"].as_str().unwrap().to_owned();
                if states.last() != Some(&now) {
                    states.push(now);
                }
                (states.last().unwrap() == "running").then(|| states.clone())
            })
        });
        let command = slow_disk("fdatasync,fsync", Duration::from_millis(700), "1..8");
        let _broker = Broker::start_with(dir.path(), command, &[]);
        watch.join().unwrap()
    });
    assert_eq!(states, ["offline", "starting", "running"]);
}

#[test]
fn hundreds_of_vms_fit() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let capabilities = "x".repeat(300);
    for n in 0..400 {
        assert_eq!(broker.greet(format!("hello vm:vm-{n:03} capabilities={capabilities}\n")).1, "ok");
    }
    let names = |shown: &Value| {
        shown["vms"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap().to_owned()).collect()
    };
    let all: Vec<String> = (0..400).map(|n| format!("vm-{n:03}")).collect();
    let shown: Vec<String> =
        eventually("all VMs", || Some(names(&broker.status())).filter(|n: &Vec<String>| n.len() == 400));
    assert_eq!(shown, all);
    broker.kill();
    let _broker = Broker::start(dir.path());
    assert_eq!(names(&status(dir.path()).1), all);
}

#[test]
fn a_status_file_that_is_damaged_or_gone_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("status");
    for bytes in [&b""[..], b"garbage", &[0xff; 128 * 1024], &[0; 128 * 1024]] {
        std::fs::write(&path, bytes).unwrap();
        let output = run(dir.path(), &["--json"]);
        let (code, said) = (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned());
        assert!(matches!(code, Some(1 | 65)) && !said.contains("panicked"), "{code:?} {said}");
        let broker = Broker::start(dir.path());
        assert_eq!(status(dir.path()).0, 0);
        drop(broker);
    }
    let _broker = Broker::start(dir.path());
    std::fs::remove_file(&path).unwrap();
    state(dir.path(), "running");
}
