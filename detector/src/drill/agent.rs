//! An agent of this program beside the drill.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::PATIENCE;

/// How long an agent may take from one line that it says to the next: emulated machines are slow.
const START: Duration = Duration::from_secs(30);
use crate::cli::Source;

/// What an alert said.
pub struct Seen {
    pub after: Duration,
    pub title: String,
    pub severity: String,
    pub pid: Option<u32>,
}

/// An agent of this program, whose alerts are read as they come.
pub struct Agent {
    child: Child,
    alerts: Receiver<(Instant, Value)>,
}

impl Agent {
    pub fn start(source: &Source) -> anyhow::Result<Self> {
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
            match is_ready.recv_timeout(START) {
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

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for an alert that `is_it`.
    pub fn alert(&mut self, since: Instant, is_it: impl Fn(&Value) -> bool) -> Option<Seen> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (read, alert) = self.alerts.recv_timeout(left).ok()?;
            if is_it(&alert) {
                return Some(Seen {
                    after: read.saturating_duration_since(since),
                    title: alert["title"].as_str().unwrap_or_default().to_owned(),
                    severity: alert["severity"].as_str().unwrap_or_default().to_owned(),
                    pid: alert["process"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()),
                });
            }
        }
    }

    pub fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        // An agent that is already gone needs no signal.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
