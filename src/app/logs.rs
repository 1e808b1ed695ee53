//! `castra logs`: prints the broker's own log, and follows it.
//!
//! Always holds: its lines are printed as they are, but for what a terminal would obey. Owner: the operator.

use super::given::grep;
use super::{Exit, Failure};
use crate::cli::LogsArgs;
use crate::core::harmless::harmless;
use crate::core::state_root::StateRoot;
use crate::core::tail::chain::{Chain, Look};
use crate::core::tail::scan::Read;
use crate::core::tail::stream::{Order, Stream};
use crate::core::tail::watch::{Watch, Woken};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::time::Duration;

/// Who follows looks at the log so often, whatever inotify says.
const LOOK: Duration = Duration::from_secs(1);

pub fn run(root: &StateRoot, args: &LogsArgs) -> Result<Exit, Failure> {
    let broken = |e: io::Error| Failure::unreadable(root.path(), &e);
    let grep = args.grep.as_deref().map(grep).transpose()?;
    let keeps = |line: &[u8]| grep.as_ref().is_none_or(|grep| grep.is_in(&String::from_utf8_lossy(line)));
    let path = root.logs().join("broker.log");
    let chain = Chain::open(&path).map_err(&broken)?;
    let end = chain.end().map_err(&broken)?;
    if end.is_none() && !args.follow {
        let why = format!("there is no log {}: no broker ever ran on that state root", path.display());
        return Err(Failure::new(Exit::Degraded, "no-log", why));
    }
    let look = &mut |line: &[u8]| if keeps(line) { Look::Keep } else { Look::Pass };
    let place = end.map(|end| chain.last(args.lines, &end, look)).transpose().map_err(&broken)?;
    drop(chain);

    let mut stream = Stream::new(&path, Order::Written, place, None, Box::new(|| None));
    let mut watch = args.follow.then(Watch::new);
    let mut out = BufWriter::with_capacity(64 * 1024, io::stdout().lock());
    let terminal = io::stdout().is_terminal();
    let (mut printed, mut failed) = (false, None);
    loop {
        let read = stream.read(&mut |line| {
            if !keeps(line) {
                return ControlFlow::Continue(());
            }
            let written = match terminal {
                true => writeln!(out, "{}", harmless(&String::from_utf8_lossy(line))),
                false => out.write_all(line).and_then(|()| out.write_all(b"\n")),
            };
            printed |= written.is_ok();
            failed = written.err();
            if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let read = read.map_err(&broken)?;
        failed.take().map_or(Ok(()), Err)?;
        if read == Read::More {
            continue;
        }
        out.flush()?;
        let Some(watch) = &mut watch else { break };
        if !watch.arm(&path, stream.file())
            && watch.wait(io::stdout().as_fd(), LOOK).map_err(Failure::system)? == Woken::HungUp
        {
            break;
        }
    }
    Ok(if printed || args.follow { Exit::Ok } else { Exit::Degraded })
}
