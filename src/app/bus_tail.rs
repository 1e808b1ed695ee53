//! `castra bus tail`: prints the logs, and follows them across rotation. Reads files and nothing else.

use super::{Exit, Failure};
use crate::cli::{Output, TailArgs};
use crate::core::events::rotated;
use crate::core::identity::VmName;
use crate::core::limits::LOG_FILES;
use crate::core::log_files::line_seq;
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
/// So much of a log that is followed is taken at a time.
const READ: u64 = 1024 * 1024;

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
        Some(vm) => {
            VmName::parse(vm).map_err(|e| Failure::new(Exit::BadData, "bad-name", e.to_string()))?.to_string()
        }
    };
    let path = root.bus_logs().join(format!("{name}.log"));
    let mut out = BufWriter::new(io::stdout().lock());
    // One at least, so that what is followed has a seq to begin behind.
    let (lines, mut place) = last_lines(&path, args.lines.max(1))?;
    let mut seen = lines.back().and_then(|line| line_seq(line)).unwrap_or(0);
    if place.is_none() && !args.follow {
        let why = format!("there is no log {} yet; it begins with the first event", path.display());
        return Err(Failure::new(Exit::Degraded, "no-log", why));
    }
    for line in lines.iter().skip(lines.len().saturating_sub(args.lines)) {
        print(&mut out, line, args.output)?;
    }
    out.flush()?;
    if !args.follow {
        return Ok(if lines.is_empty() { Exit::Degraded } else { Exit::Ok });
    }
    let mut partial = Vec::new();
    loop {
        let read = match &mut place {
            None => {
                place = match File::open(&path) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                    file => Some(file?),
                };
                usize::from(place.is_some())
            }
            Some(file) => file.take(READ).read_to_end(&mut partial)?,
        };
        if let Some(end) = partial.iter().rposition(|b| *b == b'\n') {
            for line in partial[..end].split(|b| *b == b'\n') {
                // A log that was cut and written anew has lines that were printed.
                let seq = line_seq(line);
                if seq.is_none_or(|seq| seq > seen) {
                    print(&mut out, line, args.output)?;
                    seen = seq.unwrap_or(seen);
                }
            }
            partial.drain(..=end);
            out.flush()?;
        }
        if read > 0 {
            continue;
        }
        match place.as_ref().and_then(|file| successor(file, &path)) {
            None => std::thread::sleep(LOOK),
            Some(next) => {
                // Nothing is written to a rotated file: what it has was read, but for this last look.
                let mut last = place.replace(next);
                if let Some(file) = &mut last
                    && file.take(READ).read_to_end(&mut partial)? > 0
                {
                    place = last;
                } else {
                    partial.clear();
                    let inode = |file: &Option<File>| file.as_ref()?.metadata().ok().map(|m| m.ino());
                    if inode(&last) != inode(&place) {
                        // Another file: what is in it was not printed, whatever its seqs are.
                        seen = 0;
                    }
                }
            }
        }
    }
}

/// The file to read after the open one has no more: the next younger one, or the log itself.
fn successor(file: &File, path: &Path) -> Option<File> {
    let inode = |path: &Path| std::fs::metadata(path).ok().map(|m| m.ino());
    let own = file.metadata().ok()?;
    if inode(path) == Some(own.ino()) {
        // Cut, by a broker that completes the logs or by somebody: once more from its start.
        return if own.len() < position(file)? { File::open(path).ok() } else { None };
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

/// The last `n` whole lines of a log and its rotated files, and the log, open behind them.
fn last_lines(path: &Path, n: usize) -> io::Result<(VecDeque<Vec<u8>>, Option<File>)> {
    let mut lines = VecDeque::new();
    let (mut newest, mut inodes) = (None, Vec::new());
    for path in std::iter::once(path.to_owned()).chain((1..=LOG_FILES).map(|n| rotated(path, n))) {
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        // A rotation meanwhile gives a file that was read the next name.
        let inode = file.metadata()?.ino();
        if inodes.contains(&inode) {
            continue;
        }
        inodes.push(inode);
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
