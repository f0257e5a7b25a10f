//! farshore-controller.

fn main() {}
