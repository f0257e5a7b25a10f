//! An engine in a process of its own, so that it can really die: the test program started again for one test.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use farshore_agent::crash::{Crash, CrashPoint};
use farshore_agent::engine::{Context, Goal};
use farshore_agent::store::SasPair;
use farshore_azure::Sas;
use serde::{Deserialize, Serialize};

use crate::support::Vm;

const VARIABLE: &str = "FARSHORE_ENGINE_CHILD";

#[derive(Serialize, Deserialize)]
struct Spec {
    vm: farshore_hyperv::VmInfo,
    socket: PathBuf,
    endpoint: String,
    up: String,
    down: String,
    state: PathBuf,
    crash_at: Option<String>,
    release: bool,
    parallelism: u32,
}

/// Not a test of its own: what [`start`] starts.
#[test]
fn child() {
    let Ok(spec) = std::env::var(VARIABLE) else { return };
    let spec: Spec = serde_json::from_str(&spec).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let vm = Vm::of_child(
            spec.vm,
            spec.socket,
            &spec.endpoint,
            spec.state,
            SasPair { up: Sas::new(&spec.up), down: Sas::new(&spec.down) },
        );
        let crash = Crash::at(spec.crash_at.map(|at| at.parse().unwrap()));
        let context = Context { crash, ..vm.context() };
        let mut assignment = vm.assignment();
        assignment.parallelism = spec.parallelism;
        if spec.release {
            assignment.goal = Goal::StopReplicating { keep_points_until: None };
        }
        let engine = vm.engine_with(assignment, context, vm.store());
        std::future::pending::<()>().await;
        drop(engine);
    });
}

/// How a child is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Life {
    pub crash_at: Option<(CrashPoint, u32)>,
    pub release: bool,
}

/// A child that is killed with the value.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn start(vm: &Vm, life: Life) -> Process {
    let spec = Spec {
        vm: vm.info.clone(),
        socket: vm.socket.clone(),
        endpoint: vm.endpoint.clone(),
        up: vm.sas.up.expose().into(),
        down: vm.sas.down.expose().into(),
        state: vm.state.clone(),
        crash_at: life.crash_at.map(|(point, nth)| format!("{point}:{nth}")),
        release: life.release,
        parallelism: 32,
    };
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child::child", "--nocapture"])
        .env(VARIABLE, serde_json::to_string(&spec).unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Process(child.unwrap())
}
