//! Static pods planted from inside a pod.

use std::fs;

use anyhow::Context as _;

use super::{
    super::{
        Options,
        daemons::{Node, place},
        images::BUSYBOX,
        pods,
        watch::{Watch, equal, is, names, titles},
    },
    Checks,
};

/// A pod with the node's manifest directory mounted plants a pod when told to, and kubelet runs it.
pub fn from_pod(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let work = place("work/static-pod");
    fs::create_dir_all(&work)?;
    fs::write(work.join("planted"), serde_json::to_vec(&pods::manifest("planted", pods::IDLE))?)?;
    // It waits without starting anything, then copies: first where it does no harm, then where kubelet reads.
    let script = "until test -e /work/twin; do sleep 0.1; done; /bin/cp /work/planted /work/planted.yaml; touch /work/twin-done; \
                  until test -e /work/go; do sleep 0.1; done; /bin/cp /work/planted /manifests/planted.yaml; exec sleep 3600";
    let manifests = place("manifests");
    let mounts =
        [("/work", work.to_str().context("not UTF-8")?), ("/manifests", manifests.to_str().context("not UTF-8")?)];
    let pod = node.run_pod(&pods::with_host_paths(pods::manifest("planter", script), &mounts))?;
    let mut watch = Watch::start(node, &[])?;

    fs::write(work.join("twin"), "")?;
    node.until("the pod writes a file of its own", || work.join("twin-done").exists())?;
    let rest = watch.rest_of("static-pod")?;
    let silent = || {
        anyhow::ensure!(rest.is_empty(), "alerts: {}", titles(&rest));
        Ok(())
    };
    checks.check("twin: the same file written beside the manifests is no alert", silent());

    fs::write(work.join("go"), "")?;
    let planted = manifests.join("planted.yaml");
    let planted = planted.to_str().context("not UTF-8")?;
    let alert = watch.find("static-pod, planted.yaml added", |alert| {
        is(alert, "static-pod") && alert["file"]["path"] == planted && alert["file"]["change"] == "added"
    });
    let named = |alert: &serde_json::Value| {
        equal("origin", &alert["origin"], "container")?;
        anyhow::ensure!(alert["process"]["argv"][0] == "/bin/cp", "process.argv is {}", alert["process"]["argv"]);
        names(alert, &pod, "app", BUSYBOX)
    };
    checks.check("the alert names the pod and container that planted it", alert.and_then(|alert| named(&alert)));
    let effect = node.running("planted").map(drop);
    checks.check("kubelet runs what was planted", effect);
    Ok(())
}
