//! What a contributor types. Every command sets up what it needs.

mod bench;
mod deb;
mod fuzz;
mod image;
mod man;
mod manifests;
mod node;
mod oci;
mod screenshot;
mod setup;
mod stats;
mod test;
mod vm;

use std::{
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, run, test and measure the detector")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building and testing need; does nothing when it is all there
    Setup,
    /// Build everything and run the detector on this host
    Run {
        /// Arguments of `detector run`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Format check, lints and every test, the live ones on this kernel included
    Test,
    /// Measure the detector on this kernel; prints a table
    Bench(bench::Options),
    /// Look for bytes that a reader of traces, records, manifests or other input cannot take
    Fuzz(fuzz::Options),
    /// Run the evasion suite on real kernels in virtual machines
    Vm(vm::Options),
    /// Record traces of every technique in a virtual machine: what `detector/tests/golden.rs` replays
    Golden(vm::Golden),
    /// Make the agent's image as an OCI archive; no container tool is needed
    Image(image::Options),
    /// Make the Debian package of the agent, for nodes outside of Kubernetes' scheduling
    Deb(deb::Options),
    /// Write the manual's pages and the shells' completions
    Man(man::Options),
    /// Draw the picture in the README: what the agent says on a terminal, in a virtual machine
    Screenshot(screenshot::Options),
    /// Render deploy/ with kustomize and helm, and validate it against the schemas of Kubernetes
    Manifests,
    /// Run scenarios on a private Kubernetes node: containerd, runc and kubelet for real
    Node(node::Options),
    /// An act of a node's scenario that is a system call
    #[command(hide = true)]
    NodeAct { what: node::act::What, pid: u32 },
    /// Fetch and build what the node and the machines of the tests need
    #[command(hide = true)]
    Prepare,
    /// A pod through the container runtime interface
    #[command(hide = true)]
    NodeRunPod { socket: PathBuf, pod: String, image: String, command: Vec<String> },
    /// A client of the CRI: connects, waits for a line, has a container execute a command, and says what that said
    #[command(hide = true)]
    NodeExecSync {
        socket: PathBuf,
        container: String,
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// What upgrades static pods on a benign day
    #[command(hide = true)]
    NodeUpgrade { manifests: PathBuf, work: PathBuf, version: String },
    /// Loops that the benchmark times
    #[command(hide = true)]
    Loop {
        what: bench::loops::Loop,
        count: u64,
        dir: PathBuf,
        #[arg(default_value_t = 1)]
        samples: u32,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Task::Setup => setup::setup(&[setup::Need::Containerd, setup::Need::Chromium, setup::Need::Rsyslog]),
        Task::Run { args } => run(&args),
        Task::Test => test::test(),
        Task::Bench(options) => bench::bench(&options),
        Task::Fuzz(options) => fuzz::fuzz(&options),
        Task::Vm(options) => vm::vm(&options),
        Task::Golden(options) => vm::golden(&options),
        Task::Image(options) => image::image(&options),
        Task::Deb(options) => deb::deb(&options),
        Task::Man(options) => man::man(&options),
        Task::Screenshot(options) => screenshot::screenshot(&options),
        Task::Manifests => manifests::manifests(),
        Task::Node(options) => node::node(&options),
        Task::NodeAct { what, pid } => node::act::act(what, pid),
        Task::Prepare => node::prepare().and_then(|()| vm::prepare_some()),
        Task::NodeRunPod { socket, pod, image, command } => node::run_pod(&socket, &pod, &image, &command),
        Task::NodeExecSync { socket, container, command } => node::exec_sync(&socket, &container, &command),
        Task::NodeUpgrade { manifests, work, version } => node::upgrade(&manifests, &work, &version),
        Task::Loop { what, count, dir, samples } => bench::loops::run(what, count, &dir, samples),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's directory.
fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Cargo, in the workspace's directory.
fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Runs a command to its end.
fn check(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("starting {}", command.get_program().display()))?;
    anyhow::ensure!(status.success(), "{} failed: {status}", shown(command));
    Ok(())
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Builds the release agent; returns its path.
fn build() -> anyhow::Result<PathBuf> {
    setup::setup(&[setup::Need::Root, setup::Need::Btf])?;
    build_as("release")
}

/// Builds the agent with a profile, `release` or `debug`; returns its path.
fn build_as(profile: &str) -> anyhow::Result<PathBuf> {
    eprintln!("==> building (about three minutes the first time)");
    let flags: &[&str] = if profile == "release" { &["--release"] } else { &[] };
    check(cargo().args(["build", "--quiet", "--package", "detector"]).args(flags))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join(profile).join("detector"))
}

/// Builds the statically linked release agent, and what goes into a machine with it: what is tried there is what is shipped, and it is
/// built once. Returns the directory of programs.
fn build_static(arch: vm::Arch) -> anyhow::Result<PathBuf> {
    setup::setup(&[])?;
    setup::standard_library(arch.target())?;
    let compiler = setup::static_compiler(arch.target())?;
    eprintln!("==> building the static agent for {}", arch.name());
    let target = root().join("target/static");
    check(
        cargo()
            .args(["build", "--quiet", "--release", "--package", "detector", "--package", "xtask", "--bins"])
            .args(vm::EXAMPLES.iter().flat_map(|name| ["--example", name]))
            .args(["--target", arch.target(), "--target-dir"])
            .arg(&target)
            .envs(compiler)
            // Comes with rustc: another architecture needs no C linker of its own.
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld")
            .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols"),
    )?;
    Ok(target.join(arch.target()).join("release"))
}

fn run(args: &[String]) -> anyhow::Result<()> {
    let detector = build()?;
    Err(Command::new(&detector).arg("run").args(args).exec()).context(format!("starting {}", detector.display()))
}
