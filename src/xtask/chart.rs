//! The chart by real helm: lint, and rendering in its main forms.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::{
    compiled, lab,
    shell::{cargo, program},
};

const CHART: &str = "charts/farshore";

/// Without a cluster helm has to be told; that of the lab.
const KUBERNETES: &str = "1.36.3";

/// Values, what must be in the outcome, what must not.
const FORMS: [(&[&str], &str, Option<&str>); 4] = [
    (&[], "kind: Deployment", None),
    (
        &["controller.enabled=false", "replicaServer.enabled=false"],
        "kind: ClusterRole",
        Some("kind: Deployment"),
    ),
    (&["crds.install=false"], "kind: Deployment", Some("kind: CustomResourceDefinition")),
    (&["admissionPolicies.enabled=false"], "kind: Deployment", Some("kind: ValidatingAdmissionPolicy")),
];

/// Lints and renders.
pub(crate) fn check() -> Result<()> {
    let helm = helm()?;
    program(&helm).args(["lint", "--strict", CHART]).run()?;
    for (values, present, absent) in FORMS {
        let sets = values.iter().flat_map(|value| ["--set", value]);
        let text = program(&helm)
            .args(["template", "farshore", CHART, "--kube-version", KUBERNETES])
            .args(sets)
            .stdout()?;
        ensure!(text.contains(present), "chart with {values:?}: no {present:?}");
        if let Some(absent) = absent {
            ensure!(!text.contains(absent), "chart with {values:?}: {absent:?} is there");
        }
    }
    eprintln!("chart: {} forms rendered", FORMS.len());
    Ok(())
}

fn helm() -> Result<PathBuf> {
    compiled::fetch()?;
    cargo(["build", "--quiet", "--workspace", "--bins"]).run()?;
    let tools = lab::set_up()?;
    tools.into_iter().find(|(name, _)| name == "helm").map(|(_, path)| path).context("set-up named no helm")
}
