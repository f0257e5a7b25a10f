//! Tests against a tiny server.
