//! A host in a folder of its own, and an NBD client that is small enough to read.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use farshore_disk::vhdx::{Access, Chain};
use farshore_hyperv::sim::SimHost;
use farshore_hyperv::{Checkpoint, VmInfo};
use farshore_lab::host::admin::{AdminVm, NewVm};
use farshore_lab::host::client::Admin;

pub const MIB: u64 = 1 << 20;

/// A running host; killed and removed with the test.
pub struct Host {
    process: Option<Child>,
    args: Vec<String>,
    folder: tempfile::TempDir,
    pub admin: Admin,
    pub hyperv: SimHost,
}

impl Host {
    pub async fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let admin = Admin::new(folder.path().join("host.sock"));
        let hyperv = admin.hypervisor();
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let mut host = Self { process: None, args, folder, admin, hyperv };
        host.run().await;
        host
    }

    /// Starts the process again.
    pub async fn run(&mut self) {
        let child = Command::new(env!("CARGO_BIN_EXE_farshore-lab"))
            .args(["host", "--name", "h1", "--dir"])
            .arg(self.folder.path())
            .args(&self.args)
            .stdout(Stdio::null())
            .spawn();
        self.process = Some(child.unwrap());
        self.admin.wait_ready(Duration::from_secs(30)).await.unwrap();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.process.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) {
        let mut child = self.process.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success());
    }

    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// A running machine named `vm` with disks of these sizes.
    pub async fn vm(&self, sizes: &[u64]) -> AdminVm {
        let vm = self.admin.create(NewVm::with_disks("vm", sizes)).await.unwrap();
        self.admin.start("vm").await.unwrap();
        vm
    }

    pub async fn info(&self) -> VmInfo {
        self.admin.find("vm").await.unwrap().unwrap().info
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(child) = &mut self.process {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// URI of an export for libnbd and qemu.
pub fn uri(vm: &AdminVm, disk: u32) -> String {
    format!("nbd+unix:///{disk}?socket={}", vm.nbd.display())
}

/// Runs a program that must succeed; its output.
pub fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {text}");
    text
}

/// All bytes of a disk as a checkpoint froze it.
pub fn frozen(checkpoint: &Checkpoint, index: usize) -> Vec<u8> {
    contents(Path::new(&checkpoint.disks[index].path))
}

/// All bytes of a chain of files.
pub fn contents(leaf: &Path) -> Vec<u8> {
    let chain = Chain::open(leaf, Access::ReadOnly).unwrap();
    let mut bytes = vec![0; usize::try_from(chain.size()).unwrap()];
    chain.read_at(&mut bytes, 0).unwrap();
    bytes
}

pub fn blake3_of(bytes: &[u8]) -> farshore_core::ids::Hash {
    farshore_core::ids::Hash::of(bytes)
}

/// AVHDX files in the machine's folder.
pub fn avhdx_files(vm: &AdminVm) -> Vec<PathBuf> {
    let files = std::fs::read_dir(&vm.folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "avhdx")).collect()
}

/// Asks until the answer is yes.
pub async fn until(what: &str, mut yes: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !yes().await {
        assert!(Instant::now() < end, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One connection to an export.
pub struct Nbd(UnixStream);

impl Nbd {
    pub fn connect(vm: &AdminVm, disk: u32) -> Self {
        Self::try_connect(vm, disk).unwrap()
    }

    pub fn try_connect(vm: &AdminVm, disk: u32) -> std::io::Result<Self> {
        let mut stream = UnixStream::connect(&vm.nbd)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        let name = disk.to_string();
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1_u32.to_be_bytes());
        hello.extend(u32::try_from(name.len()).unwrap().to_be_bytes());
        hello.extend(name.as_bytes());
        stream.write_all(&hello)?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        Ok(Self(stream))
    }

    pub fn request(&mut self, command: u16, offset: u64, len: usize, data: &[u8]) -> std::io::Result<()> {
        let mut out = 0x2560_9513_u32.to_be_bytes().to_vec();
        out.extend(0_u16.to_be_bytes());
        out.extend(command.to_be_bytes());
        out.extend(7_u64.to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend(u32::try_from(len).unwrap().to_be_bytes());
        out.extend(data);
        self.0.write_all(&out)?;
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply)?;
        match u32::from_be_bytes(reply[4..8].try_into().unwrap()) {
            0 => Ok(()),
            error => Err(std::io::Error::from_raw_os_error(i32::try_from(error).unwrap())),
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.request(1, offset, data.len(), data)
    }

    pub fn zero(&mut self, offset: u64, len: usize) -> std::io::Result<()> {
        self.request(6, offset, len, &[])
    }

    pub fn flush(&mut self) -> std::io::Result<()> {
        self.request(3, 0, 0, &[])
    }

    pub fn read(&mut self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
        self.request(0, offset, len, &[])?;
        let mut data = vec![0; len];
        self.0.read_exact(&mut data)?;
        Ok(data)
    }
}

/// Numbers that look random and are the same in every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// A guest that writes, zeroes and flushes all over a disk, also parts of sectors, and remembers what it did.
pub struct Scribbler {
    pub disk: Nbd,
    pub model: Vec<u8>,
    dice: Dice,
}

impl Scribbler {
    pub fn new(disk: Nbd, model: Vec<u8>, seed: u64) -> Self {
        Self { disk, model, dice: Dice(seed) }
    }

    pub fn scribble(&mut self) {
        let size = self.model.len() as u64;
        let len = match self.dice.below(4) {
            0 => 1 + self.dice.below(700),
            1 => 4096,
            2 => 512 * (1 + self.dice.below(64)),
            _ => 1 + self.dice.below(200_000),
        };
        let len = len.min(size);
        let offset = self.dice.below(size - len + 1);
        let offset = if self.dice.below(2) == 0 { offset } else { offset / 4096 * 4096 };
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
        let part = &mut self.model[range];
        if self.dice.below(5) == 0 {
            part.fill(0);
            self.disk.zero(offset, part.len()).unwrap();
        } else {
            let mut random =
                blake3::Hasher::new().update(&self.dice.below(u64::MAX).to_le_bytes()).finalize_xof();
            random.fill(part);
            self.disk.write(offset, part).unwrap();
        }
        if self.dice.below(20) == 0 {
            self.disk.flush().unwrap();
        }
    }
}
