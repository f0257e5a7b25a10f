//! farshore-test-scenario.
