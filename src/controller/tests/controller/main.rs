//! The controller against a real control plane and Azurite, with the chart's rights. Agent and replica server are
//! plain API calls and blobs written here, so that each test says exactly what they did.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod cases;
mod stage;
