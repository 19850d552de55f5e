//! `detector drill`: a technique, performed harmlessly, and whether the alert came.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use crate::{
    cli::Source,
    escape::escape,
    record::{Body, DirState},
    source::{manifest::View, proc},
};

/// How long the agent may take to start, and an alert to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// What can be drilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Technique {
    /// Plant a manifest that kubelet rejects, and take it away again
    StaticPod,
}

/// Performs the technique beside an agent of its own, and says what came of it on standard output.
///
/// # Errors
/// When there is nowhere to perform it, or the agent does not start.
pub fn drill(technique: Technique, source: &Source) -> anyhow::Result<ExitCode> {
    match technique {
        Technique::StaticPod => static_pod(source),
    }
}

fn static_pod(source: &Source) -> anyhow::Result<ExitCode> {
    let dir = directory(source)?;
    let name = format!("detector-drill-{}.yaml", std::process::id());
    let path = dir.join(&name);
    // No kubelet knows this kind: it logs an error and runs nothing.
    let content = format!("apiVersion: detector.drill/v1\nkind: Drill\nmetadata:\n  name: {name}\n");
    let mut agent = Agent::start(source)?;
    println!("drill: planting {} (a manifest that kubelet rejects)", escape(&path.display().to_string()));
    let planted = plant(&path, &content)?;
    let added = agent.alert(&path, "added", planted);
    let removed_at = Instant::now();
    fs::remove_file(&path).with_context(|| format!("removing {}: remove it by hand", path.display()))?;
    let removed = agent.alert(&path, "removed", removed_at);
    println!("drill: the manifest is removed again");
    let fine = say("planting", added) & say("removal", removed);
    agent.stop();
    println!(
        "drill: {}",
        if fine {
            "PASSED"
        } else {
            "FAILED: an alert did not come, or did not name this process; see `detector doctor`"
        }
    );
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn say(act: &str, seen: Option<Seen>) -> bool {
    match seen {
        Some(seen) => {
            println!(
                "drill: {act} seen after {:.1} ms: {} [{}], attributed to {}",
                seen.after.as_secs_f64() * 1e3,
                escape(&seen.title),
                seen.severity,
                if seen.pid == Some(std::process::id()) { "this process" } else { "nobody or somebody else" },
            );
            seen.pid == Some(std::process::id())
        }
        None => {
            println!("drill: no alert for the {act} within {} s", PATIENCE.as_secs());
            false
        }
    }
}

/// Writes the manifest; returns when the last system call did.
fn plant(path: &Path, content: &str) -> anyhow::Result<Instant> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("creating {}", path.display()))?;
    file.write_all(content.as_bytes()).with_context(|| format!("writing {}", path.display()))?;
    Ok(Instant::now())
}

/// The first directory that is watched and there, as this process reaches it.
fn directory(source: &Source) -> anyhow::Result<PathBuf> {
    let batch = View::new(source.options().discovery).start(proc::now());
    let dirs = batch.bodies.into_iter().find_map(|body| match body {
        Body::Watched(watched) => Some(watched.dirs),
        _ => None,
    });
    let dirs = dirs.unwrap_or_default();
    let Some(dir) = dirs.iter().find(|dir| matches!(dir.state, DirState::Present(_))) else {
        let missing: Vec<_> = dirs.iter().map(|dir| escape(&dir.path)).collect();
        bail!(
            "no watched directory exists ({}). Name one: detector drill static-pod --manifest-dir DIR",
            if missing.is_empty() { "none is watched".to_owned() } else { missing.join(", ") }
        );
    };
    Ok(match dir.kubelet_pid {
        Some(pid) => Path::new(&format!("/proc/{pid}/root")).join(dir.path.trim_start_matches('/')),
        None => PathBuf::from(&dir.path),
    })
}

/// What an alert said.
struct Seen {
    after: Duration,
    title: String,
    severity: String,
    pid: Option<u32>,
}

/// An agent of this program, whose alerts are read as they come.
struct Agent {
    child: Child,
    alerts: Receiver<(Instant, serde_json::Value)>,
}

impl Agent {
    fn start(source: &Source) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut child = Command::new(program)
            .arg("run")
            .args(source.arguments())
            .args(["--output", "stdout:json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting the agent")?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            bail!("the agent has no output");
        };
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // Nobody listens any more once the agent was ready.
                let _ = ready.send(line);
            }
        });
        let (send, alerts) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let read = Instant::now();
                if let Ok(alert) = serde_json::from_str(&line)
                    && send.send((read, alert)).is_err()
                {
                    break;
                }
            }
        });
        let mut said = Vec::new();
        loop {
            match is_ready.recv_timeout(PATIENCE) {
                Ok(line) if line.starts_with("ready:") => return Ok(Self { child, alerts }),
                Ok(line) => said.push(line),
                Err(_) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    bail!("the agent did not start: {}", said.join("; "));
                }
            }
        }
    }

    /// Waits for the alert about `path` with this change.
    fn alert(&mut self, path: &Path, change: &str, since: Instant) -> Option<Seen> {
        let name = path.file_name()?.to_str()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (read, alert) = self.alerts.recv_timeout(left).ok()?;
            let file = &alert["file"];
            if file["change"] == change && file["path"].as_str().is_some_and(|path| path.ends_with(name)) {
                return Some(Seen {
                    after: read.saturating_duration_since(since),
                    title: alert["title"].as_str().unwrap_or_default().to_owned(),
                    severity: alert["severity"].as_str().unwrap_or_default().to_owned(),
                    pid: alert["process"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()),
                });
            }
        }
    }

    fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        // An agent that is already gone needs no signal.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
