//! What `castra bus tail` was asked for: which log, which events, from where to where.
//!
//! Always holds: what cannot be understood is refused before anything is printed. Owner: `mod.rs`.

use crate::app::failure::{Exit, Failure};
use crate::app::given::{self, grep, pattern, vm_name};
use crate::cli::TailArgs;
use crate::core::state_root::StateRoot;
use crate::core::tail::chain::{Chain, Look, Place};
use crate::core::tail::filter::Filter;
use crate::core::tail::line::EventLine;
use crate::core::tail::when::When;
use std::io;
use std::path::PathBuf;

/// A tail begins so many events before the end, unless something else is said.
const LINES: u64 = 10;

/// Which events of which log.
pub struct Range {
    /// The log.
    pub path: PathBuf,
    /// It has every seq.
    pub dense: bool,
    /// Topics and expression.
    pub filter: Filter,
    /// Begin here …
    pub since: Option<When>,
    /// … or so many before the end; with both, so many at the most.
    pub lines: Option<u64>,
    /// End here, this included.
    pub until: Option<When>,
}

impl Range {
    /// Reads the arguments; `after` is the seq that a cursor says was printed.
    ///
    /// # Errors
    /// A name, pattern, expression or time is none, or the end is before the beginning.
    pub fn new(root: &StateRoot, args: &TailArgs, after: Option<u64>) -> Result<Range, Failure> {
        let name = match args.vm.as_deref() {
            None => "bus".to_owned(),
            Some(vm) => vm_name(vm)?.to_string(),
        };
        let filter = Filter {
            patterns: args.patterns.iter().map(|text| pattern(text)).collect::<Result<_, _>>()?,
            grep: args.grep.as_deref().map(grep).transpose()?,
        };
        let when = |flag: &str, text: &Option<String>| {
            let parsed = text.as_deref().map(given::when).transpose();
            parsed.map_err(|e| Failure::new(Exit::BadData, "bad-time", format!("{flag}: {e}")))
        };
        let (since, until) = (when("--since", &args.since)?, when("--until", &args.until)?);
        if let (Some(a), Some(b)) = (&since, &until)
            && a.is_after(b)
        {
            let why = "--since is after --until: no event is both; exchange the two";
            return Err(Failure::new(Exit::BadData, "bad-range", why));
        }
        let (since, lines) = match after {
            Some(seq) => (Some(When::Seq(seq.saturating_add(1))), None),
            None => {
                let all = since.is_some() || args.cursor.is_some();
                (since, args.lines.or((!all).then_some(LINES)))
            }
        };
        let path = root.bus_logs().join(format!("{name}.log"));
        Ok(Range { path, dense: args.vm.is_none(), filter, since, lines, until })
    }

    /// Where to begin in what there is, which ends at `end`.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn place(&self, chain: &Chain, end: &Place) -> io::Result<Place> {
        let found = match (self.lines, self.since) {
            (Some(n), since) => {
                let until = match self.until {
                    Some(until) => chain.first_not(&|stamp| !until.is_passed_by(stamp))?,
                    None => None,
                };
                let place = chain.last(
                    n,
                    until.as_ref().unwrap_or(end),
                    &mut |line| match EventLine::parse(line) {
                        Some(event) if since.is_some_and(|since| since.is_behind(event.stamp())) => {
                            Look::Stop
                        }
                        Some(event) if self.filter.keeps(&event) => Look::Keep,
                        _ => Look::Pass,
                    },
                )?;
                Some(place)
            }
            (None, Some(since)) => chain.first_not(&|stamp| since.is_behind(stamp))?,
            (None, None) => chain.oldest(),
        };
        Ok(found.unwrap_or_else(|| end.clone()))
    }

    /// The first seq that is wanted, when one was named.
    pub fn first_seq(&self) -> Option<u64> {
        match self.since {
            Some(When::Seq(seq)) => Some(seq.max(1)),
            _ => None,
        }
    }
}
