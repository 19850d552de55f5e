use detector_common::{self as wire, hook, kind, syscall, watch};

use super::*;
use crate::{
    alert::Alert,
    record::{AuditLog, Component, Components, ContainerRole, LogState},
    testing::{self, Actor, HOST_MNT, HOST_PID, SECOND, Stream},
};

const POD: InodeKey = InodeKey { dev: 8, ino: 300 };
const DIR: InodeKey = InodeKey { dev: 8, ino: 301 };
const LOG: InodeKey = InodeKey { dev: 8, ino: 302 };
const OLD: InodeKey = InodeKey { dev: 8, ino: 303 };
const PATH: &str = "/var/log/pods/shop_web-node-1_0a1b/app";
const KUBELET: Actor = Actor { pid: 60, start: 20, cgroup: 1, mnt_ns: HOST_MNT, pid_ns: HOST_PID };
const OTHER: Actor = Actor { pid: 61, start: 21, cgroup: 1, mnt_ns: HOST_MNT, pid_ns: HOST_PID };
const EVIL: Actor = Actor { pid: 62, start: 22, cgroup: 902, mnt_ns: 63, pid_ns: 64 };

fn logs(role: LogsRole, change: LogsChange, since: BootNs) -> Body {
    let pod = PodRef { namespace: "shop".to_owned(), name: "web-node-1".to_owned(), uid: "0a1b".to_owned() };
    Body::NodeLogs(Box::new(Logs {
        path: PATH.to_owned(),
        dir: DIR,
        role,
        pod: (role == LogsRole::Container).then_some(pod),
        container: (role == LogsRole::Container).then(|| "app".to_owned()),
        change,
        since,
    }))
}

fn emptied(copied: bool) -> LogsChange {
    LogsChange::Emptied { name: "0.log".to_owned(), inode: LOG, had: 1000, has: 0, copied }
}

fn removed(name: &str, inode: InodeKey) -> LogsChange {
    let rotated = !name.ends_with(".log");
    LogsChange::Removed { name: name.to_owned(), inode, had: 1000, rotated, replaced: false }
}

/// A node with a kubelet, somebody else, and a container, whose logs are watched.
fn node() -> Stream {
    let mut stream = Stream::new();
    for (actor, exe) in [(KUBELET, "/usr/bin/kubelet"), (OTHER, "/usr/bin/rm")] {
        stream.push(Body::Process(Box::new(testing::seed(actor.pid, actor.start, 1, exe))));
    }
    proven(&mut stream);
    let shell = Actor::host(50, 10);
    for (id, cgroup, name) in [("app-id", 901, "app"), ("evil-id", 902, "evil")] {
        stream.kernel(testing::cgroup(shell, cgroup, &format!("/kubepods/pod1/{id}")));
        stream.push(Body::Container(Box::new(testing::container(id, cgroup, ContainerRole::Member, name))));
    }
    let since = stream.now();
    stream.push(logs(LogsRole::Container, LogsChange::Watched { file: None }, since));
    stream
}

fn proven(stream: &mut Stream) {
    let process = ProcessKey::from_ns(KUBELET.pid, KUBELET.start * SECOND);
    let components = vec![Component { kind: ComponentKind::Kubelet, process, net_ns: 5 }];
    stream.push(Body::Components(Box::new(Components { components, endpoints: Vec::new() })));
}

fn changed(stream: &mut Stream, change: LogsChange) {
    let since = stream.now();
    stream.push(logs(LogsRole::Container, change, since));
}

/// `unlink`, as the end of the call has it: with the inode that it touched last.
fn call(actor: Actor, number: u32, touched: Option<InodeKey>, path: &str) -> bytes::Bytes {
    let paths = [path.as_bytes(), &[0]].concat();
    let event = wire::PathCall {
        header: actor.header(kind::PATH, hook::SYS_EXIT),
        ino: touched.map_or(0, |inode| inode.ino),
        dev: touched.map_or(0, |inode| inode.dev),
        watch: if touched.is_some() { watch::OWN } else { 0 },
        syscall: number,
        class: u32::from(syscall::PATH),
        len: [u16::try_from(paths.len()).unwrap(), 0],
        compat: 0,
    };
    testing::raw(&event, &paths)
}

const UNLINK: u32 = 87;
const TRUNCATE: u32 = 76;

fn open(actor: Actor, inode: InodeKey, name: &str, mode: u32, flags: u32) -> bytes::Bytes {
    let mut raw = testing::open(actor, inode, DIR, &format!("{PATH}/{name}")).to_vec();
    let fields = [
        (std::mem::offset_of!(wire::Open, mode), mode),
        (std::mem::offset_of!(wire::Open, open_flags), flags),
        (std::mem::offset_of!(wire::Open, watch), watch::OWN),
    ];
    for (at, value) in fields {
        raw[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    raw.into()
}

fn entry(actor: Actor, hook: u16, file: InodeKey, dir: InodeKey, attributes: u32) -> bytes::Bytes {
    let mut raw = testing::entry(actor, hook, [file, dir], ["0.log", ""]).to_vec();
    let fields = [
        (std::mem::offset_of!(wire::Entry, watch), watch::OWN),
        (std::mem::offset_of!(wire::Entry, attributes), attributes),
    ];
    for (at, value) in fields {
        raw[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    raw.into()
}

fn alerts(stream: &mut Stream) -> Vec<Alert> {
    for _ in 0..4 {
        stream.wait(SECOND);
        stream.push(Body::Tick);
    }
    let alerts = stream.alerts();
    assert!(alerts.iter().all(|alert| alert.technique.id == "delete-kubernetes-events"), "{alerts:#?}");
    alerts
}

fn told(stream: &mut Stream) -> Vec<(Severity, String)> {
    alerts(stream).into_iter().map(|alert| (alert.severity, alert.title)).collect()
}

#[test]
fn whoever_removes_or_empties_a_log_is_named_with_the_pod_and_kubelet_is_not() {
    type Act = fn(Actor) -> bytes::Bytes;
    let acts: [(&str, LogsChange, Act); 7] = [
        ("removed", removed("0.log", LOG), |actor| call(actor, UNLINK, Some(LOG), "0.log")),
        ("removed", removed("0.log", LOG), |actor| call(actor, UNLINK, Some(DIR), "0.log")),
        ("removed", removed("0.log", LOG), |actor| entry(actor, hook::INODE_UNLINK, LOG, DIR, 0)),
        // The kernel does not tell what was touched.
        ("removed", removed("0.log", LOG), |actor| call(actor, UNLINK, None, "../app/0.log")),
        ("emptied", emptied(false), |actor| call(actor, TRUNCATE, Some(LOG), "0.log")),
        ("emptied", emptied(false), |actor| entry(actor, hook::INODE_SETATTR, LOG, DIR, 1 << 3)),
        ("emptied", emptied(false), |actor| open(actor, LOG, "0.log", 2, 1)),
    ];
    for (verb, change, act) in acts {
        let mut stream = node();
        stream.kernel(act(OTHER));
        changed(&mut stream, change.clone());
        let found = alerts(&mut stream);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].title, format!("Log of app of pod shop/web-node-1 {verb} by /usr/bin/rm"));
        assert_eq!(found[0].severity, Severity::Medium);
        assert_eq!(found[0].file.as_ref().unwrap().path, format!("{PATH}/0.log"));
        assert_eq!(found[0].pod.as_ref().unwrap().name, "web-node-1");
        assert_eq!(found[0].evidence.len(), 2);
        let mut stream = node();
        stream.kernel(act(KUBELET));
        changed(&mut stream, change.clone());
        assert_eq!(told(&mut stream), [], "kubelet did it");
        // Not even when kubelet acts there too.
        let mut stream = node();
        stream.kernel(act(OTHER));
        stream.kernel(act(KUBELET));
        changed(&mut stream, change);
        assert_eq!(told(&mut stream).len(), 1);
    }
}

#[test]
fn what_nobody_was_seen_to_do_is_told_and_nobody_is_blamed() {
    let mut stream = node();
    // Another directory, another log, long ago, and a mode that is changed.
    stream.kernel(call(OTHER, UNLINK, Some(LOG), "0.log"));
    stream.wait(5 * SECOND);
    stream.kernel(call(OTHER, UNLINK, Some(POD), "x"));
    stream.kernel(open(OTHER, OLD, "1.log", 2, 0o2001));
    stream.kernel(entry(OTHER, hook::INODE_SETATTR, LOG, DIR, 1));
    changed(&mut stream, removed("0.log", LOG));
    changed(&mut stream, emptied(false));
    let found = alerts(&mut stream);
    assert_eq!(found.len(), 2);
    for alert in found {
        assert_eq!((alert.severity, &alert.process), (Severity::Medium, &None));
        assert_eq!(alert.reasons.last().unwrap(), "nobody was seen to do it");
    }
}

#[test]
fn the_runtime_that_makes_logs_and_adds_to_them_is_silent_and_whoever_opens_one_to_overwrite_it_is_not() {
    let mut stream = node();
    stream.kernel(open(OTHER, LOG, "0.log", 2 | 1 << 20, 0o2001));
    stream.kernel(open(OTHER, LOG, "0.log", 2, 0o2001));
    stream.kernel(open(OTHER, OLD, "0.log.gz.tmp", 2 | 1 << 20, 1));
    stream.kernel(open(KUBELET, OLD, "0.log.gz.tmp", 2, 1));
    assert_eq!(told(&mut stream), []);
    stream.kernel(open(OTHER, LOG, "0.log", 2, 1));
    stream.kernel(open(OTHER, LOG, "0.log", 2, 1));
    assert_eq!(
        told(&mut stream),
        [(Severity::Medium, "Log of app of pod shop/web-node-1 opened for writing by /usr/bin/rm".to_owned())]
    );
    // It added to it, by what it opened, and then made it shorter.
    let mut stream = node();
    stream.kernel(open(OTHER, LOG, "0.log", 2, 0o2001));
    changed(&mut stream, emptied(false));
    assert_eq!(alerts(&mut stream)[0].process.as_ref().unwrap().pid, OTHER.pid);
}

#[test]
fn rotation_by_copy_is_low_and_what_it_removes_then_too_and_a_rotated_log_that_is_removed_by_itself_is_not() {
    let mut stream = node();
    stream.kernel(open(OTHER, LOG, "0.log", 2, 1));
    changed(&mut stream, emptied(true));
    stream.kernel(call(OTHER, UNLINK, Some(DIR), "0.log.2"));
    changed(&mut stream, removed("0.log.2", OLD));
    assert_eq!(
        told(&mut stream),
        [
            (Severity::Low, "Log of app of pod shop/web-node-1 rotated by /usr/bin/rm".to_owned()),
            (Severity::Low, "Log of app of pod shop/web-node-1 removed by /usr/bin/rm".to_owned()),
        ]
    );
    let mut stream = node();
    for n in [1, 2] {
        stream.kernel(call(OTHER, UNLINK, Some(DIR), &format!("0.log.{n}")));
        changed(&mut stream, removed(&format!("0.log.{n}"), InodeKey { ino: 400 + n, ..OLD }));
        stream.wait(11 * SECOND);
    }
    assert!(told(&mut stream).iter().all(|(severity, _)| *severity == Severity::Medium));
}

#[test]
fn from_a_container_it_is_high_and_links_are_low_on_the_host() {
    let mut stream = node();
    stream.kernel(testing::fork(Actor::host(50, 10), EVIL));
    stream.kernel(call(EVIL, UNLINK, Some(LOG), "/host/0.log"));
    changed(&mut stream, removed("0.log", LOG));
    let found = alerts(&mut stream);
    assert_eq!(found[0].severity, Severity::High);
    assert_eq!(found[0].reasons[0], "a process in a container did it");
    // Whose log it was, and not who did it.
    assert_eq!(found[0].container.as_ref().unwrap().id, "app-id");
    for (actor, severity) in [(OTHER, Severity::Low), (EVIL, Severity::Medium)] {
        let mut stream = node();
        stream.kernel(testing::fork(Actor::host(50, 10), EVIL));
        stream.kernel(call(actor, UNLINK, Some(DIR), "web_shop_app-cc.log"));
        let since = stream.now();
        stream.push(logs(LogsRole::Links, removed("web_shop_app-cc.log", LOG), since));
        let found = alerts(&mut stream);
        assert_eq!((found[0].severity, found[0].pod.is_none()), (severity, actor.pid == OTHER.pid));
        assert!(found[0].title.starts_with("Link to the log of web_shop_app-cc.log removed by"), "{}", found[0].title);
    }
}

#[test]
fn a_kubelet_that_does_not_listen_yet_is_waited_for_and_one_that_never_does_is_told() {
    for proves in [true, false] {
        let mut stream = node();
        let new = Actor { pid: 70, start: 99, ..KUBELET };
        stream.kernel(testing::fork(Actor::host(50, 10), new));
        stream.kernel(testing::exec(new, Actor::host(50, 10), "/usr/bin/kubelet", &["kubelet"]));
        stream.kernel(call(new, UNLINK, Some(LOG), "0.log"));
        changed(&mut stream, removed("0.log", LOG));
        if proves {
            let process = ProcessKey::from_ns(new.pid, new.start * SECOND);
            let components = vec![Component { kind: ComponentKind::Kubelet, process, net_ns: 5 }];
            stream.push(Body::Components(Box::new(Components { components, endpoints: Vec::new() })));
        }
        for _ in 0..31 {
            stream.wait(SECOND);
            stream.push(Body::Tick);
        }
        assert_eq!(stream.alerts().len(), usize::from(!proves));
    }
}

#[test]
fn what_a_kubelet_removed_that_has_ended_since_is_still_its_doing_and_one_that_only_stopped_listening_is_told() {
    for ended in [true, false] {
        let mut stream = node();
        stream.kernel(call(KUBELET, UNLINK, Some(LOG), "0.log"));
        if ended {
            stream.kernel(testing::exit(KUBELET));
        }
        stream.push(Body::Components(Box::default()));
        changed(&mut stream, removed("0.log", LOG));
        for _ in 0..31 {
            stream.wait(SECOND);
            stream.push(Body::Tick);
        }
        assert_eq!(stream.alerts().len(), usize::from(!ended));
    }
}

#[test]
fn a_pods_directory_that_is_moved_away_is_its_movers() {
    let mut stream = node();
    let from = "/var/log/pods/shop_web-node-1_0a1b";
    stream.kernel(call(OTHER, 82, Some(POD), from));
    changed(&mut stream, removed("0.log", LOG));
    assert_eq!(alerts(&mut stream)[0].process.as_ref().unwrap().pid, OTHER.pid);
}

#[test]
fn who_wiped_an_audit_log_is_named_unless_the_api_server_alone_acted_on_it() {
    let path = "/var/log/audit.log";
    for (actor, named) in [(OTHER, true), (KUBELET, false)] {
        let mut stream = node();
        // An API server, by another name.
        let process = ProcessKey::from_ns(KUBELET.pid, KUBELET.start * SECOND);
        let components = vec![Component { kind: ComponentKind::ApiServer, process, net_ns: 5 }];
        stream.push(Body::Components(Box::new(Components { components, endpoints: Vec::new() })));
        for file in [OLD, LOG] {
            let Body::NodeLogs(mut logs) =
                logs(LogsRole::Audit, LogsChange::Watched { file: Some(file) }, stream.now())
            else {
                unreachable!()
            };
            logs.path = path.to_owned();
            stream.push(Body::NodeLogs(logs));
        }
        stream.kernel(call(actor, TRUNCATE, Some(OLD), path));
        let state = LogState::Truncated { had: 9, has: 0 };
        stream.push(Body::AuditLog(Box::new(AuditLog { path: path.to_owned(), state })));
        let found = alerts(&mut stream);
        assert_eq!(found.len(), 1);
        let title = if named {
            format!("Audit log emptied: {path} by /usr/bin/rm")
        } else {
            format!("Audit log emptied: {path}")
        };
        assert_eq!((&found[0].title, found[0].process.is_some()), (&title, named));
    }
}

#[test]
fn an_empty_log_that_is_opened_for_writing_and_stays_empty_is_silent_as_is_an_empty_one_that_rotation_removes() {
    for (late, told) in [(true, 0), (false, 1)] {
        let mut stream = node();
        stream.kernel(open(OTHER, LOG, "0.log", 0, 1));
        if late {
            stream.wait(SECOND / 4);
        }
        changed(&mut stream, LogsChange::Empty { inode: LOG });
        assert_eq!(alerts(&mut stream).len(), told);
    }
    for (had, told) in [(0, 0), (1, 1)] {
        let mut stream = node();
        let name = "0.log.2".to_owned();
        changed(&mut stream, LogsChange::Removed { name, inode: OLD, had, rotated: true, replaced: false });
        assert_eq!(alerts(&mut stream).len(), told);
    }
}
