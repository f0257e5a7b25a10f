//! farshore-disk.
