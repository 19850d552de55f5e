//! Every way into a container past its runtime, done for real beside one agent.
//!
//! `entries [ARGUMENT OF detector run]...` prints a line of JSON for each way, like the evasion suite. The container is made of
//! namespaces, a cgroup and a bundle; no container runtime is needed.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use detector::drill::container::Container;
use serde_json::{Value, json};

/// How long an alert may take before it is missed; emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long silence is listened to: longer than a process may be on its way in.
const SILENCE: Duration = Duration::from_secs(3);
/// The number of these cases in the table of results, behind those of the evasion suite.
const NUMBER: u32 = 26;

/// Name, how it enters, whether it must be told.
const WAYS: [(&str, &[&str], bool); 8] = [
    ("all namespaces", &[], true),
    ("mount namespace", &["--only", "mnt"], true),
    ("pid namespace", &["--only", "pid"], true),
    ("net namespace", &["--only", "net"], true),
    ("ipc namespace", &["--only", "ipc"], true),
    ("uts namespace", &["--only", "uts"], true),
    ("setns without exec", &["--only", "pid,mnt", "--no-exec"], true),
    ("net namespace without exec", &["--only", "net", "--no-exec"], false),
];

fn main() -> anyhow::Result<ExitCode> {
    Ok(ExitCode::from(u8::from(!run()?)))
}

fn run() -> anyhow::Result<bool> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let examples = std::env::current_exe()?.parent().context("no directory")?.to_owned();
    let detector = examples.join("../detector").canonicalize().context("no agent: cargo build --bins --examples")?;
    let watched = std::env::temp_dir().join(format!("entries-{}", std::process::id()));
    fs::create_dir(&watched)?;
    let done = beside(&detector, &args, &watched);
    fs::remove_dir(&watched)?;
    done
}

fn beside(detector: &Path, args: &[OsString], watched: &Path) -> anyhow::Result<bool> {
    let mut agent = Command::new(detector)
        .args(["run", "--output", "stdout:json", "--group-window", "0s", "--rate-limit", "0"])
        .args(["--no-default-dirs", "--manifest-dir"])
        .arg(watched)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (stdout, stderr) = (agent.stdout.take().context("no output")?, agent.stderr.take().context("no output")?);
    let (send, alerts) = mpsc::channel::<Value>();
    thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let alerts = lines.filter_map(|line| serde_json::from_str(&line).ok());
        alerts
            .filter(|alert: &Value| alert["technique"]["id"] == "container-exec")
            .for_each(|alert| drop(send.send(alert)));
    });
    let mut errors = BufReader::new(stderr).lines().map_while(Result::ok);
    anyhow::ensure!(errors.any(|line| line.starts_with("ready:")), "the agent did not start");
    thread::spawn(move || errors.for_each(|line| eprintln!("{line}")));

    let container = Container::start(
        detector,
        &json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": "entered",
            "io.kubernetes.cri.sandbox-namespace": "detector",
            "io.kubernetes.cri.sandbox-name": "entries",
        }),
    )?;
    let mut fine = true;
    let mut judge = |name: &str, pid: u32, told: bool| {
        let started = Instant::now();
        let alert = alerts.recv_timeout(if told { PATIENCE } else { SILENCE }).ok();
        let result = match &alert {
            None if told => "missed",
            None => "silent",
            Some(_) if !told => "alerts",
            Some(alert) if alert["process"]["pid"] != pid => "misattributed",
            Some(alert) if alert["pod"]["name"] != "entries" || alert["container"]["id"] != container.id.as_str() => {
                "another container"
            }
            Some(_) => "detected",
        };
        let good = if told { "detected" } else { "silent" };
        if result != good {
            eprintln!("{name}: by {pid}, alert {}", alert.unwrap_or(Value::Null));
        }
        fine &= result == good;
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        println!("{}", json!({"case": NUMBER, "name": name, "result": result, "ms": ms}));
    };
    for (name, how, told) in WAYS {
        let pid = container.enter(how)?;
        judge(name, pid, told);
    }
    let mut moved = Command::new(detector).args(["drill-step", "wait"]).stdin(Stdio::piped()).spawn()?;
    fs::write(container.cgroup.join("cgroup.procs"), moved.id().to_string())?;
    judge("moved into the cgroup", moved.id(), true);
    drop(moved.stdin.take());
    moved.wait()?;
    // What it started, forked and executed itself, and each entry once: nothing is left to tell.
    judge("the container's own programs", 0, false);
    drop(container);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    anyhow::ensure!(agent.wait()?.success(), "the agent failed");
    Ok(fine)
}
