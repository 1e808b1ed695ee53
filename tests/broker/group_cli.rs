//! `castra bus group`: making, listing, moving and removing groups.

use crate::fake_broker::FakeBroker;
use crate::subscribe::publish;
use crate::support::{Broker, castra};
use castra::core::limits::{GROUP_ACK_TIMEOUT, TTL_MS};
use serde_json::{Value, json};
use std::process::Output;

fn group(broker: &Broker, args: &[&str]) -> Output {
    broker.run(&[&["bus", "group"], args].concat())
}

fn text(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn object(broker: &Broker, args: &[&str]) -> Value {
    let output = group(broker, &[args, &["--json"]].concat());
    let said = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
    let said: Value = serde_json::from_slice(said).unwrap();
    assert_eq!(said["schema"], 1, "{said}");
    said
}

#[test]
fn a_group_is_made_shown_moved_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    // They pass the filter of the group that is made below; one does not.
    for _ in 0..5 {
        guest.ask(r#"{"type":"publish","topic":"jobs.mail","headers":{"a":"b=c"},"tags":["x"]}"#);
    }
    publish(&mut guest, "jobs.mail");
    assert_eq!(
        text(&group(&broker, &["ls"])),
        "no groups; 'castra bus group create' or 'castra bus subscribe --group' makes one\n"
    );
    let args = ["create", "mailers", "--topic", "jobs.*", "-t", "vm:web", "--from", "seq:3", "--batch", "7"];
    let more = [
        "--ack-timeout",
        "90s",
        "--max-attempts",
        "3",
        "--header",
        "a=b=c",
        "--tag",
        "x",
        "--ordered-by-key",
    ];
    assert_eq!(text(&group(&broker, &[&args[..], &more].concat())), "mailers begins behind event 2\n");
    let spec = json!({
        "topics": ["jobs.*", "vm:web"], "headers": {"a": "b=c"}, "tags": ["x"], "batch": 7,
        "ack_timeout_ms": 90_000, "max_attempts": 3, "ordered_by_key": true,
    });
    let want = json!({
        "schema": 1, "group": "mailers", "spec": spec, "cursor": 2, "lag": 3, "members": 0, "held": 0,
        "waiting": 0, "delayed": 0, "dead": 0, "expired_undelivered": 0, "stalled": "no members",
    });
    assert_eq!(object(&broker, &["show", "mailers"]), want);
    let mut listed = want.clone();
    listed.as_object_mut().unwrap().remove("schema");
    assert_eq!(object(&broker, &["ls"]), json!({"schema": 1, "groups": [listed]}));
    let again = object(&broker, &["create", "mailers", "--topic", "other"]);
    let differs = json!(["topics"]);
    assert_eq!(
        again,
        json!({"schema": 1, "group": "mailers", "cursor": 2, "created": false, "differs": differs})
    );
    let same = ["create", "mailers", "-t", "vm:web", "-t", "jobs.*"];
    let show = "'castra bus group show mailers'";
    let said = text(&group(&broker, &same));
    assert_eq!(said, format!("mailers was there already, and is at event 2; its options stay: {show}\n"));
    let other = ["--batch", "7", "--max-attempts", "4", "--ack-timeout", "91s", "--tag", "y"];
    let said = text(&group(&broker, &[&same[..], &other].concat()));
    let own = "filter, ack_timeout_ms, max_attempts";
    assert_eq!(
        said,
        format!("mailers was there already, and is at event 2; it keeps its own {own}: {show}\n")
    );
    // In a table and line by line.
    let table = text(&group(&broker, &["ls"]));
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(&lines[0][..3], ["GROUP", "CURSOR", "LAG"]);
    assert_eq!(
        lines[1],
        ["mailers", "2", "3", "0", "0", "0", "0", "0", "0", "no", "members", "jobs.*", "vm:web"]
    );
    let shown = text(&group(&broker, &["show", "mailers"]));
    for line in [
        "topics          jobs.* vm:web",
        "header          a=b=c",
        "ack timeout     1m 30s",
        "lag             3",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    // How far it is.
    assert_eq!(text(&group(&broker, &["lag"])), "mailers 3 no members\n");
    assert_eq!(text(&group(&broker, &["lag", "mailers", "--over", "3"])), "mailers 3 no members\n");
    let over = group(&broker, &["lag", "--over", "2", "--json"]);
    assert_eq!(over.status.code(), Some(1));
    let each = json!([{"group": "mailers", "lag": 3, "stalled": "no members"}]);
    let said: Value = serde_json::from_slice(&over.stdout).unwrap();
    assert_eq!(said, json!({"schema": 1, "groups": each, "over": true}));
    // Where it goes on.
    for (to, cursor) in [("earliest", 0), ("@4", 3), ("latest", 6), ("seq:2", 1), ("now", 6)] {
        assert_eq!(object(&broker, &["seek", "mailers", to])["cursor"], cursor, "{to}");
    }
    assert_eq!(text(&group(&broker, &["seek", "mailers", "seq:7"])), "mailers goes on behind event 6\n");
    assert_eq!(object(&broker, &["rm", "mailers"]), json!({"schema": 1, "removed": "mailers"}));
    assert_eq!(object(&broker, &["ls"])["groups"], json!([]));
}

#[test]
fn what_cannot_be_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let none =
        castra().args(["--state-root", dir.path().to_str().unwrap(), "bus", "group", "ls"]).output().unwrap();
    assert_eq!(none.status.code(), Some(69));
    let broker = Broker::start(dir.path());
    for (args, exit, code) in [
        (&["show", "none"][..], 1, "unknown-group"),
        (&["seek", "none", "latest"], 1, "unknown-group"),
        (&["rm", "none"], 1, "unknown-group"),
        (&["lag", "none"], 1, "unknown-group"),
        (&["create", "a b", "--topic", "t"], 65, "bad-group"),
        (&["create", "g", "--topic", "a..b"], 65, "bad-pattern"),
        (&["create", "g", "--topic", "t", "--from", "soon"], 65, "bad-from"),
        (&["create", "g", "--topic", "t", "--from", "seq:9"], 65, "seq-ahead"),
        (&["create", "g"], 2, "usage"),
        (&["create", "g", "--topic", "t", "--tag", ""], 65, "bad-tags"),
        (&["create", "g", "--topic", "t", "--header", "a=1", "--header", "a=2"], 65, "bad-headers"),
    ] {
        let output = group(&broker, &[args, &["--json"]].concat());
        let said: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!((output.status.code(), &said["code"]), (Some(exit), &json!(code)), "{args:?}: {said}");
    }
}

#[test]
fn many_groups_come_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("dev");
    let topics: Vec<String> = (0..60).map(|n| format!("{}.{n}", "x".repeat(240))).collect();
    // Few fit into one answer.
    for n in 0..12 {
        let wish = json!({"type": "group_create", "group": format!("g{n:02}"), "topics": topics});
        assert_eq!(guest.ask(wish.to_string())["status"], "ok");
    }
    let all = object(&broker, &["ls"]);
    let names: Vec<&str> =
        all["groups"].as_array().unwrap().iter().map(|group| group["group"].as_str().unwrap()).collect();
    assert_eq!(names, (0..12).map(|n| format!("g{n:02}")).collect::<Vec<_>>());
}

#[test]
fn whether_it_makes_sense_to_try_again_is_in_the_exit_code() {
    let help = castra().args(["bus", "group", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for (code, exit) in [
        ("seek-under-way", 75),
        ("journal-unreadable", 75),
        ("disk-full", 75),
        ("too-many-groups", 77),
        ("forbidden-topic", 77),
        ("unknown-group", 1),
        ("unknown-id", 65),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeBroker::start(dir.path());
        let played = std::thread::spawn(move || {
            let (mut session, _) = fake.guest();
            let asked = session.receive().expect("a frame");
            let (ack, group) = (&asked["type"], &asked["group"]);
            session.send(&json!({
                "type": "ack", "ack": ack, "status": "error", "group": group, "code": code, "reason": "no",
            }));
            session.drain();
        });
        let root = dir.path().to_str().unwrap();
        let args = ["--state-root", root, "bus", "group", "seek", "g", "earliest", "--json"];
        let output = castra().args(args).output().unwrap();
        played.join().unwrap();
        let said: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!((output.status.code(), &said["code"]), (Some(exit), &json!(code)), "{said}");
        assert!(help.contains(&format!("\n  {exit:<5}")), "{exit} is in the help");
    }
}

#[test]
fn what_is_typed_wrongly_is_named_as_it_was_typed() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let create = ["create", "g", "--topic", "t"];
    let words = "is latest, earliest, seq:N, id:ID or a time";
    for (args, exit, said) in [
        (&["seek", "g", "5"][..], 65, format!("castra: TO {words}, and \"5\" is no time: ")),
        (&["seek", "g", "state"], 65, format!("castra: TO {words}; a group does not begin at the state")),
        (&["seek", "g", &format!("seq:{}", "9".repeat(23))], 65, format!("TO \"seq:{}", "9".repeat(23))),
        (&["seek", "g", "@-1"], 65, "castra: TO \"@-1\": a seq is a whole number below 2^64".to_owned()),
        (&[&create[..], &["--from", "state"]].concat(), 65, format!("castra: --from {words}; a group")),
        (&[&create[..], &["--ack-timeout", "2days"]].concat(), 2, "TIME>': at most 1 day".to_owned()),
        (&[&create[..], &["--ack-timeout", "1us"]].concat(), 2, "TIME>': at least 1ms".to_owned()),
    ] {
        let output = group(&broker, args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {stderr}");
        assert!(stderr.contains(&said), "{args:?}: {stderr}");
    }
    for (args, said) in [
        (&["subscribe", "--group", "g", "--ack-timeout", "2days"][..], "TIME>': at most 1 day"),
        (&["publish", "t", "1", "--ttl", "10years"], "TIME>': at most 3650 days"),
        (&["publish", "t", "1", "--ttl", "1us"], "TIME>': at least 1ms"),
    ] {
        let output = broker.run(&[&["bus"], args].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
    // As long as can be.
    let [ttl, held] = [TTL_MS.into(), GROUP_ACK_TIMEOUT.as_millis()].map(|millis| format!("{millis}ms"));
    for args in [
        &["publish", "t", "1", "--ttl", &ttl][..],
        &["group", "create", "h", "--topic", "t", "--ack-timeout", &held],
    ] {
        assert_eq!(broker.run(&[&["bus"], args].concat()).status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn an_id_is_that_of_a_vm() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut web, mut dev) = (broker.guest("web"), broker.guest("dev"));
    // 1 to 3; the same id twice.
    for guest in [&mut web, &mut dev] {
        assert_eq!(guest.ask(r#"{"type":"publish","topic":"t","id":"b-17"}"#)["status"], "ok");
    }
    publish(&mut dev, "t");
    let create = |name, vm: &[&str]| {
        let args = ["create", name, "--topic", "t", "--from", "id:b-17"];
        object(&broker, &[&args[..], vm].concat())["cursor"].take()
    };
    assert_eq!(create("any", &[]), 2);
    assert_eq!(create("one", &["--id-vm", "web"]), 1);
    let seek = |vm: &[&str]| object(&broker, &[&["seek", "any", "id:b-17"], vm].concat());
    assert_eq!(seek(&["--id-vm", "vm:web"])["cursor"], 1);
    assert_eq!(seek(&["--id-vm", "dev"])["cursor"], 2);
    assert_eq!(seek(&["--id-vm", "other"])["code"], "unknown-id");
    assert_eq!(seek(&["--id-vm", "a/b"])["code"], "bad-name");
    let useless = group(&broker, &["seek", "any", "latest", "--id-vm", "web"]);
    assert_eq!(useless.status.code(), Some(2), "{}", String::from_utf8_lossy(&useless.stderr));
    let subscribed = broker.run(&[
        "bus",
        "subscribe",
        "t",
        "--from",
        "id:b-17",
        "--id-vm",
        "web",
        "-c",
        "2",
        "-o",
        "json",
    ]);
    let lines: Vec<&str> = std::str::from_utf8(&subscribed.stdout).unwrap().lines().collect();
    let seqs: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].take()).collect();
    assert_eq!(seqs, [2, 3]);
}
