//! What CI runs, and the tests.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{
    chart, compiled, generated, lab,
    shell::{cargo, target},
    tidy,
};

/// Sets up what tests need, then runs them; `args` in place of the whole workspace.
pub(crate) fn test(args: &[String]) -> Result<()> {
    let started = Instant::now();
    lab::build()?;
    lab::set_up()?;
    let ready = started.elapsed();
    let whole: Vec<String> = ["--workspace", "--no-fail-fast"].map(str::to_owned).into();
    let args = if args.is_empty() { &whole } else { args };
    // Tests wait for processes most of the time: a few at once, whatever the number of cores.
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4)).to_string();
    let threads = std::env::var("RUST_TEST_THREADS").unwrap_or(threads);
    let result = cargo(["test"])
        .args(args)
        .env("RUST_TEST_THREADS", threads)
        // Built above: tests need not look whether their programs are fresh.
        .env("FARSHORE_BIN_DIR", target().join("debug"))
        .run();
    compiled::keep()?;
    eprintln!("tests: {} s, {} s of them set-up", started.elapsed().as_secs(), ready.as_secs());
    result
}

/// Everything, in order of cost; stops at the first failure.
pub(crate) fn run(fast: bool) -> Result<()> {
    compiled::fetch()?;
    let steps: [(&str, &dyn Fn() -> Result<()>); 7] = [
        ("formatting", &|| cargo(["fmt", "--all", "--check"]).run()),
        ("tidy", &tidy::run),
        ("lints", &clippy),
        ("CRDs are fresh", &|| generated("crds", true)),
        ("reference is fresh", &|| generated("docs", true)),
        ("chart", &chart::check),
        ("tests", &|| if fast { Ok(()) } else { cargo(["xtask", "test"]).run() }),
    ];
    let mut times: Vec<(&str, Duration)> = Vec::new();
    for (name, step) in steps {
        eprintln!("\nci: {name}");
        let started = Instant::now();
        step().with_context(|| format!("ci: {name}"))?;
        times.push((name, started.elapsed()));
    }
    eprintln!("\nci: all well");
    for (name, time) in times {
        eprintln!("  {name:20} {:6.1} s", time.as_secs_f64());
    }
    Ok(())
}

fn clippy() -> Result<()> {
    let scope = ["clippy", "--workspace", "--all-targets", "--features", "xtask/generate"];
    cargo(scope).args(["--", "--deny", "warnings"]).run()
}
