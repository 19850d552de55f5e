//! What is done to the agent, what containers execute that was not in their images, and containers that have the node: for real, on this
//! kernel. Needs root.
#![expect(clippy::unwrap_used, reason = "a test helper that fails ends its test")]

#[cfg(target_arch = "x86_64")]
mod inject;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use detector::{
    drill::{
        container::{Container, OBEYS},
        tampering::open_map,
    },
    source::kernel::objects,
};
use detector_common::object;
use nix::{
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

/// How long an alert may take before it is missed.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long silence is listened to.
const SILENCE: Duration = Duration::from_millis(2500);
const DETECTOR: &str = env!("CARGO_BIN_EXE_detector");

/// An agent that watches a directory which nobody touches.
struct Agent {
    child: Child,
    alerts: Receiver<Value>,
    _dir: tempfile::TempDir,
}

impl Agent {
    fn start(args: &[&str]) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "live tests load BPF programs: run them as root");
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(DETECTOR)
            .args(["run", "--no-default-dirs", "--no-cri", "--output", "stdout:json", "--manifest-dir"])
            .arg(dir.path())
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (send, alerts) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(serde_json::from_str(&line).unwrap()).is_err() {
                    break;
                }
            }
        });
        let mut lines = BufReader::new(stderr).lines();
        let said: Vec<_> =
            lines.by_ref().map_while(Result::ok).take_while(|line| !line.starts_with("ready:")).collect();
        assert!(child.try_wait().unwrap().is_none(), "the agent did not start: {said:?}");
        thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, alerts, _dir: dir }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Ids of the agent's objects of this kind.
    fn objects(&self, kind: u32) -> Vec<u32> {
        let all = objects(&self.child.id().to_string());
        all.into_iter().filter(|(object, _)| *object == kind).map(|(_, id)| id).collect()
    }

    /// The next alert about the techniques of this file whose title contains `title`.
    fn alert(&self, title: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut others = Vec::new();
        loop {
            match self.alerts.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(alert) if alert["title"].as_str().unwrap().contains(title) => return alert,
                Ok(alert) => others.push(alert["title"].clone()),
                Err(_) => panic!("no alert `{title}`; others: {others:?}"),
            }
        }
    }

    /// Nothing of these techniques for a while. Other tests run beside this one, and what they do in containers of theirs is theirs.
    fn silent(&self, technique: &str, mine: impl Fn(&Value) -> bool) {
        loop {
            match self.alerts.recv_timeout(SILENCE) {
                Ok(alert) => {
                    assert!(alert["technique"]["id"] != technique || !mine(&alert), "expected silence, got {alert:#}");
                }
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => panic!("the agent ended"),
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn container(more: &Value) -> Container {
    let annotations = json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": "app",
        "io.kubernetes.cri.image-name": "registry.example/app:1",
        "io.kubernetes.cri.sandbox-namespace": "shop",
        "io.kubernetes.cri.sandbox-name": "web",
        "io.kubernetes.cri.sandbox-uid": "u1",
        OBEYS: "",
    });
    Container::with(Path::new(DETECTOR), &annotations, more).unwrap()
}

/// `bpf(2)` on a map: its command, and the address of a key and a value.
fn map_call(command: i32, map: &impl std::os::fd::AsRawFd, key: &[u64; 8], value: &[u64; 8]) {
    // `union bpf_attr`: map_fd, key, value, flags. Only BPF_MAP_UPDATE_ELEM has a value.
    let value = if command == 2 { value.as_ptr() as u64 } else { 0 };
    let attributes = [u64::try_from(map.as_raw_fd()).unwrap(), key.as_ptr() as u64, value, 0];
    // SAFETY: the attributes and what they point to are as long as any map's here, and the call does not keep them.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(&attributes)) };
    nix::errno::Errno::result(done).unwrap();
}

#[test]
fn who_opens_and_changes_the_agents_maps_is_named_and_who_uses_their_own_is_not() {
    let agent = Agent::start(&[]);
    // A map of this test's: BPF_MAP_CREATE of type array, keys of 4, values of 8 bytes, 1 entry.
    let attributes = [2_u32, 4, 8, 1, 0, 0, 0, 0];
    // SAFETY: the attributes are as long as is said, and the call does not keep them.
    let own = unsafe { libc::syscall(libc::SYS_bpf, 0, attributes.as_ptr(), size_of_val(&attributes)) };
    let own = i32::try_from(nix::errno::Errno::result(own).unwrap()).unwrap();
    // SAFETY: the kernel just gave this descriptor, and nobody else has it.
    let own: std::os::fd::OwnedFd = unsafe { std::os::fd::FromRawFd::from_raw_fd(own) };
    map_call(2, &own, &[0; 8], &[1; 8]);
    let me = objects("self").into_iter().find(|(kind, _)| *kind == object::MAP).unwrap().1;
    drop(open_map(me).unwrap());
    agent.silent("detector-tampering", |alert| alert["process"]["pid"] == std::process::id());

    // One that takes any key: a hash table.
    let id = agent.objects(object::MAP).into_iter().find(|id| {
        let map = open_map(*id).unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).unwrap();
        info.contains("map_type:\t1\n") && info.contains("key_size:\t4\n")
    });
    let map = open_map(id.unwrap()).unwrap();
    let opened = agent.alert(" opened by ");
    assert_eq!((&opened["severity"], &opened["process"]["pid"]), (&json!("medium"), &json!(std::process::id())));
    assert_eq!(opened["technique"]["id"], "detector-tampering");
    map_call(2, &map, &[0; 8], &[0; 8]);
    map_call(3, &map, &[0; 8], &[0; 8]);
    let changed = agent.alert(&format!("The detector's map {} changed by ", id.unwrap()));
    assert_eq!((&changed["severity"], &changed["process"]["pid"]), (&json!("high"), &json!(std::process::id())));
}

#[test]
fn who_stops_the_agent_is_named_and_its_supervisor_may_end_it() {
    let mut agent = Agent::start(&[]);
    // No signal of the agent's: this test's own child.
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
    kill(agent.pid(), Signal::SIGSTOP).unwrap();
    kill(agent.pid(), Signal::SIGCONT).unwrap();
    let alert = agent.alert("is sent SIGSTOP by ");
    assert_eq!((&alert["severity"], &alert["process"]["pid"]), (&json!("high"), &json!(std::process::id())));
    // This test started it.
    kill(agent.pid(), Signal::SIGTERM).unwrap();
    assert!(agent.child.wait().unwrap().success());
    let of = |alert: &Value| matches!(alert["evidence"][0]["kind"].as_str(), Some("signal" | "hooks"));
    let rest: Vec<Value> = agent.alerts.iter().filter(of).collect();
    assert_eq!(rest, Vec::<Value>::new());
}

/// Nobody detaches a link from outside: whoever does it gets into the agent and closes its descriptor there.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_hook_that_is_detached_is_told_with_whoever_got_into_the_agent_and_one_that_never_was_attached_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    fs::write(&config, "grouping: {window: 1s}\n").unwrap();
    let agent = Agent::start(&["--without-hook", "exit", "--config", config.to_str().unwrap()]);
    // The twins: a reload, and what could not be attached at the start.
    kill(agent.pid(), Signal::SIGHUP).unwrap();
    agent.silent("detector-tampering", |alert| alert["title"].as_str().unwrap().contains("not attached"));
    let link = inject::links(agent.pid())[0];
    inject::call_in(agent.pid(), libc::SYS_close, u64::try_from(link).unwrap());
    let alert = agent.alert(" is not attached any more after ");
    assert!(matches!(alert["severity"].as_str(), Some("high" | "critical")), "{alert:#}");
    assert_eq!(alert["technique"]["id"], "detector-tampering");
    assert_eq!(alert["process"]["pid"], std::process::id());
    let evidence = alert["evidence"].as_array().unwrap();
    // Closed, or another one's: the agent opens files all the time.
    assert!(evidence.last().unwrap()["detail"].as_str().unwrap().starts_with("its descriptor is "), "{alert:#}");
    // Once.
    agent.silent("detector-tampering", |alert| alert["title"].as_str().unwrap().contains("not attached"));
}

/// A pod's logs, as kubelet and the runtime lay them out, and an agent that watches them.
struct Logs {
    agent: Agent,
    dir: tempfile::TempDir,
}

impl Logs {
    fn start(names: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let logs = Self::container(dir.path());
        fs::create_dir_all(&logs).unwrap();
        for name in names {
            fs::write(logs.join(name), LINE.repeat(100)).unwrap();
        }
        let agent = Agent::start(&["--pod-log-dir", dir.path().to_str().unwrap()]);
        Self { agent, dir }
    }

    fn container(dir: &Path) -> PathBuf {
        dir.join("shop_web_0a1b/app")
    }

    fn log(&self, name: &str) -> PathBuf {
        Self::container(self.dir.path()).join(name)
    }

    fn silent(&self) {
        self.agent.silent("delete-kubernetes-events", |_| true);
    }

    /// Runs a program, whose alert has to come.
    fn told(&self, title: &str, program: &str, arguments: &[&Path]) {
        let mut child = Command::new(program).args(arguments).spawn().unwrap();
        let pid = child.id();
        assert!(child.wait().unwrap().success());
        let alert = self.agent.alert(title);
        assert_eq!(
            (&alert["technique"]["id"], &alert["severity"]),
            (&json!("delete-kubernetes-events"), &json!("medium"))
        );
        assert_eq!(alert["process"]["pid"], pid, "{alert:#}");
        assert!(alert["file"]["path"].as_str().unwrap().starts_with(self.dir.path().to_str().unwrap()));
    }
}

const LINE: &str = "2026-11-25T10:00:00.000000000Z stdout F a line of a log\n";

#[test]
fn who_empties_removes_or_overwrites_a_pods_log_is_named_and_what_the_runtime_does_is_silent() {
    let logs = Logs::start(&["0.log", "1.log", "2.log"]);
    let log = logs.log("0.log");
    // What the runtime does, and kubelet when it rotates: it adds, makes new ones, and one is renamed.
    let append = || fs::OpenOptions::new().append(true).create(true).open(&log).unwrap();
    let mut old = append();
    old.write_all(LINE.as_bytes()).unwrap();
    fs::rename(&log, logs.log("0.log.20261125-101112")).unwrap();
    append().write_all(LINE.repeat(50).as_bytes()).unwrap();
    old.write_all(LINE.as_bytes()).unwrap();
    logs.silent();

    let of = "Log of app of pod shop/web";
    logs.told(&format!("{of} emptied by "), "truncate", &[Path::new("--size=0"), &log]);
    logs.told(&format!("{of} removed by "), "rm", &[&logs.log("1.log")]);
    let other = logs.log("other");
    fs::write(&other, "other\n").unwrap();
    logs.told(&format!("{of} replaced by "), "mv", &[&other, &logs.log("2.log")]);
    // A byte is written over, and nothing is shorter.
    append().write_all(LINE.as_bytes()).unwrap();
    let file = format!("of={}", log.display());
    let one = ["if=/dev/zero", &file, "bs=1", "count=1", "conv=notrunc", "status=none"].map(Path::new);
    logs.told(&format!("{of} opened for writing by "), "dd", &one);
    // With everything around it.
    let pod = logs.dir.path().join("shop_web_0a1b");
    logs.told(&format!("{of} removed by "), "mv", &[&pod, &logs.dir.path().join(".gone")]);
}

#[test]
fn a_log_that_is_truncated_by_its_path_is_its_truncaters_and_one_that_was_copied_before_is_low() {
    let logs = Logs::start(&["0.log", "1.log"]);
    logs.silent();
    // No descriptor is opened for that.
    nix::unistd::truncate(&logs.log("0.log"), 1).unwrap();
    let alert = logs.agent.alert("Log of app of pod shop/web emptied by ");
    assert_eq!((&alert["severity"], &alert["process"]["pid"]), (&json!("medium"), &json!(std::process::id())));
    // As logrotate does it with copytruncate.
    fs::copy(logs.log("1.log"), logs.log("1.log.1")).unwrap();
    fs::OpenOptions::new().write(true).open(logs.log("1.log")).unwrap().set_len(0).unwrap();
    let alert = logs.agent.alert("Log of app of pod shop/web rotated by ");
    assert_eq!((&alert["severity"], &alert["process"]["pid"]), (&json!("low"), &json!(std::process::id())));
    logs.silent();
}

#[test]
fn who_attaches_to_the_agent_is_named() {
    let agent = Agent::start(&[]);
    // SAFETY: neither address nor data is used.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, agent.pid().as_raw(), 0, 0) };
    nix::errno::Errno::result(seized).unwrap();
    let alert = agent.alert("opened for tracing or writing by ");
    assert_eq!((&alert["severity"], &alert["process"]["pid"]), (&json!("high"), &json!(std::process::id())));
    assert_eq!(alert["technique"]["id"], "detector-tampering");
}

#[test]
fn what_a_container_executes_that_was_not_in_its_image_is_told_by_where_it_lies() {
    let agent = Agent::start(&[]);
    let mut app = container(&json!({}));
    let id = app.id.clone();
    // An image's program lies in the lower layer.
    app.misbehave("lower").unwrap();
    agent.silent("supply-chain-compromise", |alert| alert["container"]["id"] == id);
    for (place, path, severity) in [
        ("memory", "memfd:drill", "high"),
        ("nowhere", "-program", "high"),
        ("tmpfs", "tmpfs/program", "medium"),
        ("upper", "merged/program", "medium"),
    ] {
        app.misbehave(place).unwrap();
        let alert = agent.alert("Program that is not of its image runs in app of pod shop/web");
        assert_eq!(alert["severity"], severity, "{alert:#}");
        assert!(alert["file"]["path"].as_str().unwrap().ends_with(path), "{alert:#}");
        assert_eq!(alert["process"]["ancestors"][0]["pid"], app.pid);
    }
}

#[test]
fn a_container_that_has_the_node_is_told_when_it_starts_and_an_ordinary_one_is_not() {
    let agent = Agent::start(&[]);
    let ordinary = container(&json!({}));
    let id = ordinary.id.clone();
    agent.silent("malicious-operator", |alert| alert["container"]["id"] == id);
    drop(ordinary);
    let _app = container(&json!({
        "mounts": [{"destination": "/host", "type": "bind", "source": "/", "options": ["rbind"]}],
    }));
    let alert = agent.alert("Container that is as good as root on the node starts: app of pod shop/web");
    assert_eq!(alert["severity"], "high");
    assert_eq!(alert["reasons"][0], "mounts a place of the node: / at /host");
    assert_eq!(alert["pod"]["name"], "web");
}
