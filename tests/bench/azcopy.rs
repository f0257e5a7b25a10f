//! The peer: azcopy, as Microsoft publishes it on npm, copying the raw disk as a page blob.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use farshore_azure::{Metadata, sas};

use crate::data::Sample;
use crate::double::Double;
use crate::image::run;
use crate::process::Process;
use crate::relationship::signature;

/// What is measured against.
pub(crate) const VERSION: &str = "10.32.2";
const CONTAINER: &str = "azcopy";

/// Finds azcopy in `cache`, or installs it there.
pub(crate) fn installed(cache: &Path) -> anyhow::Result<PathBuf> {
    let folder = cache.join(format!("azcopy-{VERSION}"));
    let program = folder.join("node_modules/@azure-tools/azcopy-linux/dist/bin/azcopy_linux_amd64");
    if !program.exists() {
        eprintln!("installing azcopy {VERSION} from npm (once)");
        std::fs::create_dir_all(&folder)?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"])
            .arg(&folder);
        run(npm.arg(format!("@azure-tools/azcopy-linux@{VERSION}")))?;
    }
    run(Command::new("chmod").arg("+x").arg(&program))?;
    let output = Command::new(&program).arg("--version").output();
    if !output.is_ok_and(|output| output.status.success()) {
        bail!("azcopy does not start: it needs Debian's package libsecret-1-0");
    }
    Ok(program)
}

/// Copies `disk` once; with its pacing it keeps to what the service takes for one page blob.
pub(crate) async fn copy(
    program: &Path,
    double: &Double,
    scratch: &Path,
    disk: &Path,
    pace: bool,
) -> anyhow::Result<Sample> {
    let container = double.service.container(CONTAINER);
    container.create(&Metadata::new()).await?;
    let target =
        format!("{}/{CONTAINER}/disk.vhd?{}", double.endpoint, signature(CONTAINER, sas::Permissions::All)?);
    let own = scratch.join("azcopy");
    std::fs::create_dir_all(&own)?;
    let mut command = Command::new(program);
    command
        .args(["copy", "--from-to", "LocalBlob", "--blob-type", "PageBlob", "--skip-version-check"])
        .args(["--log-level", "ERROR", "--output-level", "essential"])
        .arg(disk)
        .arg(target)
        .env("AZCOPY_PACE_PAGE_BLOBS", pace.to_string())
        .env("AZCOPY_LOG_LOCATION", &own)
        .env("AZCOPY_JOB_PLAN_LOCATION", &own);
    double.reset()?;
    let begun = Instant::now();
    let log = scratch.join("azcopy.log");
    let (status, usage) = Process::start("azcopy", &mut command, &log)?.end().await?;
    let wall = begun.elapsed();
    if !status.success() {
        bail!("azcopy failed ({status}); see {}", log.display());
    }
    let stats = double.stats()?;
    let span = stats.last_write_micros.zip(stats.first_write_micros).context("azcopy wrote nothing")?;
    let blob = container.head("disk.vhd").await?.context("azcopy left no blob")?;
    if blob.len != std::fs::metadata(disk)?.len() {
        bail!("azcopy's blob has {} bytes", blob.len);
    }
    Ok(Sample {
        safe: (span.0 - span.1) as f64 / 1e6,
        wall: wall.as_secs_f64(),
        wire: stats.bytes_in as f64,
        cpu: usage.cpu.as_secs_f64(),
        peak: usage.peak as f64,
        ..Sample::default()
    })
}
