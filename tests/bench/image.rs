//! The disk that is copied: a real Debian root file system in an ext4 image, made once and cached.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// What is installed on top of the smallest Debian, so that the image looks like a small server.
const PACKAGES: &str = "build-essential,python3,openjdk-17-jre-headless,git,vim-nox,postgresql,nginx-light,linux-image-cloud-amd64";
/// Virtual size of the disk.
pub(crate) const SIZE: u64 = 3 << 30;

/// The raw image and the same disk as dynamic VHDX.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// Raw, sparse.
    pub(crate) raw: PathBuf,
    /// Dynamic VHDX of the same contents.
    pub(crate) vhdx: PathBuf,
}

/// Makes the disk, or finds it in `cache`.
///
/// # Errors
/// If debootstrap, mkfs.ext4 or qemu-img fail or are missing.
pub(crate) fn debian(cache: &Path) -> anyhow::Result<Disk> {
    let folder = cache.join("bench-debian-bookworm-1");
    let disk = Disk { raw: folder.join("disk.raw"), vhdx: folder.join("disk.vhdx") };
    if disk.vhdx.exists() {
        return Ok(disk);
    }
    fs::create_dir_all(&folder)?;
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    println!("making a Debian root file system (about 3 minutes, once)");
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}"), "bookworm"]).arg(&root);
    if let Some(mirror) = mirror() {
        debootstrap.arg(mirror);
    }
    let log = fs::File::create(folder.join("debootstrap.log"))?;
    run(debootstrap.stdout(log.try_clone()?).stderr(log))?;

    let raw = folder.join("disk.raw.tmp");
    fs::File::create(&raw)?.set_len(SIZE)?;
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096", "-d"]).arg(&root).arg(&raw))?;
    fs::remove_dir_all(&root)?;
    fs::rename(&raw, &disk.raw)?;
    let vhdx = folder.join("disk.vhdx.tmp");
    run(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "vhdx"]).arg(&disk.raw).arg(&vhdx))?;
    fs::rename(&vhdx, &disk.vhdx)?;
    Ok(disk)
}

/// The mirror that this machine's apt uses, so that debootstrap goes the same way.
fn mirror() -> Option<String> {
    let sources = fs::read_dir("/etc/apt/sources.list.d").ok()?;
    let deb822 =
        sources.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect::<String>();
    deb822
        .lines()
        .filter_map(|line| line.strip_prefix("URIs:"))
        .map(|uri| uri.trim().to_owned())
        .find(|uri| uri.ends_with("/debian") || uri.ends_with("/debian/"))
}

/// Runs a command to its end.
///
/// # Errors
/// If it cannot be started (its package is missing) or fails.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status =
        command.status().with_context(|| format!("{name} cannot be started: install its package"))?;
    if !status.success() {
        bail!("{name} failed: {status}");
    }
    Ok(())
}
