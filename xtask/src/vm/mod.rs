//! `cargo xtask vm`: the evasion suite on real kernels, each in a virtual machine of its own.
//!
//! Everything is emulated (TCG): it works where KVM does not, and a kernel boots in about five seconds.

mod cost;
mod coverage;
mod debian;
mod engines;
mod golden;
mod kernels;
mod outcome;
mod systemd;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::Value;

use crate::{check, root};
use engines::engines;
use kernels::{Kernel, Wanted};
use outcome::{CaseResult, Outcome, Verified};
use systemd::systemd;

pub use golden::{Options as Golden, golden};
pub use kernels::Arch;

/// Every series that the agent is proven on.
const ALL: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7.3"];
/// Of which on arm64: 6.1 lets neither fentry nor LSM programs attach there.
const ALL_ARM64: [&str; 1] = ["6.12"];
/// The oldest, a middle one and the newest: what `cargo xtask test` runs.
const SOME: [&str; 3] = ["5.10", "6.12", "7.3"];
/// What is run in the machines, and starts.
pub const EXAMPLES: [&str; 5] = ["act", "evasion", "entries", "reach", "techniques"];
/// The file system of the machines' disk, ext4.
const DISK: &str = "disk.ext4";
/// Machines that run at once: a suite waits for half of its time.
const AT_ONCE: usize = 3;
/// How often a machine is booted that says nothing.
const BOOTS: u32 = 3;
/// A machine that takes so long is stuck.
const LIMIT: Duration = Duration::from_secs(1800);

#[derive(clap::Args)]
pub struct Options {
    /// Kernel series, such as 6.12; may be given several times [default: the oldest, a middle one and the newest]
    #[arg(long, value_name = "SERIES")]
    kernel: Vec<String>,
    /// Every series: 5.10, 6.1, 6.12, 6.18, 7.3, and 6.12 for arm64
    #[arg(long, conflicts_with_all = ["kernel", "arch"])]
    all: bool,
    /// What kind of machine --kernel is for
    #[arg(long, value_name = "ARCH", default_value = "amd64")]
    arch: Arch,
    /// A shell in the machine instead of the suite; `exit` ends it
    #[arg(long)]
    shell: bool,
    /// The Debian package under Debian 12's systemd instead of the suite
    #[arg(long, conflicts_with_all = ["kernel", "all", "shell", "json", "coverage", "from"])]
    systemd: bool,
    /// Docker, podman and containerd of three Debian releases instead of the suite
    #[arg(long, conflicts_with_all = ["kernel", "all", "shell", "json", "coverage", "from", "systemd"])]
    engines: bool,
    /// Write the matrix to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the matrix to FILE as a page of the documentation
    #[arg(long, value_name = "FILE")]
    coverage: Option<PathBuf>,
    /// Take the results from FILE, which --json wrote, instead of running anything
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "all", "shell", "json"])]
    from: Option<PathBuf>,
}

impl Options {
    /// What `cargo xtask test` runs.
    pub fn some() -> Self {
        Self {
            kernel: Vec::new(),
            all: false,
            arch: Arch::Amd64,
            shell: false,
            systemd: false,
            engines: false,
            json: None,
            coverage: None,
            from: None,
        }
    }
}

/// Runs what the command line asks for.
///
/// # Errors
/// When a machine cannot be set up, or a case is missed on any kernel.
pub fn vm(options: &Options) -> anyhow::Result<()> {
    if options.systemd {
        return systemd();
    }
    if options.engines {
        return engines();
    }
    let outcomes = match &options.from {
        Some(file) => {
            let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            serde_json::from_str(&text).with_context(|| format!("{}: not what --json writes", file.display()))?
        }
        None => run_all(options)?,
    };
    if options.shell {
        return Ok(());
    }
    outcome::print(&outcomes);
    if let Some(file) = &options.json {
        fs::write(file, serde_json::to_string_pretty(&outcomes)? + "\n").with_context(|| file.display().to_string())?;
    }
    if let Some(file) = &options.coverage {
        fs::write(file, coverage::page(&outcomes)).with_context(|| file.display().to_string())?;
    }
    outcome::verdict(&outcomes)
}

/// Boots every kernel that is asked for.
fn run_all(options: &Options) -> anyhow::Result<Vec<Outcome>> {
    let of = |series: &[&str], arch| -> Vec<Wanted> {
        series.iter().map(|series| Wanted { series: (*series).to_owned(), arch }).collect()
    };
    let wanted = match (options.all, options.kernel.as_slice()) {
        (true, _) => [of(&ALL, Arch::Amd64), of(&ALL_ARM64, Arch::Arm64)].concat(),
        (false, []) if options.shell => of(&SOME[1..2], options.arch),
        (false, []) if options.arch == Arch::Arm64 => of(&ALL_ARM64, options.arch),
        (false, []) => of(&SOME, options.arch),
        (false, some) => of(&some.iter().map(String::as_str).collect::<Vec<_>>(), options.arch),
    };
    let (kernels, place) = prepare(&wanted)?;
    if options.shell {
        let kernel = kernels.first().context("no kernel")?;
        check(machine(kernel, &place, "detector.shell").args(["-smp", "2", "-serial", "mon:stdio"]))?;
        return Ok(Vec::new());
    }
    let next = AtomicUsize::new(0);
    let some = || -> Vec<(usize, anyhow::Result<Outcome>)> {
        let mut outcomes = Vec::new();
        while let Some((number, kernel)) = kernels.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed)) {
            eprintln!("==> kernel {}", kernel.version);
            let outcome = run(kernel, &place);
            if let Ok(outcome) = &outcome {
                eprint!("{}", outcome::summary(outcome));
            }
            outcomes.push((number, outcome));
        }
        outcomes
    };
    let mut outcomes = std::thread::scope(|scope| -> anyhow::Result<Vec<_>> {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(some)).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow::anyhow!("a machine's thread panicked"))?);
        }
        Ok(all)
    })?;
    outcomes.sort_by_key(|(number, _)| *number);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Where kernels, disks and logs are.
fn place() -> PathBuf {
    root().join("target/vm")
}

/// What booting needs: kernels, and a place with the initial file system of each kind of machine, a disk, and room for logs.
fn prepare(wanted: &[Wanted]) -> anyhow::Result<(Vec<Kernel>, PathBuf)> {
    let place = place();
    let mut arches: Vec<_> = wanted.iter().map(|wanted| wanted.arch).collect();
    arches.sort();
    arches.dedup();
    kernels::tools(&arches)?;
    let kernels = kernels::fetch(wanted, &place.join("kernels"))?;
    for arch in arches {
        initrd(arch, &place)?;
    }
    for kernel in &kernels {
        with_modules(kernel, &place)?;
    }
    let disk = place.join(DISK);
    // No machine writes to it: see `machine`.
    if !disk.exists() {
        let fresh = place.join(format!("{DISK}.new"));
        fs::File::create(&fresh)?.set_len(512 << 20)?;
        check(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&fresh))?;
        fs::rename(&fresh, &disk)?;
    }
    Ok((kernels, place))
}

/// Fetches and builds what `cargo xtask test` boots, unless it is there.
///
/// # Errors
/// When something cannot be had here.
pub fn prepare_some() -> anyhow::Result<()> {
    prepare(&SOME.map(|series| Wanted { series: series.to_owned(), arch: Arch::Amd64 })).map(|_| ())
}

/// Measures instructions on one kernel: `cargo xtask bench --vm`.
///
/// # Errors
/// When the machine cannot be set up or comes to no verdict.
pub fn bench(series: &str, json: Option<&Path>) -> anyhow::Result<()> {
    let (kernels, place) = prepare(&[Wanted { series: series.to_owned(), arch: Arch::Amd64 }])?;
    let kernel = kernels.first().context("no kernel")?;
    cost::measure(kernel, &place, json)
}

/// What the agent says on a terminal of what is done beside it: `scene` of the machine's first process.
///
/// # Errors
/// When the machine cannot be set up or does not come to its end.
pub fn scene() -> anyhow::Result<String> {
    let (kernels, place) = prepare(&[Wanted { series: SOME[1].to_owned(), arch: Arch::Amd64 }])?;
    let mut said = String::new();
    let verdict = lines(kernels.first().context("no kernel")?, &place, "detector.scene", &["-smp", "2"], |line| {
        said.push_str(line);
        said.push('\n');
        Ok(())
    })?;
    anyhow::ensure!(verdict == Some(0), "the machine did not come to the end of the scene:\n{said}");
    Ok(said)
}

/// The statically linked agent and suite, as an initial file system in `place`.
fn initrd(arch: Arch, place: &Path) -> anyhow::Result<()> {
    let built = crate::build_static(arch)?;
    let tree = place.join("root");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    for dir in ["bin", "dev", "proc", "sys", "tmp", "disk", "usr", "var/empty", "suite/examples", "etc"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    fs::copy(kernels::busybox(arch, &place.join("kernels"))?, tree.join("bin/busybox"))?;
    for program in ["detector", "xtask"] {
        fs::copy(built.join(program), tree.join("suite").join(program))?;
    }
    for program in EXAMPLES {
        fs::copy(built.join("examples").join(program), tree.join("suite/examples").join(program))?;
    }
    write_executable(&tree.join("init"), include_str!("init.sh"))?;
    pack(&tree, fs::File::create(place.join(format!("initrd-{}", arch.name())))?)
}

/// The initial file system of a kernel: that of its kind of machine, and the kernel's modules behind it.
fn with_modules(kernel: &Kernel, place: &Path) -> anyhow::Result<()> {
    let tree = place.join("modules");
    fs::create_dir_all(&tree)?;
    fs::copy(&kernel.overlay, tree.join("overlay.ko"))?;
    let all = place.join(initrd_name(kernel));
    fs::copy(place.join(format!("initrd-{}", kernel.arch.name())), &all)?;
    pack(&tree, fs::File::options().append(true).open(all)?)
}

/// Appends a directory as a part of an initial file system.
fn pack(tree: &Path, to: fs::File) -> anyhow::Result<()> {
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | cpio --quiet -o -H newc"]).current_dir(tree).stdout(to);
    check(&mut pack).context("packing the initial file system")
}

fn initrd_name(kernel: &Kernel) -> String {
    format!("initrd-of-{}", kernel.series)
}

fn write_executable(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A machine that boots a kernel and ends when it powers off. Its disk is as new each time.
fn machine(kernel: &Kernel, place: &Path, arguments: &str) -> Command {
    let mut qemu = kernel.arch.machine();
    qemu.args(["-accel", "tcg", "-m", "1024", "-nodefaults", "-display", "none", "-no-reboot"]);
    // The cloud kernels have the driver of NVMe built in; that of virtio disks is a module.
    let disk = format!("if=none,id=disk,format=raw,snapshot=on,file={}", place.join(DISK).display());
    qemu.args(["-drive", &disk, "-device", "nvme,drive=disk,serial=1"]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(place.join(initrd_name(kernel)));
    let (log, results) = kernel.arch.serial_lines();
    let wanted = format!("detector.results=/dev/{results} {arguments}");
    qemu.arg("-append").arg(format!("console={log} quiet panic=-1 lsm=lockdown,yama,bpf {wanted}"));
    qemu
}

/// Boots a machine, and passes on what it says line by line. Yields what its verdict is; `None` when it came to none.
fn lines(
    kernel: &Kernel,
    place: &Path,
    arguments: &str,
    options: &[&str],
    each: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Option<u32>> {
    let mut qemu = machine(kernel, place, arguments);
    qemu.args(options);
    listen(kernel, qemu, &log(kernel, place), each)
}

/// A machine's console.
fn log(kernel: &Kernel, place: &Path) -> PathBuf {
    place.join(format!("{}.log", kernel.series))
}

/// Starts a machine whose console goes to `log`; the rest as [`lines`]. QEMU's emulation of two processors lets a kernel crash while it
/// changes its own code, now and then: one that says nothing is booted again.
fn listen(
    kernel: &Kernel,
    mut qemu: Command,
    log: &Path,
    mut each: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Option<u32>> {
    qemu.arg("-serial").arg(format!("file:{}", log.display())).args(kernel.arch.results()).stdin(Stdio::null());
    for boot in 1..=BOOTS {
        let mut child = qemu.stdout(Stdio::piped()).spawn().context("starting QEMU")?;
        let out = child.stdout.take().context("no output")?;
        let deadline = watchdog(child);
        let (mut verdict, mut silent) = (None, true);
        for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
            silent = false;
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if let Some(code) = line.strip_prefix("verdict ") {
                verdict = code.parse().ok();
            } else {
                each(&line)?;
            }
        }
        deadline.end()?;
        if verdict.is_some() {
            return Ok(verdict);
        }
        eprintln!("    {}: no verdict; the machine's console is in {}", kernel.series, log.display());
        if !silent {
            break;
        }
        eprintln!("    {}: it said nothing, boot {boot} of {BOOTS}", kernel.series);
    }
    Ok(None)
}

/// Boots, runs the suite, and reads what it says.
fn run(kernel: &Kernel, place: &Path) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let mut outcome = Outcome {
        series: kernel.series.clone(),
        version: kernel.version.clone(),
        seconds: 0.0,
        error: None,
        cases: Vec::new(),
        verified: Vec::new(),
        said: Vec::new(),
    };
    let (mut backend, mut said) = (String::new(), Vec::new());
    let mut beside = |line: &str, backend: &str| {
        eprintln!("    {}: {line}", kernel.series);
        said.push(format!("{backend}: {line}"));
    };
    let verdict = lines(kernel, place, "detector.suite", &["-smp", "2"], |line| {
        // What an agent says beside it may not be at its line's end yet.
        let (other, line) = line.split_at(line.find("{\"case\":").unwrap_or(0));
        if !other.is_empty() {
            beside(other, &backend);
        }
        if line.is_empty() {
            return Ok(());
        }
        if let Some(name) = line.strip_prefix("backend ") {
            name.clone_into(&mut backend);
        } else if let Some(verified) = line.strip_prefix("verified ") {
            let (count, hook) = verified.split_once(' ').context("a count without a hook")?;
            let count = count.parse().with_context(|| format!("a count: {line}"))?;
            outcome.verified.push(Verified { backend: backend.clone(), hook: hook.to_owned(), count });
        } else if let Ok(Value::Object(said)) = serde_json::from_str::<Value>(line) {
            let text = |name: &str| said.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let number = |name: &str| said.get(name).and_then(Value::as_u64).unwrap_or_default();
            outcome.cases.push(CaseResult {
                backend: backend.clone(),
                case: number("case"),
                name: text("name"),
                result: text("result"),
                ms: number("ms"),
            });
        } else {
            beside(line, &backend);
        }
        Ok(())
    })?;
    if verdict.is_none() {
        let log = fs::read(log(kernel, place)).unwrap_or_default();
        said.extend(String::from_utf8_lossy(&log).lines().map(|line| format!("console: {line}")));
    }
    outcome.said = said;
    outcome.error = match verdict {
        Some(0) => None,
        Some(status) => Some(format!("a suite ended with status {status}")),
        None => Some("the machine came to no verdict".to_owned()),
    };
    outcome.seconds = started.elapsed().as_secs_f64();
    Ok(outcome)
}

/// Ends a machine that hangs.
struct Watchdog {
    done: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<std::io::Result<()>>,
}

fn watchdog(mut child: Child) -> Watchdog {
    let (done, ended) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        if ended.recv_timeout(LIMIT).is_err() {
            child.kill()?;
        }
        child.wait().map(|_| ())
    });
    Watchdog { done, thread }
}

impl Watchdog {
    fn end(self) -> anyhow::Result<()> {
        // It is gone when the machine was stuck.
        let _ = self.done.send(());
        self.thread.join().map_err(|_| anyhow::anyhow!("the watchdog panicked"))??;
        Ok(())
    }
}
