//! Carries out the actions of a plan, in order, and stops at the first failure. No policy here: what may fail
//! without holding up the rest, the action itself says.

use std::collections::BTreeMap;

use farshore_api::{ProtectedVM, ReplicationRelationship, annotation};
use farshore_azure::{BlobError, BlobErrorKind, Create};
use farshore_core::fault::{Code, Fault};
use farshore_core::ids::VmId;
use farshore_core::names;
use farshore_core::vm::observed::{Host, Owner, Sas, Wish};
use farshore_core::vm::{Action, Container};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ObjectMeta, Preconditions};
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::json;
use tracing::{info, warn};

use super::facts;
use super::memory::Memory;
use super::observe::Seen;
use crate::context::Context;
use crate::storage::fault::of_blob;
use crate::storage::ledger::{self, LedgerError, Writer};
use crate::storage::{metadata_of, owner_of};
use crate::vault::connect::ConnectedAccount;
use crate::write;

/// Who writes the ledger.
const ACTOR: &str = "farshore-controller";

/// How far it came.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Why it stopped before the end.
    pub failed: Option<Fault>,
    /// Something changed that no watch tells of: look again at once.
    pub look_again: bool,
    /// The object was let go.
    pub released: bool,
}

/// Why an action was not carried out.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    /// The world is no longer as observed; the next look sees how it is.
    #[error("overtaken")]
    Overtaken,
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl From<BlobError> for Stopped {
    fn from(error: BlobError) -> Self {
        Self::Fault(of_blob(&error))
    }
}

impl From<LedgerError> for Stopped {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Overtaken(_) => Self::Overtaken,
            LedgerError::Blob(error) => error.into(),
            LedgerError::Format(error) => Self::Fault(Fault::new(Code::LedgerUnreadable, error.to_string())),
        }
    }
}

fn refused(what: &str) -> impl Fn(kube::Error) -> Stopped + '_ {
    move |error| match write::is_stale(&error) {
        true => Stopped::Overtaken,
        false => Fault::new(Code::Unknown, format!("{what} failed: {}", write::brief(&error))).into(),
    }
}

/// Carries them out.
pub(super) async fn execute(
    actions: &[Action],
    vm: &ProtectedVM,
    seen: &Seen,
    ctx: &Context,
    memory: &mut Memory,
    now: Timestamp,
) -> Outcome {
    let mut work = Work { vm, seen, ctx, memory, now, outcome: Outcome::default() };
    for action in actions {
        match work.step(action).await {
            Ok(()) => {}
            Err(stopped) if action.is_best_effort() => {
                warn!(vm = %vm.name_any(), error = %stopped, "a host that is to stop could not be told");
            }
            Err(Stopped::Overtaken) => {
                work.outcome.look_again = true;
                break;
            }
            Err(Stopped::Fault(fault)) => {
                work.outcome.failed = Some(fault);
                break;
            }
        }
    }
    work.outcome
}

struct Work<'a> {
    vm: &'a ProtectedVM,
    seen: &'a Seen,
    ctx: &'a Context,
    memory: &'a mut Memory,
    now: Timestamp,
    outcome: Outcome,
}

impl Work<'_> {
    async fn step(&mut self, action: &Action) -> Result<(), Stopped> {
        match action {
            Action::AddFinalizer => self.finalizer(true).await,
            Action::ReleaseFinalizer => self.finalizer(false).await,
            Action::CreateContainer(vm, which, owner) => self.create_container(*vm, *which, owner).await,
            Action::CreateLedger(first) => {
                let service = self.account()?.service.clone();
                let ledger = ledger::create(&service, first, self.writer()).await?;
                info!(vm.id = %ledger.vm_id, seq = ledger.seq, state = ?ledger.state, "ledger created");
                self.outcome.look_again = true;
                Ok(ledger::copy_side(&service, &ledger).await?)
            }
            Action::WriteLedger(edit) => {
                let service = self.account()?.service.clone();
                let known = &self.memory.known;
                let (Some(observed), Some(etag)) = (known.ledger(), known.ledger_etag()) else {
                    return Err(Stopped::Overtaken);
                };
                let ledger = ledger::write(&service, observed, &etag, edit, self.writer()).await?;
                let notes = edit.notes.join("; ");
                info!(vm.id = %ledger.vm_id, seq = ledger.seq, state = ?ledger.state, notes, "ledger written");
                self.outcome.look_again = true;
                Ok(ledger::copy_side(&service, &ledger).await?)
            }
            Action::CopySide => {
                let observed = self.memory.known.ledger().ok_or(Stopped::Overtaken)?;
                self.outcome.look_again = true;
                Ok(ledger::copy_side(&self.account()?.service, observed).await?)
            }
            Action::ApplyRelationship(host, wish) => self.apply_relationship(host, wish).await,
            Action::IssueSas(host, vm) => self.issue_sas(host, *vm).await,
            Action::RevokeSas(host, vm) => self.revoke_sas(host, *vm).await,
            Action::RemoveRelationship(host, vm) => self.remove_relationship(host, *vm).await,
            Action::RemoveContainers(vm) => self.remove_containers(*vm).await,
        }
    }

    fn account(&self) -> Result<&ConnectedAccount, Stopped> {
        self.seen.account.as_ref().ok_or(Stopped::Overtaken)
    }

    fn writer(&self) -> Writer<'static> {
        Writer { actor: ACTOR, now: self.now }
    }

    /// Under the object's resourceVersion: an old look at it changes nothing.
    async fn finalizer(&mut self, wanted: bool) -> Result<(), Stopped> {
        let api: Api<ProtectedVM> =
            Api::namespaced(self.ctx.client.clone(), &self.vm.namespace().unwrap_or_default());
        let mut finalizers: Vec<&str> = self.vm.finalizers().iter().map(String::as_str).collect();
        finalizers.retain(|f| *f != annotation::FINALIZER);
        if wanted {
            finalizers.push(annotation::FINALIZER);
        }
        let patch = json!({"metadata": {
            "resourceVersion": self.vm.resource_version(),
            "uid": self.vm.uid(),
            "finalizers": finalizers,
        }});
        write::merge(&api, &self.vm.name_any(), &patch).await.map_err(refused("writing the finalizer"))?;
        self.outcome.released = !wanted;
        Ok(())
    }

    async fn create_container(&self, vm: VmId, which: Container, owner: &Owner) -> Result<(), Stopped> {
        let container = self.account()?.service.container(&container_name(vm, which));
        match container.create(&metadata_of(owner)).await? {
            Create::Created => info!(vm.id = %vm, container = container.name(), "container created"),
            Create::AlreadyExists => {
                let Some((metadata, _)) = container.metadata().await? else { return Err(Stopped::Overtaken) };
                let there = owner_of(&metadata);
                if (&there.namespace, &there.name) != (&owner.namespace, &owner.name) {
                    let whose = format!("{}/{}", there.namespace, there.name);
                    let what = format!("container {} belongs to ProtectedVM {whose}", container.name());
                    return Err(Fault::new(Code::AlreadyProtected, what).into());
                }
            }
        }
        Ok(())
    }

    fn relationships(&self, host: &Host) -> Api<ReplicationRelationship> {
        Api::namespaced(self.ctx.client.clone(), &host.namespace)
    }

    async fn apply_relationship(&self, host: &Host, wish: &Wish) -> Result<(), Stopped> {
        let name = wish.vm_id.to_string();
        let (namespace, vm_name, _) = &wish.protected_vm;
        let mut labels: BTreeMap<&str, &str> = BTreeMap::new();
        labels.insert(annotation::VM_ID, &name);
        labels.insert(annotation::HOST, &host.name);
        labels.insert(annotation::PROTECTED_VM_NAMESPACE, namespace);
        labels.insert(annotation::PROTECTED_VM, vm_name);
        // The value of a label is shorter than a name may be.
        labels.retain(|_, value| value.len() <= 63);
        let object = json!({
            "apiVersion": ReplicationRelationship::api_version(&()),
            "kind": ReplicationRelationship::kind(&()),
            "metadata": {"name": name, "namespace": host.namespace, "labels": labels},
            "spec": facts::relationship_spec(wish),
        });
        write::apply(&self.relationships(host), &name, &object)
            .await
            .map_err(refused("applying the relationship"))?;
        info!(vm.id = %name, host = host.name, goal = ?wish.goal, term = %wish.term, stream = %wish.stream, "relationship applied");
        Ok(())
    }

    async fn issue_sas(&mut self, host: &Host, vm: VmId) -> Result<(), Stopped> {
        let relationships = self.relationships(host);
        let name = vm.to_string();
        let owner = relationships.get(&name).await.map_err(refused("reading the relationship"))?;
        let sas = self.account()?.host_sas(vm, &self.ctx.timing, self.now).await?;
        let signer = self.seen.observed.vault.as_ref().map(|v| v.signer.clone()).unwrap_or_default();
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let secret_name = facts::sas_secret(vm);
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(secret_name.clone()),
                namespace: Some(host.namespace.clone()),
                labels: Some([(annotation::VM_ID.to_owned(), name.clone())].into()),
                owner_references: owner.owner_ref(&()).map(|o| vec![o]),
                ..ObjectMeta::default()
            },
            data: Some(
                [
                    ("up".to_owned(), bytes(sas.up.expose())),
                    ("down".to_owned(), bytes(sas.down.expose())),
                    ("expiresAt".to_owned(), bytes(&sas.expires_at.to_string())),
                ]
                .into(),
            ),
            type_: Some("Opaque".into()),
            ..Secret::default()
        };
        let secrets: Api<Secret> = Api::namespaced(self.ctx.client.clone(), &host.namespace);
        write::apply(&secrets, &secret_name, &secret).await.map_err(refused("writing the SAS secret"))?;
        let patch = json!({"metadata": {"annotations": {
            facts::SAS_ISSUED_AT: self.now.to_string(),
            facts::SAS_SIGNER: signer,
        }}});
        write::merge(&relationships, &name, &patch).await.map_err(refused("noting the SAS"))?;
        self.memory.sas = owner.uid().map(|uid| (uid, Sas { issued_at: self.now, signer }));
        info!(vm.id = %vm, host = host.name, expires = %sas.expires_at, "SAS handed out");
        Ok(())
    }

    async fn revoke_sas(&mut self, host: &Host, vm: VmId) -> Result<(), Stopped> {
        self.memory.sas = None;
        let secrets: Api<Secret> = Api::namespaced(self.ctx.client.clone(), &host.namespace);
        match secrets.delete(&facts::sas_secret(vm), &DeleteParams::default()).await {
            Ok(_) => {}
            Err(error) if write::is_missing(&error) => {}
            Err(error) => return Err(refused("removing the SAS secret")(error)),
        }
        let patch =
            json!({"metadata": {"annotations": {facts::SAS_ISSUED_AT: null, facts::SAS_SIGNER: null}}});
        write::merge(&self.relationships(host), &vm.to_string(), &patch)
            .await
            .map_err(refused("noting the SAS"))?;
        Ok(())
    }

    async fn remove_relationship(&self, host: &Host, vm: VmId) -> Result<(), Stopped> {
        let seen = &self.seen.observed;
        let mut all = seen.relationships.iter().chain(&seen.leftovers);
        let there = all.find(|r| r.namespace == host.namespace);
        let uid = there.map(|r| r.uid.clone());
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid, resource_version: None }),
            ..DeleteParams::default()
        };
        match self.relationships(host).delete(&vm.to_string(), &params).await {
            Ok(_) => info!(vm.id = %vm, host = host.name, "relationship removed"),
            Err(error) if write::is_missing(&error) => {}
            Err(error) => return Err(refused("removing the relationship")(error)),
        }
        Ok(())
    }

    /// The one with the ledger last: until then the ledger says that the others are to go.
    async fn remove_containers(&mut self, vm: VmId) -> Result<(), Stopped> {
        for which in [Container::Up, Container::Down, Container::Replica] {
            let name = container_name(vm, which);
            match self.account()?.service.container(&name).delete_container().await {
                Ok(_) => info!(vm.id = %vm, container = name, "container removed"),
                Err(error) if error.kind == BlobErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.outcome.look_again = true;
        Ok(())
    }
}

fn container_name(vm: VmId, which: Container) -> String {
    match which {
        Container::Replica => names::replica_container(vm),
        Container::Up => names::up_container(vm),
        Container::Down => names::down_container(vm),
    }
}
