//! The program: aborts where it is told to, goes on, and reads points.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Output;

use serde_json::Value;

use crate::source::{Lab, Source};

const MIB: u64 = 1 << 20;
const SIGABRT: i32 = 6;

async fn program(lab: &Lab, vm: &Source, command: &str, args: &[&str]) -> Output {
    let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_farshore-replica-server"));
    program.args([command, "--blob-endpoint", lab.double.endpoint(), "--vm", &vm.vm.to_string()]);
    let key = farshore_lab::blob::Args::in_folder(std::path::Path::new("/")).key;
    program.args(args).env("FARSHORE_BLOB_KEY", key).kill_on_drop(true).output().await.unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_aborts_at_a_crash_point_goes_on_and_reads_the_point() {
    let lab = Lab::start().await;
    let mut vm = lab.vm(&[MIB, MIB + 4096]).await;
    vm.protect().await;
    let killed = program(&lab, &vm, "settle", &["--crash-at", "metadata-set:3"]).await;
    assert_eq!(killed.status.signal(), Some(SIGABRT), "{}", String::from_utf8_lossy(&killed.stderr));
    vm.break_leases().await;
    json(&program(&lab, &vm, "settle", &[]).await);
    assert_eq!(vm.prove_points().await, [4]);

    let names = json(&program(&lab, &vm, "point", &["--list"]).await);
    let name = names[0].as_str().unwrap();
    let read = json(&program(&lab, &vm, "point", &["--point", name]).await);
    assert_eq!(read["point"]["name"], name);
    let digest = &read["disks"][vm.disks[0].id.to_string()];
    assert_eq!(digest["blake3"], blake3::hash(&vm.disks[0].bytes).to_hex().as_str());

    let folder = tempfile::tempdir().unwrap();
    let (out, disk) = (folder.path().join("disk.img"), vm.disks[1].id.to_string());
    let size = vm.disks[1].bytes.len().to_string();
    let args = ["--disk", &disk, "--size", &size, "--out", out.to_str().unwrap()];
    let exported = program(&lab, &vm, "point", &args).await;
    assert!(exported.status.success());
    assert!(std::fs::read(&out).unwrap() == vm.disks[1].bytes);

    let unknown = program(&lab, &vm, "settle", &["--crash-at", "lunch"]).await;
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no crash point lunch"));
}
