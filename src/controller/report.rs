//! Events: once per transition, made only after the status that tells of it was written.

use farshore_core::vm::timeline;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tracing::warn;

use crate::protected_vm::show::bounded;

/// Longest note that the API takes.
const MAX_NOTE: usize = 1024;

/// Publishes events. One for the whole process: it joins what repeats.
#[derive(Clone)]
pub struct Report(Recorder);

impl Report {
    /// Reports as `farshore-controller`, this replica.
    pub fn new(client: Client, instance: String) -> Self {
        Self(Recorder::new(
            client,
            Reporter { controller: "farshore-controller".into(), instance: Some(instance) },
        ))
    }

    /// Publishes. An event that cannot be written is logged: nothing depends on it.
    pub async fn publish(&self, about: &ObjectReference, event: timeline::Event) {
        let timeline::Event { warning, reason, action, note } = event;
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason,
            note: Some(bounded(&note, MAX_NOTE)),
            action: action.into(),
            secondary: None,
        };
        if let Err(error) = self.0.publish(&event, about).await {
            warn!(error = %crate::write::brief(&error), reason = event.reason, "event not written");
        }
    }
}
