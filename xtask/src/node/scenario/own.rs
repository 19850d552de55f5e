//! What kubelet runs by itself in pods that come from the API server, of which no file on the node tells, and sessions beside it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{
    super::{
        Options,
        api::{User, kubectl},
        daemons::{Node, curl, place, text},
        pods::{self, NAMESPACE, Pod},
        watch::{LOW, Watch, is, names_pod, severity, titles},
    },
    Checks,
    exec::{kubelet_execs, kubelet_runs},
};

const TECHNIQUE: &str = "container-exec";
/// Longer than the agent looks back.
const LONG_BEFORE: Duration = Duration::from_secs(7);

/// A directory that a pod writes to.
struct Work(PathBuf);

impl Work {
    fn new(name: &str) -> anyhow::Result<Self> {
        let work = place("work").join(name);
        fs::create_dir_all(&work)?;
        Ok(Self(work))
    }

    /// How often something was written to a file of it.
    fn count(&self, name: &str) -> usize {
        fs::read_to_string(self.0.join(name)).map_or(0, |text| text.lines().count())
    }

    /// A pod that has it, with probes and hooks that write to it; `period` is that of its liveness probe, in seconds.
    fn manifest(&self, name: &str, period: u32) -> anyhow::Result<Value> {
        let mounts = [("/work", self.0.to_str().context("not UTF-8")?)];
        let mut manifest = pods::with_host_paths(pods::manifest(name, pods::IDLE), &mounts);
        let probe = |file: &str, period: u32| json!({"exec": {"command": writes(file)}, "periodSeconds": period, "timeoutSeconds": 10});
        manifest["spec"]["terminationGracePeriodSeconds"] = 20.into();
        let app = &mut manifest["spec"]["containers"][0];
        app["startupProbe"] = probe("startup", 1);
        app["readinessProbe"] = probe("readiness", 1);
        app["livenessProbe"] = probe("liveness", period);
        app["lifecycle"] = json!({"postStart": {"exec": {"command": writes("started")}}, "preStop": {"exec": {"command": writes("stopped")}}});
        Ok(manifest)
    }
}

fn writes(file: &str) -> [String; 3] {
    ["/bin/sh", "-c", &format!("echo ran >> /work/{file}")].map(str::to_owned)
}

fn entries(alerts: &[Value], above_low: bool) -> Vec<Value> {
    let wanted = |alert: &&Value| is(alert, TECHNIQUE) && (severity(alert) > LOW) == above_low;
    alerts.iter().filter(wanted).cloned().collect()
}

fn none(alerts: &[Value]) -> anyhow::Result<()> {
    let loud = entries(alerts, true);
    ensure!(loud.is_empty(), "above low: {}", titles(&loud));
    Ok(())
}

/// Probes of every kind and both hooks are low, once each; whatever else is executed in such a pod is not.
pub fn own(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let mut watch = Watch::start(node, &[])?;
    thread::sleep(Duration::from_secs(2));
    let work = Work::new("hooked")?;
    let pod = node.run_api_pod(work.manifest("hooked", 1)?)?;
    node.until("every probe and hook runs", || {
        work.count("startup") > 0
            && work.count("started") > 0
            && work.count("readiness") > 2
            && work.count("liveness") > 2
    })?;
    // Until the API server has forgotten it this kubelet may take a minute more.
    node.kubectl(&["--namespace", NAMESPACE, "delete", "pod", &pod.name, "--wait=false"])?;
    node.until("its container has ended", || pod.pid().is_err())?;
    ensure!(work.count("stopped") > 0, "the hook before the end did not run");
    let alerts = watch.rest()?;
    checks.check("three probes, a hook after the start and one before the end: none above low", none(&alerts));
    let low = entries(&alerts, false);
    let each = || {
        for file in ["startup", "readiness", "liveness", "started", "stopped"] {
            let of = low.iter().filter(|alert| alert["process"]["argv"] == json!(writes(file))).count();
            ensure!(of == 1, "{file}: {of} alerts of {}", titles(&low));
        }
        Ok(())
    };
    checks.check("each of them is low, once", each());
    sessions(node, &mut watch, checks)
}

/// Sessions in a pod with a probe, by every way through the CRI.
fn sessions(node: &mut Node, watch: &mut Watch, checks: &mut Checks) -> anyhow::Result<()> {
    let work = Work::new("entered")?;
    let pod = node.run_api_pod(work.manifest("entered", 10)?)?;
    node.until("its probes have run twice", || work.count("liveness") > 1 && work.count("readiness") > 1)?;
    checks.check("its probes: none above low", none(&watch.rest()?));

    for _ in 0..12 {
        text(curl(&["--output", "/dev/null", "https://127.0.0.1:10250/metrics"]))?;
        thread::sleep(Duration::from_millis(300));
    }
    checks.check("twin: its probes while kubelet is asked for its metrics: none above low", none(&watch.rest()?));

    let mut one = |what: &str, act: anyhow::Result<()>, argv: &[&str]| {
        let told = act.context("the act itself").and_then(|()| {
            let alerts = entries(&watch.rest()?, true);
            let [alert] = alerts.as_slice() else {
                anyhow::bail!("expected one alert above low, got {}", titles(&alerts));
            };
            ensure!(alert["process"]["argv"] == json!(argv), "process.argv is {}", alert["process"]["argv"]);
            names_pod(alert, &pod)
        });
        checks.check(&format!("{what}: one alert above low with the pod, and argv"), told);
    };
    one("kubectl exec", text(exec(node, &pod, &[], &["id"])).map(drop), &["id"]);
    let mut with_input = exec(node, &pod, &["--stdin"], &["cat"]);
    with_input.stdin(fs::File::open("/etc/hostname")?);
    one("kubectl exec with input", crate::setup::output(&mut with_input).map(drop), &["cat"]);
    // In the foreground: a shell that forks for it leaves `timeout` to make a group of its own, which the terminal stops.
    let line = format!("exec {}", crate::shown(&exec(node, &pod, &["--stdin", "--tty"], &["tty"])));
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    one("kubectl exec with a terminal", text(terminal).map(drop), &["tty"]);
    let name = pod.name.strip_suffix(&format!("-{}", super::super::host::NAME)).context("the pod's name")?;
    one("kubelet's /run", kubelet_runs(name, "id"), &["id"]);
    one("kubelet's /exec", kubelet_execs(name, false), &["id"]);
    one("ExecSync by another client of the CRI, connected long before", synchronous(node, &pod, &["id"]), &["id"]);

    // Not when the probe is due.
    let before = work.count("liveness");
    node.until("the probe runs", || work.count("liveness") > before)?;
    thread::sleep(Duration::from_secs(3));
    let same = writes("liveness");
    let same: Vec<_> = same.iter().map(String::as_str).collect();
    one("kubectl exec of the probe's own command", text(exec(node, &pod, &[], &same)).map(drop), &same);
    let before = work.count("liveness");
    node.until("the probe runs again", || work.count("liveness") > before)?;
    checks.check("its probes after all that: none above low", none(&watch.rest()?));
    Ok(())
}

fn exec(node: &Node, pod: &Pod, flags: &[&str], command: &[&str]) -> Command {
    let of = ["--namespace", NAMESPACE, "exec"];
    kubectl(&node.tools, User::Admin, &[&of, flags, &[&pod.name, "--"], command].concat())
}

/// Has containerd execute something as kubelet does for a probe, over a connection that was made long before.
fn synchronous(node: &Node, pod: &Pod, command: &[&str]) -> anyhow::Result<()> {
    let mut child = Command::new(&node.own)
        .arg("node-exec-sync")
        .arg(place("containerd.sock"))
        .arg(pod.app()?)
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(child.stdout.take().context("no output")?).lines();
    let mut next = || said.next().context("it ended")?.context("its output");
    ensure!(next()? == "connected", "it did not connect");
    thread::sleep(LONG_BEFORE);
    child.stdin.take().context("no input")?.write_all(b"go\n")?;
    let output = next()?;
    ensure!(output.contains("uid=0"), "it said {output:?}");
    ensure!(child.wait()?.success(), "it failed");
    Ok(())
}
