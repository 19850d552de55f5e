//! Pods of the node: planted as static pods, found again through kubelet and the runtime.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{
    cri::Sandbox,
    daemons::{self, Node, curl, place},
    host::NAME,
    images::BUSYBOX,
};

/// How long a pod may take to run. It takes one or two seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// The namespace of the pods that scenarios make.
pub const NAMESPACE: &str = "shop";

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct Pod {
    pub namespace: String,
    /// As kubelet calls a static pod: with the node's name at its end.
    pub name: String,
    pub uid: String,
    /// Container ids by name.
    pub containers: BTreeMap<String, String>,
}

/// A manifest of a pod with one container `app`, which runs this shell script.
pub fn manifest(name: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "app",
                "image": BUSYBOX,
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", script],
            }],
        },
    })
}

/// Mounts directories of the host in the container: pairs of where and what.
pub fn with_host_paths(mut manifest: Value, mounts: &[(&str, &str)]) -> Value {
    let (mut volumes, mut places) = (Vec::new(), Vec::new());
    for (number, (at, path)) in mounts.iter().enumerate() {
        let name = format!("host-{number}");
        volumes.push(json!({"name": name, "hostPath": {"path": path}}));
        places.push(json!({"name": name, "mountPath": at}));
    }
    manifest["spec"]["volumes"] = volumes.into();
    manifest["spec"]["containers"][0]["volumeMounts"] = places.into();
    manifest
}

/// A script that does nothing until it is killed.
pub const IDLE: &str = "while :; do sleep 3600; done";

impl Pod {
    /// The id of the container `app`.
    ///
    /// # Errors
    /// When it has none.
    pub fn app(&self) -> anyhow::Result<&str> {
        let id = self.containers.get("app").with_context(|| format!("pod {} has no container app", self.name))?;
        Ok(id)
    }

    /// Its sandbox, as the bundle of its container says.
    ///
    /// # Errors
    /// When the bundle is not there.
    pub fn sandbox(&self) -> anyhow::Result<Sandbox> {
        let config = bundle(self.app()?).join("config.json");
        let config: Value = serde_json::from_slice(&fs::read(&config).with_context(|| config.display().to_string())?)?;
        let id =
            config["annotations"]["io.kubernetes.cri.sandbox-id"].as_str().context("a container without sandbox")?;
        let cgroup = config["linux"]["cgroupsPath"].as_str().and_then(|path| Some(path.rsplit_once('/')?.0));
        Ok(Sandbox {
            id: id.to_owned(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            cgroup: cgroup.context("a container without cgroup")?.to_owned(),
        })
    }

    /// The process id of the first process of `app`, on the host.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> anyhow::Result<u32> {
        let path = bundle(self.app()?).join("init.pid");
        Ok(fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().parse()?)
    }
}

fn bundle(container: &str) -> std::path::PathBuf {
    place("state/io.containerd.runtime.v2.task/k8s.io").join(container)
}

impl Node {
    /// Plants a static pod and waits until all its containers run.
    ///
    /// # Errors
    /// When it does not run in time, with what kubelet says about it.
    pub fn run_pod(&mut self, manifest: &Value) -> anyhow::Result<Pod> {
        self.plant(manifest)?;
        let name = manifest["metadata"]["name"].as_str().context("a manifest without name")?;
        self.running(name)
    }

    /// Writes a manifest where kubelet reads it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn plant(&self, manifest: &Value) -> anyhow::Result<()> {
        let name = manifest["metadata"]["name"].as_str().context("a manifest without name")?;
        let hidden = place("manifests").join(format!(".{name}"));
        fs::write(&hidden, serde_json::to_vec(manifest)?)?;
        Ok(fs::rename(&hidden, place("manifests").join(format!("{name}.yaml")))?)
    }

    /// Removes every manifest, and what scenarios made through the API server; waits until kubelet has no pod.
    ///
    /// # Errors
    /// When it still has one after a while.
    pub fn remove_pods(&mut self) -> anyhow::Result<()> {
        for entry in fs::read_dir(place("manifests"))? {
            fs::remove_file(entry?.path())?;
        }
        if self.has_api {
            self.remove_api_pods()?;
        }
        let deadline = Instant::now() + PATIENCE;
        while pods()?.as_array().is_some_and(|pods| !pods.is_empty()) {
            anyhow::ensure!(Instant::now() < deadline, "kubelet does not end all pods");
            self.alive()?;
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Waits until every container of a pod runs.
    ///
    /// # Errors
    /// When they do not in time, with what kubelet says.
    pub fn running(&mut self, name: &str) -> anyhow::Result<Pod> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = find(name)?;
            if let Some(pod) = found.as_ref().and_then(running) {
                return Ok(pod);
            }
            if Instant::now() > deadline {
                let status = found.map_or("kubelet does not know it".to_owned(), |pod| pod["status"].to_string());
                bail!("pod {name} does not run: {status}; see {}", place("logs/kubelet.log").display());
            }
            self.alive()?;
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// What kubelet says of a pod, once its probes have found it ready.
///
/// # Errors
/// When they do not in time, with what kubelet says.
pub fn ready(name: &str) -> anyhow::Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let pod = find(name)?.with_context(|| format!("kubelet does not know {name}"))?;
        let status = &pod["status"];
        let conditions = status["conditions"].as_array().into_iter().flatten();
        if conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True") {
            return Ok(pod["status"].clone());
        }
        anyhow::ensure!(Instant::now() < deadline, "pod {name} is not ready: {status}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// What kubelet says of a pod.
fn find(name: &str) -> anyhow::Result<Option<Value>> {
    let full = format!("{name}-{NAME}");
    Ok(pods()?.as_array().into_iter().flatten().find(|pod| pod["metadata"]["name"] == full.as_str()).cloned())
}

/// Kubelet's list of pods; null when it has none.
fn pods() -> anyhow::Result<Value> {
    let mut list: Value = serde_json::from_str(&daemons::text(curl(&["http://127.0.0.1:10255/pods"]))?)?;
    Ok(list["items"].take())
}

/// A pod of kubelet's list, when all its containers run.
fn running(pod: &Value) -> Option<Pod> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let wanted = pod["spec"]["containers"].as_array()?.len();
    let containers: BTreeMap<_, _> = pod["status"]["containerStatuses"]
        .as_array()?
        .iter()
        .filter(|status| status["state"]["running"].is_object())
        .filter_map(|status| {
            Some((text(&status["name"])?, status["containerID"].as_str()?.strip_prefix("containerd://")?.to_owned()))
        })
        .collect();
    (containers.len() == wanted).then_some(Pod {
        namespace: text(&pod["metadata"]["namespace"])?,
        name: text(&pod["metadata"]["name"])?,
        uid: text(&pod["metadata"]["uid"])?,
        containers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_runs_when_all_its_containers_do() {
        let status = |state: &str| json!({"name": "app", "containerID": "containerd://abc", "state": {state: {}}});
        let pod = |state: &str| {
            json!({
                "metadata": {"name": "web-node", "namespace": "shop", "uid": "1"},
                "spec": {"containers": [{}]},
                "status": {"containerStatuses": [status(state)]},
            })
        };
        assert!(running(&pod("waiting")).is_none());
        assert_eq!(running(&pod("running")).unwrap().app().unwrap(), "abc");
    }
}
