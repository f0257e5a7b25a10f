//! points.
