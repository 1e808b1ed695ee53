//! Opens a journal after any stop, and says what it found.
//!
//! Every start begins a new segment, so nothing that an earlier process wrote is ever written again.
//! Sealed segments were durable when the next one got its name; only the newest is walked here:
//!
//! ```text
//! newest segment:  records …  | known durable | readable, perhaps not durable | torn
//!                  kept as is: damage inside  | rewritten into the new one    | left behind
//!                  is reported with its range |
//! ```
//!
//! *Known durable* is what any valid record, or the header, says was synced. Always holds: a record known
//! durable is kept or reported, never dropped (invariant 5); what is served afterwards is durable in fact
//! and not just in the page cache, because the rest was rewritten and synced before anybody sees it
//! (invariants 1 and 2); a publish of several events comes back whole or not at all. Owner: [`super::Opened::open`].

use super::aligned::Aligned;
use super::damage::Damage;
use super::disk::Disk;
use super::look::{Look, Next, OpenError, Walked, failed, look};
use super::record::{Head, encode};
use super::segment::{HEADER_BYTES, Header, Map, Segment, activate, segment_name};
use super::spare::{self, Spare};

/// What opening a journal found and did.
#[derive(Debug, Default)]
pub struct Report {
    /// Known durable and unreadable.
    pub damage: Vec<Damage>,
    /// Records that were rewritten because they may not have been durable.
    pub rewritten: usize,
    /// Where the next segment begins.
    pub(super) next: Next,
}

pub(super) struct Recovered {
    pub map: Map,
    pub report: Report,
    /// The segment that the tail was rewritten into; it is the newest and goes on being written.
    pub rewritten: Option<Rewritten>,
}

/// A segment that holds a rewritten tail.
pub(super) struct Rewritten {
    pub spare: Spare,
    pub segment: Segment,
    /// The bytes of its last block that is not whole.
    pub rest: Vec<u8>,
}

/// Reads the headers, walks the newest segment, rewrites its tail.
pub(super) fn recover(disk: &dyn Disk, journal: u128, spare_bytes: u64) -> Result<Recovered, OpenError> {
    // The names that an earlier process gave are not durable when it was killed before its own sync.
    disk.sync_dir().map_err(failed("sync the folder"))?;
    let Look { segments: mut sealed, damage, walked } = look(disk, journal)?;
    let (Some(walked), Some(last)) = (walked, sealed.last_mut()) else {
        let next = Next { lsn: 1, seq: 1, ..Next::default() };
        let report = Report { damage, rewritten: 0, next };
        return Ok(Recovered { map: Map::new(journal, Vec::new(), &next), report, rewritten: None });
    };
    last.end = walked.known_end;
    let last = *last;
    let report = Report { damage, rewritten: walked.tail.len(), next: walked.next };
    // Only its unused zeros and torn bytes go; nothing depends on it but space. Where something is damaged
    // all stays, because what lies further on may be all that says so.
    let whole = report.damage.is_empty();
    let shrink = || {
        let name = segment_name(last.first_lsn);
        if whole {
            let file = disk.open(&name).map_err(failed(format!("open {name}")))?;
            let _ = file.set_size(walked.used_end.max(walked.known_end));
        }
        Ok::<_, OpenError>(())
    };
    if walked.tail.is_empty() {
        shrink()?;
        return Ok(Recovered { map: Map::new(journal, sealed, &walked.next), report, rewritten: None });
    }
    let rewritten = rewrite(disk, journal, spare_bytes, &walked)?;
    let segment = rewritten.segment;
    let map = Map::new(journal, sealed, &walked.next);
    if segment.first_lsn != last.first_lsn {
        shrink()?;
    }
    map.push(segment);
    Ok(Recovered { map, report, rewritten: Some(rewritten) })
}

/// Writes the tail into a fresh segment, durable before it has its name.
fn rewrite(
    disk: &dyn Disk,
    journal: u128,
    spare_bytes: u64,
    walked: &Walked,
) -> Result<Rewritten, OpenError> {
    let header = Header {
        journal,
        first_lsn: walked.known.lsn,
        first_seq: walked.known.seq,
        synced_lsn: walked.next.lsn - 1,
        synced_seq: walked.next.seq - 1,
        ts: walked.known.ts,
        notes: walked.known.notes,
        ids: walked.known.ids,
    };
    let mut bytes = Vec::new();
    for (head, body) in &walked.tail {
        // As its header, every record says that all of them are durable: nobody sees it before they are.
        let head = Head { synced: header.synced_lsn, ..*head };
        encode(&mut bytes, header.salt(), &head, [body, b""]);
    }
    let space = "make room for the rewritten tail (free some space on this file system)";
    let spare =
        spare::find_or_make(disk, spare_bytes, HEADER_BYTES + bytes.len() as u64).map_err(failed(space))?;
    let mut blocks = Aligned::default();
    blocks.push(&bytes);
    spare.file.write_at(blocks.blocks(), HEADER_BYTES).map_err(failed("write the rewritten tail"))?;
    activate(disk, &*spare.file, spare.name, &header).map_err(failed("name the rewritten tail"))?;
    let end = HEADER_BYTES + bytes.len() as u64;
    let segment = Segment { first_lsn: header.first_lsn, first_seq: header.first_seq, end, ts: header.ts };
    Ok(Rewritten { spare, segment, rest: blocks.rest().to_vec() })
}
