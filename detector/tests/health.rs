//! Metrics, probes and what systemd is told, of a real agent. Needs root; without it every test fails and says so.
#![expect(clippy::unwrap_used, reason = "a test helper that fails ends its test")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

mod inject;

use inject::Stopped;
#[cfg(target_arch = "x86_64")]
use inject::call_in;
use nix::{
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// How long anything may take before it is missed.
const PATIENCE: Duration = Duration::from_secs(60);
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: web, image: web:1}]}\n";

/// An agent that serves metrics and watches one directory of its own.
struct Agent {
    child: Child,
    said: Receiver<String>,
    address: String,
    root: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        Self::with(|_| Vec::new(), &[])
    }

    /// `arguments` get the agent's own directory.
    fn with(arguments: impl FnOnce(&Path) -> Vec<String>, environment: &[(&str, &str)]) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "live tests load BPF programs: run them as root (`sudo -E cargo xtask test`)"
        );
        let root = tempfile::tempdir().unwrap();
        let manifests = root.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_detector"))
            .args(["run", "--no-default-dirs", "--no-cri", "--metrics-listen", "127.0.0.1:0", "--manifest-dir"])
            .arg(&manifests)
            .args(arguments(root.path()))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (send, said) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut agent = Self { child, said, address: String::new(), root };
        let line = agent.until("metrics: http://");
        agent.address = line.strip_prefix("metrics: http://").unwrap().strip_suffix("/metrics").unwrap().to_owned();
        agent.until("ready:");
        agent
    }

    /// The next line on standard error that begins so.
    fn until(&self, begin: &str) -> String {
        let mut others = Vec::new();
        loop {
            match self.said.recv_timeout(PATIENCE) {
                Ok(line) if line.starts_with(begin) => return line,
                Ok(line) => others.push(line),
                Err(_) => panic!("no line {begin:?}, but {others:#?}"),
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    fn manifest(&self) -> PathBuf {
        self.root.path().join("manifests/web.yaml")
    }

    /// Status and body of the answer.
    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// The reasons that a probe gives, once it answers with this status.
    fn reasons(&self, path: &str, status: u16) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (found, body) = self.get(path);
            let answer: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
            if found == status {
                return answer["reasons"].as_array().unwrap().iter().map(|r| r.as_str().unwrap().to_owned()).collect();
            }
            assert!(Instant::now() < deadline, "{path} answers {found}: {answer}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Every sample, by its name and labels.
    fn samples(&self) -> BTreeMap<String, f64> {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200);
        let scrape = prometheus_parse::Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
        let named = |sample: prometheus_parse::Sample| {
            let mut labels: Vec<_> = sample.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            labels.sort();
            let value = match sample.value {
                prometheus_parse::Value::Histogram(buckets) => buckets.last().unwrap().count,
                prometheus_parse::Value::Counter(value)
                | prometheus_parse::Value::Gauge(value)
                | prometheus_parse::Value::Untyped(value) => value,
                prometheus_parse::Value::Summary(_) => panic!("{}", sample.metric),
            };
            (format!("{} {}", sample.metric, labels.join(",")).trim_end().to_owned(), value)
        };
        scrape.samples.into_iter().map(named).collect()
    }

    /// The samples, once one of them is at least so large.
    fn samples_when(&self, sample: &str, least: f64) -> BTreeMap<String, f64> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let samples = self.samples();
            if samples.get(sample).is_some_and(|value| *value >= least) {
                return samples;
            }
            assert!(Instant::now() < deadline, "{sample} is not {least} in {samples:#?}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_happens_is_counted_and_told_while_it_goes_on() {
    let agent = Agent::with(
        |root| {
            let text = |path: &str| root.join(path).display().to_string();
            let output = format!("file://{}", text("alerts.jsonl"));
            let away = format!("webhook+http://127.0.0.1:1/?spool={}", text("spool"));
            // However full this machine's disk is.
            let record = ["--record", &text("record"), "--record-free", "0"];
            record.into_iter().chain(["--output", &output, "--output", &away]).map(str::to_owned).collect()
        },
        &[],
    );
    assert_eq!(agent.reasons("/healthz", 200), [""; 0]);
    assert_eq!(agent.reasons("/readyz", 200), [""; 0]);
    assert_eq!(agent.reasons("/livez", 200), [""; 0]);
    let before = agent.samples();
    let told = "detector_alerts_total severity=medium,technique=static-pod";
    assert_eq!(before[told], 0.0);
    assert_eq!(before["detector_healthy"], 1.0);
    assert_eq!(before["detector_hook_attached backend=tracepoint,hook=exec"], 1.0);

    fs::write(agent.manifest(), POD).unwrap();
    let found = agent.samples_when(told, 1.0);
    assert_eq!(found[told], 1.0);
    assert!(found["detector_alert_latency_seconds"] >= 1.0);
    assert_eq!(found["detector_findings_total severity=medium,technique=static-pod"], 1.0);
    for (sample, least) in [
        ("detector_records_total kind=manifest", 1.0),
        ("detector_records_total kind=start", 1.0),
        ("detector_ring_size_bytes ring=alerting", 4096.0),
        ("detector_processes", 2.0),
        ("process_resident_memory_bytes", 1e6),
        ("process_open_fds", 20.0),
        ("process_start_time_seconds", 1e9),
        ("detector_attach_seconds", 1e-6),
    ] {
        assert!(found[sample] >= least, "{sample} is {}", found[sample]);
    }
    // Both sinks were given it, one has delivered it, and it waits for the other on disk; and it was recorded.
    let alerts = agent.root.path().join("alerts.jsonl").display().to_string();
    let file = |name: &str| format!("detector_sink_{name} sink=file://{alerts}");
    let found = agent.samples_when(&file("delivered_total"), 1.0);
    assert_eq!(found[&file("up")], 1.0);
    let webhook = |name: &str| {
        let begin = format!("detector_sink_{name} sink=webhook");
        found.iter().find(|(sample, _)| sample.starts_with(&begin)).map(|(_, value)| *value).unwrap()
    };
    let alerts = webhook("alerts_total");
    assert!(alerts >= 1.0);
    assert_eq!((webhook("delivered_total"), webhook("spooled") + webhook("queued")), (0.0, alerts));
    assert!(webhook("spool_bytes") > 100.0 && webhook("spool_size_bytes") > webhook("spool_bytes"));
    agent.samples_when("detector_recorder_written_bytes_total", 100.0);
    agent.samples_when("detector_recorder_segments", 1.0);
}

/// A descriptor of a link is closed in the agent, by whoever got into it: the hook is gone, and the agent says so everywhere.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_hook_that_is_really_detached_is_said_by_probe_metric_and_standard_error() {
    let agent = Agent::start();
    assert_eq!(agent.reasons("/healthz", 200), [""; 0]);
    let links = inject::links(agent.pid());
    assert!(links.len() > 5, "{links:?}");
    let attached = |samples: &BTreeMap<String, f64>| {
        let hooks = samples.iter().filter(|(name, _)| name.starts_with("detector_hook_attached"));
        hooks.map(|(_, value)| value).sum::<f64>()
    };
    let before = attached(&agent.samples());
    // From outside nobody can: the kernel detaches no such link by its id.
    let refused = detach(&agent, links[0]).unwrap_err();
    assert!(matches!(refused.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPERM)), "{refused}");
    call_in(agent.pid(), libc::SYS_close, u64::try_from(links[0]).unwrap());
    assert!(!inject::links(agent.pid()).contains(&links[0]), "the descriptor is still open");

    let reasons = agent.reasons("/healthz", 503);
    // Closed, or by now another one's: the agent opens files all the time.
    assert!(reasons.len() == 1 && reasons[0].contains("is not attached any more: its descriptor is "), "{reasons:?}");
    assert_eq!(agent.reasons("/livez", 503), reasons);
    assert_eq!(agent.until("degraded: hook"), format!("degraded: {}", reasons[0]));
    let samples = agent.samples_when("detector_loop_silent_seconds", 0.0);
    assert_eq!((attached(&samples), samples["detector_healthy"]), (before - 1.0, 0.0));
}

/// Asks the kernel to detach an agent's link by its id, as anybody with CAP_SYS_ADMIN can.
#[cfg(target_arch = "x86_64")]
fn detach(agent: &Agent, link: i32) -> std::io::Result<()> {
    const LINK_GET_FD_BY_ID: i32 = 30;
    const LINK_DETACH: i32 = 34;
    let bpf = |command: i32, argument: u32| {
        // Longer than what either command reads.
        let mut attributes = [0_u32; 32];
        attributes[0] = argument;
        // SAFETY: the kernel reads that many bytes from there.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attributes, size_of_val(&attributes)) };
        if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(u32::try_from(done).unwrap()) }
    };
    let info = fs::read_to_string(format!("/proc/{}/fdinfo/{link}", agent.pid())).unwrap();
    let id = info.lines().find_map(|line| line.strip_prefix("link_id:")).unwrap().trim().parse().unwrap();
    bpf(LINK_DETACH, bpf(LINK_GET_FD_BY_ID, id)?).map(drop)
}

#[test]
fn a_loop_that_hangs_is_no_life_and_keeps_the_watchdog_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, path) = manager(dir.path());
    let agent = Agent::with(|_| Vec::new(), &[("NOTIFY_SOCKET", &path), ("WATCHDOG_USEC", "1000000")]);
    let mut said = Vec::new();
    wait_for(&manager, &mut said, "WATCHDOG=1");
    wait_for(&manager, &mut said, "WATCHDOG=1");
    let stopped = Stopped::main_thread(agent.pid());
    // What was sent before it was stopped.
    drain(&manager);
    let reasons = agent.reasons("/livez", 503);
    assert!(reasons[0].starts_with("the source stalls: no step for "), "{reasons:?}");
    assert_eq!(agent.reasons("/healthz", 503).len(), 1);
    assert_eq!(agent.get("/readyz").0, 200);
    assert_eq!(drain(&manager), [""; 0], "the watchdog is fed though nothing steps");
    drop(stopped);
    assert_eq!(agent.reasons("/livez", 200), [""; 0]);
    wait_for(&manager, &mut said, "WATCHDOG=1");
}

#[test]
fn the_service_manager_is_told_of_start_reload_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, path) = manager(dir.path());
    let config = dir.path().join("config.yaml");
    fs::write(&config, "grouping: {window: 1s}\n").unwrap();
    let named = config.display().to_string();
    let mut agent = Agent::with(|_| vec!["--config".to_owned(), named], &[("NOTIFY_SOCKET", &path)]);
    let mut said = Vec::new();
    wait_for(&manager, &mut said, "READY=1");
    let status = said.iter().find(|line| line.starts_with("STATUS=watching; ")).unwrap_or_else(|| panic!("{said:?}"));
    assert!(status.contains(" hooks attached"), "{status}");
    assert!(!said.iter().any(|line| line.starts_with("WATCHDOG")), "nobody asked for it: {said:?}");

    kill(agent.pid(), Signal::SIGHUP).unwrap();
    let mut said = Vec::new();
    wait_for(&manager, &mut said, "READY=1");
    let reloading = said.iter().position(|line| line == "RELOADING=1").unwrap_or_else(|| panic!("{said:?}"));
    let usec = said[reloading + 1].strip_prefix("MONOTONIC_USEC=").unwrap();
    assert!(usec.parse::<u64>().unwrap() > 0);

    kill(agent.pid(), Signal::SIGTERM).unwrap();
    wait_for(&manager, &mut Vec::new(), "STOPPING=1");
    assert!(agent.child.wait().unwrap().success());
}

#[test]
fn an_address_that_is_taken_ends_the_start_with_what_to_do() {
    let agent = Agent::start();
    let second = Command::new(env!("CARGO_BIN_EXE_detector"))
        .args(["run", "--no-default-dirs", "--manifest-dir", "/nonexistent", "--metrics-listen", &agent.address])
        .output()
        .unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success());
    assert!(said.contains("cannot be listened on; choose another with --metrics-listen"), "{said}");
    assert!(said.contains("Address already in use"), "{said}");
}

/// A service manager's socket, and its name.
fn manager(dir: &Path) -> (UnixDatagram, String) {
    let path = dir.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    (socket, path.to_str().unwrap().to_owned())
}

/// Reads until this line comes; the lines until then, it included, are added.
fn wait_for(manager: &UnixDatagram, said: &mut Vec<String>, wanted: &str) {
    loop {
        let mut bytes = [0; 8192];
        let len = manager.recv(&mut bytes).unwrap_or_else(|error| panic!("no {wanted}: {error}; {said:?}"));
        let before = said.len();
        said.extend(String::from_utf8(bytes[..len].to_vec()).unwrap().lines().map(str::to_owned));
        if said[before..].iter().any(|line| line == wanted) {
            return;
        }
    }
}

/// Whatever is there now.
fn drain(manager: &UnixDatagram) -> Vec<String> {
    manager.set_nonblocking(true).unwrap();
    let mut said = Vec::new();
    let mut bytes = [0; 8192];
    while let Ok(len) = manager.recv(&mut bytes) {
        said.push(String::from_utf8(bytes[..len].to_vec()).unwrap());
    }
    manager.set_nonblocking(false).unwrap();
    said
}
