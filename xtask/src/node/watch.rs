//! The agent beside the node, and what it says.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Command,
    sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::{
    daemons::{Node, confined},
    host::{NAME, PLACE},
    pods::{NAMESPACE, Pod},
};
use crate::bench::agent::Agent;

/// How long an alert may take before it is missed. Latency is measured by the benchmark, not here.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long an agent in a container may take to be ready.
const START: Duration = Duration::from_secs(30);
/// How long silence is listened to: longer than the agent's slow timers.
const SILENCE: Duration = Duration::from_millis(2500);

/// How long alerts may go on coming after an act. A storm of containers may leave some thousands.
const NOISE: Duration = Duration::from_secs(120);

/// An agent that runs, ended when this is dropped.
pub struct Watch {
    agent: Option<Agent>,
    alerts: Receiver<Result<Value, String>>,
    /// Alerts that nobody has asked for yet.
    seen: Vec<Value>,
}

impl Watch {
    /// Starts `detector run` with these arguments; it finds kubelet's directory by itself.
    ///
    /// # Errors
    /// When it does not start, with what it said.
    pub fn start(node: &Node, args: &[&str]) -> anyhow::Result<Self> {
        let mut detector = Command::new(&node.detector);
        detector.args(["run", "--output", "stdout:json", "--node-name", NAME]);
        // Scenarios count alerts: each is to be told.
        detector.args(["--group-window", "0s", "--rate-limit", "0"]).args(args.iter().map(OsStr::new));
        let mut agent = Agent::spawn(&mut confined(&node.tools, &detector)?)?;
        let stdout = agent.stdout()?;
        let (send, alerts) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let alert = serde_json::from_str(&line).map_err(|error| format!("not a line of JSON: {error}: {line}"));
                if send.send(alert).is_err() {
                    break;
                }
            }
        });
        Ok(Self { agent: Some(agent), alerts, seen: Vec::new() })
    }

    /// Reads what an agent in a container says, from the log that its runtime writes, once it is ready.
    ///
    /// # Errors
    /// When it does not get ready, with what it said.
    pub fn of_log(log: &Path) -> anyhow::Result<Self> {
        let (send, alerts) = mpsc::channel();
        let mut log = Log { reader: BufReader::new(File::open(log)?), line: String::new(), said: String::new() };
        let deadline = Instant::now() + START;
        let mut said = Vec::new();
        loop {
            match log.next()? {
                Some((_, text)) if text.starts_with("ready:") => break,
                Some((_, text)) => said.push(text),
                None if Instant::now() > deadline => bail!("the agent did not start: {}", said.join("; ")),
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
        thread::spawn(move || {
            // Ends when an alert comes that nobody listens to any more, or with the process.
            while let Ok(next) = log.next() {
                let Some((stream, text)) = next else {
                    thread::sleep(Duration::from_millis(20));
                    continue;
                };
                if stream == "stdout" {
                    let alert = serde_json::from_str(&text).map_err(|error| format!("not JSON: {error}: {text}"));
                    if send.send(alert).is_err() {
                        break;
                    }
                }
            }
        });
        Ok(Self { agent: None, alerts, seen: Vec::new() })
    }

    /// Keeps an alert, unless it is about a pod or file of another node on this machine: developers run more than one thing.
    fn keep(&mut self, alert: Result<Value, String>) -> anyhow::Result<()> {
        let alert = alert.map_err(anyhow::Error::msg)?;
        let in_our_namespace = alert["pod"]["namespace"] == NAMESPACE;
        // A file of a pod is named as the pod sees it.
        let ours = match (alert["pod"]["name"].as_str(), alert["file"]["path"].as_str()) {
            (Some(pod), _) => in_our_namespace || pod.ends_with(NAME),
            // Of a long path the end is told.
            (None, Some(file)) => [PLACE, ".../", "/var/log/pods/"].iter().any(|begin| file.starts_with(begin)),
            (None, None) => true,
        };
        if ours {
            self.seen.push(alert);
        }
        Ok(())
    }

    /// The first alert that matches, taken out of those that came; the others are kept.
    ///
    /// # Errors
    /// When none comes in time; the others are named.
    pub fn find(&mut self, what: &str, matches: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.iter().position(&matches) {
                return Ok(self.seen.remove(at));
            }
            match self.alerts.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(alert) => self.keep(alert)?,
                Err(RecvTimeoutError::Timeout) => bail!("no alert: {what}; others: {}", titles(&self.seen)),
                Err(RecvTimeoutError::Disconnected) => bail!("the agent ended"),
            }
        }
    }

    /// Every alert that nobody has asked for, once it has been quiet for a while.
    ///
    /// # Errors
    /// When the agent has ended or says something that is no alert.
    pub fn rest(&mut self) -> anyhow::Result<Vec<Value>> {
        let deadline = Instant::now() + NOISE;
        while Instant::now() < deadline {
            match self.alerts.recv_timeout(SILENCE) {
                Ok(alert) => self.keep(alert)?,
                Err(RecvTimeoutError::Timeout) => return Ok(std::mem::take(&mut self.seen)),
                Err(RecvTimeoutError::Disconnected) => bail!("the agent ended"),
            }
        }
        bail!("alerts do not stop: {}", titles(&self.seen))
    }

    /// Every alert of a technique among [`Watch::rest`]; the others are dropped.
    ///
    /// # Errors
    /// As there.
    pub fn rest_of(&mut self, technique: &str) -> anyhow::Result<Vec<Value>> {
        Ok(self.rest()?.into_iter().filter(|alert| is(alert, technique)).collect())
    }

    /// Every alert that came since this was asked last, without waiting for more.
    ///
    /// # Errors
    /// When the agent has ended or says something that is no alert.
    pub fn so_far(&mut self) -> anyhow::Result<Vec<Value>> {
        loop {
            match self.alerts.try_recv() {
                Ok(alert) => self.keep(alert)?,
                Err(TryRecvError::Empty) => return Ok(std::mem::take(&mut self.seen)),
                Err(TryRecvError::Disconnected) => bail!("the agent ended"),
            }
        }
    }

    /// The agent's process id.
    ///
    /// # Errors
    /// When it is not a process of ours.
    pub fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.agent.as_ref().context("an agent in a container")?.pid())
    }

    /// Ends the agent; its statistics.
    ///
    /// # Errors
    /// When it ends without them.
    pub fn stop(mut self) -> anyhow::Result<Value> {
        self.agent.take().context("the agent was ended before")?.stop()
    }
}

/// A log as runtimes write it: `time stream tag text`, where the tag says whether the line goes on.
struct Log {
    reader: BufReader<File>,
    /// What of a line is written yet.
    line: String,
    /// What of a line in parts was read.
    said: String,
}

impl Log {
    /// The next whole line, and where it was said; `None` when there is none yet.
    fn next(&mut self) -> anyhow::Result<Option<(String, String)>> {
        loop {
            if self.reader.read_line(&mut self.line)? == 0 || !self.line.ends_with('\n') {
                return Ok(None);
            }
            let line = std::mem::take(&mut self.line);
            let mut fields = line.trim_end_matches('\n').splitn(4, ' ').skip(1);
            let (Some(stream), Some(tag), Some(text)) = (fields.next(), fields.next(), fields.next()) else {
                bail!("not a line of a container's log: {line:?}");
            };
            self.said += text;
            if tag == "F" {
                return Ok(Some((stream.to_owned(), std::mem::take(&mut self.said))));
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            // It failed before, or its end is of no interest.
            let _ = agent.stop();
        }
    }
}

pub fn is(alert: &Value, technique: &str) -> bool {
    alert["technique"]["id"] == technique
}

/// Severities are ordered.
pub fn severity(alert: &Value) -> usize {
    let name = alert["severity"].as_str().unwrap_or_default();
    ["info", "low", "medium", "high", "critical"].iter().position(|known| *known == name).unwrap_or(usize::MAX)
}

pub const LOW: usize = 1;

/// Alerts in a few words.
pub fn titles(alerts: &[Value]) -> String {
    let some: Vec<_> = alerts
        .iter()
        .take(8)
        .map(|alert| {
            let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
            format!("{} {} {:?}", text(&alert["severity"]), text(&alert["technique"]["id"]), text(&alert["title"]))
        })
        .collect();
    match alerts.len() {
        0 => "none".to_owned(),
        more @ 9.. => format!("{} and {} more", some.join(", "), more - some.len()),
        _ => some.join(", "),
    }
}

/// That an alert names this pod and, by its id, name and image, this container of it.
///
/// # Errors
/// Says what it names instead.
pub fn names(alert: &Value, pod: &Pod, container: &str, image: &str) -> anyhow::Result<()> {
    names_pod(alert, pod)?;
    let id = pod.containers.get(container).context("no such container")?;
    equal("container.id", &alert["container"]["id"], id)?;
    equal("container.name", &alert["container"]["name"], container)?;
    equal("container.image", &alert["container"]["image"], image)
}

/// That an alert names this pod.
///
/// # Errors
/// Says what it names instead.
pub fn names_pod(alert: &Value, pod: &Pod) -> anyhow::Result<()> {
    equal("pod.namespace", &alert["pod"]["namespace"], &pod.namespace)?;
    equal("pod.name", &alert["pod"]["name"], &pod.name)?;
    equal("pod.uid", &alert["pod"]["uid"], &pod.uid)
}

/// # Errors
/// When a field of an alert is not what is expected.
pub fn equal(field: &str, found: &Value, expected: &str) -> anyhow::Result<()> {
    anyhow::ensure!(found == expected, "{field} is {found}, expected {expected:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_the_runtime_broke_in_parts_is_one_and_one_that_is_not_whole_yet_is_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let say = |text: &str| {
            use std::io::Write as _;
            file.as_file().write_all(text.as_bytes()).unwrap();
        };
        let mut log =
            Log { reader: BufReader::new(File::open(file.path()).unwrap()), line: String::new(), said: String::new() };
        say(
            "2026-11-25T00:00:00Z stderr F ready: 1 of 1\n2026-11-25T00:00:00Z stdout P {\"a\":\n2026-11-25T00:00:00Z stdout F  1}\n2026 std",
        );
        let of = |stream: &str, text: &str| Some((stream.to_owned(), text.to_owned()));
        assert_eq!(log.next().unwrap(), of("stderr", "ready: 1 of 1"));
        assert_eq!(log.next().unwrap(), of("stdout", "{\"a\": 1}"));
        assert_eq!(log.next().unwrap(), None);
        say("out F {}\n");
        assert_eq!(log.next().unwrap(), of("stdout", "{}"));
        say("nonsense\n");
        assert!(log.next().is_err());
    }
}
