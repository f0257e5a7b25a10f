//! What can go wrong while the lab is set up, started or driven.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

/// A failure of the lab's launcher; its message is meant for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that the lab needs is not on this machine and could not be installed.
    #[error("{program} is missing: {remedy}")]
    Missing {
        /// The program.
        program: &'static str,
        /// What a person can do, with the command.
        remedy: String,
    },
    /// A step of the set-up ended badly.
    #[error("{step} failed ({status}):\n{output}")]
    Step {
        /// What was tried.
        step: String,
        /// How the command ended.
        status: ExitStatus,
        /// The end of what it said.
        output: String,
    },
    /// A file or folder could not be read or written.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("start of {program}")]
    Start {
        /// Its path.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No part of that name was ever started.
    #[error("no part named {0:?}")]
    NoSuchPart(String),
    /// A part is up that should be down, or the other way round.
    #[error("{part} is {state}")]
    PartState {
        /// The part.
        part: String,
        /// What it is.
        state: &'static str,
    },
    /// A part ended although it should run.
    #[error("{part} ended ({status}); the end of its log:\n{log}")]
    Ended {
        /// The part.
        part: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// Something did not come true in time.
    #[error("{what}: not within {waited:?}{last}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// What was seen last, beginning with ": ", or empty.
        last: String,
    },
    /// A signal could not be sent.
    #[error("signal to {part}")]
    Signal {
        /// The part.
        part: String,
        /// Why.
        source: nix::Error,
    },
    /// No free port was found.
    #[error("no free port on 127.0.0.1 between {from} and {to}")]
    NoPort {
        /// Lowest tried.
        from: u16,
        /// First not tried.
        to: u16,
    },
    /// A certificate could not be made.
    #[error("certificate for {name}")]
    Certificate {
        /// Its common name.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// A kubeconfig could not be used.
    #[error("kubeconfig")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The API server refused.
    #[error("{what}")]
    Kubernetes {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// Something of the lab's own state could not be read or written as JSON.
    #[error("{what}")]
    Json {
        /// What.
        what: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// Our own programs could not be built.
    #[error("{0}")]
    Build(String),
    /// The keeper of the background lab refused or is away.
    #[error("{0}")]
    Keeper(String),
}

impl Error {
    /// An I/O error with the path that it was about.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    /// A Kubernetes error with what was tried.
    pub(crate) fn kubernetes(what: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Kubernetes { what, source: Box::new(source) }
    }

    /// A JSON error with what was read or written.
    pub(crate) fn json(what: &'static str) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Json { what, source }
    }
}

/// What most of this module returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;
