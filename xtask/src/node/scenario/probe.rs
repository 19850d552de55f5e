//! Liveness probes that exec: kubelet does so all day.

use std::fs;

use anyhow::Context as _;
use serde_json::json;

use super::{
    super::{
        Options,
        daemons::{Node, curl, place, text},
        host::NAME,
        pods::{self, NAMESPACE},
        watch::{LOW, Watch, names_pod, severity, titles},
    },
    Checks,
};

/// How many probes the agent is to see.
const PROBES: usize = 4;

/// A pod with a probe is at most low; another exec in it is not.
pub fn exec_probe(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let work = place("work/probe");
    fs::create_dir_all(&work)?;
    let mounts = [("/work", work.to_str().context("not UTF-8")?)];
    let mut manifest = pods::with_host_paths(pods::manifest("probed", pods::IDLE), &mounts);
    manifest["spec"]["containers"][0]["livenessProbe"] = json!({
        "exec": {"command": ["/bin/sh", "-c", "echo probed >> /work/probes"]},
        "periodSeconds": 1,
        "timeoutSeconds": 10,
    });
    let pod = node.run_pod(&manifest)?;
    let mut watch = Watch::start(node, &[])?;
    let probed = || fs::read_to_string(work.join("probes")).map_or(0, |text| text.lines().count());
    let before = probed();
    node.until("kubelet probes the pod", || probed() >= before + PROBES)?;
    let alerts = watch.rest_of("container-exec")?;
    let low = || {
        let high: Vec<_> = alerts.iter().filter(|alert| severity(alert) > LOW).cloned().collect();
        anyhow::ensure!(high.is_empty(), "above low: {}", titles(&high));
        Ok(())
    };
    checks.check(&format!("{PROBES} probes: at most low alerts (there were {})", alerts.len()), low());

    let url = format!("https://127.0.0.1:10250/run/{NAMESPACE}/probed-{NAME}/app?cmd=cat%20/bin/busybox");
    text(curl(&["--request", "POST", "--output", "/dev/null", &url]))?;
    let alert = watch.find("container-exec above low", |alert| {
        alert["technique"]["id"] == "container-exec" && severity(alert) > LOW
    });
    let named = |alert: serde_json::Value| {
        let argv = &alert["process"]["argv"];
        anyhow::ensure!(*argv == json!(["cat", "/bin/busybox"]), "process.argv is {argv}");
        names_pod(&alert, &pod)
    };
    checks.check("twin: another exec in the same pod is above low", alert.and_then(named));
    Ok(())
}
