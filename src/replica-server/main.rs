//! farshore-replica-server.

fn main() {}
