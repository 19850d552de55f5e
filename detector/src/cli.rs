//! The command line.

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode, time::Instant};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    context::image,
    doctor, drill,
    record::Policy,
    run,
    sink::{Format, Stdout},
    source::{
        kernel::{self, hooks::Backend},
        kubelet::Discovery,
        live,
    },
    trace::command::{self, TraceCommand},
};

const AFTER_HELP: &str = "\
Examples:
  detector run                                  watch every directory that a kubelet here reads static pods from
  detector run --manifest-dir /tmp/manifests    try it without Kubernetes
  detector doctor                               what works on this kernel, and what that means
  detector drill static-pod                     prove it: plant a harmless manifest and wait for the alert

Exit status: 0 fine, 1 failed, 2 wrong usage.";

/// Sees static pods being planted on a Kubernetes node, in the kernel, and says who did it.
#[derive(Debug, Parser)]
#[command(name = "detector", version, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch this host; alerts go to standard output, everything else to standard error
    Run(Run),
    /// Say what works on this host, what does not, and what that means for coverage
    Doctor(Source),
    /// Perform a technique harmlessly, and say whether the alert came and how fast
    Drill(Drill),
    /// Look into traces: what they cover, and their records
    #[command(subcommand)]
    Trace(TraceCommand),
    /// A step of a drill, performed by a process of its own
    #[command(hide = true, subcommand)]
    DrillStep(drill::container::Step),
    /// Attach empty programs until stopped: what the benchmark compares with
    #[command(hide = true)]
    Floor {
        #[arg(long, default_value = "tracepoint")]
        hooks: Hooks,
    },
}

/// Where to look, and with what.
#[derive(Args, Clone, Debug)]
pub struct Source {
    /// Watch DIR too, which need not exist yet; may be given several times
    #[arg(long = "manifest-dir", value_name = "DIR")]
    pub manifest_dirs: Vec<PathBuf>,
    /// Watch only what --manifest-dir names: neither running kubelets' directories nor the usual ones
    #[arg(long, requires = "manifest_dirs")]
    pub no_default_dirs: bool,
    /// Read the running kernel's BTF from FILE instead of /sys/kernel/btf/vmlinux
    #[arg(long, value_name = "FILE")]
    pub btf: Option<PathBuf>,
    /// Do not attach the hook called NAME (as in `detector doctor`); may be given several times
    #[arg(long = "without-hook", value_name = "NAME", value_parser = hook_name)]
    pub without_hooks: Vec<String>,
    /// See acts by this backend only [default: the best that this kernel lets attach]
    #[arg(long, value_name = "BACKEND")]
    pub hooks: Option<Hooks>,
    /// Digest of an image (sha256:...) that is a pause image beside the Kubernetes project's own; may be given several times
    #[arg(long = "pause-digest", value_name = "DIGEST", value_parser = pause_digest)]
    pub pause_digests: Vec<String>,
    /// SHA-256 of a pause program; with one or more, pods whose pause is none of them are alerts; may be given several times
    #[arg(long = "pause-binary", value_name = "SHA256", value_parser = pause_binary)]
    pub pause_binaries: Vec<String>,
    /// Ask the container runtime behind this socket about containers and images; may be given several times [default: the
    /// sockets that running kubelets use, and the usual ones]
    #[arg(long = "cri-socket", value_name = "PATH")]
    pub cri_sockets: Vec<PathBuf>,
    /// Ask no container runtime: containers are known by their bundles alone
    #[arg(long, conflicts_with = "cri_sockets")]
    pub no_cri: bool,
    /// The node's name in alerts [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
}

/// How acts are seen.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Hooks {
    /// BPF LSM programs
    Lsm,
    /// Trampolines on the security_* functions
    Fentry,
    /// Breakpoints on the same functions
    Kprobe,
    /// The ends of system calls
    Tracepoint,
}

impl From<Hooks> for Backend {
    fn from(hooks: Hooks) -> Self {
        match hooks {
            Hooks::Lsm => Self::Lsm,
            Hooks::Fentry => Self::Fentry,
            Hooks::Kprobe => Self::Kprobe,
            Hooks::Tracepoint => Self::Tracepoint,
        }
    }
}

#[derive(Args, Debug)]
struct Run {
    #[command(flatten)]
    source: Source,
    /// Refuse changes of what is watched, except by the programs of --trust; needs BPF LSM
    #[arg(long, value_name = "TECHNIQUE")]
    deny: Option<Deny>,
    /// A program that may change manifests under --deny, by its executable; may be given several times
    #[arg(long, value_name = "PATH[=SHA256]", requires = "deny", value_parser = trust)]
    trust: Vec<live::Trust>,
    /// How alerts are written [default: pretty on a terminal, json elsewhere]
    #[arg(long, value_name = "SINK")]
    output: Option<Output>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Deny {
    /// Writes, renames, links, mounts and the like in static-pod directories
    StaticPod,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// One JSON object a line
    #[value(name = "stdout:json")]
    Json,
    /// For people
    #[value(name = "stdout:pretty")]
    Pretty,
}

#[derive(Args, Debug)]
struct Drill {
    /// Which technique to perform
    technique: drill::Technique,
    #[command(flatten)]
    source: Source,
}

/// Parses the command line and does what it says.
#[must_use]
pub fn main(started: Instant) -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(run) => start(run, started),
        Command::Doctor(source) => doctor::doctor(&source.options()),
        Command::Drill(drill) => drill::drill(drill.technique, &drill.source),
        Command::Trace(trace) => command::trace(&trace),
        Command::DrillStep(step) => drill::container::step(&step),
        Command::Floor { hooks } => floor(hooks.into()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Source {
    /// As the live source takes it.
    #[must_use]
    pub fn options(&self) -> live::Options {
        live::Options {
            kernel: kernel::Options {
                btf: self.btf.clone(),
                without: self.without_hooks.clone(),
                backend: self.hooks.map(Into::into),
            },
            discovery: Discovery {
                explicit: self.manifest_dirs.clone(),
                defaults: !self.no_default_dirs,
                proc: PathBuf::from("/proc"),
            },
            node: self.node_name.clone(),
            deny: None,
            cri: (!self.no_cri).then(|| self.cri_sockets.clone()),
            policy: Policy { pause_digests: self.pause_digests.clone(), pause_binaries: self.pause_binaries.clone() },
        }
    }
}

impl Source {
    /// The same as arguments, for an agent that is started with them.
    #[must_use]
    pub fn arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments = Vec::new();
        let mut add = |flag: &str, value: &std::ffi::OsStr| arguments.extend([flag.into(), value.to_owned()]);
        for dir in &self.manifest_dirs {
            add("--manifest-dir", dir.as_os_str());
        }
        for hook in &self.without_hooks {
            add("--without-hook", hook.as_ref());
        }
        for digest in &self.pause_digests {
            add("--pause-digest", digest.as_ref());
        }
        for binary in &self.pause_binaries {
            add("--pause-binary", binary.as_ref());
        }
        for socket in &self.cri_sockets {
            add("--cri-socket", socket.as_os_str());
        }
        if let Some(hooks) = self.hooks {
            add("--hooks", Backend::from(hooks).name().as_ref());
        }
        if let Some(btf) = &self.btf {
            add("--btf", btf.as_os_str());
        }
        if let Some(name) = &self.node_name {
            add("--node-name", name.as_ref());
        }
        if self.no_default_dirs {
            arguments.push("--no-default-dirs".into());
        }
        if self.no_cri {
            arguments.push("--no-cri".into());
        }
        arguments
    }
}

fn trust(text: &str) -> Result<live::Trust, String> {
    let (path, sha256) = match text.rsplit_once('=') {
        Some((path, digest)) if digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()) => {
            (path, Some(digest.to_owned()))
        }
        Some(_) => return Err("what follows = is no SHA-256 (64 hex digits)".to_owned()),
        None => (text, None),
    };
    Ok(live::Trust { path: path.into(), sha256 })
}

fn pause_digest(text: &str) -> Result<String, String> {
    let digest = text.to_ascii_lowercase();
    match image::digest(&digest) {
        Some(digest) => Ok(digest),
        None => Err("not a digest: sha256: and 64 hex digits, as in `crictl images --digests`".to_owned()),
    }
}

fn pause_binary(text: &str) -> Result<String, String> {
    let binary = text.to_ascii_lowercase();
    if !image::is_sha256(&binary) {
        return Err("not a SHA-256: 64 hex digits, as in the output of `sha256sum`".to_owned());
    }
    Ok(binary)
}

fn hook_name(name: &str) -> Result<String, String> {
    let known = kernel::hooks::HOOKS.iter().map(|hook| hook.name);
    if known.clone().any(|hook| hook == name) {
        return Ok(name.to_owned());
    }
    Err(format!("no hook has that name; there are {}", known.collect::<Vec<_>>().join(", ")))
}

fn start(run: Run, started: Instant) -> anyhow::Result<ExitCode> {
    let terminal = std::io::stdout().is_terminal();
    let output = run.output.unwrap_or(if terminal { Output::Pretty } else { Output::Json });
    let sink = Stdout::new(match output {
        Output::Json => Format::Json,
        Output::Pretty => Format::Pretty { colour: terminal && std::env::var_os("NO_COLOR").is_none() },
    });
    let deny = run.deny.map(|Deny::StaticPod| run.trust);
    run::run(&live::Options { deny, ..run.source.options() }, sink, started)?;
    Ok(ExitCode::SUCCESS)
}

fn floor(backend: Backend) -> anyhow::Result<ExitCode> {
    let attached = kernel::floor(backend)?;
    eprintln!("ready: empty programs are attached");
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => {}
            interrupted = tokio::signal::ctrl_c() => interrupted?,
        }
        drop(attached);
        Ok(ExitCode::SUCCESS)
    })
}
