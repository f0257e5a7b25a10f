//! farshore-agent.

fn main() {}
