use super::*;
use crate::{
    detect::container_exec::tests::{APP, SHIM, cri_id, node as pods, runtime_exec, start},
    record::{ChangeKind, ContainerInfo, ContainerRole, PodRef},
    testing::{self, Actor, SECOND, Stream, manifest},
    testing_control as with,
};

const IN_POD: &str = "/var/run/secrets/kubernetes.io/serviceaccount/..2026/token";
const API: &str = "10.96.0.1:443";
const SHELL: Actor = Actor { pid: 50, start: 10, cgroup: 1, mnt_ns: testing::HOST_MNT, pid_ns: testing::HOST_PID };

fn node() -> Stream {
    let mut stream = pods();
    with::add(&mut stream);
    stream
}

fn told(stream: &mut Stream) -> Vec<(String, Severity)> {
    for _ in 0..40 {
        stream.wait(SECOND);
        stream.push(Body::Tick);
    }
    let alerts = stream.alerts().into_iter().filter(|alert| alert.technique == SERVICE_ACCOUNT);
    alerts.map(|alert| (alert.title, alert.severity)).collect()
}

fn child(stream: &mut Stream, of: Actor, pid: u32, exe: &str) -> Actor {
    let child = Actor { pid, start: 120, ..of };
    stream.kernel(testing::fork(of, child));
    stream.kernel(testing::exec_in(child, of, exe, &[exe], Default::default(), pid, ""));
    child
}

fn connect(stream: &mut Stream, actor: Actor) {
    stream.kernel(with::connect(actor, API, endpoint::API));
}

#[test]
fn the_workload_reads_its_own_token_and_uses_it_and_so_does_what_it_starts() {
    let mut stream = node();
    stream.kernel(with::read(APP, with::TOKEN, IN_POD));
    connect(&mut stream, APP);
    let helper = child(&mut stream, APP, 300, "/bin/helper");
    stream.kernel(with::read(helper, with::TOKEN, IN_POD));
    connect(&mut stream, helper);
    assert_eq!(told(&mut stream), []);
}

#[test]
fn kubelet_may_read_what_it_puts_there_also_before_it_has_proven_to_be_one() {
    let mut stream = pods();
    let kubelet = child(&mut stream, Actor::host(1, 0), 702, "/usr/bin/kubelet");
    stream.push(with::secret(InodeKey { ino: 0, ..with::TOKEN }, SecretKind::Token, "/v", Some("0a1b")));
    stream.kernel(with::read(kubelet, with::TOKEN, "/var/lib/kubelet/pods/0a1b/v/token"));
    connect(&mut stream, kubelet);
    stream.wait(5 * SECOND);
    stream.push(with::components(vec![with::component(ComponentKind::Kubelet, kubelet)]));
    stream.kernel(with::read(kubelet, with::TOKEN, "/var/lib/kubelet/pods/0a1b/v/token"));
    assert_eq!(told(&mut stream), []);
}

#[test]
fn a_process_that_is_only_called_kubelet_is_told_when_it_had_its_time() {
    let mut stream = pods();
    let impostor = child(&mut stream, SHELL, 702, "/tmp/kubelet");
    stream.push(with::secret(InodeKey { ino: 0, ..with::TOKEN }, SecretKind::Token, "/v", Some("0a1b")));
    stream.kernel(with::read(impostor, with::TOKEN, "/var/lib/kubelet/pods/0a1b/v/token"));
    let told = told(&mut stream);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].1, Severity::Medium);
}

#[test]
fn what_a_kubelet_read_before_it_had_proven_to_be_one_is_used_by_nobody() {
    // The other connects before that or after it, and it is proven or never is.
    for (proven, after, expected) in [(true, true, 0), (true, false, 0), (false, false, 2)] {
        let mut stream = pods();
        let kubelet = child(&mut stream, SHELL, 702, "/usr/bin/kubelet");
        stream.push(with::secret(InodeKey { ino: 0, ..with::TOKEN }, SecretKind::Token, "/v", Some("0a1b")));
        stream.kernel(with::read(kubelet, with::TOKEN, "/var/lib/kubelet/pods/0a1b/v/token"));
        let other = child(&mut stream, SHELL, 703, "/bin/busybox");
        if !after {
            connect(&mut stream, other);
        }
        stream.wait(5 * SECOND);
        if proven {
            stream.push(with::components(vec![with::component(ComponentKind::Kubelet, kubelet)]));
        }
        if after {
            connect(&mut stream, other);
        }
        assert_eq!(told(&mut stream).len(), expected);
    }
}

#[test]
fn what_somebody_on_the_host_has_read_is_not_used_by_the_containers_that_they_start() {
    for (started, expected) in [(SHELL, 2), (APP, 1)] {
        let mut stream = node();
        stream.kernel(with::read(SHELL, with::TOKEN, "/var/lib/kubelet/pods/0a1b/v/token"));
        let later = Actor { pid: 703, start: 120, ..started };
        stream.kernel(testing::fork(SHELL, later));
        stream.kernel(testing::exec(later, SHELL, "/bin/busybox", &["busybox"]));
        connect(&mut stream, later);
        assert_eq!(told(&mut stream).len(), expected);
    }
}

#[test]
fn an_exec_session_that_reads_the_token_is_medium_and_its_use_by_another_program_of_the_session_high() {
    let mut stream = node();
    let shell = runtime_exec(&mut stream, SHIM, 400, &cri_id(), &["/bin/sh"], "pts0");
    let cat = child(&mut stream, shell, 450, "/bin/cat");
    stream.kernel(with::read(cat, with::TOKEN, IN_POD));
    stream.kernel(testing::exit(cat));
    let curl = child(&mut stream, shell, 451, "/usr/bin/curl");
    connect(&mut stream, curl);
    connect(&mut stream, curl);
    let expected = [
        (
            "Service account token of pod shop/web-node-1 read by /bin/cat in an exec session in app of pod shop/web-node-1",
            Severity::Medium,
        ),
        (
            "Service account token of pod shop/web-node-1 read, then /usr/bin/curl connected to the API server",
            Severity::High,
        ),
    ];
    assert_eq!(told(&mut stream), expected.map(|(title, severity)| (title.to_owned(), severity)));
    let alert = stream.alerts().into_iter().find(|alert| alert.severity == Severity::High).unwrap();
    assert_eq!(alert.evidence.len(), 2);
    assert_eq!(alert.pod.unwrap().name, "web-node-1");
}

#[test]
fn an_exec_session_that_reads_the_certificate_beside_the_token_or_nothing_is_silent() {
    let mut stream = node();
    let shell = runtime_exec(&mut stream, SHIM, 400, &cri_id(), &["/bin/sh"], "pts0");
    stream.kernel(with::read(shell, InodeKey { ino: 6, ..with::TOKEN }, "/var/run/secrets/ca.crt"));
    connect(&mut stream, shell);
    assert_eq!(told(&mut stream), []);
}

#[test]
fn a_session_of_before_is_no_reason_to_suspect_the_workload_later() {
    let mut stream = node();
    let shell = runtime_exec(&mut stream, SHIM, 400, &cri_id(), &["/bin/sh"], "pts0");
    stream.kernel(with::read(shell, with::TOKEN, IN_POD));
    connect(&mut stream, APP);
    stream.wait(USE_NS);
    connect(&mut stream, shell);
    let severities: Vec<_> = told(&mut stream).into_iter().map(|(_, severity)| severity).collect();
    assert_eq!(severities, [Severity::Medium]);
}

#[test]
fn another_pods_token_is_high_and_its_use_critical() {
    let mut stream = node();
    let thief = Actor { pid: 240, start: 25, cgroup: 903, mnt_ns: 63, pid_ns: 73 };
    let info = ContainerInfo {
        pod: Some(PodRef { namespace: "x".to_owned(), name: "thief".to_owned(), uid: "ffff".to_owned() }),
        sandbox_id: Some("other".to_owned()),
        ..testing::container("thief-id", 903, ContainerRole::Member, "thief")
    };
    start(&mut stream, thief, info, "/bin/thief");
    stream.kernel(with::read(thief, with::TOKEN, "/host/var/lib/kubelet/pods/0a1b/v/..2026/token"));
    connect(&mut stream, thief);
    let told = told(&mut stream);
    assert_eq!(told.iter().map(|(_, severity)| *severity).collect::<Vec<_>>(), [Severity::High, Severity::Critical]);
    assert_eq!(told[0].0, "Service account token of pod shop/web-node-1 read by /bin/thief in thief of pod x/thief");
}

#[test]
fn a_container_of_which_nothing_is_known_is_low() {
    let mut stream = node();
    let stranger = Actor { pid: 240, start: 25, cgroup: 903, mnt_ns: 63, pid_ns: 73 };
    let info = ContainerInfo { id: "stranger".to_owned(), cgroup_id: Some(903), ..ContainerInfo::default() };
    start(&mut stream, stranger, info, "/bin/app");
    stream.kernel(with::read(stranger, with::TOKEN, IN_POD));
    let severities: Vec<_> = told(&mut stream).into_iter().map(|(_, severity)| severity).collect();
    assert_eq!(severities, [Severity::Low]);
}

#[test]
fn what_a_kubelet_read_is_used_by_nobody_once_it_was_restarted_either() {
    for (proven, expected) in [(true, 0), (false, 2)] {
        let mut stream = pods();
        let kubelet = child(&mut stream, SHELL, 702, "/usr/bin/kubelet");
        stream.push(with::secret(InodeKey { ino: 0, ..with::TOKEN }, SecretKind::Token, "/v", Some("0a1b")));
        stream.kernel(with::read(kubelet, with::TOKEN, "/var/lib/kubelet/pods/0a1b/v/token"));
        if proven {
            stream.push(with::components(vec![with::component(ComponentKind::Kubelet, kubelet)]));
        }
        stream.wait(SECOND);
        stream.push(Body::Tick);
        stream.kernel(testing::exit(kubelet));
        let next = child(&mut stream, SHELL, 704, "/usr/bin/kubelet");
        stream.push(with::components(vec![with::component(ComponentKind::Kubelet, next)]));
        let other = child(&mut stream, SHELL, 703, "/usr/bin/kubectl");
        connect(&mut stream, other);
        assert_eq!(told(&mut stream).len(), expected);
    }
}

#[test]
fn a_kubelet_in_a_container_of_no_pod_may_read_and_one_in_somebodys_pod_may_not() {
    for (pod, expected) in [(None, 0), (Some(PodRef { uid: "ffff".to_owned(), ..PodRef::default() }), 1)] {
        let mut stream = node();
        let kubelet = Actor { pid: 240, start: 25, cgroup: 903, mnt_ns: 63, pid_ns: 73 };
        let info = ContainerInfo { pod, ..testing::container("k", 903, ContainerRole::Plain, "") };
        start(&mut stream, kubelet, info, "/bin/kubelet");
        stream.push(with::components(vec![with::component(ComponentKind::Kubelet, kubelet)]));
        stream.kernel(with::read(kubelet, with::TOKEN, "/var/lib/kubelet/pods/0a1b/v/token"));
        assert_eq!(told(&mut stream).len(), expected);
    }
}

#[test]
fn the_host_is_medium_and_what_came_to_the_host_out_of_a_container_high() {
    let mut stream = node();
    let cat = child(&mut stream, SHELL, 450, "/bin/cat");
    stream.kernel(with::read(cat, with::TOKEN, "/var/lib/kubelet/pods/0a1b/v/token"));
    let nsenter = Actor { pid: 451, start: 120, ..Actor::host(0, 0) };
    stream.kernel(testing::fork(APP, nsenter));
    stream.kernel(testing::exec(nsenter, APP, "/bin/bash", &["bash"]));
    stream.kernel(with::read(nsenter, with::TOKEN, "/var/lib/kubelet/pods/0a1b/v/token"));
    let severities: Vec<_> = told(&mut stream).into_iter().map(|(_, severity)| severity).collect();
    assert_eq!(severities, [Severity::Medium, Severity::High]);
}

#[test]
fn a_program_that_was_dropped_into_the_container_is_told_although_the_workload_started_it() {
    let mut stream = node();
    let dropped = child(&mut stream, APP, 450, "/tmp/x");
    stream.kernel(with::read(dropped, with::TOKEN, IN_POD));
    connect(&mut stream, dropped);
    let severities: Vec<_> = told(&mut stream).into_iter().map(|(_, severity)| severity).collect();
    assert_eq!(severities, [Severity::Medium, Severity::High]);
}

#[test]
fn the_nodes_credentials_are_silent_on_the_host_and_high_in_a_container() {
    let mut stream = node();
    let (config, key) = (InodeKey { dev: 8, ino: 500 }, InodeKey { dev: 8, ino: 501 });
    stream.push(with::secret(config, SecretKind::Kubeconfig, "/etc/kubernetes/admin.conf", None));
    stream.push(with::secret(key, SecretKind::Key, "/etc/kubernetes/pki/ca.key", None));
    let kubectl = child(&mut stream, SHELL, 450, "/usr/bin/kubectl");
    stream.kernel(with::read(kubectl, config, "/etc/kubernetes/admin.conf"));
    connect(&mut stream, kubectl);
    stream.kernel(with::read(with::API_SERVER, key, "/etc/kubernetes/pki/ca.key"));
    assert_eq!(told(&mut stream), []);
    stream.kernel(with::read(APP, key, "/host/etc/kubernetes/pki/ca.key"));
    let expected = "Private key /etc/kubernetes/pki/ca.key read by /bin/app in app of pod shop/web-node-1";
    assert_eq!(told(&mut stream), [(expected.to_owned(), Severity::High)]);
}

#[test]
fn a_static_pod_reads_what_its_manifest_gives_it_and_nothing_else() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nspec:\n  containers: [{name: app, image: a}]\n  \
                volumes:\n  - {name: pki, hostPath: {path: /etc/kubernetes/pki}}\n  - {name: all, hostPath: {path: /etc}}\n";
    let mut stream = node();
    let since = stream.now();
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Present, Some(text), since))));
    let (config, key) = (InodeKey { dev: 8, ino: 500 }, InodeKey { dev: 8, ino: 501 });
    stream.push(with::secret(config, SecretKind::Kubeconfig, "/etc/kubernetes/admin.conf", None));
    stream.push(with::secret(key, SecretKind::Key, "/etc/kubernetes/pki/ca.key", None));
    stream.kernel(with::read(APP, key, "/etc/kubernetes/pki/ca.key"));
    assert_eq!(told(&mut stream), []);
    stream.kernel(with::read(APP, config, "/etc/kubernetes/admin.conf"));
    assert_eq!(told(&mut stream).len(), 1);
}

#[test]
fn a_volume_that_is_gone_is_none_any_more() {
    let mut stream = node();
    let gone = InodeKey { ino: 0, ..with::TOKEN };
    let Body::Secret(mut secret) = with::secret(gone, SecretKind::Token, "/v", Some("0a1b")) else { panic!() };
    secret.gone = true;
    stream.push(Body::Secret(secret));
    stream.kernel(with::read(SHELL, with::TOKEN, "/dev/shm/token"));
    assert_eq!(told(&mut stream), []);
}
