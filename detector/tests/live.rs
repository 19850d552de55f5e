//! The agent on this kernel, and real acts beside it. Needs root; without it every test fails and says so.
#![expect(clippy::unwrap_used, reason = "a test helper that fails ends its test")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use detector::drill::container::Container;
use serde_json::Value;

/// How long an alert may take before it is missed. Latency is measured by the benchmark, not here.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long silence is listened to. Longer than the view's slow timer and its longest hold.
const SILENCE: Duration = Duration::from_millis(2500);

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: shop\nspec:\n  containers:\n  - name: web\n    image: registry.example/web:1\n";

fn privileged() -> String {
    POD.replace(
        "    image: registry.example/web:1\n",
        "    image: registry.example/web:1\n    securityContext:\n      privileged: true\n",
    )
}

/// An agent that watches one directory of its own.
struct Agent {
    child: Child,
    alerts: Receiver<Value>,
    dir: PathBuf,
    _root: tempfile::TempDir,
    errors: mpsc::Receiver<String>,
}

impl Agent {
    fn start() -> Self {
        Self::with(&[], |_| {})
    }

    fn with(args: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "live tests load BPF programs: run them as root (`sudo -E cargo xtask test`)"
        );
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("manifests");
        fs::create_dir(&dir).unwrap();
        prepare(&dir);
        let mut child = Command::new(env!("CARGO_BIN_EXE_detector"))
            .args(["run", "--no-default-dirs", "--output", "stdout:json", "--manifest-dir"])
            .arg(&dir)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (send, alerts) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let alert =
                    serde_json::from_str(&line).unwrap_or_else(|e| panic!("stdout is not JSON lines: {e}: {line}"));
                if send.send(alert).is_err() {
                    break;
                }
            }
        });
        let (send, errors) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut said = Vec::new();
        loop {
            let line = errors.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("the agent did not start: {said:?}"));
            if line.starts_with("ready:") {
                break;
            }
            said.push(line);
        }
        Self { child, alerts, dir, _root: root, errors }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The next alert about `name` with this change; alerts about other files in between are dropped.
    fn alert(&self, name: &str, change: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut others = Vec::new();
        loop {
            match self.alerts.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(alert) => {
                    let path = alert["file"]["path"].as_str().unwrap_or_default();
                    if alert["file"]["change"] == change && Path::new(path) == self.path(name) {
                        assert_eq!(alert["technique"]["id"], "static-pod");
                        return alert;
                    }
                    others.push(format!("{} {}", alert["title"], alert["file"]["change"]));
                }
                Err(_) => panic!("no alert `{change}` for {name}; others: {others:?}"),
            }
        }
    }

    /// Every alert until it has been quiet for [`SILENCE`].
    fn rest(&self) -> Vec<Value> {
        let mut rest = Vec::new();
        loop {
            match self.alerts.recv_timeout(SILENCE) {
                Ok(alert) => rest.push(alert),
                Err(RecvTimeoutError::Timeout) => return rest,
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the agent ended: {:?}", self.errors.try_iter().collect::<Vec<_>>())
                }
            }
        }
    }

    fn silent(&self) {
        let rest = self.rest();
        assert!(rest.is_empty(), "expected silence, got {rest:#?}");
    }

    /// Ends the agent and returns its statistics.
    fn stop(mut self) -> Value {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        let line = self.errors.iter().find_map(|line| line.strip_prefix("stats: ").map(str::to_owned)).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What a test mounted must go before the temporary directory can.
        for _ in 0..4 {
            let _ = nix::mount::umount2(&self.path("a.yaml"), nix::mount::MntFlags::MNT_DETACH);
            let _ = nix::mount::umount2(&self.dir, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// The program that acts, under a name of its own so that nothing can match the usual one.
fn act_program() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples/act")
}

fn act_as(program: &Path, case: &str, dir: &Path, name: &str, text: &str) -> (u32, Output) {
    let mut child = Command::new(program)
        .args([case.as_ref(), dir.as_os_str(), name.as_ref()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
    (pid, output)
}

/// Performs `case` and returns the pid that did it.
fn act(case: &str, dir: &Path, name: &str, text: &str) -> u32 {
    act_as(&act_program(), case, dir, name, text).0
}

fn assert_named(alert: &Value, pid: u32, exe: &Path) {
    let exe = exe.canonicalize().unwrap();
    assert_eq!(alert["process"]["pid"], pid, "{alert:#}");
    assert_eq!(alert["process"]["exe"], exe.to_str().unwrap(), "{alert:#}");
    let ancestors = alert["process"]["ancestors"].as_array().unwrap();
    assert_eq!(ancestors[0]["pid"], std::process::id(), "its parent is this test: {alert:#}");
    assert!(ancestors.len() >= 2, "lineage to the root: {alert:#}");
    assert!(!alert["evidence"].as_array().unwrap().is_empty());
}

/// Plants a manifest by `case` where there was none; the one alert names the process that did it.
fn planted_by(case: &str) {
    planted_by_with(case, &[]);
}

fn planted_by_with(case: &str, args: &[&str]) {
    let agent = Agent::with(args, |_| {});
    let pid = act(case, &agent.dir, "a.yaml", POD);
    let alert = agent.alert("a.yaml", "added");
    assert_named(&alert, pid, &act_program());
    assert_eq!(alert["manifest"]["name"], "web");
    assert_eq!(alert["manifest"]["namespace"], "shop");
    assert_eq!(alert["file"]["sha256"], sha256(POD.as_bytes()));
    let more: Vec<_> =
        agent.rest().into_iter().filter(|alert| !alert["file"]["path"].as_str().unwrap_or("").contains("/.")).collect();
    assert!(more.is_empty(), "one change, one alert: {more:#?}");
    let stats = agent.stop();
    assert_eq!(stats["lost"], serde_json::json!({}));
    assert_eq!(stats["undecodable"], 0);
}

/// Changes an existing manifest by `case`; the one alert names the process that did it.
fn changed_by(case: &str, before: &str, text: &str) {
    let agent = Agent::with(&[], |dir| fs::write(dir.join("a.yaml"), before).unwrap());
    let pid = act(case, &agent.dir, "a.yaml", text);
    let alert = agent.alert("a.yaml", "modified");
    assert_named(&alert, pid, &act_program());
    assert_eq!(alert["file"]["previous_sha256"], sha256(before.as_bytes()));
    assert_ne!(alert["file"]["sha256"], alert["file"]["previous_sha256"]);
    assert!(agent.rest().is_empty(), "one change, one alert");
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

macro_rules! planted {
    ($($name:ident: $case:literal;)*) => {$(
        #[test]
        fn $name() {
            planted_by($case);
        }
    )*};
}

planted! {
    case_01_open_and_write: "create";
    case_02_creat: "creat";
    case_03_openat2: "openat2";
    case_04_through_a_bind_mount_in_another_mount_namespace: "bind";
    case_05_through_a_symlinked_parent: "symlinked";
    case_06_through_proc_root: "proc-root";
    case_07_dotfile_renamed: "rename";
    case_08_renamed_in_from_elsewhere: "move";
    case_09_hard_link: "link";
    case_11_descriptor_of_the_directory_after_chroot: "chroot";
    case_13_copy_file_range: "copy-file-range";
    case_13_sendfile: "sendfile";
    case_13_splice: "splice";
    case_14_io_uring: "io-uring";
}

#[test]
fn case_10_symlink_and_then_an_edit_of_its_target() {
    let agent = Agent::start();
    let pid = act("symlink", &agent.dir, "a.yaml", POD);
    let alert = agent.alert("a.yaml", "added");
    assert_named(&alert, pid, &act_program());
    let target = PathBuf::from(alert["file"]["symlink"].as_str().expect("the alert says where the link leads"));
    let target_name = target.file_name().unwrap().to_str().unwrap().to_owned();
    let pid = act("create", target.parent().unwrap(), &target_name, &privileged());
    let alert = agent.alert("a.yaml", "modified");
    assert_named(&alert, pid, &act_program());
    assert_eq!(alert["severity"], "high");
}

#[test]
fn case_12_truncate() {
    changed_by("truncate", &format!("{POD}# a comment that goes\n"), POD);
}

#[test]
fn case_12_ftruncate() {
    changed_by("ftruncate", &format!("{POD}# a comment that goes\n"), POD);
}

#[test]
fn a_shared_mapping_is_no_way_around() {
    changed_by("mmap", POD, &POD.replace("web:1", "web:2"));
}

#[test]
fn renamed_by_exchange() {
    changed_by("exchange", POD, &privileged());
}

#[test]
fn case_15_bind_mount_over_one_manifest() {
    let agent = Agent::with(&[], |dir| fs::write(dir.join("a.yaml"), POD).unwrap());
    let pid = act("bind-over", &agent.dir, "a.yaml", &privileged());
    let alert = agent.alert("a.yaml", "modified");
    assert_named(&alert, pid, &act_program());
}

#[test]
fn case_16_tmpfs_over_the_directory() {
    let agent = Agent::start();
    let pid = act("tmpfs", &agent.dir, "a.yaml", POD);
    let alert = agent.alert("a.yaml", "added");
    assert_eq!(alert["process"]["pid"], pid, "{alert:#}");
}

#[test]
fn case_18_the_directory_replaced() {
    let agent = Agent::start();
    let pid = act("replace-dir", &agent.dir, "a.yaml", &privileged());
    let alert = agent.alert("a.yaml", "added");
    assert_eq!(alert["process"]["pid"], pid, "{alert:#}");
    // And the directory that stands there now is watched as closely.
    let pid = act("create", &agent.dir, "b.yaml", POD);
    assert_named(&agent.alert("b.yaml", "added"), pid, &act_program());
}

#[test]
fn who_began_while_events_were_lost_is_named_all_the_same() {
    use nix::sys::signal::Signal;
    let traces = tempfile::tempdir().unwrap();
    let agent = Agent::with(&["--record", traces.path().to_str().unwrap(), "--record-free", "0"], |_| {});
    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.child.id()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    // More than the ring for context takes, and nobody reads it.
    act("forks", &agent.dir, "60000", "");
    let mut unseen = Command::new(act_program())
        .args(["create".as_ref(), agent.dir.as_os_str(), "a.yaml".as_ref()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let container = Container::start(
        Path::new(env!("CARGO_BIN_EXE_detector")),
        &serde_json::json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-namespace": "detector",
            "io.kubernetes.cri.sandbox-name": "unseen",
        }),
    )
    .unwrap();
    let mut intruder =
        Command::new("nsenter").args(["--target", &container.pid.to_string(), "--pid", "sleep", "60"]).spawn().unwrap();
    // Whatever is younger than a second may be on its way in still.
    thread::sleep(Duration::from_millis(1200));
    // The kernel tells of an exec when its caller goes on already: it has once the program waits for its input.
    let stat = format!("/proc/{}/stat", unseen.id());
    while !fs::read_to_string(&stat).unwrap().contains("(act) S ") {
        thread::sleep(Duration::from_millis(1));
    }
    nix::sys::signal::kill(pid, Signal::SIGCONT).unwrap();
    let mut seen: Vec<Value> = Vec::new();
    let mut until = |wanted: &dyn Fn(&Value) -> bool| {
        let deadline = Instant::now() + 2 * PATIENCE;
        while !seen.iter().any(wanted) {
            let next = agent.alerts.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let titles = || seen.iter().map(|alert| alert["title"].to_string()).collect::<Vec<_>>();
            seen.push(next.unwrap_or_else(|error| panic!("{error}: {:?}", titles())));
        }
        seen.clone()
    };
    until(&|alert| alert["title"].as_str().unwrap().ends_with("events were lost in the kernel"));
    unseen.stdin.take().unwrap().write_all(POD.as_bytes()).unwrap();
    assert!(unseen.wait().unwrap().success());
    let manifest = agent.path("a.yaml");
    let is_planted = |alert: &Value| alert["file"]["path"] == *manifest.to_str().unwrap();
    let alert = until(&is_planted).into_iter().find(is_planted).unwrap();
    assert_named(&alert, unseen.id(), &act_program());
    assert_eq!(alert["process"]["argv"][1], "create");
    let entered = container.enter(&[]).unwrap();
    let seen = until(&|alert| alert["process"]["pid"] == entered);
    let into = seen.iter().filter(|alert| alert["technique"]["id"] == "container-exec");
    let into: Vec<_> = into.map(|alert| (&alert["pod"]["name"], alert["process"]["argv"][0].as_str())).collect();
    assert_eq!(into.len(), 2, "{into:?}");
    assert!(into.iter().all(|(pod, _)| **pod == "unseen"), "{into:?}");
    assert_eq!(into[0].1, Some("sleep"), "what came in meanwhile: {into:?}");
    drop(container);
    intruder.wait().unwrap();
    let stats = agent.stop();
    for hook in ["cgroup", "exec"] {
        assert!(stats["lost"][hook].as_u64().unwrap_or(0) > 0, "what acted began unseen: {stats}");
    }
    let mut replay = Command::new(env!("CARGO_BIN_EXE_detector"));
    replay.arg("replay").args(fs::read_dir(traces.path()).unwrap().map(|entry| entry.unwrap().path()));
    let told = String::from_utf8(replay.output().unwrap().stdout).unwrap();
    assert!(told.lines().any(|line| serde_json::from_str::<Value>(line).unwrap() == alert), "{told}");
}

#[test]
fn case_22_a_descriptor_older_than_the_agent() {
    let root = tempfile::tempdir().unwrap();
    let elsewhere = root.path().join("held.yaml");
    fs::write(&elsewhere, POD).unwrap();
    let mut holder = Command::new(act_program())
        .args(["held".as_ref(), root.path().as_os_str(), "held.yaml".as_ref()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 5];
    holder.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"open\n");
    let agent = Agent::with(&[], |dir| fs::hard_link(&elsewhere, dir.join("a.yaml")).unwrap());
    holder.stdin.take().unwrap().write_all(privileged().as_bytes()).unwrap();
    let pid = holder.id();
    assert!(holder.wait().unwrap().success());
    let alert = agent.alert("a.yaml", "modified");
    assert_named(&alert, pid, &act_program());
}

#[test]
fn case_23_trusted_names_earn_no_trust() {
    let agent = Agent::start();
    for name in ["kubelet", "sed", "dpkg", "iou-wrk-1"] {
        let program = agent.dir.parent().unwrap().join(name);
        fs::copy(act_program(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let file = format!("{name}.yaml");
        let (pid, _) = act_as(&program, "create", &agent.dir, &file, POD);
        assert_named(&agent.alert(&file, "added"), pid, &program);
    }
}

#[test]
fn case_24_under_a_flood_of_file_events() {
    let agent = Agent::start();
    let place = agent.dir.parent().unwrap().join("flood");
    fs::create_dir(&place).unwrap();
    let events = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let flooders: Vec<_> = (0..2)
        .map(|n| {
            let (place, stop, events) = (place.clone(), stop.clone(), events.clone());
            thread::spawn(move || {
                let (one, other) = (place.join(format!("{n}.a")), place.join(format!("{n}.b")));
                while !stop.load(Ordering::Relaxed) {
                    fs::write(&one, "x").unwrap();
                    fs::rename(&one, &other).unwrap();
                    fs::remove_file(&other).unwrap();
                    events.fetch_add(3, Ordering::Relaxed);
                }
            })
        })
        .collect();
    // The flood sets the pace, so that a slow machine makes as many events between two acts as a fast one.
    for n in 0..20 {
        let before = events.load(Ordering::Relaxed);
        let name = format!("{n}.yaml");
        let pid = act("create", &agent.dir, &name, POD);
        assert_named(&agent.alert(&name, "added"), pid, &act_program());
        while events.load(Ordering::Relaxed) < before + 1_000 {
            assert!(!flooders.iter().all(JoinHandle::is_finished), "the flood ended");
            thread::sleep(Duration::from_millis(1));
        }
    }
    stop.store(true, Ordering::Relaxed);
    for flooder in flooders {
        flooder.join().unwrap();
    }
    let stats = agent.stop();
    assert_eq!(stats["lost"], serde_json::json!({}), "{events:?} events");
}

#[test]
fn context_that_is_lost_while_the_agent_stands_still_is_told_and_alerts_still_come() {
    let agent = Agent::start();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    // A fork and its exit take 200 bytes of a ring of 8 MiB: more than it holds.
    act("forks", &agent.dir, "50000", "");
    let during = act("create", &agent.dir, "during.yaml", POD);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    // Whatever else goes on on this machine meanwhile is none of this test.
    let told = agent.rest();
    let path = agent.path("during.yaml");
    let planted: Vec<_> = told.iter().filter(|alert| alert["file"]["path"] == path.to_str().unwrap()).collect();
    let [planted] = planted.as_slice() else { panic!("one act, one alert: {planted:#?}") };
    assert_eq!(planted["process"]["pid"], during, "the other ring lost nothing: {planted:#}");
    // That it was stopped is told too.
    let loss = told.iter().find(|alert| alert["evidence"][0]["kind"] == "loss").expect("the loss is told");
    assert_eq!(loss["severity"], "low", "{loss:#}");
    let reason = loss["reasons"][0].as_str().unwrap();
    assert!(reason.starts_with("ring buffer full at ") && reason.contains("fork ("), "{loss:#}");
    let after = act("create", &agent.dir, "after.yaml", POD);
    assert_named(&agent.alert("after.yaml", "added"), after, &act_program());
    let stats = agent.stop();
    let lost = stats["lost"].as_object().unwrap();
    assert!(["exec", "exit", "fork"].iter().all(|hook| lost.contains_key(*hook)), "{lost:?}");
}

#[test]
fn without_the_inode_change_hooks_renames_and_links_are_still_attributed() {
    let without = ["inode-change-set", "inode-change-exchange", "inode-change-repeat"];
    let args: Vec<&str> = without.iter().flat_map(|name| ["--without-hook", name]).collect();
    for case in ["create", "rename", "move", "link", "io-uring"] {
        planted_by_with(case, &args);
    }
}

#[test]
fn without_the_inode_change_hooks_an_old_descriptor_is_still_attributed() {
    let root = tempfile::tempdir().unwrap();
    let elsewhere = root.path().join("held.yaml");
    fs::write(&elsewhere, POD).unwrap();
    let mut holder = Command::new(act_program())
        .args(["held".as_ref(), root.path().as_os_str(), "held.yaml".as_ref()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    holder.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
    let agent = Agent::with(&["--without-hook", "inode-change-exchange"], |dir| {
        fs::hard_link(&elsewhere, dir.join("a.yaml")).unwrap();
    });
    holder.stdin.take().unwrap().write_all(privileged().as_bytes()).unwrap();
    let pid = holder.id();
    assert!(holder.wait().unwrap().success());
    assert_eq!(agent.alert("a.yaml", "modified")["process"]["pid"], pid);
}

#[test]
fn removal_is_told_with_who_did_it() {
    let agent = Agent::with(&[], |dir| fs::write(dir.join("a.yaml"), POD).unwrap());
    let pid = act("unlink", &agent.dir, "a.yaml", "");
    assert_named(&agent.alert("a.yaml", "removed"), pid, &act_program());
}

#[test]
fn a_directory_that_comes_later_is_followed() {
    let agent = Agent::with(&[], |dir| fs::remove_dir(dir).unwrap());
    fs::create_dir(&agent.dir).unwrap();
    let pid = act("create", &agent.dir, "a.yaml", POD);
    assert_named(&agent.alert("a.yaml", "added"), pid, &act_program());
}

#[test]
fn reads_writes_next_door_and_touches_are_silent() {
    let agent = Agent::with(&[], |dir| fs::write(dir.join("a.yaml"), POD).unwrap());
    act("read", &agent.dir, "a.yaml", "");
    act("touch", &agent.dir, "a.yaml", "");
    act("create", agent.dir.parent().unwrap(), "next-door.yaml", POD);
    act("create", &agent.dir, "a.yaml", POD);
    agent.silent();
}

#[test]
fn a_dotfile_alone_is_low() {
    let agent = Agent::start();
    let pid = act("create", &agent.dir, ".hidden.yaml", &privileged());
    let alert = agent.alert(".hidden.yaml", "added");
    assert_eq!(alert["severity"], "low");
    assert_named(&alert, pid, &act_program());
    agent.silent();
}

#[test]
fn the_block_device_under_the_manifests_opened_for_writing() {
    let root = tempfile::tempdir().unwrap();
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let (image, place) = (root.path().join("image"), root.path().join("place"));
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    fs::create_dir(&place).unwrap();
    let (image, place) = (image.to_str().unwrap(), place.to_str().unwrap());
    run("mkfs.ext4", &["-q", image]);
    run("mount", &["-o", "loop", image, place]);
    let device = run("findmnt", &["-n", "-o", "SOURCE", place]);
    let dir = format!("{place}/manifests");
    fs::create_dir(&dir).unwrap();
    let agent = Agent::with(&["--manifest-dir", &dir], |_| {});
    // The twin: reading it, as blkid and udev do.
    drop(fs::File::open(&device).unwrap());
    agent.silent();
    drop(fs::OpenOptions::new().write(true).open(&device).unwrap());
    let rest = agent.rest();
    let unmounted = Command::new("umount").args(["-l", place]).status().unwrap();
    assert!(unmounted.success());
    assert_eq!(rest.len(), 1, "{rest:#?}");
    assert_eq!(rest[0]["process"]["pid"], std::process::id());
    assert_eq!(rest[0]["severity"], "high");
    assert!(rest[0]["title"].as_str().unwrap().contains(&device), "{}", rest[0]["title"]);
}

#[test]
fn severity_follows_what_the_manifest_asks_for() {
    let agent = Agent::start();
    act("create", &agent.dir, "a.yaml", POD);
    assert_eq!(agent.alert("a.yaml", "added")["severity"], "medium");
    act("create", &agent.dir, "b.yaml", &privileged());
    assert_eq!(agent.alert("b.yaml", "added")["severity"], "high");
}

#[test]
fn what_does_not_parse_is_an_alert_with_the_line() {
    let agent = Agent::start();
    act("create", &agent.dir, "a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: [unclosed\n");
    let alert = agent.alert("a.yaml", "added");
    assert!(alert["reasons"].to_string().contains("line "), "{alert:#}");
}

#[test]
fn a_manifest_written_in_pieces_is_one_alert() {
    let agent = Agent::start();
    let mut file = fs::File::create(agent.path("a.yaml")).unwrap();
    let text = privileged();
    for piece in text.as_bytes().chunks(20) {
        file.write_all(piece).unwrap();
    }
    drop(file);
    let alert = agent.alert("a.yaml", "added");
    assert_eq!(alert["file"]["sha256"], sha256(text.as_bytes()));
    assert!(agent.rest().is_empty(), "one change, one alert");
}

#[test]
fn hostile_entries_neither_stop_nor_fool_the_agent() {
    let agent = Agent::with(&[], |dir| {
        nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink(".", dir.join("loop")).unwrap();
        std::os::unix::fs::symlink("self", dir.join("self")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.join("zero")).unwrap();
        fs::File::create(dir.join("huge")).unwrap().set_len(1 << 40).unwrap();
        fs::write(dir.join("garbage"), [0xff, 0x00, 0x1b].repeat(1000)).unwrap();
    });
    let name = "new\nline\u{1b}[31m.yaml";
    let pid = act("create", &agent.dir, name, POD);
    assert_named(&agent.alert(name, "added"), pid, &act_program());
    nix::unistd::mkfifo(&agent.path("later"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    agent.alert("later", "added");
}

#[test]
fn ten_thousand_manifests() {
    let agent = Agent::with(&[], |dir| {
        for n in 0..10_000 {
            fs::write(dir.join(format!("{n}.yaml")), POD.replace("name: web\n", &format!("name: web-{n}\n"))).unwrap();
        }
    });
    let pid = act("create", &agent.dir, "new.yaml", &privileged());
    assert_named(&agent.alert("new.yaml", "added"), pid, &act_program());
    let pid = act("create", &agent.dir, "5000.yaml", &privileged());
    assert_named(&agent.alert("5000.yaml", "modified"), pid, &act_program());
}

fn detector(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_detector")).args(args).output().unwrap()
}

#[test]
fn the_drill_sees_its_own_act() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        detector(&["drill", "static-pod", "--no-default-dirs", "--manifest-dir", dir.path().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("PASSED"), "{said}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn the_drill_enters_a_container_and_takes_it_away_again() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        detector(&["drill", "container-exec", "--no-default-dirs", "--manifest-dir", dir.path().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("PASSED") && said.contains("Exec into drill of pod detector/drill"), "{said}");
    let left = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("detector-drill-")).count()
    };
    assert_eq!(left(&std::env::temp_dir()), 0, "nothing is left behind");
}

#[test]
fn the_drill_sees_a_pause_that_opens_connects_and_forks() {
    let dir = tempfile::tempdir().unwrap();
    let manifests = dir.path().to_str().unwrap();
    let output = detector(&["drill", "malicious-pause-container", "--no-default-dirs", "--manifest-dir", manifests]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for act in ["open seen", "socket seen", "process seen", "PASSED"] {
        assert!(said.contains(act), "{act}: {said}");
    }
}

#[test]
fn the_drill_says_where_it_looked_when_there_is_no_directory() {
    let output = detector(&["drill", "static-pod", "--no-default-dirs", "--manifest-dir", "/nonexistent/manifests"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/manifests"));
}

#[test]
fn doctor_fails_when_a_required_hook_is_missing_and_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["doctor", "--no-default-dirs", "--manifest-dir", dir.path().to_str().unwrap()];
    let output = detector(&args);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(dir.path().to_str().unwrap()), "{said}");
    let output = detector(&[&args[..], &["--without-hook", "syscall"]].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.lines().any(|line| line.contains("MISSING") && line.contains("syscall")), "{said}");
}

#[test]
fn a_pid_namespace_that_is_not_the_hosts_is_refused_by_name() {
    for command in ["run", "doctor"] {
        let output = Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc", env!("CARGO_BIN_EXE_detector"), command])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{command}");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("hostPID"), "{command}: {said}");
    }
}

#[test]
fn a_truncated_btf_file_is_named() {
    let whole = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&whole[..whole.len() / 2]).unwrap();
    for command in ["run", "doctor"] {
        let output = detector(&[command, "--btf", file.path().to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("truncated"), "{command}: {said}");
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    for args in
        [&["run", "--no-such-flag"][..], &["drill", "no-such-technique"], &["doctor", "--without-hook", "none"], &[]]
    {
        assert_eq!(detector(args).status.code(), Some(2), "{args:?}");
    }
}
