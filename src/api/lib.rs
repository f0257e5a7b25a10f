//! farshore-api.
