//! What `kubeadm upgrade` does to static pods, as a program of its own: the new manifests are written beside, then one after the
//! other takes the old one's place, which is kept, and each is waited for.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::{Value, json};

/// In kubeadm's order.
pub const COMPONENTS: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];
/// The annotation that says which version a pod is of.
const VERSION: &str = "detector.example/version";
/// As kubeadm waits; it takes a second or two.
const PATIENCE: Duration = Duration::from_secs(300);

/// Brings the components below `manifests` to a version; `work` is for what is on its way and what was there before.
///
/// # Errors
/// When a file cannot be moved, or kubelet does not run what was written.
pub fn upgrade(manifests: &Path, work: &Path, version: &str) -> anyhow::Result<()> {
    let (new, old) = (work.join(format!("upgraded-manifests-{version}")), work.join(format!("backup-{version}")));
    fs::create_dir_all(&new)?;
    fs::create_dir_all(&old)?;
    for component in COMPONENTS {
        let file = new.join(format!("{component}.yaml"));
        fs::write(&file, serde_json::to_vec_pretty(&manifest(component, version))?)?;
    }
    for component in COMPONENTS {
        let name = format!("{component}.yaml");
        let current = manifests.join(&name);
        if current.exists() {
            fs::rename(&current, old.join(&name)).with_context(|| current.display().to_string())?;
        }
        fs::rename(new.join(&name), &current).with_context(|| current.display().to_string())?;
        let deadline = Instant::now() + PATIENCE;
        while !runs(component, version).unwrap_or(false) {
            anyhow::ensure!(Instant::now() < deadline, "kubelet does not run {component} {version}");
            thread::sleep(Duration::from_millis(200));
        }
    }
    Ok(())
}

/// A static pod that mounts what such ones mount, and does nothing with it. In a network of its own: that of this node is not the one
/// that the host began with, so that whatever happens on the node would be in the pod's.
fn manifest(component: &str, version: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": component, "namespace": "kube-system",
            "annotations": {VERSION: version}, "labels": {"tier": "control-plane", "component": component},
        },
        "spec": {
            "priorityClassName": "system-node-critical", "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": component, "image": super::images::BUSYBOX, "imagePullPolicy": "Never",
                "command": ["sh", "-c", "while :; do sleep 3600; done"],
                "volumeMounts": [{"name": "certs", "mountPath": "/etc/ssl/certs", "readOnly": true}],
                "livenessProbe": {"exec": {"command": ["/bin/true"]}, "periodSeconds": 5, "timeoutSeconds": 10},
            }],
            "volumes": [{"name": "certs", "hostPath": {"path": "/etc/ssl/certs", "type": "DirectoryOrCreate"}}],
        },
    })
}

/// Whether kubelet says that this version runs.
fn runs(component: &str, version: &str) -> anyhow::Result<bool> {
    let mut kubelet = TcpStream::connect("127.0.0.1:10255")?;
    kubelet.set_read_timeout(Some(Duration::from_secs(10)))?;
    kubelet.write_all(b"GET /pods HTTP/1.0\r\n\r\n")?;
    let mut said = String::new();
    kubelet.read_to_string(&mut said)?;
    let (_, body) = said.split_once("\r\n\r\n").context("no HTTP")?;
    let pods: Value = serde_json::from_str(body)?;
    let ours = |pod: &&Value| {
        pod["metadata"]["labels"]["component"] == component
            && pod["metadata"]["annotations"][VERSION] == version
            && pod["status"]["phase"] == "Running"
    };
    Ok(pods["items"].as_array().into_iter().flatten().any(|pod| ours(&pod)))
}
