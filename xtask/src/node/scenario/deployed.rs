//! The agent as `deploy/` runs it: its image in the node's runtime, its pod with nothing but what the DaemonSet gives it.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{
    super::{
        Options,
        daemons::{Node, curl, place, text},
        host::NAME,
        images::BUSYBOX,
        pods::{self, NAMESPACE, Pod},
        watch::{Watch, equal, is, names},
    },
    Checks,
};
use crate::{image, manifests, vm::Arch};

/// Where Kubernetes' namespaces' pods would be, had the node an API server.
const OF_AGENT: &str = "detector";
/// CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE: what the agent keeps.
const KEPT: u64 = 1 << 2 | 1 << 19;
/// CAP_SETGID, CAP_SETUID, CAP_PERFMON, CAP_BPF: what it starts with beside them.
const STARTED_WITH: u64 = KEPT | 1 << 6 | 1 << 7 | 1 << 38 | 1 << 39;

/// kubelet starts the DaemonSet's pod; from in there the agent sees the node.
pub fn deployed(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let image = image::make(Arch::Amd64, image::NAME, &place("work/detector.tar"))?;
    node.import(&image)?;
    // There before the agent: it must find them, too.
    let before = node.run_pod(&pods::manifest("before", pods::IDLE))?;
    let agent = node.run_pod(&manifest("detector", manifests::base()?)?)?;
    let mut watch = Watch::of_log(&log_of(&agent)?)?;
    let id = agent.containers.get("detector").context("the pod has no container detector")?;
    checks.check(
        "it had the DaemonSet's capabilities, keeps two, and has no new privileges and its seccomp filter",
        confined(id),
    );

    let probed = pods::ready("detector");
    checks.check("kubelet's probe finds it ready", probed.map(drop));

    node.plant(&pods::manifest("planted", pods::IDLE))?;
    let planted = place("manifests/planted.yaml");
    let alert = watch.find("static-pod, planted.yaml added", |alert| {
        is(alert, "static-pod")
            && alert["file"]["change"] == "added"
            && alert["file"]["path"].as_str().is_some_and(|path| path.ends_with("/planted.yaml"))
    });
    let by_host = |alert: Value| {
        equal("origin", &alert["origin"], "host")?;
        equal("node", &alert["node"], NAME)?;
        equal("file.path", &alert["file"]["path"], planted.to_str().context("not UTF-8")?)?;
        ensure!(alert["process"]["pid"] == std::process::id(), "process is {}", alert["process"]);
        Ok(())
    };
    checks.check("a manifest planted on the node: an alert that names who planted it", alert.and_then(by_host));

    let planted = node.running("planted")?;
    for (pod, what) in [(&before, "started before the agent"), (&planted, "started after it")] {
        kubelet_runs(&pod.name, "app", "id")?;
        let alert = watch.find("container-exec of id", |alert| {
            is(alert, "container-exec") && alert["pod"]["name"] == pod.name.as_str()
        });
        let named = |alert: Value| {
            ensure!(alert["process"]["argv"] == json!(["id"]), "process.argv is {}", alert["process"]["argv"]);
            names(&alert, pod, "app", BUSYBOX)
        };
        checks.check(&format!("an exec into a pod {what}: an alert with the pod"), alert.and_then(named));
    }

    eprintln!("    memory of its cgroup: {}", memory(id)?);
    let url = format!("https://127.0.0.1:10250/run/{OF_AGENT}/{}/detector?cmd=/detector%20doctor", agent.name);
    let doctor = text(curl(&["--request", "POST", &url]));
    let fine = |said: String| {
        for needed in ["ok         static-pod: changes are detected", "ok         bundles ", "/root/sys/fs/cgroup"] {
            ensure!(said.contains(needed), "it does not say {needed:?}:\n{said}");
        }
        Ok(())
    };
    checks.check("its doctor says from in there that the node is seen", doctor.and_then(fine));
    eprintln!("    with the doctor in it: {}", memory(id)?);
    let own = watch.find("container-exec into the agent", |alert| {
        is(alert, "container-exec") && alert["pod"]["name"] == agent.name.as_str()
    });
    checks.check("an exec into the agent's own pod is an alert too", own.map(drop));

    checks.check("its metrics have them, and its probes find it well", metrics());

    let stayed = || {
        let log = fs::read_to_string(log_of(&agent)?)?;
        let ready = log.lines().filter(|line| line.contains(" stderr F ready: ")).count();
        ensure!(ready == 1, "it said ready {ready} times");
        ensure!(!log.contains("cannot be read"), "it says of a directory that it cannot be read");
        let confined = log.lines().find(|line| line.contains(" stderr F confined: ")).context("it is not confined")?;
        ensure!(confined.contains("their own files alone"), "{confined}");
        Ok(())
    };
    checks.check("it was never restarted, and reads all that it watches", stayed());
    node.remove_pods()?;
    checks.check("the seccomp profile of deploy/ lets it do the same", with_profile(node));
    Ok(())
}

/// What Prometheus and probes see at the pod's own address.
fn metrics() -> anyhow::Result<()> {
    let status = pods::ready("detector")?;
    ensure!(status["containerStatuses"][0]["restartCount"] == 0, "it was started again: {status}");
    let address = status["podIP"].as_str().context("the pod has no address")?;
    let get = |path: &str| text(curl(&[&format!("http://{address}:9469{path}")]));
    for path in ["/livez", "/healthz"] {
        let answer: Value = serde_json::from_str(&get(path)?)?;
        equal(path, &answer["status"], "ok")?;
    }
    for technique in ["static-pod", "container-exec"] {
        let begin = format!("detector_alerts_total{{technique=\"{technique}\",");
        let told = |metrics: &str| -> u64 {
            let lines = metrics.lines().filter(|line| line.starts_with(&begin));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
        };
        // A snapshot is taken once a second.
        let mut metrics = get("/metrics")?;
        for _ in 0..20 {
            if told(&metrics) > 0 {
                break;
            }
            thread::sleep(Duration::from_millis(250));
            metrics = get("/metrics")?;
        }
        ensure!(told(&metrics) > 0, "no alert of {technique} is counted:\n{metrics}");
    }
    Ok(())
}

/// The same pod under the profile, as the component `seccomp` of `deploy/kustomize` has it.
fn with_profile(node: &mut Node) -> anyhow::Result<()> {
    let profiles = place("kubelet/seccomp");
    fs::create_dir_all(&profiles)?;
    fs::copy(crate::root().join("deploy/seccomp/detector.json"), profiles.join("detector.json"))?;
    let mut spec = manifests::base()?;
    spec["containers"][0]["securityContext"]["seccompProfile"] =
        json!({"type": "Localhost", "localhostProfile": "detector.json"});
    let agent = node.run_pod(&manifest("detector-profile", spec)?)?;
    let mut watch = Watch::of_log(&log_of(&agent)?)?;
    confined(agent.containers.get("detector").context("the pod has no container detector")?)?;
    let pod = node.run_pod(&pods::manifest("again", pods::IDLE))?;
    watch.find("static-pod, again.yaml added", |alert| {
        is(alert, "static-pod") && alert["file"]["path"].as_str().is_some_and(|path| path.ends_with("/again.yaml"))
    })?;
    kubelet_runs(&pod.name, "app", "id")?;
    let alert = watch.find("container-exec of id", |alert| {
        is(alert, "container-exec") && alert["process"]["argv"] == json!(["id"])
    })?;
    names(&alert, &pod, "app", BUSYBOX)
}

/// The DaemonSet's pod as a manifest for a kubelet that has no API server: accounts and priorities are the API server's, and so is
/// the ConfigMap, of which a directory with its files takes the place.
fn manifest(name: &str, mut spec: Value) -> anyhow::Result<Value> {
    let config = place("work/config");
    fs::create_dir_all(&config)?;
    fs::write(config.join("config.yaml"), manifests::config()?)?;
    spec["volumes"] = json!([{"name": "config", "hostPath": {"path": config, "type": "Directory"}}]);
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("serviceAccountName");
        spec.remove("priorityClassName");
    }
    Ok(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": OF_AGENT}, "spec": spec}))
}

fn log_of(agent: &Pod) -> anyhow::Result<std::path::PathBuf> {
    let dir = format!("/var/log/pods/{}_{}_{}/detector", agent.namespace, agent.name, agent.uid);
    let log = std::path::Path::new(&dir).join("0.log");
    ensure!(log.exists(), "there is no {}", log.display());
    Ok(log)
}

/// What the kernel says of the agent's process.
fn confined(container: &str) -> anyhow::Result<()> {
    let bundle = place("state/io.containerd.runtime.v2.task/k8s.io").join(container);
    let pid = fs::read_to_string(bundle.join("init.pid"))?;
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim()))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
    for (set, expected) in [("CapPrm:", KEPT), ("CapEff:", KEPT), ("CapBnd:", STARTED_WITH)] {
        let found = u64::from_str_radix(field(set), 16).with_context(|| format!("{set} {}", field(set)))?;
        ensure!(found == expected, "{set} {found:x}, not {expected:x}");
    }
    ensure!(field("Uid:").ends_with("65534"), "it writes as root: Uid: {}", field("Uid:"));
    ensure!(field("NoNewPrivs:") == "1", "NoNewPrivs: {}", field("NoNewPrivs:"));
    ensure!(field("Seccomp:") == "2", "Seccomp: {}", field("Seccomp:"));
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", pid.trim()))?;
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).context("no root")?;
    ensure!(root.split(' ').nth(5).is_some_and(|flags| flags.split(',').any(|one| one == "ro")), "its root: {root}");
    Ok(())
}

/// What its cgroup has taken at most, as the kernel says it by either version of the hierarchy.
fn memory(container: &str) -> anyhow::Result<String> {
    let bundle = place("state/io.containerd.runtime.v2.task/k8s.io").join(container);
    let config: Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
    let path = config["linux"]["cgroupsPath"].as_str().context("a container without cgroup")?;
    let limit = &config["linux"]["resources"]["memory"]["limit"];
    for file in
        [format!("/sys/fs/cgroup/memory{path}/memory.max_usage_in_bytes"), format!("/sys/fs/cgroup{path}/memory.peak")]
    {
        if let Ok(text) = fs::read_to_string(&file) {
            let peak = text.trim().parse::<f64>().with_context(|| file.clone())?;
            return Ok(format!("{:.0} MiB at most, of {} bytes", peak / f64::from(1 << 20), limit));
        }
    }
    Ok("not told".to_owned())
}

/// A command without terminal, by kubelet.
fn kubelet_runs(pod: &str, container: &str, command: &str) -> anyhow::Result<()> {
    let url = format!("https://127.0.0.1:10250/run/{NAMESPACE}/{pod}/{container}?cmd={command}");
    text(curl(&["--request", "POST", "--output", "/dev/null", &url])).map(drop)
}
