//! The real kubectl, as people and pipelines use it.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

/// kubectl with a kubeconfig.
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

/// What kubectl said.
#[derive(Debug)]
pub struct Output {
    /// It succeeded.
    pub ok: bool,
    /// Both streams.
    pub text: String,
}

impl Output {
    /// Panics unless it succeeded.
    #[track_caller]
    pub fn accepted(self) -> String {
        assert!(self.ok, "refused: {}", self.text);
        self.text
    }

    /// Panics unless it failed and said `why`.
    #[track_caller]
    pub fn refused(self, why: &str) {
        assert!(!self.ok, "accepted, but should be refused with {why:?}: {}", self.text);
        assert!(self.text.contains(why), "refused, but not with {why:?}: {}", self.text);
    }
}

impl Kubectl {
    pub(crate) fn new(program: &Path, kubeconfig: &Path) -> Self {
        Self { program: program.to_owned(), kubeconfig: kubeconfig.to_owned() }
    }

    /// Runs it with arguments.
    pub fn run(&self, args: &[&str]) -> Output {
        self.run_with(args, None)
    }

    /// Runs it with a manifest as `-f -`.
    pub fn apply(&self, args: &[&str], manifest: &Value) -> Output {
        self.run_with(&[args, &["-f", "-"]].concat(), Some(&manifest.to_string()))
    }

    fn run_with(&self, args: &[&str], input: Option<&str>) -> Output {
        let mut child = Command::new(&self.program)
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", "/nonexistent")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl");
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            stdin.write_all(input.as_bytes()).expect("kubectl reads");
        }
        let done = child.wait_with_output().expect("kubectl ends");
        let text = [done.stdout, done.stderr].concat();
        Output { ok: done.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
    }
}
