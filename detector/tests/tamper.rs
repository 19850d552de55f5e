//! What is done to the agent, what containers execute that was not in their images, and containers that have the node: for real, on this
//! kernel. Needs root.
#![expect(clippy::unwrap_used, reason = "a test helper that fails ends its test")]

use std::{
    io::{BufRead as _, BufReader},
    os::fd::AsRawFd as _,
    path::Path,
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
    let rest: Vec<Value> = agent.alerts.iter().filter(|alert| alert["evidence"][0]["kind"] == "signal").collect();
    assert_eq!(rest, Vec::<Value>::new());
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
