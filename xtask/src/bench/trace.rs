//! What traces cost: of made-up streams, and of what this host really does under load. `detector/examples/trace_bench` measures the
//! parts, and the agent itself the whole.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::agent::Agent;
use crate::{cargo, check, setup};

/// Records that are replayed for the speed.
const REPLAYED: u64 = 3_000_000;
/// Bytes of records, as they lie in memory, that are replayed for the memory. A tenth of them is replayed beside it; whether memory
/// grows is said by the second half of the large replay, since tables fill and allocators settle before.
const LARGE: f64 = 10e9;
/// Records a second that are recorded.
const RATE: u64 = 100_000;

/// All figures. Field names are stable.
#[derive(Serialize)]
struct Report {
    made_up: Value,
    capture: Capture,
    /// The same stream, written and read in memory, and as gzip'd JSON.
    stream: Value,
    /// The recorder, at [`RATE`].
    recorder: Value,
    replay: Replay,
    /// A tenth of the large one, and the large one, through standard input.
    small: Replay,
    large: Replay,
}

/// Recorded for real.
#[derive(Serialize)]
struct Capture {
    seconds: f64,
    records: u64,
    bytes: u64,
    /// Not recorded, or lost in the kernel.
    lost: u64,
    recorder_cpu_ms_per_million: f64,
    agent_cpu_ms_per_million: f64,
}

#[derive(Serialize)]
struct Replay {
    records: u64,
    /// What their records take in memory, together.
    record_bytes: f64,
    trace_bytes: Option<u64>,
    seconds: f64,
    cpu_seconds: f64,
    /// Of the CPU's time, all threads together.
    records_per_cpu_second: f64,
    peak_kib: u64,
    /// As it was when half of the time had passed.
    peak_at_half_kib: u64,
}

/// Measures.
///
/// # Errors
/// When something cannot be built or run. A bar that is missed is a figure, not an error.
pub fn bench(quick: bool, json: Option<&Path>) -> anyhow::Result<()> {
    setup::setup(&[])?;
    let detector = crate::build()?;
    check(cargo().args(["build", "--quiet", "--release", "--package", "detector", "--example", "trace_bench"]))?;
    let parts = detector.with_file_name("examples").join("trace_bench");
    let dir = std::env::temp_dir().join(format!("detector-bench-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let measured = measure(quick, &detector, &parts, &dir);
    fs::remove_dir_all(&dir)?;
    let report = measured?;
    print(&report)?;
    if let Some(file) = json {
        fs::write(file, serde_json::to_string_pretty(&report)? + "\n").with_context(|| file.display().to_string())?;
    }
    Ok(())
}

fn measure(quick: bool, detector: &Path, parts: &Path, dir: &Path) -> anyhow::Result<Report> {
    eprintln!("==> made-up streams");
    let file = dir.join("made-up.json");
    let count = if quick { "100000" } else { "1000000" };
    check(Command::new(parts).args(["made-up", count, "--json"]).arg(&file))?;
    let made_up = serde_json::from_str(&fs::read_to_string(&file)?)?;
    let seconds = if quick { 10 } else { 90 };
    eprintln!("==> recording this host for {seconds} s under a load that stands for an hour of a busy node");
    let trace = dir.join("capture.trace");
    let capture = capture(detector, dir, &trace, seconds)?;
    eprintln!("==> the same stream in memory, and as gzip'd JSON");
    let stream: Value = figures(Command::new(parts).arg("measure").arg(&trace))?;
    eprintln!("==> recording {RATE} records a second");
    let out = dir.join("recorded.trace");
    let length = if quick { "3" } else { "20" };
    let recorder = figures(Command::new(parts).arg("record").arg(&trace).arg(&out).args([&RATE.to_string(), length]))?;
    let each = stream["raw_bytes_per_record"].as_f64().context("no figure")?;
    eprintln!("==> replay");
    let repeated = dir.join("repeated.trace");
    check(repeat(parts, &trace, REPLAYED).stdout(File::create(&repeated)?))?;
    let replay = replay(detector, &repeated, REPLAYED, each)?;
    fs::remove_file(&repeated)?;
    let many = (if quick { LARGE / 10.0 } else { LARGE }) / each;
    eprintln!("==> replay of {:.1} GB of records through standard input, and of a tenth of that", many * each / 1e9);
    #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a positive number of records")]
    let [few, many] = [many / 10.0, many].map(|count| count as u64);
    let small = piped(detector, parts, &trace, few, each)?;
    let large = piped(detector, parts, &trace, many, each)?;
    Ok(Report { made_up, capture, stream, recorder, replay, small, large })
}

/// What a program prints as JSON.
fn figures<T: DeserializeOwned>(command: &mut Command) -> anyhow::Result<T> {
    let output = command.stderr(Stdio::inherit()).output()?;
    anyhow::ensure!(output.status.success(), "{} failed: {}", crate::shown(command), output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Records this host while it has something to do.
fn capture(detector: &Path, dir: &Path, trace: &Path, seconds: u64) -> anyhow::Result<Capture> {
    let (manifests, work) = (dir.join("manifests"), dir.join("work"));
    fs::create_dir_all(&manifests)?;
    fs::create_dir_all(&work)?;
    let mut command = Command::new(detector);
    command.arg("record").arg("--output").arg(trace).args(["--no-default-dirs", "--manifest-dir"]).arg(&manifests);
    let agent = Agent::spawn(&mut command)?;
    let before = [agent.thread_cpu_ns(Some("recorder"))?, agent.thread_cpu_ns(None)?];
    let began = Instant::now();
    let mut load = Command::new("bash");
    load.arg("-c").arg(include_str!("load.sh")).arg("load.sh").arg(&work).arg(seconds.to_string()).arg(&manifests);
    check(&mut load)?;
    // What waits is written within a second.
    thread::sleep(Duration::from_millis(1500));
    let after = [agent.thread_cpu_ns(Some("recorder"))?, agent.thread_cpu_ns(None)?];
    let seconds = began.elapsed().as_secs_f64();
    let stats = agent.stop()?;
    let recorded = |name: &str| stats["recorded"][name].as_u64().with_context(|| format!("no {name} in {stats}"));
    let records = recorded("records")?;
    let [recorder, agent] = [0, 1].map(|which| (after[which] - before[which]) as f64 / records as f64);
    Ok(Capture {
        seconds,
        records,
        bytes: recorded("bytes")?,
        lost: recorded("dropped")? + super::lost(&stats),
        // ns a record are ms a million.
        recorder_cpu_ms_per_million: recorder,
        agent_cpu_ms_per_million: agent,
    })
}

fn repeat(parts: &Path, trace: &Path, records: u64) -> Command {
    let mut repeat = Command::new(parts);
    repeat.arg("repeat").arg(trace).arg(records.to_string());
    repeat
}

fn replay(detector: &Path, trace: &Path, records: u64, each: f64) -> anyhow::Result<Replay> {
    let replay = Command::new(detector).arg("replay").arg(trace).stdout(Stdio::null()).spawn()?;
    Ok(Replay { trace_bytes: Some(fs::metadata(trace)?.len()), ..watched(replay, records, each)? })
}

/// Replays a stream that is made meanwhile.
fn piped(detector: &Path, parts: &Path, trace: &Path, records: u64, each: f64) -> anyhow::Result<Replay> {
    let mut made = repeat(parts, trace, records).stdout(Stdio::piped()).spawn()?;
    let input = made.stdout.take().context("no output")?;
    let replay = Command::new(detector).args(["replay", "-"]).stdin(input).stdout(Stdio::null()).spawn()?;
    let replay = watched(replay, records, each)?;
    anyhow::ensure!(made.wait()?.success(), "the stream was not made");
    Ok(replay)
}

/// Waits for a replay; CPU and peak memory are those of this one process.
fn watched(mut replay: Child, records: u64, each: f64) -> anyhow::Result<Replay> {
    let cpu = || -> anyhow::Result<f64> {
        let used = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        Ok([used.user_time(), used.system_time()].iter().map(|t| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6).sum())
    };
    let (began, before) = (Instant::now(), cpu()?);
    let status = PathBuf::from(format!("/proc/{}/status", replay.id()));
    let mut peaks: Vec<(f64, u64)> = Vec::new();
    let ended = loop {
        // It never goes down: the last look before the end says it all but for the last moments.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(peak) = peak.and_then(|peak| peak.trim().split(' ').next()?.parse().ok()) {
            peaks.push((began.elapsed().as_secs_f64(), peak));
        }
        if let Some(ended) = replay.try_wait()? {
            break ended;
        }
        thread::sleep(Duration::from_millis(20));
    };
    anyhow::ensure!(ended.success(), "the replay failed: {ended}");
    let cpu_seconds = cpu()? - before;
    let seconds = began.elapsed().as_secs_f64();
    let peak_by = |by: f64| peaks.iter().take_while(|(at, _)| *at <= by).last().map(|(_, peak)| *peak);
    Ok(Replay {
        records,
        record_bytes: records as f64 * each,
        trace_bytes: None,
        seconds,
        cpu_seconds,
        records_per_cpu_second: records as f64 / cpu_seconds,
        peak_kib: peak_by(seconds).context("the replay was over too soon")?,
        peak_at_half_kib: peak_by(seconds / 2.0).context("the replay was over too soon")?,
    })
}

fn print(report: &Report) -> anyhow::Result<()> {
    let Report { capture, stream, recorder, replay, small, large, .. } = report;
    let of = |value: &Value, name: &str| value[name].as_f64().with_context(|| format!("no {name}"));
    let bytes = capture.bytes as f64 / capture.records as f64;
    println!(
        "\nrecorded                 {} records in {:.0} s of load ({:.0} a second), {} lost",
        capture.records,
        capture.seconds,
        capture.records as f64 / capture.seconds,
        capture.lost
    );
    println!(
        "bytes a record           {bytes:.2}; in memory {:.0}; as gzip'd JSON {:.2}",
        of(stream, "raw_bytes_per_record")?,
        of(stream, "gzip_json_bytes_per_record")?
    );
    println!(
        "CPU a million records    {:.0} ms the recorder's thread, {:.0} ms the whole agent",
        capture.recorder_cpu_ms_per_million, capture.agent_cpu_ms_per_million
    );
    let encode = of(stream, "encode_ns_per_record")?;
    println!(
        "writing in memory        {encode:.0} ns a record: {:.0} MB/s of records, {:.1} MB/s of trace; gzip'd JSON {:.0} ns",
        1e3 * of(stream, "raw_bytes_per_record")? / encode,
        1e3 * of(stream, "trace_bytes_per_record")? / encode,
        of(stream, "gzip_json_encode_ns_per_record")?
    );
    println!("reading in memory        {:.0} ns a record", of(stream, "decode_ns_per_record")?);
    println!(
        "recording fast           {:.0} records a second, {:.2} bytes a record, {} dropped",
        of(recorder, "records_per_second")?,
        of(recorder, "trace_bytes_per_record")?,
        recorder["dropped"]
    );
    for (what, replay) in
        [("replay of a file", replay), ("through stdin, small", small), ("through stdin, large", large)]
    {
        println!(
            "{what:<24} {} records ({:.2} GB in memory) in {:.2} s, {:.2} s of CPU: {:.2} million a CPU second; peak {:.1} MiB",
            replay.records,
            replay.record_bytes / 1e9,
            replay.seconds,
            replay.cpu_seconds,
            replay.records_per_cpu_second / 1e6,
            replay.peak_kib as f64 / 1024.0
        );
    }
    println!();
    let mib = |replay: &Replay| replay.peak_kib as f64 / 1024.0;
    let rate = of(recorder, "records_per_second")?;
    for (what, value, bar) in [
        ("bytes a record, recorded here", bytes, 12.0),
        ("percent of a core, recording", of(recorder, "percent_of_a_core")?, 10.0),
        ("records that were not recorded", capture.lost as f64 + of(recorder, "dropped")?, 0.0),
        ("ns of CPU a record, replaying (3 million a second)", 1e9 / replay.records_per_cpu_second, 1e9 / 3e6),
        ("MiB at most, replaying", mib(large).max(mib(small)).max(mib(replay)), 64.0),
        (
            "memory at the end of the large replay over that at its half",
            large.peak_kib as f64 / large.peak_at_half_kib as f64,
            1.02,
        ),
    ] {
        println!("{:<8} {what}: {value:.3} (bar {bar:.3})", if value <= bar { "ok" } else { "MISSED" });
    }
    let enough = rate >= 0.98 * RATE as f64;
    println!("{:<8} records a second, recording: {rate:.0} (bar {RATE})", if enough { "ok" } else { "MISSED" });
    Ok(())
}
