//! What kubelet runs by itself, and what others have it or the runtime run.

use detector_common::{self as wire, endpoint};

use super::tests::{HOST, SHELL, SHIM, alerts, cri_id, node, only, runtime_exec_since};
use crate::{
    alert::{Alert, Severity},
    record::{Body, ComponentKind, HookState, Loss, Own, Start},
    testing::{self, AGENT, Actor, SECOND, Stream},
    testing_control::{self as control, KUBELET},
};

const CONTAINERD: Actor = Actor { pid: 703, ..KUBELET };
const PROBE: [&str; 2] = ["/bin/check", "--all"];
const STREAM: &str = "127.0.0.1:40001";

/// What the agent says of its hooks.
fn hooks(stream: &mut Stream, change: impl FnOnce(&mut Start)) {
    let hook = |name: &str| HookState {
        name: name.to_owned(),
        backend: Some("tracepoint".to_owned()),
        reason: None,
        verified: None,
        required: false,
    };
    let Body::Start(start) = &mut stream.records[0].body else { panic!() };
    start.hooks = ["connection", "tcp-receive", "syscall-guard"].map(hook).into();
    start.own = Some(Box::new(Own { pid: AGENT, files: Vec::new() }));
    change(start);
}

fn begin(stream: &mut Stream, actor: Actor, parent: Actor, exe: &str) {
    stream.kernel(testing::fork(parent, actor));
    stream.kernel(testing::exec_in(actor, parent, exe, &[exe], HOST, actor.pid, ""));
}

fn known(stream: &mut Stream) {
    stream.push(control::components(vec![
        control::component(ComponentKind::Kubelet, KUBELET),
        control::component(ComponentKind::Runtime, CONTAINERD),
    ]));
}

/// The node with a pod, and a kubelet and a containerd of which all is seen, for some time.
fn served() -> Stream {
    let mut stream = node();
    hooks(&mut stream, |_| {});
    begin(&mut stream, KUBELET, Actor::host(1, 0), "/usr/bin/kubelet");
    begin(&mut stream, CONTAINERD, Actor::host(1, 0), "/usr/bin/containerd");
    known(&mut stream);
    stream.wait(2 * SECOND);
    stream
}

/// At the next whole second the runtime executes something in `app` for the CRI.
fn run_by(stream: &mut Stream, by: Actor, argv: &[&str], tty: &str) {
    let second = stream.now().0 / SECOND + 1;
    stream.wait(second * SECOND - stream.now().0);
    let pid = 1000 + u32::try_from(second).unwrap() * 10;
    runtime_exec_since(second, stream, by, pid, &cri_id(), argv, tty);
}

fn run(stream: &mut Stream, argv: &[&str]) {
    run_by(stream, SHIM, argv, "");
}

/// So many seconds pass.
fn pass(stream: &mut Stream, seconds: u64) {
    for _ in 0..seconds {
        stream.wait(SECOND);
        stream.push(Body::Tick);
    }
}

#[track_caller]
fn is_anybodys(stream: &mut Stream, why: &str) -> Alert {
    let alert = only(stream);
    assert!(alert.severity >= Severity::Medium, "{alert:#?}");
    assert!(alert.reasons.iter().any(|reason| reason.contains(why)), "{:?}", alert.reasons);
    alert
}

#[track_caller]
fn is_kubelets(stream: &mut Stream) -> Alert {
    let alert = only(stream);
    assert_eq!(alert.severity, Severity::Low, "{alert:#?}");
    alert
}

#[test]
fn what_nobody_had_asked_for_is_kubelets_own_and_low_once() {
    let mut stream = served();
    for _ in 0..3 {
        run(&mut stream, &PROBE);
        pass(&mut stream, 10);
    }
    let alert = is_kubelets(&mut stream);
    assert_eq!(alert.title, "kubelet runs a probe or life-cycle hook of app of pod shop/web-node-1: /bin/check --all");
    assert!(alert.reasons[0].contains("nobody had asked"), "{:?}", alert.reasons);
    assert!(!alert.evidence.is_empty());
}

#[test]
fn a_session_is_told_by_its_connection_also_when_it_was_made_long_before() {
    for long_before in [false, true] {
        let mut stream = served();
        stream.kernel(control::accept_at("127.0.0.1:50000", STREAM, endpoint::STREAM));
        if long_before {
            pass(&mut stream, 60);
        }
        stream.kernel(control::receive(CONTAINERD, "127.0.0.1:50000", STREAM, endpoint::STREAM));
        run(&mut stream, &["id"]);
        is_anybodys(&mut stream, "as sessions do");
    }
}

#[test]
fn a_request_to_kubelet_just_before_is_told_and_one_long_before_is_none() {
    for asks in [
        control::receive(KUBELET, "10.0.0.9:50000", "10.0.0.5:10250", endpoint::KUBELET),
        control::accept_at("10.0.0.9:50000", "10.0.0.5:10250", endpoint::KUBELET),
    ] {
        let mut stream = served();
        stream.kernel(asks);
        run(&mut stream, &["id"]);
        is_anybodys(&mut stream, "10.0.0.9");
    }
    let mut stream = served();
    stream.kernel(control::receive(KUBELET, "10.0.0.9:50000", "10.0.0.5:10250", endpoint::KUBELET));
    pass(&mut stream, 6);
    run(&mut stream, &["id"]);
    is_kubelets(&mut stream);
}

#[test]
fn another_client_of_the_runtime_is_told_for_as_long_as_it_may_be_connected() {
    let client = Actor::host(800, 101);
    let child = Actor { pid: 801, ..client };
    for inherited in [false, true] {
        let mut stream = served();
        begin(&mut stream, client, SHELL, "/usr/bin/crictl");
        stream.kernel(control::ask_runtime(client));
        if inherited {
            stream.kernel(testing::fork(client, child));
            stream.kernel(testing::exit(client));
        }
        pass(&mut stream, 60);
        run(&mut stream, &["id"]);
        is_anybodys(&mut stream, "crictl");
    }
    let mut stream = served();
    begin(&mut stream, client, SHELL, "/usr/bin/crictl");
    stream.kernel(control::ask_runtime(client));
    stream.kernel(testing::exit(client));
    pass(&mut stream, 7);
    run(&mut stream, &["id"]);
    is_kubelets(&mut stream);
}

#[test]
fn kubelet_the_agent_and_what_the_runtime_starts_for_its_shims_are_no_other_clients() {
    let mut stream = served();
    let agent = Actor::host(AGENT, 90);
    let shim = Actor { pid: 810, ..CONTAINERD };
    begin(&mut stream, shim, CONTAINERD, "/usr/bin/containerd-shim-runc-v2");
    for actor in [KUBELET, CONTAINERD, agent, shim] {
        stream.kernel(control::ask_runtime(actor));
    }
    run(&mut stream, &PROBE);
    is_kubelets(&mut stream);
    // One that is only called so.
    let mut stream = served();
    begin(&mut stream, shim, SHELL, "/usr/bin/containerd-shim-runc-v2");
    stream.kernel(control::ask_runtime(shim));
    run(&mut stream, &PROBE);
    is_anybodys(&mut stream, "connected to the container runtime");
}

#[test]
fn a_kubelet_that_connected_before_it_had_proven_to_be_one_is_no_other_client() {
    let mut stream = node();
    hooks(&mut stream, |_| {});
    begin(&mut stream, CONTAINERD, Actor::host(1, 0), "/usr/bin/containerd");
    begin(&mut stream, KUBELET, Actor::host(1, 0), "/usr/bin/kubelet");
    stream.kernel(control::ask_runtime(KUBELET));
    stream.kernel(testing::fork(KUBELET, Actor { pid: 820, ..KUBELET }));
    known(&mut stream);
    stream.wait(2 * SECOND);
    run(&mut stream, &PROBE);
    is_kubelets(&mut stream);
}

/// A node on which kubelet ran a probe every ten seconds for a while, three seconds after the last one.
fn probed() -> Stream {
    let mut stream = served();
    for _ in 0..3 {
        run(&mut stream, &PROBE);
        stream.wait(stream.now().0.next_multiple_of(SECOND) - stream.now().0);
        pass(&mut stream, 8);
    }
    // Ticks take a millisecond each: the next whole second is the tenth.
    stream
}

#[test]
fn what_kubelet_is_known_to_run_is_silent_while_others_ask_and_another_command_is_not() {
    for asks in [
        control::receive(KUBELET, "10.0.0.9:50000", "10.0.0.5:10250", endpoint::KUBELET),
        control::receive(CONTAINERD, "127.0.0.1:50000", STREAM, endpoint::STREAM),
        control::ask_runtime(Actor::host(800, 101)),
    ] {
        let mut stream = probed();
        stream.kernel(asks.clone());
        run(&mut stream, &PROBE);
        is_kubelets(&mut stream);
        let mut stream = probed();
        stream.kernel(asks);
        run(&mut stream, &["/bin/check", "--some"]);
        assert_eq!(alerts(&mut stream).iter().filter(|alert| alert.severity >= Severity::Medium).count(), 1);
    }
}

#[test]
fn a_session_with_the_command_of_a_probe_is_one_unless_the_probe_was_due_or_the_session_is_another() {
    let loud = |stream: &mut Stream| {
        let alerts = alerts(stream);
        alerts.into_iter().filter(|alert| alert.severity >= Severity::Medium).count()
    };
    let session = |stream: &mut Stream| {
        // Just before the next whole second.
        let next = (stream.now().0 / SECOND + 1) * SECOND;
        stream.wait(next - stream.now().0 - 50_000_000);
        stream.kernel(control::accept_at("127.0.0.1:50000", STREAM, endpoint::STREAM));
        stream.kernel(control::receive(CONTAINERD, "127.0.0.1:50000", STREAM, endpoint::STREAM));
    };
    let mut stream = probed();
    stream.wait(3 * SECOND);
    session(&mut stream);
    run(&mut stream, &PROBE);
    assert_eq!(loud(&mut stream), 1);
    let mut due = probed();
    session(&mut due);
    run(&mut due, &PROBE);
    assert_eq!(loud(&mut due), 0);
    // The session's own exec comes first.
    let mut other = probed();
    other.wait(3 * SECOND);
    session(&mut other);
    run_by(&mut other, SHIM, &["sh"], "pts0");
    run(&mut other, &PROBE);
    assert_eq!(loud(&mut other), 1);
}

#[test]
fn after_a_loss_nothing_is_kubelets_own() {
    let loss =
        || Body::Loss(Box::new(Loss { hook: "exec".to_owned(), cpu: None, lost: 1, skipped: false, alerting: false }));
    for before in [true, false] {
        let mut stream = served();
        if before {
            stream.push(loss());
        }
        run(&mut stream, &PROBE);
        if !before {
            // It is counted later than it happens.
            stream.push(loss());
        }
        pass(&mut stream, 2);
        let alerts = stream.alerts();
        let execs: Vec<_> = alerts.iter().filter(|alert| alert.technique.id == "container-exec").collect();
        assert!(execs.len() == 1 && execs[0].severity == Severity::Medium, "{execs:#?}");
    }
}

#[test]
fn what_comes_with_a_kubelet_that_has_just_begun_waits_for_kubelet_to_run_it_again() {
    let early = || {
        let mut stream = served();
        stream.kernel(testing::exit(KUBELET));
        known(&mut stream);
        run(&mut stream, &PROBE);
        stream
    };
    let mut stream = early();
    pass(&mut stream, 20);
    assert_eq!(stream.alerts(), []);
    pass(&mut stream, 20);
    assert_eq!(only(&mut stream).severity, Severity::Medium);
    let mut stream = early();
    pass(&mut stream, 10);
    run(&mut stream, &PROBE);
    pass(&mut stream, 30);
    is_kubelets(&mut stream);
}

#[test]
fn where_the_node_does_not_tell_it_is_as_it_was_and_says_so() {
    let mut stream = served();
    hooks(&mut stream, |start| {
        for hook in start.hooks.iter_mut().filter(|hook| hook.name == "tcp-receive") {
            hook.backend = None;
        }
    });
    run(&mut stream, &PROBE);
    is_anybodys(&mut stream, "cannot be told on this node");
    // Recorded by an agent that did not look.
    let mut stream = served();
    hooks(&mut stream, |start| start.hooks.clear());
    run(&mut stream, &PROBE);
    let alert = only(&mut stream);
    assert_eq!((alert.severity, alert.reasons.len()), (Severity::Medium, 1));
}

#[test]
fn a_terminal_a_monitor_of_somebodys_own_and_a_command_too_long_to_know_are_anybodys() {
    let mut stream = served();
    run_by(&mut stream, SHIM, &PROBE, "pts0");
    assert_eq!(only(&mut stream).severity, Severity::Medium);
    let mut stream = served();
    let fake = Actor::host(830, 102);
    begin(&mut stream, fake, SHELL, "/tmp/containerd-shim-runc-v2");
    run_by(&mut stream, fake, &PROBE, "");
    assert!(only(&mut stream).severity >= Severity::Medium);
    // Its end is another's, maybe, while somebody asks. Told once, while nobody does.
    let mut stream = served();
    for asked in [false, false, true] {
        if asked {
            stream.kernel(control::receive(KUBELET, "10.0.0.9:50000", "10.0.0.5:10250", endpoint::KUBELET));
        }
        let from = stream.records.len();
        run(&mut stream, &PROBE);
        for record in &mut stream.records[from..] {
            truncate(&mut record.body);
        }
        pass(&mut stream, 10);
    }
    let severities: Vec<_> = alerts(&mut stream).iter().map(|alert| alert.severity).collect();
    assert_eq!(severities, [Severity::Low, Severity::Medium]);
}

/// Of an exec in the container, the arguments are not all there.
fn truncate(body: &mut Body) {
    let Body::Kernel { raw } = body else { return };
    let is_exec = raw[..2] == wire::kind::EXEC.to_ne_bytes();
    if is_exec {
        let mut bytes = raw.to_vec();
        let at = std::mem::offset_of!(wire::Exec, flags);
        bytes[at..at + 4].copy_from_slice(&wire::ARGV_TRUNCATED.to_ne_bytes());
        *raw = bytes.into();
    }
}
