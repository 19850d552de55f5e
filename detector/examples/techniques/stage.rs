//! The agent, and what it has to say of what is done beside it.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::Receiver,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{
    node::{ControlPlane, Runtime},
    suite,
};

/// How long the agent may take to start, and an alert to come; emulated machines are slow.
const START: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(30);
/// How long silence is listened to: longer than an image's parts are waited for.
const SILENCE: Duration = Duration::from_secs(4);

/// What the scenes need.
pub struct Plan {
    pub runtime: bool,
    pub control_plane: bool,
    /// Arguments of the agent.
    pub arguments: Vec<OsString>,
}

/// Whom an alert has to name.
#[derive(Clone, Copy)]
pub enum Who {
    Pid(u32),
    /// A process that the alert's other parts tell.
    Somebody,
    /// No process: a request is an account's.
    Request,
    /// Whoever it is, or nobody: what was done is told at least.
    Anybody,
    /// This process, or nobody where no hook sees it.
    Perhaps(u32),
}

/// What an alert is called.
pub fn title(alert: &Value) -> &str {
    alert["title"].as_str().unwrap_or_default()
}

/// What must not be told.
struct Twin {
    number: u64,
    technique: &'static str,
    name: String,
    about: Box<dyn Fn(&Value) -> bool>,
}

/// What came of it all.
pub struct Done {
    pub fine: bool,
    /// Every line that the agent printed.
    pub told: String,
}

/// An agent, and what is around it.
pub struct Stage {
    /// Everything lies in here, and is gone afterwards.
    pub dir: PathBuf,
    /// What containers execute, and are made by.
    pub app: PathBuf,
    pub act: PathBuf,
    pub reach: PathBuf,
    /// Watched.
    pub manifests: PathBuf,
    /// Of pods' logs, watched too.
    pub logs: PathBuf,
    pub runtime: Option<Runtime>,
    pub control_plane: Option<ControlPlane>,
    agent: Child,
    alerts: Receiver<String>,
    number: u64,
    technique: &'static str,
    /// Alerts that no act accounts for, as yet.
    rest: Vec<Value>,
    told: String,
    twins: Vec<Twin>,
    fine: bool,
    /// Something was told of nobody.
    unattributed: bool,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // It has ended by itself when all went well.
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        drop(self.control_plane.take());
        drop(self.runtime.take());
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{}: {error}: remove it by hand", self.dir.display());
        }
    }
}

impl Stage {
    /// Starts what is needed and then the agent, which records where `traces` says.
    pub fn start(plan: &Plan, traces: Option<&Path>) -> anyhow::Result<Self> {
        anyhow::ensure!(nix::unistd::geteuid().is_root(), "BPF programs are loaded: run this as root");
        let examples = std::env::current_exe()?.parent().context("no directory")?.to_owned();
        let dir = std::env::temp_dir().join(format!("techniques-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        let bin = dir.join("bin");
        fs::create_dir(&bin)?;
        // Copies: a machine's programs lie in its initial file system, which is one in memory as those are that attackers drop into.
        let program = |from: PathBuf, name: &str| -> anyhow::Result<PathBuf> {
            let to = bin.join(name);
            fs::copy(&from, &to).with_context(|| format!("{}: cargo build --bins --examples", from.display()))?;
            Ok(to)
        };
        let detector = program(examples.join("../detector"), "detector")?;
        let app = program(std::env::current_exe()?, "app")?;
        let act = program(examples.join("act"), "act")?;
        let reach = program(examples.join("reach"), "reach")?;
        let manifests = dir.join("manifests");
        fs::create_dir(&manifests)?;
        let logs = dir.join("pod-logs");
        fs::create_dir(&logs)?;
        fs::create_dir(dir.join("next-door"))?;
        let runtime = plan.runtime.then(|| Runtime::start(&dir, &reach)).transpose()?;
        let control_plane = plan.control_plane.then(|| ControlPlane::start(&dir, &reach)).transpose()?;
        let mut command = Command::new(&detector);
        // Each act is asked for, also the second one that is like another.
        command.args(["run", "--output", "stdout:json", "--group-window", "0s", "--rate-limit", "0", "--no-cri"]);
        command
            .args(["--node-name", "node-1", "--manifest-dir"])
            .arg(&manifests)
            .arg("--pod-log-dir")
            .arg(&logs)
            .args(&plan.arguments);
        if let Some(traces) = traces {
            command.arg("--record").arg(traces);
        }
        let mut agent = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let all = |line: &str| Some(line.to_owned());
        let alerts = suite::lines(agent.stdout.take().context("no standard output")?, all);
        let errors = suite::lines(agent.stderr.take().context("no standard error")?, all);
        let stage = Self {
            dir,
            app,
            act,
            reach,
            manifests,
            logs,
            runtime,
            control_plane,
            agent,
            alerts,
            number: 0,
            technique: "",
            rest: Vec::new(),
            told: String::new(),
            twins: Vec::new(),
            fine: true,
            unattributed: false,
        };
        loop {
            let line = errors.recv_timeout(START).context("the agent did not start")?;
            if line.starts_with("degraded:") || line.starts_with("error:") {
                eprintln!("{line}");
            }
            if line.starts_with("ready:") {
                break;
            }
        }
        thread::spawn(move || {
            let said = errors.iter().filter(|line| !line.starts_with("stats:"));
            said.for_each(|line| eprintln!("{line}"));
        });
        Ok(stage)
    }

    /// What comes now is of this technique.
    pub fn scene(&mut self, number: u64, technique: &'static str) {
        (self.number, self.technique) = (number, technique);
    }

    pub fn agent(&self) -> u32 {
        self.agent.id()
    }

    /// The parts of the control plane.
    pub fn plane(&mut self) -> anyhow::Result<&mut ControlPlane> {
        self.control_plane.as_mut().context("the scene needs a control plane")
    }

    pub fn store(&self) -> anyhow::Result<&Runtime> {
        self.runtime.as_ref().context("the scene needs a runtime")
    }

    /// Performs an act of `act` in a directory; yields the pid that did it.
    pub fn act(&self, act: &str, dir: &Path, name: &str, text: &str) -> anyhow::Result<u32> {
        match self.try_act(act, dir, name, text)? {
            (pid, None) => Ok(pid),
            (_, Some(error)) => anyhow::bail!("act {act} failed: {error}"),
        }
    }

    /// The same, which may fail: yields what it says then.
    pub fn try_act(&self, act: &str, dir: &Path, name: &str, text: &str) -> anyhow::Result<(u32, Option<String>)> {
        suite::act(&self.act, act, dir, name, text)
    }

    /// Waits for an alert of this scene's technique that says so, and says whether it came and whom it names.
    pub fn told(&mut self, name: &str, who: Who, says: impl Fn(&Value) -> bool) {
        let started = Instant::now();
        let technique = self.technique;
        let is_it = |alert: &Value| alert["technique"]["id"] == technique && says(alert);
        let names = |alert: &Value| {
            let pid = &alert["process"]["pid"];
            match who {
                Who::Pid(right) => *pid == right,
                Who::Somebody => pid.is_u64(),
                Who::Request => pid.is_null() && alert["request"].is_object(),
                Who::Anybody => true,
                Who::Perhaps(right) => pid.is_null() || *pid == right,
            }
        };
        let right = self.wait(|alert| is_it(alert) && names(alert));
        let result = match right {
            Some(_) => "detected",
            None => match self.rest.iter().position(is_it) {
                Some(at) => {
                    let wrong = self.rest.remove(at);
                    eprintln!("{name}: {wrong}");
                    if wrong["process"].is_null() { "unattributed" } else { "misattributed" }
                }
                None => "missed",
            },
        };
        self.say(self.number, name, result, result == "detected", started.elapsed());
    }

    /// What is like the acts and no alert of the technique may be about, which is looked at in the end.
    pub fn twin(&mut self, name: &str, about: impl Fn(&Value) -> bool + 'static) {
        let (number, technique) = (self.number, self.technique);
        self.twins.push(Twin { number, technique, name: name.to_owned(), about: Box::new(about) });
    }

    /// The same, by a process.
    pub fn twin_by(&mut self, name: &str, pid: u32) {
        self.twin(name, move |alert| alert["process"]["pid"] == pid);
    }

    /// Ends the agent, and judges the twins.
    pub fn finish(mut self) -> anyhow::Result<Done> {
        while self.next(Instant::now() + SILENCE).is_some() {}
        kill(Pid::from_raw(i32::try_from(self.agent.id())?), Signal::SIGTERM)?;
        anyhow::ensure!(self.agent.wait()?.success(), "the agent failed");
        // It has closed its output: nothing more can come.
        while self.next(Instant::now() + PATIENCE).is_some() {}
        for twin in std::mem::take(&mut self.twins) {
            let is_about = |alert: &Value| alert["technique"]["id"] == twin.technique && (twin.about)(alert);
            let told: Vec<_> = self.rest.extract_if(.., |alert| is_about(alert)).collect();
            told.iter().for_each(|alert| eprintln!("twin {}: {alert}", twin.name));
            let result = if told.is_empty() { "silent" } else { "alerts" };
            self.say(twin.number, &twin.name, result, told.is_empty(), Duration::ZERO);
        }
        // An overloaded machine may lose events, and then that is told.
        let is_loss = |alert: &Value| title(alert).ends_with(" lost in the kernel");
        for alert in &self.rest {
            eprintln!("besides: {} {} pid {}", alert["technique"]["id"], alert["title"], alert["process"]["pid"]);
        }
        let silent = self.rest.iter().all(is_loss);
        self.say(0, "all else", if silent { "silent" } else { "alerts" }, silent, Duration::ZERO);
        // Where the act itself was lost, the effect is told alone.
        self.fine &= !self.unattributed || self.rest.iter().any(is_loss);
        Ok(Done { fine: self.fine, told: std::mem::take(&mut self.told) })
    }

    fn say(&mut self, number: u64, name: &str, result: &str, fine: bool, took: Duration) {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        println!("{}", json!({"case": number, "name": name, "result": result, "ms": ms}));
        if !fine {
            eprintln!("case {number} {name} {result}");
            if result == "unattributed" {
                self.unattributed = true;
            } else {
                self.fine = false;
            }
        }
    }

    /// The next alert that is wanted; others are kept.
    fn wait(&mut self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        if let Some(at) = self.rest.iter().position(&wanted) {
            return Some(self.rest.remove(at));
        }
        let deadline = Instant::now() + PATIENCE;
        while self.next(deadline).is_some() {
            if let Some(alert) = self.rest.pop_if(|alert| wanted(alert)) {
                return Some(alert);
            }
        }
        None
    }

    /// Takes the next alert, up to a time.
    fn next(&mut self, deadline: Instant) -> Option<()> {
        let line = self.alerts.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
        match serde_json::from_str(&line) {
            Ok(alert) => self.rest.push(alert),
            Err(error) => {
                eprintln!("not JSON: {line}: {error}");
                self.fine = false;
            }
        }
        self.told.push_str(&line);
        self.told.push('\n');
        Some(())
    }
}
