//! `castra bus tail`: prints events out of the logs, and follows them. Reads files and nothing else.
//!
//! Always holds: stdout has events and nothing else, and is flushed before anything is waited for; what is
//! missing is said on stderr. Owner: the operator, who may end it at any time.

mod cursor;
pub mod event_text;
pub mod range;
pub mod standing;

use super::status::look;
use super::stderr::{self, say};
use super::{Exit, Failure};
use crate::cli::TailArgs;
use crate::core::clock;
use crate::core::state_root::StateRoot;
use crate::core::tail::chain::Chain;
use crate::core::tail::line::{EventLine, Stamp};
use crate::core::tail::scan::Read;
use crate::core::tail::stream::{Order, Stream};
use crate::core::tail::watch::{Watch, Woken};
use crate::core::tail::when::When;
use cursor::Keeper;
use event_text::Printer;
use jiff::tz::TimeZone;
use range::Range;
use standing::Standing;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Who follows looks at the logs and at how the VM stands so often, whatever inotify says.
const LOOK: Duration = Duration::from_secs(1);
/// An event of a time that has passed may come into the logs so much later.
const LATE: Duration = Duration::from_secs(1);

pub fn run(root: &StateRoot, args: &TailArgs) -> Result<Exit, Failure> {
    if args.follow {
        stderr::start(false, |_| ()).map_err(Failure::system)?;
    }
    let begun = Instant::now();
    let broken = |e: io::Error| Failure::unreadable(root.path(), &e);
    let mut keeper = args.cursor.as_deref().map(|path| Keeper::open(root, path)).transpose()?;
    let after = keeper.as_ref().and_then(Keeper::after);
    let range = Range::new(root, args, after)?;
    let chain = Chain::open(&range.path).map_err(&broken)?;
    let end = chain.end().map_err(&broken)?;
    if end.is_none() && !args.follow {
        return Err(no_log(root, args, &range));
    }
    let mut standing = Standing::new(args.vm.as_deref());
    let is_looking = !args.quiet || matches!(range.until, Some(When::Seq(_)));
    let say_new = |standing: &mut Standing| match if is_looking { standing.look(root) } else { None } {
        Some(line) if !args.quiet => say(&line),
        _ => {}
    };
    say_new(&mut standing);

    let (mut place, mut seen, mut last) = (None, range.first_seq().map(|seq| seq - 1), None);
    if let Some(end) = end {
        last = chain.stamp_before(&end).map_err(&broken)?;
        let begin = range.place(&chain, &end).map_err(&broken)?;
        let before = chain.stamp_before(&begin).map_err(&broken)?;
        if let (Some(keeper), Some(before)) = (&keeper, before) {
            keeper.check_event(before)?;
        }
        let before = before.map(|stamp| stamp.seq);
        if let (Some(keeper), Some(before)) = (&mut keeper, before) {
            keeper.begin(before);
        }
        seen = seen.max(before);
        place = Some(begin);
    }
    if let Some(after) = after.filter(|after| range.dense && last.is_some_and(|last| last.seq < *after)) {
        let last = last.map_or(0, |last| last.seq);
        say(&format!(
            "the cursor is at event {after}, the log ends with {last}: nothing is printed up to there"
        ));
    }
    drop(chain);
    let journal = root.clone();
    let journal = Box::new(move || journal.journal_id().ok().flatten());
    let mut stream = Stream::new(&range.path, Order::Seq, place, seen, journal);
    let mut printing = Printing::new(
        args,
        &range,
        last.filter(|_| !args.follow).map(|last| Stamp { ts: clock::wall_ms(), ..last }),
    );
    let mut watch = args.follow.then(Watch::new);
    let mut looked = Instant::now();
    loop {
        if let Some(keeper) = &mut keeper {
            keeper.check(root)?;
        }
        let read = stream.read(&mut |line| printing.line(line, &mut keeper)).map_err(&broken)?;
        printing.failed.take().map_or(Ok(()), Err)?;
        let is_due = keeper.as_ref().is_some_and(Keeper::is_due);
        if read != Read::More || is_due {
            printing.flush()?;
            keeper.as_mut().map_or(Ok(()), |keeper| keeper.save(root))?;
        }
        let Some(watch) = &mut watch else { if read == Read::More { continue } else { break } };
        let is_over = |standing: &Standing| match range.until {
            _ if read == Read::Enough => true,
            // Looked at before the log was: so nothing up to there is to come.
            Some(When::Seq(seq)) => read == Read::End && standing.logs_seq >= seq,
            Some(When::Time(ms)) => read == Read::End && until_left(ms).is_zero(),
            None => false,
        };
        if is_over(&standing) {
            break;
        }
        if let Some(limit) = args.timeout.filter(|limit| begun.elapsed() >= *limit) {
            printing.flush()?;
            keeper.as_mut().map_or(Ok(()), |keeper| keeper.save(root))?;
            let printed = printing.printed;
            let why = format!(
                "time ran out after {}, {printed} events were printed",
                humantime::format_duration(limit)
            );
            return Err(Failure::new(Exit::Timeout, "timeout", why));
        }
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            say_new(&mut standing);
        }
        if read == Read::More || watch.arm(&range.path, stream.file()) {
            continue;
        }
        let mut limit = LOOK.saturating_sub(looked.elapsed());
        limit = args.timeout.map_or(limit, |time| limit.min(time.saturating_sub(begun.elapsed())));
        if let Some(When::Time(ms)) = range.until {
            limit = limit.min(until_left(ms));
        }
        if watch.wait(io::stdout().as_fd(), limit).map_err(Failure::system)? == Woken::HungUp {
            return Ok(Exit::Ok);
        }
    }
    Ok(if printing.printed > 0 { Exit::Ok } else { Exit::Degraded })
}

/// How long events up to this time may still come.
fn until_left(ms: u64) -> Duration {
    (Duration::from_millis(ms) + LATE).saturating_sub(Duration::from_millis(clock::wall_ms()))
}

fn no_log(root: &StateRoot, args: &TailArgs, range: &Range) -> Failure {
    let path = range.path.display();
    let why = match &args.vm {
        _ if !root.path().exists() => {
            format!(
                "there is no log {path}: no broker ever ran on that state root; is it the right --state-root?"
            )
        }
        Some(vm) => format!(
            "there is no log of {vm} in {}: it never published and was sent nothing; 'castra status' lists the VMs",
            root.path().display()
        ),
        None => match look(root).map_or(0, |report| report.broker.journal.head_seq) {
            0 => format!("there is no log {path} yet; it begins with the first event"),
            head => format!(
                "there is no log {path}, though the journal has events up to {head}: it was removed, and goes on with \
                 the next event; 'castra verify --repair-logs' writes it anew"
            ),
        },
    };
    Failure::new(Exit::Degraded, "no-log", why)
}

/// Prints what is wanted of the lines that come.
struct Printing<'a> {
    range: &'a Range,
    printer: Printer,
    out: BufWriter<StdoutLock<'static>>,
    /// No event that is younger than this: it is what there was at the start.
    last: Option<Stamp>,
    /// The seq that comes next, where there is one.
    next: Option<u64>,
    left: u64,
    printed: u64,
    /// Lines that were no events.
    odd: u64,
    failed: Option<io::Error>,
}

impl<'a> Printing<'a> {
    fn new(args: &TailArgs, range: &'a Range, last: Option<Stamp>) -> Self {
        let zone = if args.utc { TimeZone::UTC } else { TimeZone::system() };
        Printing {
            range,
            printer: Printer::new(args.output, zone),
            out: BufWriter::with_capacity(64 * 1024, io::stdout().lock()),
            last,
            // What -n leaves out is not missing.
            next: range.first_seq().filter(|_| range.dense && range.lines.is_none()),
            left: args.count.unwrap_or(u64::MAX),
            printed: 0,
            odd: 0,
            failed: None,
        }
    }

    fn line(&mut self, line: &[u8], keeper: &mut Option<Keeper>) -> ControlFlow<()> {
        let Some(event) = EventLine::parse(line) else {
            self.odd += u64::from(!line.is_empty());
            return ControlFlow::Continue(());
        };
        let (range, stamp) = (self.range, event.stamp());
        if range.until.is_some_and(|until| until.is_passed_by(stamp))
            || self.last.is_some_and(|last| stamp.seq > last.seq && stamp.ts > last.ts)
        {
            return ControlFlow::Break(());
        }
        if range.dense {
            if let Some(from) = self.next.filter(|next| *next < stamp.seq) {
                let to = stamp.seq - 1;
                say(&format!(
                    "events {from} to {to} are not in the log any more; they were rotated away, or are lost"
                ));
            }
            self.next = Some(stamp.seq + 1);
        }
        if let Some(keeper) = keeper {
            keeper.begin(stamp.seq - stamp.seq.min(1));
        }
        // A log that was not there at the start begins with its oldest line.
        let early = matches!(range.since, Some(since @ When::Time(_)) if since.is_behind(stamp));
        if !early && range.filter.keeps(&event) {
            if let Err(error) = self.printer.print(&mut self.out, &event) {
                self.failed = Some(error);
                return ControlFlow::Break(());
            }
            if let Some(keeper) = keeper {
                keeper.printed(stamp);
            }
            self.printed += 1;
            self.left -= 1;
        }
        let ended = self.left == 0 || range.until == Some(When::Seq(stamp.seq));
        if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Everything printed has left, and what was left out is said.
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()?;
        match std::mem::take(&mut self.odd) {
            0 => {}
            1 => {
                say("a line that is no event was left out; 'castra verify' says what is wrong with the logs")
            }
            n => say(&format!(
                "{n} lines that are no events were left out; 'castra verify' says what is wrong with the logs"
            )),
        }
        Ok(())
    }
}
