//! What rustfmt and clippy cannot check.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::shell::root;

/// Longest Rust file: about 600 is where to look for a seam.
const LINES: usize = 700;
const XTASK_LINES: usize = 1500;

/// Crates without time, tokio or the network; `core` without files too.
const PURE: [(&str, &[&str]); 2] = [
    (
        "src/core",
        &[
            "tokio",
            "std::fs",
            "std::net",
            "std::process",
            "std::env",
            "Instant::now",
            "SystemTime",
            "::now()",
        ],
    ),
    ("src/disk", &["tokio", "std::net", "std::process", "std::env", "Instant::now", "SystemTime", "::now()"]),
];
/// What a pure crate's Cargo.toml may not ask for.
const IMPURE: [&str; 6] = ["tokio", "kube", "reqwest", "hyper", "rand", "azure_core"];

/// The last sub-number of R0, R1, ... in the requirements.
const REQUIREMENTS: [u32; 12] = [5, 4, 3, 3, 3, 5, 3, 3, 5, 2, 5, 4];

/// Things found wrong.
type Findings = Vec<String>;

/// Runs all checks; reports all findings.
pub(crate) fn run() -> Result<()> {
    let files = files(root())?;
    let mut findings = Findings::new();
    for file in &files {
        let text = fs::read_to_string(root().join(file)).with_context(|| file.display().to_string())?;
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => rust(file, &text, &mut findings),
            Some("toml") if file.ends_with("Cargo.toml") => manifest(file, &text, &mut findings),
            Some("md") => links(file, &text, &mut findings),
            _ => {}
        }
    }
    dependencies(&mut findings)?;
    clippy_files(&mut findings)?;
    xtask_length(&files, &mut findings)?;
    if findings.is_empty() {
        eprintln!("tidy: {} files", files.len());
        return Ok(());
    }
    bail!("tidy: {} findings\n  {}", findings.len(), findings.join("\n  "))
}

/// Our text files, relative to the root.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let name = entry.file_name();
            let skipped = name.to_str().is_none_or(|name| {
                matches!(name, "target" | "node_modules" | ".git") || name.ends_with(".tmp")
            });
            let path = folder.join(&name);
            if entry.file_type()?.is_dir() {
                folders.extend((!skipped).then_some(path));
            } else if ["rs", "toml", "md"]
                .iter()
                .any(|kind| path.extension().is_some_and(|found| found == *kind))
            {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn rust(file: &Path, text: &str, findings: &mut Findings) {
    let lines = text.lines().count();
    if lines > LINES {
        findings.push(format!("{}: {lines} lines, more than {LINES}: find the seam", file.display()));
    }
    let unfinished = ["todo", "unimplemented", "dbg"].map(|word| format!("{word}!("));
    // Put together, so that this file is not found.
    let marks = [("FIX", "ME"), ("TO", "DO"), ("XX", "X")].map(|(start, end)| format!("{start}{end}"));
    for (n, line) in (1..).zip(text.lines()) {
        let mut wrong = |what: &str| findings.push(format!("{}:{n}: {what}", file.display()));
        for word in &unfinished {
            if line.contains(word.as_str()) {
                wrong(&format!("{word}...) left in"));
            }
        }
        for mark in &marks {
            if words(line).any(|word| word == mark) {
                wrong(&format!("{mark} left in"));
            }
        }
        if let Some((_, comment)) = line.split_once("//") {
            for number in words_with_dots(comment).filter_map(requirement) {
                if !exists(number) {
                    wrong(&format!("there is no requirement R{}.{}", number.0, number.1.unwrap_or_default()));
                }
            }
        }
    }
    for (folder, banned) in PURE {
        if file.starts_with(folder) && !is_test(file) {
            for (n, line) in (1..).zip(without_tests(text).lines()) {
                let code = line.split("//").next().unwrap_or_default();
                for word in banned.iter().filter(|word| code.contains(**word)) {
                    findings.push(format!("{}:{n}: {word} in a pure crate", file.display()));
                }
            }
        }
    }
}

fn is_test(file: &Path) -> bool {
    let name = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    name == "tests"
        || name.ends_with("_tests")
        || file
            .components()
            .any(|part| ["tests", "examples", "benches"].iter().any(|test| part.as_os_str() == *test))
}

/// The text before the module of unit tests.
fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod ").and_then(|at| text.get(..at)).unwrap_or(text)
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn words_with_dots(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '_')
        .map(|word| word.trim_matches('.'))
}

/// `R5.3` -> (5, Some(3)).
fn requirement(word: &str) -> Option<(u32, Option<u32>)> {
    let (major, minor) = match word.strip_prefix('R')?.split_once('.') {
        Some((major, minor)) => (major, Some(minor.parse().ok()?)),
        None => (word.strip_prefix('R')?, None),
    };
    Some((major.parse().ok()?, minor))
}

fn exists((major, minor): (u32, Option<u32>)) -> bool {
    let last = usize::try_from(major).ok().and_then(|major| REQUIREMENTS.get(major));
    last.is_some_and(|last| minor.is_none_or(|minor| (1..=*last).contains(&minor)))
}

fn manifest(file: &Path, text: &str, findings: &mut Findings) {
    if text.contains("[package]") && !text.contains("[lints]\nworkspace = true") {
        findings.push(format!("{}: no `[lints] workspace = true`", file.display()));
    }
    if PURE.iter().any(|(folder, _)| file.starts_with(folder)) {
        let dependencies = text.split("[dev-dependencies]").next().unwrap_or_default();
        for (name, _) in dependencies.lines().filter_map(|line| line.split_once(['.', ' ', '='])) {
            if IMPURE.contains(&name) {
                findings.push(format!("{}: {name} in a pure crate", file.display()));
            }
        }
    }
}

/// Links to files of the repository.
fn links(file: &Path, text: &str, findings: &mut Findings) {
    for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let path = target.split('#').next().unwrap_or_default();
        let outside = path.contains("://") || path.starts_with("mailto:") || path.contains([' ', '`', '<']);
        if path.is_empty() || outside {
            continue;
        }
        let folder = file.parent().unwrap_or(Path::new(""));
        if !root().join(folder).join(path).exists() {
            findings.push(format!("{}: link to {path}, which does not exist", file.display()));
        }
    }
}

/// Every crate that we ask for has its line of reasons.
fn dependencies(findings: &mut Findings) -> Result<()> {
    let manifest = fs::read_to_string(root().join("Cargo.toml"))?;
    let reasons = fs::read_to_string(root().join("docs/dependencies.md"))?;
    let section = manifest.split("[workspace.dependencies]").nth(1).unwrap_or_default();
    for line in section.lines().take_while(|line| !line.starts_with('[')) {
        let Some((name, rest)) = line.split_once(" = ") else { continue };
        if !rest.contains("path = ") && !reasons.contains(&format!("| {name} |")) {
            findings.push(format!("docs/dependencies.md: no line for {name}"));
        }
    }
    Ok(())
}

/// Clippy reads the nearest file only: the pure crates' must hold the root's lines too.
fn clippy_files(findings: &mut Findings) -> Result<()> {
    let common = fs::read_to_string(root().join(".clippy.toml"))?;
    for (folder, _) in PURE {
        let path = format!("{folder}/.clippy.toml");
        let own = fs::read_to_string(root().join(&path)).with_context(|| path.clone())?;
        for line in common.lines().filter(|line| line.contains('=') && !own.contains(*line)) {
            findings.push(format!("{path}: without the root's {line:?}"));
        }
    }
    Ok(())
}

fn xtask_length(files: &[PathBuf], findings: &mut Findings) -> Result<()> {
    let mut lines = 0;
    for file in files
        .iter()
        .filter(|file| file.starts_with("src/xtask") && file.extension().is_some_and(|e| e == "rs"))
    {
        lines += fs::read_to_string(root().join(file))?.lines().count();
    }
    if lines > XTASK_LINES {
        findings.push(format!("src/xtask: {lines} lines, more than {XTASK_LINES}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_known_by_their_numbers() {
        for (word, known) in
            [("R5.3", true), ("R5.6", false), ("R0", true), ("R12", false), ("R11.4", true), ("R9.0", false)]
        {
            assert_eq!(requirement(word).map(exists), Some(known), "{word}");
        }
        for word in ["RCT", "R", "R5.x", "5.3"] {
            assert_eq!(requirement(word), None, "{word}");
        }
    }

    #[test]
    fn impure_code_and_what_is_unfinished_are_found_and_tests_may_have_them() {
        let find = |file: &str, text: &str| {
            let mut findings = Findings::new();
            rust(Path::new(file), text, &mut findings);
            findings.len()
        };
        assert_eq!(find("src/core/a.rs", "use tokio::time;"), 1);
        assert_eq!(find("src/core/a.rs", "// no tokio here"), 0);
        assert_eq!(find("src/core/a.rs", "fn a() {}\n#[cfg(test)]\nmod tests { use tokio; }"), 0);
        assert_eq!(find("src/core/tests.rs", "use tokio::time;"), 0);
        assert_eq!(find("src/agent/a.rs", "use tokio::time;"), 0);
        assert_eq!(find("src/agent/a.rs", &format!("{}!()", "todo")), 1);
        assert_eq!(find("src/agent/a.rs", &format!("// R9{}", ".9")), 1);
        assert_eq!(find("src/agent/a.rs", &"\n".repeat(LINES + 1)), 1);
    }

    #[test]
    fn a_broken_link_is_found() {
        let find = |text: &str| {
            let mut findings = Findings::new();
            links(Path::new("README.md"), text, &mut findings);
            findings.len()
        };
        assert_eq!(find("[a](no/such/file.md)"), 1);
        assert_eq!(find("[a](Cargo.toml) [b](https://example.org) [c](#part)"), 0);
    }
}
