//! Dead letters through the real program: listed, shown, published again for their group alone, forgotten.

use crate::support::{Broker, Guest, LocalGuest, eventually};
use castra::core::client::{Bus, Target};
use serde_json::{Value, json};

const HOST: &str = "hello vm:host capabilities=bus-v1,host-bus\n";

fn run(broker: &Broker, args: &[&str]) -> (Option<i32>, String, String) {
    let output = broker.run(&[&["bus", "dlq"], args].concat());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn join(guest: &mut Guest, fields: &str) {
    let ack = guest.ask(format!(r#"{{"type":"subscribe",{fields}}}"#));
    assert_eq!(ack["status"], "ok", "{ack}");
}

/// Gives the next delivery up; its seq.
fn give_up(member: &mut Guest, reason: &str) -> u64 {
    let event = member.receive().unwrap();
    let seq = event["seq"].as_u64().unwrap();
    let term = json!({"type": "term", "group": event["group"], "seq": seq, "reason": reason});
    member.send(term.to_string());
    seq
}

fn letters(broker: &Broker, group: &str, n: usize) -> Vec<Value> {
    eventually("the letters", || {
        let (_, out, _) = run(broker, &["ls", group, "--json"]);
        let found: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (found.len() == n).then_some(found)
    })
}

#[test]
fn a_letter_is_listed_shown_retried_for_its_group_alone_and_gone() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    assert_eq!(run(&broker, &["ls"]), (Some(1), String::new(), String::new()));
    let (mut publisher, mut member, mut other) = (broker.guest("p"), broker.guest("m"), broker.guest("o"));
    join(&mut member, r#""topic":"jobs.*","group":"g.1","from":"earliest""#);
    join(&mut other, r#""topic":"jobs.*","group":"h","from":"earliest","ordered_by_key":true"#);
    let publish = json!({
        "type": "publish", "topic": "jobs.a", "id": "j-1", "key": "k", "headers": {"a": "b"}, "tags": ["t"],
        "payload": {"n": 1}
    });
    assert_eq!(publisher.ask(publish.to_string())["seq"], 1);
    publisher.ask(r#"{"type":"publish","topic":"jobs.b","payload":2}"#);
    for seq in [1, 2] {
        assert_eq!(other.receive().unwrap()["seq"], seq);
    }
    assert_eq!(give_up(&mut member, "no \u{1b}[31mroom\u{202e}"), 1);
    assert_eq!(give_up(&mut member, ""), 2);
    let found = letters(&broker, "g.1", 2);
    let said = ["seq", "topic", "vm", "attempts", "reason", "group"].map(|name| &found[0][name]);
    assert_eq!(json!(said), json!([1, "jobs.a", "p", 1, "term: no  [31mroom\u{202e}", "g.1"]));
    let (code, out, _) = run(&broker, &["ls"]);
    assert_eq!((code, &*out), (Some(0), "g.1  2 dead letters\n"));
    let (code, out, _) = run(&broker, &["ls", "g.1", "--utc"]);
    assert!(
        code == Some(0)
            && out.contains("Z  jobs.b  1 attempt  term\n")
            && !out.contains(['\u{1b}', '\u{202e}']),
        "{out}"
    );
    assert!(out.contains("term: no  [31mroom\\u202e\n"), "{out}");
    assert_eq!(run(&broker, &["ls", "h"]).0, Some(1));
    let (code, out, _) = run(&broker, &["show", "g.1", "1"]);
    assert!(
        code == Some(0) && out.contains("header    a=b\n") && out.contains("payload   {\"n\":1}\n"),
        "{out}"
    );
    assert_eq!(run(&broker, &["show", "g.1", "1", "-o", "raw"]).1, "{\"n\":1}\n");
    let (code, out, err) = run(&broker, &["show", "g.1", "9"]);
    assert!(
        (code, &*out) == (Some(1), "") && err.contains("g.1 has no dead letter 9; 'castra bus dlq ls g.1'"),
        "{err}"
    );

    // A plain subscriber sees it, the group gets it anew, the other group does not.
    let mut plain = broker.guest("plain");
    join(&mut plain, r#""topic":"jobs.>""#);
    let (code, out, err) = run(&broker, &["retry", "g.1", "1", "7", "1", "7"]);
    assert_eq!(
        (code, &*out, &*err),
        (Some(1), "1 dead letter of g.1 retried\n", "castra: 7: there is no such dead letter\n")
    );
    let event = member.receive().unwrap();
    let said =
        ["vm", "topic", "key", "headers", "tags", "caused_by", "payload", "attempt"].map(|name| &event[name]);
    let want = json!(["host", "jobs.a", "k", {"a": "b", "castra-retry": "g.1"}, ["t"], ["j-1"], {"n": 1}, 1]);
    assert_eq!(json!(said), want, "{event}");
    assert_eq!(plain.receive().unwrap()["seq"], event["seq"]);
    publisher.ask(r#"{"type":"publish","topic":"jobs.c"}"#);
    let last = other.receive().unwrap();
    assert_eq!(last["topic"], "jobs.c", "{last}");
    letters(&broker, "g.1", 1);

    // The same again is a repeat, as after a lost answer.
    let (mut host, _) = LocalGuest::greet(&broker.root.join("castra.sock"), HOST);
    let id = event["id"].as_str().unwrap().to_owned();
    let again = json!({"type": "publish", "events": [{"topic": "jobs.a", "id": id}]});
    assert_eq!(host.ask(&again.to_string())["duplicate"], true);

    let (code, out, _) = run(&broker, &["purge", "g.1", "--all", "--json"]);
    let want = json!({"schema": 1, "group": "g.1", "purged": [2], "left": []});
    assert_eq!((code, serde_json::from_str::<Value>(&out).unwrap()), (Some(0), want));
    assert_eq!(run(&broker, &["ls"]).0, Some(1));
    assert_eq!(run(&broker, &["purge", "g.1", "--all"]).0, Some(1));
}

#[test]
fn what_cannot_be_done_is_said_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("m"));
    join(&mut member, r#""topic":"jobs","group":"g""#);
    // No header fits any more.
    let payload = "x".repeat(61_440 - 150);
    publisher.ask(json!({"type": "publish", "topic": "jobs", "id": "i", "payload": payload}).to_string());
    let large = give_up(&mut member, "large");
    let headers: Value =
        (0..32).map(|n| (format!("h{n}"), json!("v"))).collect::<serde_json::Map<_, _>>().into();
    publisher.ask(json!({"type": "publish", "topic": "jobs", "headers": headers}).to_string());
    let many = give_up(&mut member, "many");
    letters(&broker, "g", 2);
    let (code, out, err) = run(&broker, &["retry", "g", "--all"]);
    assert_eq!((code, &*out), (Some(1), "0 dead letters of g retried\n"), "{err}");
    for (seq, what) in [
        (large, "be larger than an event may be"),
        (many, "have more headers, or more in them, than an event may have"),
    ] {
        let said = format!(
            "castra: {seq}: with the header castra-retry it would {what}; 'castra bus dlq show g {seq} -o raw' "
        );
        assert!(err.contains(&said), "{err}");
    }
    assert_eq!(run(&broker, &["purge", "g", &many.to_string()]).0, Some(0));
    letters(&broker, "g", 1);
    for command in [
        &["ls", "nobody"][..],
        &["show", "nobody", "1"],
        &["purge", "nobody", "1"],
        &["retry", "nobody", "1"],
    ] {
        assert_eq!(run(&broker, command).0, Some(1), "{command:?}");
    }
    let (_, _, err) = run(&broker, &["retry", "nobody", "1"]);
    assert!(err.contains("unknown-group"), "{err}");
    for name in ["a b", "", "bad..name", "$dlq.g"] {
        for command in [&["ls", name][..], &["show", name, "1"], &["purge", name, "1"], &["retry", name, "1"]]
        {
            let (code, _, err) = run(&broker, command);
            assert!(code == Some(65) && err.contains("a group's name is"), "{command:?}: {err}");
        }
    }
    let (code, _, err) = run(&broker, &["retry", "g"]);
    assert!(code == Some(2) && err.contains("--all"), "{err}");
    assert_eq!(run(&broker, &["purge", "g", "1", "--all"]).0, Some(2));

    // Only the end of a letter may be published, and only by the host.
    let (mut host, _) = LocalGuest::greet(&broker.root.join("castra.sock"), HOST);
    for (publish, code) in [
        (json!({"topic": "$dlq.g", "key": "1", "payload": 1}), "reserved-topic"),
        (json!({"topic": "$dlq.g", "payload": null}), "reserved-topic"),
        (json!({"topic": "$other", "key": "1", "payload": null}), "reserved-topic"),
        (json!({"topic": "$dlq.", "key": "1", "payload": null}), "reserved-topic"),
        (json!({"topic": "$dlq.>", "key": "1", "payload": null}), "reserved-topic"),
    ] {
        let mut frame = publish.clone();
        frame["type"] = "publish".into();
        assert_eq!(host.ask(&frame.to_string())["code"], code, "{publish}");
    }
    let end = r#"{"type":"publish","topic":"$dlq.g","key":"1","payload":null}"#;
    assert_eq!(publisher.ask(end)["code"], "reserved-topic");
    letters(&broker, "g", 1);
    assert_eq!(host.ask(end)["status"], "ok");
    letters(&broker, "g", 0);
}

/// Payloads that parsers disagree on, and those that are as deep as a publish may be.
fn odd() -> Vec<String> {
    let deep =
        |open: &str, inner: &str, close: &str| format!("{}{inner}{}", open.repeat(63), close.repeat(63));
    let plain = [
        "1e400",
        "-1e-400",
        "-0",
        "-0.0",
        "1.50",
        "18446744073709551616",
        r#"{"a":1,"a":2}"#,
        r#"{"$serde_json::private::RawValue":"1","$serde_json::private::Number":"1"}"#,
        r#""\u0000\/\u2028""#,
    ];
    let mut all = plain.map(str::to_owned).to_vec();
    all.extend([deep("[", "", "]"), deep("{\"a\":", "1", "}"), "9".repeat(400)]);
    all
}

#[test]
fn whatever_was_published_can_be_shown_retried_and_published_anew_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let broker = crate::latest::compacting(dir.path(), &["jobs"]);
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("m"));
    join(&mut member, r#""topic":"jobs","group":"g","ack_timeout_ms":600000"#);
    let odd = odd();
    let payload_of = |line: &str| line[line.find("\"payload\":").unwrap() + 10..line.len() - 1].to_owned();
    let receive = |member: &mut Guest| {
        let body = String::from_utf8(member.receive_body().unwrap()).unwrap();
        (payload_of(&body), serde_json::from_str::<Stamp>(&body).unwrap().seq)
    };
    let mut seqs = Vec::new();
    for (n, payload) in odd.iter().enumerate() {
        let publish = format!(r#"{{"type":"publish","topic":"jobs","key":"{n:02}","payload":{payload}}}"#);
        let ack = publisher.ask(publish);
        assert_eq!(ack["status"], "ok", "{ack} {payload}");
        let (got, seq) = receive(&mut member);
        assert_eq!(&got, payload);
        member.send(json!({"type": "term", "group": "g", "seq": seq}).to_string());
        seqs.push(seq);
    }
    letters(&broker, "g", odd.len());
    for (seq, payload) in seqs.iter().zip(&odd) {
        let (code, out, err) = run(&broker, &["show", "g", &seq.to_string(), "-o", "raw"]);
        assert_eq!((code, out.trim_end()), (Some(0), &**payload), "{err}");
    }
    let (code, out, err) = run(&broker, &["retry", "g", "--all"]);
    assert_eq!((code, out), (Some(0), format!("{} dead letters of g retried\n", odd.len())), "{err}");
    for payload in &odd {
        assert_eq!(&receive(&mut member).0, payload);
    }
    letters(&broker, "g", 0);

    // The whole log, published once more; a snapshot of them; and the answer that a program in Rust gets.
    let tail = broker.run(&["bus", "tail", "-q", "-n", "1000", "-o", "json", "jobs"]);
    let lines = tail.stdout.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!((tail.status.code(), lines), (Some(0), 2 * odd.len()));
    let file = dir.path().join("tail.jsonl");
    std::fs::write(&file, &tail.stdout).unwrap();
    let again = broker.run(&["bus", "publish", "--jsonl", "--file", file.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(0), "{}", String::from_utf8_lossy(&again.stderr));
    let snapshot = broker.run(&["bus", "snapshot", "jobs"]);
    assert_eq!(snapshot.status.code(), Some(0), "{}", String::from_utf8_lossy(&snapshot.stderr));
    let target = Target::Unix(broker.root.join("castra.sock"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let bus = Bus::connect(&target, "app").await.unwrap();
        let latest = |key: &str| json!({"topic": "jobs", "keys": [key]});
        let raw = bus.ask_json("latest", latest("00")).await.unwrap();
        // What is no `Value` fails its own question, and no other.
        assert_eq!(bus.ask("latest", latest("00")).await.unwrap_err().code(), Some("bad-answer"));
        assert_eq!(bus.ask("latest", latest("04")).await.unwrap()["events"][0]["payload"], 1.5);
        raw
    });
    assert!(String::from_utf8_lossy(&answer).contains("\"payload\":1e400}"), "{answer:?}");
}

#[derive(serde::Deserialize)]
struct Stamp {
    seq: u64,
}

#[test]
fn what_the_group_takes_no_more_stays_a_letter() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("m"));
    let group = |args: &[&str]| {
        let done = broker.run(&[&["bus", "group"], args].concat());
        assert_eq!(done.status.code(), Some(0), "{args:?}: {done:?}");
    };
    join(&mut member, r#""topic":"jobs.>","group":"g","from":"earliest""#);
    let [a, b, c] = [("jobs.a", "x"), ("jobs.b", "x"), ("jobs.b", "y")].map(|(topic, tag)| {
        publisher.ask(json!({"type": "publish", "topic": topic, "tags": [tag]}).to_string());
        give_up(&mut member, "")
    });
    letters(&broker, "g", 3);
    group(&["rm", "g"]);
    group(&["create", "g", "--topic", "jobs.b", "--topic", "other", "--tag", "y"]);
    let (code, out, err) = run(&broker, &["retry", "g", "--all"]);
    assert_eq!((code, &*out), (Some(1), "1 dead letter of g retried\n"), "{err}");
    for words in [
        format!("castra: {a}: g does not take the topic jobs.a: it takes jobs.b other; "),
        format!("castra: {b}: g does not take an event of these headers and tags"),
        format!("'castra bus dlq show g {b} -o raw'"),
    ] {
        assert!(err.contains(&words), "{words}: {err}");
    }
    let (code, out, _) = run(&broker, &["retry", "g", "--all", "--json"]);
    let said: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &said["retried"]), (Some(1), &json!([])));
    assert_eq!(json!([said["left"][0]["code"], said["left"][1]["code"]]), json!(["not-taken", "not-taken"]));
    assert_eq!(json!(letters(&broker, "g", 2)[1]["seq"]), b);
    let mut member = broker.guest("m2");
    join(&mut member, r#""topic":"jobs.b","group":"g""#);
    let event = member.receive().unwrap();
    assert_eq!(json!([event["topic"], event["tags"]]), json!(["jobs.b", ["y"]]), "{event}");
    assert!(event["seq"].as_u64() > Some(c), "{event}");
}

#[test]
fn a_retried_event_does_not_replace_newer_state() {
    let dir = tempfile::tempdir().unwrap();
    let broker = crate::latest::compacting(dir.path(), &["cfg"]);
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("m"));
    join(&mut member, r#""topic":"cfg","group":"g""#);
    publisher.ask(r#"{"type":"publish","topic":"cfg","key":"k","payload":"old"}"#);
    give_up(&mut member, "");
    publisher.ask(r#"{"type":"publish","topic":"cfg","key":"k","payload":"new"}"#);
    letters(&broker, "g", 1);
    assert_eq!(run(&broker, &["retry", "g", "--all"]).0, Some(0));
    let state = crate::latest::latest(&mut publisher, "cfg");
    assert_eq!(state, [("k".to_owned(), json!("new"))]);
    // After a restart as well.
    assert_eq!(broker.stop().0, Some(0));
    std::fs::remove_file(dir.path().join("root/latest.db")).unwrap();
    let broker = crate::latest::compacting(dir.path(), &["cfg"]);
    assert_eq!(crate::latest::latest(&mut broker.guest("p"), "cfg"), state);
}
