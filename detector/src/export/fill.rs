//! From a record, and what is known around it, to a row. Pure.

use std::borrow::Cow;

use bytes::Bytes;
use detector_common as wire;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    alert::{Alert, Origin},
    context::{Context, container::Container},
    decode::{DecodeError, Event, hook_name, syscall_name},
    detect::pause,
    export::rows::Row,
    record::{Body, BootNs, ContainerInfo, InodeKey, ManifestChange, ManifestFile, PodRef, ProcessKey, Record, sense},
    source::hex,
};

/// The row of a record that the context has learned from. `event` is the decoded form of a kernel record.
#[must_use]
pub fn row<'a>(
    record: &'a Record,
    event: Option<Result<&'a Event<'a>, &DecodeError>>,
    alerts: &[Alert],
    context: &'a Context,
) -> Row<'a> {
    let mut row = Row {
        seq: Some(record.seq),
        time: wall(context, record.time),
        node: text(&context.start.node),
        ..Row::default()
    };
    body(&mut row, &record.body, context);
    match event {
        Some(Ok(event)) => kernel(&mut row, event, context),
        Some(Err(error)) => {
            row.kind = text("undecodable");
            let raw = if let Body::Kernel { raw } = &record.body { hex(raw) } else { String::new() };
            row.detail = json_text(&json!({ "error": error.to_string(), "raw": raw }));
        }
        None => {}
    }
    if !alerts.is_empty() {
        let said = |alert: &Alert| json!({ "technique": alert.technique.id, "severity": alert.severity, "title": alert.title });
        row.alerts = json_text(&alerts.iter().map(said).collect::<Vec<_>>());
    }
    row
}

/// Nanoseconds since the epoch; `None` where they do not fit.
#[must_use]
pub fn wall(context: &Context, time: BootNs) -> Option<i64> {
    context.start.boot_time_ns.checked_add(time.0).and_then(|ns| i64::try_from(ns).ok())
}

fn body<'a>(row: &mut Row<'a>, body: &'a Body, context: &'a Context) {
    row.kind = text(match body {
        Body::Start(start) => {
            row.detail = json_text(start);
            "start"
        }
        Body::Config(rules) => {
            row.detail = json_text(rules);
            "config"
        }
        Body::Process(seed) => {
            process(row, seed.key(), context);
            row.parent_pid = row.parent_pid.or((seed.parent_pid != 0).then_some(seed.parent_pid));
            row.detail = json_text(&json!({
                "argv_truncated": seed.argv_truncated, "inner_pid": seed.inner_pid, "namespaces": seed.shared,
            }));
            "process"
        }
        Body::Alive { processes } => {
            row.detail = json_text(&json!({"processes": processes.len()}));
            "alive"
        }
        Body::Cgroup { id, path } => {
            row.cgroup_id = Some(*id);
            row.path = text(path);
            "cgroup"
        }
        // Its event says more.
        Body::Kernel { .. } => "kernel",
        Body::Watched(watched) => {
            row.detail = json_text(watched);
            "watched"
        }
        Body::Manifest(change) => {
            manifest(row, change);
            "manifest"
        }
        Body::Container(info) => {
            container(row, info);
            row.cgroup_id = info.cgroup_id;
            row.cgroup = info.cgroup_id.and_then(|id| context.cgroups.path(id)).map(Cow::Borrowed);
            row.detail = json_text(info);
            "container"
        }
        Body::Image(image) => {
            row.image = image.names.first().and_then(|name| text(name));
            row.image_digest = text(&image.digest);
            row.path = text(&image.path);
            row.detail = json_text(image);
            "image"
        }
        Body::ImageNames(names) => {
            row.image = names.tags.first().or(names.digests.first()).and_then(|name| text(name));
            row.image_digest = text(&names.id);
            row.detail = json_text(names);
            "image_names"
        }
        Body::Executed(file) => {
            process(row, file.process, context);
            row.sha256 = file.sha256.as_deref().and_then(text);
            row.detail = json_text(&json!({ "size": file.size, "unreadable": file.unreadable }));
            "executed"
        }
        Body::PauseConfig(config) => {
            row.image = config.image.as_deref().and_then(text);
            row.path = text(&config.path);
            row.detail = json_text(config);
            "pause_config"
        }
        Body::Secret(secret) => {
            row.path = text(&secret.path);
            inode(row, secret.inode.dev, secret.inode.ino);
            row.detail = json_text(secret);
            "secret"
        }
        Body::Components(components) => {
            row.detail = json_text(components);
            "components"
        }
        Body::Clients(clients) => {
            row.detail = json_text(clients);
            "clients"
        }
        Body::Loss(loss) => {
            row.hook = text(&loss.hook);
            row.detail = json_text(loss);
            "loss"
        }
        Body::Hooks(changed) => {
            row.hook = changed.hooks.first().and_then(|hook| text(&hook.name));
            row.detail = json_text(changed);
            "hooks"
        }
        Body::Audit(event) => {
            row.path = text(&event.uri);
            row.detail = json_text(event);
            "audit"
        }
        Body::AuditLog(log) => {
            row.path = text(&log.path);
            row.detail = json_text(log);
            "audit_log"
        }
        Body::NodeLogs(logs) => {
            row.path = text(&logs.path);
            inode(row, logs.dir.dev, logs.dir.ino);
            row.detail = json_text(logs);
            "node_logs"
        }
        Body::Tick => "tick",
    });
}

fn kernel<'a>(row: &mut Row<'a>, event: &'a Event<'a>, context: &'a Context) {
    let header = event.header();
    process(row, ProcessKey::from_ns(header.tgid, header.start_ns), context);
    row.hook = text(hook_name(header.hook));
    row.tid = Some(header.tid);
    row.comm = Some(c_string(&header.comm)).filter(|comm| !comm.is_empty());
    // An exit says which process, and when: the rest of its header is zero.
    if !matches!(event, Event::Exit(_)) {
        row.uid = Some(header.uid);
        row.login_uid = (header.login_uid != u32::MAX).then_some(header.login_uid);
    }
    row.kind = text(match event {
        Event::Exec(exec) => {
            let event = &exec.event;
            if row.parent_pid.is_none() && event.parent_tgid != 0 {
                let parent = ProcessKey::from_ns(event.parent_tgid, event.parent_start_ns);
                (row.parent_pid, row.parent_start) = (Some(parent.pid), Some(parent.start));
            }
            row.path = text(&exec.path);
            inode(row, event.dev, event.ino);
            row.detail = json_text(&json!({
                "inner_pid": event.inner_pid,
                "argv_truncated": event.flags & wire::ARGV_TRUNCATED != 0,
                "deleted": event.flags & wire::EXE_DELETED != 0,
                "namespaces": crate::record::SharedNamespaces::from(event.shared),
            }));
            "exec"
        }
        Event::Fork(fork) => {
            target(row, fork.child_tgid, fork.child_start_ns);
            if (fork.parent_tgid, fork.parent_start_ns) != (header.tgid, header.start_ns) {
                let real = ProcessKey::from_ns(fork.parent_tgid, fork.parent_start_ns);
                row.detail = json_text(&json!({ "real_parent": real }));
            }
            "fork"
        }
        Event::Exit(exit) => {
            row.exit_status = Some(exit.code.cast_signed());
            "exit"
        }
        Event::Open(open) | Event::Write(open) | Event::Map(open) | Event::Read(open) => {
            let wire::Open { dev, ino, parent_ino, mode, open_flags, watch, flags, .. } = open.event;
            row.path = text(&open.path);
            inode(row, dev, ino);
            row.dir_ino = Some(parent_ino);
            row.denied = Some(flags & wire::DENIED != 0);
            row.syscall = syscall(open.event.syscall, false);
            row.detail = json_text(&json!({ "mode": mode, "open_flags": open_flags, "watch": watched(watch) }));
            match event {
                Event::Open(_) => "open",
                Event::Write(_) => "write",
                Event::Read(_) => "read",
                _ => "map",
            }
        }
        Event::Change(change) => {
            inode(row, change.dev, change.ino);
            row.detail = json_text(&json!({ "watch": watched(change.watch) }));
            "change"
        }
        Event::Path(call) => {
            row.syscall = syscall(call.event.syscall, call.event.compat != 0);
            [row.path, row.to_path] = call.paths.each_ref().map(|path| text(path));
            if call.event.ino != 0 {
                inode(row, call.event.dev, call.event.ino);
            }
            row.detail = json_text(&json!({ "number": call.event.syscall, "watch": watched(call.event.watch) }));
            "path"
        }
        Event::Entry(entry) => {
            [row.path, row.to_path] = entry.names.each_ref().map(|name| text(name));
            inode(row, entry.dev, entry.ino);
            row.dir_ino = Some(entry.dir_ino);
            row.denied = Some(entry.denied);
            let (to_ino, to_dir_ino) = (entry.to_ino, entry.to_dir_ino);
            row.detail =
                json_text(&json!({ "to_ino": to_ino, "to_dir_ino": to_dir_ino, "watch": watched(entry.watch) }));
            "entry"
        }
        Event::Ptrace(ptrace) => {
            target(row, ptrace.target_tgid, ptrace.target_start_ns);
            row.detail = json_text(&json!({ "mode": ptrace.mode }));
            "ptrace"
        }
        Event::Bpf(bpf) => {
            row.detail = json_text(&json!({ "command": bpf.command, "object": bpf.object, "id": bpf.id }));
            "bpf"
        }
        Event::Signal(signal) => {
            target(row, signal.target_tgid, signal.target_start_ns);
            row.detail = json_text(&json!({ "signal": signal.signal, "code": signal.code, "result": signal.result }));
            "signal"
        }
        Event::IoUring(request) => {
            row.detail = json_text(&json!({ "opcode": request.opcode }));
            "io_uring"
        }
        Event::Socket(socket) => {
            let call = match socket.call {
                wire::socket::CREATE => "create",
                wire::socket::CONNECT => "connect",
                wire::socket::BIND => "bind",
                wire::socket::RUNTIME => "runtime",
                _ => "any",
            };
            let has_address = !matches!(socket.call, wire::socket::CREATE | wire::socket::RUNTIME);
            let address = has_address.then(|| pause::address(&socket.address));
            row.detail = json_text(&json!({ "call": call, "args": socket.args, "address": address }));
            "socket"
        }
        Event::Connection(connection) => {
            let act = match connection.act {
                wire::connection::ACCEPT => "accept",
                wire::connection::RECEIVE => "receive",
                _ => "connect",
            };
            let local = sense::address(&connection.local, connection.local_port);
            let remote = sense::address(&connection.remote, connection.remote_port);
            row.detail = json_text(&json!({ "act": act, "local": local, "remote": remote }));
            "connection"
        }
        Event::Cgroup { event, path } => {
            row.path = text(path);
            row.detail = json_text(&json!({ "id": event.id }));
            "cgroup"
        }
        Event::CgroupGone(gone) => {
            row.path = context.cgroups.path(gone.id).map(Cow::Borrowed);
            row.detail = json_text(&json!({ "id": gone.id }));
            "cgroup_gone"
        }
        Event::CgroupMove(moved) => {
            target(row, moved.target_tgid, moved.target_start_ns);
            row.path = context.cgroups.path(moved.id).map(Cow::Borrowed);
            row.detail = json_text(&json!({ "id": moved.id }));
            "cgroup_move"
        }
        Event::Namespaces(entered) => {
            let namespaces = crate::record::SharedNamespaces::from(entered.shared);
            row.detail = json_text(&json!({
                "mnt": entered.mnt, "pid_children": entered.pid_children, "namespaces": namespaces,
            }));
            "namespaces"
        }
    });
}

/// Who it is, and where it lives.
fn process<'a>(row: &mut Row<'a>, key: ProcessKey, context: &'a Context) {
    row.pid = Some(key.pid);
    row.start = Some(key.start);
    row.start_time = wall(context, BootNs(key.start.saturating_mul(ProcessKey::TICK_NS)));
    let (origin, lives_in) = context.origin(key);
    row.origin = text(match origin {
        Origin::Host => "host",
        Origin::Container => "container",
        Origin::Unknown => "unknown",
    });
    if let Some(Container { info, .. }) = lives_in {
        container(row, info);
    }
    let Some(state) = context.processes.get(key) else { return };
    row.exe = text(&state.program.exe);
    row.argv = json_text(&state.program.argv.to_vec());
    row.uid = Some(state.uid);
    row.login_uid = state.login_uid;
    row.tty = state.program.tty.as_deref().and_then(text);
    row.cgroup_id = Some(state.cgroup);
    row.cgroup = context.cgroups.path(state.cgroup).map(Cow::Borrowed);
    row.mnt_ns = Some(state.mnt_ns);
    row.pid_ns = Some(state.pid_ns);
    if let Some(parent) = state.parent {
        (row.parent_pid, row.parent_start) = (Some(parent.pid), Some(parent.start));
        row.parent_exe = context.processes.get(parent).and_then(|parent| text(&parent.program.exe));
    }
}

fn container<'a>(row: &mut Row<'a>, info: &'a ContainerInfo) {
    row.container_id = text(&info.id);
    row.container_name = info.name.as_deref().and_then(text);
    row.image = info.image.as_deref().and_then(text);
    row.image_digest = info.image_digest.as_deref().and_then(text);
    if let Some(PodRef { namespace, name, uid }) = &info.pod {
        row.pod_namespace = text(namespace);
        row.pod_name = text(name);
        row.pod_uid = text(uid);
    }
}

fn manifest<'a>(row: &mut Row<'a>, change: &'a ManifestChange) {
    row.path = Some(if change.name.is_empty() {
        Cow::Borrowed(change.dir.as_str())
    } else {
        Cow::Owned(format!("{}/{}", change.dir, change.name))
    });
    row.dir_ino = change.dir_inode.map(|inode| inode.ino);
    if let Some(InodeKey { dev, ino }) = change.after.as_ref().map(|file| file.inode).or(change.dir_inode) {
        inode(row, dev, ino);
    }
    row.change = serde_json::to_value(change.change).ok().and_then(|name| name.as_str().map(|s| s.to_owned().into()));
    row.sha256 = change.after.as_ref().and_then(|file| file.sha256.as_deref()).and_then(text);
    row.content = change.after.as_ref().and_then(|file| str::from_utf8(&file.content).ok()).map(Cow::Borrowed);
    // Contents apart: as text where they are some, and the one that has a column not twice.
    let without =
        |file: &Option<ManifestFile>| file.as_ref().map(|file| ManifestFile { content: Bytes::new(), ..file.clone() });
    let rest = ManifestChange { after: without(&change.after), before: without(&change.before), ..change.clone() };
    let Ok(mut detail) = serde_json::to_value(rest) else { return };
    for (name, file, has_column) in [("after", &change.after, row.content.is_some()), ("before", &change.before, false)]
    {
        if let (Some(file), Some(Value::Object(object))) = (file, detail.get_mut(name)) {
            object.remove("content");
            if !has_column {
                let content = str::from_utf8(&file.content);
                object.insert(
                    "content".to_owned(),
                    content.map_or_else(|_| json!({ "hex": hex(&file.content) }), Value::from),
                );
            }
        }
    }
    row.detail = json_text(&detail);
}

/// Whom the act was on.
fn target(row: &mut Row<'_>, pid: u32, start_ns: u64) {
    let key = ProcessKey::from_ns(pid, start_ns);
    (row.target_pid, row.target_start) = (Some(key.pid), Some(key.start));
}

fn inode(row: &mut Row<'_>, dev: u32, ino: u64) {
    row.dev = Some(format!("{}:{}", dev >> 20, dev & 0xf_ffff).into());
    row.ino = Some(ino);
}

/// A system call's name; `None` where a security hook saw the act.
fn syscall(number: u32, compat: bool) -> Option<Cow<'static, str>> {
    (number != u32::MAX).then(|| syscall_name(number, compat).map_or_else(|| number.to_string().into(), Cow::Borrowed))
}

/// Why the inode was watched, in words.
fn watched(flags: u32) -> Vec<&'static str> {
    use wire::watch;
    let names = [
        (watch::FILE, "file"),
        (watch::DIR, "dir"),
        (watch::ANCESTOR, "ancestor"),
        (watch::SUBTREE, "subtree"),
        (watch::BLOCK, "block"),
        (watch::STORE, "store"),
        (watch::OWN, "own"),
        (watch::SANDBOX, "sandbox"),
        (watch::READ, "read"),
    ];
    names.into_iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| name).collect()
}

/// `None` for what is empty: a column says nothing then.
fn text(text: &str) -> Option<Cow<'_, str>> {
    (!text.is_empty()).then_some(Cow::Borrowed(text))
}

fn c_string(bytes: &[u8]) -> Cow<'_, str> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
}

/// As JSON, which none of the values here fails to become.
fn json_text<'a>(value: &(impl Serialize + ?Sized)) -> Option<Cow<'a, str>> {
    serde_json::to_string(value).ok().map(Cow::Owned)
}
