//! What the host has: its own facts in the status of its HyperVHost, a HyperVVM per machine. Written only when
//! something changed; numbers that always change are rounded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use farshore_api as api;
use farshore_api::{HyperVHost, HyperVVM, HyperVVMSpec};
use farshore_core::names::CHECKPOINT_PREFIX;
use farshore_core::relationship::unmet;
use farshore_core::timing::Timing;
use farshore_core::units::GIB;
use farshore_hyperv::{CheckpointKind, DiskFormat, DiskType, HostInfo, Hypervisor, PowerState, VmInfo};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::MANAGER;
use super::connection::Connection;
use crate::engine::facts;

/// Looks at the host for ever and publishes what changed.
pub(super) async fn run<H: Hypervisor>(
    connection: Connection,
    namespace: String,
    name: String,
    host: Arc<H>,
    timing: Timing,
) {
    let mut published = Published { connection, namespace, name, status: None, status_at: None, vms: None };
    let mut tick = tokio::time::interval(timing.inventory_refresh);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = published.refresh(&*host, timing.status_refresh).await {
            tracing::warn!(error = %format!("{error:#}"), "the inventory could not be published");
        }
    }
}

struct Published {
    connection: Connection,
    namespace: String,
    name: String,
    /// As last written.
    status: Option<Value>,
    status_at: Option<Instant>,
    /// As last written, by name of the object. `None` before the first listing.
    vms: Option<BTreeMap<String, HyperVVMSpec>>,
}

impl Published {
    async fn refresh<H: Hypervisor>(&mut self, host: &H, status_refresh: Duration) -> anyhow::Result<()> {
        let info = host.host().await?;
        let vms = host.vms().await?;
        self.publish_host(&info, status_refresh).await?;
        self.publish_vms(&info, &vms).await
    }

    async fn publish_host(&mut self, info: &HostInfo, status_refresh: Duration) -> anyhow::Result<()> {
        let status = host_status(info);
        if self.status.as_ref() == Some(&status) {
            return Ok(());
        }
        // Free space alone is no reason for more than one write a minute.
        let without_free = |status: &Value| {
            let mut status = status.clone();
            let volumes = status.get_mut("volumes").and_then(Value::as_array_mut);
            volumes
                .into_iter()
                .flatten()
                .filter_map(Value::as_object_mut)
                .for_each(|v| drop(v.remove("freeBytes")));
            status
        };
        let only_free = self.status.as_ref().is_some_and(|old| without_free(old) == without_free(&status));
        if only_free && self.status_at.is_some_and(|at| at.elapsed() < status_refresh) {
            return Ok(());
        }
        let hosts: Api<HyperVHost> = Api::all(self.connection.client());
        let object = json!({
            "apiVersion": "farshore.dev/v1alpha1",
            "kind": "HyperVHost",
            "metadata": {"name": self.name},
            "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        hosts.patch_status(&self.name, &params, &Patch::Apply(&object)).await?;
        self.status = Some(status);
        self.status_at = Some(Instant::now());
        Ok(())
    }

    async fn publish_vms(&mut self, info: &HostInfo, vms: &[VmInfo]) -> anyhow::Result<()> {
        let api: Api<HyperVVM> = Api::namespaced(self.connection.client(), &self.namespace);
        let mut known = match self.vms.take() {
            Some(known) => known,
            None => {
                let found = api.list(&ListParams::default()).await?;
                found.items.into_iter().map(|vm| (vm.name_any(), vm.spec)).collect()
            }
        };
        let result = self.write_vms(&api, info, vms, &mut known).await;
        self.vms = Some(known);
        result
    }

    async fn write_vms(
        &self,
        api: &Api<HyperVVM>,
        info: &HostInfo,
        vms: &[VmInfo],
        known: &mut BTreeMap<String, HyperVVMSpec>,
    ) -> anyhow::Result<()> {
        for vm in vms {
            let name = vm.id.to_string();
            let spec = vm_spec(info, vm, known.get(&name));
            if known.get(&name) == Some(&spec) {
                continue;
            }
            let object = json!({
                "apiVersion": "farshore.dev/v1alpha1",
                "kind": "HyperVVM",
                "metadata": {
                    "name": name,
                    "labels": {api::annotation::VM_ID: name, api::annotation::HOST: self.name},
                },
                "spec": spec,
            });
            let params = PatchParams::apply(MANAGER).force();
            api.patch(&name, &params, &Patch::Apply(&object)).await?;
            known.insert(name, spec);
        }
        let gone: Vec<String> =
            known.keys().filter(|name| vms.iter().all(|vm| vm.id.to_string() != **name)).cloned().collect();
        for name in gone {
            match api.delete(&name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
            known.remove(&name);
        }
        Ok(())
    }
}

fn host_status(info: &HostInfo) -> Value {
    let volumes: Vec<_> = info
        .volumes
        .iter()
        .take(64)
        .map(|v| {
            // In steps of about one and a half per cent.
            let step = (v.total / 64).max(1);
            api::Volume { path: v.path.clone(), size_bytes: v.total, free_bytes: v.free / step * step }
        })
        .collect();
    let switches: Vec<_> = info
        .virtual_switches
        .iter()
        .take(64)
        .map(|name| json!({"id": name, "name": name, "external": true}))
        .collect();
    let mut status = json!({
        "version": info.version,
        "agentVersion": env!("CARGO_PKG_VERSION"),
        "features": info.features,
        "volumes": volumes,
        "virtualSwitches": switches,
    });
    if let (Some(cluster), Some(status)) = (&info.failover_cluster, status.as_object_mut()) {
        status.insert("failoverCluster".to_owned(), json!({"name": cluster}));
    }
    status
}

/// The facts of a machine. While a recovery checkpoint exists its disks have other files for a moment; what was
/// published before is kept then, so that cycles cause no writes.
fn vm_spec(host: &HostInfo, vm: &VmInfo, before: Option<&HyperVVMSpec>) -> HyperVVMSpec {
    let moving = vm.checkpoints.iter().any(|c| c.kind == CheckpointKind::Recovery);
    let findings = unmet(&facts(vm, None));
    HyperVVMSpec {
        vm_id: vm.id.to_string(),
        vm_name: vm.name.clone(),
        generation: u32::from(vm.generation),
        configuration_version: Some(vm.configuration_version.clone()),
        power_state: power(vm.state),
        processors: vm.processors,
        memory_mib: vm.memory >> 20,
        secure_boot: vm.secure_boot,
        tpm: false,
        clustered: host.failover_cluster.is_some(),
        disks: vm.disks.iter().take(64).map(|disk| virtual_disk(disk, before.filter(|_| moving))).collect(),
        network_adapters: vm
            .nics
            .iter()
            .take(16)
            .map(|nic| api::NetworkAdapter {
                id: nic.id.clone(),
                name: nic.name.clone(),
                mac: nic.mac.chars().filter(char::is_ascii_hexdigit).collect(),
                switch: nic.switch.clone(),
                vlan: nic.vlan.map(u32::from),
                addresses: nic.addresses.iter().take(16).cloned().collect(),
            })
            .collect(),
        checkpoints: vm
            .checkpoints
            .iter()
            .filter(|c| !c.name.starts_with(CHECKPOINT_PREFIX))
            .take(64)
            .map(|c| api::Checkpoint {
                id: c.id.to_string(),
                name: c.name.clone(),
                // The API keeps whole seconds.
                created_at: jiff::Timestamp::from_second(c.created.as_second()).ok().map(api::Time),
            })
            .collect(),
        protectable: findings.is_empty(),
        findings: findings
            .into_iter()
            .take(64)
            .map(|f| api::Finding { code: f.code.to_string(), message: f.message })
            .collect(),
    }
}

fn virtual_disk(disk: &farshore_hyperv::DiskInfo, before: Option<&HyperVVMSpec>) -> api::VirtualDisk {
    let id = if disk.pass_through { String::new() } else { disk.disk_id.to_string() };
    let known = before.and_then(|b| b.disks.iter().find(|d| d.id == id && !id.is_empty()));
    if let Some(known) = known.filter(|d| d.virtual_size_bytes == disk.size) {
        return known.clone();
    }
    let file = std::fs::metadata(&disk.path).map_or(0, |m| m.len());
    api::VirtualDisk {
        id,
        path: disk.path.clone(),
        slot: format!("{} {}:{}", disk.controller_type, disk.controller, disk.slot),
        format: match (disk.pass_through, disk.format, disk.disk_type) {
            (true, ..) => api::DiskFormat::PassThrough,
            (_, DiskFormat::Vhds, _) => api::DiskFormat::VHDSet,
            (_, DiskFormat::Vhd, _) => api::DiskFormat::VHD,
            (_, DiskFormat::Vhdx, DiskType::Differencing) => api::DiskFormat::DifferencingVHDX,
            (_, DiskFormat::Vhdx, DiskType::Fixed | DiskType::Dynamic) => api::DiskFormat::VHDX,
        },
        virtual_size_bytes: disk.size,
        // Rounded up, so that a growing file causes a write per GiB at most.
        file_size_bytes: file.div_ceil(GIB) * GIB,
        shared: disk.shared,
    }
}

fn power(state: PowerState) -> api::PowerState {
    match state {
        PowerState::Running => api::PowerState::Running,
        PowerState::Off => api::PowerState::Off,
        PowerState::Saved => api::PowerState::Saved,
        PowerState::Paused | PowerState::PausedCritical => api::PowerState::Paused,
        PowerState::Starting
        | PowerState::Stopping
        | PowerState::Saving
        | PowerState::Pausing
        | PowerState::Resuming => api::PowerState::Transitional,
    }
}
