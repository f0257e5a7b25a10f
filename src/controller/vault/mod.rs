//! RecoveryVault: connects to it, and says in its status whether it can be used.

pub mod connect;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use farshore_api::condition::{self, Draft};
use farshore_api::{AccountStatus, Cloud, RecoveryVault, RecoveryVaultStatus, Time, reason};
use farshore_azure::BlobErrorKind;
use farshore_core::timing::Timing;
use jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt as _};
use tracing::{info, warn};

use self::connect::{Connected, Connector, VaultError};
use crate::context::Context;
use crate::protected_vm::show::{bounded, whole_seconds};
use crate::watch::{Guarded, all};
use crate::write;

/// Longest message about an account.
const MAX_TEXT: usize = 2048;

/// Why a vault cannot be used, shared by all its VMs.
type Unusable = Arc<str>;

#[derive(Clone)]
struct Kept {
    generation: Option<i64>,
    at: Timestamp,
    connected: Result<Arc<Connected>, Unusable>,
}

/// Vaults that are connected to, by name.
pub struct Vaults {
    connector: Connector,
    timing: Timing,
    kept: Mutex<HashMap<String, Kept>>,
}

impl Vaults {
    /// None yet.
    pub fn new(connector: Connector, timing: Timing) -> Self {
        Self { connector, timing, kept: Mutex::default() }
    }

    /// Connects, unless that was done a while ago for the same vault. Secrets are not watched (that would need the
    /// right to list them), so they are read again after `Timing::resync_all`, and sooner if it did not work.
    pub async fn get(&self, vault: &RecoveryVault, now: Timestamp) -> Result<Arc<Connected>, Unusable> {
        let name = vault.name_any();
        let generation = vault.metadata.generation;
        let kept = self.kept.lock().ok().and_then(|kept| kept.get(&name).cloned());
        if let Some(kept) = kept.filter(|k| k.generation == generation) {
            let life = if kept.connected.is_ok() { self.timing.resync_all } else { self.timing.retry_minute };
            if now < kept.at.checked_add(life).unwrap_or(Timestamp::MAX) {
                return kept.connected;
            }
        }
        let connected = self.connect(vault).await;
        if let Ok(mut all) = self.kept.lock() {
            // Clients with the same credentials keep their connections.
            let connected = match (&connected, all.remove(&name)) {
                (Ok(new), Some(Kept { connected: Ok(old), generation: before, .. }))
                    if before == generation && old.signer == new.signer =>
                {
                    Ok(old)
                }
                _ => connected.clone(),
            };
            all.insert(name, Kept { generation, at: now, connected: connected.clone() });
            return connected;
        }
        connected
    }

    async fn connect(&self, vault: &RecoveryVault) -> Result<Arc<Connected>, Unusable> {
        if vault.spec.cloud != Cloud::Custom && self.timing != Timing::default() {
            return Err(
                "shortened periods are for emulators: against Azure only the defaults are accepted".into()
            );
        }
        self.connector.connect(vault).await.map(Arc::new).map_err(|e: VaultError| e.to_string().into())
    }

    /// The next look connects again.
    pub fn forget(&self, vault: &str) {
        if let Ok(mut all) = self.kept.lock() {
            all.remove(vault);
        }
    }
}

/// Reconciles one vault: tries its accounts out and shows the result.
pub async fn reconcile(object: Arc<Guarded<RecoveryVault>>, ctx: Arc<Context>) -> Action {
    let Ok(vault) = &object.0 else { return Action::await_change() };
    let now = ctx.now();
    let next = look(vault, &ctx, now).await;
    let old = vault.status.clone().unwrap_or_default();
    let ready = condition::is_true(&next.conditions, condition::READY);
    if !same(&old, &next) {
        let api: Api<RecoveryVault> = Api::all(ctx.client.clone());
        let status = RecoveryVaultStatus { checked_at: Some(Time(whole_seconds(now))), ..next };
        match write::apply_status(&api, &vault.name_any(), &status).await {
            Ok(_) => info!(vault = vault.name_any(), ready, "vault looked at"),
            Err(error) => {
                warn!(vault = vault.name_any(), error = %write::brief(&error), "status not written")
            }
        }
        // VMs that wait for it are told by the watch, since the status changed.
    }
    Action::requeue(if ready {
        ctx.timing.resync_all
    } else {
        ctx.timing.retry_minute.min(ctx.timing.resync_all)
    })
}

/// Only a time differs: no write.
fn same(a: &RecoveryVaultStatus, b: &RecoveryVaultStatus) -> bool {
    a.accounts == b.accounts && condition::same(&a.conditions, &b.conditions)
}

async fn look(vault: &RecoveryVault, ctx: &Context, now: Timestamp) -> RecoveryVaultStatus {
    let old = vault.status.as_ref().map(|s| s.conditions.clone()).unwrap_or_default();
    let merge = |drafts| condition::merge(&old, drafts, vault.metadata.generation, now);
    let connected = match ctx.vaults.get(vault, now).await {
        Ok(connected) => connected,
        Err(why) => {
            let found =
                if why.contains("Secret") { reason::SECRET_NOT_FOUND } else { reason::AUTHENTICATION_FAILED };
            let what = format!("{why}. Correct spec.authentication or the Secret that it names");
            let drafts = vec![
                Draft::new(condition::READY, false, found, what.clone()),
                Draft::new(condition::RECONCILING, false, reason::IDLE, ""),
                Draft::new(condition::STALLED, true, found, what),
                Draft::new(condition::REACHABLE, condition::Status::Unknown, reason::NOT_CHECKED_YET, ""),
                Draft::new(condition::AUTHORIZED, condition::Status::Unknown, reason::NOT_CHECKED_YET, ""),
            ];
            return RecoveryVaultStatus { conditions: merge(drafts), ..RecoveryVaultStatus::default() };
        }
    };
    let mut accounts = Vec::new();
    let (mut unreachable, mut refused) = (Vec::new(), Vec::new());
    for account in &connected.accounts {
        let name = &account.account.name;
        let probed = account.probe(now).await;
        let message = probed.as_ref().err().map(ToString::to_string);
        match probed.as_ref().err().map(|e| &e.kind) {
            None => {}
            Some(BlobErrorKind::NotAuthorized | BlobErrorKind::CredentialExpired) => {
                refused.push(name.clone())
            }
            Some(_) => unreachable.push(name.clone()),
        }
        accounts.push(AccountStatus {
            name: name.clone(),
            blob_endpoint: account.account.endpoint.clone(),
            reachable: probed.is_ok(),
            kind: None,
            sku: None,
            hierarchical_namespace: None,
            protected_vms: placed(ctx, &vault.name_any(), name),
            message: message.map(|m| bounded(&m, MAX_TEXT)),
        });
    }
    RecoveryVaultStatus { accounts, checked_at: None, conditions: merge(drafts(&unreachable, &refused)) }
}

fn drafts(unreachable: &[String], refused: &[String]) -> Vec<Draft> {
    let reachable = match unreachable {
        [] => Draft::new(condition::REACHABLE, true, reason::REACHABLE, ""),
        names => Draft::new(
            condition::REACHABLE,
            false,
            reason::UNREACHABLE,
            format!(
                "storage account {} does not answer: check its endpoint and outbound HTTPS",
                names.join(", ")
            ),
        ),
    };
    let authorized = match (refused, unreachable) {
        ([], []) => Draft::new(condition::AUTHORIZED, true, reason::AUTHORIZED, ""),
        ([], _) => Draft::new(condition::AUTHORIZED, condition::Status::Unknown, reason::NOT_CHECKED_YET, ""),
        (names, _) => Draft::new(
            condition::AUTHORIZED,
            false,
            reason::NOT_AUTHORIZED,
            format!(
                "storage account {} refuses the credentials: give the identity the role Storage Blob Data Owner on it, \
                 or correct the key",
                names.join(", ")
            ),
        ),
    };
    let mut drafts = Vec::new();
    let stalled = !refused.is_empty();
    let (ready, why, what) = match (stalled, unreachable.is_empty()) {
        (true, _) => (false, reason::NOT_AUTHORIZED, authorized.message.clone()),
        (false, false) => (false, reason::UNREACHABLE, reachable.message.clone()),
        (false, true) => (true, reason::AS_DESIRED, String::new()),
    };
    drafts.push(Draft::new(condition::READY, ready, why, what.clone()));
    let retrying = !ready && !stalled;
    let going_on = if retrying { reason::RETRYING } else { reason::IDLE };
    drafts.push(Draft::new(condition::RECONCILING, retrying, going_on, ""));
    let stalled_why = if stalled { why } else { reason::NOT_STALLED };
    drafts.push(Draft::new(
        condition::STALLED,
        stalled,
        stalled_why,
        if stalled { what } else { String::new() },
    ));
    drafts.push(reachable);
    drafts.push(authorized);
    drafts
}

/// VMs that are placed on an account.
fn placed(ctx: &Context, vault: &str, account: &str) -> u32 {
    let count = all(&ctx.stores.vms)
        .iter()
        .filter_map(|vm| vm.0.as_ref().ok())
        .filter(|vm| vm.spec.vault == vault)
        .filter(|vm| vm.status.as_ref().and_then(|s| s.storage_account.as_deref()) == Some(account))
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Whom a change of a vault concerns.
pub fn wakes(ctx: &Context, vault: &str) -> Vec<ObjectRef<Guarded<farshore_api::ProtectedVM>>> {
    let vms = ctx.stores.vms.state_filter(|vm| vm.0.as_ref().is_ok_and(|vm| vm.spec.vault == vault));
    vms.iter().map(|vm| ObjectRef::from_obj(vm.as_ref())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(unreachable: &[&str], refused: &[&str]) -> Vec<(String, &'static str, &'static str)> {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let drafts = drafts(&owned(unreachable), &owned(refused));
        drafts.into_iter().map(|d| (d.type_.to_owned(), d.status.as_str(), d.reason)).collect()
    }

    #[test]
    fn a_vault_that_does_not_answer_is_retried_and_one_that_refuses_stalls() {
        let of = |list: Vec<(String, &'static str, &'static str)>, t: &str| {
            list.into_iter().find(|d| d.0 == t).map(|d| (d.1, d.2)).unwrap()
        };
        assert_eq!(of(said(&[], &[]), "Ready"), ("True", "AsDesired"));
        assert_eq!(of(said(&["a"], &[]), "Ready"), ("False", "Unreachable"));
        assert_eq!(of(said(&["a"], &[]), "Stalled"), ("False", "NotStalled"));
        assert_eq!(of(said(&["a"], &[]), "Reconciling"), ("True", "Retrying"));
        assert_eq!(of(said(&["a"], &["b"]), "Stalled"), ("True", "NotAuthorized"));
        assert_eq!(of(said(&[], &["b"]), "Reconciling"), ("False", "Idle"));
    }
}
