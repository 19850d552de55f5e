//! What it costs to know the node's containers: time to look a new one up, and memory with many of them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use serde::Serialize;

use super::agent::Agent;

/// Containers on the node: about five times what kubelet allows pods by default.
const COUNT: usize = 500;
/// Bytes of a bundle's configuration: as large as containerd's.
const CONFIG_BYTES: usize = 12 << 10;

#[derive(Serialize)]
pub struct Containers {
    pub count: usize,
    /// Found by the agent, with the pod.
    pub known: u64,
    /// Looking a new one up.
    pub mean_us: f64,
    pub max_us: f64,
    /// Resident memory with all of them, ring buffers aside.
    pub rss_kib: u64,
}

/// Makes containers of cgroups, bundles and one process each beside an agent.
///
/// # Errors
/// When there is no cgroup v2 hierarchy, or a part of it cannot be made.
pub fn measure(detector: &Path, dir: &Path, manifests: &Path) -> anyhow::Result<Containers> {
    let root = cgroup2_root()?.join(format!("detector-bench-{}", std::process::id()));
    let bundles = dir.join("bundles");
    let mut processes = Vec::new();
    let done = beside(detector, &root, &bundles, manifests, &mut processes);
    for process in &mut processes {
        let _ = process.kill();
        let _ = process.wait();
    }
    for entry in fs::read_dir(&root).into_iter().flatten().filter_map(Result::ok) {
        // What is no directory is the cgroup's own interface.
        let _ = fs::remove_dir(entry.path());
    }
    fs::remove_dir(&root).with_context(|| format!("removing {}", root.display()))?;
    done
}

fn beside(
    detector: &Path,
    root: &Path,
    bundles: &Path,
    manifests: &Path,
    processes: &mut Vec<Child>,
) -> anyhow::Result<Containers> {
    fs::create_dir(root)?;
    let agent = Agent::start(detector, manifests)?;
    let name = root.file_name().context("no name")?.to_string_lossy().into_owned();
    for number in 0..COUNT {
        let id = format!("{number:064x}");
        let bundle = bundles.join(&id);
        fs::create_dir_all(&bundle)?;
        fs::write(bundle.join("config.json"), config(&id, &format!("/{name}/{id}")))?;
        if number == 0 {
            // As an OCI runtime does: the agent learns from its command line where bundles are.
            Command::new("true").arg("--bundle").arg(&bundle).status()?;
        }
        fs::create_dir(root.join(&id))?;
        let process = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn()?;
        fs::write(root.join(&id).join("cgroup.procs"), process.id().to_string())?;
        processes.push(process);
    }
    thread::sleep(Duration::from_secs(2));
    let rss_kib = agent.rss_kib()?.0;
    let stats = agent.stop()?;
    let identity = &stats["identity"];
    Ok(Containers {
        count: COUNT,
        known: identity["containers"].as_u64().unwrap_or(0),
        mean_us: identity["mean_us"].as_f64().context("no statistics")?,
        max_us: identity["max_us"].as_f64().context("no statistics")?,
        rss_kib,
    })
}

/// A configuration as containerd writes it, filled up to its usual size.
fn config(id: &str, cgroup: &str) -> String {
    let mut env: Vec<String> = Vec::new();
    while env.iter().map(|entry| entry.len() + 3).sum::<usize>() < CONFIG_BYTES {
        env.push(format!("SERVICE_{}_PORT_443_TCP=tcp://10.96.0.1:443", env.len()));
    }
    serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {"args": ["/bin/app"], "env": env, "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"]}},
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": "app",
            "io.kubernetes.cri.image-name": "registry.example/team/app:1.2.3",
            "io.kubernetes.cri.sandbox-id": id,
            "io.kubernetes.cri.sandbox-name": format!("app-{}", &id[60..]),
            "io.kubernetes.cri.sandbox-namespace": "shop",
            "io.kubernetes.cri.sandbox-uid": "0d1c9c1e-5f0e-4f57-9d0c-6f4f5d1c3a52",
        },
        "linux": {"cgroupsPath": cgroup, "namespaces": [{"type": "pid"}, {"type": "mount"}]},
    })
    .to_string()
}

/// Where the v2 hierarchy is mounted.
fn cgroup2_root() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.filter(|fields| fields.get(2) == Some(&"cgroup2")).find_map(|fields| fields.get(1).copied());
    found.map(PathBuf::from).context("no cgroup v2 hierarchy is mounted (mount -t cgroup2 none DIR)")
}
