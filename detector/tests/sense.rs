//! Secrets that are really read and connections that are really made, beside the agent on this kernel. Needs root.
//!
//! The node is a network namespace with programs in it that are called like kubelet, kube-apiserver and etcd and listen like them: other
//! nodes may run on the same machine, so that what counts is told by pid.
#![expect(clippy::unwrap_used, reason = "a test helper that fails ends its test")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

/// How long an alert may take before it is missed.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long silence is listened to.
const SILENCE: Duration = Duration::from_millis(2500);

/// Addresses of the node's network namespace: its API server's and etcd's, a webhook's, a stranger's.
const NODE: &str = "203.0.113.1";
const WEBHOOK: &str = "192.0.2.7";
const STRANGER: &str = "198.51.100.9";
const UID: &str = "0a1b2c3d-0000-4000-8000-000000000001";

/// A program of the node, driven by its standard input.
struct Part {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Part {
    fn pid(&self) -> u64 {
        self.child.id().into()
    }

    fn does(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
        assert_eq!(self.said(), "done", "{line}");
    }

    fn said(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Node {
    agent: Child,
    alerts: Receiver<Value>,
    kubelet: Part,
    server: Part,
    etcd: Part,
    volume: PathBuf,
    dir: tempfile::TempDir,
    namespace: Child,
}

impl Drop for Node {
    fn drop(&mut self) {
        for child in [&mut self.agent, &mut self.namespace] {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = umount2(&self.volume, MntFlags::MNT_DETACH);
    }
}

fn reach() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples/reach")
}

/// A command in the node's network namespace.
fn inside(namespace: &Child, program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", namespace.id())).arg(program).args(args);
    command
}

fn part(namespace: &Child, program: &Path, args: &[&str]) -> Part {
    let mut command = inside(namespace, program, args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let mut part = Part { child, out };
    assert_eq!(part.said(), "listening", "{program:?} {args:?}");
    part
}

impl Node {
    fn start() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "live tests load BPF programs: run them as root (`sudo -E cargo xtask test`)"
        );
        // Not below /tmp: programs there are dropped ones.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let namespace = Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap();
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        let deadline = Instant::now() + PATIENCE;
        while fs::read_link(format!("/proc/{}/ns/net", namespace.id())).is_ok_and(|theirs| theirs == own) {
            assert!(Instant::now() < deadline, "unshare made no network namespace");
            thread::sleep(Duration::from_millis(10));
        }
        let ip = |args: &[&str]| assert!(inside(&namespace, Path::new("ip"), args).status().unwrap().success());
        ip(&["link", "set", "lo", "up"]);
        for address in [NODE, WEBHOOK, STRANGER] {
            ip(&["address", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        let program = |name: &str| {
            let path = dir.path().join(name);
            fs::copy(reach(), &path).unwrap();
            path
        };
        let root = dir.path().join("kubelet-root");
        let volume = root.join(format!("pods/{UID}/volumes/kubernetes.io~projected/kube-api-access"));
        fs::create_dir_all(&volume).unwrap();
        mount(Some("tmpfs"), &volume, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
        write(&volume, "one");
        fs::write(dir.path().join("kubelet.conf"), "clusters: []\n").unwrap();
        let flags =
            [format!("--root-dir={}", root.display()), format!("--kubeconfig={}/kubelet.conf", dir.path().display())];
        let kubelet = part(&namespace, &program("kubelet"), &["listen", "127.0.0.1:10250", "--", &flags[0], &flags[1]]);
        let server =
            part(&namespace, &program("kube-apiserver"), &["listen", &format!("{NODE}:6443"), "127.0.0.1:6443"]);
        let urls = format!("--listen-client-urls=http://127.0.0.1:2379,http://[::1]:2379,http://{NODE}:2379");
        let client = format!("{NODE}:2379");
        let metrics = "127.0.0.1:2381";
        let etcd = part(
            &namespace,
            &program("etcd"),
            &["listen", "127.0.0.1:2379", "[::1]:2379", &client, metrics, "--", &urls],
        );
        let mut agent = Command::new(env!("CARGO_BIN_EXE_detector"))
            .args(["run", "--output", "stdout:json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, alerts) = mpsc::channel();
        let stdout = agent.stdout.take().unwrap();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(serde_json::from_str(&line).unwrap()).is_err() {
                    break;
                }
            }
        });
        let mut errors = BufReader::new(agent.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut said = Vec::new();
        loop {
            let line = errors.next().unwrap_or_else(|| panic!("the agent did not start: {said:?}"));
            if line.starts_with("ready:") {
                break;
            }
            said.push(line);
        }
        thread::spawn(move || errors.for_each(drop));
        Self { agent, alerts, kubelet, server, etcd, volume, dir, namespace }
    }

    fn token(&self) -> String {
        self.volume.join("token").to_str().unwrap().to_owned()
    }

    /// Runs `reach` in the node's network namespace. Yields its pid.
    fn reach(&self, args: &[&str]) -> u64 {
        self.runs(&reach(), args)
    }

    fn runs(&self, program: &Path, args: &[&str]) -> u64 {
        let mut child = inside(&self.namespace, program, args).spawn().unwrap();
        let pid = child.id().into();
        assert!(child.wait().unwrap().success(), "{args:?}");
        pid
    }

    /// The next alert of that technique about that process.
    fn alert(&self, pid: u64, technique: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut others = Vec::new();
        loop {
            match self.alerts.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(alert) if alert["process"]["pid"] == pid && alert["technique"]["id"] == technique => return alert,
                Ok(alert) => others.push(format!("{} pid {}", alert["title"], alert["process"]["pid"])),
                Err(_) => panic!("no alert of {technique} about pid {pid}; others: {others:?}"),
            }
        }
    }

    fn silent(&self, pids: &[u64]) {
        loop {
            match self.alerts.recv_timeout(SILENCE) {
                Ok(alert) => assert!(!pids.iter().any(|pid| alert["process"]["pid"] == *pid), "{alert:#}"),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => panic!("the agent ended"),
            }
        }
    }
}

/// A token volume's content as kubelet's atomic writer leaves it: another directory, and a link swapped to it.
fn write(volume: &Path, generation: &str) {
    let data = volume.join(format!("..{generation}"));
    fs::create_dir(&data).unwrap();
    for name in ["token", "ca.crt"] {
        fs::write(data.join(name), generation).unwrap();
        if !volume.join(name).is_symlink() {
            symlink(format!("..data/{name}"), volume.join(name)).unwrap();
        }
    }
    symlink(format!("..{generation}"), volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

const TOKENS: &str = "container-service-account";

#[test]
fn a_token_is_read_by_each_way_to_open_it_and_after_it_was_swapped() {
    let node = Node::start();
    for way in ["read", "readwrite", "openat2"] {
        let pid = node.reach(&[way, &node.token()]);
        let alert = node.alert(pid, TOKENS);
        assert_eq!(alert["severity"], "medium", "{alert:#}");
        assert!(alert["title"].as_str().unwrap().starts_with(&format!("Service account token of pod {UID} read by")));
        assert!(alert["file"]["path"].as_str().unwrap().ends_with("/..one/token"), "{alert:#}");
    }
    write(&node.volume, "two");
    let pid = node.reach(&["read", &node.token()]);
    assert!(node.alert(pid, TOKENS)["file"]["path"].as_str().unwrap().ends_with("/..two/token"));
}

#[test]
fn kubelet_and_readers_of_what_is_no_secret_are_silent() {
    let mut node = Node::start();
    let token = node.token();
    node.kubelet.does(&format!("read {token}"));
    node.kubelet.does("connect 127.0.0.1:6443");
    let certificate = node.reach(&["read", node.volume.join("ca.crt").to_str().unwrap()]);
    // The node's own administrators use its kubeconfigs.
    let config = node.reach(&["both", node.dir.path().join("kubelet.conf").to_str().unwrap(), "127.0.0.1:6443"]);
    let connects = node.reach(&["connect", "127.0.0.1:6443"]);
    node.silent(&[node.kubelet.pid(), certificate, config, connects]);
}

#[test]
fn a_token_that_is_read_and_then_used_is_worse() {
    let node = Node::start();
    let pid = node.reach(&["both", &node.token(), "127.0.0.1:6443"]);
    assert_eq!(node.alert(pid, TOKENS)["severity"], "medium");
    let alert = node.alert(pid, TOKENS);
    assert_eq!(alert["severity"], "high", "{alert:#}");
    assert_eq!(alert["evidence"].as_array().unwrap().len(), 2);
}

#[test]
fn a_kubeconfig_read_by_a_dropped_program_is_high() {
    let node = Node::start();
    let place = tempfile::tempdir_in("/tmp").unwrap();
    let program = place.path().join("x");
    fs::copy(reach(), &program).unwrap();
    let pid = node.runs(&program, &["read", node.dir.path().join("kubelet.conf").to_str().unwrap()]);
    let alert = node.alert(pid, TOKENS);
    assert_eq!(alert["severity"], "high", "{alert:#}");
    assert!(alert["title"].as_str().unwrap().starts_with("Kubeconfig "), "{alert:#}");
}

#[test]
fn etcds_clients_are_told_but_for_the_api_server_and_etcd_and_other_ports_of_it() {
    let mut node = Node::start();
    for address in ["127.0.0.1:2379".to_owned(), "[::1]:2379".to_owned(), format!("{NODE}:2379")] {
        let pid = node.reach(&["connect", &address]);
        let alert = node.alert(pid, "delete-kubernetes-events");
        assert_eq!(alert["severity"], "medium", "{alert:#}");
        assert!(alert["title"].as_str().unwrap().contains(&address), "{alert:#}");
        node.server.does(&format!("connect {address}"));
        node.etcd.does(&format!("connect {address}"));
    }
    let metrics = node.reach(&["connect", "127.0.0.1:2381"]);
    node.silent(&[node.server.pid(), node.etcd.pid(), metrics]);
}

#[test]
fn where_the_api_server_connects_to_for_the_first_time_is_told_and_the_second_time_is_not() {
    let mut node = Node::start();
    let address = format!("{WEBHOOK}:443");
    node.server.does(&format!("connect {address}"));
    let alert = node.alert(node.server.pid(), "malicious-admission-controller");
    assert_eq!(alert["severity"], "medium", "{alert:#}");
    assert!(alert["title"].as_str().unwrap().contains(&address), "{alert:#}");
    thread::sleep(Duration::from_millis(1100));
    node.server.does(&format!("connect {address}"));
    node.server.does("connect 127.0.0.1:10250");
    let other = node.reach(&["connect", &address]);
    node.silent(&[node.server.pid(), other]);
}

#[test]
fn whom_the_api_server_accepts_from_outside_is_told() {
    let node = Node::start();
    node.reach(&["from", &format!("{NODE}:0"), &format!("{NODE}:6443")]);
    node.silent(&[node.server.pid()]);
    node.reach(&["from", &format!("{STRANGER}:0"), &format!("{NODE}:6443")]);
    let alert = node.alert(node.server.pid(), "public-api-endpoint");
    assert_eq!(alert["severity"], "low", "{alert:#}");
    assert!(alert["title"].as_str().unwrap().ends_with("198.51.100.0/24"), "{alert:#}");
}

#[test]
fn the_drill_reads_a_token_that_opens_nothing_and_takes_everything_away() {
    let output = Command::new(env!("CARGO_BIN_EXE_detector")).args(["drill", TOKENS]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("attributed to the process that did it"), "{said}");
    let place = said.lines().find_map(|line| line.split(" in ").nth(1)?.strip_suffix(" and read the token")).unwrap();
    assert!(!Path::new(place).exists(), "{place}");
}
