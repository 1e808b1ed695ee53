//! Where in a log to begin or to end: a time, or a seq.
//!
//! Always holds: the clock and the time zone are arguments. Pure. Owner: the command that was given one.

use super::line::Stamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// A point in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Milliseconds since 1970.
    Time(u64),
    /// This event.
    Seq(u64),
}

/// The text names no point in a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no time: write how long ago (10m, 2h 30m, 3d), now, a time (2026-11-21T08:00:00Z), a local one \
     ('2026-11-21 08:00'), or the seq of an event (@4711)"
)]
pub struct WhenError(String);

impl When {
    /// Reads `10m` (so long before `now_ms`), `now`, RFC 3339, `2026-11-21 08:00` in `zone`, or `@SEQ`.
    ///
    /// # Errors
    /// It is none of these.
    pub fn parse(text: &str, now_ms: u64, zone: &TimeZone) -> Result<When, WhenError> {
        let bad = || WhenError(text.to_owned());
        let text = text.trim();
        if text == "now" {
            return Ok(When::Time(now_ms));
        }
        if let Some(seq) = text.strip_prefix('@') {
            return seq.parse().map(When::Seq).map_err(|_| bad());
        }
        if let Ok(ago) = humantime::parse_duration(text) {
            return Ok(When::Time(now_ms.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX))));
        }
        let at = match text.parse::<jiff::Timestamp>() {
            Ok(at) => at,
            Err(_) => {
                let local: DateTime = text.parse().map_err(|_| bad())?;
                zone.to_ambiguous_timestamp(local).compatible().map_err(|_| bad())?
            }
        };
        Ok(When::Time(u64::try_from(at.as_millisecond()).unwrap_or(0)))
    }

    /// Whether an event comes before this point.
    pub fn is_behind(&self, stamp: Stamp) -> bool {
        match *self {
            When::Time(ms) => stamp.ts < ms,
            When::Seq(seq) => stamp.seq < seq,
        }
    }

    /// Whether an event comes after this point.
    pub fn is_passed_by(&self, stamp: Stamp) -> bool {
        match *self {
            When::Time(ms) => stamp.ts > ms,
            When::Seq(seq) => stamp.seq > seq,
        }
    }

    /// Whether this is after `other`, as far as the two can be compared.
    pub fn is_after(&self, other: &When) -> bool {
        match (self, other) {
            (When::Time(a), When::Time(b)) | (When::Seq(a), When::Seq(b)) => a > b,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let parse = |text| When::parse(text, 1_000_000, &zone);
        for (text, want) in [
            ("10m", When::Time(400_000)),
            ("1m 30s", When::Time(910_000)),
            ("99y", When::Time(0)),
            ("@17", When::Seq(17)),
            ("1970-01-01T00:00:05Z", When::Time(5_000)),
            ("1970-01-01T02:00:05+02:00", When::Time(5_000)),
            ("1970-01-01 03:00", When::Time(3_600_000)),
            ("1970-01-01T03:00:00.25", When::Time(3_600_250)),
            ("1970-01-02", When::Time(22 * 3_600_000)),
            ("1960-01-01", When::Time(0)),
        ] {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
        for bad in ["", "@", "@-1", "@x", "soon", "10", "2026-13-01", "2026-11-21 25:00", "10m ago"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
