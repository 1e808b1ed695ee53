//! docs/BUS.md: every hex example decodes to what it says; codes, reasons and limits are the code's.

use crate::markdown::{Block, blocks, code, hex, kebab_literals, read, root, table, ticked};
use bytes::BytesMut;
use castra::core::config::{SETTINGS, Setting, Settings};
use castra::core::counters::Counters;
use castra::core::end::End;
use castra::core::event::{Batch, Publish};
use castra::core::identity::{Role, VmName};
use castra::core::limits;
use castra::core::policy::{Denied, Rules};
use castra::core::refusal::Refusal;
use castra::core::session::state::{Input, State};
use castra::core::signals::Signal;
use castra::core::topic::Pattern;
use castra::core::wire::codec::FrameCodec;
use castra::core::wire::frame::{self, Frame};
use castra::core::wire::handshake::{BUS_V1, HelloError, parse_hello, take_line};
use castra::core::wire::{group, latest, subscribe};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tokio_util::codec::Decoder;

const DOC: &str = "docs/BUS.md";

/// What may be said to a guest, or be recorded, stands in these files.
const SOURCES: [&str; 29] = [
    "src/core/bus.rs",
    "src/core/event.rs",
    "src/core/event/fields.rs",
    "src/core/event/string.rs",
    "src/core/policy.rs",
    "src/core/session/mod.rs",
    "src/core/session/publishing.rs",
    "src/core/session/subscribing.rs",
    "src/core/delivery/mod.rs",
    "src/core/delivery/subscription.rs",
    "src/core/owed.rs",
    "src/core/end.rs",
    "src/core/signals.rs",
    "src/core/door/mod.rs",
    "src/core/wire/codec.rs",
    "src/core/wire/frame.rs",
    "src/core/wire/handshake.rs",
    "src/core/wire/subscribe.rs",
    "src/core/wire/group.rs",
    "src/core/wire/manage.rs",
    "src/core/session/grouping.rs",
    "src/core/delivery/groups/members.rs",
    "src/core/delivery/groups/mod.rs",
    "src/core/delivery/groups/stages.rs",
    "src/core/latest/answer.rs",
    "src/core/latest/state.rs",
    "src/core/latest/snapshot.rs",
    "src/core/wire/latest.rs",
    "src/core/session/asking.rs",
];

#[test]
fn every_hex_example_decodes_to_what_it_says() {
    let blocks = blocks(&read(DOC));
    let mut seen = BTreeSet::new();
    let mut published = Vec::new();
    for pair in blocks.windows(2).filter(|pair| pair[0].tag == "hex") {
        let bytes = hex(&pair[0]);
        match pair[1].tag.as_str() {
            "json" => frames(&pair[1], &bytes, &mut published, &mut seen),
            "text" if bytes == pair[1].text.as_bytes() => lines(&pair[1], &bytes, &mut seen),
            "text" => {
                let error = FrameCodec.decode(&mut BytesMut::from(&bytes[..])).expect_err("broken framing");
                let reason = End::from(error).reason();
                assert_eq!(reason, pair[1].text.trim(), "{DOC}:{}", pair[0].line);
                seen.insert(reason.to_owned());
            }
            other => {
                panic!("{DOC}:{}: a hex block is followed by json or text, not by {other:?}", pair[0].line)
            }
        }
    }
    for kind in [
        "hello",
        "publish",
        "events",
        "subscribe",
        "unsubscribe",
        "event",
        "delivery",
        "nack",
        "ack of a member",
        "group_seek",
        "gap",
        "latest",
        "state",
        "unsubscribed",
        "heartbeat",
        "forget",
        "ack ok",
        "ack duplicate",
        "ack error",
        "close",
        "frame-empty",
        "frame-too-large",
    ] {
        assert!(seen.contains(kind), "{DOC} has no example of {kind}: {seen:?}");
    }
}

/// Lines of the handshake, as they are.
fn lines(said: &Block, bytes: &[u8], seen: &mut BTreeSet<String>) {
    if said.text.starts_with("hello ") {
        let (line, taken) = take_line(bytes).unwrap().expect("a whole line");
        assert_eq!(taken, bytes.len(), "{DOC}:{}", said.line);
        assert!(parse_hello(line).unwrap().has(BUS_V1));
        seen.insert("hello".into());
        return;
    }
    for line in said.text.lines() {
        let banner = format!("castra-broker {} ready", env!("CARGO_PKG_VERSION"));
        let token = line
            .strip_prefix("ok session=")
            .is_some_and(|t| t.len() == 32 && t.bytes().all(|b| b.is_ascii_hexdigit()));
        assert!(
            line == banner || line == "ok" || token,
            "{DOC}:{}: {line:?} is no line of a broker",
            said.line
        );
    }
}

/// Frames of either side. What the broker says is written anew by its own functions, from the frames
/// that stand before it.
fn frames(said: &Block, bytes: &[u8], published: &mut Vec<String>, seen: &mut BTreeSet<String>) {
    let mut stream = BytesMut::from(bytes);
    for want in said.text.lines() {
        let body = FrameCodec.decode(&mut stream).unwrap().expect("a whole frame");
        assert_eq!(std::str::from_utf8(&body).unwrap(), want, "{DOC}:{}", said.line);
        let value: Value = serde_json::from_str(want).unwrap();
        let mut again = Vec::new();
        let text = |field: &str| value[field].as_str().unwrap_or_default();
        match (text("type"), text("status")) {
            // What a member of a group says.
            ("ack", "") => {
                seen.insert("ack of a member".into());
                assert!(matches!(frame::parse(&body), Ok(Frame::Word(_))));
                continue;
            }
            ("ack", "ok") => {
                seen.insert("ack ok".into());
                if value["duplicate"] == true {
                    seen.insert("ack duplicate".into());
                }
                again_ok(&mut again, &value, published);
            }
            ("ack", _) => {
                seen.insert("ack error".into());
                // The doc says who is refused: the first frame before this ack that gets this very code.
                let refused =
                    published.iter().find_map(|frame| refusal(frame).filter(|(_, r)| r.code == text("code")));
                let (kind, refusal) =
                    refused.unwrap_or_else(|| panic!("{DOC}:{}: no frame before gets {want}", said.line));
                frame::error_ack(&mut again, kind, &refusal, value["seq"].as_u64());
            }
            ("event", _) if value.get("group").is_some() => {
                seen.insert("delivery".into());
                let number = |field: &str| value[field].as_u64().unwrap() as u32;
                let head = group::delivery_head(text("group"), number("attempt"), number("max_attempts"));
                let own = std::str::from_utf8(&head).unwrap().trim_start_matches('{').to_owned();
                subscribe::event(&mut again, &head, (want.replacen(&own, "", 1) + "\n").as_bytes());
            }
            ("event", _) => {
                seen.insert("event".into());
                let head = subscribe::event_head(text("sub"));
                let line =
                    want.replacen(&format!(r#""type":"event","sub":"{}","#, text("sub")), "", 1) + "\n";
                subscribe::event(&mut again, &head, line.as_bytes());
            }
            ("gap", _) => {
                seen.insert("gap".into());
                let number = |field: &str| value[field].as_u64().unwrap();
                subscribe::gap(&mut again, &subscribe::event_head(text("sub")), number("from"), number("to"));
            }
            ("state", _) => {
                seen.insert("state".into());
                subscribe::state_end(&mut again, text("sub"), value["through"].as_u64().unwrap());
            }
            ("unsubscribed", _) => {
                seen.insert("unsubscribed".into());
                let rules = Rules { subscribe: Some(Vec::new()), ..Rules::default() };
                let pattern = Pattern::parse(text("sub")).unwrap();
                let refused = rules.may_subscribe(Role::Guest, &VmName::parse("devbox").unwrap(), &pattern);
                subscribe::unsubscribed(&mut again, text("sub"), &refused.unwrap_err());
            }
            ("close", _) => {
                seen.insert("close".into());
                frame::close(&mut again, text("reason"), value["retry_after_ms"].as_u64().unwrap());
            }
            (kind, _) => {
                let kind = if value.get("events").is_some() { "events" } else { kind };
                seen.insert(kind.to_owned());
                published.push(want.to_owned());
                continue;
            }
        }
        assert_eq!(std::str::from_utf8(&again[4..]).unwrap(), want, "{DOC}:{}", said.line);
    }
    assert!(stream.is_empty(), "{DOC}:{}: bytes are left", said.line);
}

fn again_ok(out: &mut Vec<u8>, ack: &Value, published: &[String]) {
    if let Some(group) = ack["group"].as_str() {
        return match ack["ack"].as_str().unwrap() {
            "subscribe" => {
                let (cursor, created) = (ack["cursor"].as_u64().unwrap(), ack["created"].as_bool().unwrap());
                group::join_ack(out, group, (cursor, created), &[], None);
            }
            kind => group::word_ack(out, kind, group, ack["events"].as_u64().unwrap() as usize),
        };
    }
    match ack["ack"].as_str().unwrap() {
        "heartbeat" => return frame::heartbeat_ack(out),
        "forget" => return frame::forget_ack(out),
        "latest" => {
            let mut events = latest::Events::default();
            for event in ack["events"].as_array().unwrap() {
                assert!(events.add(said_line(event).as_bytes()));
            }
            return events.ack(out, ack["through"].as_u64().unwrap());
        }
        "unsubscribe" => return subscribe::unsubscribe_ack(out, ack["sub"].as_str().unwrap()),
        "subscribe" => {
            let gap = ack["gap"]
                .as_object()
                .map(|gap| (gap["from"].as_u64().unwrap(), gap["to"].as_u64().unwrap()));
            let (sub, next) = (ack["sub"].as_str().unwrap(), ack["next_seq"].as_u64().unwrap());
            if ack["state"].is_u64() || ack["compacted"].is_array() {
                let compacted = ack["compacted"].as_array();
                let compacted: Option<Vec<&str>> =
                    compacted.map(|all| all.iter().map(|one| one.as_str().unwrap()).collect());
                return subscribe::state_ack(out, sub, next, ack["state"].as_u64(), compacted.as_deref());
            }
            return subscribe::subscribe_ack(out, sub, next, gap);
        }
        _ => {}
    }
    if let Some(seqs) = ack["seqs"].as_array() {
        // Which of them is the repeat the ack does not say.
        let seqs = seqs.iter().map(|seq| (seq.as_u64().unwrap(), ack.get("duplicate").is_some()));
        return frame::publish_all_ack(out, seqs);
    }
    for text in published {
        if let Ok(Frame::Publish(publish)) = frame::parse(text.as_bytes())
            && publish.id.as_ref().is_some_and(|id| id.0 == ack["id"].as_str().unwrap())
        {
            let batch = encode("devbox", &publish).unwrap();
            let (seq, repeat) = (ack["seq"].as_u64().unwrap(), ack.get("duplicate").is_some());
            return frame::publish_ack(out, &batch, &batch.drafts()[0], seq, repeat);
        }
    }
    panic!("no publish before has the id of {ack}");
}

/// The line of an event that was parsed: its fields stand in another order then.
fn said_line(event: &Value) -> String {
    let publish = event.to_string();
    let publish: Publish<'_> = serde_json::from_str(&publish).unwrap();
    let batch = encode(event["vm"].as_str().unwrap(), &publish).unwrap();
    let tail = std::str::from_utf8(batch.tail(&batch.drafts()[0])).unwrap();
    format!("{{\"seq\":{},\"ts\":{},{tail}", event["seq"], event["ts"])
}

fn encode(vm: &str, publish: &Publish<'_>) -> Result<Batch, Refusal> {
    let mut batch = Batch::default();
    batch.push(&VmName::parse(vm).unwrap(), publish, |out| out.extend_from_slice(b"an-id"))?;
    Ok(batch)
}

/// How a frame is refused, if it is.
fn refusal(body: &str) -> Option<(&'static str, Refusal)> {
    match frame::parse(body.as_bytes()) {
        Err(refused) => Some(refused),
        Ok(Frame::Publish(publish)) => encode("devbox", &publish).err().map(|refusal| ("publish", refusal)),
        Ok(_) => None,
    }
}

#[test]
fn every_event_line_is_the_encoding_of_its_fields() {
    let blocks = blocks(&read(DOC));
    let examples: Vec<&Block> = blocks.iter().filter(|block| block.tag == "jsonl").collect();
    assert!(!examples.is_empty());
    for line in examples.iter().flat_map(|block| block.text.lines()) {
        let value: Value = serde_json::from_str(line).unwrap();
        let publish: Publish<'_> = serde_json::from_str(line).unwrap();
        let batch = encode(value["vm"].as_str().unwrap(), &publish).unwrap();
        let tail = std::str::from_utf8(batch.tail(&batch.drafts()[0])).unwrap();
        assert_eq!(format!("{line}\n"), format!("{{\"seq\":{},\"ts\":{},{tail}", value["seq"], value["ts"]));
    }
    let fields: Vec<String> =
        table(&read(DOC), "The event").iter().map(|row| ticked(&row[0]).to_owned()).collect();
    let line = examples[0].text.lines().nth(1).unwrap();
    let places: Vec<usize> =
        fields.iter().map(|field| line.find(&format!("\"{field}\":")).expect(field)).collect();
    assert!(places.is_sorted(), "the table's fields are in the order of the encoding: {fields:?}");
}

#[test]
fn codes_and_reasons_are_those_of_the_code() {
    let doc = read(DOC);
    let literals: Vec<(String, String)> = SOURCES.iter().flat_map(|path| kebab_literals(path)).collect();
    assert!(literals.len() > 30, "{literals:?}");
    for (literal, place) in &literals {
        assert!(
            doc.contains(&format!("`{literal}`")),
            "{place}: {literal:?} is not in {DOC}: add it to its table"
        );
    }
    let known: BTreeSet<&str> = literals.iter().map(|(literal, _)| literal.as_str()).collect();
    // One word only: no kebab case to be found by.
    let single = ["draining", "replaced"];
    for title in ["Handshake errors", "Refusals", "Close reasons"] {
        for row in table(&doc, title) {
            let code = ticked(&row[0]);
            assert!(
                known.contains(code) || single.contains(&code),
                "{DOC}: {code:?} ({title}) is nowhere in {SOURCES:?}"
            );
        }
    }
    // Each in its own table.
    let column = |title: &str| -> BTreeSet<String> {
        table(&doc, title).iter().map(|row| ticked(&row[0]).to_owned()).collect()
    };
    for error in [
        HelloError::TooLong,
        HelloError::Empty,
        HelloError::NotUtf8,
        HelloError::NotHello,
        HelloError::BadName,
    ] {
        assert!(column("Handshake errors").contains(error.reason()), "{}", error.reason());
    }
    for denied in [
        Denied::ReservedIdentity,
        Denied::UnknownCid,
        Denied::IdentityMismatch,
        Denied::UnknownVm,
        Denied::NotProven,
        Denied::WrongToken,
        Denied::TokenOverNetwork,
    ] {
        assert!(column("Handshake errors").contains(denied.reason()), "{denied}");
    }
    for (path, marker, title) in [
        ("src/core/end.rs", "End::", "Close reasons"),
        ("src/core/door/mod.rs", "Refused::denied(", "Handshake errors"),
        ("src/core/door/mod.rs", "ok_or(", "Handshake errors"),
        ("src/core/owed.rs", "Refusal::new(", "Refusals"),
        ("src/core/bus.rs", "Refusal::new(", "Refusals"),
        ("src/core/event.rs", "Refusal::new(", "Refusals"),
        ("src/core/wire/frame.rs", "Refusal::new(", "Refusals"),
        ("src/core/wire/subscribe.rs", "Refusal::new(", "Refusals"),
        ("src/core/delivery/mod.rs", "Refusal::new(", "Refusals"),
        ("src/core/delivery/subscription.rs", "Refusal::new(", "Refusals"),
        ("src/core/session/subscribing.rs", "Refusal::new(", "Refusals"),
        ("src/core/policy.rs", "Refusal::new(", "Refusals"),
    ] {
        for code in literals_behind(path, marker) {
            assert!(column(title).contains(&code), "{path}: {code:?} is not in {DOC}, {title}");
        }
    }
    let names: BTreeSet<String> = column("Close reasons");
    assert_eq!(names, literals_behind("src/core/end.rs", "End::"), "{DOC}, Close reasons, and End::reason");
}

#[test]
fn signals_are_those_of_the_code() {
    let said = |signal: Signal| (signal.reason().to_owned(), signal.action().to_owned());
    let ends = table(&read(DOC), "Signals").pop().unwrap();
    assert_eq!((ends[0].as_str(), ticked(&ends[1])), ("a close reason", "disconnect"));
    for end in [End::PeerClosed, End::HeartbeatTimeout, End::JournalFailed] {
        assert_eq!(said(Signal::Ended(end)), (end.reason().to_owned(), "disconnect".to_owned()));
    }
    let listed: Vec<(String, String)> = table(&read(DOC), "Signals")
        .iter()
        .filter(|row| row[0].starts_with('`'))
        .map(|row| (ticked(&row[0]).to_owned(), ticked(&row[1]).to_owned()))
        .collect();
    let signals = [
        Signal::HeartbeatSent,
        Signal::BackPressureEntered,
        Signal::BackPressureLeft,
        Signal::WriteRetry(0),
        Signal::Unsubscribed,
        Signal::StateExpired,
    ];
    assert_eq!(listed, signals.map(said));
    for signal in signals {
        match signal {
            Signal::HeartbeatSent
            | Signal::BackPressureEntered
            | Signal::BackPressureLeft
            | Signal::WriteRetry(_)
            | Signal::Unsubscribed
            | Signal::StateExpired
            | Signal::Ended(_) => {} // A new one goes here, above, and into the table.
        }
    }
    // Each way to end has a counter of its name.
    let counted = serde_json::to_value(Counters::<u64>::default()).unwrap();
    let counted: BTreeSet<&str> =
        counted["disconnects"].as_object().unwrap().keys().map(String::as_str).collect();
    let reasons = table(&read(DOC), "Close reasons");
    assert_eq!(counted, reasons.iter().map(|row| ticked(&row[0])).collect());
}

/// The first literals behind each `marker` (`End::X => "x"`, `Refusal::new("x"`), on its line or the next.
fn literals_behind(path: &str, marker: &str) -> BTreeSet<String> {
    let text: String = code(&root().join(path)).into_iter().map(|(_, line)| line + "\n").collect();
    let mut found = BTreeSet::new();
    for rest in text.split(marker).skip(1) {
        let head = rest.split('"').next().unwrap();
        let arm = head.trim_end().ends_with("=>") && !head.contains('\n');
        if (marker == "End::" && arm) || (marker != "End::" && head.trim().is_empty()) {
            found.extend(rest.split('"').nth(1).map(str::to_owned));
        }
    }
    assert!(!found.is_empty(), "{path}: nothing behind {marker:?}");
    found
}

/// Every row of the table is what the enum does, and everything the enum does is a row.
#[test]
fn the_sessions_states_are_those_of_the_enum() {
    let rows = table(&read(DOC), "The session");
    let rows: Vec<_> = rows.into_iter().filter(|row| row.len() == 3 && row[0] != "–").collect();
    let mut inputs = vec![
        (Input::Granted, "a hello with".to_owned()),
        (Input::Refused, "any other hello".to_owned()),
        (Input::Settled, "the acks that were owed are sent".to_owned()),
        (Input::Closed, "`close` is sent".to_owned()),
    ];
    inputs.extend(End::ALL.map(|end| (Input::Ended(end), format!("`{}`", end.reason()))));
    for state in State::ALL {
        for (input, words) in &inputs {
            let row = rows.iter().find(|row| {
                row[0].split(", ").any(|name| name == state.as_str()) && row[1].contains(words.as_str())
            });
            let next = row.map_or(state.as_str(), |row| row[2].as_str());
            assert_eq!(state.next(*input).as_str(), next, "{DOC}, The session: {state:?}, {input:?}");
        }
    }
}

#[test]
fn limits_are_those_of_limits_rs() {
    let mut numbers: BTreeMap<&str, u64> = [
        ("HELLO_BYTES", limits::HELLO_BYTES as u64),
        ("FRAME_BYTES", limits::FRAME_BYTES as u64),
        ("EVENT_BYTES", limits::EVENT_BYTES as u64),
        ("TOPIC_BYTES", limits::TOPIC_BYTES as u64),
        ("NAME_BYTES", limits::NAME_BYTES as u64),
        ("ID_BYTES", limits::ID_BYTES as u64),
        ("KEY_BYTES", limits::KEY_BYTES as u64),
        ("SEEN_IDS", limits::SEEN_IDS as u64),
        ("SEEN_VMS", limits::SEEN_VMS as u64),
        ("SEEN_BYTES", limits::SEEN_BYTES),
        ("SEEN_ALL", limits::SEEN_ALL as u64),
        ("SEEN_TIME", limits::SEEN_TIME.as_millis() as u64),
        ("SEEN_SHARE", limits::SEEN_SHARE),
        ("INDEX_EVENTS", limits::INDEX_EVENTS as u64),
        ("HEADERS", limits::HEADERS as u64),
        ("HEADER_BYTES", limits::HEADER_BYTES as u64),
        ("TAGS", limits::TAGS as u64),
        ("SID_BYTES", limits::SID_BYTES as u64),
        ("TTL_MS", limits::TTL_MS),
        ("TAG_BYTES", limits::TAG_BYTES as u64),
        ("REACHABLE_MS", limits::REACHABLE_MS as u64),
        ("UNRESPONSIVE_MS", limits::UNRESPONSIVE_MS as u64),
        ("DAMAGE_SHOWN", limits::DAMAGE_SHOWN as u64),
        ("FINDINGS_SHOWN", limits::FINDINGS_SHOWN as u64),
        ("JSON_DEPTH", limits::JSON_DEPTH as u64),
        ("REASON_BYTES", limits::REASON_BYTES as u64),
        ("ACCEPT_QUEUE", limits::ACCEPT_QUEUE as u64),
        ("PIPELINE_EVENTS", limits::PIPELINE_EVENTS as u64),
        ("PIPELINE_BYTES", limits::PIPELINE_BYTES as u64),
        ("FOLLOW_BYTES", limits::FOLLOW_BYTES as u64),
        ("DRAIN_EVENTS", limits::DRAIN_EVENTS as u64),
        ("DRAIN_BYTES", limits::DRAIN_BYTES as u64),
        ("HOST_BEAT", limits::HOST_BEAT.as_millis() as u64),
        ("HOST_SILENCE", limits::HOST_SILENCE.as_millis() as u64),
        ("HOST_STUCK", limits::HOST_STUCK.as_millis() as u64),
        ("HANDLER_ATTEMPTS", u64::from(limits::HANDLER_ATTEMPTS)),
        ("HANDLER_TIME", limits::HANDLER_TIME.as_millis() as u64),
        ("EXEC_LINGER", limits::EXEC_LINGER.as_millis() as u64),
        ("EXEC_LINGERING", limits::EXEC_LINGERING as u64),
        ("GROUP_EVENTS", limits::GROUP_EVENTS as u64),
        ("SUB_BYTES", limits::SUB_BYTES as u64),
        ("PATTERNS", limits::PATTERNS as u64),
        ("PATTERN_TOKENS", limits::PATTERN_TOKENS as u64),
        ("PATTERN_STARS", limits::PATTERN_STARS as u64),
        ("CATCH_UP_TOGETHER", limits::CATCH_UP_TOGETHER as u64),
        ("CHUNK_EVENTS", limits::CHUNK_EVENTS as u64),
        ("CHUNK_BYTES", limits::CHUNK_BYTES as u64),
        ("OUTPUT_BYTES", limits::OUTPUT_BYTES as u64),
        ("CATCH_UP_BYTES", limits::CATCH_UP_BYTES as u64),
        ("CATCH_UP_READS", limits::CATCH_UP_READS as u64),
        ("GROUP_NAME_BYTES", limits::GROUP_NAME_BYTES as u64),
        ("GROUPS", limits::GROUPS as u64),
        ("GROUPS_PER_VM", limits::GROUPS_PER_VM as u64),
        ("GROUPS_BYTES_HELD", limits::GROUPS_BYTES_HELD as u64),
        ("GROUPS_QUEUE_BYTES", limits::GROUPS_QUEUE_BYTES as u64),
        ("GROUP_ANSWERS", limits::GROUP_ANSWERS as u64),
        ("GROUP_NOTE_BYTES", limits::GROUP_NOTE_BYTES as u64),
        ("GROUP_BATCH", limits::GROUP_BATCH.into()),
        ("GROUP_IN_FLIGHT", limits::GROUP_IN_FLIGHT.into()),
        ("GROUP_MEMBER_BYTES", limits::GROUP_MEMBER_BYTES as u64),
        ("GROUP_BYTES_HELD", limits::GROUP_BYTES_HELD as u64),
        ("GROUP_ATTEMPTS", limits::GROUP_ATTEMPTS.into()),
        ("GROUP_ACK_TIMEOUT", limits::GROUP_ACK_TIMEOUT.as_millis() as u64),
        ("ACK_SEQS", limits::ACK_SEQS as u64),
        ("GROUP_WAITING", limits::GROUP_WAITING as u64),
        ("GROUP_LAG_COUNT", limits::GROUP_LAG_COUNT.as_millis() as u64),
        ("GROUPS_COUNT_BYTES", limits::GROUPS_COUNT_BYTES as u64),
        ("GROUP_FAILURES", limits::GROUP_FAILURES as u64),
        ("NACK_DELAY", limits::NACK_DELAY.as_millis() as u64),
        ("NACK_DELAY_LONGEST", limits::NACK_DELAY_LONGEST.as_millis() as u64),
        ("NACK_DELAY_SET", limits::NACK_DELAY_SET.as_millis() as u64),
        ("ROUTER_BYTES", limits::ROUTER_BYTES as u64),
        ("ROUTES_CACHED", limits::ROUTES_CACHED as u64),
        ("SEGMENT_MIN_BYTES", limits::SEGMENT_MIN_BYTES),
        ("BATCH_BYTES", limits::BATCH_BYTES as u64),
        ("COMMIT_BYTES", limits::COMMIT_BYTES as u64),
        ("RESERVED_BYTES", limits::RESERVED_BYTES),
        ("NOTE_BYTES", limits::NOTE_BYTES as u64),
        ("WINDOW_SHARE", limits::WINDOW_SHARE as u64),
        ("LOG_MIN_BYTES", limits::LOG_MIN_BYTES),
        ("LOG_FILES", u64::from(limits::LOG_FILES)),
        ("WRONG_TOKENS", limits::WRONG_TOKENS as u64),
        ("WRONG_TOKENS_OF_NAME", limits::WRONG_TOKENS_OF_NAME as u64),
        ("THROTTLED_PEERS", limits::THROTTLED_PEERS as u64),
        ("EPOCH_BYTES", limits::EPOCH_BYTES as u64),
        ("TOKEN_BYTES", limits::TOKEN_BYTES as u64),
        ("TOKEN_FILE_BYTES", limits::TOKEN_FILE_BYTES as u64),
        ("VM_ENTRIES", limits::VM_ENTRIES as u64),
        ("VM_PATTERNS", limits::VM_PATTERNS as u64),
        ("CONFIG_BYTES", limits::CONFIG_BYTES as u64),
        ("LETTER_BYTES", limits::LETTER_BYTES as u64),
        ("TOPIC_ENTRIES", limits::TOPIC_ENTRIES as u64),
        ("LATEST_BYTES", limits::LATEST_BYTES as u64),
        ("LATEST_WAIT", limits::LATEST_WAIT.as_millis() as u64),
        ("LATEST_KEYS", limits::LATEST_KEYS as u64),
        ("LATEST_ASKED", limits::LATEST_ASKED as u64),
        ("LATEST_ASIDES", limits::LATEST_ASIDES as u64),
        ("LATEST_HOLDS", limits::LATEST_HOLDS),
        ("FOLLOW_KEYS_BYTES", limits::FOLLOW_KEYS_BYTES as u64),
        ("LATEST_ENDED", limits::LATEST_ENDED),
        ("LATEST_ENDED_BYTES", limits::LATEST_ENDED_BYTES),
        ("LETTERS_OF_GROUP", limits::LETTERS_OF_GROUP),
        ("LETTERS", limits::LETTERS),
        ("LETTERS_SHARE", limits::LETTERS_SHARE),
        ("LETTERS_BYTES_LEAST", limits::LETTERS_BYTES_LEAST),
        ("OUTBOX_BYTES", limits::OUTBOX_BYTES),
        ("OUTBOX_AGE", limits::OUTBOX_AGE.as_millis() as u64),
        ("OUTBOX_SENT", limits::OUTBOX_SENT),
        ("OUTBOX_ASIDES", limits::OUTBOX_ASIDES as u64),
        ("OUTBOX_WAITING", limits::OUTBOX_WAITING as u64),
        ("LOCAL_CONNECTIONS", limits::LOCAL_CONNECTIONS as u64),
        ("LOCAL_UNANSWERED", limits::LOCAL_UNANSWERED as u64),
        ("LOCAL_WRITE_TIME", limits::LOCAL_WRITE_TIME.as_millis() as u64),
        ("METRICS_CONNECTIONS", limits::METRICS_CONNECTIONS as u64),
        ("METRICS_REQUEST_BYTES", limits::METRICS_REQUEST_BYTES as u64),
        ("METRICS_TIME", limits::METRICS_TIME.as_millis() as u64),
        ("METRICS_TOPICS", limits::METRICS_TOPICS as u64),
        ("SIGNALS_QUEUED", limits::SIGNALS_QUEUED as u64),
        ("FULL_TIME", limits::FULL_TIME.as_millis() as u64),
        ("PAUSE_FREE", limits::PAUSE_FREE.as_millis() as u64),
        ("AGE_GRACE", limits::AGE_GRACE.as_millis() as u64),
        ("AGE_STEADY", limits::AGE_STEADY.as_millis() as u64),
        ("AGE_STEP", limits::AGE_STEP.as_millis() as u64),
        ("AGE_SAVE", limits::AGE_SAVE.as_millis() as u64),
        ("AGE_MARKS", limits::AGE_MARKS as u64),
        ("AGE_PAUSES", limits::AGE_PAUSES as u64),
        ("SIGNAL_FOLD", limits::SIGNAL_FOLD.as_millis() as u64),
        ("METRICS_GROUPS", limits::METRICS_GROUPS as u64),
        ("GROUPS_SHOWN", limits::GROUPS_SHOWN as u64),
        ("TOPICS_SHOWN", limits::TOPICS_SHOWN as u64),
        ("TOPICS_SHOWN_BYTES", limits::TOPICS_SHOWN_BYTES as u64),
    ]
    .into();
    // What can be set is in the table of settings, under its own name: so a limit that is not there is found.
    for setting in SETTINGS.iter().filter(|setting| setting.section == "limits") {
        numbers.insert(setting.key, default_of(setting));
    }
    let mut listed = BTreeSet::new();
    for row in table(&read(DOC), "Limits") {
        let name = ticked(&row[2]).to_owned();
        let want = numbers.get(name.as_str()).unwrap_or_else(|| panic!("{DOC}: limits.rs has no {name}"));
        assert_eq!(number(&row[1]), *want, "{DOC}, Limits: {name} is {want}");
        assert!(listed.insert(name), "{DOC}, Limits: twice: {row:?}");
    }
    for (line, text) in code(&root().join("src/core/limits.rs")) {
        let text = text.trim();
        let name = text
            .strip_prefix("pub const ")
            .or(text.strip_prefix("pub "))
            .and_then(|rest| rest.split_once(':'));
        if let Some((name, _)) = name {
            assert!(
                listed.contains(name),
                "src/core/limits.rs:{line}: {name} is not in {DOC}, Limits: add it there and here"
            );
        }
    }
}

/// The default of a limit as castra.toml has it: `4096`, `"64 MiB"`, `"7days"` (as ms).
fn default_of(setting: &Setting) -> u64 {
    let text = setting.text(&Settings::default()).unwrap();
    let text = text.trim_matches('"');
    match humantime::parse_duration(text) {
        Ok(time) if text.ends_with(char::is_alphabetic) => time.as_millis() as u64,
        _ => number(text),
    }
}

/// `65,536 bytes`, `64 KiB`, `5 s` (as ms), `4,096`.
fn number(cell: &str) -> u64 {
    let (digits, unit) = cell.split_once(' ').unwrap_or((cell, ""));
    let digits: u64 = digits.replace(',', "").parse().unwrap_or_else(|_| panic!("{cell:?} is no number"));
    digits
        * match unit {
            "" | "bytes" | "ms" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "s" => 1000,
            "d" => 24 * 3600 * 1000,
            _ => panic!("{cell:?} has no unit that is known"),
        }
}
