//! Ids of events whose publisher gave none.
//!
//! Always holds: the ids of one source ascend as long as its time does, and no two sources make the same one
//! but for a chance nobody meets. Pure. Owner: each session has a source.

/// Makes UUIDv7 ids (RFC 9562, section 6.2, method 1): 48 bits of milliseconds, a 32-bit counter, and
/// 42 bits that are this source's own.
#[derive(Debug)]
pub struct IdSource {
    counter: u32,
    own: u64,
}

impl IdSource {
    /// `seed` is random and differs between sources.
    pub fn new(seed: u64) -> Self {
        IdSource { counter: (seed >> 42) as u32, own: seed & ((1 << 42) - 1) }
    }

    /// Appends the next id, 36 characters, to `out`.
    pub fn write(&mut self, now_ms: u64, out: &mut Vec<u8>) {
        self.counter = self.counter.wrapping_add(1);
        let counter = u128::from(self.counter);
        let bits = u128::from(now_ms & ((1 << 48) - 1)) << 80
            | 7 << 76
            | (counter >> 20) << 64
            | 2 << 62
            | (counter & 0xf_ffff) << 42
            | u128::from(self.own);
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        out.extend_from_slice(uuid::Uuid::from_u128(bits).hyphenated().encode_lower(&mut text).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuid_v7_and_ascend() {
        let mut ids = IdSource::new(u64::MAX << 42);
        let mut previous = String::new();
        for now in [1_700_000_000_000, 1_700_000_000_000, 1_700_000_000_001] {
            let mut out = Vec::new();
            ids.write(now, &mut out);
            let text = String::from_utf8(out).unwrap();
            let id = uuid::Uuid::parse_str(&text).unwrap();
            assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122));
            assert!(text > previous, "{text} after {previous}");
            previous = text;
        }
    }
}
