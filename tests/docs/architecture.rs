//! docs/ARCHITECTURE.md: byte maps, threads and exit codes are the code's.

use crate::markdown::{blocks, code, hex, read, root, table};
use castra::core::event::Layout;
use castra::core::journal::notes::{Class, Trail};
use castra::core::journal::record::{self, Decoded, HEAD_BYTES, Head, Kind};
use castra::core::journal::segment::{HEADER_BYTES, Header, VERSION};
use std::path::{Path, PathBuf};

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
            "notes crc" => {
                let crc = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
                crc32c::crc32c_append(crc, &bytes[72..88]).to_le_bytes().into()
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
            "class of a note" => vec![0],
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
    {
        bytes.clear();
        record::encode(&mut bytes, 7, &Head { kind, ..head }, [b"", b""]);
        assert_eq!((bytes[40], bytes[47]), want, "{kind:?}");
    }
    let text = read(DOC);
    assert!(text.contains("at most 61,440 bytes") && castra::core::limits::NOTE_BYTES == 61_440);
    assert!(text.contains("multiple of 8 bytes") && record::ALIGN == 8);
    assert!(text.contains("at most 61,441 bytes") && record::BODY_BYTES == 61_441);
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
    assert_eq!(named.len(), 10, "{named:?}");
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
