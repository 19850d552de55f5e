//! `detector doctor`: what works on this host, what does not, and what that means.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use crate::{
    confine,
    escape::{escape, escape_to},
    record::{Body, DirState, HookState, InfoFrom, Watched},
    source::{
        audit,
        bundle::Bundles,
        cri::{self, Answer, Cri},
        kernel::{Kernel, btf, hooks::HOOKS, hooks::Hook},
        kubelet,
        live::{LiveError, Options},
        manifest::View,
        proc,
    },
};

/// Prints the report; fails when the main job, to see who changes a manifest, could not run here.
///
/// # Errors
/// When the report cannot be written.
pub fn doctor(options: &Options) -> anyhow::Result<ExitCode> {
    let mut report = String::new();
    host(&mut report, options)?;
    let attached = Kernel::attach(&options.kernel);
    let mut problems = Vec::new();
    if !proc::in_initial_pid_namespace() {
        problems.push(LiveError::PidNamespace.to_string());
    }
    let mut notes = Vec::new();
    writeln!(report, "\nHooks")?;
    match &attached {
        Ok(kernel) => {
            for state in kernel.hooks() {
                let hook = HOOKS.iter().find(|hook| hook.name == state.name);
                hook_line(&mut report, hook, state)?;
                if state.backend.is_none() {
                    let told = if state.required { &mut problems } else { &mut notes };
                    let without = hook.map_or("acts are seen at the ends of system calls", |hook| hook.without);
                    let consequence = format!("without {}: {without}", state.name);
                    if !told.contains(&consequence) {
                        told.push(consequence);
                    }
                }
            }
            let precise = kernel.is_precise();
            if precise {
                notes.push(
                    "every change of a watched inode is seen as it happens, by whatever means, with its process"
                        .to_owned(),
                );
            }
        }
        Err(error) => {
            writeln!(report, "  none       {}", escape(&error.to_string()))?;
            problems.push("no hook can be attached".to_owned());
        }
    }
    let names: Vec<String> = attached
        .iter()
        .flat_map(Kernel::hooks)
        .filter(|hook| hook.backend.is_some())
        .map(|hook| hook.name.clone())
        .collect();
    drop(attached);
    containers(&mut report, options, &mut notes)?;

    writeln!(report, "\nWatched")?;
    let watched = watched(options);
    for dir in &watched.dirs {
        let (mark, state) = match &dir.state {
            DirState::Present(_) => ("ok", "directory".to_owned()),
            DirState::File(_) => ("ok", "a single file".to_owned()),
            DirState::Missing => ("waiting", "does not exist yet; its creation is watched".to_owned()),
            DirState::Url => ("unwatched", "a URL".to_owned()),
            DirState::Unreadable(why) => ("unreadable", escape(why)),
        };
        writeln!(report, "  {mark:<10} {}  [{}] {state}", escape(&dir.path), dir.reason)?;
        match &dir.state {
            DirState::Unreadable(why) => {
                problems.push(format!("{} cannot be read: {}", escape(&dir.path), escape(why)));
            }
            DirState::Url => {
                notes.push(format!("pods that kubelet fetches from {} are not seen as files", escape(&dir.path)));
            }
            _ => {}
        }
    }
    if watched.dirs.is_empty() {
        writeln!(report, "  none")?;
        problems.push("nothing is watched: name a directory with --manifest-dir".to_owned());
    } else if watched.dirs.iter().all(|dir| dir.kubelet_pid.is_none()) {
        notes.push("no kubelet runs here: these are defaults and what you named, not what a kubelet reads".to_owned());
    }

    say_audit_logs(&mut report, options)?;

    writeln!(report, "\nCoverage")?;
    for problem in &problems {
        writeln!(report, "  MISSING    {problem}")?;
    }
    for note in &notes {
        writeln!(report, "  note       {note}")?;
    }
    let fine = problems.is_empty();
    let verdict = if fine {
        "static-pod: changes are detected, and who made them is named"
    } else {
        "static-pod: cannot run as it should"
    };
    writeln!(report, "  {:<10} {verdict}", if fine { "ok" } else { "FAILED" })?;
    let has = |name: &str| names.iter().any(|hook| hook == name);
    let by_cgroup = has("cgroup") && proc::cgroup2_root().is_some();
    let (mark, verdict) = match (has("exec"), by_cgroup) {
        (true, true) if has("namespaces") || has("syscall") => {
            ("ok", "who gets into a container is named, executing something there or not")
        }
        (true, true) => {
            ("part", "who executes something in a container is named; entering without an exec is not seen")
        }
        (true, false) => {
            ("part", "containers are told apart by their namespaces alone: without a v2 cgroup no pod is known")
        }
        (false, _) => ("none", "needs the hook exec"),
    };
    writeln!(report, "  {mark:<10} container-exec: {verdict}")?;
    let (mark, verdict) = match (has("exec") && has("fork") && by_cgroup, has("socket") || has("syscall")) {
        (true, true) => ("ok", "what sandboxes execute, fork, connect to and open is seen, and which images arrive"),
        (true, false) => ("part", "what sandboxes execute and fork is seen; sockets are not"),
        (false, _) => ("none", "needs the hooks exec, fork and cgroup, and a v2 cgroup hierarchy"),
    };
    writeln!(report, "  {mark:<10} malicious-pause-container: {verdict}")?;
    let (mark, verdict) = match (has("file-open") || has("syscall"), has("connection")) {
        (true, true) => {
            ("ok", "who reads tokens, kubeconfigs and keys is named, and who then connects to an API server")
        }
        (true, false) => ("part", "who reads tokens, kubeconfigs and keys is named; who uses them is not seen"),
        (false, _) => ("none", "needs the hook file-open or syscall"),
    };
    writeln!(report, "  {mark:<10} container-service-account: {verdict}")?;
    let (mark, verdict) = match has("connection") {
        true => ("ok", "etcd's clients, where this node's API server connects and whom it accepts are seen"),
        false => ("none", "needs the hook connection: etcd's clients, and whom the API server talks to, are not seen"),
    };
    writeln!(report, "  {mark:<10} control plane: {verdict}")?;
    std::io::stdout().write_all(report.as_bytes())?;
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Containers that run here, and the runtimes that can be asked about them.
fn containers(report: &mut String, options: &Options, notes: &mut Vec<String>) -> std::fmt::Result {
    /// How long runtimes may take to answer.
    const PATIENCE: Duration = Duration::from_secs(3);
    writeln!(report, "\nContainers")?;
    let mut bundles = Bundles::default();
    bundles.learn_from_shims();
    let seeds = proc::seed().unwrap_or_default();
    let found: Vec<_> = seeds.cgroups.iter().filter_map(|(id, path)| bundles.container(*id, path, None)).collect();
    let known = found.iter().filter(|info| info.from != InfoFrom::Nothing).count();
    let mark = if known == found.len() { "ok" } else { "note" };
    writeln!(report, "  {mark:<10} {:<22} {} run here, {known} described by their bundles", "bundles", found.len())?;
    for info in found.iter().filter(|info| info.from == InfoFrom::Nothing).take(5) {
        let why = info.unreadable.as_deref().unwrap_or("nothing is known");
        writeln!(report, "  {:<10} {:<22} {}", "unknown", escape_to(&info.id, 12), escape(why))?;
    }
    let Some(explicit) = &options.cri else {
        notes.push(
            "container runtimes are not asked (--no-cri): images have no digests and sandboxes no image".to_owned(),
        );
        return Ok(());
    };
    let sockets = cri::sockets(explicit, &options.discovery.proc);
    if sockets.is_empty() {
        writeln!(report, "  {:<10} {:<22} none found; name one with --cri-socket", "absent", "runtime sockets")?;
        notes.push("no container runtime is asked: containers are known by their bundles alone".to_owned());
        return Ok(());
    }
    let wanted = sockets.len();
    let asked = match Cri::start(sockets) {
        Ok(asked) => asked,
        Err(error) => return writeln!(report, "  {:<10} {:<22} {error}", "MISSING", "runtime sockets"),
    };
    let deadline = Instant::now() + PATIENCE;
    let mut said = 0;
    while said < wanted && Instant::now() < deadline {
        let mut answers = Vec::new();
        asked.answers(&mut answers);
        for answer in answers {
            said += 1;
            match answer {
                Answer::Connected(to) => writeln!(
                    report,
                    "  {:<10} {:<22} {} at {} (CRI {})",
                    "ok",
                    "runtime",
                    to.runtime,
                    escape(&to.socket),
                    to.api
                )?,
                Answer::Warning(warning) => {
                    writeln!(report, "  {:<10} {:<22} {}", "absent", "runtime", escape(&warning))?
                }
                _ => said -= 1,
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    if said < wanted {
        writeln!(report, "  {:<10} {:<22} {} did not answer", "absent", "runtime", wanted - said)?;
    }
    Ok(())
}

/// Audit logs that would be followed: the root that each is seen from, its path there, and who names it.
pub(crate) fn audit_logs(options: &Options) -> Vec<(PathBuf, PathBuf, &'static str)> {
    let root = kubelet::host_root(&options.audit.proc);
    let named = options.audit.logs.iter().map(|path| (root.clone(), path.clone(), "named"));
    let found = if options.audit.find { audit::find::logs(&options.audit.proc) } else { Vec::new() };
    named.chain(found.into_iter().map(|found| (found.root, found.path, "kube-apiserver"))).collect()
}

fn say_audit_logs(report: &mut String, options: &Options) -> std::fmt::Result {
    writeln!(report, "\nAudit logs")?;
    let logs = audit_logs(options);
    for (root, path, whose) in &logs {
        let there = root.join(path.strip_prefix("/").unwrap_or(path)).exists();
        let (mark, state) = if there { ("ok", "") } else { ("waiting", ", does not exist yet") };
        writeln!(report, "  {mark:<10} {}  [{whose}]{state}", escape(&path.display().to_string()))?;
    }
    if logs.is_empty() {
        writeln!(
            report,
            "  {:<10} no kube-apiserver here writes one; requests to the API server are not seen",
            "none"
        )?;
    } else if options.audit.state.is_none() {
        writeln!(report, "  {:<10} read from their ends at each start: name a directory with --audit-state", "note")?;
    }
    Ok(())
}

pub(crate) fn watched(options: &Options) -> Watched {
    let batch = View::new(options.discovery.clone()).start(proc::now());
    batch
        .bodies
        .into_iter()
        .find_map(|body| match body {
            Body::Watched(watched) => Some(watched),
            _ => None,
        })
        .unwrap_or_default()
}

fn hook_line(report: &mut String, hook: Option<&Hook>, state: &HookState) -> std::fmt::Result {
    let needed = if state.required { " (required)" } else { "" };
    let Some(backend) = &state.backend else {
        let reason = state.reason.as_deref().unwrap_or("not attached");
        let mark = if state.required { "MISSING" } else { "absent" };
        return writeln!(report, "  {mark:<10} {:<22} {}{needed}", state.name, escape(reason));
    };
    let attached = hook.and_then(|hook| hook.attach.iter().find(|attach| attach.backend.name() == backend));
    let target = attached.map_or("", |attach| attach.target);
    let verified = state.verified.map(|count| format!(", {count} instructions verified")).unwrap_or_default();
    writeln!(report, "  {:<10} {:<22} {backend} {target}{needed}{verified}", "ok", state.name)
}

/// The facts of the host that decide what can be attached.
fn host(report: &mut String, options: &Options) -> std::fmt::Result {
    writeln!(report, "Host")?;
    let mut line = |mark: &str, what: &str, value: &str| writeln!(report, "  {mark:<10} {what:<22} {}", escape(value));
    let kernel = nix::sys::utsname::uname()
        .map(|name| format!("{} {}", name.release().to_string_lossy(), name.machine().to_string_lossy()))
        .unwrap_or_else(|error| error.to_string());
    line("", "kernel", &kernel)?;
    let path = options.kernel.btf.as_deref().unwrap_or(Path::new(btf::VMLINUX));
    match btf::read(path) {
        Ok(bytes) => line("ok", "BTF", &format!("{}, {} KiB", path.display(), bytes.len() / 1024))?,
        Err(error) => line("MISSING", "BTF", &error.to_string())?,
    }
    let root = nix::unistd::geteuid().is_root();
    line(
        if root { "ok" } else { "MISSING" },
        "privileges",
        if root { "root" } else { "not root: BPF needs CAP_BPF and CAP_PERFMON" },
    )?;
    let host = kubelet::host_root(Path::new("/proc"));
    let security = |file: &str| match fs::read_to_string(host.join("sys/kernel/security").join(file)) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            "unknown: securityfs is not mounted (mount -t securityfs none /sys/kernel/security)".to_owned()
        }
        Err(error) => format!("unknown: {error}"),
    };
    let lockdown = security("lockdown");
    let confidential = lockdown.contains("[confidentiality]");
    line(
        if confidential { "MISSING" } else { "" },
        "lockdown",
        &if confidential { format!("{lockdown}: BPF may not read kernel memory") } else { lockdown },
    )?;
    let lsm = security("lsm");
    let active = lsm.split(',').any(|name| name == "bpf");
    line("", "LSM list", &format!("{lsm}{}", if active { " (bpf is active)" } else { "" }))?;
    let (confined, outlook) = confine::outlook();
    line(if confined { "ok" } else { "note" }, "confinement", &outlook)?;
    line("", "cgroups", &cgroup_mode())
}

/// `v2`, `v1`, or both.
fn cgroup_mode() -> String {
    match (proc::cgroup2_root(), Path::new("/sys/fs/cgroup/cgroup.controllers").exists()) {
        (Some(root), true) => format!("v2 at {}", root.display()),
        (Some(root), false) => format!("v1 and v2 (hybrid), v2 at {}", root.display()),
        (None, _) => "v1 only: cgroup ids say nothing, and containers stay unknown".to_owned(),
    }
}
