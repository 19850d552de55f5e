//! The agent beside the node, and what it says.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    process::Command,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::{
    daemons::{Node, confined},
    host::{NAME, PLACE},
    pods::Pod,
};
use crate::bench::agent::Agent;

/// How long an alert may take before it is missed. Latency is measured by the benchmark, not here.
const PATIENCE: Duration = Duration::from_secs(8);
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
        detector.args(["run", "--output", "stdout:json", "--node-name", NAME]).args(args.iter().map(OsStr::new));
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

    /// Keeps an alert, unless it is about a pod or file of another node on this machine: developers run more than one thing.
    fn keep(&mut self, alert: Result<Value, String>) -> anyhow::Result<()> {
        let alert = alert.map_err(anyhow::Error::msg)?;
        let pod_is_ours = alert["pod"]["name"].as_str().is_none_or(|name| name.ends_with(NAME));
        let file_is_ours = alert["file"]["path"].as_str().is_none_or(|path| path.starts_with(PLACE));
        if pod_is_ours && file_is_ours {
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

    /// Ends the agent; its statistics.
    ///
    /// # Errors
    /// When it ends without them.
    pub fn stop(mut self) -> anyhow::Result<Value> {
        self.agent.take().context("the agent was ended before")?.stop()
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
