//! The whole product in the lab.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod cases {
    mod faults;
    mod protect;
    mod refusals;
    mod steady;
}
