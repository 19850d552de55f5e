//! Execs into a pod, by every way in.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use serde_json::Value;

use super::{
    super::{
        Options,
        daemons::{Node, curl, inside, place, text},
        host::NAME,
        images::BUSYBOX,
        pods::{self, NAMESPACE, Pod},
        watch::{Watch, names, names_pod, titles},
    },
    Checks, act,
};

/// A pod, and the agent that watches it.
struct Stage {
    pod: Pod,
    watch: Watch,
}

fn stage(node: &mut Node, name: &str) -> anyhow::Result<Stage> {
    // It starts programs itself all the time, which is no exec into it.
    let pod = node.run_pod(&pods::manifest(name, "while :; do /bin/true; sleep 1; done"))?;
    let mut watch = Watch::start(node, &[])?;
    let rest = watch.rest_of("container-exec")?;
    anyhow::ensure!(rest.is_empty(), "a pod that starts programs of its own: {}", titles(&rest));
    Ok(Stage { pod, watch })
}

impl Stage {
    /// After an act: exactly one alert, which names the pod and, where `container` is, its container.
    fn one(&mut self, act: anyhow::Result<()>, container: bool) -> anyhow::Result<Value> {
        act.context("the act itself")?;
        let alerts = self.watch.rest_of("container-exec")?;
        let [alert] = alerts.as_slice() else {
            anyhow::bail!("expected one container-exec alert, got {}: {}", alerts.len(), titles(&alerts));
        };
        if container {
            names(alert, &self.pod, "app", BUSYBOX)?;
        } else {
            names_pod(alert, &self.pod)?;
        }
        Ok(alert.clone())
    }

    /// As [`Stage::one`], and what ran is `argv`.
    fn ran(&mut self, act: anyhow::Result<()>, argv: &[&str]) -> anyhow::Result<Value> {
        let alert = self.one(act, true)?;
        anyhow::ensure!(alert["process"]["argv"] == Value::from(argv), "process.argv is {}", alert["process"]["argv"]);
        Ok(alert)
    }
}

fn must_say(output: &str, expected: &str) -> anyhow::Result<()> {
    anyhow::ensure!(output.contains(expected), "it said {output:?}, expected {expected:?}");
    Ok(())
}

fn runs(command: Command) -> anyhow::Result<()> {
    text(command).map(drop)
}

/// `POST /run` of kubelet: a command without terminal, through the CRI's `ExecSync`.
pub fn kubelet_run(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let mut stage = stage(node, "run")?;
    let act = kubelet_runs("run", "id");
    checks.check("one alert with the pod, and argv", stage.ran(act, &["id"]).map(drop));
    node.run_pod(&pods::manifest("run-twin", pods::IDLE))?;
    let rest = stage.watch.rest_of("container-exec")?;
    let none = || {
        anyhow::ensure!(rest.is_empty(), "alerts: {}", titles(&rest));
        Ok(())
    };
    checks.check("twin: a pod that starts is no exec into it", none());
    Ok(())
}

/// Runs a command in a pod through kubelet's debugging endpoint.
pub(super) fn kubelet_runs(pod: &str, command: &str) -> anyhow::Result<()> {
    let url = format!("https://127.0.0.1:10250/run/{NAMESPACE}/{pod}-{NAME}/app?cmd={command}");
    must_say(&text(curl(&["--request", "POST", &url]))?, "uid=0")
}

/// `/exec` of kubelet, as `kubectl exec` asks for it: upgraded to WebSocket, through the CRI's streaming server.
pub fn kubelet_exec(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let mut stage = stage(node, "exec")?;
    let alert = stage.ran(kubelet_execs("exec", false), &["id"]);
    let no_tty = |alert: Value| {
        anyhow::ensure!(alert["process"]["tty"].is_null(), "process.tty is {}", alert["process"]["tty"]);
        Ok(())
    };
    checks.check("one alert with the pod, argv and no terminal", alert.and_then(no_tty));
    let alert = stage.ran(kubelet_execs("exec", true), &["id"]);
    let tty = |alert: Value| {
        anyhow::ensure!(alert["process"]["tty"].is_string(), "process.tty is {}", alert["process"]["tty"]);
        Ok(())
    };
    checks.check("with a terminal: the alert has it", alert.and_then(tty));
    Ok(())
}

/// Runs `id` in a pod through kubelet's endpoint for sessions.
pub(super) fn kubelet_execs(pod: &str, tty: bool) -> anyhow::Result<()> {
    let streams = if tty { "input=1&output=1&tty=1" } else { "output=1&error=1" };
    let url = format!("https://127.0.0.1:10250/exec/{NAMESPACE}/{pod}-{NAME}/app?command=id&{streams}");
    let headers = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: ZGV0ZWN0b3ItZXhlYy1hY3Q=",
        "Sec-WebSocket-Protocol: v4.channel.k8s.io",
    ];
    let mut curl = curl(&["--http1.1", "--no-buffer", &url]);
    curl.args(headers.iter().flat_map(|header| ["--header", *header])).stdin(Stdio::null());
    // Frames, and then the end of the connection in the middle of what curl takes for a body: only what ran counts.
    let said = curl.output().context("starting curl")?;
    must_say(&format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr)), "uid=0")
}

/// containerd's own client.
pub fn ctr_exec(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let mut stage = stage(node, "ctr")?;
    let fifos = place("fifo");
    let mut ctr = node.ctr(&["tasks", "exec", "--exec-id", "act", "--fifo-dir"]);
    ctr.arg(fifos).arg(stage.pod.app()?).arg("id");
    checks.check("one alert with the pod, and argv", stage.ran(runs(ctr), &["id"]).map(drop));
    Ok(())
}

/// The OCI runtime by hand.
pub fn runc_exec(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let mut stage = stage(node, "runc")?;
    let mut runc = inside(node.tools.program("runc"));
    runc.arg("--root").arg(place("runc/k8s.io")).arg("exec").arg(stage.pod.app()?).arg("id");
    checks.check("one alert with the pod, and argv", stage.ran(runs(runc), &["id"]).map(drop));
    Ok(())
}

/// nsenter with all namespaces, with each alone, and with some.
pub fn nsenter(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let mut stage = stage(node, "nsenter")?;
    let pid = stage.pod.pid()?.to_string();
    // Network, IPC and host name are the whole pod's; mounts and processes are the container's.
    for (flags, container) in [
        ("-a", true),
        ("-m", true),
        ("-p", true),
        ("-n", false),
        ("-i", false),
        ("-u", false),
        ("-m -p", true),
        ("-n -i -u", false),
        ("-m -n -p -u -i", true),
    ] {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["-t", &pid]).args(flags.split(' ')).args(["--", "id"]);
        checks.check(&format!("nsenter {flags}: one alert"), stage.one(runs(nsenter), container).map(drop));
    }
    // Our own namespaces, by the same program.
    let mut twin = Command::new("nsenter");
    twin.args(["-t", &std::process::id().to_string(), "-m", "-n", "-p", "--", "id"]);
    runs(twin)?;
    let rest = stage.watch.rest_of("container-exec")?;
    let none = || {
        anyhow::ensure!(rest.is_empty(), "alerts: {}", titles(&rest));
        Ok(())
    };
    checks.check("twin: nsenter into the host's own namespaces is no alert", none());
    Ok(())
}

/// Ways in that execute nothing on the way, or nothing at all.
pub fn by_hand(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let mut stage = stage(node, "by-hand")?;
    let pid = stage.pod.pid()?;
    for (act, what) in [
        ("setns", "setns into the mount namespace and a read there, no exec: one alert"),
        ("cgroup", "a process that moves itself into the cgroup and does nothing: one alert"),
    ] {
        let mut child = Command::new(&node.own)
            .args(["node-act", act, &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut said)?;
        checks.check(what, stage.one(must_say(&said, "done"), true).map(drop));
        drop(child.stdin.take());
        child.wait()?;
        let rest = stage.watch.rest_of("container-exec")?;
        if !rest.is_empty() {
            checks.check("its end is no further alert", Err(anyhow::anyhow!("{}", titles(&rest))));
        }
    }
    // Moved by another process, and only then does something.
    let mut child = Command::new("sh")
        .args(["-c", "read line; /usr/bin/id > /dev/null; read line"])
        .stdin(Stdio::piped())
        .spawn()?;
    let moved = act::move_into(child.id(), pid)
        .and_then(|()| Ok(child.stdin.as_mut().context("no input")?.write_all(b"go\n")?));
    checks.check(
        "a process moved into the cgroup, which then runs a program: one alert",
        stage.one(moved, true).map(drop),
    );
    drop(child.stdin.take());
    child.wait()?;
    Ok(())
}

/// A container added to a running pod, among another's processes: what `kubectl debug --target` makes kubelet do.
pub fn ephemeral(node: &mut Node, _: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let mut stage = stage(node, "debugged")?;
    let sandbox = stage.pod.sandbox()?;
    let target = stage.pod.app()?.to_owned();
    let mut cri = node.cri.clone();
    let made = node.runtime.block_on(async {
        let command = ["sh", "-c", "/bin/id; sleep 3600"];
        let id = cri.create(&sandbox, "debugger", BUSYBOX, &command, Some(&target)).await?;
        cri.start(&id).await
    });
    checks.check("one alert with the pod", stage.one(made, false).map(drop));
    Ok(())
}
