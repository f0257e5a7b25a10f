//! The shared world, and a VM that is protected in it.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use farshore_api::{HyperVSite, ProtectedVM, RecoveryVault, ReplicationPolicy, ReplicationRelationship};
use farshore_core::format::point::Point;
use farshore_core::ids::{DiskId, VmId};
use farshore_lab::host::admin::NewVm;
use farshore_lab::host::client::Admin;
use farshore_lab::launch::{Seen, Settings, World, install_crypto, until};
use farshore_lab::proof::{self, Containers};
use jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::RwLock;

/// The host of the shared world.
pub const HOST: &str = "hv01";
/// Its site.
pub const SITE: &str = "amsterdam";
/// Where ProtectedVMs are.
pub const NAMESPACE: &str = "shop";
/// The policy: cycles every 30 s of policy time (about a second in the lab).
pub const POLICY: &str = "gold";
/// The vault: the world's Azurite.
pub const VAULT: &str = "lab";

/// Capacity of the host's volume in bytes: what the machine has free must not decide a test.
const VOLUME: &str = "21474836480";
/// The longest that anything may take before a test gives up on it.
const LIMIT: Duration = Duration::from_secs(180);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));
static STAGE: LazyLock<Result<Stage>> = LazyLock::new(|| RUNTIME.block_on(Stage::set()));
static NUMBER: AtomicU64 = AtomicU64::new(1);

/// Cases run beside each other, but for those that take away what the others need.
static GATE: RwLock<()> = RwLock::const_new(());

/// Runs a case in the shared world, beside others.
pub fn stage<F: Future>(case: impl FnOnce(&'static Stage) -> F) -> F::Output {
    with_stage(async |stage| {
        let _beside = GATE.read().await;
        case(stage).await
    })
}

/// Runs a case that kills, cuts or fills what others need, or counts what they would add to: alone.
pub fn stage_alone<F: Future>(case: impl FnOnce(&'static Stage) -> F) -> F::Output {
    with_stage(async |stage| {
        let _alone = GATE.write().await;
        case(stage).await
    })
}

fn with_stage<F: Future>(case: impl FnOnce(&'static Stage) -> F) -> F::Output {
    install_crypto();
    match &*STAGE {
        Ok(stage) => RUNTIME.block_on(case(stage)),
        Err(error) => panic!("no world: {error:#}"),
    }
}

/// The shared world.
pub struct Stage {
    /// Everything that runs.
    pub world: World,
    folder: PathBuf,
}

impl Stage {
    async fn set() -> Result<Self> {
        let folder = farshore_lab::scratch("scenario")?;
        let world = World::start(Settings::new(&folder)).await?;
        world.start_controller(&[])?;
        for worker in ["worker-1", "worker-2"] {
            world.start_replica_server(worker, &[])?;
        }
        world.start_host(HOST, &["--record", "--volume-bytes", VOLUME]).await?;
        let stage = Self { world, folder };
        stage
            .apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}))
            .await?;
        stage
            .create::<HyperVSite>(json!({
                "metadata": {"name": SITE},
                "spec": {"management": {"standalone": {}}, "agent": {"reserveMiB": 16}},
            }))
            .await?;
        stage
            .create::<ReplicationPolicy>(json!({
                "metadata": {"name": POLICY},
                "spec": {"replicationInterval": "30s", "recoveryPointSpacing": "5m"},
            }))
            .await?;
        let vault = stage.world.vault().await?;
        stage.create::<RecoveryVault>(vault).await?;
        stage.world.enroll(HOST, SITE).await?;
        Ok(stage)
    }

    /// The host as its administrator reaches it.
    pub fn admin(&self) -> Admin {
        Admin::new(self.world.host_socket(HOST))
    }

    /// A folder of this case's own.
    pub fn folder(&self, case: &str) -> Result<PathBuf> {
        let folder = self.folder.join("cases").join(case);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Applies any object by kubectl, as a person does.
    pub async fn apply(&self, object: Value) -> Result<()> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("manifest-{number}.json"));
        std::fs::write(&path, serde_json::to_vec_pretty(&object)?)?;
        self.world.kubectl(&["apply", "-f", &path.display().to_string()]).await?;
        Ok(())
    }

    /// Creates a cluster-scoped object; its kind and version are filled in.
    pub async fn create<K>(&self, object: Value) -> Result<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
            + Clone
            + DeserializeOwned
            + serde::Serialize
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::all(self.world.client());
        Ok(api.create(&PostParams::default(), &with_kind::<K>(object)?).await?)
    }

    /// The ProtectedVMs of [`NAMESPACE`].
    pub fn protected_vms(&self) -> Api<ProtectedVM> {
        Api::namespaced(self.world.client(), NAMESPACE)
    }

    /// Makes and starts a VM with disks of these sizes.
    pub async fn make_vm(&self, name: &str, sizes: &[u64]) -> Result<Protected<'_>> {
        let admin = self.admin();
        let made = admin.create(NewVm::with_disks(name, sizes)).await?;
        admin.start(name).await?;
        let found = admin.find(name).await?.context("the machine was just made")?;
        Ok(Protected {
            stage: self,
            name: name.to_owned(),
            vm: made.info.id,
            disks: found.info.disks.iter().map(|d| (d.disk_id, d.size)).collect(),
            nbd: found.nbd,
            containers: Containers::of(&self.world, made.info.id)?,
        })
    }

    /// A ProtectedVM for the VM of that name, with these fields over the usual ones.
    pub async fn protect(&self, name: &str, vm_name: &str, spec: Value) -> Result<ProtectedVM> {
        let mut whole = json!({
            "source": {"site": SITE, "vmName": vm_name},
            "policy": POLICY, "vault": VAULT, "desiredState": "Protected", "epoch": 1,
        });
        if let (Some(whole), Value::Object(spec)) = (whole.as_object_mut(), spec) {
            whole.extend(spec);
        }
        let object = json!({"metadata": {"name": name, "namespace": NAMESPACE}, "spec": whole});
        Ok(self.protected_vms().create(&PostParams::default(), &with_kind::<ProtectedVM>(object)?).await?)
    }

    /// Waits until the ProtectedVM's status satisfies `seen`.
    pub async fn await_status(&self, name: &str, what: &str, seen: impl Fn(&Value) -> bool) -> Result<Value> {
        let api = self.protected_vms();
        let found = until(what, LIMIT, async || {
            let object = match api.get(name).await {
                Ok(object) => serde_json::to_value(object.status).unwrap_or_default(),
                Err(error) => return Ok(Seen::NotYet(error.to_string())),
            };
            Ok(if seen(&object) { Seen::Yes(object) } else { Seen::NotYet(object.to_string()) })
        })
        .await?;
        Ok(found)
    }

    /// Waits until a condition has this status, and returns its reason and message.
    pub async fn await_condition(
        &self,
        name: &str,
        condition: &str,
        status: &str,
    ) -> Result<(String, String)> {
        let what = format!("condition {condition}={status} of ProtectedVM {name}");
        let found = self
            .await_status(name, &what, |s| {
                find_condition(s, condition).is_some_and(|c| c["status"] == status)
            })
            .await?;
        let condition = find_condition(&found, condition).context("the condition was just seen")?;
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        Ok((text("reason"), text("message")))
    }

    /// The relationship of a VM, wherever its host's namespace is.
    pub async fn relationship(&self, vm: VmId) -> Result<Option<ReplicationRelationship>> {
        let api: Api<ReplicationRelationship> = Api::all(self.world.client());
        let all = api.list(&ListParams::default()).await?;
        Ok(all.items.into_iter().find(|r| r.spec.vm_id == vm.to_string()))
    }

    /// Merges a patch into a ProtectedVM.
    pub async fn patch(&self, name: &str, patch: Value) -> Result<ProtectedVM> {
        Ok(self.protected_vms().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?)
    }

    /// Deletes a ProtectedVM and waits until it is gone.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.protected_vms().delete(name, &DeleteParams::default()).await?;
        self.await_gone(name).await
    }

    /// Waits until a ProtectedVM is gone.
    pub async fn await_gone(&self, name: &str) -> Result<()> {
        let api = self.protected_vms();
        until(&format!("end of ProtectedVM {name}"), LIMIT, async || {
            Ok(match api.get_opt(name).await {
                Ok(None) => Seen::Yes(()),
                Ok(Some(found)) => Seen::NotYet(format!("{:?}", found.status)),
                Err(error) => Seen::NotYet(error.to_string()),
            })
        })
        .await?;
        Ok(())
    }
}

fn find_condition<'a>(status: &'a Value, condition: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|c| c["type"] == condition)
}

/// A VM with what is needed to look at its replica.
pub struct Protected<'a> {
    stage: &'a Stage,
    /// Name of the VM, and of its ProtectedVM in most cases.
    pub name: String,
    /// Its id.
    pub vm: VmId,
    /// Its disks and their sizes, by slot.
    pub disks: Vec<(DiskId, u64)>,
    /// Its NBD socket.
    pub nbd: PathBuf,
    /// Its containers.
    pub containers: Containers,
}

impl Protected<'_> {
    /// Waits for a recovery point whose instant is not before `at`.
    pub async fn point_after(&self, at: Timestamp) -> Result<Point> {
        let found = until(&format!("recovery point of {} after {at}", self.name), LIMIT, async || {
            let points = match proof::points(&self.containers.replica).await {
                Ok(points) => points,
                Err(error) => return Ok(Seen::NotYet(format!("{error:#}"))),
            };
            let newest = points.into_iter().next_back();
            Ok(match newest {
                Some(point) if point.time >= at => Seen::Yes(point),
                other => Seen::NotYet(format!("{other:?}, cursor {:?}", self.containers.cursor().await)),
            })
        })
        .await?;
        Ok(found)
    }

    /// Compares every recovery point there is with what the source held at its instant; returns how many.
    pub async fn prove_all(&self, folder: &Path) -> Result<usize> {
        let instants = self.stage.admin().instants(&self.name).await?;
        let mut proven = 0;
        for point in proof::points(&self.containers.replica).await? {
            match proof::prove(&self.containers.replica, &point, &instants, &self.disks, folder).await {
                Ok(_) => proven += 1,
                Err(error) => {
                    let still = proof::points(&self.containers.replica).await?;
                    if still.iter().any(|p| p.name == point.name) {
                        return Err(error);
                    }
                }
            }
        }
        ensure!(proven > 0, "{} has no recovery point", self.name);
        Ok(proven)
    }

    /// Writes through the hypervisor, as the guest would.
    pub async fn write(&self, disk: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        self.stage.admin().write_bytes(&self.name, &disk.to_string(), offset, bytes).await?;
        Ok(())
    }
}

fn with_kind<K>(mut object: Value) -> Result<K>
where
    K: kube::Resource<DynamicType = ()> + DeserializeOwned,
{
    let Some(map) = object.as_object_mut() else { bail!("an object is a map") };
    map.insert("apiVersion".into(), K::api_version(&()).into_owned().into());
    map.insert("kind".into(), K::kind(&()).into_owned().into());
    Ok(serde_json::from_value(object)?)
}
