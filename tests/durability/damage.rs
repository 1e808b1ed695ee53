//! Files that were damaged: a clear refusal, or a start that says what is gone, and all else is readable.

use crate::faults::copy;
use crate::load::{Ledger, Load, Plan, check, compare, lines, log_text, logs_reach, publish_one};
use crate::support::{Broker, castra, eventually};
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

const SMALL: [&str; 2] = ["--segment-bytes", "1048576"];
const PLAN: Plan = Plan { publishers: 3, window: 32, pad: 300 };
const HEADER: u64 = 4096;

/// A state root with some segments that was stopped in order, and one that was killed.
struct Aged {
    _dir: tempfile::TempDir,
    stopped: PathBuf,
    killed: PathBuf,
    ledger: Ledger,
    killed_ledger: Ledger,
}

fn aged() -> Arc<Aged> {
    static AGED: OnceLock<Arc<Aged>> = OnceLock::new();
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        let (stopped, killed) = (dir.path().join("stopped"), dir.path().join("killed"));
        let broker = Broker::start_args(&stopped, &SMALL);
        let load = Load::start(&broker, "aged", PLAN);
        load.reach(7_000);
        let ledger = load.stop();
        assert_eq!(broker.stop().0, Some(0));
        copy(&stopped, &killed);
        let broker = Broker::start_args(&killed, &SMALL);
        let load = Load::start(&broker, "killed", PLAN);
        load.reach(3_000);
        // Behind a rotation there is nothing yet that can be damaged.
        eventually("the middle of a segment", || {
            let newest = segments_in(&killed).pop()?;
            (300_000..700_000).contains(&end(&newest)).then_some(())
        });
        broker.kill();
        let mut killed_ledger = load.join();
        killed_ledger.acked.extend(ledger.acked.clone());
        Arc::new(Aged { _dir: dir, stopped, killed, ledger, killed_ledger })
    };
    AGED.get_or_init(make).clone()
}

fn segments_in(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
    segments.sort();
    segments
}

/// A copy to damage.
struct Case {
    _dir: tempfile::TempDir,
    root: PathBuf,
}

impl Case {
    fn of(root: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("state");
        copy(root, &to);
        Case { _dir: dir, root: to }
    }

    fn stopped() -> Self {
        Self::of(&aged().stopped)
    }

    fn without_logs(self) -> Self {
        fs::remove_dir_all(self.root.join("logs")).unwrap();
        self
    }

    fn segments(&self) -> Vec<PathBuf> {
        let segments = segments_in(&self.root);
        assert!(segments.len() >= 4, "{segments:?}");
        segments
    }

    /// Its segments but for the newest, and the newest that has records.
    fn sealed_and_newest(&self) -> (Vec<PathBuf>, PathBuf) {
        let mut segments = self.segments();
        let newest = segments.pop().unwrap();
        (segments, newest)
    }

    fn start(&self) -> Result<Broker, (Option<i32>, String)> {
        Broker::try_start(&self.root, castra(), &SMALL)
    }

    /// It must not start, with this exit code and these words.
    fn refuses(&self, code: i32, words: &[&str]) {
        let (got, said) = self.start().err().expect("no start");
        assert_eq!(got, Some(code), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
    }

    /// It starts, and nothing acked is gone.
    fn loses_nothing(&self, ledger: &Ledger) -> Broker {
        let broker = self.start().unwrap_or_else(|(code, said)| panic!("exit {code:?}: {said}"));
        let head = check(&self.root, ledger);
        assert_eq!(publish_one(&broker, "after"), head + 1);
        logs_reach(&broker, head + 1);
        broker
    }

    /// It starts, says which events are gone, no others, and those are readable. Events gone, a range each.
    fn says_what_is_gone(&self, ledger: &Ledger) -> Vec<(u64, u64)> {
        let (said, gone) = self.says_no_less_than_is_gone(ledger);
        let overdone: u64 = said.iter().map(|(from, to)| (*to + 1).saturating_sub(*from)).sum();
        assert_eq!(overdone, gone.len() as u64, "said {said:?}, gone {}", gone.len());
        said
    }

    fn says_no_less_than_is_gone(&self, ledger: &Ledger) -> (Vec<(u64, u64)>, HashSet<u64>) {
        let broker = self.start().unwrap_or_else(|(code, said)| panic!("exit {code:?}: {said}"));
        let after = publish_one(&broker, "after");
        assert!(after > ledger.head(), "seq {after} was given to another event already");
        logs_reach(&broker, after);
        let text = log_text(&self.root, "bus");
        let events = lines(&text);
        let have: HashSet<u64> = events.iter().map(|event| event.seq).collect();
        let gone: HashSet<u64> = ledger.acked.keys().copied().filter(|seq| !have.contains(seq)).collect();
        // The sealed segments are read in the background.
        let said = eventually("the damage in the log", || {
            let said = damage(&broker);
            gone.iter().all(|seq| said.iter().any(|(from, to)| (from..=to).contains(&seq))).then_some(said)
        });
        compare(&self.root, ledger, &text, &events, &gone);
        eventually("the damage in the status", || {
            let shown = broker.status()["broker"]["journal"]["damage"].as_array().unwrap().len();
            (said.is_empty() || shown > 0).then_some(())
        });
        assert_eq!(broker.stop().0, Some(0));
        (said, gone)
    }
}

/// The ranges of events that the broker's log calls damaged; the status shows the first of them.
fn damage(broker: &Broker) -> Vec<(u64, u64)> {
    let log = fs::read_to_string(broker.root.join("logs/broker.log")).unwrap_or_default();
    let range = |line: &str| {
        let (_, said) = line.split_once("ERROR journal: damage: journal/")?;
        let seqs = said.split_once("(event")?.1.split_once(')')?.0.trim_start_matches("s").trim_start();
        let (from, to) = seqs.split_once(" to ").unwrap_or((seqs, seqs));
        Some((from.parse().unwrap(), to.parse().unwrap()))
    };
    let mut ranges: Vec<_> = log.lines().filter_map(range).collect();
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

/// Flips one bit.
fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// A place in the event that stands behind this part of them: a bit of a marker or of padding costs no event.
fn in_an_event(path: &Path, part: usize) -> u64 {
    let bytes = fs::read(path).unwrap();
    let payload = b"\"payload\":";
    let events: Vec<usize> =
        bytes.windows(payload.len()).enumerate().filter(|(_, w)| w == payload).map(|(i, _)| i).collect();
    (events[events.len() / part] + payload.len()) as u64
}

fn cut(path: &Path, size: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(size).unwrap();
}

/// Where the records of a segment end: behind its last byte that is not zero.
fn end(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    (bytes.iter().rposition(|b| *b != 0).unwrap() as u64 + 8) & !7
}

#[test]
fn a_flipped_bit_costs_its_event_and_no_other() {
    let aged = aged();
    for place in ["sealed", "first record", "newest", "two"] {
        let case = Case::stopped().without_logs();
        let (sealed, newest) = case.sealed_and_newest();
        match place {
            "sealed" => flip(&sealed[1], in_an_event(&sealed[1], 2)),
            "first record" => flip(&sealed[0], HEADER + 60),
            "newest" => flip(&newest, in_an_event(&newest, 2)),
            _ => {
                flip(&sealed[1], in_an_event(&sealed[1], 3));
                flip(&newest, in_an_event(&newest, 3));
            }
        }
        let gone = case.says_what_is_gone(&aged.ledger);
        assert!((1..=2).contains(&gone.len()), "{place}: {gone:?}");
        assert!(gone.iter().all(|(from, to)| from == to), "{place}: {gone:?}");
    }
}

/// Anything may be hit; `CASTRA_DAMAGE_SEED` replays one case, or `CASTRA_DAMAGE_CASES` from there on.
#[test]
fn whatever_is_hit_is_said() {
    let aged = aged();
    let set = |name| std::env::var(name).ok().map(|number| number.parse::<u64>().unwrap());
    let seed = set("CASTRA_DAMAGE_SEED");
    let cases = set("CASTRA_DAMAGE_CASES").unwrap_or(if seed.is_some() { 1 } else { 16 });
    let first = seed.unwrap_or(1);
    for seed in first..first + cases {
        println!("CASTRA_DAMAGE_SEED={seed}");
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let case = Case::stopped().without_logs();
        let segments = case.segments();
        for _ in 0..1 + random(8) {
            let segment = random(segments.len() as u64) as usize;
            let path = &segments[segment];
            let end = end(path);
            // Nothing vouches for the end of the newest one when the last marker is hit as well.
            let end = if segment + 1 == segments.len() { end / 4 * 3 } else { end };
            let at = HEADER + random(end - HEADER);
            let file = fs::File::options().write(true).open(path).unwrap();
            match random(4) {
                0 => file.write_all_at(&vec![0; random(9000) as usize], at).unwrap(),
                1 => file.write_all_at(&vec![0xff; random(600) as usize], at).unwrap(),
                2 => (0..random(30)).for_each(|_| flip(path, HEADER + random(end - HEADER))),
                _ => flip(path, at),
            }
        }
        case.says_no_less_than_is_gone(&aged.ledger);
    }
}

/// Recovery looks at the newest segment; when its tail was rewritten, the check in the background does too.
#[test]
fn damage_is_said_once() {
    let case = Case::of(&aged().killed);
    let (_, newest) = case.sealed_and_newest();
    flip(&newest, HEADER + 100);
    let broker = case.start().map_err(|(_, said)| said).unwrap();
    let (mut most, since) = (0, std::time::Instant::now());
    while since.elapsed().as_secs() < 1 {
        most = most.max(broker.status()["broker"]["journal"]["damage"].as_array().unwrap().len());
    }
    assert_eq!(most, 1, "{}", broker.status()["broker"]["journal"]["damage"]);
}

#[test]
fn a_range_of_zeros_costs_its_events_and_no_other() {
    let aged = aged();
    for newest in [false, true] {
        let case = Case::stopped().without_logs();
        let (sealed, last) = case.sealed_and_newest();
        let path = if newest { &last } else { &sealed[1] };
        let file = fs::File::options().write(true).open(path).unwrap();
        let at = (HEADER + (end(path) - HEADER) / 2) & !4095;
        file.write_all_at(&[0; 16384], at).unwrap();
        let gone = case.says_what_is_gone(&aged.ledger);
        assert_eq!(gone.len(), 1, "{gone:?}");
    }
}

#[test]
fn a_damaged_header_costs_no_event() {
    for newest in [false, true] {
        let case = Case::stopped().without_logs();
        let (sealed, last) = case.sealed_and_newest();
        flip(if newest { &last } else { &sealed[1] }, 40);
        let broker = case.loses_nothing(&aged().ledger);
        let said = broker.status()["broker"]["journal"]["damage"].to_string();
        assert!(said.contains("its header is damaged"), "{said}");
    }
}

#[test]
fn a_cut_segment_costs_what_was_cut_off() {
    for size in [HEADER, HEADER + 1000, u64::MAX] {
        cut_sealed(&aged(), size);
    }
}

#[test]
fn a_segment_cut_within_its_header_costs_its_events() {
    for size in [4000, 100, 0] {
        cut_sealed(&aged(), size);
    }
}

fn cut_sealed(aged: &Aged, size: u64) {
    let case = Case::stopped().without_logs();
    let (sealed, _) = case.sealed_and_newest();
    cut(&sealed[1], size.min(end(&sealed[1]) / 2));
    let gone = case.says_what_is_gone(&aged.ledger);
    assert_eq!(gone.len(), 1, "{size}: {gone:?}");
}

/// What is behind the cut cannot be known from the journal alone; the logs know it.
#[test]
fn a_cut_newest_segment_is_seen_by_the_logs() {
    for size in [200, HEADER, HEADER + 1000, u64::MAX] {
        let case = Case::stopped();
        let (_, newest) = case.sealed_and_newest();
        cut(&newest, size.min(end(&newest) / 2));
        case.refuses(65, &["a part of the journal is gone", "checkpoint"]);
        // The way out that it names.
        fs::remove_file(case.root.join("logs/checkpoint")).unwrap();
        assert!(case.start().is_ok());
    }
    let case = Case::stopped();
    let (_, newest) = case.sealed_and_newest();
    cut(&newest, 0);
    case.refuses(65, &["no readable header", newest.file_name().unwrap().to_str().unwrap()]);
}

#[test]
fn a_torn_tail_is_cut_and_no_damage() {
    let aged = aged();
    for garbage in [&b"x"[..], &[0xff; 5000], &[0x41; 100_000]] {
        let case = Case::of(&aged.killed);
        let (_, newest) = case.sealed_and_newest();
        let file = fs::File::options().write(true).open(&newest).unwrap();
        file.write_all_at(garbage, end(&newest)).unwrap();
        let broker = case.loses_nothing(&aged.killed_ledger);
        assert_eq!(broker.status()["broker"]["journal"]["damage"], serde_json::json!([]));
    }
    // The marker that vouches for the last batch: the batch is still there.
    let case = Case::stopped();
    let (_, newest) = case.sealed_and_newest();
    flip(&newest, end(&newest) - 9);
    let broker = case.loses_nothing(&aged.ledger);
    assert_eq!(broker.status()["broker"]["journal"]["damage"], serde_json::json!([]));
}

#[test]
fn an_unclean_stop_neither_loses_nor_doubles_log_lines() {
    let aged = aged();
    drop(Case::of(&aged.killed).loses_nothing(&aged.killed_ledger));
    // A second kill right after the start, and another.
    let case = Case::of(&aged.killed);
    for _ in 0..3 {
        case.start().map_err(|(_, said)| said).unwrap().kill();
    }
    drop(case.loses_nothing(&aged.killed_ledger));
}

/// Two segments in each other's place: refused by name, or said and only themselves lost.
fn swapped(a: usize, b: usize) {
    let case = Case::stopped().without_logs();
    let segments = case.segments();
    let (a, b) = (&segments[a % segments.len()], &segments[b % segments.len()]);
    let aside = a.with_extension("aside");
    fs::rename(a, &aside).unwrap();
    fs::rename(b, a).unwrap();
    fs::rename(aside, b).unwrap();
    match case.start() {
        Err((code, said)) => assert!(code == Some(65) && said.contains(".seg"), "{code:?} {said}"),
        Ok(broker) => {
            drop(broker);
            assert!(!case.says_what_is_gone(&aged().ledger).is_empty());
        }
    }
}

#[test]
fn swapped_segments_are_said() {
    swapped(1, 2);
}

#[test]
fn swapped_segments_are_said_when_one_is_the_oldest() {
    swapped(0, 1);
}

#[test]
fn swapped_segments_are_said_when_one_is_the_newest() {
    swapped(1, aged_segments() - 1);
}

fn aged_segments() -> usize {
    Case::stopped().segments().len()
}

#[test]
fn a_segment_that_is_missing_is_said() {
    let aged = aged();
    let case = Case::stopped().without_logs();
    let (sealed, _) = case.sealed_and_newest();
    fs::remove_file(&sealed[1]).unwrap();
    let gone = case.says_what_is_gone(&aged.ledger);
    assert_eq!(gone.len(), 1, "{gone:?}");

    // The newest: only the logs can know.
    let case = Case::stopped();
    let (_, newest) = case.sealed_and_newest();
    fs::remove_file(&newest).unwrap();
    case.refuses(65, &["a part of the journal is gone"]);
}

#[test]
fn segments_that_are_none_of_this_journals_are_refused_by_name() {
    // A folder in the place of one.
    for newest in [false, true] {
        let case = Case::stopped();
        let (sealed, last) = case.sealed_and_newest();
        let path = if newest { last } else { sealed[1].clone() };
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        case.refuses(74, &[path.file_name().unwrap().to_str().unwrap()]);
    }
    // One of another journal.
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other");
    let broker = Broker::start_args(&other, &SMALL);
    publish_one(&broker, "other");
    assert_eq!(broker.stop().0, Some(0));
    let case = Case::stopped();
    let foreign = "00000000000000000001.seg";
    fs::copy(other.join("journal").join(foreign), case.root.join("journal").join(foreign)).unwrap();
    case.refuses(65, &[foreign, "another journal"]);
    // A later version.
    let case = Case::stopped();
    let (_, newest) = case.sealed_and_newest();
    let file = fs::File::options().read(true).write(true).open(&newest).unwrap();
    let mut header = [0; 72];
    file.read_exact_at(&mut header, 0).unwrap();
    header[8] = 9;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[8..12]), &header[16..]);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&header, 0).unwrap();
    case.refuses(65, &["format version 9"]);
}

#[test]
fn the_format_file_is_needed() {
    let case = Case::stopped();
    let format = case.root.join("format");
    let text = fs::read_to_string(&format).unwrap();
    for (damaged, words) in [
        ("", "is damaged"),
        ("\0\0\0\0", "is damaged"),
        ("{\"format\":1}", "is damaged"),
        ("{\"format\":99,\"journal\":\"x\"}", "has format 99"),
    ] {
        fs::write(&format, damaged).unwrap();
        case.refuses(65, &["format", words]);
    }
    fs::remove_file(&format).unwrap();
    case.refuses(65, &["format", "missing"]);
    fs::write(&format, text).unwrap();
    case.loses_nothing(&aged().ledger);
}

#[test]
fn a_checkpoint_that_is_wrong() {
    let ledger = &aged().ledger;
    for garbage in ["", "\0\0\0", "{\"logs_seq\":-1}", "{\"logs_seq\":\"7\"}", "no json", "{\"logs_seq\":3}"]
    {
        let case = Case::stopped();
        fs::write(case.root.join("logs/checkpoint"), garbage).unwrap();
        case.loses_nothing(ledger);
    }
    let case = Case::stopped();
    fs::write(case.root.join("logs/checkpoint"), format!("{{\"logs_seq\":{}}}", u64::MAX)).unwrap();
    case.refuses(65, &["a part of the journal is gone", "checkpoint"]);
}

#[test]
fn logs_that_are_damaged_are_written_anew_from_the_journal() {
    let aged = aged();
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    type Harm = fn(&Path, u64);
    let harms: [(&str, Harm); 6] = [
        ("half a line at the end", |path, size| cut(path, size - 20)),
        ("half of it", |path, size| cut(path, size / 2)),
        ("zeros at the end", |path, size| cut(path, size + 5000)),
        ("garbage at the end", |path, size| {
            fs::File::options().write(true).open(path).unwrap().write_all_at(&[0xfe; 3000], size).unwrap();
        }),
        ("a line that never was", |path, size| {
            let line =
                b"{\"seq\":99999999,\"ts\":1,\"id\":\"x\",\"vm\":\"vm0\",\"topic\":\"t\",\"payload\":0}\n";
            fs::File::options().write(true).open(path).unwrap().write_all_at(line, size).unwrap();
        }),
        ("one byte more", |path, size| cut(path, size + 1)),
    ];
    for (name, harm) in harms {
        for log in ["bus.log", "vm1.log"] {
            let case = Case::stopped();
            let path = case.root.join("logs/bus").join(log);
            harm(&path, size(&path));
            println!("{log}: {name}");
            drop(case.loses_nothing(&aged.ledger));
        }
    }
    // Whoever removes all logs with their checkpoint has them again.
    drop(Case::stopped().without_logs().loses_nothing(&aged.ledger));
    // A log that was removed begins where the others go on.
    let case = Case::stopped();
    fs::remove_file(case.root.join("logs/bus/vm1.log")).unwrap();
    let broker = case.start().map_err(|(_, said)| said).unwrap();
    assert!(!case.root.join("logs/bus/vm1.log").exists());
    let ack = broker.guest("vm1").ask("{\"type\":\"publish\"}");
    logs_reach(&broker, ack["seq"].as_u64().unwrap());
    assert_eq!(broker.log("vm1").len(), 1);
    // A folder in its place.
    let case = Case::stopped();
    fs::remove_file(case.root.join("logs/bus/vm1.log")).unwrap();
    fs::create_dir(case.root.join("logs/bus/vm1.log")).unwrap();
    case.refuses(74, &["vm1.log"]);
}

#[test]
fn other_files_of_the_state_root() {
    let ledger = &aged().ledger;
    // Views that are written anew.
    for garbage in [&b""[..], b"garbage", &[0; 131_072], &[0xff; 131_072]] {
        let case = Case::stopped();
        fs::write(case.root.join("status"), garbage).unwrap();
        let broker = case.loses_nothing(ledger);
        assert_eq!(broker.status()["broker"]["state"], "running");
    }
    // What is nobody's business.
    let case = Case::stopped();
    fs::write(case.root.join("journal/notes.txt"), "x").unwrap();
    fs::write(case.root.join("logs/bus/notes.txt"), "x").unwrap();
    fs::write(case.root.join("logs/checkpoint.new"), "x").unwrap();
    fs::write(case.root.join("journal/spare.new"), "x").unwrap();
    fs::write(case.root.join("journal/spare.0"), [1; 1 << 20]).unwrap();
    drop(case.loses_nothing(ledger));
    // A file where a folder must be.
    for dir in ["journal", "logs/bus", "handshakes"] {
        let case = Case::stopped();
        fs::remove_dir_all(case.root.join(dir)).unwrap();
        fs::write(case.root.join(dir), "x").unwrap();
        case.refuses(73, &[dir]);
    }
    // Folders where files must be.
    for file in ["format", "broker.lock", "status"] {
        let case = Case::stopped();
        fs::remove_file(case.root.join(file)).unwrap();
        fs::create_dir(case.root.join(file)).unwrap();
        case.refuses(74, &[file]);
    }
    if nix::unistd::geteuid().is_root() {
        let case = Case::stopped();
        std::os::unix::fs::chown(&case.root, Some(12345), None).unwrap();
        case.refuses(77, &["belongs to uid 12345"]);
    }
}
