//! What is not written: numbers more often than they may be, and secrets anywhere.

use std::time::Duration;

use farshore_api::{ProtectedVM, RecoveryJob, ReplicationRelationship};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{ListParams, WatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::stage::{stage, stage_alone, text, timing};

// DESIGN 3, write budget
#[test]
fn a_vm_at_rest_is_written_once_in_a_while_however_many_cycles_there_are() {
    stage(async |stage| {
        let vm = stage.protected("rest", json!({})).await;
        stage.await_condition("rest", "Ready", "True").await;
        let api = stage.protected_vms();
        let version = api.get("rest").await.unwrap().resource_version().unwrap();
        let params = WatchParams::default().fields("metadata.name=rest");
        let mut changes = api.watch(&params, &version).await.unwrap().boxed();
        let period = timing().status_refresh;
        let end = tokio::time::Instant::now() + period * 6;
        let (mut writes, mut cycle) = (0, 3);
        while tokio::time::Instant::now() < end {
            vm.point(1, cycle).await;
            cycle += 1;
            let next = tokio::time::Instant::now() + Duration::from_millis(300);
            while let Ok(Ok(Some(_))) = tokio::time::timeout_at(next, changes.try_next()).await {
                writes += 1;
            }
        }
        assert!(cycle > 12, "only {cycle} cycles");
        assert!(writes <= 4, "{writes} writes in 6 periods");
    });
}

// DESIGN 9
#[test]
fn no_secret_is_in_logs_status_events_or_jobs() {
    stage_alone(async |stage| {
        let vm = stage.protected("discreet", json!({})).await;
        let secret = vm.await_sas(|_| true).await;
        stage.world.blobs().link().cut();
        stage.await_condition("discreet", "LedgerReachable", "False").await;
        stage.world.blobs().link().mend();
        stage.await_condition("discreet", "LedgerReachable", "True").await;
        let mut places = vec![("log", stage.log.text())];
        let all = ListParams::default();
        let vms: Api<ProtectedVM> = Api::all(stage.client());
        places.push(("ProtectedVMs", format!("{:?}", vms.list(&all).await.unwrap())));
        let relationships: Api<ReplicationRelationship> = Api::all(stage.client());
        places.push(("relationships", format!("{:?}", relationships.list(&all).await.unwrap())));
        let jobs: Api<RecoveryJob> = Api::all(stage.client());
        places.push(("jobs", format!("{:?}", jobs.list(&all).await.unwrap())));
        let events: Api<k8s_openapi::api::events::v1::Event> = Api::all(stage.client());
        places.push(("events", format!("{:?}", events.list(&all).await.unwrap())));
        let signature = |key: &str| {
            let sas = text(&secret, key);
            sas.split('&').find_map(|p| p.strip_prefix("sig=")).unwrap().to_owned()
        };
        let key = stage.world.blobs().key().to_owned();
        for (place, content) in places {
            assert!(content.contains("discreet") || place == "log", "{place} was read");
            for hidden in [key.as_str(), &signature("up"), &signature("down"), "sig="] {
                assert!(!content.contains(hidden), "{place} holds a secret");
            }
        }
        assert!(stage.log.text().contains("SAS handed out"), "the log was caught");
    });
}

// R7.3
#[tokio::test]
async fn metrics_are_served() {
    use std::sync::Arc;

    use farshore_controller::metrics::{Metrics, serve};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let port = farshore_lab::launch::Port::free().unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port.number()));
    let metrics = Arc::new(Metrics::default());
    metrics.host("h1", true);
    let serving = tokio::spawn(serve(address, metrics));
    let answer = farshore_lab::launch::until("metrics", crate::stage::LIMIT, async || {
        let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else {
            return Ok(farshore_lab::launch::Seen::NotYet("no connection".into()));
        };
        let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        Ok(farshore_lab::launch::Seen::Yes(text))
    })
    .await
    .unwrap();
    serving.abort();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("application/openmetrics-text"),
        "{answer}"
    );
    assert!(
        answer.contains("farshore_host_connected{host=\"h1\"} 1") && answer.trim_end().ends_with("# EOF")
    );
}
