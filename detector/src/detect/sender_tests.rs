use crate::{
    alert::{Alert, Origin, Severity},
    detect::{
        container_exec::tests::{APP, node as pods, start},
        technique::SERVICE_ACCOUNT,
    },
    record::{
        AuditEvent, Body, Client, Clients, ComponentKind, ContainerInfo, ContainerRole, Loss, PodRef, ProcessKey,
    },
    testing::{self, Actor, SECOND, Stream},
    testing_control as with,
};

/// This node's address, that of the pod `shop/web-node-1`, and that of the API server as a service.
const NODE: &str = "10.0.0.5";
const POD: &str = "10.244.0.7";
const OTHER_POD: &str = "10.244.0.8";
const API: &str = "10.0.0.5:6443";
const SERVICE: &str = "10.96.0.1:443";
const SHELL: Actor = Actor { pid: 50, start: 10, cgroup: 1, mnt_ns: testing::HOST_MNT, pid_ns: testing::HOST_PID };
/// Inode numbers of pods' network namespaces.
const POD_NET: u32 = 501;
const OTHER_NET: u32 = 502;
/// In another pod on this node.
const OTHER: Actor = Actor { pid: 620, start: 24, cgroup: 950, mnt_ns: 82, pid_ns: 92 };
const EVENTS: &str = "/api/v1/namespaces/shop/events";

/// A node whose control plane is connected, and has been looked at.
fn node() -> Stream {
    let mut stream = pods();
    with::add(&mut stream);
    let pod = PodRef { namespace: "shop".to_owned(), name: "thief".to_owned(), uid: "2c3d".to_owned() };
    let info = ContainerInfo {
        pod: Some(pod),
        sandbox_id: None,
        ..testing::container("other-id", OTHER.cgroup, ContainerRole::Member, "app")
    };
    start(&mut stream, OTHER, info, "/bin/app");
    looked(&mut stream, false);
    stream
}

fn looked(stream: &mut Stream, cut: bool) {
    let client = Client {
        process: ProcessKey::from_ns(with::KUBELET.pid, with::KUBELET.start * SECOND),
        local: NODE.parse().unwrap(),
        remote: NODE.parse().unwrap(),
        remote_port: 6443,
        net_ns: 9,
    };
    stream.push(Body::Clients(Box::new(Clients { clients: vec![client], cut })));
}

fn run(stream: &mut Stream, parent: Actor, pid: u32, argv: &[&str]) -> Actor {
    let child = Actor { pid, start: 120, ..parent };
    stream.kernel(testing::fork(parent, child));
    let exe = format!("/usr/bin/{}", argv[0]);
    stream.kernel(testing::exec_in(child, parent, &exe, argv, Default::default(), pid, ""));
    child
}

fn connect(stream: &mut Stream, actor: Actor, from: &str, to: &str, net_ns: u32) {
    stream.kernel(with::connect_from(actor, from, to, net_ns));
}

/// Events are deleted by this user from this address, just now.
fn request(stream: &mut Stream, user: &str, from: &str, change: impl FnOnce(&mut AuditEvent)) {
    let mut event = testing::audit(user, "deletecollection", EVENTS);
    event.sources = vec![from.parse().unwrap()];
    event.received = testing::wall(stream.now());
    change(&mut event);
    stream.wait(SECOND / 5);
    stream.push(Body::Audit(Box::new(event)));
}

fn alice(stream: &mut Stream, from: &str) {
    request(stream, "alice", from, |_| {});
}

#[track_caller]
fn last(stream: &Stream) -> Alert {
    let mut told: Vec<_> =
        stream.alerts().into_iter().filter(|alert| alert.technique.id == "delete-kubernetes-events").collect();
    told.pop().unwrap()
}

fn pid(alert: &Alert) -> Option<u32> {
    alert.process.as_ref().map(|process| process.pid)
}

#[track_caller]
fn nobody(alert: &Alert) {
    assert_eq!((pid(alert), &alert.container, &alert.pod, alert.origin), (None, &None, &None, Origin::Unknown));
}

#[test]
fn the_only_process_with_a_connection_from_there_is_named_with_its_record() {
    let mut stream = node();
    let kubectl = run(&mut stream, SHELL, 300, &["kubectl", "delete", "events", "--all"]);
    connect(&mut stream, kubectl, NODE, API, 9);
    let made = stream.records.len() as u64;
    alice(&mut stream, NODE);
    let alert = last(&stream);
    assert_eq!((pid(&alert), alert.origin), (Some(300), Origin::Host));
    assert_eq!(alert.process.unwrap().argv, ["kubectl", "delete", "events", "--all"]);
    let evidence = alert.evidence.last().unwrap();
    assert_eq!((evidence.kind, evidence.sequence), ("connection", made));
    assert_eq!(evidence.detail, "pid 300 connected to 10.0.0.5:6443 from 10.0.0.5");
    assert_eq!(
        alert.reasons.last().unwrap(),
        "it came over a connection of /usr/bin/kubectl: nobody else on this node had one from 10.0.0.5 that fits"
    );
    // Ended since, but not when the request was received.
    stream.kernel(testing::exit(kubectl));
    let received = stream.records[made as usize - 1].time;
    request(&mut stream, "alice", NODE, |event| event.received = testing::wall(received));
    assert_eq!(pid(&last(&stream)), Some(300));
}

#[test]
fn of_several_none_is_named_and_all_are_told() {
    let mut stream = node();
    for (pid, exe) in [(300, "kubectl"), (301, "k9s")] {
        let process = run(&mut stream, SHELL, pid, &[exe]);
        connect(&mut stream, process, NODE, API, 9);
    }
    alice(&mut stream, NODE);
    let alert = last(&stream);
    nobody(&alert);
    assert_eq!(
        alert.reasons.last().unwrap(),
        "it came over a connection of one of these, which is not known: /usr/bin/k9s, /usr/bin/kubectl"
    );
    assert_eq!(alert.evidence.iter().filter(|part| part.kind == "connection").count(), 2);
}

#[test]
fn who_had_ended_or_connected_later_or_from_elsewhere_does_not_fit() {
    let mut stream = node();
    let [ended, other, later, kubectl] = [(300, "ended"), (301, "other"), (302, "later"), (303, "kubectl")]
        .map(|(pid, exe)| run(&mut stream, SHELL, pid, &[exe]));
    connect(&mut stream, ended, NODE, API, 9);
    stream.kernel(testing::exit(ended));
    connect(&mut stream, other, "127.0.0.1", "127.0.0.1:6443", 9);
    stream.wait(SECOND);
    connect(&mut stream, kubectl, NODE, API, 9);
    let received = stream.now();
    stream.wait(SECOND);
    connect(&mut stream, later, NODE, API, 9);
    request(&mut stream, "alice", NODE, |event| event.received = testing::wall(received));
    assert_eq!(pid(&last(&stream)), Some(303));
    // By the loopback of the API server's network, and not of a pod's.
    let inside = run(&mut stream, APP, 304, &["proxy"]);
    connect(&mut stream, inside, "127.0.0.1", "127.0.0.1:6443", POD_NET);
    alice(&mut stream, "127.0.0.1");
    assert_eq!(pid(&last(&stream)), Some(301));
}

#[test]
fn the_control_planes_own_connections_are_theirs_and_anybody_elses_are_not() {
    let mut stream = node();
    request(&mut stream, "system:node:node-1", NODE, |_| {});
    assert_eq!(pid(&last(&stream)), Some(with::KUBELET.pid));
    alice(&mut stream, NODE);
    let alert = last(&stream);
    nobody(&alert);
    assert!(alert.reasons.iter().all(|reason| !reason.contains("connection")), "{:?}", alert.reasons);
    let manager = Actor { pid: 703, ..with::KUBELET };
    run(&mut stream, SHELL, 703, &["kube-controller-manager"]);
    let manager = Actor { start: 120, ..manager };
    connect(&mut stream, manager, NODE, API, 9);
    let kubectl = run(&mut stream, SHELL, 300, &["kubectl"]);
    connect(&mut stream, kubectl, NODE, API, 9);
    // A name alone is no proof.
    alice(&mut stream, NODE);
    nobody(&last(&stream));
    stream.push(with::components(vec![
        with::component(ComponentKind::Kubelet, with::KUBELET),
        with::component(ComponentKind::ApiServer, with::API_SERVER),
        with::component(ComponentKind::ControllerManager, manager),
    ]));
    alice(&mut stream, NODE);
    assert_eq!(pid(&last(&stream)), Some(300));
}

#[test]
fn a_pods_address_names_the_pod_and_its_container_and_process_where_only_one_fits() {
    let mut stream = node();
    connect(&mut stream, APP, POD, SERVICE, POD_NET);
    connect(&mut stream, OTHER, OTHER_POD, SERVICE, OTHER_NET);
    alice(&mut stream, POD);
    let alert = last(&stream);
    assert_eq!((pid(&alert), alert.pod.unwrap().name.as_str()), (Some(APP.pid), "web-node-1"));
    assert_eq!(alert.container.unwrap().name.as_deref(), Some("app"));
    let helper = run(&mut stream, APP, 300, &["helper"]);
    connect(&mut stream, helper, POD, SERVICE, POD_NET);
    alice(&mut stream, POD);
    let alert = last(&stream);
    assert_eq!((pid(&alert), alert.container.unwrap().id.as_str()), (None, "app-id"));
    assert_eq!(
        alert.reasons.last().unwrap(),
        "it came from pod shop/web-node-1, by which of its processes is not known: /bin/app in app of pod shop/web-node-1, \
         /usr/bin/helper in app of pod shop/web-node-1"
    );
    let beside = Actor { pid: 640, start: 125, cgroup: 960, mnt_ns: 83, pid_ns: 93 };
    start(&mut stream, beside, testing::container("beside-id", 960, ContainerRole::Member, "beside"), "/bin/beside");
    connect(&mut stream, beside, POD, SERVICE, POD_NET);
    alice(&mut stream, POD);
    let alert = last(&stream);
    assert_eq!((pid(&alert), alert.pod.unwrap().name.as_str()), (None, "web-node-1"));
    assert_eq!(alert.container.unwrap().id, "sandbox");
}

#[test]
fn what_a_node_may_have_put_its_own_address_on_fits_until_pods_addresses_were_seen_to_arrive() {
    let mut stream = node();
    let kubectl = run(&mut stream, SHELL, 300, &["kubectl"]);
    connect(&mut stream, kubectl, NODE, API, 9);
    connect(&mut stream, APP, POD, SERVICE, POD_NET);
    alice(&mut stream, NODE);
    nobody(&last(&stream));
    stream.kernel(with::accept("10.244.0.7:4000", API));
    alice(&mut stream, NODE);
    assert_eq!(pid(&last(&stream)), Some(300));
}

#[test]
fn where_it_was_never_looked_or_connections_were_lost_no_process_is_named() {
    let mut unlooked = pods();
    with::add(&mut unlooked);
    for (cut, lost) in [(false, false), (true, false), (false, true)] {
        let mut stream = if cut || lost { node() } else { std::mem::take(&mut unlooked) };
        if cut {
            looked(&mut stream, true);
        }
        let kubectl = run(&mut stream, SHELL, 300, &["kubectl"]);
        connect(&mut stream, kubectl, NODE, API, 9);
        connect(&mut stream, APP, POD, SERVICE, POD_NET);
        stream.kernel(with::accept("10.244.0.7:4000", API));
        if lost {
            let hook = "connection".to_owned();
            stream.push(Body::Loss(Box::new(Loss { hook, cpu: Some(0), lost: 1, skipped: false, alerting: true })));
        }
        alice(&mut stream, NODE);
        let alert = last(&stream);
        nobody(&alert);
        let said = alert
            .reasons
            .iter()
            .any(|reason| reason.starts_with("it may have come over a connection of /usr/bin/kubectl"));
        assert_eq!(said, cut || lost);
        // Whose an address is, is still known.
        alice(&mut stream, POD);
        let alert = last(&stream);
        assert_eq!((pid(&alert), alert.pod.is_some()), (None, cut || lost));
        if cut || lost {
            looked(&mut stream, false);
            alice(&mut stream, NODE);
            assert_eq!(pid(&last(&stream)), Some(300));
        }
    }
}

#[test]
fn a_request_that_is_read_late_or_by_another_clock_names_nobody() {
    let mut stream = node();
    let kubectl = run(&mut stream, SHELL, 300, &["kubectl"]);
    connect(&mut stream, kubectl, NODE, API, 9);
    let then = testing::wall(stream.now());
    stream.wait(6 * SECOND);
    let ahead = testing::wall(crate::record::BootNs(stream.now().0 + SECOND));
    for received in [then.as_str(), ahead.as_str(), "", "yesterday"] {
        request(&mut stream, "alice", NODE, |event| event.received = received.to_owned());
        nobody(&last(&stream));
    }
}

/// By whom the token of `shop/web-node-1` is used.
fn token(stream: &mut Stream, from: &str) {
    request(stream, "system:serviceaccount:shop:web", from, |event| {
        event.pod = Some("web-node-1".to_owned());
        event.verb = "list".to_owned();
    });
}

fn stolen(stream: &Stream) -> Vec<Alert> {
    stream.alerts().into_iter().filter(|alert| alert.technique == SERVICE_ACCOUNT).collect()
}

#[test]
fn a_pods_token_that_another_pod_or_the_host_uses_is_told_once_for_each() {
    let mut stream = node();
    connect(&mut stream, OTHER, OTHER_POD, SERVICE, OTHER_NET);
    stream.kernel(with::accept("10.244.0.8:4000", API));
    token(&mut stream, OTHER_POD);
    token(&mut stream, OTHER_POD);
    let kubectl = run(&mut stream, SHELL, 300, &["kubectl"]);
    connect(&mut stream, kubectl, NODE, API, 9);
    token(&mut stream, NODE);
    let alerts = stolen(&stream);
    assert_eq!(alerts.len(), 2, "{alerts:#?}");
    let title = "Service account token of pod shop/web-node-1 used by somebody else: list events";
    assert!(alerts.iter().all(|alert| alert.title == title && alert.severity == Severity::High), "{alerts:#?}");
    assert_eq!((pid(&alerts[0]), alerts[0].pod.as_ref().unwrap().name.as_str()), (Some(OTHER.pid), "thief"));
    assert_eq!((pid(&alerts[1]), alerts[1].origin), (Some(300), Origin::Host));
    assert_eq!(alerts[0].reasons[0], "the token is bound to pod shop/web-node-1, and somebody else used it");
    assert_eq!(alerts[0].request.as_ref().unwrap().pod.as_deref(), Some("web-node-1"));
}

#[test]
fn a_pod_that_uses_its_own_token_is_silent_and_so_is_what_may_be_its_own() {
    let mut stream = node();
    connect(&mut stream, APP, POD, SERVICE, POD_NET);
    token(&mut stream, POD);
    // In the node's network, beside others that use the same address.
    connect(&mut stream, APP, NODE, API, 9);
    let kubectl = run(&mut stream, SHELL, 300, &["kubectl"]);
    connect(&mut stream, kubectl, NODE, API, 9);
    token(&mut stream, NODE);
    // From another node.
    token(&mut stream, "10.0.0.77");
    assert_eq!(stolen(&stream), []);
    request(&mut stream, "system:serviceaccount:shop:web", NODE, |event| event.pod = Some("web-node-1".to_owned()));
    let alert = last(&stream);
    assert_eq!((pid(&alert), alert.pod.unwrap().name.as_str()), (None, "web-node-1"));
    assert_eq!(alert.reasons.last().unwrap(), "its token is bound to pod shop/web-node-1");
}

#[test]
fn who_is_connected_stands_at_the_beginning_of_a_later_segment() {
    let mut stream = node();
    let kubectl = run(&mut stream, SHELL, 300, &["kubectl"]);
    connect(&mut stream, kubectl, NODE, API, 9);
    let (mut live, mut standing) = (crate::pipeline::Pipeline::new(), crate::context::standing::Standing::default());
    for record in &stream.records {
        live.push(record);
        standing.observe(record);
    }
    let record = stream.records.last().unwrap();
    let opening = standing.records(live.context(), record.seq, record.time);
    let split = stream.records.len();
    stream.wait(SECOND);
    alice(&mut stream, NODE);
    let mut later = crate::pipeline::Pipeline::new();
    opening.iter().for_each(|record| drop(later.push(record)));
    let alerts: Vec<_> = stream.records[split..].iter().flat_map(|record| later.push(record)).collect();
    assert_eq!(alerts.iter().map(pid).collect::<Vec<_>>(), [Some(300)]);
}
