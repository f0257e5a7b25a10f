//! A real control plane with the chart's CRDs, rights and policies in it, shared by all tests of one binary,
//! and what tests do with it: be somebody else, apply, expect a refusal with a sentence that helps.
#![expect(clippy::expect_used, reason = "a helper of tests: what fails here fails the test")]

mod kubectl;
mod objects;
mod world;

pub use kubectl::{Kubectl, Output};
pub use objects::{VM_ID, dynamic, merged, resource, valid};
pub use world::{NAMESPACE, World, chart, unique, world};

/// The message of a refusal; panics with what was accepted instead.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, kube::Error>, why: &str) {
    match result {
        Ok(accepted) => panic!("accepted, but should be refused with {why:?}: {accepted:?}"),
        Err(kube::Error::Api(status)) => {
            assert!(status.message.contains(why), "refused, but not with {why:?}: {}", status.message);
        }
        Err(error) => panic!("no answer: {error}"),
    }
}
