use detector_common as wire;

use crate::{
    alert::{Alert, Severity},
    record::{
        Body, ContainerInfo, ContainerRole, ExecutedFile, ImageArrival, ImageNames, PauseConfig, PodRef, Policy,
        ProcessKey, Start,
    },
    testing::{self, Actor, DIR, FILE, SECOND, Stream},
};

const SANDBOX: u64 = 900;
const INSIDE: [u32; 2] = [70, 71];

fn sha(c: char) -> String {
    format!("sha256:{}", c.to_string().repeat(64))
}

/// A node with a shell, and a pod's sandbox that is about to start.
struct Node {
    stream: Stream,
    runtime: Actor,
    pause: Actor,
}

impl Node {
    fn new(policy: Policy) -> Self {
        Self::with(policy, |info| info)
    }

    fn with(policy: Policy, info: impl FnOnce(ContainerInfo) -> ContainerInfo) -> Self {
        let mut stream = Stream::new();
        let Body::Start(start) = testing::start() else { unreachable!() };
        stream.push(Body::Start(Box::new(Start { policy, ..*start })));
        let runtime = Actor { cgroup: SANDBOX, ..Actor::host(300, 100) };
        let pause = Actor { pid: 301, mnt_ns: INSIDE[0], pid_ns: INSIDE[1], ..runtime };
        stream.kernel(testing::cgroup(Actor::host(50, 10), SANDBOX, "/kubepods/pod1/sandbox"));
        let sandbox = testing::container("sandbox", SANDBOX, ContainerRole::Sandbox, "");
        stream.push(Body::Container(Box::new(info(sandbox))));
        Self { stream, runtime, pause }
    }

    /// What runc does until the pause program runs: it executes itself anew, forks, opens, and goes in.
    fn start(mut self) -> Self {
        let (runtime, pause) = (self.runtime, self.pause);
        self.stream.kernel(testing::exec(runtime, Actor::host(50, 10), "/usr/sbin/runc", &["runc", "init"]));
        self.stream.kernel(testing::fork(runtime, pause));
        self.stream.kernel(open(pause, "/run/exec.fifo"));
        self.stream.kernel(socket(pause, wire::socket::CREATE, &[]));
        self.stream.kernel(testing::exec_in(pause, runtime, "/pause", &["/pause"], wire::Shared::default(), 1, ""));
        self
    }

    fn hashed(&mut self, process: Actor, sha256: Option<&str>, size: u64) {
        self.stream.push(Body::Executed(Box::new(ExecutedFile {
            process: ProcessKey::from_ns(process.pid, process.start * SECOND),
            sha256: sha256.map(str::to_owned),
            size,
            unreadable: sha256.is_none().then(|| "larger than 16 MiB".to_owned()),
            acted: None,
        })));
    }

    /// Alerts of this technique; others (an exec into a container) are others' concern.
    fn alerts(&self) -> Vec<Alert> {
        let alerts = self.stream.alerts().into_iter();
        alerts.filter(|alert| alert.technique.id == "malicious-pause-container").collect()
    }

    fn told(&self) -> Vec<(Severity, String)> {
        self.alerts().into_iter().map(|alert| (alert.severity, alert.title)).collect()
    }
}

fn child(of: Actor) -> Actor {
    Actor { pid: of.pid + 1, start: of.start + 1, ..of }
}

fn open(actor: Actor, path: &str) -> bytes::Bytes {
    let mut raw = testing::open(actor, FILE, DIR, path).to_vec();
    let at = std::mem::offset_of!(wire::Open, watch);
    raw[at..at + 4].copy_from_slice(&wire::watch::SANDBOX.to_ne_bytes());
    raw.into()
}

fn socket(actor: Actor, call: u32, address: &[u8]) -> bytes::Bytes {
    let mut bytes = [0; wire::ADDRESS_MAX];
    bytes[..address.len()].copy_from_slice(address);
    let header = actor.header(wire::kind::SOCKET, wire::hook::SOCKET_CONNECT);
    testing::raw(&wire::Socket { header, call, args: [2, 1, 0], address: bytes, zero: 0 }, &[])
}

fn names(id: &str, digest: &str) -> Body {
    Body::ImageNames(Box::new(ImageNames {
        id: id.to_owned(),
        tags: vec!["registry.example/pause:3.9".to_owned()],
        digests: vec![format!("registry.example/pause@{digest}")],
        pinned: true,
    }))
}

fn calls_itself(digest: &str) -> impl FnOnce(ContainerInfo) -> ContainerInfo {
    let digest = digest.to_owned();
    |info| ContainerInfo { image_digest: Some(digest), ..info }
}

#[test]
fn an_honest_pause_is_silent_and_so_is_the_runtime_on_its_way_in() {
    let mut node = Node::new(Policy::default()).start();
    let (pause, orphan) = (node.pause, Actor { pid: 400, start: 110, cgroup: 901, ..node.pause });
    node.hashed(pause, Some("aa"), 700_000);
    // A process of another container of the pod ends, and pause reaps it.
    node.stream.kernel(testing::exit(orphan));
    node.stream.wait(100 * SECOND);
    node.stream.push(Body::Tick);
    node.stream.kernel(testing::exit(pause));
    node.stream.kernel(testing::cgroup_gone(Actor::host(50, 10), SANDBOX));
    assert_eq!(node.told(), []);
}

#[test]
fn whatever_else_a_pause_does_is_told_with_who_and_whose() {
    let mut node = Node::new(Policy::default()).start();
    let (pause, shell) = (node.pause, child(node.pause));
    node.stream.kernel(testing::fork(pause, shell));
    node.stream.kernel(testing::exec_in(shell, pause, "/bin/sh", &["sh"], wire::Shared::default(), 7, ""));
    let address = [&2_u16.to_ne_bytes()[..], &[0x11, 0x5c, 10, 9, 8, 7]].concat();
    node.stream.kernel(socket(shell, wire::socket::CONNECT, &address));
    let alerts = node.alerts();
    assert_eq!(alerts.len(), 1, "one finding, however much follows: {:?}", node.told());
    assert_eq!(alerts[0].severity, Severity::Critical);
    assert!(alerts[0].title.contains("makes a process (pid 302)"), "{}", alerts[0].title);
    assert_eq!(alerts[0].process.as_ref().unwrap().exe, "/pause");
    assert_eq!(alerts[0].container.as_ref().unwrap().id, "sandbox");
    assert!(alerts[0].pod.is_some());
    // After a while the rest is worth another.
    node.stream.wait(61 * SECOND);
    node.stream.kernel(socket(shell, wire::socket::CREATE, &[]));
    let alerts = node.alerts();
    assert_eq!(alerts.len(), 2);
    assert!(alerts[1].reasons.iter().any(|reason| reason == "it connects to 10.9.8.7:4444"), "{:?}", alerts[1].reasons);
}

#[test]
fn each_kind_of_behaviour_is_enough() {
    for (act, severity, words) in [
        ("exec", Severity::Critical, "executes /bin/sh"),
        ("fork", Severity::Critical, "makes a process"),
        ("socket", Severity::Critical, "makes a socket (inet, stream)"),
        ("open", Severity::High, "opens /etc/cron.d/x for writing"),
    ] {
        let mut node = Node::new(Policy::default()).start();
        let pause = node.pause;
        node.stream.kernel(match act {
            "exec" => testing::exec_in(pause, node.runtime, "/bin/sh", &["sh"], wire::Shared::default(), 1, ""),
            "fork" => testing::fork(pause, child(pause)),
            "socket" => socket(pause, wire::socket::CREATE, &[]),
            _ => open(pause, "/etc/cron.d/x"),
        });
        let told = node.told();
        assert_eq!(told.len(), 1, "{act}: {told:?}");
        assert!(told[0].0 == severity && told[0].1.contains(words), "{act}: {told:?}");
    }
}

#[test]
fn something_worse_is_told_at_once() {
    let mut node = Node::new(Policy::default()).start();
    let pause = node.pause;
    node.stream.kernel(open(pause, "/x"));
    node.stream.kernel(open(pause, "/y"));
    node.stream.kernel(testing::fork(pause, child(pause)));
    let severities: Vec<_> = node.told().into_iter().map(|(severity, _)| severity).collect();
    assert_eq!(severities, [Severity::High, Severity::Critical]);
}

#[test]
fn a_sandbox_without_a_pause_process_and_other_containers_are_no_concern() {
    // Nothing ever executes in namespaces of its own: a sandboxed runtime's own processes.
    let mut node = Node::new(Policy::default());
    let runtime = node.runtime;
    node.stream.kernel(testing::exec(runtime, Actor::host(50, 10), "/opt/kata/bin/qemu", &["qemu"]));
    node.stream.kernel(testing::fork(runtime, child(runtime)));
    node.stream.kernel(socket(runtime, wire::socket::CREATE, &[]));
    // A container of the pod may do anything.
    let app = Actor { pid: 500, cgroup: 902, mnt_ns: 80, ..node.pause };
    node.stream.kernel(testing::cgroup(Actor::host(50, 10), 902, "/kubepods/pod1/app"));
    node.stream.push(Body::Container(Box::new(testing::container("app", 902, ContainerRole::Member, "app"))));
    node.stream.kernel(testing::exec_in(app, runtime, "/bin/app", &["app"], wire::Shared::default(), 9, ""));
    node.stream.kernel(testing::fork(app, child(app)));
    node.stream.kernel(socket(app, wire::socket::CREATE, &[]));
    assert_eq!(node.told(), []);
}

#[test]
fn a_pause_that_was_there_before_the_agent_is_watched_too() {
    let mut node = Node::new(Policy::default());
    let pause = node.pause;
    let seed = crate::record::ProcessSeed {
        cgroup_id: SANDBOX,
        mnt_ns: INSIDE[0],
        pid_ns: INSIDE[1],
        inner_pid: 1,
        ..testing::seed(pause.pid, pause.start, 1, "/pause")
    };
    node.stream.push(Body::Process(Box::new(seed)));
    assert_eq!(node.told(), []);
    node.stream.kernel(testing::exec_in(pause, node.runtime, "/bin/sh", &["sh"], wire::Shared::default(), 1, ""));
    assert_eq!(node.told().len(), 1);
}

#[test]
fn a_binary_that_policy_does_not_know_is_critical_and_one_that_it_knows_is_silent() {
    let policy = Policy { pause_binaries: vec!["aa".to_owned()], ..Policy::default() };
    for (sha256, severity) in [("aa", None), ("bb", Some(Severity::Critical))] {
        let mut node = Node::new(policy.clone()).start();
        let pause = node.pause;
        node.hashed(pause, Some(sha256), 700_000);
        assert_eq!(node.told().first().map(|told| told.0), severity, "{sha256}");
    }
}

#[test]
fn the_same_image_that_executes_another_file_is_told() {
    for (second, count) in [("aa", 0), ("bb", 1)] {
        let mut node = Node::with(Policy::default(), calls_itself(&sha('c'))).start();
        let pause = node.pause;
        node.hashed(pause, Some("aa"), 700_000);
        node.hashed(pause, Some(second), 700_000);
        assert_eq!(node.told().len(), count, "{second}: {:?}", node.told());
    }
}

#[test]
fn an_executable_too_large_for_a_pause_is_told_and_one_that_could_not_be_read_is_not() {
    let mut node = Node::new(Policy::default()).start();
    let pause = node.pause;
    node.hashed(pause, None, 0);
    assert_eq!(node.told(), []);
    node.hashed(pause, None, 90_000_000);
    assert_eq!(node.told()[0].0, Severity::Medium);
}

#[test]
fn an_unknown_digest_is_low_once_a_node_and_joins_what_else_is_wrong() {
    let mut node = Node::with(Policy::default(), calls_itself(&sha('c'))).start();
    node.stream.push(names(&sha('c'), &sha('d')));
    let second = testing::container("second", 950, ContainerRole::Sandbox, "");
    node.stream.push(Body::Container(Box::new(ContainerInfo { image_digest: Some(sha('c')), ..second })));
    let told = node.told();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, Severity::Low);
    assert!(told[0].1.contains("registry.example/pause:3.9"), "{told:?}");
    let pause = node.pause;
    node.stream.kernel(testing::fork(pause, child(pause)));
    let alerts = node.alerts();
    assert_eq!((alerts.len(), alerts[1].severity, alerts[1].reasons.len()), (2, Severity::Critical, 2));
}

#[test]
fn a_runtimes_steps_that_are_read_after_the_pause_was_found_running_are_silent() {
    let Node { mut stream, runtime, pause } = Node::new(Policy::default());
    let mut seed = testing::seed(pause.pid, pause.start, 300, "/pause");
    (seed.cgroup_id, seed.mnt_ns, seed.pid_ns, seed.inner_pid) = (SANDBOX, INSIDE[0], INSIDE[1], 1);
    stream.push(Body::Process(Box::new(seed)));
    let again = testing::exec(runtime, Actor::host(50, 10), "/", &["runc", "init"]);
    stream.kernel_late(again, SECOND / 10);
    stream.kernel_late(testing::fork(runtime, pause), SECOND / 11);
    let node = Node { stream, runtime, pause };
    assert_eq!(node.told(), []);
}

#[test]
fn a_sandbox_whose_image_nobody_tells_runs_the_configured_one() {
    for (configured, count) in [("registry.example/pause:3.9", 1), ("registry.example/other:1", 0)] {
        let mut node = Node::with(Policy::default(), |info| ContainerInfo { image: None, ..info });
        node.stream.push(config(Some(configured), None));
        node = node.start();
        node.stream.push(names(&sha('c'), &sha('d')));
        assert_eq!(node.told().len(), count, "{configured}: {:?}", node.told());
    }
}

#[test]
fn a_sandbox_that_ran_before_its_images_name_led_elsewhere_is_silent_and_the_one_that_runs_it_is_named() {
    let shipped = crate::context::image::PAUSE[5].digest.clone();
    let by_name = |info| ContainerInfo { image: Some("registry.example/pause:3.9".to_owned()), ..info };
    let pod = PodRef { namespace: "shop".to_owned(), name: "second".to_owned(), uid: "0b2c".to_owned() };
    for (wait, starts) in [(60, true), (1, true), (60, false)] {
        let mut node = Node::with(Policy::default(), by_name).start();
        node.stream.push(names(&sha('c'), &shipped));
        node.stream.wait(wait * SECOND);
        if starts {
            // The new one is asked for a moment after its first sandbox began.
            let second = testing::container("second", 950, ContainerRole::Sandbox, "");
            node.stream.kernel(testing::cgroup(Actor::host(50, 10), 950, "/kubepods/pod2/second"));
            node.stream.push(Body::Container(Box::new(ContainerInfo { pod: Some(pod.clone()), ..by_name(second) })));
            let pause = Actor { pid: 401, start: 150, cgroup: 950, mnt_ns: 80, pid_ns: 81 };
            node.stream.kernel(testing::exec_in(
                pause,
                node.runtime,
                "/pause",
                &["/pause"],
                wire::Shared::default(),
                1,
                "",
            ));
        }
        node.stream.push(Body::ImageNames(Box::new(ImageNames { id: sha('c'), ..ImageNames::default() })));
        node.stream.push(names(&sha('e'), &sha('f')));
        let told = node.told();
        assert_eq!(told.len(), usize::from(starts), "{wait}: {told:?}");
        assert!(told.iter().all(|(_, title)| title.contains("of pod shop/second")), "{wait}: {told:?}");
    }
}

#[test]
fn a_digest_that_is_shipped_or_the_users_or_cannot_be_told_is_silent() {
    let shipped = crate::context::image::PAUSE[5].digest.clone();
    let users = Policy { pause_digests: vec![sha('d')], ..Policy::default() };
    for (policy, digest) in [(Policy::default(), Some(shipped)), (users, Some(sha('d'))), (Policy::default(), None)] {
        let mut node = Node::with(policy, calls_itself(&sha('c'))).start();
        if let Some(digest) = &digest {
            node.stream.push(names(&sha('c'), digest));
        }
        assert_eq!(node.told(), [], "{digest:?}");
    }
}

#[test]
fn an_image_that_came_with_a_known_index_is_known_without_the_runtimes_word() {
    let index = crate::context::image::PAUSE[5].digest.clone();
    for (top, count) in [(index, 0), (sha('9'), 1)] {
        let mut node = Node::with(Policy::default(), |info| info);
        let part = |digest: &str, child: &str| {
            Body::Image(Box::new(ImageArrival {
                digest: digest.to_owned(),
                children: vec![child.to_owned()],
                present: true,
                ..ImageArrival::default()
            }))
        };
        node.stream.push(part(&top, &sha('b')));
        node.stream.push(part(&sha('b'), &sha('c')));
        let info = testing::container("second", 950, ContainerRole::Sandbox, "");
        node.stream.push(Body::Container(Box::new(ContainerInfo { image_digest: Some(sha('c')), ..info })));
        assert_eq!(node.told().len(), count, "{top}");
    }
}

fn config(image: Option<&str>, before: Option<Option<&str>>) -> Body {
    Body::PauseConfig(Box::new(PauseConfig {
        path: "/etc/containerd/config.toml".to_owned(),
        image: image.map(str::to_owned),
        before: before.map(|before| before.map(str::to_owned)),
        unreadable: None,
    }))
}

#[test]
fn a_configuration_that_names_another_image_is_told_with_who_wrote_it() {
    let mut node = Node::new(Policy::default());
    node.stream.push(config(Some("registry.k8s.io/pause:3.8"), None));
    assert_eq!(node.told(), []);
    let mut raw = testing::open(Actor::host(50, 10), FILE, DIR, "/host/etc/containerd/config.toml").to_vec();
    let at = std::mem::offset_of!(wire::Open, watch);
    raw[at..at + 4].copy_from_slice(&wire::watch::STORE.to_ne_bytes());
    node.stream.kernel(raw.into());
    let before = Some(Some("registry.k8s.io/pause:3.8"));
    node.stream.push(config(Some("evil.example/pause:3.9"), before));
    node.stream.push(config(Some("registry.k8s.io/pause:3.9"), before));
    let told = node.told();
    assert_eq!(told.iter().map(|told| told.0).collect::<Vec<_>>(), [Severity::High, Severity::Medium]);
    assert_eq!(told[0].1, "Pause image: /etc/containerd/config.toml now names evil.example/pause:3.9 by /bin/bash");
    assert_eq!(node.alerts()[0].process.as_ref().unwrap().pid, 50);
}

#[test]
fn more_sandboxes_than_the_bound_are_forgotten_oldest_first() {
    let mut pause = super::Pause::default();
    for n in 0..=super::MAX {
        pause.sandbox(&format!("{n:05}"));
    }
    assert_eq!((pause.sandboxes.len(), pause.order.len()), (super::MAX, super::MAX));
    assert!(!pause.sandboxes.contains_key("00000"));
}
