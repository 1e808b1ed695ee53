//! Damage to what is durable.
