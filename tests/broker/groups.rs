//! Consumer groups through real sockets: who gets what, again and again, until it is done or given up.

use crate::subscribe::{is_quiet, limited, publish};
use crate::support::{Broker, Guest, LocalGuest, eventually};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::AsRawFd;

/// Becomes a member; the ack, which must be the next frame.
pub fn join(guest: &mut Guest, fields: &str) -> Value {
    let ack = guest.ask(format!(r#"{{"type":"subscribe",{fields}}}"#));
    assert_eq!((&ack["ack"], &ack["status"]), (&json!("subscribe"), &json!("ok")), "{fields}: {ack}");
    ack
}

/// The next frame, a delivery of this group: its seq and attempt.
pub fn delivery(guest: &mut Guest, group: &str) -> (u64, u64) {
    let own = guest.stream.get_ref().as_raw_fd();
    let early = EARLY.with_borrow_mut(|early| {
        let at = early.iter().position(|(to, _)| *to == own)?;
        early.remove(at)
    });
    let event = early.map_or_else(|| guest.receive().expect("a delivery"), |(_, event)| event);
    assert_eq!((&event["type"], &event["group"]), (&json!("event"), &json!(group)), "{event}");
    (event["seq"].as_u64().unwrap(), event["attempt"].as_u64().unwrap())
}

/// Says something of an event and waits until it is durable; deliveries that come before that stay to be looked at.
pub fn say(guest: &mut Guest, kind: &str, fields: &str) -> Value {
    let mut answer = guest.ask(format!(r#"{{"type":"{kind}","group":"g","confirm":true,{fields}}}"#));
    while answer["type"] == "event" {
        EARLY.with_borrow_mut(|early| early.push_back((guest.stream.get_ref().as_raw_fd(), answer.take())));
        answer = guest.receive().expect("an answer");
    }
    answer
}

thread_local! {
    /// Deliveries that came before an answer, and to whom.
    static EARLY: RefCell<VecDeque<(i32, Value)>> = const { RefCell::new(VecDeque::new()) };
}

pub fn ack(guest: &mut Guest, seq: u64) {
    let answer = say(guest, "ack", &format!(r#""seq":{seq}"#));
    assert_eq!(answer, json!({"type":"ack","ack":"ack","status":"ok","group":"g","events":1}));
}

pub fn code(answer: &Value) -> &str {
    assert_eq!(answer["status"], "error", "{answer}");
    answer["code"].as_str().unwrap()
}

#[test]
fn what_was_published_is_delivered_and_the_cursor_moves() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut member, mut other) = (broker.guest("a"), broker.guest("b"));
    assert_eq!(publish(&mut other, "t.a"), 1);
    let joined = join(&mut member, r#""topic":"t.a","group":"g","from":"earliest""#);
    assert_eq!(
        joined,
        json!({"type":"ack","ack":"subscribe","status":"ok","group":"g","cursor":0,"created":true})
    );
    let event = member.receive().unwrap();
    let want = json!([1, 1, 5, "b", "t.a", null, null]);
    let said = ["seq", "attempt", "max_attempts", "vm", "topic", "payload", "sub"].map(|name| &event[name]);
    assert_eq!(json!(said), want, "{event}");
    publish(&mut other, "t.b");
    publish(&mut other, "t.a");
    assert_eq!(delivery(&mut member, "g"), (3, 1));
    let answer = say(&mut member, "ack", r#""through":3"#);
    assert_eq!(answer["events"], 2, "{answer}");
    // It goes on behind what is done, after a restart of everything.
    assert_eq!(broker.stop().0, Some(0));
    let broker = Broker::start(dir.path());
    let mut other = broker.guest("b");
    publish(&mut other, "t.a");
    let mut member = broker.guest("a");
    let joined = join(&mut member, r#""topic":"t.a","group":"g","from":"earliest""#);
    assert_eq!((&joined["cursor"], &joined["created"]), (&json!(3), &json!(false)), "{joined}");
    assert_eq!(delivery(&mut member, "g"), (4, 1));
    ack(&mut member, 4);
    is_quiet(&mut member);
}

#[test]
fn a_refused_event_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut member, mut other) = (broker.guest("a"), broker.guest("b"));
    join(&mut member, r#""topic":"t.b","group":"g","from":"earliest""#);
    let seq = publish(&mut other, "t.b");
    assert_eq!(delivery(&mut member, "g"), (seq, 1));
    let answer = say(&mut member, "nack", r#""seq":1,"reason":"boom","delay_ms":0"#);
    assert_eq!((&answer["ack"], &answer["status"]), (&json!("nack"), &json!("ok")), "{answer}");
    assert_eq!(delivery(&mut member, "g"), (seq, 2));
    ack(&mut member, seq);
}

#[test]
fn members_share_and_who_goes_leaves_what_it_held_to_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut publisher = broker.guest("p");
    let (mut one, mut two) = (broker.guest("a"), broker.guest("b"));
    for member in [&mut one, &mut two] {
        join(member, r#""topic":"t","group":"g","max_in_flight":2"#);
    }
    let seqs: Vec<u64> = (0..4).map(|_| publish(&mut publisher, "t")).collect();
    let mut held: Vec<(u64, u64)> = (0..2).map(|_| delivery(&mut one, "g")).collect();
    held.extend((0..2).map(|_| delivery(&mut two, "g")));
    let mut all: Vec<u64> = held.iter().map(|(seq, _)| *seq).collect();
    all.sort_unstable();
    assert_eq!(all, seqs);
    // More than two are held by nobody.
    publish(&mut publisher, "t");
    is_quiet(&mut one);
    let (ones, twos) = (held[..2].to_vec(), held[2..].to_vec());
    assert_eq!(code(&say(&mut one, "ack", &format!(r#""seq":{}"#, twos[0].0))), "not-held");
    assert_eq!(code(&say(&mut one, "ack", r#""seq":99"#)), "not-delivered");
    ack(&mut two, twos[0].0);
    assert_eq!(delivery(&mut two, "g"), (5, 1));
    assert_eq!(code(&say(&mut two, "ack", &format!(r#""seq":{}"#, twos[0].0))), "already-done");
    ack(&mut two, twos[1].0);
    ack(&mut two, 5);
    drop(one);
    let mut again: Vec<(u64, u64)> = (0..2).map(|_| delivery(&mut two, "g")).collect();
    again.sort_unstable();
    // The one that it was given first it had begun, as far as is known.
    let mut want = vec![(ones[0].0, 2), (ones[1].0, 1)];
    want.sort_unstable();
    assert_eq!(again, want);
}

#[test]
fn what_is_not_answered_in_time_comes_again_and_is_given_up_at_last() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut publisher = broker.guest("p");
    let mut member = broker.guest("a");
    join(&mut member, r#""topic":"t","group":"g","ack_timeout_ms":50,"max_attempts":3"#);
    let ack = publisher.ask(r#"{"type":"publish","topic":"t","id":"the-one","payload":{"n":1}}"#);
    let seq = ack["seq"].as_u64().unwrap();
    for attempt in 1..=3 {
        assert_eq!(delivery(&mut member, "g"), (seq, attempt));
    }
    // Nobody handled it: it is in the dead letters, whole, with what was said of it.
    let letters = || broker.log("host").into_iter().find(|line| line["topic"] == "$dlq.g");
    let letter = eventually("the dead letter", letters);
    assert_eq!(
        (
            &json!(
                letter["id"].as_str().unwrap().starts_with("dlq:g:")
                    && letter["id"].as_str().unwrap().ends_with(":1")
            ),
            &letter["vm"]
        ),
        (&json!(true), &json!("host"))
    );
    let payload = &letter["payload"];
    assert_eq!((&payload["group"], &payload["attempts"]), (&json!("g"), &json!(3)), "{payload}");
    let event = &payload["event"];
    assert_eq!(
        (&event["id"], &event["seq"], &event["payload"]["n"]),
        (&json!("the-one"), &json!(1), &json!(1))
    );
    assert_eq!(payload["failures"].as_array().unwrap().len(), 3, "{payload}");
    // The host may read them.
    let (mut host, _) =
        LocalGuest::greet(&broker.root.join("castra.sock"), "hello vm:host capabilities=bus-v1,host-bus\n");
    let joined = host.ask(r#"{"type":"subscribe","topic":"$dlq.g","from":"earliest"}"#);
    assert_eq!(joined["status"], "ok", "{joined}");
    assert_eq!(host.receive()["payload"]["event"]["id"], "the-one");
    // And it is done with.
    let next = publish(&mut publisher, "t");
    assert_eq!(delivery(&mut member, "g"), (next, 1));
}

#[test]
fn more_time_and_an_early_end() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("a"));
    join(&mut member, r#""topic":"t","group":"g","max_in_flight":1"#);
    publish(&mut publisher, "t");
    publish(&mut publisher, "t");
    assert_eq!(delivery(&mut member, "g"), (1, 1));
    let answer = say(&mut member, "in_progress", r#""seq":1"#);
    assert_eq!((&answer["ack"], &answer["status"]), (&json!("in_progress"), &json!("ok")));
    let answer = say(&mut member, "term", r#""seq":1,"reason":"poison""#);
    assert_eq!((&answer["ack"], &answer["status"]), (&json!("term"), &json!("ok")));
    assert_eq!(delivery(&mut member, "g"), (2, 1));
    let letter = eventually("the dead letter", || {
        broker.log("host").into_iter().find(|line| line["topic"] == "$dlq.g")
    });
    assert_eq!(letter["payload"]["failures"][0]["reason"], "poison");
}

#[test]
fn an_event_is_known_by_its_id_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("a"));
    join(&mut member, r#""topic":"t","group":"g""#);
    publisher.ask(r#"{"type":"publish","topic":"t","id":"a\"b"}"#);
    assert_eq!(delivery(&mut member, "g"), (1, 1));
    assert_eq!(code(&say(&mut member, "ack", r#""id":"other""#)), "not-delivered");
    assert_eq!(say(&mut member, "ack", r#""id":"a\"b""#)["status"], "ok");
    assert_eq!(code(&say(&mut member, "ack", r#""seq":1"#)), "already-done");
}

#[test]
fn events_of_one_key_come_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut publisher = broker.guest("p");
    let (mut one, mut two) = (broker.guest("a"), broker.guest("b"));
    for member in [&mut one, &mut two] {
        join(member, r#""topic":"t","group":"g","ordered_by_key":true"#);
    }
    for key in ["x", "x", "x"] {
        publisher.ask(json!({"type": "publish", "topic": "t", "key": key}).to_string());
    }
    // One of them has the first; the other nothing.
    let mut members = [one, two];
    for seq in 1..=3 {
        let mut ask = |at: usize| {
            let next = members[at].ask(r#"{"type":"heartbeat"}"#);
            (next["type"] == "event").then(|| {
                assert_eq!(next["seq"], seq);
                assert_eq!(members[at].receive().unwrap()["ack"], "heartbeat");
                at
            })
        };
        let holder = eventually("a holder", || ask(0).or_else(|| ask(1)));
        ack(&mut members[holder], seq);
    }
}

#[test]
fn a_filter_selects_by_headers_and_tags() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut publisher, mut member) = (broker.guest("p"), broker.guest("a"));
    join(&mut member, r#""topic":"t","group":"g","filter":{"headers":{"kind":"x"},"tags":["red"]}"#);
    for event in [
        json!({"headers": {"kind": "x"}, "tags": ["blue"]}),
        json!({"headers": {"kind": "y"}, "tags": ["red"]}),
        json!({"payload": {"headers": {"kind": "x"}, "tags": ["red"]}}),
        json!({"headers": {"kind": "x", "more": "1"}, "tags": ["blue", "red"]}),
    ] {
        let mut frame = event;
        (frame["type"], frame["topic"]) = (json!("publish"), json!("t"));
        publisher.ask(frame.to_string());
    }
    assert_eq!(delivery(&mut member, "g"), (4, 1));
    ack(&mut member, 4);
    drop(member);
    // What it did not want is done as well.
    let mut member = broker.guest("a");
    let joined = join(&mut member, r#""topic":"t","group":"g""#);
    assert_eq!((&joined["cursor"], &joined["differs"]), (&json!(4), &json!(["filter"])), "{joined}");
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let broker = limited(dir.path(), "subscriptions = 2");
    let mut guest = broker.guest("a");
    assert_eq!(code(&say(&mut guest, "ack", r#""seq":1"#)), "not-a-member");
    for (fields, want) in [
        (r#""topic":"t","group":"a b""#, "bad-group"),
        (r#""topic":"t","group":"g","max_attempts":0"#, "bad-field"),
        (r#""topic":"t","group":"g","filter":{"what":1}"#, "bad-field"),
        (r#""topic":"t","group":"g","filter":[{"a":"1"},["x"]]"#, "bad-field"),
        (r#""topic":"t","group":"g","filter":{"tags":[""]}"#, "bad-tags"),
        (r#""topic":"t","group":"g","filter":{"tags":"x"}"#, "bad-tags"),
        (r#""topic":"t","group":"g","filter":{"headers":{"a":"1","a":"2"}}"#, "bad-headers"),
        (r#""topic":"t","group":"g","from":{"seq":7}"#, "seq-ahead"),
        (r#""topic":"t","group":"g","from":{"id":"nowhere"}"#, "unknown-id"),
        (r#""topic":"vm:other","group":"g""#, "forbidden-topic"),
    ] {
        let answer = guest.ask(format!(r#"{{"type":"subscribe",{fields}}}"#));
        assert_eq!((code(&answer), &answer["ack"]), (want, &json!("subscribe")), "{fields}: {answer}");
    }
    join(&mut guest, r#""topic":"t","group":"g""#);
    assert_eq!(code(&guest.ask(r#"{"type":"subscribe","topic":"t","group":"g"}"#)), "sub-exists");
    join(&mut guest, r#""topic":"t","group":"h""#);
    assert_eq!(code(&guest.ask(r#"{"type":"subscribe","topic":"t","group":"i"}"#)), "too-many-subscriptions");
    assert_eq!(code(&guest.ask(r#"{"type":"unsubscribe","group":"i"}"#)), "unknown-sub");
    let left = guest.ask(r#"{"type":"unsubscribe","group":"g"}"#);
    assert_eq!(left, json!({"type":"ack","ack":"unsubscribe","status":"ok","group":"g"}));
    assert_eq!(code(&say(&mut guest, "ack", r#""seq":1"#)), "not-a-member");
}

#[test]
fn a_refusal_that_cannot_say_the_group_says_no_other_name() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("a");
    let long = "G".repeat(129);
    for kind in ["subscribe", "unsubscribe", "ack", "group", "group_create", "group_seek", "group_remove"] {
        let answer =
            guest.ask(format!(r#"{{"type":"{kind}","group":"{long}","topic":"t","from":"latest","seq":1}}"#));
        let said = (code(&answer), &answer["ack"], answer.get("sub"), answer.get("group"));
        assert_eq!(said, ("bad-group", &json!(kind), None, None), "{answer}");
    }
}

#[test]
fn null_is_the_same_as_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let mut guest = broker.guest("a");
    let nothing = r#""batch":null,"max_in_flight":null,"ack_timeout_ms":null,"max_attempts":null,"ordered_by_key":null"#;
    for (group, filter) in [("g", "null"), ("h", r#"{"tags":null,"headers":null}"#)] {
        join(&mut guest, &format!(r#""topic":"t","group":"{group}","sub":null,"filter":{filter},{nothing}"#));
    }
    publish(&mut guest, "t");
    let mut groups: Vec<Value> = (0..2).map(|_| guest.receive().unwrap()["group"].take()).collect();
    groups.sort_by_key(Value::to_string);
    assert_eq!(groups, ["g", "h"]);
    guest.send(
        r#"{"type":"nack","group":"g","seq":1,"id":null,"confirm":null,"reason":null,"delay_ms":null}"#,
    );
    // It was taken, without a word.
    assert_eq!(code(&say(&mut guest, "nack", r#""seq":1"#)), "not-held");
}

/// Asks the host's door about groups.
fn ask(host: &mut LocalGuest, kind: &str, fields: &str) -> Value {
    let mut answer = host.ask(&format!(r#"{{"type":"{kind}"{fields}}}"#));
    assert_eq!((&answer["type"], &answer["ack"]), (&json!("ack"), &json!(kind)), "{answer}");
    answer.as_object_mut().unwrap().retain(|name, _| !matches!(name.as_str(), "type" | "ack"));
    answer
}

#[test]
fn groups_are_made_shown_moved_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let door = broker.root.join("castra.sock");
    let (mut host, _) = LocalGuest::greet(&door, "hello vm:host capabilities=bus-v1,host-bus\n");
    let host = &mut host;
    let mut guest = broker.guest("a");
    for _ in 0..3 {
        publish(&mut guest, "t");
    }
    let made = ask(host, "group_create", r#","group":"g","topic":"t","from":"earliest""#);
    assert_eq!(made, json!({"status":"ok","group":"g","cursor":0,"created":true}));
    let made = ask(host, "group_create", r#","group":"g","topic":"t""#);
    assert_eq!(made, json!({"status":"ok","group":"g","cursor":0,"created":false}));
    ask(host, "group_create", r#","group":"f","topic":"u""#);
    let all = ask(host, "groups", "");
    let names: Vec<&str> =
        all["groups"].as_array().unwrap().iter().map(|group| group["group"].as_str().unwrap()).collect();
    assert_eq!((names, &all["more"]), (vec!["f", "g"], &json!(false)));
    assert_eq!(ask(host, "groups", r#","after":"f""#)["groups"].as_array().unwrap().len(), 1);
    let shown = ask(host, "group", r#","group":"g""#);
    let figures = ["cursor", "lag", "members", "held", "stalled"].map(|name| &shown[name]);
    assert_eq!(json!(figures), json!([0, 3, 0, 0, "no members"]), "{shown}");
    assert_eq!(shown["spec"]["topics"], json!(["t"]));

    // A member, and a place to go on from.
    join(&mut guest, r#""topic":"t","group":"g","max_in_flight":1"#);
    assert_eq!(delivery(&mut guest, "g"), (1, 1));
    let shown = ask(host, "group", r#","group":"g""#);
    assert_eq!(json!([shown["members"], shown["held"], shown["stalled"]]), json!([1, 1, "in-flight full"]));
    let moved = ask(host, "group_seek", r#","group":"g","from":{"seq":3}"#);
    assert_eq!(moved, json!({"status":"ok","group":"g","cursor":2}));
    assert_eq!(delivery(&mut guest, "g"), (3, 1));
    assert_eq!(code(&say(&mut guest, "ack", r#""seq":1"#)), "already-done");
    ack(&mut guest, 3);
    ask(host, "group_seek", r#","group":"g","from":{"ts":0}"#);
    assert_eq!(delivery(&mut guest, "g"), (1, 1));

    assert_eq!(ask(host, "group_remove", r#","group":"g""#), json!({"status":"ok","group":"g"}));
    let told = guest.receive().unwrap();
    assert_eq!(
        json!([told["type"], told["group"], told["code"]]),
        json!(["unsubscribed", "g", "group-removed"])
    );
    for (kind, fields, want) in [
        ("group", r#","group":"g""#, "unknown-group"),
        ("group_remove", r#","group":"g""#, "unknown-group"),
        ("group_seek", r#","group":"g","from":"latest""#, "unknown-group"),
        ("group_seek", r#","group":"f","from":{"seq":9}"#, "seq-ahead"),
        ("group_seek", r#","group":"f","from":{"id":"x"}"#, "unknown-id"),
        ("group_seek", r#","group":"f""#, "bad-from"),
        ("group", "", "bad-field"),
    ] {
        assert_eq!(code(&ask(host, kind, fields)), want, "{kind}{fields}");
    }
    // What is gone stays gone, and what is there stays there.
    assert_eq!(broker.stop().0, Some(0));
    let broker = Broker::start(dir.path());
    let (mut host, _) =
        LocalGuest::greet(&broker.root.join("castra.sock"), "hello vm:host capabilities=bus-v1,host-bus\n");
    let all = ask(&mut host, "groups", "");
    assert_eq!(all["groups"].as_array().unwrap().len(), 1, "{all}");
    assert_eq!(all["groups"][0]["group"], "f");
}

#[test]
fn what_is_refused_of_a_frame_leaves_the_rest_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut member, mut other) = (broker.guest("a"), broker.guest("b"));
    join(&mut member, r#""topic":"t","group":"g","from":"earliest""#);
    for seq in 1..=2 {
        assert_eq!(publish(&mut other, "t"), seq);
        assert_eq!(delivery(&mut member, "g"), (seq, 1));
    }
    let refused = member.ask(r#"{"type":"ack","group":"g","seqs":[1,9,2],"confirm":true}"#);
    assert_eq!((&refused["seq"], code(&refused)), (&json!(9), "not-delivered"));
    let answer = member.receive().unwrap();
    assert_eq!(answer, json!({"type":"ack","ack":"ack","status":"ok","group":"g","events":2}));
    // Where all is refused there is nothing to confirm.
    let refused = member.ask(r#"{"type":"ack","group":"g","seq":1,"confirm":true}"#);
    assert_eq!(code(&refused), "already-done");
    is_quiet(&mut member);
}

#[test]
fn a_member_that_drains_answers_what_it_holds_and_costs_no_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    let (mut member, mut other) = (broker.guest("a"), broker.guest("b"));
    join(&mut member, r#""topic":"t","group":"g","max_in_flight":1,"max_attempts":1,"from":"earliest""#);
    (1..=3).for_each(|seq| assert_eq!(publish(&mut other, "t"), seq));
    assert_eq!(delivery(&mut member, "g"), (1, 1));
    let drained = member.ask(r#"{"type":"unsubscribe","group":"g","drain":true}"#);
    assert_eq!(drained, json!({"type":"ack","ack":"unsubscribe","status":"ok","group":"g","drain":true}));
    // Its answer makes room, and nothing comes into it.
    assert_eq!(say(&mut member, "ack", r#""seq":1"#)["status"], "ok");
    is_quiet(&mut member);
    let shown = member.ask(r#"{"type":"group","group":"g"}"#);
    assert_eq!(json!([shown["members"], shown["held"], shown["cursor"]]), json!([1, 0, 1]), "{shown}");
    let left = member.ask(r#"{"type":"unsubscribe","group":"g"}"#);
    assert_eq!(left, json!({"type":"ack","ack":"unsubscribe","status":"ok","group":"g"}));
    assert_eq!(code(&member.ask(r#"{"type":"unsubscribe","group":"g","drain":true}"#)), "unknown-sub");
    // With one attempt each, a delivery in vain would be the end of them.
    join(&mut other, r#""topic":"t","group":"g","max_in_flight":1"#);
    for seq in 2..=3 {
        assert_eq!(delivery(&mut other, "g"), (seq, 1));
        ack(&mut other, seq);
    }
}
