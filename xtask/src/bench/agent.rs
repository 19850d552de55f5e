//! The detector as the benchmark runs it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

pub struct Agent {
    child: Child,
    said: Receiver<String>,
    /// From the start of the process to the line that says it is ready.
    pub ready_after: Duration,
}

impl Agent {
    /// Starts the agent on a manifest directory.
    pub fn start(detector: &Path, manifests: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(detector);
        command.args(["run", "--no-default-dirs", "--output", "stdout:json"]);
        // Each act is timed by its own alert.
        command.args(["--group-window", "0s", "--rate-limit", "0", "--manifest-dir"]).arg(manifests);
        Self::spawn(&mut command)
    }

    /// Starts the empty program.
    pub fn floor(detector: &Path) -> anyhow::Result<Self> {
        Self::spawn(Command::new(detector).arg("floor"))
    }

    /// Starts it as the command says, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready, with what it said.
    pub fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", crate::shown(command)))?;
        let stderr = child.stderr.take().context("the agent has no standard error")?;
        let (send, said) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut lines = Vec::new();
        loop {
            match said.recv_timeout(PATIENCE) {
                Ok(line) if line.starts_with("ready:") => {
                    return Ok(Self { child, said, ready_after: started.elapsed() });
                }
                Ok(line) => lines.push(line),
                Err(_) => bail!("the agent did not start: {}", lines.join("; ")),
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stdout(&mut self) -> anyhow::Result<ChildStdout> {
        self.child.stdout.take().context("the agent's output was taken before")
    }

    /// CPU time that the agent used so far, in ns.
    pub fn cpu_ns(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/schedstat", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        text.split_whitespace().next().and_then(|ns| ns.parse().ok()).with_context(|| format!("{path}: {text:?}"))
    }

    /// CPU time that threads of this name used so far, in ns; without a name all that live.
    pub fn thread_cpu_ns(&self, name: Option<&str>) -> anyhow::Result<u64> {
        let mut sum = None;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let task = task?.path();
            if name.is_none_or(|name| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name)) {
                let text = fs::read_to_string(task.join("schedstat"))?;
                let ns: u64 = text.split(' ').next().and_then(|ns| ns.parse().ok()).context("no schedstat")?;
                sum = Some(sum.unwrap_or(0) + ns);
            }
        }
        sum.with_context(|| format!("the agent has no thread {name:?}"))
    }

    /// Resident memory in KiB: ring buffers apart, then ring buffers.
    pub fn rss_kib(&self) -> anyhow::Result<(u64, u64)> {
        let path = format!("/proc/{}/smaps", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| path)?;
        Ok(rss(&text))
    }

    /// Stops it, and returns its statistics (null for the empty program).
    pub fn stop(mut self) -> anyhow::Result<Value> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        // A full pipe must not keep it from ending.
        drop(self.child.stdout.take());
        self.child.wait()?;
        let stats = self.said.iter().find_map(|line| line.strip_prefix("stats: ").map(str::to_owned));
        Ok(stats.map(|stats| serde_json::from_str(&stats)).transpose()?.unwrap_or_default())
    }
}

/// Sums `Rss:` over mappings: those of BPF maps second.
fn rss(smaps: &str) -> (u64, u64) {
    let (mut own, mut rings, mut is_map) = (0, 0, false);
    for line in smaps.lines() {
        if let Some(kib) = line.strip_prefix("Rss:") {
            let kib = kib.trim().split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
            *(if is_map { &mut rings } else { &mut own }) += kib;
        } else if line.split(' ').next().is_some_and(|word| word.contains('-')) {
            is_map = line.contains("bpf-map") || line.contains("bpf_map");
        }
    }
    (own, rings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_buffers_are_counted_apart() {
        let smaps = "55d0-55d1 r-xp 00000000 fe:00 12 /bin/x\nRss:      100 kB\nPss: 7 kB\n7f00-7f01 rw-s 0 00:0e 9 anon_inode:bpf-map\nRss:  4096 kB\nVmFlags: rd\n7f02-7f03 rw-p 0 0 0 [heap]\nRss: 20 kB\n";
        assert_eq!(rss(smaps), (120, 4096));
    }
}
