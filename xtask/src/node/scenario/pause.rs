//! Pods under evil pause images, and the configuration that names the pause image.

use std::fs;

use serde_json::Value;

use super::{
    super::{
        Options,
        daemons::{Node, containerd_config, place},
        images::{Image, PAUSE},
        pods,
        watch::{Watch, is, names_pod, titles},
    },
    Checks,
};

const TECHNIQUE: &str = "malicious-pause-container";

/// The agent, told which digests are known to be good.
fn watch(node: &Node, known: &[&Image]) -> anyhow::Result<Watch> {
    let args: Vec<_> = known.iter().flat_map(|image| ["--pause-digest", image.digest.as_str()]).collect();
    Watch::start(node, &args)
}

/// Puts an evil image in place of the pause image, as an attacker on the node does, and starts a pod.
fn under(node: &mut Node, evil: &Image, mut watch: Watch, name: &str, checks: &mut Checks) -> anyhow::Result<()> {
    node.import(evil)?;
    let ran = node.run_pod(&pods::manifest(name, pods::IDLE));
    let honest = node.images.pause.clone();
    let found = ran.and_then(|pod| {
        let of_pod = |alert: &Value| is(alert, TECHNIQUE) && alert["pod"]["name"] == pod.name.as_str();
        let alert = watch.find(&format!("{TECHNIQUE} with pod {}", pod.name), of_pod)?;
        names_pod(&alert, &pod)
    });
    checks.check("an alert with the pod", found);
    drop(watch);
    node.import(&honest)?;
    Ok(())
}

/// It starts another program. Its digest is declared good, so that only what it does gives it away.
pub fn forks(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let evil = node.images.forking.clone();
    let watch = watch(node, &[&node.images.pause, &evil])?;
    under(node, &evil, watch, "pause-fork", checks)
}

/// It connects to somewhere. Its digest is declared good too.
pub fn connects(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let evil = node.images.connecting.clone();
    let watch = watch(node, &[&node.images.pause, &evil])?;
    under(node, &evil, watch, "pause-connect", checks)
}

/// It behaves; only its digest is not one that is known.
pub fn digest(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let evil = node.images.other.clone();
    let watch = watch(node, &[&node.images.pause])?;
    under(node, &evil, watch, "pause-digest", checks)
}

/// Its digest is declared good, but its program is not the one that is.
pub fn binary(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let evil = node.images.other.clone();
    let known = [&node.images.pause.digest, &evil.digest].map(String::as_str);
    let watch = Watch::start(node, &known_binary(&known, &node.images.pause_binary))?;
    under(node, &evil, watch, "pause-binary", checks)
}

fn known_binary<'a>(digests: &[&'a str], binary: &'a str) -> Vec<&'a str> {
    let mut args: Vec<_> = digests.iter().flat_map(|digest| ["--pause-digest", digest]).collect();
    args.extend(["--pause-binary", binary]);
    args
}

/// The one that is known, by its digest and by its program.
pub fn honest(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let images = &node.images;
    let mut watch = Watch::start(node, &known_binary(&[&images.pause.digest], &images.pause_binary))?;
    node.run_pod(&pods::manifest("pause-honest", pods::IDLE))?;
    let rest = watch.rest_of(TECHNIQUE)?;
    checks.check("twin: a pod under a known pause is no alert", none(&rest));
    Ok(())
}

/// containerd's configuration names another image.
pub fn config(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let mut watch = watch(node, &[])?;
    let file = place("containerd.toml");
    let honest = containerd_config(&node.tools, PAUSE);
    fs::write(&file, format!("# Looked at today.\n{honest}"))?;
    let rest = watch.rest_of(TECHNIQUE)?;
    checks.check("twin: a comment in the configuration is no alert", none(&rest));
    fs::write(&file, containerd_config(&node.tools, "registry.evil.example/pause:3.9"))?;
    let named = watch
        .find(&format!("{TECHNIQUE} about {}", file.display()), |alert| {
            is(alert, TECHNIQUE) && alert["file"]["path"] == file.to_string_lossy().as_ref()
        })
        .and_then(|alert| {
            let pid = &alert["process"]["pid"];
            anyhow::ensure!(*pid == std::process::id(), "process.pid is {pid}, expected {}", std::process::id());
            Ok(())
        });
    checks.check("another sandbox_image is an alert, with who wrote it", named);
    fs::write(&file, honest)?;
    Ok(())
}

fn none(alerts: &[Value]) -> anyhow::Result<()> {
    anyhow::ensure!(alerts.is_empty(), "alerts: {}", titles(alerts));
    Ok(())
}
