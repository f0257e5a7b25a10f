//! The resources, rights and policies on a real API server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod cases {
    mod deletion;
    mod epoch;
    mod hosts;
    mod parts;
    mod people;
    mod rules;
}
