//! Latencies, counted in buckets: as exact as anybody reads them, however many there are.
//!
//! Always holds: a percentile is within 1 % of the one that all values sorted would give; memory is 59 KiB at the
//! most. Pure. Owner: the sessions of a bench, one each; they are merged in the end.

/// A power of two is cut into so many buckets, so that a bucket's middle is within 0.4 % of what lies in it.
const PARTS: u64 = 128;

/// How often each value came.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// As long as the largest value needs.
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    /// Counts one value, in nanoseconds by convention.
    pub fn record(&mut self, value: u64) {
        let at = bucket(value);
        if self.counts.len() <= at {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    /// Counts what `other` counted.
    pub fn merge(&mut self, other: &Histogram) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// How many values there are.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The largest one, as it came; `None` when there are none.
    pub fn max(&self) -> Option<u64> {
        (self.total > 0).then_some(self.max)
    }

    /// The value that `share` (0.0 to 1.0) of all values do not exceed; `None` when there are none.
    pub fn percentile(&self, share: f64) -> Option<u64> {
        let rank = ((share * self.total as f64).ceil() as u64).clamp(1, self.total.max(1));
        let mut below = 0;
        let at = self.counts.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(middle(at).min(self.max))
    }
}

/// Small values have a bucket each; from there on every power of two has [`PARTS`].
fn bucket(value: u64) -> usize {
    let shift = (63 - value.max(1).leading_zeros()).saturating_sub(PARTS.trailing_zeros());
    (u64::from(shift) * PARTS + (value >> shift)) as usize
}

/// The middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / PARTS).saturating_sub(1);
    let (first, width) = ((bucket - shift * PARTS) << shift, 1u64 << shift);
    first + width / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = u64> {
        // As many small ones as large ones, to the last bit.
        (any::<u64>(), 0u32..64).prop_map(|(value, shift)| value >> shift)
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_sorted_values(mut values in vec(value(), 1..400), cut in 0usize..400) {
            let (mut one, mut other) = (Histogram::default(), Histogram::default());
            for (i, value) in values.iter().enumerate() {
                if i < cut { one.record(*value) } else { other.record(*value) }
            }
            one.merge(&other);
            values.sort_unstable();
            prop_assert_eq!(one.total(), values.len() as u64);
            prop_assert_eq!(one.max(), values.last().copied());
            for share in [0.0, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0] {
                let rank = ((share * values.len() as f64).ceil() as usize).max(1);
                let (exact, said) = (values[rank - 1], one.percentile(share).unwrap());
                prop_assert!(said.abs_diff(exact) as f64 <= exact as f64 * 0.01, "{share}: {said}, not {exact}");
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_nothing_has_no_percentile() {
        let mut all = Histogram::default();
        assert_eq!((all.percentile(0.5), all.max()), (None, None));
        all.record(u64::MAX);
        all.record(0);
        assert!(all.counts.len() * size_of::<u64>() < 60 * 1024, "{}", all.counts.len());
        assert_eq!(all.percentile(0.5), Some(0));
    }
}
