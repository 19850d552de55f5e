//! What becomes of pods' logs.

use std::{fs, path::PathBuf, process::Command, thread, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{
    super::{
        Options,
        daemons::Node,
        pods::{self, Pod},
        watch::{LOW, Watch, is, names_pod, severity},
    },
    Checks, control_plane,
    workload::Prompter,
};

const EVENTS: &str = "delete-kubernetes-events";
/// A script that says something all the time.
const SAYS: &str = "while :; do echo one more line; sleep 0.2; done";

/// The log of a pod's container `app`.
fn log(pod: &Pod) -> PathBuf {
    let dir = format!("{}_{}_{}", pod.namespace, pod.name, pod.uid);
    PathBuf::from("/var/log/pods").join(dir).join("app/0.log")
}

/// The first alert above low about this pod that says all these words.
fn says(watch: &mut Watch, pod: &Pod, words: &[&str]) -> anyhow::Result<Value> {
    let alert = watch.find(&format!("{EVENTS} above low, with {words:?}"), |alert| {
        let text = alert.to_string();
        is(alert, EVENTS) && severity(alert) > LOW && words.iter().all(|word| text.contains(word))
    })?;
    names_pod(&alert, pod)?;
    Ok(alert)
}

/// Logs emptied and removed, by hand and by another pod; and by kubelet, with the pod that they are of.
pub fn wiped(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let short = node.run_pod(&pods::manifest("short", SAYS))?;
    let mut watch = Watch::start(node, &[])?;
    node.remove_pods()?;
    let gone = node.until("kubelet removes the logs of a pod that is gone", || !log(&short).exists());
    checks.check("kubelet removes the logs of a pod that is gone", gone);
    checks.check("twin: that is no alert", control_plane::quiet(&mut watch, EVENTS));

    let victim = node.run_pod(&pods::manifest("victim", SAYS))?;
    let path = log(&victim);
    node.until("the pod says something", || fs::metadata(&path).is_ok_and(|log| log.len() > 100))?;
    // Of a log that nobody acts on the agent learns the length every ten seconds; one whose length it does not know yet is told as opened.
    thread::sleep(Duration::from_secs(12));
    crate::check(Command::new("truncate").arg("--size=0").arg(&path))?;
    let by = |exe: &'static str| {
        move |alert: Value| {
            let found = alert["process"]["exe"].as_str().unwrap_or_default();
            ensure!(found.ends_with(exe), "process.exe is {found:?}");
            Ok(alert)
        }
    };
    let alert = says(&mut watch, &victim, &["emptied"]).and_then(by("/truncate"));
    checks.check("emptied by hand: an alert with the pod, and who did it", alert.map(drop));
    watch.rest()?;

    let prompter = Prompter::new("wiper")?;
    let inside = path.strip_prefix("/var/log/pods").context("another directory")?;
    let wipe = format!("rm /logs/{}", inside.display());
    let manifest = prompter.manifest("wiper", &[("wipe", &wipe)], &[("/logs", "/var/log/pods")])?;
    node.run_pod(&manifest)?;
    prompter.prompt(node, "wipe")?;
    let alert = says(&mut watch, &victim, &["removed"]).and_then(by("/bin/busybox"));
    let high = alert.and_then(|alert| {
        ensure!(alert["severity"] == "high" && alert["origin"] == "container", "{alert:#}");
        Ok(())
    });
    checks.check("removed by another pod: high, with the pod whose log it was", high);
    Ok(())
}
