//! `cargo xtask node`: a private Kubernetes node, and the detector beside it.
//!
//! containerd, runc and a standalone kubelet run for real, in a network namespace without routes. Each scenario performs
//! an act on the node, with its benign twin beside it, and asserts what the agent says.

mod api;
mod benign;
mod cri;
mod daemons;
mod host;
mod images;
mod pods;
mod scenario;
mod tools;
mod upgrade;
mod watch;
mod webhook;

use std::{
    io::IsTerminal as _,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    root,
    setup::{self, Need, say},
};
use daemons::{Node, place};
use scenario::Scenario;

pub use cri::{exec_sync, run_pod};
pub use scenario::act;
pub use upgrade::upgrade;

#[derive(clap::Args)]
pub struct Options {
    /// Scenarios to run, by name or its beginning [default: all]
    #[arg(value_name = "NAME", value_parser = scenario::parse)]
    names: Vec<scenario::Names>,
    /// Say what scenarios there are
    #[arg(long, exclusive = true)]
    list: bool,
    /// A shell on the node instead of scenarios; `exit` takes the node down
    #[arg(long, conflicts_with = "names")]
    shell: bool,
    /// Take down what an earlier run left, and nothing else
    #[arg(long, exclusive = true)]
    down: bool,
    /// The debug build of the detector instead of the release build
    #[arg(long)]
    debug: bool,
    /// Containers that the scenario `thousand` starts
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    containers: u32,
    /// With --shell: an API server too
    #[arg(long, requires = "shell")]
    api: bool,
    /// A benign day on a node with an API server, for so many minutes, instead of scenarios; fails when an alert is above low
    #[arg(long, value_name = "MINUTES", num_args = 0..=1, default_missing_value = "30",
          value_parser = clap::value_parser!(u32).range(1..=1440), conflicts_with_all = ["names", "shell"])]
    benign: Option<u32>,
}

impl Options {
    /// Every scenario, beside the debug build: what the tests run.
    pub fn all() -> Self {
        let (names, benign) = (Vec::new(), None);
        Self { names, list: false, shell: false, down: false, debug: true, containers: 1000, api: false, benign }
    }

    fn chosen(&self) -> impl Iterator<Item = &'static Scenario> {
        scenario::ALL
            .iter()
            .filter(|scenario| self.names.is_empty() || self.names.iter().any(|names| names.contains(scenario)))
    }

    fn with_api(&self) -> bool {
        if self.shell { self.api } else { self.benign.is_some() || self.chosen().any(|scenario| scenario.api) }
    }
}

/// Fetches and builds what a node with an API server is made of, unless it is there.
///
/// # Errors
/// When something cannot be had here, with what to type.
pub fn prepare() -> anyhow::Result<()> {
    tools::tools(true).map(|_| ())
}

/// Set when a signal ends the run: what fails then fails because of it.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Brings a node up, runs scenarios on it, takes it down.
///
/// # Errors
/// When the node cannot be brought up or taken down, or a scenario fails; all of them are listed.
pub fn node(options: &Options) -> anyhow::Result<()> {
    if options.list {
        for scenario in scenario::ALL {
            println!("{:<22} {}", scenario.name, scenario.what);
        }
        return Ok(());
    }
    setup::setup(&[Need::Root, Need::Btf])?;
    if options.down {
        let _held = host::hold()?;
        return host::release();
    }
    let tools = tools::tools(options.with_api())?;
    let detector = crate::build_as(if options.debug { "debug" } else { "release" })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;

    let held = host::hold()?;
    let started = Instant::now();
    take_down_on_signal(options.shell)?;
    let up = host::take(&held).and_then(|()| daemons::up(tools, detector, runtime));
    let done = up.and_then(|mut node| {
        say(&format!("the node is up, in {:.1} s", started.elapsed().as_secs_f64()));
        let done = match options.benign {
            Some(minutes) => benign::day(&mut node, minutes),
            None if options.shell => shell(&mut node, options.api),
            None => run(&mut node, options),
        };
        done.and_then(|()| node.alive())
    });
    if INTERRUPTED.load(Ordering::SeqCst) {
        // The node is being taken down by the thread that got the signal, which then ends the process.
        loop {
            thread::park();
        }
    }
    let logs = root().join("target/node/logs");
    // They are of use after a failure only, and then one without them is no worse.
    let _ = std::process::Command::new("cp").arg("-rT").arg(place("logs")).arg(&logs).status();
    let started = Instant::now();
    let down = host::release();
    drop(held);
    if down.is_ok() {
        say(&format!("the node is down, in {:.1} s", started.elapsed().as_secs_f64()));
    }
    done.and(down)
}

/// Ctrl-C and its like take the node down first. In a shell Ctrl-C is the shell's. In a thread that nothing else waits for:
/// whatever the others are at, it ends the process.
fn take_down_on_signal(shell: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => if shell { continue },
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                break;
            }
        });
        INTERRUPTED.store(true, Ordering::SeqCst);
        say("interrupted: taking the node down");
        if let Err(error) = host::release() {
            eprintln!("error: {error:#}");
        }
        std::process::exit(130);
    });
    Ok(())
}

/// Runs the scenarios; the list of those that failed is the error.
fn run(node: &mut Node, options: &Options) -> anyhow::Result<()> {
    let chosen: Vec<_> = options.chosen().collect();
    let mut failed = Vec::new();
    let all = Instant::now();
    for scenario in &chosen {
        let started = Instant::now();
        say(&format!("{}: {}", scenario.name, scenario.what));
        let mut checks = scenario::Checks::default();
        let up = if scenario.api { node.bring_up_api() } else { Ok(()) };
        let done = up.and_then(|()| (scenario.run)(node, options, &mut checks));
        if INTERRUPTED.load(Ordering::SeqCst) {
            return Ok(());
        }
        if let Err(error) = done {
            checks.check("scenario", Err(error));
        }
        // Also what a failed one left: the next finds a node without pods.
        if let Err(error) = node.remove_pods() {
            checks.check("its pods end", Err(error));
        }
        eprintln!("    {:.1} s", started.elapsed().as_secs_f64());
        failed.extend(checks.failed.into_iter().map(|failure| format!("{}: {failure}", scenario.name)));
        node.alive()?;
    }
    say(&format!("{} scenarios took {:.0} s", chosen.len(), all.elapsed().as_secs_f64()));
    anyhow::ensure!(failed.is_empty(), "{} checks failed:\n  - {}", failed.len(), failed.join("\n  - "));
    Ok(())
}

/// A person on the node.
fn shell(node: &mut Node, api: bool) -> anyhow::Result<()> {
    if api {
        node.bring_up_api()?;
    }
    let socket = place("containerd.sock");
    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
    eprintln!(
        "\
A shell on the node; `exit` takes it down.
  manifests   {manifests}  (copy a pod's manifest here and kubelet runs it; images: {busybox})
  ctr         ctr containers ls; ctr task exec --fifo-dir {fifos} --exec-id x CONTAINER sh
  runc        runc --root {runc} list
  crictl      crictl ps, if you have it (not in Debian 12); it finds the socket in CONTAINER_RUNTIME_ENDPOINT
  kubelet     curl -s http://127.0.0.1:10255/pods
              curl -sk -X POST 'https://127.0.0.1:10250/run/{namespace}/POD-{name}/app?cmd=id'
  detector    {detector} run
  logs        {logs}",
        manifests = place("manifests").display(),
        busybox = images::BUSYBOX,
        fifos = place("fifo").display(),
        runc = place("runc/k8s.io").display(),
        namespace = pods::NAMESPACE,
        name = host::NAME,
        detector = node.detector.display(),
        logs = place("logs").display(),
    );
    let mut command = Command::new(&shell);
    if std::io::stdin().is_terminal() {
        command.arg("-i");
    }
    let mut command = daemons::confined(&node.tools, &command)?;
    command.env("CONTAINERD_ADDRESS", &socket).env("CONTAINERD_NAMESPACE", "k8s.io");
    command.env("CONTAINER_RUNTIME_ENDPOINT", format!("unix://{}", socket.display()));
    if node.has_api {
        let (kubectl, audit) = (node.tools.kubernetes("kubectl"), api::audit_log());
        eprintln!("  kubectl     {}\n  audit log   {}", kubectl.display(), audit.display());
        command.env("KUBECONFIG", place("api/admin.conf"));
    }
    command.env("PS1", "node# ");
    // What the last command returned is the person's affair.
    command.status().with_context(|| format!("starting {shell}")).map(drop)
}
