//! docs/ARCHITECTURE.md: byte maps, threads and exit codes are the code's.

use crate::markdown::{blocks, code, hex, read, root, table};
use castra::core::event::{Batch, Layout, Publish, Text};
use castra::core::identity::VmName;
use castra::core::journal::disk::RealDisk;
use castra::core::journal::notes::{Class, Trail};
use castra::core::journal::record::{self, Decoded, HEAD_BYTES, Head, Kind};
use castra::core::journal::segment::{HEADER_BYTES, Header, VERSION, segment_name};
use castra::core::journal::{Opened, spare};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DOC: &str = "docs/ARCHITECTURE.md";

/// Each field of a byte map: its first word or two before `:` or `,`, and its bytes. They follow each other.
fn byte_map(title: &str) -> Vec<(String, std::ops::Range<usize>)> {
    let mut end = 0;
    let mut fields = Vec::new();
    for row in table(&read(DOC), title) {
        let at: usize = row[0].parse().unwrap();
        assert_eq!(at, end, "{DOC}, {title}: {row:?} does not follow the field before it");
        let Ok(bytes) = row[1].parse::<usize>() else {
            fields.push((row[2].clone(), at..at));
            break;
        };
        end = at + bytes;
        let name = row[2].split([':', ',', ';']).next().unwrap().to_owned();
        fields.push((name, at..end));
    }
    fields
}

#[test]
fn a_segments_header_is_as_mapped() {
    let header = Header {
        journal: 0x0102 << 100,
        first_lsn: 11,
        first_seq: 12,
        synced_lsn: 13,
        synced_seq: 14,
        ts: 15,
        notes: Trail { from: 16, open: 17 },
        ids: Trail { from: 18, open: 19 },
    };
    let bytes = header.encode();
    for (name, at) in byte_map("Segment header") {
        let want: Vec<u8> = match name.as_str() {
            "magic" => b"castra\0J".to_vec(),
            "version of the format" => VERSION.to_le_bytes().into(),
            "crc" => {
                crc32c::crc32c_append(crc32c::crc32c(&bytes[8..12]), &bytes[16..72]).to_le_bytes().into()
            }
            "journal id" => header.journal.to_le_bytes().into(),
            "first lsn" => header.first_lsn.to_le_bytes().into(),
            "first seq" => header.first_seq.to_le_bytes().into(),
            "synced lsn" => header.synced_lsn.to_le_bytes().into(),
            "synced seq" => header.synced_seq.to_le_bytes().into(),
            "ts" => header.ts.to_le_bytes().into(),
            "notes lsn" => header.notes.from.to_le_bytes().into(),
            "snapshot lsn" => header.notes.open.to_le_bytes().into(),
            "ids lsn" => header.ids.from.to_le_bytes().into(),
            "ids snapshot lsn" => header.ids.open.to_le_bytes().into(),
            "notes crc" => {
                let crc = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
                crc32c::crc32c_append(crc, &bytes[72..104]).to_le_bytes().into()
            }
            other => panic!("{DOC}: a segment's header has no {other:?}"),
        };
        assert_eq!(bytes[at.clone()], want, "{DOC}, Segment header: {name} at {at:?}");
    }
    assert_eq!(byte_map("Segment header").last().unwrap().1.end, bytes.len());
    assert!(read(DOC).contains("The first 4,096 bytes.") && HEADER_BYTES == 4096);
}

#[test]
fn a_record_is_as_mapped() {
    let layout = Layout { vm_at: 0x1122, vm_len: 0x33, topic_len: 0x4455, own_id: true, expires: false };
    let head = Head { lsn: 21, seq: 22, ts: 23, synced: 20, kind: Kind::Event, joined: true, layout };
    let mut bytes = Vec::new();
    record::encode(&mut bytes, 7, &head, [b"ab", b"c"]);
    for (name, at) in byte_map("Record") {
        let want: Vec<u8> = match name.as_str() {
            "crc" => crc32c::crc32c_append(7, &bytes[4..HEAD_BYTES + 3]).to_le_bytes().into(),
            "length of the body" => 3u32.to_le_bytes().into(),
            "lsn" => head.lsn.to_le_bytes().into(),
            "seq" => head.seq.to_le_bytes().into(),
            "ts" => head.ts.to_le_bytes().into(),
            "synced" => head.synced.to_le_bytes().into(),
            "kind" => vec![1],
            "flags" => vec![1 | 2],
            "vm at" => layout.vm_at.to_le_bytes().into(),
            "topic length" => layout.topic_len.to_le_bytes().into(),
            "vm length" => vec![layout.vm_len],
            "class of a note" | "class of a note, or of ids" => vec![0],
            body if body.starts_with("body") => {
                assert_eq!((at.start, &bytes[at.start..]), (HEAD_BYTES, &b"abc\0\0\0\0\0"[..]));
                continue;
            }
            other => panic!("{DOC}: a record has no {other:?}"),
        };
        assert_eq!(bytes[at.clone()], want, "{DOC}, Record: {name} at {at:?}");
    }
    let classes = [Class::Change, Class::SnapshotBegin, Class::SnapshotPart, Class::SnapshotEnd];
    for (kind, want) in [(Kind::Marker, (2, 0))]
        .into_iter()
        .chain(classes.into_iter().zip(1..).map(|(class, number)| (Kind::Note(class), (3, number))))
        .chain(classes.into_iter().zip(1..).map(|(class, number)| (Kind::Ids(class), (4, number))))
    {
        bytes.clear();
        record::encode(&mut bytes, 7, &Head { kind, ..head }, [b"", b""]);
        assert_eq!((bytes[40], bytes[47]), want, "{kind:?}");
    }
    let text = read(DOC);
    assert!(text.contains("at most 61,440 bytes") && castra::core::limits::NOTE_BYTES == 61_440);
    assert!(text.contains("multiple of 8 bytes") && record::ALIGN == 8);
    assert!(text.contains("at most 64,961 bytes") && record::BODY_BYTES == 64_961);
}

/// A segment that begins with a snapshot of ids, and the index of the one before it, as they are on a disk.
#[test]
fn ids_are_as_mapped() {
    const JOURNAL: u128 = 77;
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::new(dir.path()));
    let opened = Opened::open(disk.clone(), JOURNAL, 1 << 20).unwrap();
    let mut writer = opened.into_writer();
    for (turn, ids) in [["a", "b"], ["c", "d"]].into_iter().enumerate() {
        writer.rotate(spare::make(&*disk, 1 << 20, turn).unwrap()).unwrap();
        let mut batch = Batch::default();
        for id in ids {
            let publish = Publish { id: Some(Text(id.into())), ..Publish::default() };
            batch.push(&VmName::parse("web").unwrap(), &publish, |_| {}).unwrap();
        }
        writer.push(&batch, 1);
        writer.commit().unwrap();
    }
    writer.mark().unwrap();
    drop(writer);
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let bytes = read(&segment_name(3));
    let (mut at, mut bodies) = (HEADER_BYTES as usize, Vec::new());
    while let Decoded::Record(head, body, size) = record::decode(&bytes[at..], record::salt(JOURNAL, 3)) {
        let Kind::Ids(class) = head.kind else { break };
        bodies.push((class, body.to_vec()));
        at += size;
    }
    let [(Class::SnapshotBegin, begin), (Class::SnapshotPart, part), (Class::SnapshotEnd, end)] = &bodies[..]
    else {
        panic!("{bodies:?}")
    };
    assert!(end.is_empty());
    let map = byte_map("Snapshot of ids: its begin");
    assert_eq!((map[0].0.as_str(), map[0].1.clone()), ("key", 0..16));
    assert_eq!((map[1].0.as_str(), &begin[map[1].1.clone()]), ("VMs", &1u32.to_le_bytes()[..]));
    assert_eq!((map.len(), map[1].1.end), (2, begin.len()));
    let [hash, seq] = &byte_map("Snapshot of ids: an id")[..] else { panic!() };
    assert_eq!((hash.0.as_str(), seq.0.as_str()), ("hash", "seq"));
    assert_eq!(part[..6], *b"\x03web\x02\0");
    let key: &[u8; 16] = begin[..16].try_into().unwrap();
    for ((id, number), text) in part[6..].chunks(24).zip(1u64..).zip(["a\"web", "b\"web"]) {
        let want = siphasher::sip128::SipHasher13::new_with_key(key).hash(text.as_bytes());
        assert_eq!(id[hash.1.clone()], [want.h1.to_le_bytes(), want.h2.to_le_bytes()].concat());
        assert_eq!(id[seq.1.clone()], number.to_le_bytes());
    }

    let opened = Opened::open(disk, JOURNAL, 1 << 20).unwrap();
    assert_eq!(opened.seq_after_id("b", Some("web")).unwrap(), Some(3));
    let (segment, bytes) = (read(&segment_name(1)), read(&segment_name(1).replace("seg", "ids")));
    assert_eq!(bytes.len(), 4096);
    let sip = |text: &[u8]| siphasher::sip::SipHasher13::new_with_key(&JOURNAL.to_le_bytes()).hash(text);
    for (name, at) in byte_map("Index of ids") {
        let want: Vec<u8> = match name.as_str() {
            "crc" => crc32c::crc32c_append(record::salt(JOURNAL, 1), &bytes[4..]).to_le_bytes().into(),
            "version" | "blocks" => 1u32.to_le_bytes().into(),
            "number of the block" | "zeros" => vec![0; 4],
            "end" => 3u64.to_le_bytes().into(),
            "entries" => 2u32.to_le_bytes().into(),
            "hash of the id" => sip(b"a").min(sip(b"b")).to_le_bytes().into(),
            "hash of the VM" => (sip(b"web") as u32).to_le_bytes().into(),
            "place" => {
                let place = u32::from_le_bytes(bytes[at].try_into().unwrap()) as usize * 8;
                let found = record::decode(&segment[place..], record::salt(JOURNAL, 1));
                assert!(matches!(found, Decoded::Record(head, ..) if head.kind == Kind::Event), "{found:?}");
                continue;
            }
            "the next entry" => {
                assert_eq!(bytes[at.start..at.start + 8], sip(b"a").max(sip(b"b")).to_le_bytes());
                continue;
            }
            other => panic!("{DOC}: an index has no {other:?}"),
        };
        assert_eq!(bytes[at.clone()], want, "{DOC}, Index of ids: {name} at {at:?}");
    }
}

#[test]
fn the_example_record_decodes() {
    let blocks = blocks(&read(DOC));
    let pair = blocks.windows(2).find(|pair| pair[0].tag == "hex").unwrap();
    let bytes = hex(&pair[0]);
    let Decoded::Record(head, body, size) = record::decode(&bytes, record::salt(1, 1)) else {
        panic!("{DOC}: no record")
    };
    assert_eq!((head.lsn, head.seq, head.synced, size), (1, 1, 0, bytes.len()));
    assert_eq!(std::str::from_utf8(body).unwrap(), pair[1].text);
    assert_eq!((&body[head.layout.vm()], &body[head.layout.topic()]), (&b"devbox"[..], &b"build.done"[..]));
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_thread_is_listed() {
    let listed: Vec<String> =
        table(&read(DOC), "Threads and channels").into_iter().map(|row| row[0].clone()).collect();
    let (mut files, mut named) = (Vec::new(), Vec::new());
    sources(&root().join("src"), &mut files);
    for path in files {
        for (number, line) in code(&path) {
            // The names of threads, and nothing else, are written so.
            for literal in line
                .split('"')
                .skip(1)
                .step_by(2)
                .filter(|l| l.starts_with("castra-") && line.contains(".name("))
            {
                let place = format!("{}:{number}", path.display());
                assert!(
                    listed.contains(&format!("`{literal}`")),
                    "{place}: the thread {literal} is not in {DOC}: add its row"
                );
                named.push(literal.to_owned());
            }
        }
    }
    for row in listed.iter().filter_map(|name| name.strip_prefix("`castra-")) {
        let name = format!("castra-{}", row.trim_end_matches('`').split('`').next().unwrap());
        assert!(named.contains(&name) || row.contains(' '), "{DOC}: no thread is called {name}");
    }
    assert_eq!(named.len(), 14, "{named:?}");
}

#[test]
fn exit_codes_are_those_of_the_command_line() {
    use clap::CommandFactory;
    let help = castra::cli::Cli::command().render_long_help().to_string();
    let codes = help.split("Exit codes: ").nth(1).expect("the help says exit codes").replace('\n', " ");
    for row in table(&read(DOC), "Exit codes") {
        let words: Vec<&str> = row[1].split([',', ' ']).filter(|w| !w.is_empty()).collect();
        assert!(
            codes.contains(&format!("{} {}", row[0], words[0])),
            "{DOC}: {row:?} is not in the help: {codes}"
        );
    }
    assert_eq!(table(&read(DOC), "Exit codes").len(), codes.matches(", ").count() + 1, "{codes}");
}
