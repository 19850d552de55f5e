//! containerd, kubelet and a registry, in the node's network namespace.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{
    cri::Cri,
    host::{self, NAME, PLACE},
    images::{self, Image, Images},
    tools::Tools,
};
use crate::setup;

/// How long a daemon may take to answer. They take one second.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the registry listens, in the node's network namespace only.
pub const REGISTRY: &str = "127.0.0.1:5000";

/// The addresses of Kubernetes' services.
pub const SERVICES: &str = "10.96.0.0/16";

/// A node that is up. What takes it down is [`host::release`].
pub struct Node {
    pub tools: Tools,
    pub images: Images,
    pub runtime: Runtime,
    pub cri: Cri,
    pub detector: PathBuf,
    /// The xtask itself, for acts that are system calls.
    pub own: PathBuf,
    /// Whether it has an API server, which kubelet is registered with.
    pub has_api: bool,
    /// containerd, kubelet, registry, ... Kept so that the dead are noticed.
    pub(super) daemons: Vec<(&'static str, Child)>,
}

/// A path of the node.
pub fn place(path: &str) -> PathBuf {
    Path::new(PLACE).join(path)
}

/// Brings everything up.
///
/// # Errors
/// When a daemon does not start, with the end of what it said.
pub fn up(tools: Tools, detector: PathBuf, runtime: Runtime) -> anyhow::Result<Node> {
    for dir in ["manifests", "logs", "cni", "work"] {
        fs::create_dir(place(dir))?;
    }
    let images = images::make(&place("images"), &tools)?;
    write_configs(&tools)?;
    let mut daemons = Vec::new();
    let containerd = tools.program("containerd");
    daemons.push((
        "containerd",
        daemon(&tools, "containerd", Command::new(containerd).arg("--config").arg(place("containerd.toml")))?,
    ));
    let (cri, version) =
        wait("containerd", &mut daemons, || runtime.block_on(Cri::connect(&place("containerd.sock"))))?;
    setup::say(&format!("{version} is up"));
    for image in [&images.pause, &images.busybox] {
        import(&tools, image)?;
    }
    let registry = tools.program("docker-registry");
    daemons.push((
        "registry",
        daemon(&tools, "registry", Command::new(registry).arg("serve").arg(place("registry.yaml")))?,
    ));
    daemons.push(("kubelet", daemon(&tools, "kubelet", &kubelet(&tools))?));
    kubelet_is_healthy(&mut daemons)?;
    wait("registry", &mut daemons, || text(curl(&[&format!("http://{REGISTRY}/v2/")])))?;
    setup::say("kubelet 1.20.2 is healthy");
    Ok(Node { tools, images, runtime, cri, detector, own: std::env::current_exe()?, has_api: false, daemons })
}

/// A kubelet that reads manifests, and asks nobody else.
pub(super) fn kubelet(tools: &Tools) -> Command {
    let mut kubelet = Command::new(tools.kubelet());
    kubelet.arg(format!("--config={}", place("kubelet.yaml").display()));
    kubelet.arg("--container-runtime=remote");
    kubelet.arg(format!("--container-runtime-endpoint=unix://{}", place("containerd.sock").display()));
    kubelet.arg(format!("--root-dir={}", place("kubelet").display()));
    // By default below /var/lib/kubelet, whatever its root is.
    kubelet.arg(format!("--seccomp-profile-root={}", place("kubelet/seccomp").display()));
    kubelet.arg(format!("--cert-dir={}", place("pki").display()));
    kubelet.arg(format!("--hostname-override={NAME}"));
    kubelet
}

/// # Errors
/// When it does not get so.
pub(super) fn kubelet_is_healthy(daemons: &mut [(&'static str, Child)]) -> anyhow::Result<()> {
    wait("kubelet", daemons, || text(curl(&["http://127.0.0.1:10248/healthz"]))).map(drop)
}

impl Node {
    /// `ctr` in the namespace that Kubernetes' containers are in.
    pub fn ctr(&self, args: &[&str]) -> Command {
        ctr(&self.tools, args)
    }

    /// # Errors
    /// When containerd does not take it.
    pub fn import(&self, image: &Image) -> anyhow::Result<()> {
        import(&self.tools, image)
    }

    /// Waits until something is so on the node.
    ///
    /// # Errors
    /// When it is not after a minute, or a daemon dies.
    pub fn until(&mut self, what: &str, mut so: impl FnMut() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !so() {
            anyhow::ensure!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            self.alive()?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Says which daemon has died, if one has.
    ///
    /// # Errors
    /// Then.
    pub fn alive(&mut self) -> anyhow::Result<()> {
        alive(&mut self.daemons)
    }
}

/// Runs a command to its end; its standard output.
///
/// # Errors
/// When it fails, with what it said.
pub fn text(mut command: Command) -> anyhow::Result<String> {
    setup::output(command.stdin(Stdio::null()))
}

/// A program in the node's network namespace, ended when it takes more than a minute.
pub fn inside(program: impl AsRef<std::ffi::OsStr>) -> Command {
    inside_of(&host::network(), program)
}

/// A program in this network namespace, ended when it takes more than a minute.
pub fn inside_of(network: &Path, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["60", "nsenter"]).arg(format!("--net={}", network.display())).arg("--").arg(program);
    command
}

/// curl, in the node's network namespace. Proxies are for the world outside.
pub fn curl(args: &[&str]) -> Command {
    curl_of(&host::network(), args)
}

/// curl, in this network namespace.
pub fn curl_of(network: &Path, args: &[&str]) -> Command {
    let mut curl = inside_of(network, "curl");
    curl.args(["--silent", "--show-error", "--fail", "--insecure", "--noproxy", "*", "--max-time", "30"]).args(args);
    curl
}

fn ctr(tools: &Tools, args: &[&str]) -> Command {
    let mut ctr = inside(tools.program("ctr"));
    ctr.arg("--address").arg(place("containerd.sock")).args(["--namespace", "k8s.io"]).args(args);
    ctr
}

fn import(tools: &Tools, image: &Image) -> anyhow::Result<()> {
    let mut ctr = ctr(tools, &["images", "import"]);
    ctr.arg(&image.archive);
    text(ctr).map(drop)
}

/// Starts a daemon, with what it says in a file. In a process group of its own, so that Ctrl-C in the terminal is not
/// meant for it.
pub(super) fn daemon(tools: &Tools, name: &str, command: &Command) -> anyhow::Result<Child> {
    let log = fs::File::create(log_of(name))?;
    let mut started = confined(tools, command)?;
    started.current_dir(PLACE).process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    started.spawn().with_context(|| format!("starting {name}"))
}

/// The command in the daemons' cgroup and the node's network namespace: there it is found when the node goes down. Its
/// process is the one that is started: everything in between executes the next.
///
/// # Errors
/// When there is no cgroup version 2 hierarchy.
pub fn confined(tools: &Tools, command: &Command) -> anyhow::Result<Command> {
    let script = r#"cgroup=$1 net=$2; shift 2; echo $$ > "$cgroup" && exec nsenter --net="$net" -- "$@""#;
    let mut confined = Command::new("sh");
    confined.args(["-c", script, "sh"]).arg(host::daemons_cgroup()?.join("cgroup.procs"));
    confined.arg(host::network()).arg(command.get_program()).args(command.get_args());
    confined.env("PATH", tools.path()).env_remove("NOTIFY_SOCKET");
    Ok(confined)
}

fn log_of(name: &str) -> PathBuf {
    place("logs").join(format!("{name}.log"))
}

fn alive(daemons: &mut [(&'static str, Child)]) -> anyhow::Result<()> {
    for (name, child) in daemons {
        if let Some(status) = child.try_wait()? {
            let said = fs::read_to_string(log_of(name)).unwrap_or_default();
            let lines: Vec<_> = said.lines().collect();
            bail!("{name} ended ({status}):\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
        }
    }
    Ok(())
}

/// Ends a daemon as whoever stops a service does, and waits for its end.
///
/// # Errors
/// When it does not end.
pub(super) fn stop(daemons: &mut Vec<(&'static str, Child)>, name: &str) -> anyhow::Result<()> {
    let at = daemons.iter().position(|(known, _)| *known == name).with_context(|| format!("no daemon {name}"))?;
    let (_, mut child) = daemons.remove(at);
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM).with_context(|| format!("ending {name}"))?;
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        anyhow::ensure!(Instant::now() < deadline, "{name} does not end; see {}", log_of(name).display());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Tries until it works, or a daemon has ended, or patience is over.
pub(super) fn wait<T>(
    name: &str,
    daemons: &mut [(&'static str, Child)],
    mut ready: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ready() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("{name} does not answer; see {}", log_of(name).display())));
            }
            Err(_) => alive(daemons)?,
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn write_configs(tools: &Tools) -> anyhow::Result<()> {
    fs::write(place("containerd.toml"), containerd_config(tools, images::PAUSE))?;
    let network = json!({
        "cniVersion": "0.4.0", "name": NAME,
        "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local", "subnet": "10.88.0.0/16", "dataDir": place("cni-data"),
                // Where an API server is, if there is one.
                "routes": [{"dst": SERVICES}],
            },
        }],
    });
    fs::write(place("cni/10-node.conflist"), serde_json::to_string_pretty(&network)?)?;
    fs::write(place("kubelet.yaml"), serde_json::to_string_pretty(&kubelet_config("127.0.0.1"))?)?;
    let registry = json!({
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": place("registry")}},
        "http": {"addr": REGISTRY},
    });
    fs::write(place("registry.yaml"), serde_json::to_string_pretty(&registry)?)?;
    Ok(())
}

/// containerd's configuration with this pause image.
pub fn containerd_config(tools: &Tools, pause: &str) -> String {
    let cni = tools.root.join("usr/lib/cni");
    let runc = tools.root.join("usr/sbin/runc");
    let quoted = |path: PathBuf| Value::from(path.to_string_lossy()).to_string();
    format!(
        r#"version = 2
root = {root}
state = {state}
oom_score = 0

[grpc]
  address = {socket}

[plugins."io.containerd.internal.v1.opt"]
  path = {opt}

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Without it sandboxes fail in machines that do not let their root lower an oom score.
  restrict_oom_score_adj = true
  # Profiles would be the host's.
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {cni}
    conf_dir = {network}
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = {runc}
      Root = {runc_root}
"#,
        root = quoted(place("root")),
        state = quoted(place("state")),
        socket = quoted(place("containerd.sock")),
        opt = quoted(place("opt")),
        cni = quoted(cni),
        network = quoted(place("cni")),
        runc = quoted(runc),
        runc_root = quoted(place("runc")),
    )
}

/// Kubelet's configuration; it listens at this address.
pub(super) fn kubelet_config(address: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "staticPodPath": place("manifests"),
        "fileCheckFrequency": "2s",
        "address": address,
        "readOnlyPort": 10255,
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{NAME}"),
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        // A developer's disk is fuller than a node's, and that is not what is tested.
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        // So small that logs are rotated while one looks.
        "containerLogMaxSize": "1Mi",
        "volumePluginDir": place("plugins"),
        "volumeStatsAggPeriod": "1h",
    })
}
