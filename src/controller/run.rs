//! Puts the controller together: watches, queues, reconcilers, leadership.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use farshore_api::{HyperVHost, HyperVVM, ProtectedVM, ReplicationRelationship};
use farshore_core::timing::Timing;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::PostParams;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::context::{Clock, Context};
use crate::metrics::Metrics;
use crate::protected_vm::memory::Memories;
use crate::report::Report;
use crate::vault::Vaults;
use crate::vault::connect::Connector;
use crate::watch::{Guarded, Queues, Stores, all, follow, queues, run as reconcile, watch};
use crate::{host, leader, metrics, protected_vm, site, sweep, vault};

/// ProtectedVMs reconciled at the same time: each waits for storage most of the time.
const VMS_AT_ONCE: u16 = 16;
/// Of every other kind.
const OTHERS_AT_ONCE: u16 = 4;

/// What the controller is started with.
pub struct Settings {
    /// With the controller's own rights.
    pub client: Client,
    /// Farshore's own namespace.
    pub namespace: String,
    /// Name of this replica.
    pub identity: String,
    /// All periods.
    pub timing: Timing,
    /// Certificates that blob endpoints are trusted by.
    pub blob_ca_file: Option<PathBuf>,
    /// Where metrics are served.
    pub metrics_listen: Option<SocketAddr>,
    /// The clock.
    pub clock: Clock,
}

/// Runs until `stop`: leads when it can, and reconciles while it leads.
///
/// # Errors
/// The API cannot be reached at the start, or the Lease cannot be made.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::default());
    if let Some(address) = settings.metrics_listen {
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            if let Err(error) = metrics::serve(address, metrics).await {
                error!(%address, %error, "metrics not served");
            }
        });
    }
    let work = || lead(&settings, Arc::clone(&metrics));
    let (client, timing) = (settings.client.clone(), &settings.timing);
    leader::lead(client, &settings.namespace, &settings.identity, timing.leader_lease, &stop, work)
        .await
        .context("leadership")
}

/// Reconciles until dropped. Starts over if it cannot begin.
async fn lead(settings: &Settings, metrics: Arc<Metrics>) {
    struct Leads(Arc<Metrics>);
    impl Drop for Leads {
        fn drop(&mut self) {
            self.0.leads(false);
        }
    }
    metrics.leads(true);
    let _leads = Leads(Arc::clone(&metrics));
    loop {
        match begin(settings, &metrics).await {
            Ok(mut tasks) => {
                // None of them ends by itself; one that does is a defect, and everything starts over.
                let ended = tasks.join_next().await;
                error!(?ended, "a part of the controller ended");
            }
            Err(error) => error!(error = format!("{error:#}"), "the controller could not begin"),
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

/// Starts everything; dropping the result ends it.
async fn begin(settings: &Settings, metrics: &Arc<Metrics>) -> anyhow::Result<JoinSet<()>> {
    let client = settings.client.clone();
    let cluster_id = cluster_id(client.clone()).await?;
    let user = own_name(client.clone()).await?;
    info!(cluster_id, user, "reconciling");
    let mut tasks = JoinSet::new();
    let config = watcher::Config::default;

    let (vms, vm_changes) = watch(Api::all(client.clone()), config());
    let (relationships, relationship_changes) = watch(Api::all(client.clone()), config());
    let (reports, report_changes) = watch(Api::all(client.clone()), config());
    let (hosts, host_changes) = watch(Api::all(client.clone()), config());
    let (sites, site_changes) = watch(Api::all(client.clone()), config());
    let (policies, policy_changes) = watch(Api::all(client.clone()), config());
    let (vaults, vault_changes) = watch(Api::all(client.clone()), config());
    let (jobs, job_changes) = watch(Api::all(client.clone()), config());
    let (requests, request_changes) = watch(Api::all(client.clone()), config());
    let stores = Stores { vms, relationships, reports, hosts, sites, policies, vaults, jobs, requests };
    let (queues, waiting) = queues();
    let ctx = Arc::new(context(settings, metrics, cluster_id, user, stores, queues));

    let at = |ctx: &Arc<Context>| Arc::clone(ctx);
    let c = at(&ctx);
    follow(&mut tasks, vm_changes, move |vm: Guarded<ProtectedVM>| vm_changed(at(&c), vm));
    let c = at(&ctx);
    follow(&mut tasks, relationship_changes, move |r: Guarded<ReplicationRelationship>| {
        relationship_changed(at(&c), r)
    });
    let c = at(&ctx);
    follow(&mut tasks, report_changes, move |vm: Guarded<HyperVVM>| report_changed(at(&c), vm));
    let c = at(&ctx);
    follow(&mut tasks, host_changes, move |h: Guarded<HyperVHost>| host_changed(at(&c), h));
    let c = at(&ctx);
    follow(&mut tasks, site_changes, move |s| {
        let ctx = at(&c);
        async move {
            ctx.queues.sites.wake(ObjectRef::from_obj(&s)).await;
            let name = s.name_any();
            wake_vms(&ctx, move |vm| vm.spec.source.site == name).await;
        }
    });
    let c = at(&ctx);
    follow(&mut tasks, policy_changes, move |p| {
        let ctx = at(&c);
        async move {
            ctx.queues.policies.wake(ObjectRef::from_obj(&p)).await;
            let name = p.name_any();
            wake_vms(&ctx, move |vm| vm.spec.policy == name).await;
        }
    });
    let c = at(&ctx);
    follow(&mut tasks, vault_changes, move |v| {
        let ctx = at(&c);
        async move {
            ctx.queues.vaults.wake(ObjectRef::from_obj(&v)).await;
            ctx.queues.vms.wake_all(vault::wakes(&ctx, &v.name_any())).await;
        }
    });
    follow(&mut tasks, job_changes, |_| async {});
    let c = at(&ctx);
    follow(&mut tasks, request_changes, move |r| {
        let ctx = at(&c);
        async move { ctx.queues.requests.wake(ObjectRef::from_obj(&r)).await }
    });
    // Nodes' Leases are many and of no interest.
    let leases = watcher::Config::default().fields("metadata.namespace!=kube-node-lease");
    let beats = watcher(Api::<Lease>::all(client.clone()), leases).default_backoff().touched_objects();
    let c = at(&ctx);
    follow(&mut tasks, beats, move |lease: Lease| {
        let ctx = at(&c);
        async move {
            let namespace = lease.namespace().unwrap_or_default();
            if namespace.starts_with("farshore-host-")
                && host::beat(&ctx, &lease)
                && let Some(host) = host::of_namespace(&ctx, &namespace)
            {
                ctx.queues.hosts.wake(host).await;
            }
        }
    });

    // A reconciler that knows half of the world would see things missing that are there.
    let s = &ctx.stores;
    let ready = async {
        tokio::try_join!(
            s.vms.wait_until_ready(),
            s.relationships.wait_until_ready(),
            s.reports.wait_until_ready(),
            s.hosts.wait_until_ready(),
            s.sites.wait_until_ready(),
            s.policies.wait_until_ready(),
            s.vaults.wait_until_ready(),
            s.jobs.wait_until_ready(),
            s.requests.wait_until_ready(),
        )
    };
    ready.await.context("reading what the API holds")?;

    let c = || Arc::clone(&ctx);
    reconcile(&mut tasks, s.hosts.clone(), waiting.hosts, OTHERS_AT_ONCE, c(), host::reconcile);
    reconcile(&mut tasks, s.requests.clone(), waiting.requests, OTHERS_AT_ONCE, c(), host::csr::reconcile);
    reconcile(&mut tasks, s.vaults.clone(), waiting.vaults, OTHERS_AT_ONCE, c(), vault::reconcile);
    reconcile(&mut tasks, s.sites.clone(), waiting.sites, OTHERS_AT_ONCE, c(), site::site);
    reconcile(&mut tasks, s.policies.clone(), waiting.policies, OTHERS_AT_ONCE, c(), site::policy);
    reconcile(&mut tasks, s.vms.clone(), waiting.vms, VMS_AT_ONCE, c(), protected_vm::reconcile);
    tasks.spawn(sweep::run(c(), settings.timing.resync_all));
    Ok(tasks)
}

fn context(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    cluster_id: String,
    user: String,
    stores: Stores,
    queues: Queues,
) -> Context {
    let Settings { client, namespace, identity, timing, blob_ca_file, metrics_listen: _, clock } = settings;
    let connector = Connector::new(client.clone(), namespace.clone(), blob_ca_file.clone(), timing.clone());
    Context {
        client: client.clone(),
        namespace: namespace.clone(),
        cluster_id,
        user,
        timing: timing.clone(),
        clock: Arc::clone(clock),
        stores,
        queues,
        vaults: Vaults::new(connector, timing.clone()),
        memories: Memories::default(),
        heartbeats: Mutex::new(HashMap::new()),
        spent: Mutex::new(HashSet::new()),
        report: Report::new(client.clone(), identity.clone()),
        metrics: Arc::clone(metrics),
    }
}

/// Uid of kube-system: the only thing of a cluster that is unique and stays.
async fn cluster_id(client: Client) -> anyhow::Result<String> {
    let namespaces: Api<Namespace> = Api::all(client);
    let system = namespaces.get("kube-system").await.context("reading namespace kube-system")?;
    system.uid().context("namespace kube-system has no uid")
}

async fn own_name(client: Client) -> anyhow::Result<String> {
    let reviews: Api<SelfSubjectReview> = Api::all(client);
    let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await;
    let status = review.context("asking who the controller is")?.status;
    status
        .and_then(|s| s.user_info)
        .and_then(|u| u.username)
        .context("the API does not say who the controller is")
}

async fn wake_vms(ctx: &Context, concerned: impl Fn(&ProtectedVM) -> bool) {
    let vms = ctx.stores.vms.state_filter(|vm| vm.0.as_ref().is_ok_and(&concerned));
    ctx.queues.vms.wake_all(vms.iter().map(|vm| ObjectRef::from_obj(vm.as_ref())).collect::<Vec<_>>()).await;
}

/// Itself, and whoever may mean the same VM.
async fn vm_changed(ctx: Arc<Context>, changed: Guarded<ProtectedVM>) {
    let key = ObjectRef::from_obj(&changed);
    ctx.queues.vms.wake(key.clone()).await;
    let Ok(changed) = &changed.0 else { return };
    let gone = changed.metadata.deletion_timestamp.is_some() || ctx.stores.vms.get(&key).is_none();
    if !gone {
        return;
    }
    let source = changed.spec.source.clone();
    let uid = changed.uid();
    wake_vms(&ctx, move |vm| vm.spec.source.site == source.site && vm.uid() != uid && stands_by(vm)).await;
}

/// Only a VM that is not protected can have waited for another to go.
fn stands_by(vm: &ProtectedVM) -> bool {
    vm.status.as_ref().is_none_or(|s| s.state.is_none())
}

async fn relationship_changed(ctx: Arc<Context>, changed: Guarded<ReplicationRelationship>) {
    let Ok(changed) = &changed.0 else { return };
    let owner = &changed.spec.protected_vm;
    ctx.queues.vms.wake(ObjectRef::new(&owner.name).within(&owner.namespace)).await;
}

async fn report_changed(ctx: Arc<Context>, changed: Guarded<HyperVVM>) {
    let Ok(changed) = &changed.0 else { return };
    let (id, name) = (changed.spec.vm_id.to_lowercase(), changed.spec.vm_name.to_lowercase());
    wake_vms(&ctx, move |vm| {
        let source = &vm.spec.source;
        let known = source.vm_id.as_deref().or(vm.status.as_ref().and_then(|s| s.vm_id.as_deref()));
        match known {
            Some(known) => known.eq_ignore_ascii_case(&id),
            None => source.vm_name.as_deref().is_some_and(|n| n.to_lowercase() == name),
        }
    })
    .await;
}

async fn host_changed(ctx: Arc<Context>, changed: Guarded<HyperVHost>) {
    ctx.queues.hosts.wake(ObjectRef::from_obj(&changed)).await;
    let Ok(changed) = &changed.0 else { return };
    if let Some(site) = host::site_of(&ctx, changed) {
        ctx.queues.sites.wake(site).await;
    }
    let name = changed.name_any();
    let requests = all(&ctx.stores.requests);
    let of_host =
        requests.iter().filter(|r| r.0.as_ref().is_ok_and(|r| host::csr::of_host(r).as_ref() == Some(&name)));
    ctx.queues.requests.wake_all(of_host.map(|r| ObjectRef::from_obj(r.as_ref())).collect::<Vec<_>>()).await;
    let site = changed.spec.site.clone();
    wake_vms(&ctx, move |vm| {
        let host = vm.status.as_ref().and_then(|s| s.host.as_deref());
        vm.spec.source.site == site && host.is_none_or(|h| h == name)
    })
    .await;
}
