use crate::{
    alert::{Alert, Origin, Severity},
    detect::technique::CONTAINER_EXEC,
    record::{Body, ChangeKind, ContainerInfo, ContainerRole, Record},
    testing::{self, Actor, HOST_MNT, HOST_PID, SECOND, Stream, manifest},
};
use detector_common::Shared;

const POD_SHARED: Shared = Shared { net: 501, ipc: 502, uts: 503, cgroup: 0, user: 0 };
pub(super) const HOST: Shared = Shared { net: 0, ipc: 0, uts: 0, cgroup: 0, user: 0 };
pub(super) const SHELL: Actor = Actor { pid: 50, start: 10, cgroup: 1, mnt_ns: HOST_MNT, pid_ns: HOST_PID };
pub(crate) const SHIM: Actor = Actor { pid: 200, start: 20, cgroup: 1, mnt_ns: HOST_MNT, pid_ns: HOST_PID };
const PAUSE: Actor = Actor { pid: 210, start: 21, cgroup: 900, mnt_ns: 61, pid_ns: 71 };
pub(crate) const APP: Actor = Actor { pid: 220, start: 22, cgroup: 901, mnt_ns: 62, pid_ns: 72 };

/// A node on which the pod `shop/web-node-1` runs: a sandbox, and `app` in it, started by a shim.
pub(crate) fn node() -> Stream {
    let mut stream = Stream::new();
    let shim = ["/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io", "-id", "sandbox"];
    stream.kernel(testing::fork(SHELL, SHIM));
    stream.kernel(testing::exec_in(SHIM, SHELL, shim[0], &shim, HOST, 200, ""));
    start(&mut stream, PAUSE, testing::container("sandbox", 900, ContainerRole::Sandbox, ""), "/pause");
    start(&mut stream, APP, testing::container("app-id", 901, ContainerRole::Member, "app"), "/bin/app");
    stream
}

/// A container starts as runc starts one: its own steps in the new cgroup come before the first program.
pub(crate) fn start(stream: &mut Stream, init: Actor, info: ContainerInfo, exe: &str) {
    let runc = Actor { cgroup: 1, mnt_ns: HOST_MNT, pid_ns: HOST_PID, pid: init.pid + 1, start: init.start };
    let inner_pid = if info.joins_pid_of.is_some() { 8 } else { 1 };
    stream.kernel(testing::fork(SHIM, runc));
    stream.kernel(testing::exec_in(runc, SHIM, "/usr/sbin/runc", &["runc", "create"], HOST, runc.pid, ""));
    stream.kernel(testing::cgroup(runc, init.cgroup, &format!("/kubepods/pod1/{}", info.id)));
    stream.push(Body::Container(Box::new(info)));
    let stage = Actor { pid: init.pid + 2, ..runc };
    stream.kernel(testing::fork(runc, stage));
    stream.kernel(testing::exec_in(stage, runc, "/usr/sbin/runc", &["runc", "init"], HOST, stage.pid, ""));
    stream.kernel(testing::cgroup_move(runc, stage, init.cgroup));
    let stage = Actor { cgroup: init.cgroup, ..stage };
    stream.kernel(testing::exec_in(stage, runc, "/memfd:runc", &["runc", "init"], HOST, stage.pid, ""));
    stream.kernel(testing::namespaces(stage, init.mnt_ns, init.pid_ns, POD_SHARED));
    stream.kernel(testing::fork(Actor { mnt_ns: init.mnt_ns, ..stage }, init));
    stream.kernel(testing::exit(stage));
    // It is created; another one starts it.
    stream.kernel(testing::exit(runc));
    stream.kernel(testing::exec_in(init, runc, exe, &[exe], POD_SHARED, inner_pid, ""));
}

/// `argv` is executed in `app` as the runtime does it for the CRI. `exec_id` tells the CRI from others.
pub(crate) fn runtime_exec(stream: &mut Stream, by: Actor, pid: u32, exec_id: &str, argv: &[&str], tty: &str) -> Actor {
    runtime_exec_since(110, stream, by, pid, exec_id, argv, tty)
}

/// The same, by processes that begin so many seconds after boot.
pub(super) fn runtime_exec_since(
    start: u64,
    stream: &mut Stream,
    by: Actor,
    pid: u32,
    exec_id: &str,
    argv: &[&str],
    tty: &str,
) -> Actor {
    let runc = Actor { cgroup: by.cgroup, mnt_ns: HOST_MNT, pid_ns: HOST_PID, pid, start };
    let file = format!("/run/bundles/app-id/{exec_id}.pid");
    stream.kernel(testing::fork(by, runc));
    let line = ["runc", "--root", "/run/runc", "exec", "--pid-file", &file, "app-id"];
    stream.kernel(testing::exec_in(runc, by, "/usr/sbin/runc", &line, HOST, pid, ""));
    let init = Actor { pid: pid + 1, ..runc };
    stream.kernel(testing::fork(runc, init));
    stream.kernel(testing::exec_in(init, runc, "/usr/sbin/runc", &["runc", "init"], HOST, pid + 1, ""));
    stream.kernel(testing::cgroup_move(runc, init, APP.cgroup));
    stream.kernel(testing::namespaces(init, APP.mnt_ns, APP.pid_ns, POD_SHARED));
    let inside = Actor { pid: pid + 2, ..APP };
    let inside = Actor { start, ..inside };
    stream.kernel(testing::fork(Actor { cgroup: APP.cgroup, mnt_ns: APP.mnt_ns, ..init }, inside));
    stream.kernel(testing::exit(init));
    stream.kernel(testing::exec_in(inside, runc, argv[0], argv, POD_SHARED, 17, tty));
    inside
}

/// What the runtime does on its way in, as far as the process that is to execute something.
fn way_in(stream: &mut Stream, by: Actor, pid: u32) -> Actor {
    let runc = Actor { cgroup: by.cgroup, mnt_ns: HOST_MNT, pid_ns: HOST_PID, pid, start: 110 };
    let file = format!("/run/bundles/app-id/{}.pid", cri_id());
    stream.kernel(testing::fork(by, runc));
    let line = ["runc", "--root", "/run/runc", "exec", "--pid-file", &file, "app-id"];
    stream.kernel(testing::exec_in(runc, by, "/usr/sbin/runc", &line, HOST, pid, ""));
    let init = Actor { pid: pid + 1, ..runc };
    stream.kernel(testing::fork(runc, init));
    stream.kernel(testing::exec_in(init, runc, "/", &["runc", "init"], HOST, pid + 1, ""));
    stream.kernel(testing::cgroup_move(runc, init, APP.cgroup));
    stream.kernel(testing::namespaces(init, APP.mnt_ns, APP.pid_ns, POD_SHARED));
    let inside = Actor { pid: pid + 2, start: 110, ..APP };
    stream.kernel(testing::fork(Actor { cgroup: APP.cgroup, mnt_ns: APP.mnt_ns, ..init }, inside));
    stream.kernel(testing::exit(init));
    inside
}

/// A process that is called like a monitor, and is another one's than the container's.
fn fake_shim(stream: &mut Stream) -> Actor {
    let fake = Actor::host(390, 105);
    stream.kernel(testing::fork(SHELL, fake));
    let shim = ["/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io", "-id", "sandbox"];
    stream.kernel(testing::exec_in(fake, SHELL, shim[0], &shim, HOST, 390, ""));
    fake
}

#[test]
fn a_runtime_that_is_ended_on_its_way_in_is_low_when_the_containers_own_monitor_sent_it_and_is_not_by_its_name() {
    for (own, ends, severity) in [
        (true, false, Severity::Low),
        (true, true, Severity::Low),
        (false, false, Severity::Medium),
        (false, true, Severity::Medium),
    ] {
        let mut stream = node();
        let by = if own { SHIM } else { fake_shim(&mut stream) };
        let inside = way_in(&mut stream, by, 400);
        // The container may end in the midst of a probe.
        if ends {
            stream.kernel(testing::exit(APP));
            stream.kernel(testing::exit(SHIM));
        }
        stream.kernel(testing::exit(inside));
        let alert = only(&mut stream);
        assert!(alert.title.ends_with("got into app of pod shop/web-node-1 without executing a program there"));
        assert_eq!(alert.severity, severity, "{alert:#?}");
    }
    let mut stream = node();
    let inside = way_in(&mut stream, SHELL, 400);
    stream.kernel(testing::exit(inside));
    assert_eq!(only(&mut stream).severity, Severity::High);
}

#[test]
fn a_runtime_that_is_late_is_waited_for_when_the_containers_own_monitor_sent_it_and_what_it_executes_is_told() {
    for own in [true, false] {
        let mut stream = node();
        let by = if own { SHIM } else { fake_shim(&mut stream) };
        let inside = way_in(&mut stream, by, 400);
        for _ in 0..30 {
            stream.wait(SECOND);
            stream.push(Body::Tick);
        }
        assert_eq!(stream.alerts().len(), usize::from(!own));
        stream.kernel(testing::exec_in(inside, by, "/bin/id", &["id"], POD_SHARED, 17, ""));
        let alert = only(&mut stream);
        assert_eq!((alert.severity, alert.title.contains(": id")), (Severity::Medium, own), "{alert:#?}");
    }
    // Not for ever.
    let mut stream = node();
    way_in(&mut stream, SHIM, 400);
    for _ in 0..62 {
        stream.wait(SECOND);
        stream.push(Body::Tick);
    }
    assert_eq!(only(&mut stream).severity, Severity::Low);
}

/// A node on which somebody executes something in a container.
pub fn entered() -> Vec<Record> {
    let mut stream = node();
    runtime_exec(&mut stream, SHIM, 400, &cri_id(), &["/bin/sh", "-c", "id"], "pts0");
    stream.wait(2 * SECOND);
    stream.push(Body::Tick);
    stream.records
}

pub(crate) fn cri_id() -> String {
    "ab".repeat(32)
}

pub(super) fn alerts(stream: &mut Stream) -> Vec<Alert> {
    // Whatever is on its way for too long is told by now.
    for _ in 0..15 {
        stream.wait(SECOND);
        stream.push(Body::Tick);
    }
    let alerts = stream.alerts();
    assert!(alerts.iter().all(|alert| alert.technique == CONTAINER_EXEC));
    alerts
}

#[track_caller]
pub(super) fn only(stream: &mut Stream) -> Alert {
    let mut alerts = alerts(stream);
    assert_eq!(alerts.len(), 1, "{alerts:#?}");
    let alert = alerts.remove(0);
    assert_eq!(alert.pod.as_ref().unwrap().name, "web-node-1");
    alert
}

#[test]
fn containers_that_start_and_fork_are_silent() {
    let mut stream = node();
    let child = Actor { pid: 300, start: 105, ..APP };
    stream.kernel(testing::fork(APP, child));
    stream.kernel(testing::exec_in(child, APP, "/bin/sh", &["sh"], POD_SHARED, 30, ""));
    // Its parent ends, and much later its own child executes something.
    stream.kernel(testing::fork(child, Actor { pid: 301, ..child }));
    stream.kernel(testing::exit(child));
    stream.wait(100 * SECOND);
    stream.kernel(testing::exec_in(Actor { pid: 301, ..child }, APP, "/bin/ls", &["ls"], POD_SHARED, 31, ""));
    assert_eq!(alerts(&mut stream), []);
}

#[test]
fn an_exec_through_the_cri_is_one_medium_alert_whatever_it_runs_later() {
    let mut stream = node();
    let inside = runtime_exec(&mut stream, SHIM, 400, &cri_id(), &["/bin/sh", "-c", "id"], "pts0");
    let child = Actor { pid: 410, ..inside };
    stream.kernel(testing::fork(inside, child));
    stream.kernel(testing::exec_in(child, inside, "/bin/id", &["id"], POD_SHARED, 18, "pts0"));
    stream.kernel(testing::exec_in(inside, SHIM, "/bin/id", &["id"], POD_SHARED, 17, "pts0"));
    let alert = only(&mut stream);
    assert_eq!((alert.severity, alert.origin), (Severity::Medium, Origin::Container));
    assert_eq!(alert.title, "Exec into app of pod shop/web-node-1: /bin/sh -c id");
    assert!(alert.reasons[0].contains("kubectl exec") && alert.reasons[1].contains("terminal"), "{:?}", alert.reasons);
    assert_eq!(alert.process.unwrap().pid, inside.pid);
    assert_eq!(alert.container.unwrap().name.as_deref(), Some("app"));
}

#[test]
fn the_way_in_is_told_and_past_the_cri_it_is_high() {
    let mut stream = node();
    runtime_exec(&mut stream, SHIM, 400, "mine", &["/bin/sh"], "");
    let alert = only(&mut stream);
    assert!(alert.severity == Severity::High && alert.reasons[0].contains("ctr task exec"), "{alert:?}");
    let mut stream = node();
    runtime_exec(&mut stream, SHELL, 400, &cri_id(), &["/bin/sh"], "");
    let alert = only(&mut stream);
    assert!(alert.severity == Severity::High && alert.reasons[0].contains("runc exec by hand"), "{alert:?}");
    for (engine, word) in [("/usr/bin/podman", "by podman exec"), ("/usr/bin/crio", "container runtime interface")] {
        let mut stream = node();
        let (above, monitor) = (Actor::host(370, 100), Actor::host(371, 100));
        for (actor, parent, exe) in [(above, SHELL, engine), (monitor, above, "/usr/bin/conmon")] {
            stream.kernel(testing::fork(parent, actor));
            stream.kernel(testing::exec_in(actor, parent, exe, &[exe], HOST, actor.pid, ""));
        }
        stream.kernel(testing::exit(above));
        runtime_exec(&mut stream, monitor, 400, &cri_id(), &["/bin/sh"], "");
        let alert = only(&mut stream);
        assert!(alert.severity == Severity::Medium && alert.reasons[0].contains(word), "{alert:?}");
    }
}

const PROBED: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nspec:\n  containers:\n  - name: app\n    image: x\n    livenessProbe: {exec: {command: [/bin/check, --all]}}\n";

#[test]
fn a_probe_is_low_once_and_its_twin_with_another_argument_or_a_terminal_is_not() {
    let with_probe = || {
        let mut stream = node();
        let since = stream.now();
        stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Present, Some(PROBED), since))));
        stream
    };
    let mut stream = with_probe();
    for n in 0..3 {
        runtime_exec(&mut stream, SHIM, 400 + 10 * n, &cri_id(), &["/bin/check", "--all"], "");
    }
    let alert = only(&mut stream);
    assert_eq!(alert.severity, Severity::Low);
    assert_eq!(alert.title, "liveness probe of app of pod shop/web-node-1 runs: /bin/check --all");
    for (exec_id, argv, tty, by) in [
        (cri_id(), &["/bin/check", "--some"][..], "", SHIM),
        (cri_id(), &["/bin/check", "--all"], "pts0", SHIM),
        ("mine".to_owned(), &["/bin/check", "--all"], "", SHIM),
        (cri_id(), &["/bin/check", "--all"], "", SHELL),
    ] {
        let mut stream = with_probe();
        runtime_exec(&mut stream, by, 400, &exec_id, argv, tty);
        assert!(only(&mut stream).severity >= Severity::Medium);
    }
}

#[test]
fn a_fake_runtime_in_another_container_earns_nothing_by_its_name() {
    let mut stream = node();
    let since = stream.now();
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Present, Some(PROBED), since))));
    let evil = Actor { pid: 230, start: 23, cgroup: 902, mnt_ns: 63, pid_ns: HOST_PID };
    let mut info = testing::container("evil-id", 902, ContainerRole::Member, "evil");
    (info.sandbox_id, info.host_pid) = (Some("other".to_owned()), true);
    start(&mut stream, evil, info, "/bin/evil");
    runtime_exec(&mut stream, evil, 400, &cri_id(), &["/bin/check", "--all"], "");
    let alert = only(&mut stream);
    assert_eq!(alert.severity, Severity::Critical);
    assert!(alert.reasons[0].contains("it comes from evil"), "{:?}", alert.reasons);
}

#[test]
fn dockers_health_check_is_low_once_and_another_command_or_one_with_a_terminal_is_not() {
    let told = |argv: &[&str], tty: &str| {
        let mut stream = Stream::new();
        stream.kernel(testing::fork(SHELL, SHIM));
        let shim = ["/usr/bin/containerd-shim-runc-v2", "-namespace", "moby"];
        stream.kernel(testing::exec_in(SHIM, SHELL, shim[0], &shim, HOST, 200, ""));
        let mut info = testing::container("app-id", 901, ContainerRole::Plain, "web");
        (info.name, info.pod, info.sandbox_id) = (Some("web".to_owned()), None, None);
        info.expected_execs = vec![["/bin/check", "all"].map(str::to_owned).to_vec()];
        start(&mut stream, APP, info, "/bin/app");
        for pid in [400, 410] {
            runtime_exec(&mut stream, SHIM, pid, &cri_id(), argv, tty);
        }
        alerts(&mut stream).into_iter().map(|alert| (alert.severity, alert.title)).collect::<Vec<_>>()
    };
    let check = (Severity::Low, "health check of container web runs: /bin/check all".to_owned());
    assert_eq!(told(&["/bin/check", "all"], ""), [check]);
    for (argv, tty) in [(["/bin/check", "some"], ""), (["/bin/check", "all"], "pts0")] {
        assert_eq!(told(&argv, tty)[0].0, Severity::Medium);
    }
}

#[test]
fn podman_that_copies_files_is_medium_and_whoever_is_called_so_in_a_container_is_not() {
    let told = |by: Actor, exe: &str| {
        let mut stream = node();
        let other = Actor { pid: 240, start: 24, cgroup: 905, mnt_ns: 65, pid_ns: 75 };
        let mut info = testing::container("other-id", 905, ContainerRole::Plain, "other");
        (info.pod, info.sandbox_id) = (None, None);
        start(&mut stream, other, info, "/bin/other");
        let parent = if by.cgroup == other.cgroup { other } else { SHELL };
        stream.kernel(testing::fork(parent, by));
        stream.kernel(testing::exec_in(by, parent, exe, &[exe, "cp"], HOST, by.pid, ""));
        stream.kernel(testing::namespaces(by, APP.mnt_ns, APP.pid_ns, HOST));
        stream.kernel(testing::exit(by));
        only(&mut stream)
    };
    let alert = told(Actor::host(390, 100), "/usr/bin/podman");
    assert!(alert.severity == Severity::Medium && alert.reasons[0].contains("podman cp"), "{alert:?}");
    assert_eq!(told(Actor::host(390, 100), "/usr/bin/other").severity, Severity::High);
    let inside = Actor { pid: 390, start: 100, cgroup: 905, mnt_ns: 65, pid_ns: 75 };
    assert_eq!(told(inside, "/usr/bin/podman").severity, Severity::Critical);
}

#[test]
fn numbers_of_namespaces_are_nobodys_once_a_container_has_ended() {
    let enters = |ended: bool| {
        let mut stream = node();
        if ended {
            stream.kernel(testing::exit(APP));
        }
        // A runtime that makes namespaces for another container, which have the first free numbers.
        let runtime = Actor::host(380, 100);
        stream.kernel(testing::fork(SHELL, runtime));
        stream.kernel(testing::namespaces(runtime, APP.mnt_ns, APP.pid_ns, HOST));
        stream.kernel(testing::exit(runtime));
        stream.alerts().len()
    };
    assert_eq!([false, true].map(enters), [1, 0]);
}

#[test]
fn any_one_namespace_is_enough() {
    for (mnt, pid, shared, word) in [
        (APP.mnt_ns, HOST_PID, HOST, "(mount)"),
        (HOST_MNT, APP.pid_ns, HOST, "(pid)"),
        (HOST_MNT, HOST_PID, Shared { net: POD_SHARED.net, ..HOST }, "(net)"),
        (HOST_MNT, HOST_PID, Shared { ipc: POD_SHARED.ipc, ..HOST }, "(ipc)"),
        (HOST_MNT, HOST_PID, Shared { uts: POD_SHARED.uts, ..HOST }, "(uts)"),
        (APP.mnt_ns, APP.pid_ns, POD_SHARED, "(mount, pid, net, ipc, uts)"),
    ] {
        let mut stream = node();
        let nsenter = Actor::host(400, 110);
        stream.kernel(testing::fork(SHELL, nsenter));
        stream.kernel(testing::exec_in(nsenter, SHELL, "/usr/bin/nsenter", &["nsenter"], HOST, 400, ""));
        stream.kernel(testing::namespaces(nsenter, mnt, pid, shared));
        let inside = Actor { pid: 401, mnt_ns: mnt, pid_ns: pid, ..nsenter };
        stream.kernel(testing::fork(Actor { mnt_ns: mnt, ..nsenter }, inside));
        stream.kernel(testing::exec_in(inside, nsenter, "/bin/ps", &["ps"], shared, 9, ""));
        let alert = only(&mut stream);
        let sees_it_all = word.contains("mount") || word.contains("pid");
        assert_eq!(alert.severity, if sees_it_all { Severity::High } else { Severity::Medium });
        assert!(alert.reasons[0].contains("nsenter joined") && alert.reasons[0].contains(word), "{:?}", alert.reasons);
    }
}

#[test]
fn a_network_plugin_that_enters_only_the_network_namespace_and_executes_nothing_is_silent() {
    let mut stream = node();
    let plugin = Actor::host(400, 110);
    stream.kernel(testing::fork(SHELL, plugin));
    stream.kernel(testing::exec_in(plugin, SHELL, "/opt/cni/bin/bridge", &["bridge"], HOST, 400, ""));
    stream.kernel(testing::namespaces(plugin, HOST_MNT, HOST_PID, Shared { net: POD_SHARED.net, ..HOST }));
    stream.kernel(testing::exit(plugin));
    assert_eq!(alerts(&mut stream), []);
}

#[test]
fn setns_by_hand_without_an_exec_is_told_at_the_end_of_the_process_or_after_a_while() {
    for ends in [true, false] {
        let mut stream = node();
        let actor = Actor::host(400, 110);
        stream.kernel(testing::fork(SHELL, actor));
        stream.kernel(testing::namespaces(actor, APP.mnt_ns, HOST_PID, HOST));
        if ends {
            stream.kernel(testing::exit(actor));
        }
        let alert = only(&mut stream);
        assert!(alert.title.contains("without executing"), "{}", alert.title);
        assert_eq!(alert.process.unwrap().pid, 400);
    }
}

#[test]
fn a_process_moved_into_the_cgroup_is_told_once_whether_it_executes_there_or_not() {
    for executes in [true, false] {
        let mut stream = node();
        let moved = Actor::host(400, 110);
        stream.kernel(testing::fork(SHELL, moved));
        stream.kernel(testing::cgroup_move(SHELL, moved, APP.cgroup));
        if executes {
            let inside = Actor { cgroup: APP.cgroup, ..moved };
            stream.kernel(testing::exec_in(inside, SHELL, "/bin/miner", &["miner"], HOST, 400, ""));
        }
        let alert = only(&mut stream);
        assert!(alert.reasons[0].contains("moved into its cgroup"), "{:?}", alert.reasons);
    }
}

#[test]
fn who_was_in_a_container_before_the_agent_looked_is_not_told_and_who_comes_later_is() {
    let process = |actor: Actor, parent: u32, inner_pid: u32| {
        let mut seed = testing::seed(actor.pid, actor.start, parent, "/bin/x");
        (seed.cgroup_id, seed.mnt_ns, seed.pid_ns, seed.inner_pid) =
            (actor.cgroup, actor.mnt_ns, actor.pid_ns, inner_pid);
        Body::Process(Box::new(seed))
    };
    let mut stream = Stream::new();
    stream.push(Body::Cgroup { id: 901, path: "/kubepods/pod1/app-id".to_owned() });
    stream.push(Body::Container(Box::new(testing::container("app-id", 901, ContainerRole::Member, "app"))));
    stream.push(process(SHIM, 1, 200));
    stream.push(process(APP, SHIM.pid, 1));
    let session = Actor { pid: 230, start: 30, ..APP };
    stream.push(process(session, SHIM.pid, 40));
    let child = Actor { pid: 231, start: 105, ..session };
    stream.kernel(testing::fork(session, child));
    stream.kernel(testing::exec_in(child, session, "/bin/ls", &["ls"], POD_SHARED, 41, "pts0"));
    assert_eq!(alerts(&mut stream), []);
    runtime_exec(&mut stream, SHIM, 400, &cri_id(), &["/bin/sh"], "pts0");
    assert_eq!(only(&mut stream).process.unwrap().pid, 402);
}

#[test]
fn a_runtimes_steps_that_are_read_after_the_container_was_found_running_are_silent() {
    let mut stream = Stream::new();
    stream.push(Body::Cgroup { id: 901, path: "/kubepods/pod1/app-id".to_owned() });
    stream.push(Body::Container(Box::new(testing::container("app-id", 901, ContainerRole::Member, "app"))));
    let mut seed = testing::seed(APP.pid, APP.start, 1, "/bin/app");
    (seed.cgroup_id, seed.mnt_ns, seed.pid_ns, seed.inner_pid) = (APP.cgroup, APP.mnt_ns, APP.pid_ns, 1);
    stream.push(Body::Process(Box::new(seed)));
    let stage = Actor { pid: 222, start: 22, cgroup: APP.cgroup, ..Actor::host(0, 0) };
    let runc = testing::exec_in(stage, SHELL, "/usr/sbin/runc", &["runc", "init"], HOST, 222, "");
    stream.kernel_late(runc, SECOND / 10);
    stream.kernel_late(testing::exit(stage), SECOND / 11);
    assert_eq!(alerts(&mut stream), []);
}

#[test]
fn a_container_that_moves_its_own_processes_among_its_cgroups_is_silent() {
    let mut stream = node();
    let child = Actor { pid: 300, start: 105, ..APP };
    stream.kernel(testing::cgroup(APP, 950, "/kubepods/pod1/app-id/inner"));
    stream.kernel(testing::fork(APP, child));
    stream.kernel(testing::cgroup_move(APP, child, 950));
    stream.kernel(testing::exec_in(Actor { cgroup: 950, ..child }, APP, "/bin/ls", &["ls"], POD_SHARED, 30, ""));
    assert_eq!(alerts(&mut stream), []);
}

#[test]
fn a_debug_container_among_anothers_processes_is_told_and_a_pod_with_one_pid_namespace_is_silent() {
    let debug = Actor { pid: 240, start: 24, cgroup: 903, mnt_ns: 64, pid_ns: APP.pid_ns };
    let mut info = testing::container("debug-id", 903, ContainerRole::Member, "debugger");
    info.joins_pid_of = Some(APP.pid);
    let mut stream = node();
    start(&mut stream, debug, info.clone(), "/bin/sh");
    stream.kernel(testing::exec_in(debug, SHIM, "/bin/sleep", &["sleep", "9"], POD_SHARED, 8, ""));
    let alert = only(&mut stream);
    assert!(alert.title.starts_with("Debug container debugger joined app"), "{}", alert.title);
    let mut stream = node();
    start(&mut stream, Actor { pid_ns: PAUSE.pid_ns, ..debug }, info, "/bin/sh");
    assert_eq!(alerts(&mut stream), []);
}

#[test]
fn what_came_into_a_container_while_events_were_lost_is_found_there_and_told_once() {
    let seed = |actor: Actor, parent: u32, inner_pid: u32, exe: &str| {
        let seed = testing::seed(actor.pid, actor.start, parent, exe);
        let (cgroup_id, mnt_ns, pid_ns) = (actor.cgroup, actor.mnt_ns, actor.pid_ns);
        let seed = crate::record::ProcessSeed { cgroup_id, mnt_ns, pid_ns, inner_pid, again: true, ..seed };
        Body::Process(Box::new(seed))
    };
    // The container was there, or began meanwhile itself.
    for known in [true, false] {
        // Who made it, how old it is in seconds, and whether it is told before it executes something.
        for (parent, age, told) in [(SHIM.pid, 20, true), (APP.pid, 20, false), (SHIM.pid, 0, false)] {
            let mut stream = Stream::new();
            stream.kernel(testing::fork(SHELL, SHIM));
            stream.push(Body::Cgroup { id: APP.cgroup, path: "/kubepods/pod1/app-id".to_owned() });
            let info = testing::container("app-id", 901, ContainerRole::Member, "app");
            if known {
                start(&mut stream, APP, info, "/bin/app");
            } else {
                stream.push(Body::Container(Box::new(info)));
            }
            stream.wait(30 * SECOND);
            let inside = Actor { pid: 310, start: stream.now().0 / SECOND - age, ..APP };
            for _ in 0..2 {
                // A runtime's step that is on its way still is not the container's first program.
                let step = Actor { pid: 215, start: 21, pid_ns: HOST_PID, ..APP };
                stream.push(seed(step, SHIM.pid, 215, "/usr/sbin/runc"));
                stream.push(seed(APP, SHIM.pid, 1, "/bin/app"));
                stream.push(seed(inside, parent, 40, "/bin/nc"));
            }
            let alerts = stream.alerts();
            assert_eq!(alerts.len(), usize::from(told), "{alerts:#?}");
            stream.kernel(testing::exec_in(inside, SHIM, "/bin/sh", &["sh"], POD_SHARED, 40, ""));
            let alerts = stream.alerts();
            assert_eq!(alerts.len(), usize::from(parent == SHIM.pid), "{alerts:#?}");
            let what = if told { "/bin/nc" } else { "sh" };
            for alert in alerts {
                assert_eq!(alert.title, format!("Exec into app of pod shop/web-node-1: {what}"));
                assert_eq!(alert.severity, if told { Severity::Medium } else { Severity::High });
                assert_eq!(alert.reasons[0].starts_with("while events were lost"), told, "{:?}", alert.reasons);
            }
        }
    }
}
