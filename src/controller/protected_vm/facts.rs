//! From resources to facts: what the API holds, as the types that [`farshore_core::vm`] decides about.
//!
//! Ids that cannot be parsed are left out here, once; nothing deeper checks them again.

use farshore_api::{self as api, annotation};
use farshore_core::fault::Code;
use farshore_core::format::commit::{CommitRef, Consistency};
use farshore_core::format::ledger::{DeletionPolicy, LedgerState};
use farshore_core::ids::{Cycle, CycleId, DiskId, Epoch, Stream, Term, VmId};
use farshore_core::intent::Intent;
use farshore_core::names;
use farshore_core::vm::observed::{
    AgentError, AgentReport, Base, Finding, Goal, Host, Me, PointSeen, Policy, Relationship,
    ReplicationState, Report, ReportedDisk, Sas, Schedule, Site, Tracking, Wish,
};
use farshore_core::vm::status::{Condition, DiskStatus, Effective, InitialReplication, Is, Kind, Status};
use farshore_core::vm::transition::Place;
use jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _};

/// Annotation of a relationship: when its SAS were made.
pub const SAS_ISSUED_AT: &str = "farshore.dev/sas-issued-at";
/// Annotation of a relationship: with which credentials its SAS were made (a hash, or the identity's name).
pub const SAS_SIGNER: &str = "farshore.dev/sas-signer";

/// The ProtectedVM, with the status that was last written.
pub fn me(vm: &api::ProtectedVM, written: Status) -> Me {
    let annotation = |key: &str| vm.annotations().get(key).cloned();
    let (namespace, name) = (vm.namespace().unwrap_or_default(), vm.name_any());
    let spec = &vm.spec;
    let epoch = Epoch(u64::try_from(spec.epoch).unwrap_or(0));
    let source = format!("ProtectedVM/{namespace}/{name}");
    let content = serde_json::Value::Object(spec.intent());
    Me {
        uid: vm.uid().unwrap_or_default(),
        generation: vm.meta().generation.unwrap_or(0),
        created_at: vm.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
        deleting_since: vm.meta().deletion_timestamp.as_ref().map(|t| t.0),
        finalizer: vm.finalizers().iter().any(|f| f == annotation::FINALIZER),
        abandon: annotation(annotation::ABANDON).is_some_and(|v| v != "false"),
        confirm_purge: annotation(annotation::CONFIRM_PURGE),
        owner_host: annotation(annotation::OWNER_HOST),
        site: spec.source.site.clone(),
        vm_name: spec.source.vm_name.clone(),
        vm_id: spec.source.vm_id.as_deref().and_then(|id| id.parse().ok()),
        policy: spec.policy.clone(),
        vault: spec.vault.clone(),
        exclude: spec.disks.as_ref().map(|d| d.exclude.clone()).unwrap_or_default(),
        desired: place(spec.desired_state),
        intent: Intent { source, epoch, content },
        paused: spec.paused,
        deletion_policy: deletion_policy(spec.deletion_policy),
        written,
        namespace,
        name,
    }
}

/// `desiredState`.
pub const fn place(state: api::DesiredState) -> Place {
    match state {
        api::DesiredState::Protected => Place::Protected,
        api::DesiredState::FailedOver => Place::FailedOver,
        api::DesiredState::FailoverCommitted => Place::FailoverCommitted,
        api::DesiredState::FailbackSynchronized => Place::FailbackSynchronized,
        api::DesiredState::FailedBack => Place::FailedBack,
        api::DesiredState::FailbackCommitted => Place::FailbackCommitted,
    }
}

const fn deletion_policy(policy: api::DeletionPolicy) -> DeletionPolicy {
    match policy {
        api::DeletionPolicy::Retain => DeletionPolicy::Retain,
        api::DeletionPolicy::StopReplication => DeletionPolicy::StopReplication,
        api::DeletionPolicy::Purge => DeletionPolicy::Purge,
    }
}

/// A HyperVSite.
pub fn site(site: &api::HyperVSite, namespace: &str) -> Site {
    let agent = &site.spec.agent;
    Site {
        allowed: api::namespace_allowed(site.spec.allowed_namespaces.as_deref(), namespace),
        upload_parallelism: agent.upload_parallelism_per_vm,
        reserve_bytes: agent.reserve_mib.saturating_mul(1 << 20),
    }
}

/// A ReplicationPolicy.
pub fn policy(policy: &api::ReplicationPolicy, namespace: &str) -> Policy {
    let spec = &policy.spec;
    Policy {
        allowed: api::namespace_allowed(spec.allowed_namespaces.as_deref(), namespace),
        interval_seconds: spec.replication_interval.as_secs(),
        spacing_seconds: spec.recovery_point_spacing.as_secs(),
        retention_seconds: spec.recovery_point_retention.as_secs(),
        compress: spec.compression == api::Compression::Zstd,
    }
}

/// An accepted host.
pub fn host(host: &api::HyperVHost, connected: bool) -> Host {
    let cluster = host.status.as_ref().and_then(|s| s.failover_cluster.as_ref());
    Host {
        name: host.name_any(),
        namespace: farshore_core::host::namespace(&host.name_any()),
        failover_cluster: cluster.map(|c| c.name.clone()),
        connected,
    }
}

/// A VM as its host reports it.
pub fn report(vm: &api::HyperVVM, host: Host) -> Option<Report> {
    let disk = |d: &api::VirtualDisk| ReportedDisk {
        id: d.id.parse().ok(),
        path: d.path.clone(),
        virtual_size: d.virtual_size_bytes,
        shared: d.shared || d.format == api::DiskFormat::VHDSet,
        pass_through: d.format == api::DiskFormat::PassThrough,
    };
    Some(Report {
        host,
        vm_id: vm.spec.vm_id.parse().ok()?,
        vm_name: vm.spec.vm_name.clone(),
        disks: vm.spec.disks.iter().map(disk).collect(),
        unmet: vm.spec.findings.iter().map(finding).collect(),
    })
}

fn finding(f: &api::Finding) -> Finding {
    // A code of a newer agent is still shown by its own name.
    match f.code.parse() {
        Ok(code) => Finding::new(code, f.message.clone()),
        Err(()) => Finding::new(Code::Unknown, format!("{}: {}", f.code, f.message)),
    }
}

/// A relationship with what its agent reports; nothing if its ids cannot be read.
pub fn relationship(rel: &api::ReplicationRelationship) -> Option<Relationship> {
    let annotation = |key: &str| rel.annotations().get(key).cloned();
    let sas = annotation(SAS_ISSUED_AT)
        .and_then(|at| at.parse().ok())
        .map(|issued_at| Sas { issued_at, signer: annotation(SAS_SIGNER).unwrap_or_default() });
    Some(Relationship {
        host: rel.labels().get(annotation::HOST).cloned().unwrap_or_default(),
        namespace: rel.namespace().unwrap_or_default(),
        uid: rel.uid().unwrap_or_default(),
        wish: wish(&rel.spec)?,
        report: rel.status.as_ref().map(|s| agent_report(s, &rel.spec)).unwrap_or_default(),
        sas,
    })
}

fn wish(spec: &api::ReplicationRelationshipSpec) -> Option<Wish> {
    let owner = &spec.protected_vm;
    let schedule = &spec.schedule;
    Some(Wish {
        vm_id: spec.vm_id.parse().ok()?,
        protected_vm: (owner.namespace.clone(), owner.name.clone(), owner.uid.clone()),
        goal: match spec.goal {
            api::Goal::Replicate => Goal::Replicate,
            api::Goal::StopReplicating => {
                Goal::StopReplicating { keep_points_until: spec.keep_points_until.as_ref().map(|t| t.0) }
            }
        },
        term: Term(spec.term),
        stream: Stream(spec.stream),
        disks: spec.disks.iter().filter_map(|d| d.parse().ok()).collect(),
        schedule: Schedule {
            interval_seconds: schedule.interval_seconds,
            paused: schedule.paused,
            spacing_seconds: schedule.recovery_point_spacing_seconds,
            retention_seconds: schedule.recovery_point_retention_seconds,
        },
        blob: spec.endpoints.blob.clone(),
        ca_bundle: spec.endpoints.ca_bundle.clone(),
        vault: spec.vault.clone(),
        account: spec.storage_account.clone(),
        compress: spec.compression == api::Compression::Zstd,
        upload_parallelism: spec.upload_parallelism,
        reserve_bytes: spec.reserve_bytes,
        base: spec.base.as_ref().and_then(base),
    })
}

fn base(base: &api::Base) -> Option<Base> {
    let id = CycleId { term: Term(base.term), stream: Stream(base.stream), cycle: Cycle(base.cycle) };
    Some(Base {
        commit: CommitRef { id, hash: base.commit_hash.parse().ok()? },
        reference_point_id: base.reference_point_id.clone().unwrap_or_default(),
        rct_ids: base.rct_ids.iter().filter_map(|r| Some((r.disk.parse().ok()?, r.id.clone()))).collect(),
        copied_up_to: base
            .copied_up_to
            .iter()
            .filter_map(|c| Some((c.disk.parse().ok()?, c.bytes)))
            .collect(),
        own_point_ids: base.owned_point_ids.clone(),
    })
}

/// What a wish is in the API.
pub fn relationship_spec(wish: &Wish) -> api::ReplicationRelationshipSpec {
    let Wish {
        vm_id,
        protected_vm: (namespace, name, uid),
        goal,
        term,
        stream,
        disks,
        schedule,
        blob,
        ca_bundle,
        vault,
        account,
        compress,
        upload_parallelism,
        reserve_bytes,
        base,
    } = wish;
    let (goal, keep_points_until) = match goal {
        Goal::Replicate => (api::Goal::Replicate, None),
        Goal::StopReplicating { keep_points_until } => {
            (api::Goal::StopReplicating, keep_points_until.map(api::Time))
        }
    };
    api::ReplicationRelationshipSpec {
        vm_id: vm_id.to_string(),
        protected_vm: api::ProtectedVMRef {
            namespace: namespace.clone(),
            name: name.clone(),
            uid: uid.clone(),
        },
        goal,
        term: term.0,
        stream: stream.0,
        disks: disks.iter().map(DiskId::to_string).collect(),
        schedule: api::Schedule {
            interval_seconds: schedule.interval_seconds,
            paused: schedule.paused,
            recovery_point_spacing_seconds: schedule.spacing_seconds,
            recovery_point_retention_seconds: schedule.retention_seconds,
        },
        endpoints: api::Endpoints {
            blob: blob.clone(),
            replica_container: names::replica_container(*vm_id),
            up_container: names::up_container(*vm_id),
            down_container: names::down_container(*vm_id),
            ca_bundle: ca_bundle.clone(),
        },
        vault: vault.clone(),
        storage_account: account.clone(),
        sas_secret: sas_secret(*vm_id),
        compression: if *compress { api::Compression::Zstd } else { api::Compression::None },
        upload_parallelism: *upload_parallelism,
        reserve_bytes: *reserve_bytes,
        base: base.as_ref().map(base_spec),
        keep_points_until,
    }
}

fn base_spec(base: &Base) -> api::Base {
    let Base { commit, reference_point_id, rct_ids, copied_up_to, own_point_ids } = base;
    api::Base {
        term: commit.id.term.0,
        stream: commit.id.stream.0,
        cycle: commit.id.cycle.0,
        commit_hash: commit.hash.to_string(),
        reference_point_id: Some(reference_point_id.clone()).filter(|id| !id.is_empty()),
        rct_ids: rct_ids.iter().map(|(d, id)| api::RctId { disk: d.to_string(), id: id.clone() }).collect(),
        copied_up_to: copied_up_to
            .iter()
            .map(|(d, bytes)| api::CopiedUpTo { disk: d.to_string(), bytes: *bytes })
            .collect(),
        owned_point_ids: own_point_ids.clone(),
    }
}

/// Name of the Secret with a VM's SAS.
pub fn sas_secret(vm: VmId) -> String {
    format!("sas-{vm}")
}

fn agent_report(
    status: &api::ReplicationRelationshipStatus,
    spec: &api::ReplicationRelationshipSpec,
) -> AgentReport {
    AgentReport {
        observed: status.observed.map(|o| (Term(o.term), Stream(o.stream))),
        goal_observed: status.observed.is_some_and(|o| o.goal == spec.goal),
        state: status.state.and_then(replication_state),
        step: status.step.clone(),
        progress: status.progress.map(|p| (p.bytes_total, p.bytes_copied)),
        tracking: status.tracking.as_ref().map(|t| Tracking {
            avhdx_bytes: t.avhdx_bytes,
            log_bytes: t.log_bytes,
            volume_free_bytes: t.volume_free_bytes,
        }),
        unmet: status.unmet_prerequisites.iter().map(finding).collect(),
        error: status.last_error.as_ref().map(|e| AgentError {
            code: e.code.parse().unwrap_or(Code::Unknown),
            message: e.message.clone(),
            since: e.since.0,
            attempts: e.attempts,
        }),
        released: status.released,
        journal_lost: status.journal_lost,
    }
}

/// The states that exist before any failover does; others come with later versions.
fn replication_state(state: api::ReplicationState) -> Option<ReplicationState> {
    Some(match state {
        api::ReplicationState::Disabled => ReplicationState::Disabled,
        api::ReplicationState::ReadyForReplication => ReplicationState::ReadyForReplication,
        api::ReplicationState::WaitingToCompleteInitialReplication => {
            ReplicationState::WaitingToCompleteInitialReplication
        }
        api::ReplicationState::Replicating => ReplicationState::Replicating,
        api::ReplicationState::Suspended => ReplicationState::Suspended,
        api::ReplicationState::Critical => ReplicationState::Critical,
        api::ReplicationState::WaitingToStartResynchronization => {
            ReplicationState::WaitingToStartResynchronization
        }
        api::ReplicationState::Resynchronizing => ReplicationState::Resynchronizing,
        api::ReplicationState::SyncedReplicationComplete
        | api::ReplicationState::Recovered
        | api::ReplicationState::Committed
        | api::ReplicationState::ResynchronizationSuspended
        | api::ReplicationState::FailoverInProgress
        | api::ReplicationState::FailbackInProgress
        | api::ReplicationState::FailbackComplete => return None,
    })
}

/// The status that was last written, as far as decisions and events look at it.
pub fn written(status: Option<&api::ProtectedVMStatus>) -> Status {
    let Some(s) = status else { return Status::default() };
    Status {
        observed_generation: s.observed_generation.unwrap_or(0),
        state: s.state.and_then(ledger_state),
        health: s.health.map(|h| match h {
            api::Health::Normal => farshore_core::fault::Health::Normal,
            api::Health::Warning => farshore_core::fault::Health::Warning,
            api::Health::Critical => farshore_core::fault::Health::Critical,
        }),
        replication_state: s.replication_state.and_then(replication_state),
        effective: s.effective.as_ref().map(|e| Effective {
            place: place(e.state),
            epoch: Epoch(u64::try_from(e.epoch).unwrap_or(0)),
            set_by: e.set_by.clone(),
        }),
        allowed: s.allowed_transitions.iter().map(|p| place(*p)).collect(),
        vm_id: s.vm_id.as_deref().and_then(|id| id.parse().ok()),
        host: s.host.clone(),
        storage_account: s.storage_account.clone(),
        rpo_seconds: s.rpo.map(api::Duration::as_secs),
        points: s.recovery_points.iter().filter_map(point).collect(),
        initial: s.initial_replication.as_ref().map(|i| InitialReplication {
            total: i.bytes_total,
            copied: i.bytes_copied,
            eta: i.eta.as_ref().map(|t| t.0),
        }),
        tracking: s.tracking.as_ref().map(|t| Tracking {
            avhdx_bytes: t.avhdx_bytes,
            log_bytes: t.log_bytes,
            volume_free_bytes: t.volume_free_bytes,
        }),
        disks: s.disks.iter().filter_map(disk).collect(),
        last_error: s
            .last_error
            .as_ref()
            .map(|e| Finding { code: e.code.parse().unwrap_or(Code::Unknown), message: e.message.clone() }),
        conditions: s.conditions.iter().filter_map(condition).collect(),
    }
}

fn ledger_state(state: api::State) -> Option<LedgerState> {
    Some(match state {
        api::State::Protected => LedgerState::Protected,
        api::State::FailedOver => LedgerState::FailedOver,
        api::State::FailoverCommitted => LedgerState::FailoverCommitted,
        api::State::FailbackSynchronized => LedgerState::FailbackSynchronized,
        api::State::FailedBack => LedgerState::FailedBack,
        api::State::FailbackCommitted => LedgerState::FailbackCommitted,
        api::State::Enabling => LedgerState::Enabling,
        api::State::FailingOver
        | api::State::ChangingRecoveryPoint
        | api::State::Cancelling
        | api::State::Committing
        | api::State::Synchronizing
        | api::State::FailingBack
        | api::State::Undoing
        | api::State::CommittingFailback
        | api::State::Reversing => return None,
    })
}

fn point(p: &api::RecoveryPoint) -> Option<PointSeen> {
    let mut parts = p.name.split('-').skip(1);
    let mut number = || parts.next()?.parse::<u64>().ok();
    let (term, stream, cycle) = (number()?, number()?, number()?);
    let (term, stream) = (Term(u32::try_from(term).ok()?), Stream(u32::try_from(stream).ok()?));
    Some(PointSeen {
        name: p.name.clone(),
        time: p.time.0,
        cycle: CycleId { term, stream, cycle: Cycle(cycle) },
        consistency: match p.consistency {
            api::Consistency::Crash => Consistency::Crash,
            api::Consistency::Application => Consistency::Application,
            api::Consistency::Final => Consistency::Final,
        },
    })
}

fn disk(d: &api::ReplicatedDisk) -> Option<DiskStatus> {
    Some(DiskStatus { id: d.id.parse().ok()?, path: d.path.clone(), virtual_size: d.virtual_size_bytes })
}

fn condition(c: &api::Condition) -> Option<Condition> {
    let kind = Kind::ALL.into_iter().find(|k| k.as_str() == c.type_)?;
    let is = match c.status.as_str() {
        "True" => Is::True,
        "False" => Is::False,
        _ => Is::Unknown,
    };
    Some(Condition { kind, is, reason: c.reason.clone(), message: c.message.clone() })
}
