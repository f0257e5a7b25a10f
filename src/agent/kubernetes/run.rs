//! The agent as a program: enrol, find the namespace, then heartbeat, inventory and inbox until told to end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use farshore_api::HyperVHost;
use farshore_hyperv::sim::SimHost;
use jiff::Timestamp;
use kube::Api;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::enroll::{Identity, Validity, bootstrap_client};
use super::inbox::Inbox;
use super::{heartbeat, inventory};
use crate::config::Config;
use crate::crash::Crash;
use crate::engine::{Clock, Context};
use crate::journal::JournalStore;
use crate::transfer::Budget;

/// Runs the agent until `stop`.
///
/// # Errors
/// The host cannot be enrolled, or its state folder cannot be used.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        result = work(&config, stop.clone()) => result,
        // Engines end on their own token; before there are any, there is nothing to end.
        () = async { stop.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
    }
}

/// What is under way when the service is stopped may take this long to end; whatever is left is as after a crash.
const GRACE: Duration = Duration::from_secs(10);

async fn work(config: &Config, stop: CancellationToken) -> anyhow::Result<()> {
    let crash = Crash::at(config.crash_at);
    let identity = Identity::open(config, &crash)?;
    tracing::info!(host = %config.name, fingerprint = %identity.fingerprint(), "farshore-agent begins");
    let (client, validity) = tokio::select! {
        enrolled = enroll(config, &identity, &crash) => enrolled?,
        () = stop.cancelled() => return Ok(()),
    };
    let connection = Connection::new(client);
    let namespace = tokio::select! {
        namespace = find_namespace(config, &connection) => namespace,
        () = stop.cancelled() => return Ok(()),
    };
    tracing::info!(host = %config.name, %namespace, "connected");

    let host = Arc::new(SimHost::new(config.sim_socket.clone()));
    let context = Context {
        journals: JournalStore::open(&config.state_dir.join("journals"))?,
        budget: Budget::default(),
        timing: config.timing.clone(),
        clock: Clock::new(Timestamp::now),
        crash: crash.clone(),
    };
    let inbox = Inbox::new(
        connection.clone(),
        namespace.clone(),
        Arc::clone(&host),
        context,
        &config.state_dir,
        config.blob_ca_file.clone(),
    );
    let beat = heartbeat::run(
        connection.clone(),
        namespace.clone(),
        config.name.clone(),
        config.timing.host_lease_renew,
    );
    let facts =
        inventory::run(connection.clone(), namespace, config.name.clone(), host, config.timing.clone());
    tokio::select! {
        () = inbox.run(stop.clone()) => {}
        () = beat => {}
        () = facts => {}
        () = renew(config, &identity, validity, &connection, &crash) => {}
    }
    Ok(())
}

async fn enroll(
    config: &Config,
    identity: &Identity,
    crash: &Crash,
) -> anyhow::Result<(kube::Client, Validity)> {
    if let Some(validity) = identity.validity()? {
        if validity.not_after > Timestamp::now() {
            return Ok((identity.client().await?, validity));
        }
        tracing::warn!(host = %config.name, ended = %validity.not_after, "the certificate is past its end");
    }
    let Some(token) = &config.enroll_token else {
        bail!(
            "host {} is not enrolled: make a one-time token (farshore-controller host-token --site <site>) and start \
             the agent with --enroll-token",
            config.name
        );
    };
    let bootstrap = bootstrap_client(config, token).await?;
    let validity = loop {
        match identity.certify(&bootstrap, config, "", crash).await {
            Ok(validity) => break validity,
            // The API may be away, or the token not be known everywhere yet.
            Err(error) if is_passing(&error) => {
                tracing::warn!(error = %format!("{error:#}"), "enrolment goes on when the API answers");
                tokio::time::sleep(config.timing.verify_poll.max(Duration::from_millis(500))).await;
            }
            Err(error) => return Err(error).context("enrolment"),
        }
    };
    tracing::info!(host = %config.name, until = %validity.not_after, "enrolled");
    Ok((identity.client().await?, validity))
}

/// True if the API could not be reached or failed, not if it refused.
fn is_passing(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => status.code >= 500 || status.code == 429,
        Some(kube::Error::Auth(_)) => false,
        Some(_) => true,
        None => false,
    }
}

/// Waits until the controller has put the host into its namespace.
async fn find_namespace(config: &Config, connection: &Connection) -> String {
    let mut told = false;
    loop {
        let hosts: Api<HyperVHost> = Api::all(connection.client());
        match hosts.get_opt(&config.name).await {
            Ok(found) => {
                if let Some(namespace) =
                    found.and_then(|host| host.status).and_then(|status| status.namespace)
                {
                    return namespace;
                }
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(host = %config.name, "waiting for the host's namespace");
                }
            }
            Err(error) => tracing::warn!(%error, "HyperVHost {} could not be read", config.name),
        }
        tokio::time::sleep(config.timing.verify_poll.max(Duration::from_millis(100))).await;
    }
}

/// Renews the certificate after two thirds of its life, for ever.
async fn renew(
    config: &Config,
    identity: &Identity,
    first: Validity,
    connection: &Connection,
    crash: &Crash,
) {
    let mut validity = first;
    loop {
        let wait =
            Duration::try_from(validity.renew_at().duration_since(Timestamp::now())).unwrap_or_default();
        tokio::time::sleep(wait).await;
        // One request per certificate: after a restart the same one is found.
        let suffix = format!("-{}", validity.not_after.as_second());
        let renewed = async {
            let validity = identity.certify(&connection.client(), config, &suffix, crash).await?;
            anyhow::Ok((identity.client().await?, validity))
        };
        match renewed.await {
            Ok((client, renewed)) => {
                tracing::info!(host = %config.name, until = %renewed.not_after, "the certificate is renewed");
                connection.renew(client);
                validity = renewed;
            }
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "the certificate could not be renewed yet");
                tokio::time::sleep(config.timing.retry_minute).await;
            }
        }
    }
}
