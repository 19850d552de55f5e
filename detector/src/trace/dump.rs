//! Records as JSON lines, kernel records decoded.

use bytes::Bytes;
use detector_common as wire;
use serde::Serialize;
use serde_json::{Value, json};
use zerocopy::FromBytes as _;

use crate::{
    decode::{self, Event},
    record::{Body, BootNs, Record, SharedNamespaces, form, sense},
};

/// A line. With `raw`, what [`Record`] reads is in it.
#[derive(Serialize)]
pub struct Line<'a> {
    seq: u64,
    time: BootNs,
    #[serde(skip_serializing_if = "Option::is_none")]
    wall: Option<String>,
    /// It is none of the stream, but rebuilds the state at the start of the segment.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    opening: bool,
    body: Shown<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Shown<'a> {
    Kernel(Kernel<'a>),
    Other(&'a Body),
}

#[derive(Serialize)]
struct Kernel<'a> {
    /// As [`Body::Kernel`] is tagged.
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<Decoded>,
    /// Why it cannot be decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<Digits<'a>>,
}

#[derive(Serialize)]
#[serde(transparent)]
struct Digits<'a>(#[serde(serialize_with = "digits")] &'a Bytes);

fn digits<S: serde::Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    form::hex::serialize(bytes, serializer)
}

#[derive(Serialize)]
struct Decoded {
    kind: &'static str,
    hook: &'static str,
    time_ns: u64,
    pid: u32,
    tid: u32,
    start_ns: u64,
    comm: String,
    uid: u32,
    login_uid: Option<u32>,
    cgroup: u64,
    mnt_ns: u32,
    pid_ns: u32,
    #[serde(flatten)]
    more: Value,
}

impl<'a> Line<'a> {
    /// A record's line. `boot` is the host's boot in ns since the epoch, where it is known.
    #[must_use]
    pub fn new(record: &'a Record, boot: Option<u64>, opening: bool, raw: bool) -> Self {
        let body = match &record.body {
            Body::Kernel { raw: bytes } => Shown::Kernel(kernel(bytes, raw)),
            body => Shown::Other(body),
        };
        let wall = boot.map(|boot| wall(boot, record.time));
        Self { seq: record.seq, time: record.time, wall, opening, body }
    }
}

/// A moment as RFC 3339.
#[must_use]
pub fn wall(boot: u64, time: BootNs) -> String {
    let ns = time.wall(boot);
    jiff::Timestamp::from_nanosecond(ns).map_or_else(|_| format!("{ns} ns"), |time| format!("{time:.9}"))
}

/// What a record is, in a word; for kernel records, which event.
#[must_use]
pub fn kind_name(body: &Body) -> &'static str {
    match body {
        Body::Start(_) => "start",
        Body::Config(_) => "config",
        Body::Process(_) => "process",
        Body::Alive { .. } => "alive",
        Body::Cgroup { .. } => "cgroup seen",
        Body::Kernel { raw } => decode::header(raw).map_or("undecodable", |header| event_name(header.kind)),
        Body::Watched(_) => "watched",
        Body::Manifest(_) => "manifest",
        Body::Container(_) => "container",
        Body::Image(_) => "image",
        Body::ImageNames(_) => "image names",
        Body::Executed(_) => "executed",
        Body::PauseConfig(_) => "pause config",
        Body::Secret(_) => "secret",
        Body::Components(_) => "components",
        Body::Clients(_) => "clients",
        Body::Loss(_) => "loss",
        Body::Hooks(_) => "hooks",
        Body::Audit(_) => "audit",
        Body::AuditLog(_) => "audit log",
        Body::NodeLogs(_) => "node logs",
        Body::Tick => "tick",
    }
}

fn event_name(kind: u16) -> &'static str {
    match kind {
        wire::kind::EXEC => "exec",
        wire::kind::FORK => "fork",
        wire::kind::EXIT => "exit",
        wire::kind::OPEN => "open",
        wire::kind::CHANGE => "change",
        wire::kind::PATH => "path",
        wire::kind::WRITE => "write",
        wire::kind::IO_URING => "io_uring",
        wire::kind::ENTRY => "entry",
        wire::kind::MAP => "map",
        wire::kind::PTRACE => "ptrace",
        wire::kind::SOCKET => "socket",
        wire::kind::BPF => "bpf",
        wire::kind::SIGNAL => "signal",
        wire::kind::CONNECTION => "connection",
        wire::kind::READ => "read",
        wire::kind::CGROUP => "cgroup",
        wire::kind::NAMESPACES => "namespaces",
        wire::kind::CGROUP_MOVE => "cgroup_move",
        wire::kind::CGROUP_GONE => "cgroup_gone",
        _ => "undecodable",
    }
}

fn kernel(raw: &Bytes, wanted: bool) -> Kernel<'_> {
    match decode::event(raw) {
        Ok(event) => {
            let header = event.header();
            let more = more(&event, raw);
            let comm = text(&header.comm);
            // What is no UTF-8 is shown with a mark in its place: then the bytes are wanted too.
            let lossy = comm.contains(char::REPLACEMENT_CHARACTER) || has_mark(&more);
            let event = Decoded {
                kind: event_name(header.kind),
                hook: decode::hook_name(header.hook),
                time_ns: header.time_ns,
                pid: header.tgid,
                tid: header.tid,
                start_ns: header.start_ns,
                comm,
                uid: header.uid,
                login_uid: (header.login_uid != u32::MAX).then_some(header.login_uid),
                cgroup: header.cgroup,
                mnt_ns: header.mnt_ns,
                pid_ns: header.pid_ns,
                more,
            };
            Kernel { kind: "kernel", event: Some(event), error: None, raw: (wanted || lossy).then_some(Digits(raw)) }
        }
        Err(error) => Kernel { kind: "kernel", event: None, error: Some(error.to_string()), raw: Some(Digits(raw)) },
    }
}

/// The fields behind the header.
fn more(event: &Event, raw: &[u8]) -> Value {
    match event {
        Event::Exec(exec) => {
            let e = &exec.event;
            json!({
                "path": &*exec.path, "argv": exec.argv.to_vec(), "ino": e.ino, "dev": e.dev,
                "path_truncated": e.flags & wire::PATH_TRUNCATED != 0,
                "argv_truncated": e.flags & wire::ARGV_TRUNCATED != 0,
                "exe_deleted": e.flags & wire::EXE_DELETED != 0,
                "exe_upper": e.flags & wire::EXE_UPPER != 0,
                "exe_tmpfs": e.flags & wire::EXE_TMPFS != 0,
                "exe_memfd": e.flags & wire::EXE_MEMFD != 0,
                "parent_pid": e.parent_tgid, "parent_start_ns": e.parent_start_ns,
                "tty": text(&e.tty), "shared": shared(&e.shared), "inner_pid": e.inner_pid,
            })
        }
        Event::Fork(e) => json!({
            "child_pid": e.child_tgid, "child_start_ns": e.child_start_ns,
            "parent_pid": e.parent_tgid, "parent_start_ns": e.parent_start_ns,
        }),
        Event::Exit(e) => json!({ "code": e.code }),
        Event::Open(open) | Event::Write(open) | Event::Map(open) | Event::Read(open) => {
            let e = &open.event;
            json!({
                "path": open.path, "ino": e.ino, "parent_ino": e.parent_ino, "dev": e.dev,
                "syscall": decode::syscall_name(e.syscall, false),
                "syscall_number": (e.syscall != u32::MAX).then_some(e.syscall),
                "mode": e.mode, "open_flags": e.open_flags, "watch": e.watch,
                "path_truncated": e.flags & wire::PATH_TRUNCATED != 0, "denied": e.flags & wire::DENIED != 0,
            })
        }
        Event::Change(e) => json!({ "ino": e.ino, "dev": e.dev, "watch": e.watch }),
        Event::Path(call) => {
            let e = &call.event;
            json!({
                "paths": call.paths, "ino": e.ino, "dev": e.dev, "watch": e.watch,
                "syscall": decode::syscall_name(e.syscall, e.compat == 1), "syscall_number": e.syscall,
                "class": e.class, "compat": e.compat == 1,
            })
        }
        Event::Entry(e) => json!({
            "names": e.names, "ino": e.ino, "dir_ino": e.dir_ino, "to_ino": e.to_ino, "to_dir_ino": e.to_dir_ino,
            "dev": e.dev, "watch": e.watch, "denied": e.denied,
            "attributes": wire::Entry::read_from_prefix(raw).map_or(0, |(entry, _)| entry.attributes),
        }),
        Event::Ptrace(e) => {
            json!({ "target_pid": e.target_tgid, "target_start_ns": e.target_start_ns, "mode": e.mode })
        }
        Event::IoUring(e) => json!({ "opcode": e.opcode }),
        Event::Bpf(e) => json!({ "command": e.command, "object": e.object, "id": e.id }),
        Event::Signal(e) => json!({
            "signal": e.signal, "code": e.code, "group": e.group == 1, "result": e.result,
            "target_pid": e.target_tgid, "target_start_ns": e.target_start_ns,
        }),
        Event::Socket(e) => json!({ "call": e.call, "args": e.args, "address": form::digits(&e.address) }),
        Event::Connection(e) => json!({
            "act": match e.act {
                wire::connection::ACCEPT => "accept",
                wire::connection::RECEIVE => "receive",
                _ => "connect",
            },
            "local": sense::address(&e.local, e.local_port), "remote": sense::address(&e.remote, e.remote_port),
            "endpoint": e.endpoint, "net_ns": e.net_ns,
        }),
        Event::Cgroup { event, path } => json!({
            "id": event.id, "path": path, "path_truncated": event.flags & wire::PATH_TRUNCATED != 0,
        }),
        Event::CgroupGone(e) => json!({ "id": e.id }),
        Event::CgroupMove(e) => {
            json!({ "id": e.id, "target_pid": e.target_tgid, "target_start_ns": e.target_start_ns })
        }
        Event::Namespaces(e) => {
            json!({ "mnt": e.mnt, "pid_children": e.pid_children, "shared": shared(&e.shared) })
        }
    }
}

fn shared(of: &wire::Shared) -> SharedNamespaces {
    SharedNamespaces { net: of.net, ipc: of.ipc, uts: of.uts, cgroup: of.cgroup, user: of.user }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn has_mark(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains(char::REPLACEMENT_CHARACTER),
        Value::Array(values) => values.iter().any(has_mark),
        Value::Object(fields) => fields.values().any(has_mark),
        _ => false,
    }
}
