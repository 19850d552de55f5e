//! A real agent follows a log that is rotated, copied, emptied and removed, and is ended and killed meanwhile: each event is told once.
//! Needs root; without it every test fails and says so.
#![expect(clippy::unwrap_used, reason = "a test helper that fails ends its test")]

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// How long an alert may take before it is missed.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long silence is listened to: several looks at the log.
const SILENCE: Duration = Duration::from_secs(2);

/// A log, and whoever writes it.
struct Log {
    root: tempfile::TempDir,
    written: u32,
}

impl Log {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("manifests")).unwrap();
        fs::write(root.path().join("audit.log"), "").unwrap();
        Self { root, written: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// An event that is a finding of its own: all events of a namespace deleted, whose name is a number.
    fn line(&mut self) -> String {
        self.written += 1;
        let n = self.written;
        format!(
            "{{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",\"level\":\"Metadata\",\"auditID\":\"id-{n}\",\"stage\":\"ResponseComplete\",\
             \"requestURI\":\"/api/v1/namespaces/{n}/events\",\"verb\":\"deletecollection\",\"user\":{{\"username\":\"alice\",\"groups\":[\"dev\"]}},\
             \"sourceIPs\":[\"10.0.0.9\"],\"userAgent\":\"kubectl/v1.20.2\",\"objectRef\":{{\"resource\":\"events\",\"namespace\":\"{n}\",\
             \"apiVersion\":\"v1\"}},\"responseStatus\":{{\"code\":200}},\"requestReceivedTimestamp\":\"2026-11-25T10:00:00.000000Z\"}}\n"
        )
    }

    fn write(&mut self, count: u32) {
        let lines: String = (0..count).map(|_| self.line()).collect();
        append(&self.path("audit.log"), &lines);
    }

    /// As kube-apiserver does.
    fn rotate(&self, to: &str) {
        fs::rename(self.path("audit.log"), self.path(to)).unwrap();
        fs::write(self.path("audit.log"), "").unwrap();
    }
}

fn append(path: &Path, text: &str) {
    File::options().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

struct Agent {
    child: Child,
    alerts: Receiver<Value>,
    said: Receiver<String>,
}

impl Agent {
    fn start(log: &Log, arguments: &[&str]) -> Self {
        let path = log.path("audit.log");
        let all = ["--no-audit-log-search", "--audit-log", path.to_str().unwrap()];
        Self::with(log, &[&all, arguments].concat())
    }

    fn with(log: &Log, arguments: &[&str]) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "live tests load BPF programs: run them as root (`sudo -E cargo xtask test`)"
        );
        let mut child = Command::new(env!("CARGO_BIN_EXE_detector"))
            .args(["run", "--no-default-dirs", "--no-cri", "--output", "stdout:json"])
            .args(["--group-window", "0s", "--rate-limit", "0", "--manifest-dir"])
            .arg(log.path("manifests"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = |stream: Box<dyn std::io::Read + Send>| {
            let (send, lines) = mpsc::channel();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        break;
                    }
                }
            });
            lines
        };
        let said = lines(Box::new(child.stderr.take().unwrap()));
        let out = lines(Box::new(child.stdout.take().unwrap()));
        let (send, alerts) = mpsc::channel();
        let root = log.root.path().to_owned();
        thread::spawn(move || {
            for line in out {
                // Images, and other API servers' logs, are what else happens on this machine.
                let alert: Value = serde_json::from_str(&line).unwrap();
                let file = alert["file"]["path"].as_str().is_some_and(|path| Path::new(path).starts_with(&root));
                let ours = alert["technique"]["id"] == "delete-kubernetes-events"
                    && (file || alert["request"]["user"] == "alice");
                if ours && send.send(alert).is_err() {
                    break;
                }
            }
        });
        let agent = Self { child, alerts, said };
        agent.hears("ready:");
        agent
    }

    /// Waits until the agent has said something on standard error.
    fn hears(&self, what: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut said = Vec::new();
        loop {
            match self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(what) => return line,
                Ok(line) => said.push(line),
                Err(_) => panic!("the agent did not say {what:?}: {said:#?}"),
            }
        }
    }

    /// The namespaces of so many alerts, and of those that come within a while after them.
    fn namespaces(&self, count: usize) -> Vec<u32> {
        let mut found = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let wait = if found.len() < count { deadline.saturating_duration_since(Instant::now()) } else { SILENCE };
            let Ok(alert) = self.alerts.recv_timeout(wait) else { return found };
            found.push(alert["request"]["namespace"].as_str().unwrap().parse().unwrap());
        }
    }

    /// An alert that is about the log itself.
    fn about_the_log(&self) -> Value {
        self.alerts.recv_timeout(PATIENCE).unwrap()
    }

    fn end(mut self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
        self.child.wait().unwrap();
    }
}

/// When the agent has kept that it told everything.
fn is_kept(log: &Log) {
    let size = fs::metadata(log.path("audit.log")).unwrap().len();
    let since = Instant::now();
    loop {
        let kept = fs::read(log.path("state/audit.json")).unwrap_or_default();
        let kept: Value = serde_json::from_slice(&kept).unwrap_or_default();
        let last = kept["logs"][0]["files"].as_array().and_then(|files| files.last()).cloned().unwrap_or_default();
        if last["offset"] == size {
            return;
        }
        assert!(since.elapsed() < PATIENCE, "{kept}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn each_event_is_told_once_whatever_becomes_of_the_log_and_of_the_agent() {
    let mut log = Log::new();
    let state = log.path("state");
    let arguments = ["--audit-state", state.to_str().unwrap()];
    let mut told = Vec::new();

    let agent = Agent::start(&log, &arguments);
    log.write(3);
    log.rotate("audit-2026-11-25T10-00-00.000.log");
    log.write(2);
    log.rotate("audit-2026-11-25T10-00-01.000.log");
    // A line in two pieces, with a rotation of the next one in between.
    let line = log.line();
    let (first, second) = line.split_at(100);
    append(&log.path("audit.log"), first);
    thread::sleep(Duration::from_millis(500));
    append(&log.path("audit.log"), second);
    log.write(1);
    told.extend(agent.namespaces(7));
    agent.end(Signal::SIGTERM);

    // Nobody follows while it is rotated twice.
    log.write(2);
    log.rotate("audit-2026-11-25T10-00-02.000.log");
    log.write(2);
    log.rotate("audit-2026-11-25T10-00-03.000.log");
    log.write(2);
    let agent = Agent::start(&log, &arguments);
    told.extend(agent.namespaces(6));
    is_kept(&log);
    agent.end(Signal::SIGKILL);

    // Nor while it is copied and emptied.
    log.write(2);
    fs::copy(log.path("audit.log"), log.path("audit.log.1")).unwrap();
    File::options().write(true).open(log.path("audit.log")).unwrap().set_len(0).unwrap();
    log.write(2);
    let agent = Agent::start(&log, &arguments);
    told.extend(agent.namespaces(4));
    is_kept(&log);
    agent.end(Signal::SIGKILL);

    // A flood that an agent is ended in the middle of.
    let agent = Agent::start(&log, &arguments);
    log.write(5000);
    let first: Value = agent.alerts.recv_timeout(PATIENCE).unwrap();
    told.push(first["request"]["namespace"].as_str().unwrap().parse().unwrap());
    kill(Pid::from_raw(i32::try_from(agent.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    told.extend(
        agent.alerts.iter().map(|alert| alert["request"]["namespace"].as_str().unwrap().parse::<u32>().unwrap()),
    );
    agent.end(Signal::SIGTERM);
    let agent = Agent::start(&log, &arguments);
    told.extend(agent.namespaces(log.written as usize - told.len()));
    agent.end(Signal::SIGTERM);

    assert_eq!(told, (1..=log.written).collect::<Vec<_>>());
}

#[test]
fn a_log_that_is_wiped_is_told_and_read_on() {
    let mut log = Log::new();
    let agent = Agent::start(&log, &[]);
    log.write(2);
    assert_eq!(agent.namespaces(2), [1, 2]);
    fs::write(log.path("audit.log"), "").unwrap();
    let alert = agent.about_the_log();
    assert_eq!(
        (alert["technique"]["id"].as_str(), alert["severity"].as_str()),
        (Some("delete-kubernetes-events"), Some("high"))
    );
    assert!(alert["title"].as_str().unwrap().starts_with("Audit log emptied"), "{alert}");
    assert_eq!(alert["request"], Value::Null);
    log.write(1);
    assert_eq!(agent.namespaces(1), [3]);
    fs::remove_file(log.path("audit.log")).unwrap();
    assert!(agent.about_the_log()["title"].as_str().unwrap().starts_with("Audit log removed"));
    fs::write(log.path("audit.log"), "").unwrap();
    log.write(1);
    assert_eq!(agent.namespaces(1), [4]);
    agent.end(Signal::SIGTERM);
}

#[test]
fn without_a_place_for_positions_a_log_is_read_from_its_end_and_what_is_no_event_is_said_once() {
    let mut log = Log::new();
    log.write(3);
    let agent = Agent::start(&log, &[]);
    append(&log.path("audit.log"), "none\n{}\n\u{1b}[2J\n");
    log.write(1);
    assert_eq!(agent.namespaces(1), [4]);
    let said = agent.hears("left out");
    assert!(said.contains(", byte ") && said.contains("no JSON of an audit event"), "{said}");
    kill(Pid::from_raw(i32::try_from(agent.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    let stats = agent.hears("stats:");
    let stats: Value = serde_json::from_str(stats.split_once("stats: ").unwrap().1).unwrap();
    assert_eq!(stats["audit"], serde_json::json!({"lines": 4, "unusable": 3, "events": 1, "left_out": 0}));
    agent.end(Signal::SIGTERM);
}

/// A program of that name which writes nothing: the log is written by the test.
struct Server(Child);

impl Server {
    fn start(log: &Log) -> Self {
        let program = log.path("kube-apiserver");
        if !program.exists() {
            fs::copy("/bin/bash", &program).unwrap();
        }
        let path = log.path("audit.log");
        let child = Command::new(program)
            .args(["-c", "read -r line; true", "kube-apiserver", "--audit-log-path", path.to_str().unwrap()])
            .stdin(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn the_log_of_an_api_server_is_found_when_it_starts_and_again_when_it_is_started_again() {
    let mut log = Log::new();
    fs::remove_file(log.path("audit.log")).unwrap();
    let agent = Agent::with(&log, &[]);
    let server = Server::start(&log);
    agent.hears("audit.log");
    log.write(2);
    assert_eq!(agent.namespaces(2), [1, 2]);
    drop(server);
    // Whoever stops it has removed no log.
    let server = Server::start(&log);
    log.rotate("audit-2026-11-25T10-00-00.000.log");
    log.write(2);
    assert_eq!(agent.namespaces(2), [3, 4]);
    drop(server);
    agent.end(Signal::SIGTERM);
}
