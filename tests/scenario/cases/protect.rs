//! A VM becomes protected, stays so through every interruption, and every point is what the source held.

use std::time::Duration;

use farshore_core::units::MIB;
use farshore_lab::guest::{BLOCK, Writer};
use farshore_lab::launch::{CONTROLLER, agent_part, replica_server_part};
use farshore_lab::proof;
use farshore_test_scenario::{HOST, Protected, Stage, stage, stage_alone};
use jiff::Timestamp;
use serde_json::json;

const OFFSETS: u64 = 32;

/// A VM of two disks of 8 MiB, protected, with an alternating writer on both.
async fn protected<'a>(stage: &'a Stage, name: &str) -> (Protected<'a>, Writer) {
    let vm = stage.make_vm(name, &[8 * MIB, 8 * MIB]).await.unwrap();
    vm.write(0, MIB, &[7; 4096]).await.unwrap();
    let offsets: Vec<u64> = (0..OFFSETS).map(|i| i * BLOCK).collect();
    let folder = stage.folder(name).unwrap();
    let writer = Writer::new(&vm.nbd, [offsets.clone(), offsets], &folder).unwrap();
    stage.protect(name, name, json!({})).await.unwrap();
    (vm, writer)
}

/// Writes numbers until a point newer than `since` exists; returns it.
async fn write_until_point(vm: &Protected<'_>, writer: &mut Writer, since: Timestamp) {
    let point = vm.point_after(since);
    tokio::pin!(point);
    loop {
        tokio::select! {
            done = &mut point => {
                done.unwrap();
                return;
            }
            step = writer.step() => step.unwrap(),
        }
    }
}

/// Every point equals its source, and its two disks are from one instant.
async fn prove(stage: &Stage, vm: &Protected<'_>) {
    let folder = stage.folder(&vm.name).unwrap();
    vm.prove_all(&folder).await.unwrap();
    let offsets: Vec<u64> = (0..OFFSETS).map(|i| i * BLOCK).collect();
    // The newest point's images are the last that were downloaded.
    proof::numbers(&folder, [(vm.disks[0].0, &offsets), (vm.disks[1].0, &offsets)]).unwrap();
}

// R5, R6.1, R7: both disks of a VM are from one instant in every recovery point.
#[test]
fn a_vm_becomes_protected_and_every_point_is_one_instant_of_all_its_disks() {
    stage(async |stage| {
        let (vm, mut writer) = protected(stage, "one-instant").await;
        write_until_point(&vm, &mut writer, Timestamp::now()).await;
        stage.await_condition("one-instant", "Protected", "True").await.unwrap();
        let later = Timestamp::now() + Duration::from_secs(1);
        write_until_point(&vm, &mut writer, later).await;
        prove(stage, &vm).await;
    });
}

// R5, R7: killing any part during initial replication or delta ends in the same bytes.
#[test]
fn killed_parts_go_on_to_the_same_bytes() {
    stage_alone(async |stage| {
        let (vm, mut writer) = protected(stage, "killed").await;
        let worker = |n: u32| replica_server_part(&format!("worker-{n}"));
        for part in [agent_part(HOST), worker(1), worker(2), CONTROLLER.to_owned()] {
            writer.step().await.unwrap();
            stage.world.parts().kill(&part).unwrap();
            stage.world.parts().start_again(&part).unwrap();
            write_until_point(&vm, &mut writer, Timestamp::now()).await;
        }
        stage.await_condition("killed", "Protected", "True").await.unwrap();
        prove(stage, &vm).await;
    });
}

// DESIGN 3: agent and replica server go on while Kubernetes is away.
#[test]
fn cycles_and_points_go_on_while_the_api_server_is_away() {
    stage_alone(async |stage| {
        let (vm, mut writer) = protected(stage, "no-apiserver").await;
        write_until_point(&vm, &mut writer, Timestamp::now()).await;
        stage.world.plane().kill_apiserver().unwrap();
        let away = Timestamp::now();
        write_until_point(&vm, &mut writer, away).await;
        stage.world.plane().start_apiserver().await.unwrap();
        stage.await_condition("no-apiserver", "Protected", "True").await.unwrap();
        prove(stage, &vm).await;
    });
}

// R9.2: a cut link is recoverable, and nothing is lost by it.
#[test]
fn a_cut_link_to_storage_ends_in_the_same_bytes() {
    stage_alone(async |stage| {
        let (vm, mut writer) = protected(stage, "cut-link").await;
        write_until_point(&vm, &mut writer, Timestamp::now()).await;
        stage.world.blobs().link().cut();
        for _ in 0..20 {
            writer.step().await.unwrap();
        }
        stage
            .await_status("cut-link", "a network error in status", |s| {
                s["lastError"]["code"] == "NetworkError" || s["health"] == "Warning"
            })
            .await
            .unwrap();
        stage.world.blobs().link().mend();
        write_until_point(&vm, &mut writer, Timestamp::now()).await;
        prove(stage, &vm).await;
    });
}
