//! Renders the chart with the real helm.

use std::process::Command;

use anyhow::{Context, Result, bail};
use farshore_lab::launch::tools::Tools;
use farshore_test_api::chart;
use serde_json::Value;

/// Where it is rendered for.
pub const NAMESPACE: &str = "farshore-system";
/// Our helm has no version of Kubernetes built in; the oldest that is supported.
const KUBE_VERSION: &str = "1.32.0";

/// helm without a cluster.
pub fn helm(args: &[&str]) -> Result<String> {
    let mut helm = Command::new(Tools::of_this_machine()?.helm()?);
    helm.args(args).env("KUBECONFIG", "/nonexistent").env("HELM_PLUGINS", "/nonexistent");
    let done = helm.output().context("helm")?;
    if !done.status.success() {
        bail!("{}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(String::from_utf8(done.stdout)?)
}

/// The manifest with these `--set` values.
pub fn manifest(values: &[&str]) -> Result<String> {
    let chart = chart();
    let path = chart.to_str().context("the chart's path is text")?;
    let mut args = vec!["template", "farshore", path, "-n", NAMESPACE, "--kube-version", KUBE_VERSION];
    for value in values {
        args.extend(["--set", value]);
    }
    helm(&args)
}

/// The objects with these `--set` values.
pub fn render(values: &[&str]) -> Result<Vec<Value>> {
    let manifest = manifest(values)?;
    let documents = manifest.split("\n---\n").map(|d| d.trim_start_matches("---\n"));
    let objects = documents
        .filter(|document| document.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#')))
        .map(|document| serde_saphyr::from_str(document).with_context(|| document.to_owned()))
        .collect::<Result<Vec<Value>>>()?;
    Ok(objects)
}

/// Objects of a kind.
pub fn of<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|o| o.get("kind").is_some_and(|k| k == kind)).collect()
}
