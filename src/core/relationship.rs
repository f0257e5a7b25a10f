//! relationship.
