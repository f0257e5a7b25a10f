//! A stale manifest never moves a VM, whichever tool applies it (R0.3, R0.4; GitOps scenarios A, B, E, H).

use farshore_test_api::{Kubectl, Output, dynamic, merged, unique, valid, world};
use serde_json::{Value, json};

const LOWER: &str = "epoch never decreases: this manifest is older than what is in force";
const SAME: &str = "a change of desiredState needs a higher epoch";
/// What the rules say.
pub(super) const REFUSALS: &[&str] = &[LOWER, SAME];

/// How a manifest reaches the API server.
#[derive(Clone, Copy, Debug)]
enum Way {
    MergePatch,
    ClientSideApply,
    ServerSideApply,
    ServerSideApplyForced,
    Replace,
}

const WAYS: [Way; 5] =
    [Way::MergePatch, Way::ClientSideApply, Way::ServerSideApply, Way::ServerSideApplyForced, Way::Replace];

/// A ProtectedVM that somebody moves around.
struct Subject<'a> {
    kubectl: Kubectl,
    namespace: &'a str,
    name: String,
    way: Way,
}

impl Subject<'_> {
    fn manifest(&self, spec: Value) -> Value {
        let meta = json!({"metadata": {"name": self.name, "namespace": self.namespace}});
        merged(merged(valid("ProtectedVM"), meta), json!({ "spec": spec }))
    }

    /// Sends a spec in this subject's way. A merge patch leaves alone what it does not name.
    fn send(&self, spec: Value) -> Output {
        let manifest = self.manifest(spec);
        match self.way {
            Way::MergePatch => {
                let patch = json!({"spec": manifest["spec"]}).to_string();
                let target = ["protectedvm", &self.name, "-n", self.namespace];
                self.kubectl.run(&[&["patch"][..], &target, &["--type", "merge", "-p", &patch]].concat())
            }
            Way::ClientSideApply => self.kubectl.apply(&["apply"], &manifest),
            Way::ServerSideApply => {
                self.kubectl.apply(&["apply", "--server-side", "--field-manager=git"], &manifest)
            }
            Way::ServerSideApplyForced => {
                let args = ["apply", "--server-side", "--field-manager=git", "--force-conflicts"];
                self.kubectl.apply(&args, &manifest)
            }
            Way::Replace => self.kubectl.apply(&["replace"], &manifest),
        }
    }

    /// First contact, in the same way where it can create.
    fn create(&self) {
        match self.way {
            Way::MergePatch | Way::Replace => {
                self.kubectl.apply(&["create"], &self.manifest(json!({}))).accepted();
            }
            _ => {
                self.send(json!({})).accepted();
            }
        }
    }
}

fn each_way(test: impl Fn(&Subject<'_>)) {
    world(async |world| {
        let namespace = world.namespace("epoch").await;
        for way in WAYS {
            println!("{way:?}");
            let subject =
                Subject { kubectl: world.kubectl(), namespace: &namespace, name: unique("vm"), way };
            subject.create();
            test(&subject);
        }
    });
}

#[test]
fn a_change_of_intent_with_a_higher_epoch_is_accepted() {
    each_way(|vm| {
        vm.send(json!({"desiredState": "FailedOver", "epoch": 2})).accepted();
        vm.send(json!({"desiredState": "FailoverCommitted", "epoch": 7})).accepted();
        vm.send(json!({"desiredState": "FailoverCommitted", "epoch": 7, "paused": true})).accepted();
        vm.send(json!({"desiredState": "FailoverCommitted", "epoch": 8})).accepted();
    });
}

#[test]
fn a_change_of_intent_without_a_higher_epoch_is_refused() {
    each_way(|vm| {
        vm.send(json!({"desiredState": "FailedOver"})).refused(SAME);
        vm.send(json!({"desiredState": "FailedOver", "epoch": 2})).accepted();
        vm.send(json!({"desiredState": "FailoverCommitted", "epoch": 2})).refused(SAME);
        vm.send(json!({"desiredState": "Protected", "epoch": 2})).refused(SAME);
    });
}

/// Scenarios A, B and H: failed over by hand, then the old text comes back.
#[test]
fn yesterdays_manifest_is_refused_by_every_tool() {
    each_way(|vm| {
        vm.send(json!({"desiredState": "FailedOver", "epoch": 2})).accepted();
        vm.send(json!({"desiredState": "Protected", "epoch": 1})).refused(LOWER);
        vm.send(json!({"desiredState": "FailedOver", "epoch": 1})).refused(LOWER);
    });
}

/// The manifest never named the state: applying it again must not reset it to the default.
#[test]
fn a_manifest_that_leaves_the_state_out_does_not_reset_it() {
    each_way(|vm| {
        vm.send(json!({"desiredState": "FailedOver", "epoch": 2})).accepted();
        match vm.way {
            // Left alone by a patch that does not name it.
            Way::MergePatch => vm.send(json!({"epoch": 2})).accepted(),
            _ => {
                vm.send(json!({"epoch": 2})).refused(SAME);
                String::new()
            }
        };
    });
}

/// As when a person patches at 03:00 and the pipeline, which owns other fields only, applies again at 03:05.
#[test]
fn the_pipeline_cannot_undo_what_a_person_has_patched() {
    each_way(|vm| {
        let patch = json!({"spec": {"desiredState": "FailedOver", "epoch": 2}}).to_string();
        let target = ["protectedvm", &vm.name, "-n", vm.namespace];
        vm.kubectl.run(&[&["patch"][..], &target, &["--type", "merge", "-p", &patch]].concat()).accepted();
        let answer = vm.send(json!({}));
        match vm.way {
            Way::ServerSideApply => answer.refused("conflict"),
            _ => answer.refused(LOWER),
        }
    });
}

#[test]
fn a_manifest_without_an_epoch_is_refused() {
    each_way(|vm| {
        vm.send(json!({"desiredState": "FailedOver", "epoch": 2})).accepted();
        let answer = vm.send(json!({"desiredState": "FailedOver", "epoch": null}));
        match vm.way {
            Way::MergePatch => {
                assert!(answer.ok, "a patch leaves alone what it does not name: {}", answer.text)
            }
            _ => answer.refused("spec.epoch"),
        }
    });
}

/// Scenario E: rules see no old object; the ledger decides then, so creation must stay possible.
#[test]
fn deleting_and_creating_again_is_left_to_the_ledger() {
    each_way(|vm| {
        vm.send(json!({"desiredState": "FailedOver", "epoch": 2})).accepted();
        vm.kubectl.run(&["delete", "protectedvm", &vm.name, "-n", vm.namespace]).accepted();
        vm.create();
    });
}

#[test]
fn the_status_may_change_at_any_epoch() {
    world(async |world| {
        let namespace = world.namespace("epoch").await;
        let api = dynamic(world.admin(), "ProtectedVM", Some(&namespace));
        let vm = merged(valid("ProtectedVM"), json!({"metadata": {"name": "vm"}, "spec": {"epoch": 5}}));
        api.create(&Default::default(), &serde_json::from_value(vm).unwrap()).await.unwrap();
        let patch = json!({"status": {"state": "Protected", "effective":
            {"state": "Protected", "epoch": 5, "nextEpoch": 6, "setBy": "ProtectedVM/x/vm"}}});
        let seen =
            api.patch_status("vm", &Default::default(), &kube::api::Patch::Merge(patch)).await.unwrap();
        assert_eq!(seen.data["status"]["effective"]["nextEpoch"], 6);
        assert_eq!(seen.data["spec"]["epoch"], 5);
    });
}
