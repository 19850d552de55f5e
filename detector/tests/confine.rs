//! What the agent gives up, tried: the kernel's word on each thread of a running agent, and attempts of a process that confines itself
//! by the same functions, each beside the same attempt of one that does not. Needs root; without it every test fails and says so.
#![expect(clippy::unwrap_used, reason = "a test helper that fails ends its test")]

#[expect(dead_code, reason = "other tests use the rest")]
mod receivers;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{
        fs::{PermissionsExt as _, chown, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use receivers::{Http, Https, Rsyslog, certificates, wait_for};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
/// CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE.
const READ: u64 = 1 << 2;
const PTRACE: u64 = 1 << 19;
const OVERRIDE: u64 = 1 << 1;
const NOBODY: &str = "65534";

fn needs_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "these tests load BPF programs and give up root's rights: run them as root (`sudo -E cargo xtask test`)"
    );
}

/// An agent with a configuration of its own.
struct Agent {
    child: Child,
    root: tempfile::TempDir,
    errors: Receiver<String>,
    said: Vec<String>,
}

impl Agent {
    fn start(config: impl FnOnce(&Path) -> String, arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), config, arguments)
    }

    fn start_in(root: tempfile::TempDir, config: impl FnOnce(&Path) -> String, arguments: &[&str]) -> Self {
        needs_root();
        let manifests = root.path().join("manifests");
        let _ = fs::create_dir(&manifests);
        let file = root.path().join("config.yaml");
        fs::write(&file, config(root.path())).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_detector"))
            .args(["run", "--no-default-dirs", "--group-window", "0s", "--rate-limit", "0", "--manifest-dir"])
            .arg(&manifests)
            .arg("--config")
            .arg(&file)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (send, errors) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("agent: {line}");
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut agent = Self { child, root, errors, said: Vec::new() };
        agent.says("ready: ");
        agent
    }

    /// The line that begins so.
    fn says(&mut self, beginning: &str) -> String {
        loop {
            let line = self.errors.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("it does not say {beginning:?}: {:#?}", self.said));
            self.said.push(line.clone());
            if line.starts_with(beginning) {
                return line;
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Plants a manifest, which is an alert.
    fn plant(&self, name: &str) {
        fs::write(self.path("manifests").join(name), "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n").unwrap();
    }

    /// The fields of `/proc/<pid>/task/<tid>/status`, by the thread's name.
    fn threads(&self) -> Vec<(String, BTreeMap<String, String>)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let status = |task: fs::DirEntry| {
            // One that ends meanwhile is none of them.
            let text = fs::read_to_string(task.path().join("status")).ok()?;
            let fields = text.lines().filter_map(|line| line.split_once(":\t"));
            let fields: BTreeMap<_, _> = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            Some((fields.get("Name")?.clone(), fields))
        };
        tasks.filter_map(|task| status(task.ok()?)).collect()
    }

    /// Ends it, and its statistics.
    fn stop(mut self) -> (Value, tempfile::TempDir) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
        let stats = self.says("stats: ");
        assert!(self.child.wait().unwrap().success());
        let root = std::mem::replace(&mut self.root, tempfile::tempdir().unwrap());
        (serde_json::from_str(stats.strip_prefix("stats: ").unwrap()).unwrap(), root)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bits(fields: &BTreeMap<String, String>, name: &str) -> u64 {
    u64::from_str_radix(&fields[name], 16).unwrap()
}

#[test]
fn each_thread_of_the_agent_has_what_it_needs_and_nothing_else() {
    needs_root();
    let foreign = tempfile::tempdir().unwrap();
    chown(foreign.path(), Some(1000), None).unwrap();
    let url = format!("file://{}/alerts.jsonl", foreign.path().display());
    let config = |root: &Path| {
        let here = root.display();
        fs::write(root.join("header"), "X-Token: a\n").unwrap();
        format!(
            "outputs: [stdout:json, {url:?}, 'syslog+udp://127.0.0.1:9', 'webhook+http://127.0.0.1:9/?header_file={here}/header']\n\
             spool: {here}/spool\nrecord: {{dir: {here}/record}}\n"
        )
    };
    let agent = Agent::start(config, &["--cri-socket", "/nonexistent/runtime.sock"]);
    let confined = agent.said.iter().filter(|line| line.starts_with("confined: ")).cloned().collect::<Vec<_>>();
    assert_eq!(confined.len(), 1, "{:?}", agent.said);
    assert!(confined[0].contains("CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE; writes as nobody"), "{confined:?}");
    assert!(!agent.said.iter().any(|line| line.contains("degraded: confinement")), "{:?}", agent.said);
    agent.plant("a.yaml");
    let threads = agent.threads();
    let mut found: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for (name, fields) in &threads {
        found.entry(name.as_str()).or_default().push(bits(fields, "CapPrm"));
        assert_eq!(bits(fields, "CapPrm"), bits(fields, "CapEff"), "{name}");
        for empty in ["CapInh", "CapBnd", "CapAmb"] {
            assert_eq!(bits(fields, empty), 0, "{name} {empty}");
        }
        assert_eq!((fields["NoNewPrivs"].as_str(), fields["Seccomp"].as_str()), ("1", "2"), "{name}");
        // The last of the four: as whom it touches files.
        let as_nobody = fields["Uid"].ends_with(NOBODY) && fields["Gid"].ends_with(NOBODY);
        assert_eq!(as_nobody, name == "detector", "{name}");
        assert!(name != "detector" || fields["Groups"].trim().is_empty(), "{}", fields["Groups"]);
    }
    found.values_mut().for_each(|found| found.sort_unstable());
    let expected = BTreeMap::from([
        ("acting", vec![READ | PTRACE]),
        ("audit", vec![READ | PTRACE]),
        ("config", vec![READ]),
        ("cri", vec![READ | PTRACE]),
        ("detector", vec![READ | PTRACE]),
        ("opener", vec![READ | OVERRIDE]),
        ("recorder", vec![0]),
        // Standard output; two for the syslog server and two for the webhook, of which one of each finds hosts; a file of somebody's.
        ("sink", vec![0, 0, 0, OVERRIDE, READ, READ]),
    ]);
    assert_eq!(found, expected);
    wait_for("the alert in somebody's directory", || {
        fs::read_to_string(foreign.path().join("alerts.jsonl")).is_ok_and(|text| text.contains("a.yaml"))
    });
    agent.stop();
}

#[test]
fn an_agent_that_is_told_to_gives_nothing_up() {
    let agent = Agent::start(|_| "outputs: [stdout:json]\n".to_owned(), &["--no-confine"]);
    assert!(!agent.said.iter().any(|line| line.starts_with("confined:")), "{:?}", agent.said);
    let own = fs::read_to_string("/proc/thread-self/status").unwrap();
    for (name, fields) in agent.threads() {
        assert!(own.contains(&format!("CapEff:\t{}", fields["CapEff"])), "{name}");
        assert_eq!((fields["NoNewPrivs"].as_str(), fields["Seccomp"].as_str()), ("0", "0"), "{name}");
    }
    agent.stop();
}

#[test]
fn what_cannot_be_given_up_is_said() {
    needs_root();
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new("setpriv")
        .args(["--bounding-set", "-all,+bpf,+perfmon,+sys_ptrace,+dac_read_search", env!("CARGO_BIN_EXE_detector")])
        .args(["run", "--no-default-dirs", "--no-cri", "--output", "stdout:json", "--manifest-dir"])
        .arg(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let said: Vec<_> = lines.take_while(|line| !line.starts_with("ready: ")).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    let confined = said.iter().find(|line| line.starts_with("confined: ")).unwrap_or_else(|| panic!("{said:?}"));
    assert!(confined.contains("CAP_SYS_PTRACE; writes as root (becoming nobody takes CAP_SETUID"), "{confined}");
}

/// What comes of an attempt of a free process, of the main thread of a confined one, and of a thread that writes its own files.
/// `-` is not tried.
const ATTEMPTS: &[(&str, &str, &str, &str)] = &[
    ("execute", "done", "EPERM", "EPERM"),
    ("fork", "done", "EPERM", "EPERM"),
    ("start a thread", "done", "done", "done"),
    ("mount", "done", "EPERM", "EPERM"),
    ("trace a process", "done", "EPERM", "EPERM"),
    ("write to a process", "done", "EACCES", "EACCES"),
    ("signal a process", "done", "EPERM", "EPERM"),
    ("look into a process", "done", "done", "EACCES"),
    ("ask which program a process is", "done", "done", "EACCES"),
    ("load a program", "done", "EPERM", "EPERM"),
    ("make a map", "done", "EPERM", "EPERM"),
    ("use a map", "done", "done", "done"),
    ("join namespaces", "done", "EPERM", "EPERM"),
    ("make namespaces", "done", "EPERM", "EPERM"),
    ("load a module", "-", "EPERM", "EPERM"),
    ("open a device by its number", "done", "EPERM", "EPERM"),
    ("make code", "done", "EPERM", "EPERM"),
    ("be root again", "done", "EACCES", "EACCES"),
    ("raise capabilities", "-", "EPERM", "EPERM"),
    ("open a raw socket", "done", "EPERM", "EPERM"),
    ("listen", "done", "done", "EACCES"),
    ("send", "done", "done", "done"),
    ("find an address", "done", "done", "done"),
    ("connect to root's socket", "done", "EACCES", "-"),
    ("connect to everybody's socket", "done", "done", "done"),
    ("write root's file", "done", "EACCES", "EACCES"),
    ("write root's file by openat2", "done", "EACCES", "EACCES"),
    ("write root's file by its process", "done", "EACCES", "EACCES"),
    ("make a file", "done", "EACCES", "EACCES"),
    ("remove root's file", "done", "EACCES", "EACCES"),
    ("read root's file", "done", "done", "EACCES"),
    ("read somebody's file", "done", "done", "EACCES"),
    ("read somebody's file by his process", "done", "done", "EACCES"),
    ("read the own file", "done", "done", "done"),
    ("write an own file", "done", "EACCES", "done"),
    ("put an own file aside", "done", "EACCES", "done"),
];

#[test]
fn what_is_given_up_is_refused_and_what_is_needed_works() {
    needs_root();
    let program = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples/confined");
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name);
    fs::set_permissions(files.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(path("own/evidence")).unwrap();
    for (name, mode, owner) in
        [("roots", 0o644, 0), ("removable", 0o644, 0), ("somebodys", 0o600, 1000), ("own/config", 0o600, 1000)]
    {
        fs::write(path(name), "").unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
        chown(path(name), Some(owner), None).unwrap();
    }
    let _sockets = [("socket", 0o600), ("open-socket", 0o666)].map(|(name, mode)| {
        let socket = UnixListener::bind(path(name)).unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
        socket
    });
    let mut victim = Command::new("sleep").arg("300").spawn().unwrap();
    let attempt = |how: &str, name: &str| {
        let output =
            Command::new(&program).args([how, name]).arg(files.path()).arg(victim.id().to_string()).output().unwrap();
        assert!(output.status.success(), "{how} {name}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let mut wrong = Vec::new();
    for (name, free, main, thread) in ATTEMPTS {
        for (how, expected) in [("free", free), ("main", main), ("thread", thread), ("child", thread)] {
            if *expected != "-" {
                let came = attempt(how, name);
                if came != **expected {
                    wrong.push(format!("{how}: {name}: {came}, not {expected}"));
                }
            }
        }
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Certificates are read at the start, hosts are found when a receiver is back, a secret is read for every request, spools and files
/// grow and are put aside, segments too; and a configuration that names other files is taken up.
#[test]
fn a_confined_agent_delivers_spools_rotates_records_and_reloads() {
    let root = tempfile::tempdir().unwrap();
    let receivers = tempfile::tempdir().unwrap();
    certificates(receivers.path());
    let mut rsyslog = Rsyslog::start(receivers.path());
    let (http, https) = (Http::start(0), Https::start(receivers.path()));
    let (there, secret) = (receivers.path().display().to_string(), root.path().join("secret"));
    fs::create_dir(&secret).unwrap();
    let token = |version: u32| {
        fs::create_dir(secret.join(format!("..{version}"))).unwrap();
        fs::write(secret.join(format!("..{version}/token")), format!("X-Token: {version}\n")).unwrap();
        symlink(format!("..{version}"), secret.join("..new")).unwrap();
        fs::rename(secret.join("..new"), secret.join("..data")).unwrap();
    };
    token(1);
    symlink("..data/token", secret.join("token")).unwrap();
    let (tls, tcp) = (rsyslog.tls, rsyslog.tcp);
    let outputs = |root: &Path, file: &str| {
        let here = root.display();
        format!(
            "outputs:\n- file://{here}/{file}?rotate=4096&keep=3\n- syslog+tls://localhost:{}?ca={there}/ca.pem&cert={there}/client.pem&key={there}/client.key\n\
             - syslog+tcp://localhost:{}\n- webhook+http://localhost:{}/?header_file={here}/secret/token\n\
             - webhook+https://localhost:{}/?ca={there}/ca.pem&cert={there}/client.pem&key={there}/client.key\n\
             spool: {here}/spool\nrecord: {{dir: {here}/record, free_percent: 0}}\n",
            tls, tcp, http.port, https.port
        )
    };
    let first = outputs(root.path(), "alerts.jsonl");
    let mut agent = Agent::start_in(root, |_| first, &[]);
    let spooled = |agent: &Agent| {
        let dirs = fs::read_dir(agent.path("spool")).unwrap().map(|dir| dir.unwrap().path());
        let files = dirs.flat_map(|dir| fs::read_dir(dir).unwrap()).map(|file| file.unwrap().metadata().unwrap().len());
        files.sum::<u64>()
    };
    agent.plant("1.yaml");
    // Others may do on this host what is an alert too.
    let ours = |alert: &Value| alert["technique"]["id"] == "static-pod";
    let posted = || http.requests().into_iter().filter(|request| ours(&request.body)).collect::<Vec<_>>();
    let came = |rsyslog: &Rsyslog, way: &str, count: usize| {
        wait_for(&format!("{count} manifests by {way}"), || {
            let messages = rsyslog.messages(way, 1).into_iter().filter(|message| ours(&message["alert"]));
            messages.map(|message| message["alert"]["file"]["path"].to_string()).collect::<BTreeSet<_>>().len() == count
        });
    };
    came(&rsyslog, "tls", 1);
    came(&rsyslog, "tcp", 1);
    wait_for("the webhook's request", || posted().len() == 1);
    assert_eq!(posted()[0].headers["x-token"], "1");

    // Receivers go; what happens waits on disk, and comes when they are back.
    rsyslog.kill();
    token(2);
    for n in 2..8 {
        agent.plant(&format!("{n}.yaml"));
        thread::sleep(Duration::from_millis(100));
    }
    wait_for("the webhook's other requests", || posted().len() == 7);
    assert_eq!(posted()[6].headers["x-token"], "2");
    wait_for("the spool", || spooled(&agent) > 4096);
    wait_for("the file put aside", || agent.path("alerts.jsonl.1").exists());
    rsyslog.again();
    came(&rsyslog, "tls", 7);
    came(&rsyslog, "tcp", 7);

    // Another file, in a directory that is new.
    fs::create_dir(agent.path("other")).unwrap();
    let new = outputs(agent.root.path(), "other/alerts.jsonl");
    let sinks = |agent: &Agent| {
        let threads = agent.threads().into_iter().filter(|(name, _)| name == "sink");
        threads.map(|(_, fields)| fields["Pid"].clone()).collect::<BTreeSet<_>>()
    };
    let before = sinks(&agent);
    fs::write(agent.path("config.yaml"), new).unwrap();
    agent.says("config: read again, in force from now on");
    wait_for("the new sinks", || {
        let now = sinks(&agent);
        now.len() == 9 && now.is_disjoint(&before)
    });
    for (name, fields) in agent.threads() {
        assert!(bits(&fields, "CapEff") & !(READ | PTRACE | OVERRIDE) == 0 && fields["Seccomp"] == "2", "{name}");
    }
    agent.plant("8.yaml");
    wait_for("the alert in the new file", || {
        fs::read_to_string(agent.path("other/alerts.jsonl")).is_ok_and(|text| text.contains("8.yaml"))
    });
    came(&rsyslog, "tls", 8);

    let degraded: Vec<_> = agent.said.iter().filter(|line| line.starts_with("degraded: ")).cloned().collect();
    assert!(!degraded.iter().any(|line| line.contains("ermission") || line.contains("not permitted)")), "{degraded:?}");
    let (stats, root) = agent.stop();
    for sink in stats["sinks"].as_array().unwrap() {
        assert_eq!((sink["dropped"].as_u64(), sink["waiting"].as_u64()), (Some(0), Some(0)), "{sink}");
    }
    assert_eq!(stats["recorded"]["dropped"], 0);
    let traces = |dir: &Path| {
        let entries = fs::read_dir(dir).unwrap().filter_map(Result::ok);
        entries.filter(|entry| entry.path().extension().is_some_and(|is| is == "trace")).count()
    };
    let record = root.path().join("record");
    assert!(traces(&record) > 0 && traces(&record.join("evidence")) > 0, "a finding keeps its segment");
}

/// Without the change hooks, who writes through a descriptor that is older than the watch is seen at the end of the system call. That
/// hook is attached while there are such descriptors.
#[test]
fn a_confined_agent_attaches_what_it_loaded_at_its_start() {
    // Where this way does not attach either, the ends of system calls are not seen otherwise.
    let mut arguments = vec!["--hooks", "fentry"];
    for hook in ["inode-change-set", "inode-change-exchange", "inode-change-repeat"] {
        arguments.extend(["--without-hook", hook]);
    }
    let output = |root: &Path| format!("outputs: ['file://{}/a.jsonl']\n", root.display());
    let agent = Agent::start(output, &arguments);
    let (outside, inside) = (agent.path("b.yaml"), agent.path("manifests/b.yaml"));
    let alerts = || {
        let text = fs::read_to_string(agent.path("a.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    for round in 1..=2 {
        fs::write(&outside, "kind: Pod\n").unwrap();
        let mut old = fs::File::options().append(true).open(&outside).unwrap();
        fs::rename(&outside, &inside).unwrap();
        let of = |change: &'static str| move |alert: &Value| alert["file"]["change"] == change;
        let count = |change| alerts().into_iter().filter(of(change)).count();
        wait_for("the manifest", || count("added") == round);
        old.write_all(b"# more\n").unwrap();
        wait_for("its change", || count("modified") == round);
        let change = alerts().into_iter().rfind(of("modified")).unwrap();
        assert_eq!(change["process"]["pid"], std::process::id(), "{change:#}");
        assert!(change["evidence"].to_string().contains("write"), "{change:#}");
        drop(old);
        fs::remove_file(&inside).unwrap();
        wait_for("its end", || count("removed") == round);
    }
    let (_, root) = agent.stop();
    drop(root);
}

/// A file of whom the agent may not read any more is no surprise: a reload says so, and what was there before stays.
#[test]
fn a_reload_that_cannot_be_opened_leaves_what_was_there() {
    let output = |root: &Path| format!("outputs: ['file://{}/a.jsonl']\n", root.display());
    let mut agent = Agent::start(output, &[]);
    let nowhere = format!("outputs: ['syslog+tls://localhost:1?ca={}/none.pem']\n", agent.root.path().display());
    fs::File::create(agent.path("config.yaml")).unwrap().write_all(nowhere.as_bytes()).unwrap();
    assert!(agent.says("config: outputs: ").contains("Those of before stay in force"));
    agent.plant("a.yaml");
    wait_for("the alert", || fs::read_to_string(agent.path("a.jsonl")).is_ok_and(|text| text.contains("a.yaml")));
    agent.stop();
}
