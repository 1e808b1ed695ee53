//! Files that were damaged.
