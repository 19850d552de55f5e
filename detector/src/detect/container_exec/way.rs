//! The way in, in words. Names of programs are enough for words; no alert depends on them.

use std::fmt;

use crate::{
    argv::Argv,
    context::{
        Context,
        container::{Container, Namespace},
        image::is_sha256,
        process::ProcessState,
    },
    detect::base,
    escape::escape_to,
    record::ProcessKey,
};

use super::{names, pending::Group};

/// A step into a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entered {
    Namespaces(Vec<Namespace>),
    Cgroup,
}

/// How a process came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The runtime, asked through the CRI.
    Cri,
    Docker,
    Podman,
    /// podman itself, which enters containers to copy files and to list processes.
    PodmanItself,
    /// The runtime, asked by containerd's own client.
    Ctr,
    /// The OCI runtime itself, run by nobody's monitor.
    Runtime(String),
    /// Namespaces, and the program that joined them.
    Namespaces(Vec<Namespace>, Option<String>),
    /// Moved into the cgroup.
    Cgroup,
    /// A container of the pod that lives among the processes of this one.
    Debug(String),
    /// What would say so was lost.
    Unseen,
}

impl Way {
    /// Whether this is how clusters are operated day by day. Some network plugins run their tools in pods' network namespaces.
    pub fn is_usual(&self) -> bool {
        match self {
            Self::Cri | Self::Docker | Self::Podman | Self::PodmanItself | Self::Debug(_) | Self::Unseen => true,
            Self::Namespaces(kinds, _) => !kinds.iter().any(|kind| matches!(kind, Namespace::Mnt | Namespace::Pid)),
            Self::Ctr | Self::Runtime(_) | Self::Cgroup => false,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cri => f.write_str("through the container runtime interface: kubectl exec, crictl exec or a probe"),
            Self::Docker => f.write_str("by docker exec"),
            Self::Podman => f.write_str("by podman exec"),
            Self::PodmanItself => f.write_str("by podman itself, as for podman cp and podman top"),
            Self::Ctr => f.write_str("by containerd's own client (ctr task exec), past kubelet"),
            Self::Runtime(name) => write!(f, "by {} exec by hand, past the container runtime", escape_to(name, 32)),
            Self::Namespaces(kinds, Some(by)) => {
                write!(f, "{} joined its namespaces ({}), past the container runtime", escape_to(by, 64), names(kinds))
            }
            Self::Namespaces(kinds, None) => {
                write!(f, "by its namespaces ({}), past the container runtime", names(kinds))
            }
            Self::Cgroup => f.write_str("moved into its cgroup, past the container runtime"),
            Self::Unseen => f.write_str("while events were lost: it was found there, and how it came in was not seen"),
            Self::Debug(name) => {
                write!(f, "an ephemeral container that lives among the processes of {name} (kubectl debug --target)")
            }
        }
    }
}

/// OCI runtimes by the names of their programs.
const RUNTIMES: [&str; 6] = ["runc", "crun", "youki", "runsc", "kata-runtime", "nvidia-container-runtime"];

/// Whether a process runs an OCI runtime, by its name.
pub fn is_runtime(process: &ProcessState) -> bool {
    RUNTIMES.contains(&base(&process.program.exe))
        || process.program.argv.first().is_some_and(|first| RUNTIMES.contains(&base(first)))
}

/// The runtime that was asked to execute something, and did it by `process`.
fn runtime_of(process: ProcessKey, context: &Context) -> Option<(ProcessKey, &ProcessState)> {
    let on_host = |key: &ProcessKey| context.container_of(*key).is_none();
    context
        .processes
        .lineage(process)
        .filter(|(key, state)| is_runtime(state) && on_host(key))
        .find(|(_, state)| state.program.argv.iter().any(|arg| arg == "exec"))
}

/// Whether the runtime that `process` is of was started by the very process that looks after the container: the one on the host that
/// lives, and that the container's first process descends from. No name makes a process that one.
pub fn is_of_own_monitor(process: ProcessKey, container: &Container, context: &Context) -> bool {
    let lives_on_host = |(key, state): &(ProcessKey, &ProcessState)| {
        state.exited.is_none()
            && key.pid > 1
            && (state.mnt_ns, state.pid_ns) == (context.start.host_mnt_ns, context.start.host_pid_ns)
            && context.container_of(*key).is_none()
    };
    let monitor = container.init.and_then(|init| context.processes.lineage(init).find(lives_on_host));
    let runtime = runtime_of(process, context).and_then(|(_, runtime)| runtime.parent);
    runtime.is_some() && runtime == monitor.map(|(key, _)| key)
}

/// How `process` came in: by its lineage when a runtime on the host did it, else by the steps that were seen.
pub fn of(process: ProcessKey, group: Option<&Group>, kinds: &[Namespace], context: &Context) -> Way {
    if let Some((key, runtime)) = runtime_of(process, context) {
        let mut above = context.processes.lineage(key).map(|(_, state)| state);
        let monitor = above.find(|state| is_monitor(state));
        return match monitor {
            // CRI-O's is the same program. podman starts one for each session.
            Some(monitor) if base(&monitor.program.exe).starts_with("conmon") => {
                if above.any(|state| base(&state.program.exe) == "podman") { Way::Podman } else { Way::Cri }
            }
            Some(monitor) if argument(&monitor.program.argv, "-namespace") == Some("moby") => Way::Docker,
            // The CRI's exec ids are 64 hexadecimal digits; those of containerd's client are its user's.
            Some(_) if exec_id(&runtime.program.argv).is_some_and(is_sha256) => Way::Cri,
            Some(_) => Way::Ctr,
            None => Way::Runtime(base(&runtime.program.exe).to_owned()),
        };
    }
    let stepped = group.map(Group::kinds).unwrap_or_default();
    let kinds = if stepped.is_empty() { kinds.to_vec() } else { stepped };
    if kinds.is_empty() {
        return Way::Cgroup;
    }
    match group.map(|group| base(&group.by)) {
        Some("podman") if context.container_of(process).is_none() => Way::PodmanItself,
        by => Way::Namespaces(kinds, by.map(str::to_owned)),
    }
}

/// Whether a process looks after containers for a runtime, by its name.
pub fn is_monitor(process: &ProcessState) -> bool {
    let name = base(&process.program.exe);
    name.starts_with("containerd-shim") || name.starts_with("conmon") || name.starts_with("docker-containerd-shim")
}

/// `.../<exec id>.pid` of `--pid-file`.
fn exec_id(argv: &Argv) -> Option<&str> {
    base(argument(argv, "--pid-file")?).strip_suffix(".pid")
}

/// The value of a flag, given behind it or with `=`.
fn argument<'a>(argv: &'a Argv, flag: &str) -> Option<&'a str> {
    let mut args = argv.iter();
    while let Some(arg) = args.next() {
        if arg == flag {
            return args.next();
        }
        if let Some(value) = arg.strip_prefix(flag).and_then(|rest| rest.strip_prefix('=')) {
            return Some(value);
        }
    }
    None
}
