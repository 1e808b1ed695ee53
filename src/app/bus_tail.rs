//! `castra bus tail`: prints the logs, and follows them across rotation. Reads files and nothing else.

use super::{Exit, Failure};
use crate::cli::{Output, TailArgs};
use crate::core::events::rotated;
use crate::core::identity::VmName;
use crate::core::limits::LOG_FILES;
use crate::core::state_root::StateRoot;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// A log that is followed is looked at so often.
const LOOK: Duration = Duration::from_millis(50);
const STEP: u64 = 64 * 1024;

#[derive(Deserialize)]
struct Line<'a> {
    seq: u64,
    ts: u64,
    vm: &'a str,
    topic: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

pub fn run(root: &StateRoot, args: &TailArgs) -> Result<Exit, Failure> {
    let name = match &args.vm {
        None => "bus".to_owned(),
        Some(vm) => VmName::parse(vm).map_err(|e| Failure::new(Exit::BadData, e.to_string()))?.to_string(),
    };
    let path = root.bus_logs().join(format!("{name}.log"));
    let mut out = BufWriter::new(io::stdout().lock());
    let (lines, mut place) = last_lines(&path, args.lines)?;
    if place.is_none() && !args.follow {
        let why = format!("there is no log {} yet; it begins with the first event", path.display());
        return Err(Failure::new(Exit::Degraded, why));
    }
    for line in &lines {
        print(&mut out, line, args.output)?;
    }
    out.flush()?;
    let found = !lines.is_empty();
    if !args.follow {
        return Ok(if found { Exit::Ok } else { Exit::Degraded });
    }
    let mut partial = Vec::new();
    loop {
        let more = match &mut place {
            None => {
                place = File::open(&path).ok();
                place.is_some()
            }
            Some(file) => {
                let read = file.read_to_end(&mut partial)?;
                read > 0
            }
        };
        if let Some(end) = partial.iter().rposition(|b| *b == b'\n') {
            for line in partial[..end].split(|b| *b == b'\n') {
                print(&mut out, line, args.output)?;
            }
            partial.drain(..=end);
            out.flush()?;
        }
        if !more {
            if let Some(next) = place.as_ref().and_then(|file| successor(file, &path)) {
                // Nothing is written to a rotated file: what it has was read, but for this last look.
                if let Some(file) = &mut place {
                    file.read_to_end(&mut partial)?;
                }
                if !partial.contains(&b'\n') {
                    partial.clear();
                    place = Some(next);
                }
                continue;
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// The file that follows the open one: the rotated one before it in age, or the log itself.
fn successor(file: &File, path: &Path) -> Option<File> {
    let inode = |path: &Path| std::fs::metadata(path).ok().map(|m| m.ino());
    let own = file.metadata().ok()?;
    if inode(path) == Some(own.ino()) {
        // Cut by a broker that completes the logs: read on from the new end.
        return (own.len() < position(file)?).then(|| reopen_at_end(path)).flatten();
    }
    let chain: Vec<PathBuf> = (1..=LOG_FILES).map(|n| rotated(path, n)).collect();
    match chain.iter().position(|p| inode(p) == Some(own.ino())) {
        Some(0) | None => File::open(path).ok(),
        Some(n) => File::open(&chain[n - 1]).ok(),
    }
}

fn position(mut file: &File) -> Option<u64> {
    file.stream_position().ok()
}

fn reopen_at_end(path: &Path) -> Option<File> {
    let mut file = File::open(path).ok()?;
    file.seek(SeekFrom::End(0)).ok()?;
    Some(file)
}

/// The last `n` whole lines of a log and its rotated files, and the log, open behind them.
fn last_lines(path: &Path, n: usize) -> io::Result<(VecDeque<Vec<u8>>, Option<File>)> {
    let mut lines = VecDeque::new();
    let mut newest = None;
    for path in std::iter::once(path.to_owned()).chain((1..=LOG_FILES).map(|n| rotated(path, n))) {
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let end = read_backwards(&mut file, n, &mut lines)?;
        if newest.is_none() {
            file.seek(SeekFrom::Start(end))?;
            newest = Some(file);
        }
        if lines.len() >= n {
            break;
        }
    }
    Ok((lines, newest))
}

/// Puts whole lines before those that are there, from the file's end, until there are `n`; where the
/// file's last whole line ends.
fn read_backwards(file: &mut File, n: usize, lines: &mut VecDeque<Vec<u8>>) -> io::Result<u64> {
    let (mut at, mut bytes) = (file.metadata()?.len(), Vec::new());
    let mut whole_end = None;
    loop {
        // `bytes` begins at `at`; the last whole line in it ends at its end once `whole_end` is known.
        if whole_end.is_none()
            && let Some(last) = bytes.iter().rposition(|b| *b == b'\n')
        {
            bytes.truncate(last + 1);
            whole_end = Some(at + bytes.len() as u64);
        }
        while whole_end.is_some() && lines.len() < n && !bytes.is_empty() {
            let start = bytes[..bytes.len() - 1].iter().rposition(|b| *b == b'\n').map(|i| i + 1);
            let Some(start) = start.or((at == 0).then_some(0)) else { break };
            lines.push_front(bytes[start..bytes.len() - 1].to_vec());
            bytes.truncate(start);
        }
        if at == 0 || (lines.len() >= n && whole_end.is_some()) {
            return Ok(whole_end.unwrap_or(0));
        }
        let from = at.saturating_sub(STEP);
        let mut more = vec![0; (at - from) as usize];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(&mut more)?;
        more.extend_from_slice(&bytes);
        (at, bytes) = (from, more);
    }
}

fn print(out: &mut impl Write, line: &[u8], output: Output) -> Result<(), Failure> {
    let parsed = || serde_json::from_slice::<Line<'_>>(line).ok();
    match output {
        Output::Json => out.write_all(line)?,
        Output::Raw => match parsed() {
            Some(event) => out.write_all(event.payload.get().as_bytes())?,
            None => return Ok(()),
        },
        Output::Text => match parsed() {
            Some(event) => {
                let time = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(event.ts));
                write!(out, "{time} {} {} {} {}", event.seq, event.vm, event.topic, event.payload)?;
            }
            None => out.write_all(line)?,
        },
    }
    Ok(out.write_all(b"\n")?)
}
