//! The evasion suite: every way of changing a node's static pods, done for real beside one agent.
//!
//! `evasion [--flood FILE_EVENTS] [ARGUMENT OF detector run]...` prints a line of JSON for each case: detected and attributed to the process that
//! did it, detected and unattributed, attributed to somebody else, or missed; and whether its benign twin stayed silent. What the flood
//! repeats and is detected is a line for each act, with how often (`times`) and the longest wait.

mod suite;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::Receiver,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::{Value, json};

use suite::lines;

/// How long an alert may take before it is missed: the slow timer finds what no hook saw, and emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long silence is listened to.
const SILENCE: Duration = Duration::from_secs(3);

/// The case that repeats others under a flood of events.
const FLOOD: u32 = 24;

const POD: &str =
    "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: web\n    image: web:1\n";

/// One case of the suite.
struct Case {
    /// Its number in the list of evasions.
    number: u32,
    /// What distinguishes it from others of that number; its directory's name.
    name: &'static str,
    act: &'static str,
    /// The manifest is there before.
    exists: bool,
}

const fn plant(number: u32, act: &'static str) -> Case {
    Case { number, name: act, act, exists: false }
}

const fn edit(number: u32, act: &'static str) -> Case {
    Case { number, name: act, act, exists: true }
}

/// Cases of one act and one manifest. The others have a function each.
const CASES: [Case; 20] = [
    plant(1, "create"),
    plant(2, "creat"),
    plant(3, "openat2"),
    plant(4, "bind"),
    plant(5, "symlinked"),
    plant(6, "proc-root"),
    plant(7, "rename"),
    plant(8, "move"),
    edit(8, "exchange"),
    plant(9, "link"),
    plant(11, "chroot"),
    edit(12, "truncate"),
    edit(12, "ftruncate"),
    plant(13, "copy-file-range"),
    plant(13, "sendfile"),
    plant(13, "splice"),
    plant(14, "io-uring"),
    edit(15, "bind-over"),
    plant(16, "tmpfs"),
    plant(18, "replace-dir"),
];

/// Whether this architecture has the system call that an act is about.
fn there_is(act: &str) -> bool {
    act != "creat" || cfg!(target_arch = "x86_64")
}

/// Says that a case cannot be tried here.
fn no_such_call(case: &Case) {
    println!("{}", json!({"case": case.number, "name": case.name, "result": "no such call", "ms": 0}));
}

/// Where a suite lives, and what it runs.
struct Suite {
    root: PathBuf,
    act: PathBuf,
    agent: Child,
    alerts: Receiver<Value>,
    /// Alerts that came while another was waited for.
    kept: Vec<Value>,
    told_of_losses: bool,
    /// Security hooks are attached.
    sees_memory: bool,
    failed: bool,
    /// The cases that failed it, as told at the end.
    bad: Vec<String>,
    /// Under the flood, by act: how often it was detected, and the longest that took, in ms.
    detected: BTreeMap<String, (u32, u64)>,
}

/// A process that does not outlive the suite.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() -> anyhow::Result<ExitCode> {
    Ok(ExitCode::from(u8::from(!run()?)))
}

fn run() -> anyhow::Result<bool> {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let events = match args.iter().position(|arg| arg == "--flood") {
        Some(at) => args.drain(at..(at + 2).min(args.len())).nth(1).and_then(|count| count.to_str()?.parse().ok()),
        None => Some(100_000),
    };
    let events = events.context("--flood takes a number of file events")?;
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "the evasion suite loads BPF programs and mounts: run it as root"
    );
    let examples = std::env::current_exe()?.parent().context("no directory")?.to_owned();
    let act = examples.join("act");
    let detector = examples.join("../detector");
    for program in [&act, &detector] {
        anyhow::ensure!(program.exists(), "{} is missing: cargo build --bins --examples", program.display());
    }
    let root = std::env::temp_dir().join(format!("evasion-{}", std::process::id()));
    fs::create_dir(&root)?;
    let done = match args.iter().position(|arg| arg == "--deny") {
        Some(at) => {
            args.remove(at);
            denied(&root, &act, &detector, &args)
        }
        None => with_root(&root, &act, &detector, &args, events),
    };
    // Mounts on mounts: as often as it takes.
    for case in ["tmpfs", "bind-over"] {
        while nix::mount::umount2(&root.join(case), nix::mount::MntFlags::MNT_DETACH).is_ok() {}
        while nix::mount::umount2(&root.join(case).join("a.yaml"), nix::mount::MntFlags::MNT_DETACH).is_ok() {}
    }
    let removed = fs::remove_dir_all(&root);
    let fine = done?;
    removed?;
    Ok(fine)
}

fn with_root(root: &Path, act: &Path, detector: &Path, args: &[OsString], events: u64) -> anyhow::Result<bool> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    for case in &CASES {
        let dir = root.join(case.name);
        fs::create_dir(&dir)?;
        if case.exists {
            fs::write(dir.join("a.yaml"), format!("{POD}# a comment that goes\n"))?;
        }
        dirs.push(dir);
    }
    for name in ["symlink", "held", "names", "flood"] {
        fs::create_dir(root.join(name))?;
        dirs.push(root.join(name));
    }
    for name in
        ["kubelet-mount", "kubelet-one", "kubelet-two", "kubelet-three", "place", "bin", "k3s/agent/pod-manifests"]
    {
        fs::create_dir_all(root.join(name))?;
    }
    let held = start(act, "held", &["held".as_ref(), root.join("held").as_os_str(), "a.yaml".as_ref()], || {
        fs::write(root.join("held/a.yaml"), POD)
    })?;
    let config = root.join("kubelet.yaml");
    fs::write(&config, format!("staticPodPath: {}\n", root.join("kubelet-one").display()))?;
    let stand_in = |name: &str, arguments: &[OsString]| -> anyhow::Result<Child> {
        let program = root.join("bin").join(name);
        if !program.exists() {
            fs::copy(act, &program)?;
        }
        start(&program, name, &arguments.iter().map(OsString::as_os_str).collect::<Vec<_>>(), || Ok(()))
    };
    let flag = |name: &str, path: &Path| -> OsString { format!("--{name}={}", path.display()).into() };
    let mut mounting = stand_in("kubelet", &[flag("pod-manifest-path", &root.join("kubelet-mount"))])?;
    let mut configured = stand_in("kubelet", &[flag("config", &config)])?;
    let mut k3s = stand_in("k3s", &["server".into(), "--data-dir".into(), root.join("k3s").into()])?;

    // Kubelets are looked for too: `--manifest-dir` comes on top.
    let (agent, alerts, errors, security_hooks) = start_agent(detector, args, &dirs)?;
    let statistics = thread::spawn(move || {
        errors.iter().find_map(|line| {
            if line.starts_with("degraded:") {
                eprintln!("{line}");
            }
            serde_json::from_str::<Value>(line.strip_prefix("stats: ")?).ok()
        })
    });
    let mut suite = Suite {
        root: root.to_owned(),
        act: act.to_owned(),
        agent,
        alerts,
        kept: Vec::new(),
        told_of_losses: false,
        sees_memory: security_hooks,
        failed: false,
        bad: Vec::new(),
        detected: BTreeMap::new(),
    };

    CASES.iter().filter(|case| !there_is(case.act)).for_each(no_such_call);
    for case in CASES.iter().filter(|case| there_is(case.act)) {
        let file = suite.root.join(case.name).join("a.yaml");
        let pid = suite.act(case.act, case.name, "a.yaml", POD)?;
        let change = if case.exists { "modified" } else { "added" };
        suite.expect(case.number, case.name, pid, &file, change);
    }
    suite.symlink()?;
    suite.held(held)?;
    suite.names()?;
    suite.kubelet_mount(&mut mounting)?;
    suite.kubelet_config(&config)?;
    let mut second = stand_in("kubelet", &[flag("pod-manifest-path", &root.join("kubelet-three"))])?;
    let expected = format!("A kubelet now reads static pods from {}", root.join("kubelet-three").display());
    suite.expect_title(19, "new-kubelet", Some(second.id()), &expected);
    let pid = suite.write(&config, &format!("staticPodURL: http://pods.example/{}\n", std::process::id()))?;
    let expected = format!("A kubelet now reads static pods from http://pods.example/{}", std::process::id());
    suite.expect_title(20, "url", Some(pid), &expected);
    let pid = suite.act("create", "k3s/agent/pod-manifests", "a.yaml", POD)?;
    suite.expect(21, "k3s", pid, &root.join("k3s/agent/pod-manifests/a.yaml"), "added");
    suite.flood(events)?;
    suite.memory(&configured)?;
    suite.twins()?;

    for child in [&mut mounting, &mut configured, &mut k3s, &mut second] {
        drop(child.stdin.take());
        child.wait()?;
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(suite.agent.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    anyhow::ensure!(suite.agent.wait()?.success(), "the agent failed");
    let statistics = statistics.join().ok().flatten().context("the agent gave no statistics")?;
    suite.losses(&statistics["lost"], &statistics["skipped"])?;
    for bad in &suite.bad {
        eprintln!("{bad}");
    }
    Ok(!suite.failed)
}

/// Every act under `--deny static-pod`: refused with an alert, unless a trusted program does it; and the node goes on when
/// the agent is killed.
fn denied(root: &Path, act: &Path, detector: &Path, args: &[OsString]) -> anyhow::Result<bool> {
    let mut dirs = Vec::new();
    for case in &CASES {
        let dir = root.join(case.name);
        fs::create_dir(&dir)?;
        if case.exists {
            fs::write(dir.join("a.yaml"), format!("{POD}# a comment that stays\n"))?;
        }
        dirs.push(dir);
    }
    fs::create_dir(root.join("place"))?;
    let trusted = root.join("trusted");
    fs::copy(act, &trusted)?;
    let args: Vec<OsString> = args
        .iter()
        .cloned()
        .chain(["--deny".into(), "static-pod".into(), "--trust".into(), trusted.clone().into()])
        .collect();
    let (agent, alerts, _errors, sees_memory) = start_agent(detector, &args, &dirs)?;
    let mut suite = Suite {
        root: root.to_owned(),
        act: act.to_owned(),
        agent,
        alerts,
        kept: Vec::new(),
        told_of_losses: false,
        sees_memory,
        failed: false,
        bad: Vec::new(),
        detected: BTreeMap::new(),
    };
    CASES.iter().filter(|case| !there_is(case.act)).for_each(no_such_call);
    for case in CASES.iter().filter(|case| there_is(case.act)) {
        let (pid, refused) = suite.try_act(act, case.act, case.name, "a.yaml", POD)?;
        let started = Instant::now();
        let alert = suite.wait(|alert| alert["blocked"] == true && alert["process"]["pid"] == pid);
        // EPERM, and not that the act went wrong in another way.
        let refused = refused.is_some_and(|error| error.contains("ermitted") || error.contains("EPERM"));
        let result = match (refused, alert.is_some()) {
            (true, true) => "refused",
            (true, false) => "refused silently",
            (false, _) => "let through",
        };
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        println!("{}", json!({"case": case.number, "name": case.name, "result": result, "ms": ms}));
        suite.failed |= result != "refused";
        let there = fs::read_to_string(root.join(case.name).join("a.yaml")).unwrap_or_default();
        if there.contains("stays") != case.exists {
            eprintln!("case {} {}: the manifest is another one", case.number, case.name);
            suite.failed = true;
        }
    }
    // The twins: a trusted program, the same calls next door, and nobody to refuse.
    let allowed = |what: &str, program: &Path, act: &str, dir: &str, suite: &mut Suite| -> anyhow::Result<()> {
        let (_, refused) = suite.try_act(program, act, dir, "twin.yaml", POD)?;
        println!(
            "{}",
            json!({"case": 0, "name": what, "result": if refused.is_some() { "alerts" } else { "silent" }, "ms": 0})
        );
        suite.failed |= refused.is_some();
        Ok(())
    };
    allowed("trusted", &trusted, "create", "create", &mut suite)?;
    allowed("next door", act, "rename", "place", &mut suite)?;
    suite.agent.kill()?;
    suite.agent.wait()?;
    allowed("agent killed", act, "rename", "create", &mut suite)?;
    Ok(!suite.failed)
}

/// Starts the agent and waits until its hooks are attached; also yields whether security hooks are among them.
fn start_agent(
    detector: &Path,
    args: &[OsString],
    dirs: &[PathBuf],
) -> anyhow::Result<(Child, Receiver<Value>, Receiver<String>, bool)> {
    let mut command = Command::new(detector);
    // Every act is asked for, also the second one that is like another.
    command.args(["run", "--output", "stdout:json", "--group-window", "0s", "--rate-limit", "0"]).args(args);
    for dir in dirs {
        command.arg("--manifest-dir").arg(dir);
    }
    let mut agent = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let alerts = lines(agent.stdout.take().context("no standard output")?, |line| serde_json::from_str(line).ok());
    let errors = lines(agent.stderr.take().context("no standard error")?, |line| Some(line.to_owned()));
    let mut security_hooks = !args.iter().any(|arg| arg == "tracepoint");
    loop {
        let line = errors.recv_timeout(Duration::from_secs(60)).context("the agent did not start")?;
        security_hooks &= !line.starts_with("degraded: hook security-hooks");
        if line.starts_with("degraded:") || line.starts_with("error:") || line.starts_with("ready:") {
            eprintln!("{line}");
        }
        if line.starts_with("ready:") {
            return Ok((agent, alerts, errors, security_hooks));
        }
    }
}

/// Starts a program that says `open` and then waits for its input to end.
fn start(
    program: &Path,
    name: &str,
    args: &[&OsStr],
    prepare: impl FnOnce() -> std::io::Result<()>,
) -> anyhow::Result<Child> {
    use std::os::unix::process::CommandExt as _;
    prepare()?;
    let mut child = Command::new(program).arg0(name).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut said = [0; 5];
    child
        .stdout
        .as_mut()
        .context("no output")?
        .read_exact(&mut said)
        .with_context(|| format!("{name} did not start"))?;
    Ok(child)
}

impl Suite {
    /// Performs an act in a directory of the suite; returns the pid that did it.
    fn act(&self, act: &str, dir: &str, name: &str, text: &str) -> anyhow::Result<u32> {
        self.act_as(&self.act, act, dir, name, text)
    }

    fn act_as(&self, program: &Path, act: &str, dir: &str, name: &str, text: &str) -> anyhow::Result<u32> {
        let (pid, error) = self.try_act(program, act, dir, name, text)?;
        match error {
            None => Ok(pid),
            Some(error) => anyhow::bail!("act {act} failed: {error}"),
        }
    }

    /// The pid, and what the act says when it failed.
    fn try_act(
        &self,
        program: &Path,
        act: &str,
        dir: &str,
        name: &str,
        text: &str,
    ) -> anyhow::Result<(u32, Option<String>)> {
        suite::act(program, act, &self.root.join(dir), name, text)
    }

    /// A plain write to any file.
    fn write(&self, path: &Path, text: &str) -> anyhow::Result<u32> {
        let dir = path.parent().and_then(|dir| dir.strip_prefix(&self.root).ok()).and_then(Path::to_str);
        let name = path.file_name().and_then(OsStr::to_str).context("no name")?;
        self.act("create", dir.context("not in the suite")?, name, text)
    }

    /// The next alert that is wanted; others are kept.
    fn wait(&mut self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        if let Some(at) = self.kept.iter().position(&wanted) {
            return Some(self.kept.remove(at));
        }
        let deadline = Instant::now() + PATIENCE;
        while let Ok(alert) = self.alerts.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if wanted(&alert) {
                return Some(alert);
            }
            self.kept.push(alert);
        }
        None
    }

    fn expect(&mut self, number: u32, name: &str, pid: u32, file: &Path, change: &str) {
        let started = Instant::now();
        let file = file.to_string_lossy().into_owned();
        let alert = self.wait(|alert| alert["file"]["path"] == *file && alert["file"]["change"] == *change);
        self.judge(number, name, Some(pid), alert.as_ref(), started);
    }

    fn expect_title(&mut self, number: u32, name: &str, pid: Option<u32>, title: &str) {
        let started = Instant::now();
        let alert = self.wait(|alert| alert["title"].as_str().is_some_and(|found| found.starts_with(title)));
        self.judge(number, name, pid, alert.as_ref(), started);
    }

    fn judge(&mut self, number: u32, name: &str, pid: Option<u32>, alert: Option<&Value>, started: Instant) {
        let result = match (alert.map(|alert| &alert["process"]["pid"]), pid) {
            (None, _) => "missed",
            (Some(Value::Null), _) => "unattributed",
            (Some(found), Some(pid)) if *found != pid => "misattributed",
            (Some(_), _) => "detected",
        };
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if number == FLOOD && result == "detected" {
            let (times, longest) = self.detected.entry(name.to_owned()).or_default();
            (*times, *longest) = (*times + 1, ms.max(*longest));
            return;
        }
        println!("{}", json!({"case": number, "name": name, "result": result, "ms": ms}));
        if result == "misattributed" {
            eprintln!("case {number} {name}: by {pid:?}, alert {}", alert.unwrap_or(&Value::Null));
        }
        if matches!(result, "missed" | "misattributed") {
            self.bad.push(format!("case {number} {name} {result}"));
            self.failed = true;
        }
    }

    /// Case 10: a symbolic link, then an edit of what it leads to.
    fn symlink(&mut self) -> anyhow::Result<()> {
        let file = self.root.join("symlink/a.yaml");
        let pid = self.act("symlink", "symlink", "a.yaml", POD)?;
        self.expect(10, "symlink", pid, &file, "added");
        let pid = self.write(&fs::read_link(&file)?, &POD.replace("web:1", "web:2"))?;
        self.expect(10, "target", pid, &file, "modified");
        Ok(())
    }

    /// Case 22: a writable descriptor that is older than the agent.
    fn held(&mut self, mut held: Child) -> anyhow::Result<()> {
        held.stdin.take().context("no input")?.write_all(POD.replace("web:1", "web:2").as_bytes())?;
        anyhow::ensure!(held.wait()?.success(), "the holder failed");
        let file = self.root.join("held/a.yaml");
        self.expect(22, "held", held.id(), &file, "modified");
        Ok(())
    }

    /// Case 23: names that somebody might trust.
    fn names(&mut self) -> anyhow::Result<()> {
        for name in ["kubelet", "sed", "dpkg", "iou-wrk-1"] {
            let program = self.root.join("place").join(name);
            fs::copy(&self.act, &program)?;
            let file = format!("{name}.yaml");
            let pid = self.act_as(&program, "create", "names", &file, POD)?;
            let file = self.root.join("names").join(file);
            self.expect(23, name, pid, &file, "added");
        }
        Ok(())
    }

    /// Case 17: a mount that only the kubelet sees.
    fn kubelet_mount(&mut self, kubelet: &mut Child) -> anyhow::Result<()> {
        let name = format!("x-{}", kubelet.id());
        let pid = self.act("mount-in-kubelet", "kubelet-mount", &name, POD)?;
        let file = self.root.join("kubelet-mount/a.yaml");
        self.expect(17, "mount-in-kubelet", pid, &file, "added");
        Ok(())
    }

    /// Case 19: another path in kubelet's configuration.
    fn kubelet_config(&mut self, config: &Path) -> anyhow::Result<()> {
        let other = self.root.join("kubelet-two");
        let pid = self.write(config, &format!("staticPodPath: {}\n", other.display()))?;
        let title = format!("A kubelet now reads static pods from {}", other.display());
        self.expect_title(19, "config", Some(pid), &title);
        Ok(())
    }

    /// Case 24: some of the others again and again, while two processes flood the node with file events and a third forks
    /// and executes.
    fn flood(&mut self, events: u64) -> anyhow::Result<()> {
        let place = self.root.join("place");
        let start = |act: &str, name: &str| {
            let args = [act.as_ref(), place.as_os_str(), name.as_ref()];
            Command::new(&self.act).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map(Ended)
        };
        let half = (events / 2).to_string();
        let mut flooders = [start("flood", &half)?, start("flood", &half)?];
        let mut storm = start("storm", "")?;
        let mut round = 0;
        loop {
            let acts = ["create", "creat", "rename", "move", "link", "bind", "splice", "io-uring"];
            for act in acts.into_iter().filter(|act| there_is(act)) {
                let name = format!("{act}-{round}.yaml");
                let pid = self.act(act, "flood", &name, POD)?;
                let file = self.root.join("flood").join(&name);
                self.expect(FLOOD, act, pid, &file, "added");
            }
            round += 1;
            let mut ended = true;
            for flooder in &mut flooders {
                ended &= flooder.0.try_wait()?.is_some();
            }
            if ended {
                break;
            }
        }
        for (act, (times, ms)) in &self.detected {
            println!("{}", json!({"case": FLOOD, "name": act, "result": "detected", "ms": ms, "times": times}));
        }
        fs::write(place.join("stop"), "")?;
        let mut forks = String::new();
        storm.0.stdout.take().context("no output")?.read_to_string(&mut forks)?;
        eprintln!("flood: {events} file events and {} fork+execs during {round} rounds of acts", forks.trim());
        Ok(())
    }

    /// Besides the list: kubelet's memory, and the agent's, opened for writing. Security hooks alone see that.
    fn memory(&mut self, kubelet: &Child) -> anyhow::Result<()> {
        for (name, target) in [("kubelet-memory", kubelet.id()), ("agent-memory", self.agent.id())] {
            let pid = self.act("process-memory", "place", &target.to_string(), "")?;
            if self.sees_memory {
                let title = if name == "agent-memory" { "The detector (pid" } else { "kubelet (pid" };
                self.expect_title(25, name, Some(pid), title);
            }
        }
        Ok(())
    }

    /// What was lost: context may be, and then the agent says so; what can raise an alert may not. Runs that the kernel
    /// skipped are told too; the cases say whether one of them mattered.
    fn losses(&mut self, lost: &Value, skipped: &Value) -> anyhow::Result<()> {
        const CONTEXT: [&str; 4] = ["fork", "exec", "exit", "cgroup"];
        let lost = lost.as_object().context("no losses in the statistics")?;
        let skipped = skipped.as_object().context("no skipped runs in the statistics")?;
        for (what, hooks) in [("lost", lost), ("skipped", skipped)].into_iter().filter(|(_, hooks)| !hooks.is_empty()) {
            eprintln!("{what}: {}", Value::Object(hooks.clone()));
        }
        self.failed |= lost.keys().any(|hook| !CONTEXT.contains(&hook.as_str()));
        let is_whole = lost.is_empty() && skipped.is_empty();
        if !is_whole && !self.told_of_losses {
            eprintln!("the agent did not tell of its losses");
            self.failed = true;
        }
        Ok(())
    }

    /// The same calls next door, and reads: none of them may raise an alert.
    fn twins(&mut self) -> anyhow::Result<()> {
        let told = |suite: &mut Self| -> Vec<Value> {
            while let Ok(alert) = suite.alerts.recv_timeout(SILENCE) {
                suite.kept.push(alert);
            }
            let (losses, others) =
                suite.kept.drain(..).partition::<Vec<_>, _>(|alert| alert["technique"]["id"] == "detector-tampering");
            suite.told_of_losses |= !losses.is_empty();
            others
        };
        // What is still under way belongs to the acts before.
        let mut before: BTreeMap<String, u32> = BTreeMap::new();
        for alert in told(self) {
            *before.entry(alert["title"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
        }
        eprintln!("besides: {before:?}");
        let calls = CASES.iter().filter(|case| !case.exists && !matches!(case.act, "tmpfs" | "replace-dir"));
        for case in calls.filter(|case| there_is(case.act)) {
            self.act(case.act, "place", &format!("{}.yaml", case.name), POD)?;
        }
        self.act("read", "create", "a.yaml", "")?;
        self.act("touch", "create", "a.yaml", "")?;
        let rest = told(self);
        for alert in &rest {
            eprintln!("twin: {alert}");
        }
        let result = if rest.is_empty() { "silent" } else { "alerts" };
        println!("{}", json!({"case": 0, "name": "twins", "result": result, "ms": 0}));
        self.failed |= !rest.is_empty();
        Ok(())
    }
}
