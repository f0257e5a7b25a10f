//! Compiled third-party crates, kept outside the clone so that the next clone need not compile them.
//!
//! ```text
//! <cache>/target-<hash of rustc -vV>-<hash of Cargo.lock's third-party crates>/{.fingerprint,build,deps}
//! ```
//! A lock file that was not seen before begins with the units of the last one: most of them fit.
//! Cargo's fingerprints of registry crates name no path of the clone, so their units can be copied between
//! target folders. Ours do name it and are never kept. Cargo compiles a unit again when one that it depends on
//! is newer, so all that is copied at once gets one time: now. What cargo finds wrong it compiles again: a
//! bad cache costs time, not correctness.

use std::{
    collections::HashSet,
    fs::{self, File, FileTimes},
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result};

use crate::shell::{cache, program, root, target};

/// Kept folders beside the one in use: another branch's.
const KEPT: usize = 1;

/// Brings what is cached into this clone's target folder.
pub(crate) fn fetch() -> Result<()> {
    let (toolchain, crates) = key()?;
    let exact = cache()?.join(format!("{toolchain}-{crates}"));
    let kept = if exact.is_dir() { Some(exact) } else { by_last_use(&toolchain)?.pop() };
    let Some(kept) = kept else { return Ok(()) };
    let lock = lock(&kept)?;
    lock.lock_shared()?;
    let n = merge(&kept, &target().join("debug"))?;
    if n > 0 {
        eprintln!("took {n} compiled units from {}", kept.display());
    }
    Ok(())
}

/// Keeps what this clone's target folder has more than the cache.
pub(crate) fn keep() -> Result<()> {
    let (toolchain, crates) = key()?;
    let kept = cache()?.join(format!("{toolchain}-{crates}"));
    fs::create_dir_all(&kept)?;
    let lock = lock(&kept)?;
    lock.lock()?;
    let n = merge(&target().join("debug"), &kept)?;
    if n > 0 {
        eprintln!("kept {n} compiled units in {}", kept.display());
    }
    forget_old(&kept, &toolchain)
}

/// The two parts of a folder's name. Profiles and features are not in it: cargo tells units apart by them.
fn key() -> Result<(String, String)> {
    let mut toolchain = DefaultHasher::new();
    program("rustc").args(["-vV"]).stdout()?.hash(&mut toolchain);
    for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        std::env::var_os(variable).hash(&mut toolchain);
    }
    let mut crates = DefaultHasher::new();
    let locked = fs::read_to_string(root().join("Cargo.lock"))?;
    locked.lines().filter(|line| line.starts_with("checksum = ")).for_each(|line| line.hash(&mut crates));
    Ok((format!("target-{:016x}", toolchain.finish()), format!("{:016x}", crates.finish())))
}

fn lock(kept: &Path) -> Result<File> {
    let path = kept.with_extension("lock");
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    // Says when the folder was last used.
    file.set_modified(SystemTime::now())?;
    Ok(file)
}

/// Copies the units of third-party crates that `to` lacks; returns how many.
fn merge(from: &Path, to: &Path) -> Result<usize> {
    let now = SystemTime::now();
    let present: HashSet<_> = names(&to.join(".fingerprint"))?.into_iter().collect();
    let missing: Vec<String> = names(&from.join(".fingerprint"))?
        .into_iter()
        .filter(|unit| !is_ours(unit) && !present.contains(unit))
        .collect();
    if missing.is_empty() {
        return Ok(0);
    }
    let hashes: HashSet<&str> = missing.iter().filter_map(|unit| hash_of(unit)).collect();
    for file in names(&from.join("deps"))? {
        if hash_of(&file).is_some_and(|hash| hashes.contains(hash)) {
            copy(&from.join("deps").join(&file), &to.join("deps").join(&file), now)?;
        }
    }
    for unit in &missing {
        let built = from.join("build").join(unit);
        if built.is_dir() {
            copy(&built, &to.join("build").join(unit), now)?;
        }
    }
    // Last: without its fingerprint a unit that was copied in part is compiled again.
    for unit in &missing {
        copy(&from.join(".fingerprint").join(unit), &to.join(".fingerprint").join(unit), now)?;
    }
    Ok(missing.len())
}

fn is_ours(unit: &str) -> bool {
    unit.starts_with("farshore") || unit.starts_with("xtask")
}

/// `libserde-1941105a77046009.rlib`, `serde-1941105a77046009` -> `1941105a77046009`.
fn hash_of(name: &str) -> Option<&str> {
    let stem = name.split('.').next()?;
    let (_, hash) = stem.rsplit_once('-')?;
    (hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(hash)
}

fn names(folder: &Path) -> Result<Vec<String>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

/// Copies a file or folder, as if it had been made at `time`.
fn copy(from: &Path, to: &Path, time: SystemTime) -> Result<()> {
    let what = || from.display().to_string();
    let metadata = fs::metadata(from).with_context(what)?;
    if metadata.is_dir() {
        fs::create_dir_all(to).with_context(what)?;
        for name in names(from)? {
            copy(&from.join(&name), &to.join(&name), time)?;
        }
    } else {
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).with_context(what)?;
        }
        // Never write into a file that is there: it may be linked from elsewhere.
        let part = to.with_extension("part");
        fs::copy(from, &part).with_context(what)?;
        File::options().append(true).open(&part)?.set_times(FileTimes::new().set_modified(time))?;
        fs::rename(&part, to).with_context(what)?;
    }
    Ok(())
}

/// The folders of a toolchain, the last used last.
fn by_last_use(toolchain: &str) -> Result<Vec<PathBuf>> {
    let cache = cache()?;
    let mut found: Vec<(SystemTime, PathBuf)> = names(&cache)?
        .into_iter()
        .filter(|name| name.starts_with(toolchain))
        .map(|name| cache.join(name))
        .filter(|path| path.is_dir())
        .filter_map(|path| Some((fs::metadata(path.with_extension("lock")).ok()?.modified().ok()?, path)))
        .collect();
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Removes the folders of other lock files but the last used ones.
fn forget_old(kept: &Path, toolchain: &str) -> Result<()> {
    let mut others = by_last_use(toolchain)?;
    others.retain(|path| path != kept);
    others.truncate(others.len().saturating_sub(KEPT));
    for path in others {
        let lock = lock(&path)?;
        if lock.try_lock().is_ok() {
            fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(target: &Path, name: &str, hash: &str) {
        for (path, text) in [
            (format!(".fingerprint/{name}-{hash}/lib"), "fingerprint"),
            (format!("deps/lib{name}-{hash}.rlib"), "code"),
            (format!("build/{name}-{hash}/out/bindings.rs"), "generated"),
        ] {
            let path = target.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            let old = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
            File::options()
                .append(true)
                .open(&path)
                .unwrap()
                .set_times(FileTimes::new().set_modified(old))
                .unwrap();
        }
    }

    #[test]
    fn units_of_others_are_copied_once_at_one_time_and_ours_never() {
        let folder = std::env::temp_dir().join(format!("xtask-compiled-{}", std::process::id()));
        let (from, to) = (folder.join("from"), folder.join("to"));
        unit(&from, "serde", "1941105a77046009");
        unit(&from, "farshore-core", "2941105a77046009");
        assert_eq!(merge(&from, &to).unwrap(), 1);
        let copied = to.join("deps/libserde-1941105a77046009.rlib");
        let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        assert_eq!(modified(&copied), modified(&to.join("build/serde-1941105a77046009/out/bindings.rs")));
        assert!(modified(&copied) > modified(&from.join("deps/libserde-1941105a77046009.rlib")));
        assert!(to.join("build/serde-1941105a77046009/out/bindings.rs").exists());
        assert_eq!(names(&to.join(".fingerprint")).unwrap(), ["serde-1941105a77046009"]);
        assert_eq!(merge(&from, &to).unwrap(), 0);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_hash_of_a_unit_is_read_from_all_its_files() {
        for name in ["serde-1941105a77046009", "libserde-1941105a77046009.rlib", "serde-1941105a77046009.d"] {
            assert_eq!(hash_of(name), Some("1941105a77046009"), "{name}");
        }
        assert_eq!(hash_of("libserde.rlib"), None);
    }
}
