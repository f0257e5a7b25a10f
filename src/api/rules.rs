//! CEL rules that are built from tables. Each message says what to do.

use kube::core::Rule;

/// The fields of `ProtectedVM.spec` that together are one intent. A field added here is guarded by the
/// epoch rules and is part of [`crate::ProtectedVMSpec::intent`] from then on.
pub(crate) const INTENT_FIELDS: &[&str] = &["desiredState"];

/// Epochs never go back.
pub(crate) fn epoch_never_decreases() -> Rule {
    Rule::new("self.epoch >= oldSelf.epoch")
        .message(
            "epoch never decreases: this manifest is older than what is in force. To keep the VM where it is, \
             commit the desiredState and epoch that the cluster has; to move it, set desiredState and raise epoch \
             to status.effective.nextEpoch",
        )
        .field_path(".epoch")
}

/// A change of any intent field needs a higher epoch.
pub(crate) fn epoch_rises_with_intent() -> Rule {
    let same = INTENT_FIELDS.iter().map(|field| same(field)).collect::<Vec<_>>().join(" && ");
    Rule::new(format!("self.epoch > oldSelf.epoch || ({same})"))
        .message(
            "a change of desiredState needs a higher epoch: raise spec.epoch to status.effective.nextEpoch in the \
             same change. If this is an old manifest, commit the desiredState and epoch that the cluster has instead",
        )
        .field_path(".epoch")
}

/// `field` of self and oldSelf are equal, both absent counted as equal.
fn same(field: &str) -> String {
    format!(
        "has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
    )
}

/// The whole value cannot change.
pub(crate) fn immutable(message: &str) -> Rule {
    Rule::new("self == oldSelf").message(message)
}
