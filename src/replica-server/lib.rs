//! farshore-replica-server.
