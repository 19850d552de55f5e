use detector_common as wire;

use super::*;
use crate::{
    detect::container_exec::tests::{APP, SHIM, cri_id, node as pods, runtime_exec, start},
    record::{Body, ContainerInfo},
    testing::{self, Actor, SECOND, Stream},
    testing_control as with,
};

const IN_POD: &str = "/var/run/secrets/kubernetes.io/serviceaccount/..2026/token";
const API: &str = "10.96.0.1:443";
const MINUTE: u64 = 60 * SECOND;

fn node() -> Stream {
    let mut stream = pods();
    with::add(&mut stream);
    stream
}

/// The workload reads its token and uses it.
fn uses(stream: &mut Stream, actor: Actor) {
    stream.kernel(with::read(actor, with::TOKEN, IN_POD));
    stream.kernel(with::connect(actor, API, endpoint::API));
}

fn runs(stream: &mut Stream, parent: Actor, pid: u32, argv: &[&str], path: &str, flags: u32) -> Actor {
    let child = Actor { pid, start: 120, ..parent };
    stream.kernel(testing::fork(parent, child));
    let mut raw = testing::exec_in(child, parent, path, argv, Default::default(), pid, "").to_vec();
    let at = std::mem::offset_of!(wire::Exec, flags);
    raw[at..at + 4].copy_from_slice(&flags.to_ne_bytes());
    stream.kernel(raw.into());
    child
}

fn told(stream: &Stream) -> Vec<(Severity, String)> {
    let alerts = stream.alerts().into_iter().filter(|alert| alert.technique == MALICIOUS_OPERATOR);
    alerts
        .map(|alert| {
            assert_eq!(alert.pod.unwrap().name, "web-node-1");
            (alert.severity, alert.title)
        })
        .collect()
}

fn title(path: &str) -> String {
    format!("Workload that uses the API server runs what it never ran: {path} in app of pod shop/web-node-1")
}

#[test]
fn tools_that_a_workload_runs_for_the_first_time_are_told_once_by_what_they_are() {
    let mut stream = node();
    uses(&mut stream, APP);
    stream.wait(10 * MINUTE);
    let shell = runs(&mut stream, APP, 300, &["sh", "-c", "id"], "/bin/sh", 0);
    runs(&mut stream, shell, 301, &["curl", "http://x"], "/usr/bin/curl", 0);
    runs(&mut stream, APP, 302, &["helm"], "/usr/bin/helm", 0);
    runs(&mut stream, APP, 303, &["sh"], "/bin/sh", 0);
    assert_eq!(
        told(&stream),
        [
            (Severity::Medium, title("/bin/sh")),
            (Severity::Medium, title("/usr/bin/curl")),
            (Severity::Low, title("/usr/bin/helm")),
        ]
    );
    let alert = stream.alerts().into_iter().find(|alert| alert.technique == MALICIOUS_OPERATOR).unwrap();
    assert_eq!(alert.process.unwrap().pid, 300);
    assert_eq!(alert.evidence.iter().map(|part| part.kind).collect::<Vec<_>>(), ["read", "connection", "exec"]);
    assert_eq!(
        alert.reasons,
        [
            "sh runs commands, fetches files or opens connections",
            "before that, it used the API server",
            "it had read its service account's token"
        ]
    );
}

#[test]
fn an_operator_that_does_what_it_did_in_its_first_minutes_is_silent_also_when_it_starts_again() {
    let mut stream = node();
    uses(&mut stream, APP);
    let work = |stream: &mut Stream, parent: Actor, pid: u32| {
        let shell = runs(stream, parent, pid, &["sh", "-c", "helm"], "/bin/sh", 0);
        runs(stream, shell, pid + 1, &["helm"], "/usr/bin/helm", 0);
        runs(stream, shell, pid + 2, &["git"], "/usr/bin/git", 0);
        runs(stream, shell, pid + 3, &["wget"], "/bin/busybox", 0);
    };
    work(&mut stream, APP, 300);
    stream.wait(60 * MINUTE);
    work(&mut stream, APP, 310);
    let again = Actor { pid: 620, start: 130, cgroup: 950, mnt_ns: 82, pid_ns: 92 };
    let info =
        ContainerInfo { id: "again".to_owned(), ..testing::container("again", 950, ContainerRole::Member, "app") };
    start(&mut stream, again, info, "/bin/app");
    uses(&mut stream, again);
    work(&mut stream, again, 630);
    assert_eq!(told(&stream), []);
}

#[test]
fn who_does_not_use_the_api_server_and_who_is_no_part_of_the_workload_are_silent() {
    let mut stream = node();
    stream.kernel(with::read(APP, with::TOKEN, IN_POD));
    stream.wait(10 * MINUTE);
    runs(&mut stream, APP, 300, &["sh"], "/bin/sh", 0);
    // An exec session uses it, and runs what the workload never ran.
    let session = runtime_exec(&mut stream, SHIM, 400, &cri_id(), &["/bin/bash"], "pts0");
    stream.kernel(with::connect(session, API, endpoint::API));
    runs(&mut stream, session, 410, &["curl"], "/usr/bin/curl", 0);
    // The workload does, and the session goes on.
    uses(&mut stream, APP);
    runs(&mut stream, session, 411, &["nc"], "/usr/bin/nc", 0);
    // What runs there from the start needs no API server; neither do the node's own processes.
    let shell = Actor::host(50, 10);
    runs(&mut stream, shell, 500, &["nc"], "/usr/bin/nc", wire::EXE_TMPFS);
    assert_eq!(told(&stream), []);
}

#[test]
fn what_was_not_in_the_image_is_told_from_the_start_and_is_worse_later() {
    let mut stream = node();
    runs(&mut stream, APP, 300, &["x"], "/tmp/x", wire::EXE_UPPER);
    uses(&mut stream, APP);
    // Known from before it used the API server.
    runs(&mut stream, APP, 301, &["x"], "/tmp/x", wire::EXE_UPPER);
    runs(&mut stream, APP, 302, &["y"], "/tmp/y", wire::EXE_UPPER);
    stream.wait(10 * MINUTE);
    runs(&mut stream, APP, 303, &["y"], "/tmp/y", wire::EXE_UPPER);
    runs(&mut stream, APP, 304, &["z"], "/memfd:z", wire::EXE_MEMFD);
    assert_eq!(told(&stream), [(Severity::Medium, title("/tmp/y")), (Severity::High, title("/memfd:z"))]);
}

#[test]
fn of_a_program_that_is_many_each_is_one() {
    let mut stream = node();
    uses(&mut stream, APP);
    for (pid, argv) in [(300, &["date"][..]), (301, &["busybox", "sleep", "1"])] {
        runs(&mut stream, APP, pid, argv, "/bin/busybox", 0);
    }
    stream.wait(10 * MINUTE);
    for (pid, argv) in
        [(302, &["/bin/date"][..]), (303, &["sleep", "2"]), (304, &["busybox", "wget", "http://x"]), (305, &["wget"])]
    {
        runs(&mut stream, APP, pid, argv, "/bin/busybox", 0);
    }
    assert_eq!(told(&stream), [(Severity::Medium, title("/bin/busybox"))]);
}

#[test]
fn a_workload_cannot_hide_a_dropped_program_behind_many_others() {
    let mut stream = node();
    uses(&mut stream, APP);
    for pid in 1000..1000 + PROGRAMS_MAX as u32 {
        runs(&mut stream, APP, pid, &["x"], &format!("/bin/x{pid}"), 0);
    }
    stream.wait(10 * MINUTE);
    for pid in 2000..2040 {
        runs(&mut stream, APP, pid, &["x"], &format!("/tmp/x{pid}"), wire::EXE_UPPER);
    }
    assert_eq!(told(&stream).len(), TOLD_MAX as usize);
    stream.push(Body::Tick);
    assert!(
        stream
            .alerts()
            .iter()
            .all(|alert| alert.technique.id != "malicious-operator" || alert.severity == Severity::High)
    );
}
