//! farshore-test-api.
