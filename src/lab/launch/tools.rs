//! The programs that are not ours: built or fetched once per machine, pinned, kept outside the clone.
//!
//! ```text
//! ${FARSHORE_CACHE:-~/.cache/farshore}/
//!     controlplane-<hash of its source>/{controlplane,kubectl}   etcd, kube-apiserver, ... in one
//!     helm-3.22.0/helm
//!     <tool>.lock                                                one build at a time on this machine
//! ```
//! A folder is made under another name and renamed when it is whole, so what exists is complete.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Instant,
};

use super::error::{Error, Result};

/// The Go module of the control plane, as it is in the repository; building needs no checkout.
const MODULE: [(&str, &str); 3] = [
    ("go.mod", include_str!("../controlplane/go.mod")),
    ("go.sum", include_str!("../controlplane/go.sum")),
    ("main.go", include_str!("../controlplane/main.go")),
];
/// Must be the version of k8s.io/kubernetes in go.mod: kubectl and clients ask for it.
const KUBERNETES: &str = "v1.36.3";
const HELM: &str = "3.22.0";
/// The first Go that fetches the toolchain which go.mod names.
const GO: (u32, u32) = (1, 21);

/// Debian's packages behind the programs that the lab and its tests call.
const PACKAGES: [(&str, &str); 8] = [
    ("node", "nodejs"),
    ("npm", "npm"),
    ("setpriv", "util-linux"),
    ("qemu-img", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
    ("vhdiinfo", "libvhdi-utils"),
    ("mkfs.ext4", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
];

/// Where the tools are.
#[derive(Debug, Clone)]
pub struct Tools {
    cache: PathBuf,
    /// Whether to tell the person at the terminal what is going on.
    loud: bool,
}

impl Tools {
    /// The machine's cache; set-up is reported on stderr.
    pub fn of_this_machine() -> Result<Self> {
        let cache = match (std::env::var_os("FARSHORE_CACHE"), std::env::var_os("HOME")) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, Some(home)) => Path::new(&home).join(".cache/farshore"),
            (None, None) => {
                let remedy = "set HOME or FARSHORE_CACHE to a folder for what is built once".to_owned();
                return Err(Error::Missing { program: "a cache folder", remedy });
            }
        };
        std::fs::create_dir_all(&cache).map_err(Error::file(&cache))?;
        Ok(Self { cache, loud: true })
    }

    /// The cache folder itself, for others who keep something per machine.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Everything: what Debian packages, the control plane, helm, Azurite. Returns what a person may call.
    pub fn set_up(&self) -> Result<[(&'static str, PathBuf); 3]> {
        self.packages()?;
        super::azurite::installed(self)?;
        Ok([("controlplane", self.control_plane()?), ("kubectl", self.kubectl()?), ("helm", self.helm()?)])
    }

    /// The binary that is etcd, kube-apiserver, kube-controller-manager or kubectl by its first argument.
    pub fn control_plane(&self) -> Result<PathBuf> {
        if let Some(given) = std::env::var_os("FARSHORE_CONTROLPLANE") {
            return Ok(given.into());
        }
        let mut hash = blake3::Hasher::new();
        for (name, text) in MODULE {
            hash.update(name.as_bytes()).update(text.as_bytes());
        }
        hash.update(std::env::consts::ARCH.as_bytes());
        let key = hash.finalize().to_hex();
        let folder = format!("controlplane-{}", key.get(..16).unwrap_or_default());
        let what = "the control plane (Kubernetes from source: about 4 minutes on 2 cores, once per machine)";
        let folder = self.once(&folder, what, |folder| {
            let source = folder.join("source");
            std::fs::create_dir(&source).map_err(Error::file(&source))?;
            for (name, text) in MODULE {
                let path = source.join(name);
                std::fs::write(&path, text).map_err(Error::file(path))?;
            }
            let flags = format!("-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES}");
            let mut build = self.go()?;
            build.args(["build", "-trimpath", "-mod=readonly", "-ldflags", &flags, "-o"]);
            build.arg(folder.join("controlplane")).arg(".").current_dir(&source).env("CGO_ENABLED", "0");
            self.run("go build of the control plane", &mut build)?;
            std::fs::remove_dir_all(&source).map_err(Error::file(&source))?;
            write_kubectl(&folder.join("kubectl"))
        })?;
        Ok(folder.join("controlplane"))
    }

    /// kubectl of the control plane's version.
    pub fn kubectl(&self) -> Result<PathBuf> {
        Ok(self.control_plane()?.with_file_name("kubectl"))
    }

    /// helm.
    pub fn helm(&self) -> Result<PathBuf> {
        let folder =
            self.once(&format!("helm-{HELM}"), &format!("helm {HELM} (about 1 minute)"), |folder| {
                let mut install = self.go()?;
                install.args(["install", "-trimpath", "-ldflags", "-s -w"]);
                install.arg(format!("helm.sh/helm/v3/cmd/helm@v{HELM}"));
                install.env("GOBIN", folder).env("CGO_ENABLED", "0");
                self.run("go install of helm", &mut install)
            })?;
        Ok(folder.join("helm"))
    }

    /// What Debian packages: installed if we may, else named with the command that installs it.
    pub fn packages(&self) -> Result<()> {
        let mut missing: Vec<_> =
            PACKAGES.into_iter().filter(|(program, _)| find(program).is_none()).collect();
        missing.dedup_by_key(|(_, package)| *package);
        let Some((program, _)) = missing.first().copied() else { return Ok(()) };
        let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
        let remedy = format!("apt-get update && apt-get install -y {}", packages.join(" "));
        if !nix::unistd::geteuid().is_root() || find("apt-get").is_none() {
            return Err(Error::Missing { program, remedy });
        }
        let _lock = self.lock("apt")?;
        self.tell(&format!("installing {}", packages.join(", ")));
        self.run("apt-get update", Command::new("apt-get").args(["-qq", "update"]))?;
        let mut install = Command::new("apt-get");
        install.args(["-qq", "install", "-y", "--no-install-recommends"]).args(packages);
        self.run("apt-get install", install.env("DEBIAN_FRONTEND", "noninteractive"))
    }

    /// A folder of the cache, made by `make` if it is not there yet.
    ///
    /// `make` gets a folder under another name; a crash in it leaves that behind and it is removed next time.
    pub fn once(&self, name: &str, what: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let done = self.cache.join(name);
        if done.exists() {
            return Ok(done);
        }
        let _lock = self.lock(name)?;
        if done.exists() {
            return Ok(done);
        }
        let started = Instant::now();
        self.tell(&format!("setting up {what}"));
        let making = self.cache.join(format!("{name}.making"));
        if making.exists() {
            std::fs::remove_dir_all(&making).map_err(Error::file(&making))?;
        }
        std::fs::create_dir_all(&making).map_err(Error::file(&making))?;
        make(&making)?;
        std::fs::rename(&making, &done).map_err(Error::file(&done))?;
        self.tell(&format!("set up {name} in {} s", started.elapsed().as_secs()));
        Ok(done)
    }

    fn lock(&self, name: &str) -> Result<File> {
        let path = self.cache.join(format!("{name}.lock"));
        let lock = File::create(&path).map_err(Error::file(&path))?;
        if lock.try_lock().is_err() {
            self.tell(&format!("waiting: another process sets up {name}"));
            lock.lock().map_err(Error::file(&path))?;
        }
        Ok(lock)
    }

    fn go(&self) -> Result<Command> {
        if let Some(go) = usable_go() {
            return Ok(Command::new(go));
        }
        if nix::unistd::geteuid().is_root() && find("apt-get").is_some() {
            self.tell("installing golang-go");
            self.run("apt-get update", Command::new("apt-get").args(["-qq", "update"]))?;
            let mut install = Command::new("apt-get");
            install.args(["-qq", "install", "-y", "--no-install-recommends", "golang-go"]);
            self.run("apt-get install", install.env("DEBIAN_FRONTEND", "noninteractive"))?;
        }
        let remedy = format!("install Go {}.{} or newer as https://go.dev/doc/install says", GO.0, GO.1);
        usable_go().map(Command::new).ok_or(Error::Missing { program: "go", remedy })
    }

    pub(super) fn run(&self, step: &str, command: &mut Command) -> Result<()> {
        let started = Instant::now();
        let output = self.output_with_dots(step, command)?;
        if output.status.success() {
            tracing::debug!(step, seconds = started.elapsed().as_secs(), "done");
            return Ok(());
        }
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        let from = said.char_indices().rev().nth(4000).map_or(0, |(at, _)| at);
        let output_end = said.get(from..).unwrap_or_default().to_owned();
        Err(Error::Step { step: step.to_owned(), status: output.status, output: output_end })
    }

    /// Runs a command; a dot every 5 s says that it goes on.
    fn output_with_dots(&self, step: &str, command: &mut Command) -> Result<Output> {
        let program = PathBuf::from(command.get_program());
        let failed = |source| Error::Start { program: program.clone(), source };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(failed)?;
        let (sender, done) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            let output = child.wait_with_output();
            let _ = sender.send(());
            output
        });
        let mut dots = false;
        while done.recv_timeout(std::time::Duration::from_secs(5)).is_err() && !waiter.is_finished() {
            if self.loud {
                eprint!("{}", if dots { ".".to_owned() } else { format!("    {step} .") });
                drop(std::io::stderr().flush());
                dots = true;
            }
        }
        if dots {
            eprintln!();
        }
        let output =
            waiter.join().map_err(|_| failed(std::io::Error::other("the waiting thread panicked")))?;
        output.map_err(|source| Error::Start { program, source })
    }

    fn tell(&self, what: &str) {
        if self.loud {
            eprintln!("set-up: {what}");
        }
    }
}

/// `kubectl` as a name of its own, for people and scripts.
fn write_kubectl(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let script = "#!/bin/sh\nexec \"$(dirname \"$(readlink -f \"$0\")\")/controlplane\" kubectl \"$@\"\n";
    std::fs::write(path, script).map_err(Error::file(path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).map_err(Error::file(path))
}

fn usable_go() -> Option<PathBuf> {
    let go = find("go")?;
    let output = Command::new(&go).args(["env", "GOVERSION"]).output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    let mut numbers = version.trim().strip_prefix("go")?.split('.');
    let major: u32 = numbers.next()?.parse().ok()?;
    let minor: u32 = numbers.next()?.parse().ok()?;
    ((major, minor) >= GO).then_some(go)
}

/// A program on the PATH, or where it is usually put although the PATH does not say so.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/go/bin", "/usr/sbin", "/sbin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(cache: &Path) -> Tools {
        Tools { cache: cache.to_owned(), loud: false }
    }

    #[test]
    fn a_folder_is_made_once_and_a_broken_attempt_is_made_again() {
        let cache = tempfile::tempdir().unwrap();
        let tools = tools(cache.path());
        let failure = tools.once("thing", "a thing", |folder| {
            std::fs::write(folder.join("half"), "").unwrap();
            Err(Error::NoSuchPart("x".to_owned()))
        });
        assert!(failure.is_err());
        assert!(!cache.path().join("thing").exists());

        let make = |folder: &Path| std::fs::write(folder.join("whole"), "").map_err(Error::file(folder));
        let folder = tools.once("thing", "a thing", make).unwrap();
        assert!(folder.join("whole").exists());
        assert!(!folder.join("half").exists(), "what the broken attempt left is gone");
        let again = tools.once("thing", "a thing", |_| panic!("made twice")).unwrap();
        assert_eq!(again, folder);
    }

    #[test]
    fn two_at_once_make_it_once() {
        let cache = tempfile::tempdir().unwrap();
        let made = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    tools(cache.path())
                        .once("thing", "a thing", |_| {
                            made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            Ok(())
                        })
                        .unwrap();
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn the_version_told_to_kubectl_is_the_one_built() {
        let (_, module) = MODULE.into_iter().find(|(name, _)| *name == "go.mod").unwrap();
        assert!(
            module.contains(&format!("k8s.io/kubernetes {KUBERNETES}\n")),
            "{KUBERNETES} is not in go.mod"
        );
    }

    #[test]
    fn a_failing_step_shows_what_the_command_said() {
        let cache = tempfile::tempdir().unwrap();
        let failure =
            tools(cache.path()).run("the step", Command::new("sh").args(["-c", "echo why >&2; exit 3"]));
        let message = failure.unwrap_err().to_string();
        assert!(
            message.contains("the step") && message.contains("why") && message.contains('3'),
            "{message}"
        );
    }
}
