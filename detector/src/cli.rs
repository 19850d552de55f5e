//! The command line.

use std::{
    io::IsTerminal as _,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};

use crate::{
    alert::Severity,
    context::image,
    detect::technique,
    doctor, drill,
    record::Policy,
    recorder::{Recorder, Target, segments::Limits},
    replay, run,
    sink::{Form, Sinks, Spec, Stdout, spec},
    source::{
        kernel::{self, hooks::Backend},
        kubelet::Discovery,
        live,
        trust::Trust,
    },
    trace::command::{self, TraceCommand},
};

const AFTER_HELP: &str = "\
Examples:
  detector run                                  watch every directory that a kubelet here reads static pods from
  detector run --manifest-dir /tmp/manifests    try it without Kubernetes
  detector doctor                               what works on this kernel, and what that means
  detector drill static-pod                     prove it: plant a harmless manifest and wait for the alert
  detector run --record /var/lib/detector       and keep what happened, for later
  detector replay /var/lib/detector/*.trace     tell it again, anywhere
  detector run --output syslog: --output otlp+http://otel:4318 --spool /var/spool/detector

Exit status: 0 fine, 1 failed, 2 wrong usage; 3 when `replay --fail-on` found something.";

const OUTPUT_HELP: &str = "\
Where alerts go, and how; may be given several times, and none waits for another
[default: stdout:pretty on a terminal, stdout:json elsewhere]

  stdout:pretty | stdout:json | stdout:ocsf | stdout:falco
  file:///PATH?rotate=10MiB&keep=5&format=json|ocsf|falco
  syslog:                                     RFC 5424 to /dev/log; also syslog+unix:///PATH
  syslog+udp://HOST:514  syslog+tcp://HOST:601
  syslog+tls://HOST:6514?ca=FILE&cert=FILE&key=FILE
                                              all of them: &format=json|cef &facility=authpriv &max=8096
  journald:
  otlp+http://HOST:4318  otlp+https://HOST:4318
  webhook+http://HOST/PATH  webhook+https://HOST/PATH
                                              &format=json|ocsf|falco &batch=N &query=...
                                              both: &header=NAME:VALUE &header_file=FILE; https: &ca= &cert= &key=

Of those whose receiver may be away: &spool=DIR &spool_size=64MiB. In values, & is %26, + is %2B, # is %23 and % is %25.";

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
    /// Write everything that happens on this host into a trace, to be replayed later and elsewhere
    Record(Record),
    /// Tell recorded traces again: the same alerts, byte for byte, on any machine and without root
    Replay(Replay),
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
    trust: Vec<Trust>,
    /// Where alerts go, and how; may be given several times [default: stdout:pretty on a terminal, stdout:json elsewhere]
    #[arg(long = "output", value_name = "SINK", long_help = OUTPUT_HELP)]
    outputs: Vec<Spec>,
    /// Keep alerts in DIR whose receiver is away, until it is back; without it they wait in memory, 4 MiB a sink
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// Keep what happens as traces in DIR, the latest of it; for what was found see DIR/evidence
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Most that the traces in DIR may take; the oldest go first, evidence last
    #[arg(long, value_name = "SIZE", default_value = "1GiB", requires = "record")]
    record_size: ByteSize,
    /// How long traces in DIR are kept that are no evidence: 24h, 7d
    #[arg(long, value_name = "TIME", default_value = "24h", requires = "record", value_parser = duration)]
    record_age: Duration,
    /// How much of DIR's file system stays free in any case; beyond 10 % a kubelet begins to evict pods
    #[arg(long, value_name = "PERCENT", default_value = "15", requires = "record", value_parser = clap::value_parser!(u8).range(0..=99))]
    record_free: u8,
}

#[derive(Args, Debug)]
struct Record {
    /// Write the trace to FILE
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    source: Source,
}

#[derive(Args, Debug)]
struct Replay {
    /// Traces in the order of time, also compressed once more by zstd; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Tell only what happened at this time or later: 2026-11-25T13:00:00Z
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Tell only what happened at this time or earlier
    #[arg(long, value_name = "TIME")]
    to: Option<Timestamp>,
    /// Tell only what this pod did or what was done to it: NAME or NAMESPACE/NAME
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// Tell only of this technique: static-pod, container-exec, ...
    #[arg(long, value_name = "ID", value_parser = technique)]
    technique: Option<String>,
    /// Tell only what this process did, or one that descends from it
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Replay at this multiple of the recorded speed: 1x, 10x [default: as fast as it goes]
    #[arg(long, value_name = "FACTOR", value_parser = speed)]
    speed: Option<f64>,
    /// Exit with 3 when something at least that severe was told
    #[arg(long, value_name = "SEVERITY")]
    fail_on: Option<Severity>,
    /// Write a page for people to FILE: findings, the processes behind them, manifests, evidence
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Digest of an image that is a pause image, instead of those that were given when the trace was made; may be given several times
    #[arg(long = "pause-digest", value_name = "DIGEST", value_parser = pause_digest)]
    pause_digests: Vec<String>,
    /// SHA-256 of a pause program, instead of those that were given when the trace was made; may be given several times
    #[arg(long = "pause-binary", value_name = "SHA256", value_parser = pause_binary)]
    pause_binaries: Vec<String>,
    /// How alerts are written: stdout:pretty, stdout:json, stdout:ocsf, stdout:falco [default: stdout:pretty on a terminal,
    /// stdout:json elsewhere]
    #[arg(long, value_name = "SINK", value_parser = stdout)]
    output: Option<Form>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Deny {
    /// Writes, renames, links, mounts and the like in static-pod directories
    StaticPod,
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
        Command::Record(record) => record_to(record, started),
        Command::Replay(replay) => play(replay),
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

fn trust(text: &str) -> Result<Trust, String> {
    let (path, sha256) = match text.rsplit_once('=') {
        Some((path, digest)) if digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()) => {
            (path, Some(digest.to_owned()))
        }
        Some(_) => return Err("what follows = is no SHA-256 (64 hex digits)".to_owned()),
        None => (text, None),
    };
    Ok(Trust { path: path.into(), sha256 })
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

fn technique(id: &str) -> Result<String, String> {
    let mut known = technique::ALL.iter().map(|technique| technique.id);
    if known.any(|known| known == id) {
        return Ok(id.to_owned());
    }
    let known: Vec<_> = technique::ALL.iter().map(|technique| technique.id).collect();
    Err(format!("no technique has that id; there are {}", known.join(", ")))
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.strip_suffix('x').unwrap_or(text).parse::<f64>().ok();
    speed.filter(|speed| (0.001..=1e6).contains(speed)).ok_or_else(|| "no factor, such as 1x or 0.5x".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let signed: SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    signed.try_into().map_err(|_| "a time before now".to_owned())
}

fn stdout(text: &str) -> Result<Form, String> {
    match text.parse::<Spec>().map_err(|error| error.to_string())?.kind() {
        spec::Kind::Stdout(form) => Ok(*form),
        _ => {
            Err("a replay writes to standard output only: stdout:pretty, stdout:json, stdout:ocsf, stdout:falco"
                .to_owned())
        }
    }
}

/// How standard output looks unless told otherwise, and whether in colours.
fn usual() -> (Form, bool) {
    let terminal = std::io::stdout().is_terminal();
    (if terminal { Form::Pretty } else { Form::Json }, terminal && std::env::var_os("NO_COLOR").is_none())
}

fn start(run: Run, started: Instant) -> anyhow::Result<ExitCode> {
    let deny = run.deny.map(|Deny::StaticPod| run.trust);
    let limits = Limits { size: run.record_size.as_u64(), age: run.record_age, free: run.record_free };
    let recorder = run.record.map(|dir| Recorder::start(Target::Dir(dir, limits))).transpose()?;
    let (form, colour) = usual();
    let outputs = if run.outputs.is_empty() { vec![Spec::stdout(form)] } else { run.outputs };
    let sinks = Sinks::start(&outputs, run.spool.as_deref(), colour)?;
    run::run(&live::Options { deny, ..run.source.options() }, sinks, recorder, started)?;
    Ok(ExitCode::SUCCESS)
}

fn record_to(record: Record, started: Instant) -> anyhow::Result<ExitCode> {
    let recorder = Recorder::start(Target::File(record.output))?;
    run::run(&record.source.options(), Sinks::default(), Some(recorder), started)?;
    Ok(ExitCode::SUCCESS)
}

fn play(replay: Replay) -> anyhow::Result<ExitCode> {
    let policy = Policy { pause_digests: replay.pause_digests, pause_binaries: replay.pause_binaries };
    let options = replay::Options {
        files: replay.files,
        filter: replay::Filter {
            from: replay.from,
            to: replay.to,
            pod: replay.pod,
            technique: replay.technique,
            pid: replay.pid,
        },
        speed: replay.speed,
        fail_on: replay.fail_on,
        report: replay.report,
        policy: (policy != Policy::default()).then_some(policy),
    };
    let (form, colour) = usual();
    match replay::replay(&options, Stdout::new(replay.output.unwrap_or(form), colour)) {
        // Whoever reads has read enough.
        Err(error) if command::is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        result => result,
    }
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
