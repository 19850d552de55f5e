//! Hand-written records for unit tests.

use bytes::Bytes;
use detector_common::{self as wire, hook, kind, syscall, watch};
use zerocopy::{Immutable, IntoBytes};

use crate::record::{
    AuditEvent, AuditObject, Body, BootNs, ChangeKind, ContainerInfo, ContainerRole, InfoFrom, InodeKey,
    ManifestChange, ManifestFile, PodRef, ProcessSeed, Record, Start,
};

pub const HOST_MNT: u32 = 10;
pub const HOST_PID: u32 = 11;
pub const DIR: InodeKey = InodeKey { dev: 8, ino: 100 };
pub const FILE: InodeKey = InodeKey { dev: 8, ino: 101 };
pub const SECOND: u64 = 1_000_000_000;

/// One process in one cgroup, as kernel headers name it. `start` is in seconds since boot.
#[derive(Clone, Copy)]
pub struct Actor {
    pub pid: u32,
    pub start: u64,
    pub cgroup: u64,
    pub mnt_ns: u32,
    pub pid_ns: u32,
}

impl Actor {
    pub fn host(pid: u32, start: u64) -> Self {
        Self { pid, start, cgroup: 1, mnt_ns: HOST_MNT, pid_ns: HOST_PID }
    }

    pub fn header(self, kind: u16, hook: u16) -> wire::Header {
        wire::Header {
            kind,
            hook,
            len: 0,
            time_ns: 0,
            start_ns: self.start * SECOND,
            cgroup: self.cgroup,
            tgid: self.pid,
            tid: self.pid,
            uid: 0,
            login_uid: u32::MAX,
            mnt_ns: self.mnt_ns,
            pid_ns: self.pid_ns,
            comm: *b"comm\0\0\0\0\0\0\0\0\0\0\0\0",
        }
    }
}

/// A kernel record of these parts, its length filled in.
pub fn raw(event: &(impl IntoBytes + Immutable), tail: &[u8]) -> Bytes {
    let mut bytes = event.as_bytes().to_vec();
    bytes.extend_from_slice(tail);
    let len = u32::try_from(bytes.len()).unwrap();
    bytes[4..8].copy_from_slice(&len.to_ne_bytes());
    bytes.into()
}

/// A path as the kernel walks it: leaf first, each component with its NUL.
pub fn walked(path: &str) -> Vec<u8> {
    path.split('/').rev().filter(|part| !part.is_empty()).flat_map(|part| [part.as_bytes(), &[0]].concat()).collect()
}

pub fn exec(actor: Actor, parent: Actor, path: &str, argv: &[&str]) -> Bytes {
    exec_in(actor, parent, path, argv, wire::Shared::default(), actor.pid, "pts3")
}

/// An exec by a process with these other namespaces, this pid in its own pid namespace and this terminal.
pub fn exec_in(
    actor: Actor,
    parent: Actor,
    path: &str,
    argv: &[&str],
    shared: wire::Shared,
    inner_pid: u32,
    tty: &str,
) -> Bytes {
    let mut terminal = [0; 16];
    terminal[..tty.len()].copy_from_slice(tty.as_bytes());
    let path = walked(path);
    let argv: Vec<u8> = argv.iter().flat_map(|arg| [arg.as_bytes(), &[0]].concat()).collect();
    let event = wire::Exec {
        header: actor.header(kind::EXEC, hook::EXEC),
        ino: 7,
        parent_start_ns: parent.start * SECOND,
        parent_tgid: parent.pid,
        dev: 8,
        flags: 0,
        path_len: u16::try_from(path.len()).unwrap(),
        argv_len: u16::try_from(argv.len()).unwrap(),
        tty: terminal,
        shared,
        inner_pid,
    };
    raw(&event, &[path, argv].concat())
}

pub fn fork(parent: Actor, child: Actor) -> Bytes {
    let event = wire::Fork {
        header: parent.header(kind::FORK, hook::FORK),
        child_start_ns: child.start * SECOND,
        child_tgid: child.pid,
        zero: 0,
        parent_start_ns: parent.start * SECOND,
        parent_tgid: parent.pid,
        zero2: 0,
    };
    raw(&event, &[])
}

pub fn exit(actor: Actor) -> Bytes {
    raw(&wire::Exit { header: actor.header(kind::EXIT, hook::EXIT), code: 0, zero: 0 }, &[])
}

pub fn open(actor: Actor, inode: InodeKey, dir: InodeKey, path: &str) -> Bytes {
    let path = walked(path);
    let event = wire::Open {
        header: actor.header(kind::OPEN, hook::SYS_EXIT),
        ino: inode.ino,
        parent_ino: dir.ino,
        dev: inode.dev,
        syscall: 257,
        mode: 2,
        open_flags: 0o101,
        watch: watch::DIR,
        flags: 0,
        path_len: u16::try_from(path.len()).unwrap(),
        zero: [0; 6],
    };
    raw(&event, &path)
}

pub fn change(actor: Actor, inode: InodeKey, watch: u32) -> Bytes {
    raw(
        &wire::Change { header: actor.header(kind::CHANGE, hook::CTIME_SET), ino: inode.ino, dev: inode.dev, watch },
        &[],
    )
}

/// `rename`, with the watched inode that it touched.
pub fn rename(actor: Actor, touched: Option<InodeKey>, from: &str, to: &str) -> Bytes {
    let paths = [from, to].map(|path| [path.as_bytes(), &[0]].concat());
    let event = wire::PathCall {
        header: actor.header(kind::PATH, hook::SYS_EXIT),
        ino: touched.map_or(0, |inode| inode.ino),
        dev: touched.map_or(0, |inode| inode.dev),
        watch: if touched.is_some() { watch::DIR } else { 0 },
        syscall: 82,
        class: u32::from(syscall::PATHS),
        len: paths.each_ref().map(|path| u16::try_from(path.len()).unwrap()),
        compat: 0,
    };
    raw(&event, &paths.concat())
}

/// An act that a security hook was asked about: on `file` in `dir`, and for renames and links also to `dir`.
pub fn entry(actor: Actor, hook: u16, [file, dir]: [InodeKey; 2], names: [&str; 2]) -> Bytes {
    let name = |text: &str| {
        let mut name = [0; wire::NAME_MAX];
        name[..text.len()].copy_from_slice(text.as_bytes());
        name
    };
    let event = wire::Entry {
        header: actor.header(kind::ENTRY, hook),
        ino: file.ino,
        dir_ino: dir.ino,
        to_ino: 0,
        to_dir_ino: dir.ino,
        dev: dir.dev,
        watch: watch::DIR,
        flags: 0,
        attributes: 0,
        names: names.map(name),
    };
    raw(&event, &[])
}

pub fn io_uring(actor: Actor) -> Bytes {
    raw(&wire::IoUring { header: actor.header(kind::IO_URING, hook::IO_URING_SUBMIT), opcode: 18, zero: 0 }, &[])
}

pub fn cgroup(actor: Actor, id: u64, path: &str) -> Bytes {
    let event = wire::Cgroup {
        header: actor.header(kind::CGROUP, hook::CGROUP_MKDIR),
        id,
        flags: 0,
        path_len: u16::try_from(path.len() + 1).unwrap(),
        zero: [0; 2],
    };
    raw(&event, &[path.as_bytes(), &[0]].concat())
}

/// The agent's process.
pub const AGENT: u32 = 4242;

/// A signal for the agent.
pub fn signal(sender: Actor, signal: u32, code: i32) -> Bytes {
    let header = sender.header(kind::SIGNAL, hook::SIGNAL);
    raw(
        &wire::Signal { header, target_start_ns: 1, target_tgid: AGENT, signal, code, group: 1, result: 0, zero: 0 },
        &[],
    )
}

/// `bpf(2)` on one of the agent's objects.
pub fn bpf(actor: Actor, command: u32, object: u32, id: u32) -> Bytes {
    raw(&wire::Bpf { header: actor.header(kind::BPF, hook::BPF), command, object, id, zero: 0 }, &[])
}

/// The actor enters these namespaces.
pub fn namespaces(actor: Actor, mnt: u32, pid_children: u32, shared: wire::Shared) -> Bytes {
    let header = actor.header(kind::NAMESPACES, hook::NAMESPACES);
    raw(&wire::Namespaces { header, mnt, pid_children, shared, zero: 0 }, &[])
}

/// `mover` puts `target` into a cgroup.
pub fn cgroup_move(mover: Actor, target: Actor, id: u64) -> Bytes {
    let header = mover.header(kind::CGROUP_MOVE, hook::CGROUP_ATTACH);
    let (target_start_ns, target_tgid) = (target.start * SECOND, target.pid);
    raw(&wire::CgroupMove { header, id, target_start_ns, target_tgid, zero: 0 }, &[])
}

pub fn cgroup_gone(actor: Actor, id: u64) -> Bytes {
    raw(&wire::CgroupGone { header: actor.header(kind::CGROUP_GONE, hook::CGROUP_RMDIR), id }, &[])
}

/// A container of the pod `shop/web-node-1`, in whose sandbox `sandbox` it is.
pub fn container(id: &str, cgroup_id: u64, role: ContainerRole, name: &str) -> ContainerInfo {
    ContainerInfo {
        id: id.to_owned(),
        cgroup_id: Some(cgroup_id),
        from: InfoFrom::Bundle(format!("/run/bundles/{id}")),
        role,
        name: (role == ContainerRole::Member).then(|| name.to_owned()),
        image: Some("registry.example/app:1".to_owned()),
        pod: Some(PodRef { namespace: "shop".to_owned(), name: "web-node-1".to_owned(), uid: "0a1b".to_owned() }),
        sandbox_id: Some("sandbox".to_owned()),
        ..ContainerInfo::default()
    }
}

pub fn start() -> Body {
    Body::Start(Box::new(Start {
        node: "node-1".to_owned(),
        // 2026-01-01T00:00:00Z.
        boot_time_ns: 1_767_225_600 * SECOND,
        host_mnt_ns: HOST_MNT,
        host_pid_ns: HOST_PID,
        ..Start::default()
    }))
}

pub fn seed(pid: u32, start: u64, parent_pid: u32, exe: &str) -> ProcessSeed {
    ProcessSeed {
        pid,
        start: start * 100,
        parent_pid,
        exe: exe.to_owned(),
        argv: vec![exe.to_owned()],
        cgroup_id: 1,
        mnt_ns: HOST_MNT,
        pid_ns: HOST_PID,
        ..ProcessSeed::default()
    }
}

/// `web.yaml` in `/manifests`, changed between `since` and now.
pub fn manifest(change: ChangeKind, text: Option<&str>, since: BootNs) -> ManifestChange {
    let file = |text: &str| ManifestFile {
        inode: FILE,
        size: text.len() as u64,
        mode: 0o100_644,
        sha256: Some("ab".repeat(32)),
        content: Bytes::copy_from_slice(text.as_bytes()),
        ..ManifestFile::default()
    };
    ManifestChange {
        dir: "/manifests".to_owned(),
        dir_inode: Some(DIR),
        name: "web.yaml".to_owned(),
        change,
        visible: true,
        after: text.map(file),
        before: (change != ChangeKind::Added).then(|| file("")),
        since,
    }
}

/// A request that was allowed, by a user inside the cluster's networks.
pub fn audit(user: &str, verb: &str, uri: &str) -> AuditEvent {
    // `/api/v1/namespaces/NAMESPACE/RESOURCE/NAME` or `/apis/GROUP/VERSION/RESOURCE/NAME`.
    let path = uri.split('?').next().unwrap_or_default();
    let mut parts = path.split('/').skip(1);
    let group = match parts.next() {
        Some("api") => Some(String::new()),
        Some("apis") => parts.next().map(str::to_owned),
        _ => None,
    };
    let mut rest: Vec<_> = parts.skip(1).collect();
    let mut namespace = String::new();
    if rest.len() > 2 && rest[0] == "namespaces" {
        namespace = rest[1].to_owned();
        rest.drain(..2);
    }
    let text = |at: usize| rest.get(at).map(|text| (*text).to_owned()).unwrap_or_default();
    AuditEvent {
        id: "5f".to_owned(),
        stage: "ResponseComplete".to_owned(),
        verb: verb.to_owned(),
        uri: uri.to_owned(),
        user: user.to_owned(),
        groups: vec!["system:authenticated".to_owned()],
        sources: vec!["10.0.0.9".parse().unwrap()],
        agent: "kubectl/v1.20.2".to_owned(),
        object: group.filter(|_| !rest.is_empty()).map(|group| AuditObject {
            resource: text(0),
            name: text(1),
            subresource: text(2),
            group,
            namespace,
        }),
        code: 200,
        received: "2026-11-25T10:00:00.000001Z".to_owned(),
        log: "/var/log/kubernetes/audit.log".to_owned(),
        offset: 7,
        ..AuditEvent::default()
    }
}

/// RFC 3339, on the host of these streams.
pub fn wall(time: BootNs) -> String {
    let ns = time.wall(1_767_225_600 * SECOND);
    jiff::Timestamp::from_nanosecond(ns).unwrap().to_string()
}

pub const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\nspec: {containers: [{name: web, image: web:1}]}\n";

/// Records in order, a millisecond apart unless told otherwise.
#[derive(Default)]
pub struct Stream {
    pub records: Vec<Record>,
    now: u64,
}

impl Stream {
    /// A stream of a host with an init process and a shell below it, at 100 s since boot.
    pub fn new() -> Self {
        let mut stream = Self { records: Vec::new(), now: 100 * SECOND };
        stream.push(start());
        stream.push(Body::Process(Box::new(seed(1, 0, 0, "/sbin/init"))));
        stream.push(Body::Process(Box::new(seed(50, 10, 1, "/bin/bash"))));
        stream
    }

    pub fn now(&self) -> BootNs {
        BootNs(self.now)
    }

    pub fn wait(&mut self, ns: u64) {
        self.now += ns;
    }

    pub fn push(&mut self, body: Body) {
        self.now += 1_000_000;
        let seq = self.records.len() as u64 + 1;
        self.records.push(Record { seq, time: BootNs(self.now), body });
    }

    /// A kernel record that was made this long ago and is read only now, as what the rings hold when the agent starts.
    pub fn kernel_late(&mut self, raw: Bytes, ago: u64) {
        let seq = self.records.len() as u64 + 1;
        self.records.push(Record { seq, time: BootNs(self.now - ago), body: Body::Kernel { raw } });
    }

    pub fn kernel(&mut self, raw: Bytes) {
        self.push(Body::Kernel { raw });
    }

    /// Every alert of the whole stream.
    pub fn alerts(&self) -> Vec<crate::alert::Alert> {
        let mut pipeline = crate::pipeline::Pipeline::new();
        self.records.iter().flat_map(|record| pipeline.push(record)).collect()
    }
}

/// A small generator of arbitrary bytes, the same in each run.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 24
    }
}
