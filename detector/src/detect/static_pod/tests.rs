use crate::{
    alert::{Alert, Origin, Severity},
    detect::static_pod::EVIDENCE_MAX,
    record::{Body, BootNs, ChangeKind, ContainerInfo, ContainerRole, DirState, WatchReason, Watched, WatchedDir},
    testing::{self, Actor, DIR, FILE, POD, SECOND, Stream, manifest},
};

const SHELL: Actor = Actor { pid: 50, start: 10, cgroup: 1, mnt_ns: testing::HOST_MNT, pid_ns: testing::HOST_PID };

fn writer() -> Actor {
    Actor::host(60, 90)
}

/// A stream in which `cp` runs below the shell, and the time before any act.
fn with_writer() -> (Stream, BootNs) {
    let mut stream = Stream::new();
    stream.kernel(testing::fork(SHELL, writer()));
    stream.kernel(testing::exec(writer(), SHELL, "/bin/cp", &["cp", "x", "/manifests/web.yaml"]));
    let since = stream.now();
    (stream, since)
}

fn only(stream: &Stream) -> Alert {
    let mut alerts = stream.alerts();
    assert_eq!(alerts.len(), 1, "{alerts:#?}");
    alerts.remove(0)
}

#[test]
fn a_burst_of_events_about_one_manifest_is_one_finding_with_its_evidence() {
    let (mut stream, since) = with_writer();
    stream.kernel(testing::open(writer(), FILE, DIR, "/manifests/web.yaml"));
    for _ in 0..100 {
        stream.kernel(testing::change(writer(), FILE, detector_common::watch::FILE));
    }
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
    let alert = only(&stream);
    assert_eq!(alert.severity, Severity::Medium);
    assert_eq!(alert.origin, Origin::Host);
    let process = alert.process.unwrap();
    assert_eq!((process.pid, process.exe.as_str()), (60, "/bin/cp"));
    assert_eq!(process.argv, ["cp", "x", "/manifests/web.yaml"]);
    assert_eq!(process.tty.as_deref(), Some("pts3"));
    let ancestors: Vec<_> = process.ancestors.iter().map(|one| (one.pid, one.exe.as_str())).collect();
    assert_eq!(ancestors, [(50, "/bin/bash"), (1, "/sbin/init")]);
    // The writer's records up to the bound, what was left out, and the effect.
    assert_eq!(alert.evidence.len(), EVIDENCE_MAX + 1);
    assert!(alert.evidence[EVIDENCE_MAX - 1].detail.ends_with("(and 85 records more)"), "{:?}", alert.evidence);
    assert_eq!(alert.evidence[EVIDENCE_MAX].kind, "manifest");
    assert_eq!(alert.trace.sequence, stream.records.len() as u64);
    let manifest = alert.manifest.unwrap();
    assert_eq!((manifest.namespace.as_str(), manifest.name.as_str()), ("shop", "web"));
}

#[test]
fn a_writer_that_is_gone_is_still_named_and_its_pid_reused_by_another_is_not_taken_for_it() {
    let (mut stream, since) = with_writer();
    stream.kernel(testing::open(writer(), FILE, DIR, "/manifests/web.yaml"));
    stream.kernel(testing::exit(writer()));
    let later = Actor::host(60, 101);
    stream.kernel(testing::fork(SHELL, later));
    stream.kernel(testing::exec(later, SHELL, "/bin/true", &["true"]));
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
    let process = only(&stream).process.unwrap();
    assert_eq!(process.exe, "/bin/cp");
    assert_eq!(process.start_time.as_deref(), Some("2026-01-01T00:01:30.000000000Z"));
}

#[test]
fn whoever_acted_on_the_file_is_named_rather_than_whoever_acted_nearby() {
    let (mut stream, since) = with_writer();
    let decoy = Actor::host(70, 95);
    stream.kernel(testing::open(writer(), FILE, DIR, "/manifests/web.yaml"));
    // Later, and elsewhere: another file of the directory, a rename of another name, the directory itself.
    let other = crate::record::InodeKey { dev: 8, ino: 999 };
    stream.kernel(testing::open(decoy, other, DIR, "/manifests/other.yaml"));
    stream.kernel(testing::rename(decoy, Some(DIR), "/tmp/a", "/manifests/other.yaml"));
    stream.kernel(testing::change(decoy, DIR, detector_common::watch::DIR));
    stream.kernel(testing::io_uring(decoy));
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
    let alert = only(&stream);
    assert_eq!(alert.process.unwrap().pid, 60);
    assert!(alert.evidence.iter().any(|one| one.detail.ends_with("by another process, pid 70")));
}

#[test]
fn a_file_that_is_another_inode_by_now_is_matched_by_its_name_and_directory() {
    let (mut stream, since) = with_writer();
    let was = crate::record::InodeKey { dev: 8, ino: 998 };
    stream.kernel(testing::open(writer(), was, DIR, "/manifests/web.yaml"));
    stream.kernel(testing::rename(Actor::host(70, 95), Some(DIR), "/tmp/a", "/manifests/other.yaml"));
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
    assert_eq!(only(&stream).process.unwrap().pid, 60);
}

#[test]
fn who_acted_on_another_entry_is_not_named_when_the_kernel_skipped_the_act() {
    use detector_common::{hook, watch};
    let other = crate::record::InodeKey { dev: 8, ino: 999 };
    let innocent = Actor::host(70, 95);
    let renamed = testing::entry(innocent, hook::INODE_RENAME, [other, DIR], [".other.yaml", "other.yaml"]);
    let by_call = testing::rename(innocent, Some(DIR), "/manifests/.other.yaml", "/manifests/other.yaml");
    // Of the act itself no more was seen than that the directory changed, or nothing.
    for (act, changed, named) in [(renamed.clone(), true, Some(60)), (by_call, true, Some(60)), (renamed, false, None)]
    {
        let (mut stream, since) = with_writer();
        stream.kernel(act);
        if changed {
            stream.kernel(testing::change(writer(), DIR, watch::DIR));
        }
        stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
        assert_eq!(only(&stream).process.map(|process| process.pid), named);
    }
}

#[test]
fn a_rename_into_the_directory_is_the_renamers() {
    let (mut stream, since) = with_writer();
    stream.kernel(testing::rename(writer(), Some(DIR), "/tmp/.x", "/manifests/web.yaml"));
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
    let alert = only(&stream);
    assert_eq!(alert.process.unwrap().pid, 60);
    assert_eq!(alert.evidence[0].detail, "rename /tmp/.x -> /manifests/web.yaml");
}

#[test]
fn who_linked_a_file_is_named_although_its_inode_was_another_files_a_moment_ago() {
    let (mut stream, since) = with_writer();
    let before = Actor::host(70, 95);
    stream.kernel(testing::open(before, FILE, DIR, "/manifests/other.yaml"));
    stream.kernel(testing::change(before, FILE, detector_common::watch::FILE));
    stream.kernel(testing::rename(writer(), Some(DIR), "/tmp/.x", "/manifests/web.yaml"));
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
    assert_eq!(only(&stream).process.unwrap().pid, 60);
    // The twin: what is done to the file once it has its name.
    let (mut stream, since) = with_writer();
    stream.kernel(testing::rename(before, Some(DIR), "/tmp/.x", "/manifests/web.yaml"));
    stream.kernel(testing::open(writer(), FILE, DIR, "/manifests/web.yaml"));
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
    assert_eq!(only(&stream).process.unwrap().pid, 60);
}

#[test]
fn who_uses_the_number_of_a_file_that_is_gone_is_not_taken_for_who_replaced_or_removed_it() {
    let innocent = Actor::host(70, 95);
    let elsewhere = crate::record::InodeKey { dev: 8, ino: 555 };
    let after = |stream: &mut Stream| {
        stream.kernel(testing::change(innocent, FILE, detector_common::watch::FILE));
        stream.kernel(testing::open(innocent, FILE, elsewhere, "/tmp/build/config"));
    };
    let another = crate::record::InodeKey { dev: 8, ino: 998 };
    for by_name in [true, false] {
        let (mut stream, since) = with_writer();
        if by_name {
            stream.kernel(testing::rename(writer(), Some(DIR), "/tmp/.x", "/manifests/web.yaml"));
        } else {
            stream.kernel(testing::open(writer(), another, DIR, "/manifests/web.yaml"));
        }
        after(&mut stream);
        let mut change = manifest(ChangeKind::Modified, Some(POD), since);
        change.after.as_mut().unwrap().inode = another;
        stream.push(Body::Manifest(Box::new(change)));
        assert_eq!(only(&stream).process.unwrap().pid, 60);
    }
    let (mut stream, since) = with_writer();
    stream.kernel(testing::rename(writer(), Some(DIR), "/manifests/web.yaml", "/tmp/.x"));
    after(&mut stream);
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Removed, None, since))));
    assert_eq!(only(&stream).process.unwrap().pid, 60);
}

#[test]
fn an_effect_without_an_act_is_unattributed_and_worse() {
    let (mut stream, since) = with_writer();
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
    let alert = only(&stream);
    assert_eq!(alert.process, None);
    assert_eq!(alert.origin, Origin::Unknown);
    assert_eq!(alert.severity, Severity::High);
    assert!(alert.title.ends_with("by nobody that was seen"));
}

#[test]
fn an_act_from_before_the_old_state_was_seen_explains_nothing_but_an_open_descriptor() {
    let (mut stream, _) = with_writer();
    stream.kernel(testing::rename(writer(), Some(DIR), "/tmp/.x", "/manifests/web.yaml"));
    let since = stream.now();
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Modified, Some(POD), since))));
    assert_eq!(only(&stream).process, None);

    let (mut stream, _) = with_writer();
    stream.kernel(testing::open(writer(), FILE, DIR, "/manifests/web.yaml"));
    let since = stream.now();
    stream.wait(5 * SECOND);
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Modified, Some(POD), since))));
    let alert = only(&stream);
    assert_eq!(alert.process.unwrap().pid, 60);
    assert!(alert.evidence[0].detail.ends_with("and held open since"));
}

#[test]
fn what_was_there_before_and_what_is_only_opened_is_no_alert() {
    let (mut stream, since) = with_writer();
    stream.kernel(testing::open(writer(), FILE, DIR, "/manifests/web.yaml"));
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Present, Some(POD), since))));
    let mut dotfile = manifest(ChangeKind::Removed, None, since);
    dotfile.visible = false;
    stream.push(Body::Manifest(Box::new(dotfile)));
    stream.push(Body::Tick);
    assert_eq!(stream.alerts(), []);
}

#[test]
fn a_dotfile_alone_is_low() {
    let (mut stream, since) = with_writer();
    stream.kernel(testing::open(writer(), FILE, DIR, "/manifests/.web.yaml"));
    let mut dotfile = manifest(ChangeKind::Added, Some(&POD.replace("web:1", "x\n  privileged: true")), since);
    ".web.yaml".clone_into(&mut dotfile.name);
    dotfile.visible = false;
    stream.push(Body::Manifest(Box::new(dotfile)));
    assert_eq!(only(&stream).severity, Severity::Low);
}

#[test]
fn a_writer_in_a_container_is_critical_and_its_container_is_named() {
    let id = "c0ffee00".repeat(8);
    let mut stream = Stream::new();
    let inside = Actor { pid: 80, start: 99, cgroup: 900, mnt_ns: 77, pid_ns: 78 };
    stream.kernel(testing::cgroup(SHELL, 900, &format!("/kubepods/besteffort/pod1/{id}")));
    stream.push(Body::Container(Box::new(testing::container(&id, 900, ContainerRole::Member, "app"))));
    stream.kernel(testing::fork(SHELL, inside));
    stream.kernel(testing::exec(inside, SHELL, "/bin/sh", &["sh"]));
    let since = stream.now();
    stream.kernel(testing::open(inside, FILE, DIR, "/mnt/web.yaml"));
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
    let alert = only(&stream);
    assert_eq!(alert.origin, Origin::Container);
    let container = alert.container.unwrap();
    assert_eq!((container.id, container.name.as_deref()), (id, Some("app")));
    assert_eq!(alert.pod.unwrap().name, "web-node-1");
    assert_eq!(alert.severity, Severity::Critical);
}

#[test]
fn a_cgroup_called_like_a_container_makes_none_of_a_process_on_the_host() {
    let id = "c0ffee00".repeat(8);
    let nothing = ContainerInfo { id: id.clone(), cgroup_id: Some(900), ..ContainerInfo::default() };
    for (mnt_ns, origin) in [(testing::HOST_MNT, Origin::Host), (77, Origin::Container)] {
        let mut stream = Stream::new();
        let actor = Actor { cgroup: 900, mnt_ns, ..Actor::host(80, 99) };
        stream.kernel(testing::cgroup(SHELL, 900, &format!("/evil/{id}")));
        stream.push(Body::Container(Box::new(nothing.clone())));
        let since = stream.now();
        stream.kernel(testing::open(actor, FILE, DIR, "/mnt/web.yaml"));
        stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
        let alert = only(&stream);
        assert_eq!((alert.origin, alert.pod), (origin, None));
        assert_eq!(alert.container.is_some(), origin == Origin::Container);
    }
}

#[test]
fn a_writer_in_a_namespace_of_its_own_that_is_no_known_container_is_not_the_host() {
    let (mnt, pid) = (testing::HOST_MNT, testing::HOST_PID);
    for (mnt_ns, pid_ns, origin) in [(77, pid, Origin::Unknown), (mnt, 78, Origin::Unknown), (mnt, pid, Origin::Host)] {
        let mut stream = Stream::new();
        let actor = Actor { pid: 80, start: 99, cgroup: 1, mnt_ns, pid_ns };
        let since = stream.now();
        stream.kernel(testing::open(actor, FILE, DIR, "/mnt/web.yaml"));
        stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
        assert_eq!(only(&stream).origin, origin);
    }
}

#[test]
fn severity_says_why() {
    let asks = [
        ("securityContext: {privileged: true}", "privileged containers: web"),
        ("securityContext: {capabilities: {add: [SYS_ADMIN]}}", "capabilities: SYS_ADMIN"),
    ];
    for (ask, reason) in asks {
        let (mut stream, since) = with_writer();
        stream.kernel(testing::open(writer(), FILE, DIR, "/manifests/web.yaml"));
        let text = POD.replace("image: web:1", &format!("image: web:1, {ask}"));
        stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(&text), since))));
        let alert = only(&stream);
        assert_eq!(alert.severity, Severity::High, "{ask}");
        assert_eq!(alert.reasons, [reason]);
    }
}

#[test]
fn what_does_not_parse_says_where() {
    let (mut stream, since) = with_writer();
    stream.kernel(testing::open(writer(), FILE, DIR, "/manifests/web.yaml"));
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some("kind: Pod\n  a: b: c\n"), since))));
    let alert = only(&stream);
    assert_eq!(alert.severity, Severity::Medium);
    assert!(alert.reasons[0].contains("line 2"), "{:?}", alert.reasons);
    assert!(alert.title.contains("that kubelet rejects: web.yaml"));
}

#[test]
fn a_kubelet_that_reads_from_somewhere_else_is_told_once_and_a_default_never() {
    let dir = |path: &str, reason| WatchedDir {
        path: path.to_owned(),
        reason,
        kubelet_pid: Some(9),
        state: DirState::Missing,
    };
    let default = dir("/etc/kubernetes/manifests", WatchReason::Default("kubeadm".to_owned()));
    let own = dir("/tmp/evil", WatchReason::KubeletConfig("/var/lib/kubelet/config.yaml".to_owned()));
    let mut stream = Stream::new();
    stream.push(Body::Watched(Watched { dirs: vec![] }));
    stream.push(Body::Watched(Watched { dirs: vec![default.clone()] }));
    stream.push(Body::Watched(Watched { dirs: vec![default.clone(), own.clone()] }));
    stream.push(Body::Watched(Watched { dirs: vec![own.clone(), default.clone()] }));
    // It is restarted.
    stream.push(Body::Watched(Watched { dirs: vec![default.clone()] }));
    stream.push(Body::Watched(Watched { dirs: vec![own, default] }));
    let alert = only(&stream);
    assert_eq!(alert.severity, Severity::High);
    assert_eq!(alert.title, "A kubelet now reads static pods from /tmp/evil");
}

#[test]
fn an_act_that_was_seen_before_it_happened_explains_what_shows_a_moment_later_and_not_what_shows_much_later() {
    let other = crate::record::InodeKey { dev: 8, ino: 500 };
    let acts = [
        testing::entry(writer(), detector_common::hook::INODE_RENAME, [other, DIR], [".x", "web.yaml"]),
        testing::io_uring(writer()),
    ];
    for act in acts {
        for (late, named) in [(1, true), (300, true), (600, false)] {
            let (mut stream, _) = with_writer();
            stream.kernel(act.clone());
            stream.wait(late * 1_000_000);
            // The old state was seen once more in between.
            let since = stream.now();
            stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
            let alert = only(&stream);
            assert_eq!(alert.process.is_some(), named, "{late} ms");
            assert!(!alert.evidence[0].detail.contains("held open"), "{late} ms: {:?}", alert.evidence);
        }
    }
}

#[test]
fn what_happens_beside_the_way_to_the_directory_explains_nothing() {
    for (name, named) in [("manifests", true), ("somewhere-else", false)] {
        let (mut stream, since) = with_writer();
        let above = crate::record::InodeKey { dev: 8, ino: 2 };
        let raw = testing::entry(writer(), detector_common::hook::INODE_RENAME, [above, above], ["x", name]);
        let mut raw = raw.to_vec();
        let at = std::mem::offset_of!(detector_common::Entry, watch);
        raw[at..at + 4].copy_from_slice(&detector_common::watch::ANCESTOR.to_ne_bytes());
        stream.kernel(raw.into());
        stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
        assert_eq!(only(&stream).process.is_some(), named, "{name}");
    }
}

#[test]
fn a_file_opened_long_ago_and_written_now_is_its_openers() {
    let (mut stream, _) = with_writer();
    stream.kernel(testing::open(writer(), FILE, DIR, "/manifests/web.yaml"));
    for _ in 0..100 {
        stream.wait(SECOND);
        stream.kernel(testing::fork(SHELL, Actor::host(70, 200)));
        stream.kernel(testing::change(SHELL, crate::record::InodeKey { dev: 9, ino: 9 }, 0));
    }
    let since = stream.now();
    stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Modified, Some(POD), since))));
    assert_eq!(only(&stream).process.unwrap().pid, 60);
}
