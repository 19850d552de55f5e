//! Images that arrive on the node.

use serde_json::Value;

use super::{
    super::{
        Options,
        daemons::{Node, REGISTRY, place, text},
        images,
        watch::{LOW, Watch, severity, titles},
    },
    Checks,
};

/// By import and by a real pull, under a pause's name and under others.
pub fn arrival(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let dir = place("images");
    let pulled = format!("{REGISTRY}/pulled:1");
    let image = images::small(&dir, &pulled, "pulled")?;
    node.import(&image)?;
    text(node.ctr(&["images", "push", "--plain-http", &pulled]))?;
    // With its content, so that it really arrives again.
    let mut cri = node.cri.clone();
    node.runtime.block_on(cri.remove_image(&pulled))?;
    let blob = place("root/io.containerd.content.v1.content/blobs").join(image.digest.replace(':', "/"));
    node.until("containerd removes the content of a removed image", || !blob.exists())?;

    let mut watch = Watch::start(node, &[])?;
    let imported = images::small(&dir, "docker.io/library/imported:1", "imported")?;
    let done = node.import(&imported).and_then(|()| one(&mut watch, "supply-chain-compromise"));
    checks.check("ctr images import: one low alert, with who brought it", done);
    let pause = images::small(&dir, "docker.io/mirror/pause:3.9", "mirrored")?;
    let done = node.import(&pause).and_then(|()| one(&mut watch, "malicious-pause-container"));
    checks.check("an image that is called pause: one low alert of that technique", done);
    let done = node.runtime.block_on(cri.pull(&pulled)).and_then(|_| one(&mut watch, "supply-chain-compromise"));
    checks.check("a pull from a registry: one low alert, with who brought it", done);
    // Nothing new arrives.
    let again = node.import(&imported).and_then(|()| {
        let rest = of_images(watch.rest()?);
        anyhow::ensure!(rest.is_empty(), "alerts: {}", titles(&rest));
        Ok(())
    });
    checks.check("twin: the same image again is no alert", again);
    for name in ["docker.io/library/imported:1", "docker.io/mirror/pause:3.9", &pulled] {
        text(node.ctr(&["images", "rm", name]))?;
    }
    Ok(())
}

fn of_images(alerts: Vec<Value>) -> Vec<Value> {
    let ours = ["supply-chain-compromise", "malicious-pause-container"];
    alerts.into_iter().filter(|alert| ours.iter().any(|id| alert["technique"]["id"] == *id)).collect()
}

fn one(watch: &mut Watch, technique: &str) -> anyhow::Result<()> {
    let alerts = of_images(watch.rest()?);
    let [alert] = alerts.as_slice() else {
        anyhow::bail!("expected one alert, got {}: {}", alerts.len(), titles(&alerts));
    };
    anyhow::ensure!(
        alert["technique"]["id"] == technique && severity(alert) == LOW,
        "expected low {technique}, got {}",
        titles(&alerts)
    );
    let exe = alert["process"]["exe"].as_str().unwrap_or_default();
    anyhow::ensure!(
        exe.ends_with("/containerd") || exe.ends_with("/ctr"),
        "process.exe is {}, expected containerd or ctr",
        alert["process"]["exe"]
    );
    Ok(())
}
