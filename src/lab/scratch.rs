//! Folders of tests: kept after a failure to be looked at, removed by the next run.

use std::io;
use std::path::{Path, PathBuf};

/// An empty folder of this process; those of processes that have ended go.
///
/// # Errors
/// If it cannot be made.
pub fn scratch(name: &str) -> io::Result<PathBuf> {
    let prefix = format!("farshore-{name}-");
    let parent = std::env::temp_dir();
    for entry in std::fs::read_dir(&parent)?.flatten() {
        let file = entry.file_name();
        let pid = file.to_str().and_then(|n| n.strip_prefix(&prefix)).and_then(|p| p.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Somebody else may be removing it at this moment.
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
    let folder = parent.join(format!("{prefix}{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
