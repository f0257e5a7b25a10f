//! farshore-core.
