//! The whole product in the lab: what its tests share.
//!
//! One world for all cases of a test program: control plane, Azurite, the chart by helm, controller, two workers of
//! the replica server, and one host with its agent. Each case makes its own VM, so cases run beside each other; those
//! that take away what others need run alone.
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "test support: a world that does not start ends the test"
)]

mod stage;

pub use stage::{HOST, NAMESPACE, POLICY, Protected, SITE, Stage, VAULT, stage, stage_alone};
