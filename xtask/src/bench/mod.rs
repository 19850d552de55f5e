//! `cargo xtask bench`: what the detector costs on this kernel, and how fast it is.
//!
//! Machines are noisy, so costs are ratios of interleaved pairs of one run, with their quartiles.

pub mod agent;
mod containers;
pub mod loops;
mod trace;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::ValueEnum as _;
use serde::Serialize;
use serde_json::Value;

use crate::stats::{Spread, percentile};
use agent::Agent;
use loops::Loop;

#[derive(clap::Args)]
pub struct Options {
    /// Write every figure to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Count instructions in a virtual machine instead: they repeat, and every backend is there
    #[arg(long, value_name = "SERIES", num_args = 0..=1, default_missing_value = "6.12")]
    vm: Option<String>,
    /// Measure traces instead: bytes a record, and what writing and reading take
    #[arg(long, conflicts_with = "vm")]
    trace: bool,
    /// Fewer pairs and plants: a look, not a measurement
    #[arg(long)]
    quick: bool,
}

/// All figures. Field names are stable.
#[derive(Serialize)]
struct Report {
    kernel: String,
    cpus: usize,
    /// Loops by name.
    loops: BTreeMap<&'static str, Cost>,
    start_to_attached_ms: Spread,
    rss_kib: Rss,
    latency_ms: BTreeMap<&'static str, Latency>,
    storm: Storm,
    containers: containers::Containers,
}

/// What a loop costs with the detector beside it.
#[derive(Serialize)]
struct Cost {
    /// ns for one round with nothing attached.
    bare_ns: Spread,
    /// Detector over nothing, pair by pair.
    ratio_to_none: Spread,
    /// Detector over an empty `sys_exit` program, pair by pair.
    ratio_to_floor: Spread,
    /// What the detector adds to a round over nothing, in ns.
    added_ns: f64,
    /// CPU that the agent itself used for 100,000 rounds, in ms.
    agent_cpu_ms_per_100k: f64,
    lost: u64,
}

#[derive(Serialize)]
struct Rss {
    at_start: u64,
    after_load: u64,
    /// The rings, which are shared with the kernel.
    ring_buffers: u64,
}

#[derive(Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
    plants: usize,
    missed: usize,
}

#[derive(Serialize)]
struct Storm {
    seconds: f64,
    forks: u64,
    lost: u64,
}

/// Measures everything.
///
/// # Errors
/// When something cannot be run. A bar that is missed is a figure, not an error.
pub fn bench(options: &Options) -> anyhow::Result<()> {
    if let Some(series) = &options.vm {
        return crate::vm::bench(series, options.json.as_deref());
    }
    if options.trace {
        return trace::bench(options.quick, options.json.as_deref());
    }
    let detector = crate::build()?;
    let dir = std::env::temp_dir().join(format!("detector-bench-{}", std::process::id()));
    let manifests = dir.join("manifests");
    fs::create_dir_all(&manifests)?;
    let result = measure(options, &detector, &dir, &manifests);
    fs::remove_dir_all(&dir)?;
    let report = result?;
    print(&report);
    if let Some(file) = &options.json {
        fs::write(file, serde_json::to_string_pretty(&report)? + "\n").with_context(|| file.display().to_string())?;
    }
    Ok(())
}

fn measure(options: &Options, detector: &Path, dir: &Path, manifests: &Path) -> anyhow::Result<Report> {
    let pairs = if options.quick { 5 } else { 15 };
    let mut costs = BTreeMap::new();
    for (name, what, count) in [
        ("open+close", Loop::OpenClose, 200_000),
        ("open for write+close", Loop::OpenWrite, 200_000),
        ("fork+exec", Loop::ForkExec, 300),
    ] {
        eprintln!("==> {name}, {pairs} times with, without and with an empty program");
        costs.insert(name, cost(detector, dir, manifests, what, count, pairs)?);
    }
    eprintln!("==> start");
    let mut starts = Vec::new();
    for _ in 0..7 {
        let agent = Agent::start(detector, manifests)?;
        starts.push(agent.ready_after.as_secs_f64() * 1e3);
        agent.stop()?;
    }
    eprintln!("==> latency");
    let plants = if options.quick { 50 } else { 300 };
    let mut latencies = BTreeMap::new();
    latencies.insert("rename", latency(detector, dir, manifests, plants, true)?);
    latencies.insert("open+write+close", latency(detector, dir, manifests, plants, false)?);
    eprintln!("==> storm");
    let (storm, rss) = storm(detector, dir, manifests, if options.quick { 2 } else { 10 })?;
    eprintln!("==> containers");
    let containers = containers::measure(detector, dir, manifests)?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    Ok(Report {
        kernel,
        cpus: thread::available_parallelism()?.get(),
        loops: costs,
        start_to_attached_ms: Spread::of(starts).context("no starts")?,
        rss_kib: rss,
        latency_ms: latencies,
        storm,
        containers,
    })
}

fn cost(detector: &Path, dir: &Path, manifests: &Path, what: Loop, count: u64, pairs: usize) -> anyhow::Result<Cost> {
    let (mut bare, mut to_none, mut to_floor) = (Vec::new(), Vec::new(), Vec::new());
    let (mut cpu, mut rounds, mut lost_) = (0, 0, 0);
    for pair in 0..pairs {
        let mut times = [0.0; 3];
        // Each order comes up, so that a drift of the machine falls on all three alike.
        for turn in 0..3 {
            let which = (pair + turn) % 3;
            times[which] = match which {
                0 => timed(what, count, dir)?,
                1 => {
                    let floor = Agent::floor(detector)?;
                    let time = timed(what, count, dir)?;
                    floor.stop()?;
                    time
                }
                _ => {
                    let agent = Agent::start(detector, manifests)?;
                    let before = agent.cpu_ns()?;
                    let time = timed(what, count, dir)?;
                    cpu += agent.cpu_ns()?.saturating_sub(before);
                    rounds += count;
                    lost_ += lost(&agent.stop()?);
                    time
                }
            };
        }
        let [none, floor, with] = times;
        bare.push(none / count as f64);
        to_none.push(with / none);
        to_floor.push(with / floor);
    }
    let bare_ns = Spread::of(bare).context("no samples")?;
    let ratio_to_none = Spread::of(to_none).context("no samples")?;
    Ok(Cost {
        bare_ns,
        ratio_to_none,
        ratio_to_floor: Spread::of(to_floor).context("no samples")?,
        added_ns: bare_ns.median * (ratio_to_none.median - 1.0),
        agent_cpu_ms_per_100k: cpu as f64 / 1e6 * 100_000.0 / rounds.max(1) as f64,
        lost: lost_,
    })
}

/// Runs a loop in a process of its own; ns that it took.
fn timed(what: Loop, count: u64, dir: &Path) -> anyhow::Result<f64> {
    Ok(start(what, count, dir)?
        .wait_with_output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())?
        .parse()?)
}

fn start(what: Loop, count: u64, dir: &Path) -> anyhow::Result<std::process::Child> {
    let name = what.to_possible_value().context("every loop has a name")?;
    Command::new(std::env::current_exe()?)
        .args(["loop", name.get_name(), &count.to_string()])
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a loop")
}

/// From the return of the last system call of an act to the moment that its alert is read.
fn latency(detector: &Path, dir: &Path, manifests: &Path, plants: usize, rename: bool) -> anyhow::Result<Latency> {
    let mut agent = Agent::start(detector, manifests)?;
    let stdout = agent.stdout()?;
    let (send, alerts) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if send.send((Instant::now(), line)).is_err() {
                break;
            }
        }
    });
    let (mut times, mut missed) = (Vec::new(), 0);
    for n in 0..plants {
        let path = manifests.join(format!("bench-{n}.yaml"));
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: bench-{n}\nspec:\n  containers:\n  - name: a\n    image: b\n"
        );
        let acted = if rename {
            let from = dir.join("ready-made");
            fs::write(&from, text)?;
            fs::rename(&from, &path)?;
            Instant::now()
        } else {
            fs::write(&path, text)?;
            Instant::now()
        };
        match seen(&alerts, &path, "added") {
            Some(read) => times.push(read.saturating_duration_since(acted).as_secs_f64() * 1e3),
            None => missed += 1,
        }
        fs::remove_file(&path)?;
        seen(&alerts, &path, "removed");
    }
    agent.stop()?;
    times.sort_by(f64::total_cmp);
    let at = |percent| percentile(&times, percent).unwrap_or(f64::NAN);
    Ok(Latency { p50: at(50.0), p99: at(99.0), max: at(100.0), plants, missed })
}

fn seen(alerts: &mpsc::Receiver<(Instant, String)>, path: &Path, change: &str) -> Option<Instant> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let (read, line) = alerts.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
        let alert: Value = serde_json::from_str(&line).ok()?;
        if alert["file"]["change"] == change && alert["file"]["path"].as_str().map(Path::new) == Some(path) {
            return Some(read);
        }
    }
}

/// Forks and execs on every CPU at once.
fn storm(detector: &Path, dir: &Path, manifests: &Path, seconds: u64) -> anyhow::Result<(Storm, Rss)> {
    let agent = Agent::start(detector, manifests)?;
    let (at_start, _) = agent.rss_kib()?;
    let started = Instant::now();
    let workers: Vec<_> = (0..2 * thread::available_parallelism()?.get())
        .map(|_| start(Loop::Storm, seconds * 1000, dir))
        .collect::<anyhow::Result<_>>()?;
    let mut forks = 0;
    for worker in workers {
        forks += String::from_utf8_lossy(&worker.wait_with_output()?.stdout).trim().parse::<u64>()?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let (after_load, ring_buffers) = agent.rss_kib()?;
    let lost = lost(&agent.stop()?);
    Ok((Storm { seconds, forks, lost }, Rss { at_start, after_load, ring_buffers }))
}

fn lost(stats: &Value) -> u64 {
    stats["lost"].as_object().into_iter().flatten().filter_map(|(_, lost)| lost.as_u64()).sum()
}

fn print(report: &Report) {
    println!(
        "Kernel {}, {} CPUs. Ratios are medians of interleaved pairs, quartiles in brackets.\n",
        report.kernel, report.cpus
    );
    println!(
        "{:<22} {:>10} {:>24} {:>24} {:>9} {:>15} {:>5}",
        "loop", "bare ns", "with / nothing", "with / empty program", "added ns", "agent ms/100k", "lost"
    );
    let spread = |spread: &Spread| format!("{:.3} [{:.3}-{:.3}]", spread.median, spread.low, spread.high);
    for (name, cost) in &report.loops {
        println!(
            "{name:<22} {:>10.0} {:>24} {:>24} {:>9.0} {:>15.1} {:>5}",
            cost.bare_ns.median,
            spread(&cost.ratio_to_none),
            spread(&cost.ratio_to_floor),
            cost.added_ns,
            cost.agent_cpu_ms_per_100k,
            cost.lost
        );
    }
    println!(
        "\n{:<44} {:>8} {:>8} {:>8} {:>7}",
        "latency, last system call to alert, ms", "p50", "p99", "max", "missed"
    );
    for (name, latency) in &report.latency_ms {
        println!("  {name:<42} {:>8.2} {:>8.2} {:>8.2} {:>7}", latency.p50, latency.p99, latency.max, latency.missed);
    }
    println!(
        "\nstart to attached        {:.0} ms [{:.0}-{:.0}]",
        report.start_to_attached_ms.median, report.start_to_attached_ms.low, report.start_to_attached_ms.high
    );
    println!(
        "resident memory          {:.1} MiB at start, {:.1} MiB after the storm; ring buffers {:.1} MiB more",
        report.rss_kib.at_start as f64 / 1024.0,
        report.rss_kib.after_load as f64 / 1024.0,
        report.rss_kib.ring_buffers as f64 / 1024.0
    );
    println!(
        "containers               {} of {} known, {:.0} us each (at most {:.0}); {:.1} MiB resident with all of them",
        report.containers.known,
        report.containers.count,
        report.containers.mean_us,
        report.containers.max_us,
        report.containers.rss_kib as f64 / 1024.0
    );
    println!(
        "fork+exec storm          {} in {:.1} s on all CPUs, {} events lost\n",
        report.storm.forks, report.storm.seconds, report.storm.lost
    );
    let ratio =
        |name: &str, pick: fn(&Cost) -> &Spread| report.loops.get(name).map_or(f64::NAN, |cost| pick(cost).median);
    let p99 = report.latency_ms.values().map(|latency| latency.p99).fold(0.0, f64::max);
    let missed: usize = report.latency_ms.values().map(|latency| latency.missed).sum();
    for (what, value, bar) in [
        ("open+close over an empty program", ratio("open+close", |cost| &cost.ratio_to_floor), 1.15),
        ("fork+exec over nothing", ratio("fork+exec", |cost| &cost.ratio_to_none), 1.03),
        ("start to attached, ms", report.start_to_attached_ms.median, 300.0),
        ("resident memory, MiB", report.rss_kib.after_load as f64 / 1024.0, 16.0),
        ("latency p99, ms", p99, 10.0),
        ("events lost in the storm", report.storm.lost as f64, 0.0),
        ("looking up a new container, us", report.containers.mean_us, 30.0),
        ("memory with 500 containers, MiB", report.containers.rss_kib as f64 / 1024.0, 40.0),
        ("plants missed", missed as f64, 0.0),
    ] {
        println!("{:<8} {what}: {value:.3} (bar {bar})", if value <= bar { "ok" } else { "MISSED" });
    }
}
