//! Steady state: cycles cost no API writes.

use farshore_core::units::MIB;
use farshore_test_scenario::stage_alone;
use jiff::Timestamp;
use kube::Client;
use serde_json::json;

/// Requests that the API server has answered for farshore.dev resources, by verb, that change something.
async fn writes(client: Client) -> u64 {
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let text = client.request_text(request).await.unwrap();
    text.lines()
        .filter(|line| line.starts_with("apiserver_request_total{"))
        .filter(|line| line.contains("group=\"farshore.dev\""))
        .filter(|line| {
            ["APPLY", "PATCH", "PUT", "POST"].iter().any(|v| line.contains(&format!("verb=\"{v}\"")))
        })
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
        .sum()
}

// DESIGN 3, write budget: at most one status write per VM and status period over all its objects.
#[test]
fn cycles_cost_no_api_writes() {
    stage_alone(async |stage| {
        let vm = stage.make_vm("steady", &[8 * MIB]).await.unwrap();
        vm.write(0, 0, &[1; 4096]).await.unwrap();
        stage.protect("steady", "steady", json!({})).await.unwrap();
        stage.await_condition("steady", "Protected", "True").await.unwrap();
        vm.point_after(Timestamp::now()).await.unwrap();

        let cycle = async || vm.containers.cursor().await.unwrap().unwrap().applied.unwrap().id.cycle.0;
        let (before, first, since) = (writes(stage.world.client()).await, cycle().await, Timestamp::now());
        vm.point_after(since).await.unwrap();
        vm.point_after(Timestamp::now()).await.unwrap();
        let (written, cycles) = (writes(stage.world.client()).await - before, cycle().await - first);
        let timing = farshore_core::timing::Timing::lab();
        let periods =
            Timestamp::now().duration_since(since).as_secs_f64() / timing.status_refresh.as_secs_f64();
        let vms = stage.admin().list().await.unwrap().len() as f64;
        // One per VM and period, and one more per VM for a change of meaning at the edges of the time measured.
        let budget = vms * (periods.ceil() + 1.0);
        assert!(cycles >= 5, "only {cycles} cycles");
        assert!(
            (written as f64) <= budget,
            "{written} writes in {periods:.1} periods for {vms} VMs, {cycles} cycles"
        );
    });
}
