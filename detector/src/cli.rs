//! The command line.

pub mod help;

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode, time::Instant};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum, error::ErrorKind};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    alert::Severity,
    config::{
        Config, Digest, HookName, Listen, Output, RateLimit, Sha256, Size, Span, Trusted, checks,
        command::{self as config_command, ConfigCommand},
        file,
        watch::Watch,
    },
    confine, doctor, drill, explain, matrix,
    monitor::Monitor,
    record::Policy,
    recorder::{Recorder, Target},
    replay, run,
    sink::{Form, Sinks, Spec, StartError, Stdout, spec},
    source::{
        kernel::{self, hooks::Backend},
        live,
    },
    trace::command::{self, TraceCommand},
};

/// Sees, in the kernel, who plants static pods, enters containers and swaps pause images on a Kubernetes node.
#[derive(Debug, Parser)]
#[command(name = "detector", version, max_term_width = help::WIDTH, after_help = help::DETECTOR)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch this host; alerts go to standard output, everything else to standard error
    #[command(after_help = help::RUN)]
    Run(Run),
    /// Write everything that happens on this host into a trace, to be replayed later and elsewhere
    #[command(after_help = help::RECORD)]
    Record(Record),
    /// Tell recorded traces again: the same alerts, byte for byte, on any machine and without root
    #[command(after_help = help::REPLAY)]
    Replay(Replay),
    /// Say what works on this host, what does not, and what that means for coverage
    #[command(after_help = help::DOCTOR)]
    Doctor(Source),
    /// Say which techniques of the Kubernetes Threat Matrix are seen on this host, by what, and why not
    #[command(after_help = help::MATRIX)]
    Matrix(matrix::Options),
    /// Perform a technique harmlessly, and say whether the alert came and how fast
    #[command(after_help = help::DRILL)]
    Drill(Drill),
    /// Say what a technique is, what watches it here, what its alerts mean, and what to do then
    #[command(after_help = help::EXPLAIN)]
    Explain(explain::Options),
    /// Check, show and describe configurations
    #[command(subcommand, after_help = help::CONFIG)]
    Config(ConfigCommand),
    /// Look into traces: what they cover, and their records
    #[command(subcommand, after_help = help::TRACE)]
    Trace(TraceCommand),
    /// Print a script that makes a shell complete this command line
    #[command(after_help = help::COMPLETIONS)]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
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
#[command(next_help_heading = "What is watched, and how")]
pub struct Source {
    /// Watch DIR too, which need not exist yet; may be given several times
    #[arg(long = "manifest-dir", value_name = "DIR")]
    pub manifest_dirs: Vec<PathBuf>,
    /// Watch only what --manifest-dir names: neither running kubelets' directories nor the usual ones
    #[arg(long)]
    pub no_default_dirs: bool,
    /// Read the running kernel's BTF from FILE instead of /sys/kernel/btf/vmlinux
    #[arg(long, value_name = "FILE")]
    pub btf: Option<PathBuf>,
    /// Do not attach the hook called NAME (as in `detector doctor`); may be given several times
    #[arg(long = "without-hook", value_name = "NAME", value_parser = value::<HookName>)]
    pub without_hooks: Vec<HookName>,
    /// See acts by this backend only [default: the best that this kernel lets attach]
    #[arg(long, value_name = "BACKEND")]
    pub hooks: Option<Hooks>,
    /// Digest of an image (sha256:...) that is a pause image beside the Kubernetes project's own; may be given several times
    #[arg(long = "pause-digest", value_name = "DIGEST", value_parser = value::<Digest>)]
    pub pause_digests: Vec<Digest>,
    /// SHA-256 of a pause program; with one or more, pods whose pause is none of them are alerts; may be given several times
    #[arg(long = "pause-binary", value_name = "SHA256", value_parser = value::<Sha256>)]
    pub pause_binaries: Vec<Sha256>,
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
    /// Follow this audit log of a kube-apiserver beside those that API servers here write; may be given several times
    #[arg(long = "audit-log", value_name = "PATH")]
    pub audit_logs: Vec<PathBuf>,
    /// Follow only what --audit-log names
    #[arg(long)]
    pub no_audit_log_search: bool,
    /// Read audit logs from their beginning where no agent before has read them, and not from their end
    #[arg(long)]
    pub audit_from_start: bool,
    /// Keep in DIR how far audit logs were read [default: the directory of --spool, else of --record, else nowhere]
    #[arg(long, value_name = "DIR")]
    pub audit_state: Option<PathBuf>,
    /// Watch pods' logs in DIR too, which kubelets here have as podLogsDir; may be given several times
    #[arg(long = "pod-log-dir", value_name = "DIR")]
    pub pod_log_dirs: Vec<PathBuf>,
}

/// How acts are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
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

#[derive(Args, Clone, Debug)]
struct Run {
    /// Take what no flag says from FILE, and what changes in it while the agent runs; see `detector config show`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
    /// Refuse changes of what is watched, except by the programs of --trust; needs BPF LSM
    #[arg(long, value_name = "TECHNIQUE", help_heading = help::REFUSING)]
    deny: Option<Deny>,
    /// A program that may change manifests under --deny, by its executable; may be given several times
    #[arg(long, value_name = "PATH[=SHA256]", value_parser = value::<Trusted>, help_heading = help::REFUSING)]
    trust: Vec<Trusted>,
    /// Where alerts go, and how; may be given several times [default: stdout:pretty on a terminal, stdout:json elsewhere]
    #[arg(long = "output", value_name = "SINK", value_parser = value::<Output>, long_help = help::OUTPUT, help_heading = help::ALERTS)]
    outputs: Vec<Output>,
    /// Keep alerts in DIR whose receiver is away, until it is back; without it they wait in memory, 4 MiB a sink
    #[arg(long, value_name = "DIR", help_heading = help::ALERTS)]
    spool: Option<PathBuf>,
    /// Keep what happens as traces in DIR, the latest of it; for what was found see DIR/evidence
    #[arg(long, value_name = "DIR", help_heading = help::RECORDING)]
    record: Option<PathBuf>,
    /// Most that the traces in DIR may take; the oldest go first, evidence last [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = value::<Size>, help_heading = help::RECORDING)]
    record_size: Option<Size>,
    /// How long traces in DIR are kept that are no evidence: 24h, 7d [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = value::<Span>, help_heading = help::RECORDING)]
    record_age: Option<Span>,
    /// How much of DIR's file system stays free in any case; beyond 10 % a kubelet begins to evict pods [default: 15]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=99), help_heading = help::RECORDING)]
    record_free: Option<u8>,
    /// How long findings identical with one that was told are counted, to be told as one; 0s to tell each [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = value::<Span>, help_heading = help::ALERTS)]
    group_window: Option<Span>,
    /// Most alerts a minute of one technique about one pod, critical ones aside; 0 for any number [default: 60]
    #[arg(long, value_name = "NUMBER", help_heading = help::ALERTS)]
    rate_limit: Option<u32>,
    /// Serve /metrics for Prometheus, and /healthz, /readyz and /livez for probes, at this address: 127.0.0.1:9469, [::]:9469
    #[arg(long, value_name = "ADDR:PORT", value_parser = value::<Listen>)]
    metrics_listen: Option<Listen>,
    /// Say on standard error which exception silenced what
    #[arg(long, help_heading = help::ALERTS)]
    explain: bool,
    /// Keep every privilege after the hooks are attached: only to look for a fault with
    #[arg(long)]
    no_confine: bool,
}

#[derive(Args, Debug)]
struct Record {
    /// Write the trace to FILE
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    source: Source,
    /// Keep every privilege after the hooks are attached: only to look for a fault with
    #[arg(long)]
    no_confine: bool,
}

#[derive(Args, Debug)]
struct Replay {
    /// Traces in the order of time, also compressed once more by zstd; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Tell only what happened at this time or later: 2026-11-25T13:00:00Z
    #[arg(long, value_name = "TIME", help_heading = help::CHOOSING)]
    from: Option<Timestamp>,
    /// Tell only what happened at this time or earlier
    #[arg(long, value_name = "TIME", help_heading = help::CHOOSING)]
    to: Option<Timestamp>,
    /// Tell only what this pod did or what was done to it: NAME or NAMESPACE/NAME
    #[arg(long, value_name = "POD", help_heading = help::CHOOSING)]
    pod: Option<String>,
    /// Tell only of this technique: static-pod, container-exec, ...
    #[arg(long, value_name = "ID", value_parser = checks::technique, help_heading = help::CHOOSING)]
    technique: Option<String>,
    /// Tell only what this process did, or one that descends from it
    #[arg(long, value_name = "PID", help_heading = help::CHOOSING)]
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
    #[arg(long = "pause-digest", value_name = "DIGEST", value_parser = checks::pause_digest, help_heading = help::JUDGING)]
    pause_digests: Vec<String>,
    /// SHA-256 of a pause program, instead of those that were given when the trace was made; may be given several times
    #[arg(long = "pause-binary", value_name = "SHA256", value_parser = checks::pause_binary, help_heading = help::JUDGING)]
    pause_binaries: Vec<String>,
    /// How alerts are written: stdout:pretty, stdout:json, stdout:ocsf, stdout:falco [default: stdout:pretty on a terminal,
    /// stdout:json elsewhere]
    #[arg(long, value_name = "SINK", value_parser = stdout)]
    output: Option<Form>,
    /// Judge by the exceptions, the grouping and the pause images of FILE, and not by what was configured when the trace was made
    #[arg(long, value_name = "FILE", help_heading = help::JUDGING)]
    config: Option<PathBuf>,
    /// Say on standard error which exception silenced what
    #[arg(long, help_heading = help::JUDGING)]
    explain: bool,
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
    /// How to reach the API server, for drills that ask it something: by a token, a file with one, or a client certificate, embedded or in
    /// files; plugins are not run
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
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
        Command::Matrix(options) => matrix::matrix(&options),
        Command::Drill(drill) => drill::drill(drill.technique, &drill.source, drill.kubeconfig.as_deref()),
        Command::Config(command) => config_command::config(&command),
        Command::Trace(trace) => command::trace(&trace),
        Command::Explain(options) => explain::explain(&options),
        Command::Completions { shell } => help::completions(shell),
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
        self.config().options()
    }

    /// As a configuration.
    fn config(&self) -> Config {
        of_flags(|config| self.over(config))
    }

    /// What was given overrides a configuration.
    fn over(&self, config: &mut Config) {
        list(&self.manifest_dirs, &mut config.manifest_dirs);
        config.default_dirs &= !self.no_default_dirs;
        one(&self.btf.clone().map(Some), &mut config.btf);
        list(&self.without_hooks, &mut config.without_hooks);
        one(&self.hooks.map(Some), &mut config.hooks);
        list(&self.pause_digests, &mut config.pause.digests);
        list(&self.pause_binaries, &mut config.pause.binaries);
        if !self.cri_sockets.is_empty() {
            config.cri.ask = true;
        }
        list(&self.cri_sockets, &mut config.cri.sockets);
        if self.no_cri {
            config.cri.ask = false;
            config.cri.sockets.clear();
        }
        one(&self.node_name.clone().map(Some), &mut config.node_name);
        list(&self.audit_logs, &mut config.audit.logs);
        config.audit.find &= !self.no_audit_log_search;
        config.audit.whole |= self.audit_from_start;
        one(&self.audit_state.clone().map(Some), &mut config.audit.state);
        list(&self.pod_log_dirs, &mut config.pod_log_dirs);
    }
}

impl Run {
    /// What was given overrides a configuration.
    fn over(&self, config: &mut Config) {
        self.source.over(config);
        if let Some(Deny::StaticPod) = self.deny {
            config.deny.static_pod = true;
        }
        list(&self.trust, &mut config.deny.trust);
        list(&self.outputs, &mut config.outputs);
        one(&self.spool.clone().map(Some), &mut config.spool);
        one(&self.record.clone().map(Some), &mut config.record.dir);
        one(&self.record_size, &mut config.record.size);
        one(&self.record_age, &mut config.record.age);
        one(&self.record_free, &mut config.record.free_percent);
        one(&self.group_window, &mut config.grouping.window);
        one(&self.rate_limit, &mut config.rate_limit.alerts);
        if self.rate_limit.is_some() {
            config.rate_limit.per = RateLimit::default().per;
        }
        config.confine &= !self.no_confine;
        one(&self.metrics_listen.map(Some), &mut config.metrics.listen);
    }
}

fn list<T: Clone>(given: &[T], config: &mut Vec<T>) {
    if !given.is_empty() {
        *config = given.to_vec();
    }
}

fn one<T: Clone>(given: &Option<T>, config: &mut T) {
    if let Some(given) = given {
        config.clone_from(given);
    }
}

/// A value of the configuration on the command line.
fn value<T: TryFrom<String, Error = String>>(text: &str) -> Result<T, String> {
    text.to_owned().try_into()
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
            add("--without-hook", hook.as_ref().as_ref());
        }
        for digest in &self.pause_digests {
            add("--pause-digest", digest.as_ref().as_ref());
        }
        for binary in &self.pause_binaries {
            add("--pause-binary", binary.as_ref().as_ref());
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
        for log in &self.audit_logs {
            add("--audit-log", log.as_os_str());
        }
        for dir in &self.pod_log_dirs {
            add("--pod-log-dir", dir.as_os_str());
        }
        if self.no_audit_log_search {
            arguments.push("--no-audit-log-search".into());
        }
        if self.audit_from_start {
            arguments.push("--audit-from-start".into());
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

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.strip_suffix('x').unwrap_or(text).parse::<f64>().ok();
    speed.filter(|speed| (0.001..=1e6).contains(speed)).ok_or_else(|| "no factor, such as 1x or 0.5x".to_owned())
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
pub(crate) fn usual() -> (Form, bool) {
    let terminal = std::io::stdout().is_terminal();
    (if terminal { Form::Pretty } else { Form::Json }, terminal && std::env::var_os("NO_COLOR").is_none())
}

/// The sinks that the configuration names.
///
/// # Errors
/// When one of them cannot be used.
pub(crate) fn sinks(config: &Config) -> Result<Sinks, StartError> {
    let (form, colour) = usual();
    let mut outputs: Vec<_> = config.outputs.iter().map(Output::spec).collect();
    if outputs.is_empty() {
        outputs.push(Spec::stdout(form));
    }
    Sinks::start(&outputs, config.spool.as_deref(), colour)
}

/// What flags say where there is no file; what does not fit together is wrong usage.
fn of_flags(flags: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    flags(&mut config);
    if let Err(conflict) = config.fits() {
        wrong_usage(&conflict.on_the_command_line());
    }
    config
}

/// Says so and exits with 2, as for what clap itself refuses.
fn wrong_usage(what: &str) -> ! {
    Cli::command().error(ErrorKind::MissingRequiredArgument, what).exit()
}

fn start(run: Run, started: Instant) -> anyhow::Result<ExitCode> {
    let flags = run.clone();
    let flags = move |config: &mut Config| flags.over(config);
    let (config, watch) = match &run.config {
        Some(path) => {
            let (text, config) = file::load(path, &flags)?;
            config.expired(Timestamp::now()).iter().for_each(|warning| eprintln!("warning: {warning}"));
            // Before the first thread.
            confine_if(config.confine);
            (config, Some(Watch::start(path.clone(), text, Box::new(flags))?))
        }
        None => (of_flags(flags), None),
    };
    confine_if(config.confine);
    let bounds = run.record_size.is_some() || run.record_age.is_some() || run.record_free.is_some();
    if config.record.dir.is_none() && bounds {
        wrong_usage(
            "--record-size, --record-age and --record-free are bounds of a recording; name its directory with --record",
        );
    }
    // Before anything that may take long: probes are answered from here on.
    let monitor = Monitor::start(config.metrics.listen.map(|listen| listen.0))?;
    let target = config.record.dir.clone().map(|dir| Target::Dir(dir, config.limits()));
    let recorder = target.map(Recorder::start).transpose()?;
    let sinks = sinks(&config)?;
    run::run(run::Setup { config, watch, sinks, recorder, monitor, explain: run.explain }, started)?;
    Ok(ExitCode::SUCCESS)
}

fn confine_if(wanted: bool) {
    if wanted {
        confine::switch_on();
    }
}

fn record_to(record: Record, started: Instant) -> anyhow::Result<ExitCode> {
    let config = record.source.config();
    confine_if(!record.no_confine);
    let recorder = Some(Recorder::start(Target::File(record.output))?);
    let (sinks, monitor) = (Sinks::default(), Monitor::start(None)?);
    run::run(run::Setup { config, watch: None, sinks, recorder, monitor, explain: false }, started)?;
    Ok(ExitCode::SUCCESS)
}

fn play(replay: Replay) -> anyhow::Result<ExitCode> {
    let config = replay.config.as_deref().map(|path| file::load(path, |_| {})).transpose()?;
    let (pause_digests, pause_binaries) = (replay.pause_digests, replay.pause_binaries);
    let policy = Policy { pause_digests, pause_binaries, ..Policy::default() };
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
        rules: config.map(|(_, config)| config.rules()),
        explain: replay.explain,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    fn given(args: &[&str], text: &str) -> Config {
        let Command::Run(run) = Cli::parse_from(["detector", "run"].iter().chain(args)).command else {
            panic!("{args:?}")
        };
        file::interpret("c.yaml", text, |config| run.over(config)).unwrap()
    }

    #[test]
    fn flags_override_the_file_and_what_no_flag_says_stays() {
        let digest = "ab".repeat(32);
        let text = format!(
            "manifest_dirs: [/file]\nnode_name: file\nhooks: lsm\nwithout_hooks: [mmap]\nbtf: /file\ncri: {{sockets: [/file]}}\n\
             pause: {{digests: ['sha256:{digest}'], binaries: ['{digest}']}}\ndeny: {{static_pod: true, trust: [/file]}}\n\
             record: {{dir: /file, size: 1MiB, age: 1h, free_percent: 1}}\noutputs: [stdout:pretty]\n\
             grouping: {{window: 1s}}\nrate_limit: {{alerts: 1, per: 1s}}\nmetrics: {{listen: '127.0.0.1:1'}}\n\
             audit: {{logs: [/file], state: /file}}\npod_log_dirs: [/file]\n"
        );
        let file = file::parse("c.yaml", &text).unwrap();
        assert_eq!(given(&[], &text), file);
        let other = "cd".repeat(32);
        let (digest, trust) = (format!("sha256:{other}"), format!("/flag={other}"));
        let all = [
            ["--manifest-dir", "/flag"],
            ["--node-name", "flag"],
            ["--audit-log", "/flag"],
            ["--audit-state", "/flag"],
            ["--pod-log-dir", "/flag"],
            ["--hooks", "kprobe"],
            ["--without-hook", "ptrace"],
            ["--btf", "/flag"],
            ["--cri-socket", "/flag"],
            ["--pause-digest", &digest],
            ["--pause-binary", &other],
            ["--deny", "static-pod"],
            ["--trust", &trust],
            ["--record", "/flag"],
            ["--record-size", "2MiB"],
            ["--record-age", "2h"],
            ["--record-free", "2"],
            ["--output", "stdout:json"],
            ["--group-window", "2s"],
            ["--rate-limit", "2"],
            ["--metrics-listen", "[::]:2"],
        ];
        // Each flag changes its own key, and only that.
        let value = |config: &Config| serde_json::to_value(config).unwrap();
        for flag in &all {
            let one = given(flag, &text);
            let differ =
                value(&one).as_object().unwrap().iter().filter(|(key, now)| value(&file)[*key] != **now).count();
            assert_eq!(differ, usize::from(flag[0] != "--deny"), "{flag:?}");
        }
        let every = given(&all.concat(), &text);
        let shown = value(&every).to_string();
        assert!(!shown.contains("file\"") && !shown.contains("1MiB"), "{shown}");
        assert!(!given(&["--no-default-dirs"], &text).default_dirs);
        assert!(given(&[], "{}").confine && !given(&["--no-confine"], "{}").confine);
        let quiet = given(&["--no-cri"], &text);
        assert_eq!((quiet.cri.ask, quiet.cri.sockets.len()), (false, 0));
        assert!(given(&["--cri-socket", "/flag"], "cri: {ask: false}").cri.ask);
    }

    #[test]
    fn flags_may_make_a_file_right_that_is_not_by_itself() {
        assert!(file::interpret("c.yaml", "default_dirs: false", |_| {}).is_err());
        assert_eq!(given(&["--manifest-dir", "/a"], "default_dirs: false").manifest_dirs, [PathBuf::from("/a")]);
    }
}
