//! A benign day: what happens on a node all day, for real, and what the agent says of it. Nothing may be above low.

use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{
    api::{self, EDGE, outside},
    daemons::{Node, REGISTRY, confined, curl, curl_of, place, text},
    host::NAME,
    images::{self, BUSYBOX},
    pods::{self, NAMESPACE},
    scenario::control_plane,
    watch::{LOW, Watch, severity, titles},
};
use crate::{check, setup::say};

/// Lives `minutes` through, and at least one round of everything; prints the alerts by severity and technique.
///
/// # Errors
/// When an alert is above low, or something that happens all day does not work.
pub fn day(node: &mut Node, minutes: u32) -> anyhow::Result<()> {
    node.bring_up_api()?;
    fs::create_dir(place("bin"))?;
    // Called so that whoever reads the alerts knows what it is, and so that no other program is like it.
    fs::copy(&node.own, place("bin/kubeadm"))
        .with_context(|| format!("copying {}: was it built anew meanwhile?", node.own.display()))?;
    let config = place("work/detector.json");
    fs::write(&config, serde_json::to_vec_pretty(&config_of_operators())?)?;
    let args = ["--config", config.to_str().context("not UTF-8")?];
    let log = api::audit_log();
    let mut watch = Watch::start(node, &[&args[..], &["--audit-log", log.to_str().context("not UTF-8")?]].concat())?;

    let (started, length) = (Instant::now(), Duration::from_secs(u64::from(minutes) * 60));
    workloads(node)?;
    let mut told = Vec::new();
    let mut rounds = 0;
    while rounds == 0 || started.elapsed() < length {
        rounds += 1;
        for (what, act) in ACTS {
            act(node, rounds).with_context(|| format!("round {rounds}: {what}"))?;
            let new = watch.so_far()?;
            for loud in new.iter().filter(|alert| severity(alert) > LOW) {
                eprintln!("    above low, until {what}: {}: {loud}", titles(std::slice::from_ref(loud)));
            }
            told.extend(new);
            node.alive()?;
        }
        say(&format!("round {rounds}, {:.0} s: {} alerts so far", started.elapsed().as_secs_f64(), told.len()));
    }
    told.extend(watch.rest()?);
    let stats = watch.stop()?;
    node.remove_pods()?;
    print(&told, rounds, started.elapsed(), &stats);
    let loud = told.iter().filter(|alert| severity(alert) > LOW).count();
    ensure!(loud == 0, "{loud} of {} alerts are above low", told.len());
    Ok(())
}

/// What whoever runs such a cluster configures: who upgrades it.
fn config_of_operators() -> Value {
    let kubeadm = Value::from(place("bin/kubeadm").to_string_lossy());
    json!({"exceptions": [{
        "name": "kubeadm writes its manifests", "reason": "upgrades of the control plane", "technique": "static-pod",
        "when": format!("alert.process.exe == {kubeadm}"), "path": place("manifests/*").to_string_lossy(),
        "expires": "2100-01-01T00:00:00Z",
    }]})
}

/// What probes of the deployment run.
const PROBE: [&str; 3] = ["/bin/test", "-e", "/bin/sh"];

type Act = fn(&mut Node, u32) -> anyhow::Result<()>;

/// One round. Probes, the operator and the chatty workload go on beside it.
const ACTS: [(&str, Act); 9] = [
    ("the control plane is upgraded", upgrade),
    ("a deployment is rolled", roll),
    ("a configuration is changed and mounted", configure),
    ("a job runs to its end", job),
    ("an image is pulled, removed and collected", image),
    ("people look at the cluster, and load balancers at its health", look),
    ("a namespace comes and goes", namespace),
    ("logs are rotated", logs),
    ("kubelet is restarted", restart),
];

/// A deployment with probes and a configuration, a workload that says much, an operator.
fn workloads(node: &mut Node) -> anyhow::Result<()> {
    node.create(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web", "namespace": NAMESPACE}, "data": {"round": "0"},
    }))?;
    let probe = json!({"exec": {"command": PROBE}, "periodSeconds": 2, "timeoutSeconds": 10});
    let web = json!([{
        "name": "app", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", pods::IDLE],
        "readinessProbe": probe, "livenessProbe": probe,
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/true"]}}},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/web"}],
    }]);
    node.create(&deployment("web", 2, web, json!([{"name": "config", "configMap": {"name": "web"}}])))?;
    // Some 350 kB of log every ten seconds.
    let says = "while :; do seq 1 60000; sleep 10; done";
    let chatty = json!([{"name": "app", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", says]}]);
    node.create(&deployment("chatty", 1, chatty, json!([])))?;
    node.kubectl(&["create", "serviceaccount", "operator", "--namespace", NAMESPACE])?;
    let may = ["--verb=get,list,watch,create", "--resource=pods,configmaps", "--namespace", NAMESPACE];
    node.kubectl(&[&["create", "role", "operator"], &may[..]].concat())?;
    let bind = ["--role=operator", "--namespace", NAMESPACE];
    let who = format!("--serviceaccount={NAMESPACE}:operator");
    node.kubectl(&[&["create", "rolebinding", "operator", &who], &bind[..]].concat())?;
    let mut operator = deployment("operator", 1, json!([]), json!([]));
    let spec = &mut operator["spec"]["template"]["spec"];
    spec["serviceAccountName"] = "operator".into();
    spec["containers"] =
        json!([{"name": "app", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", OPERATES]}]);
    node.create(&operator)?;
    for name in ["web", "chatty", "operator"] {
        rolled_out(node, name)?;
    }
    Ok(())
}

/// Looks at pods with its own token and makes objects, as operators do all day; it has no other program than its image's.
const OPERATES: &str = r#"
of=/var/run/secrets/kubernetes.io/serviceaccount
api=https://$KUBERNETES_SERVICE_HOST/api/v1/namespaces/$(cat $of/namespace)
ask() { wget -q -O - --no-check-certificate --header "Authorization: Bearer $(cat $of/token)" "$@"; }
while :; do
  ask "$api/pods?watch=1&timeoutSeconds=5" > /tmp/pods
  ask --header 'Content-Type: application/json' "$api/configmaps" --post-data \
    '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"seen-","labels":{"by":"operator"}}}' > /dev/null
  sleep 5
done"#;

fn deployment(name: &str, replicas: u32, containers: Value, volumes: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                // There is no scheduler, and nothing to choose.
                "spec": {
                    "nodeName": NAME, "terminationGracePeriodSeconds": 1, "containers": containers, "volumes": volumes,
                },
            },
        },
    })
}

fn rolled_out(node: &Node, name: &str) -> anyhow::Result<()> {
    let of = format!("deployment/{name}");
    node.kubectl(&["--namespace", NAMESPACE, "rollout", "status", &of, "--timeout=55s"]).map(drop)
}

fn upgrade(node: &mut Node, round: u32) -> anyhow::Result<()> {
    let mut kubeadm = Command::new(place("bin/kubeadm"));
    kubeadm.arg("node-upgrade").arg(place("manifests")).arg(place("work/kubeadm")).arg(format!("v1.20.{round}"));
    check(&mut confined(&node.tools, &kubeadm)?)
}

fn roll(node: &mut Node, _: u32) -> anyhow::Result<()> {
    node.kubectl(&["--namespace", NAMESPACE, "rollout", "restart", "deployment/web"])?;
    rolled_out(node, "web")
}

fn configure(node: &mut Node, round: u32) -> anyhow::Result<()> {
    let patch = json!({"data": {"round": round.to_string()}}).to_string();
    node.kubectl(&["--namespace", NAMESPACE, "patch", "configmap", "web", "--patch", &patch]).map(drop)
}

fn job(node: &mut Node, round: u32) -> anyhow::Result<()> {
    let name = format!("job-{round}");
    node.create(&json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"template": {"spec": {
            "nodeName": NAME, "restartPolicy": "Never",
            "containers": [{
                "name": "app", "image": BUSYBOX, "imagePullPolicy": "Never",
                "command": ["sh", "-c", "for one in 1 2 3; do /bin/id; /bin/date; done"],
            }],
        }}},
    }))?;
    let of = format!("job/{name}");
    node.kubectl(&["--namespace", NAMESPACE, "wait", "--for=condition=complete", &of, "--timeout=55s"])?;
    node.kubectl(&["--namespace", NAMESPACE, "delete", &of]).map(drop)
}

fn image(node: &mut Node, round: u32) -> anyhow::Result<()> {
    let name = format!("{REGISTRY}/release:{round}");
    let image = images::small(&place("images"), &name, &format!("release-{round}"))?;
    node.import(&image)?;
    text(node.ctr(&["images", "push", "--plain-http", &name]))?;
    let blob = place("root/io.containerd.content.v1.content/blobs").join(image.digest.replace(':', "/"));
    let mut cri = node.cri.clone();
    node.runtime.block_on(cri.remove_image(&name))?;
    node.until("containerd collects the imported image", || !blob.exists())?;
    node.runtime.block_on(cri.pull(&name))?;
    node.runtime.block_on(cri.remove_image(&name))?;
    node.until("containerd collects the pulled image", || !blob.exists())
}

fn look(node: &mut Node, _: u32) -> anyhow::Result<()> {
    for what in ["nodes", "pods", "events", "deployments", "mutatingwebhookconfigurations"] {
        node.kubectl(&["get", what, "--all-namespaces", "--output=wide"])?;
    }
    node.kubectl(&["describe", "node", NAME])?;
    node.kubectl(&["--namespace", NAMESPACE, "logs", "deployment/chatty", "--tail=5"])?;
    text(curl(&["https://127.0.0.1/livez"]))?;
    text(curl_of(&outside(), &[&format!("https://{EDGE}/healthz")])).map(drop)
}

fn namespace(node: &mut Node, round: u32) -> anyhow::Result<()> {
    let name = format!("review-{round}");
    node.kubectl(&["create", "namespace", &name])?;
    control_plane::events(node, &name, 6)?;
    node.kubectl(&["delete", "namespace", &name])?;
    let of_operator = ["--namespace", NAMESPACE, "delete", "configmaps", "--selector=by=operator"];
    node.kubectl(&of_operator).map(drop)
}

/// Containers' logs by kubelet, which renames, and by logrotate's copytruncate; the audit log by the API server.
fn logs(node: &mut Node, _: u32) -> anyhow::Result<()> {
    let chatty = logs_of("chatty")?;
    let rotated = || {
        let files = fs::read_dir(&chatty).into_iter().flatten().filter_map(Result::ok);
        files.into_iter().any(|file| file.file_name().to_string_lossy().starts_with("0.log."))
    };
    node.until("kubelet rotates a container's log", rotated)?;
    let config = place("work/logrotate.conf");
    let log = logs_of("operator")?.join("0.log");
    fs::write(&config, format!("{} {{\n copytruncate\n rotate 1\n missingok\n}}\n", log.display()))?;
    let mut logrotate = Command::new(node.tools.packaged("usr/sbin/logrotate"));
    logrotate.arg("--force").arg("--state").arg(place("work/logrotate.state")).arg(&config);
    logrotate.env("LD_LIBRARY_PATH", node.tools.packaged("usr/lib/x86_64-linux-gnu"));
    text(logrotate)?;
    control_plane::rotate()
}

/// The directory of the first container's logs of a deployment's pod.
fn logs_of(deployment: &str) -> anyhow::Result<std::path::PathBuf> {
    let begins = format!("{NAMESPACE}_{deployment}-");
    let pod = fs::read_dir("/var/log/pods")?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&begins))
        .with_context(|| format!("{deployment} has no logs"))?;
    Ok(pod.path().join("app"))
}

fn restart(node: &mut Node, _: u32) -> anyhow::Result<()> {
    node.restart_kubelet()
}

/// Alerts by severity and technique; what each of them says, once.
fn print(told: &[Value], rounds: u32, took: Duration, stats: &Value) {
    let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let mut kinds: BTreeMap<(usize, String, String), BTreeMap<String, usize>> = BTreeMap::new();
    for alert in told {
        let kind = (usize::MAX - severity(alert), word(&alert["severity"]), word(&alert["technique"]["id"]));
        *kinds.entry(kind).or_default().entry(word(&alert["title"])).or_default() += 1;
    }
    println!("a benign day: {rounds} rounds in {:.0} s, {} alerts", took.as_secs_f64(), told.len());
    for ((_, severity, technique), titles) in &kinds {
        println!("  {severity:<8} {technique:<32} {}", titles.values().sum::<usize>());
        for (title, count) in titles {
            println!("      {count:>4}  {title}");
        }
    }
    println!("  silenced by exceptions: {}", stats["silenced"]);
    println!("  lost: {}", stats["lost"]);
}
