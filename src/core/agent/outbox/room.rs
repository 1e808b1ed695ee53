//! Room in the outbox: what gives way, and when there is none.
//!
//! Always holds: the oldest go first; all that goes is counted. Owner: `store.rs`.

use super::store::{ERROR, Gone, PENDING, Store};
use super::{Bounds, WhenFull};
use crate::core::refusal::Refusal;

/// Rows that are looked at together where some are to go.
const PIECE: i64 = 256;

impl Store {
    /// Makes room for so many bytes, as the bounds say, or says that there is none.
    pub(super) fn make_room(
        &mut self,
        bytes: u64,
        bounds: &Bounds,
        gone: &mut Gone,
    ) -> rusqlite::Result<Result<(), Refusal>> {
        if bytes <= bounds.bytes && bounds.when_full == WhenFull::DropOldest {
            let most = bounds.bytes - bytes;
            gone.pending += self.drop_oldest(PENDING, most)?;
        }
        if self.tally.counts.bytes + bytes <= bounds.bytes {
            return Ok(Ok(()));
        }
        let has = self.tally.counts.pending;
        let why = format!(
            "{has} events are pending and no room is left for {bytes} bytes of {} that are allowed; it has room again \
             when the broker takes them",
            bounds.bytes
        );
        Ok(Err(Refusal::new("outbox-full", why)))
    }

    /// Drops the oldest rows of a state until they take `most` bytes. How many went.
    fn drop_oldest(&mut self, state: i64, most: u64) -> rusqlite::Result<u64> {
        let mut gone = 0;
        loop {
            let counts = &mut self.tally.counts;
            let (number, bytes) = match state {
                PENDING => (&mut counts.pending, &mut counts.bytes),
                _ => (&mut counts.error, &mut self.tally.error_bytes),
            };
            if *bytes <= most {
                break;
            }
            let oldest = "SELECT n, weight FROM event WHERE state = ?1 ORDER BY n LIMIT ?2";
            let mut oldest = self.db.prepare(oldest)?;
            let mut rows = oldest.query([state, PIECE])?;
            let (mut last, mut went) = (None, 0);
            while let Some(row) = rows.next()?
                && *bytes > most
            {
                last = Some(row.get::<_, i64>(0)?);
                *bytes = bytes.saturating_sub(row.get::<_, i64>(1)? as u64);
                went += 1;
            }
            drop(rows);
            let Some(last) = last else { break };
            self.db.execute("DELETE FROM event WHERE state = ?1 AND n <= ?2", [state, last])?;
            *number = number.saturating_sub(went);
            counts.dropped += went;
            gone += went;
        }
        Ok(gone)
    }

    /// Drops the oldest ones in the state error until they take a quarter of what the pending ones may.
    pub(super) fn bound_errors(&mut self, bounds: &Bounds, gone: &mut Gone) -> rusqlite::Result<()> {
        gone.error += self.drop_oldest(ERROR, bounds.bytes / 4)?;
        Ok(())
    }
}
