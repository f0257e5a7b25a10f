//! A guest of the lab: a real ext4 file system full of files, and writers that are not ours.
//!
//! The file system is made by `mkfs.ext4 -d`. While it is being replicated, `qemu-io` writes to both
//! disks over NBD: numbered blocks, alternating between the disks, each write acknowledged before the
//! next is sent. So at every instant the two numbers are equal, or the first disk is one ahead: a
//! recovery point that shows anything else mixes two instants.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail, ensure};
use farshore_core::ids::Hash;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Bytes of one numbered write: a file system block.
pub const BLOCK: u64 = 4096;
/// The file in the ext4 file system that the numbered writes go to.
const LIVE_FILE: &str = "live/counter.bin";
/// Its length in blocks; the writer walks over all of them.
const LIVE_BLOCKS: usize = 64;

/// An ext4 image and what is in it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The raw image.
    pub path: PathBuf,
    /// Hash of every file that is not written to while it runs, by its path from the root.
    pub files: BTreeMap<String, Hash>,
    /// Byte offsets on the disk of the live file's blocks.
    pub live_blocks: Vec<u64>,
}

/// Makes an ext4 image of `size` bytes with `n_files` files of text and of noise.
///
/// # Errors
/// If mkfs.ext4 or debugfs (package e2fsprogs) is missing or fails.
pub async fn make_image(folder: &Path, size: u64, n_files: usize) -> anyhow::Result<Image> {
    let tree = folder.join("tree");
    let mut files = BTreeMap::new();
    for i in 0..n_files {
        let name = format!("srv/{:02}/file-{i:04}", i % 16);
        let content = content(i);
        write_file(&tree.join(&name), &content)?;
        files.insert(name, Hash::of(&content));
    }
    write_file(&tree.join(LIVE_FILE), &vec![b'0'; LIVE_BLOCKS * usize::try_from(BLOCK)?])?;

    let path = folder.join("system.img");
    std::fs::File::create(&path)?.set_len(size)?;
    let (tree_arg, image_arg) = (tree.display().to_string(), path.display().to_string());
    run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-L", "system", "-d", &tree_arg, &image_arg]).await?;
    std::fs::remove_dir_all(&tree)?;

    let blocks = run("debugfs", &["-R", &format!("blocks /{LIVE_FILE}"), &image_arg]).await?;
    let live_blocks: Vec<u64> =
        blocks.split_whitespace().filter_map(|b| b.parse::<u64>().ok()).map(|b| b * BLOCK).collect();
    ensure!(live_blocks.len() >= LIVE_BLOCKS, "debugfs shows {} blocks of {LIVE_FILE}", live_blocks.len());
    Ok(Image { path, files, live_blocks })
}

/// Half of the files are text that compresses, half are noise that does not.
fn content(i: usize) -> Vec<u8> {
    let len = 20_000 + (i * 7919) % 180_000;
    let mut bytes = vec![0; len];
    if i.is_multiple_of(2) {
        let line = format!("{i:06} the quick brown fox jumps over the lazy dog\n");
        for (byte, source) in bytes.iter_mut().zip(line.as_bytes().iter().cycle()) {
            *byte = *source;
        }
    } else {
        blake3::Hasher::new().update(&i.to_le_bytes()).finalize_xof().fill(&mut bytes);
    }
    bytes
}

fn write_file(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let parent = path.parent().context("a file has a folder")?;
    std::fs::create_dir_all(parent)?;
    std::fs::write(path, content).with_context(|| path.display().to_string())
}

/// Runs a program and returns what it printed.
///
/// # Errors
/// If it cannot be started or fails; the message holds what it said.
pub async fn run(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("{program} cannot be started: install its package"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{program} {}: {}\n{text}{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(text)
}

/// One `qemu-io` on one NBD export: sends a command, waits until it is acknowledged.
struct QemuIo {
    _child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl QemuIo {
    fn open(socket: &Path, export: u32) -> anyhow::Result<Self> {
        let mut child = Command::new("qemu-io")
            .args(["-f", "raw", "-t", "none"])
            .arg(format!("nbd+unix:///{export}?socket={}", socket.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("qemu-io cannot be started: install package qemu-utils")?;
        let input = child.stdin.take().context("qemu-io has an input")?;
        let output = BufReader::new(child.stdout.take().context("qemu-io has an output")?);
        Ok(Self { _child: child, input, output })
    }

    async fn write(&mut self, command: &str) -> anyhow::Result<()> {
        self.input.write_all(command.as_bytes()).await?;
        self.input.write_all(b"\n").await?;
        self.input.flush().await?;
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(self.output.read_line(&mut line).await? > 0, "qemu-io ended: the disk is gone");
            if line.contains("wrote ") {
                return Ok(());
            }
            ensure!(!line.contains("failed") && !line.contains("rror"), "qemu-io: {}", line.trim());
        }
    }
}

/// Writes ever higher numbers, alternating between the two disks.
pub struct Writer {
    disks: [QemuIo; 2],
    offsets: [Vec<u64>; 2],
    block: PathBuf,
    number: u64,
}

impl Writer {
    /// A writer to exports 0 and 1 of the machine behind `socket`, at these offsets of each.
    ///
    /// # Errors
    /// If qemu-io cannot be started.
    pub fn new(socket: &Path, offsets: [Vec<u64>; 2], folder: &Path) -> anyhow::Result<Self> {
        ensure!(offsets.iter().all(|o| !o.is_empty()), "a writer needs blocks on both disks");
        Ok(Self {
            disks: [QemuIo::open(socket, 0)?, QemuIo::open(socket, 1)?],
            offsets,
            block: folder.join("block.bin"),
            number: 0,
        })
    }

    /// The last number written to both disks.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Writes the next number to the first disk, then to the second.
    ///
    /// # Errors
    /// If a write is not acknowledged.
    pub async fn step(&mut self) -> anyhow::Result<()> {
        let number = self.number + 1;
        let text = number.to_le_bytes().repeat(usize::try_from(BLOCK / 8)?);
        std::fs::write(&self.block, text)?;
        let file = self.block.display().to_string();
        for (disk, offsets) in self.disks.iter_mut().zip(&self.offsets) {
            let turn = usize::try_from(number % offsets.len() as u64)?;
            let offset = offsets.get(turn).copied().unwrap_or_default();
            disk.write(&format!("write -s {file} {offset} {BLOCK}")).await?;
        }
        self.number = number;
        Ok(())
    }

    /// Overwrites `len` bytes of the second disk with one byte value: a burst.
    ///
    /// # Errors
    /// If the write is not acknowledged.
    pub async fn burst(&mut self, offset: u64, len: u64, value: u8) -> anyhow::Result<()> {
        let [_, data] = &mut self.disks;
        data.write(&format!("write -P {value} {offset} {len}")).await
    }
}

/// The highest number in blocks read back from a disk.
#[must_use]
pub fn highest_number(blocks: &[Vec<u8>]) -> u64 {
    blocks
        .iter()
        .filter_map(|block| block.first_chunk::<8>())
        .map(|head| u64::from_le_bytes(*head))
        // The live file is made of the character 0 at first; that is no number.
        .filter(|number| *number != u64::from_le_bytes(*b"00000000"))
        .max()
        .unwrap_or(0)
}
