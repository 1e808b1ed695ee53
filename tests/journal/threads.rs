//! The journal's threads.
