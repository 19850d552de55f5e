use super::*;
use crate::{
    detect::container_exec::tests::{APP, SHIM, cri_id, node as pods, runtime_exec, start},
    record::{ContainerInfo, ContainerRole, PodRef},
    testing::{self, Actor, SECOND, Stream},
    testing_control as with,
};

const SHELL: Actor = Actor { pid: 50, start: 10, cgroup: 1, mnt_ns: testing::HOST_MNT, pid_ns: testing::HOST_PID };

fn told(stream: &mut Stream) -> Vec<(String, Severity)> {
    for _ in 0..40 {
        stream.wait(SECOND);
        stream.push(Body::Tick);
    }
    let alerts = stream.alerts().into_iter().filter(|alert| alert.technique == DELETE_EVENTS);
    alerts.map(|alert| (alert.title, alert.severity)).collect()
}

fn connect(stream: &mut Stream, actor: Actor) {
    stream.kernel(with::connect(actor, "10.0.0.5:2379", endpoint::ETCD));
}

#[test]
fn whoever_is_not_the_control_plane_is_told_once_and_a_container_is_worse() {
    let mut stream = pods();
    with::add(&mut stream);
    connect(&mut stream, SHELL);
    connect(&mut stream, SHELL);
    connect(&mut stream, APP);
    let expected = [
        ("etcd's clients' port 10.0.0.5:2379 used by /bin/bash from the host", Severity::Medium),
        ("etcd's clients' port 10.0.0.5:2379 used by /bin/app from app of pod shop/web-node-1", Severity::High),
    ];
    assert_eq!(told(&mut stream), expected.map(|(title, severity)| (title.to_owned(), severity)));
}

#[test]
fn the_control_plane_is_silent() {
    let mut stream = with::node();
    for actor in [with::API_SERVER, with::ETCD, with::KUBELET] {
        connect(&mut stream, actor);
    }
    assert_eq!(told(&mut stream), []);
}

#[test]
fn an_api_server_that_starts_asks_etcd_before_it_listens_and_an_impostor_never_does() {
    let mut stream = with::node();
    let (server, impostor) = (Actor::host(800, 110), Actor::host(801, 110));
    for (actor, exe) in [(server, "/usr/bin/kube-apiserver"), (impostor, "/tmp/kube-apiserver")] {
        stream.kernel(testing::fork(SHELL, actor));
        stream.kernel(testing::exec(actor, SHELL, exe, &[exe]));
        connect(&mut stream, actor);
    }
    stream.wait(5 * SECOND);
    stream.push(with::components(vec![with::component(ComponentKind::ApiServer, server)]));
    let told = told(&mut stream);
    assert_eq!(told.len(), 1);
    assert!(told[0].0.contains("/tmp/kube-apiserver"), "{told:?}");
}

/// etcd in a static pod, as kubeadm runs it.
fn etcd_pod(stream: &mut Stream, namespace: &str) -> Actor {
    let etcd = Actor { pid: 240, start: 25, cgroup: 903, mnt_ns: 63, pid_ns: 73 };
    let pod = PodRef { namespace: namespace.to_owned(), name: "etcd-node-1".to_owned(), uid: "eeee".to_owned() };
    let info = ContainerInfo {
        pod: Some(pod),
        sandbox_id: Some("other".to_owned()),
        ..testing::container("etcd-id", 903, ContainerRole::Member, "etcd")
    };
    start(stream, etcd, info, "/usr/local/bin/etcd");
    stream.push(with::components(vec![with::component(ComponentKind::Etcd, etcd)]));
    etcd
}

#[test]
fn etcd_may_ask_itself_and_be_asked_for_its_health_and_nothing_else() {
    let mut stream = pods();
    let etcd = etcd_pod(&mut stream, "kube-system");
    connect(&mut stream, etcd);
    let enter = |stream: &mut Stream, pid, argv: &[&str]| {
        let inside = runtime_exec(stream, SHIM, pid, &cri_id(), argv, "");
        let inside = Actor { pid: inside.pid, start: inside.start, ..etcd };
        connect(stream, inside);
    };
    enter(&mut stream, 400, &["/usr/local/bin/etcdctl", "--cacert=/ca", "endpoint", "health"]);
    assert_eq!(told(&mut stream), []);
    enter(&mut stream, 500, &["/usr/local/bin/etcdctl", "del", "/registry/events", "--prefix"]);
    let told = told(&mut stream);
    assert_eq!(told.iter().map(|(_, severity)| *severity).collect::<Vec<_>>(), [Severity::Medium]);
}

#[test]
fn a_pod_of_somebody_is_no_part_of_the_control_plane_whatever_runs_in_it() {
    let mut stream = pods();
    let etcd = etcd_pod(&mut stream, "shop");
    connect(&mut stream, etcd);
    let severities: Vec<_> = told(&mut stream).into_iter().map(|(_, severity)| severity).collect();
    assert_eq!(severities, [Severity::High]);
}
