//! Azurite: Microsoft's emulator of Azure storage, pinned with all that it needs by `azurite/package-lock.json`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    error::{Error, Result},
    parts::Program,
    tools::{Tools, find},
};

const PACKAGE: &str = include_str!("azurite/package.json");
const LOCK: &str = include_str!("azurite/package-lock.json");

/// Its blob service on a port of loopback, with its data in `data`.
pub fn azurite(data: &Path, port: u16) -> Result<Program> {
    let main = installed(&Tools::of_this_machine()?)?;
    let missing = || Error::Missing { program: "node", remedy: "apt-get install -y nodejs".to_owned() };
    let program = Program::new(find("node").ok_or_else(missing)?)
        .arg(main)
        .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--location"])
        .arg(data)
        .args(["--silent", "--skipApiVersionCheck", "--disableTelemetry"]);
    Ok(program)
}

pub(super) fn installed(tools: &Tools) -> Result<PathBuf> {
    let key = blake3::hash(LOCK.as_bytes()).to_hex();
    let name = format!("azurite-{}", key.get(..16).unwrap_or_default());
    let folder = tools.once(&name, "Azurite from npm (about half a minute)", |folder| {
        for (name, text) in [("package.json", PACKAGE), ("package-lock.json", LOCK)] {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(Error::file(path))?;
        }
        let missing = || Error::Missing { program: "npm", remedy: "apt-get install -y npm".to_owned() };
        let mut npm = Command::new(find("npm").ok_or_else(missing)?);
        npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts", "--omit=dev"]).current_dir(folder);
        tools.run("npm ci of Azurite", &mut npm)
    })?;
    Ok(folder.join("node_modules/azurite/dist/src/blob/main.js"))
}
