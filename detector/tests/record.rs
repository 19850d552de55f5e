//! What a real agent recorded is told again, byte for byte. Needs root; without it every test fails and says so.
#![expect(clippy::unwrap_used, reason = "a test helper that fails ends its test")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const DETECTOR: &str = env!("CARGO_BIN_EXE_detector");
const PATIENCE: Duration = Duration::from_secs(10);
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: web, image: web:1}]}\n";

/// An agent that records, and everything that it prints.
struct Agent {
    child: Child,
    root: tempfile::TempDir,
    alerts: JoinHandle<String>,
}

impl Agent {
    /// `arguments` get the directory that the recording may lie in.
    fn start(arguments: impl FnOnce(&Path) -> Vec<String>) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "live tests load BPF programs: run them as root (`sudo -E cargo xtask test`)"
        );
        let root = tempfile::tempdir().unwrap();
        let manifests = root.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        let mut child = Command::new(DETECTOR)
            .args(arguments(root.path()))
            .args(["--no-default-dirs", "--no-cri", "--manifest-dir"])
            .arg(&manifests)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let alerts = thread::spawn(move || std::io::read_to_string(stdout).unwrap());
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("ready:") {
            assert_ne!(errors.read_line(&mut said).unwrap(), 0, "the agent did not start: {said}");
        }
        thread::spawn(move || std::io::copy(&mut errors, &mut std::io::stderr()));
        Self { child, root, alerts }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("record")
    }

    /// Plants, changes and removes a manifest, with programs of its own around it.
    fn act(&self, name: &str) {
        let path = self.root.path().join("manifests").join(name);
        let script = "cat >\"$0\" <<<\"$1\"; sleep 0.3; echo '# more' >>\"$0\"; sleep 0.3; rm \"$0\"; sleep 0.3";
        assert!(Command::new("bash").arg("-c").arg(script).arg(&path).arg(POD).status().unwrap().success());
    }

    fn stop(mut self, signal: Signal) -> (String, tempfile::TempDir) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
        self.child.wait().unwrap();
        (self.alerts.join().unwrap(), self.root)
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = found.filter(|path| path.extension().is_some_and(|is| is == "trace")).collect();
    found.sort();
    found
}

/// As a stranger would: without root, in another time zone.
fn replay(files: &[PathBuf], arguments: &[&str]) -> Output {
    // The test's own directories are root's alone.
    let inputs: Vec<_> = files.iter().map(|file| fs::File::open(file).unwrap()).collect();
    let mut command = Command::new("sh");
    let cat: Vec<_> = inputs.iter().enumerate().map(|(at, _)| format!("/dev/fd/{}", 10 + at)).collect();
    let raw: Vec<_> = inputs.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
    command.arg("-c").arg(format!("cat {} | exec \"$0\" replay --output stdout:json \"$@\" -", cat.join(" ")));
    command.arg(copy_of_the_program()).args(arguments).env("TZ", "Asia/Tokyo").stdin(Stdio::null());
    // SAFETY: dup2 is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            for (at, fd) in raw.iter().enumerate() {
                let to = 10 + i32::try_from(at).unwrap_or(0);
                if nix::libc::dup2(*fd, to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        })
    };
    command.uid(65_534).gid(65_534);
    command.output().unwrap()
}

/// Where nobody may read the build directory.
fn copy_of_the_program() -> PathBuf {
    let path = std::env::temp_dir().join(format!("detector-replay-{}", std::process::id()));
    if !path.exists() {
        fs::copy(DETECTOR, &path).unwrap();
    }
    path
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `run` with a recorder, however full the disk is.
fn recording(root: &Path) -> Vec<String> {
    let record = format!("--record={}/record", root.display());
    vec!["run".into(), "--output=stdout:json".into(), record, "--record-free=0".into()]
}

#[test]
fn a_recorded_run_is_told_again_byte_for_byte_without_root_and_in_another_time_zone() {
    let agent = Agent::start(recording);
    agent.act("web.yaml");
    let dir = agent.dir();
    let (live, _root) = agent.stop(Signal::SIGTERM);
    assert_eq!(live.lines().count(), 3, "{live}");
    let found = segments(&dir);
    assert_eq!(found.len(), 1);
    let again = replay(&found, &[]);
    assert_eq!(text(&again.stdout), live, "{}", text(&again.stderr));
    assert_eq!((again.status.code(), text(&again.stderr)), (Some(0), String::new()));
    // What was found is kept, as evidence that is complete by itself.
    let evidence = segments(&dir.join("evidence"));
    assert_eq!(evidence.len(), 1);
    assert_eq!(text(&replay(&evidence, &[]).stdout), live);
    // Filters and the exit code.
    let high = replay(&found, &["--fail-on", "critical"]);
    assert_eq!(high.status.code(), Some(0));
    let some = replay(&found, &["--fail-on", "low", "--technique", "static-pod"]);
    assert_eq!(some.status.code(), Some(3));
    let none = replay(&found, &["--fail-on", "low", "--technique", "container-exec"]);
    assert_eq!((none.status.code(), text(&none.stdout)), (Some(0), String::new()));
    let later = replay(&found, &["--from", "2099-01-01T00:00:00Z"]);
    assert_eq!(text(&later.stdout), "");
}

#[test]
fn a_killed_agent_leaves_all_but_the_last_second() {
    let agent = Agent::start(recording);
    agent.act("web.yaml");
    thread::sleep(Duration::from_millis(1500));
    let dir = agent.dir();
    let (live, _root) = agent.stop(Signal::SIGKILL);
    assert_eq!(live.lines().count(), 3, "{live}");
    let again = replay(&segments(&dir), &[]);
    assert_eq!(text(&again.stdout), live, "{}", text(&again.stderr));
    assert!(text(&again.stderr).contains("has no end"), "{}", text(&again.stderr));
}

#[test]
fn one_file_has_the_whole_stream_and_prints_nothing() {
    let agent = Agent::start(|root| vec!["record".into(), "-o".into(), format!("{}/one.trace", root.display())]);
    agent.act("web.yaml");
    let (printed, root) = agent.stop(Signal::SIGINT);
    assert_eq!(printed, "");
    let again = replay(&[root.path().join("one.trace")], &[]);
    assert_eq!(text(&again.stdout).lines().count(), 3, "{}", text(&again.stderr));
}

#[test]
fn segments_follow_one_another_within_their_bound_and_are_one_stream() {
    // The smallest size there is: segments of 1 MiB, of which few may be there.
    let agent = Agent::start(|root| {
        let mut arguments = recording(root);
        arguments.push("--record-size=3MiB".into());
        arguments
    });
    agent.act("early.yaml");
    let deadline = Instant::now() + 12 * PATIENCE;
    // Programs with arguments that no two have in common do not compress well.
    while segments(&agent.dir()).len() < 2 {
        assert!(Instant::now() < deadline, "no second segment: {:?}", segments(&agent.dir()));
        let noise = "for i in $(seq 300); do /bin/true $(head -c 600 /dev/urandom | base64 -w0); done";
        assert!(Command::new("bash").args(["-c", noise]).status().unwrap().success());
    }
    agent.act("late.yaml");
    let dir = agent.dir();
    let (live, _root) = agent.stop(Signal::SIGTERM);
    let found = segments(&dir);
    let again = replay(&found, &[]);
    assert_eq!(text(&again.stdout), live, "{}", text(&again.stderr));
    // The last one by itself, as if the others had been dropped.
    let last = replay(&found[found.len() - 1..], &[]);
    let late: String = live.lines().filter(|line| line.contains("late.yaml")).map(|line| format!("{line}\n")).collect();
    assert_eq!(late.lines().count(), 3);
    assert_eq!(text(&last.stdout), late, "{}", text(&last.stderr));
    let total: u64 = found.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(total <= 5 << 20, "{total}");
}

#[test]
fn what_is_no_trace_is_an_error_that_says_so() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("no.trace");
    fs::write(&path, "hello").unwrap();
    for (file, says) in
        [(path.as_path(), "not a trace"), (Path::new("/nonexistent"), "No such file"), (root.path(), "a directory")]
    {
        let output = Command::new(DETECTOR).arg("replay").arg(file).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{file:?}");
        assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
    }
    let usage = Command::new(DETECTOR).args(["replay", "--speed", "fast", "x"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}
