//! farshore-bench.

fn main() {}
