//! The Kubernetes Threat Matrix, and what this agent watches of it: the one table behind `detector matrix`.

use crate::{alert::Technique, detect::technique as known};

/// One technique.
#[derive(Debug)]
pub struct Row {
    pub id: &'static str,
    pub name: &'static str,
    pub tactic: &'static str,
    pub attack: &'static [&'static str],
    pub microsoft: &'static [&'static str],
    /// What it is seen by. None: this agent does not look for it.
    pub signals: &'static [Signal],
}

/// One way to see a technique.
#[derive(Debug)]
pub struct Signal {
    pub what: &'static str,
    /// All of them.
    pub needs: &'static [Need],
}

/// What has to be here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// One of these hooks.
    Hook(&'static [&'static str]),
    /// A cgroup v2 hierarchy, by which containers are told apart.
    Cgroups,
    /// A directory that can be watched.
    Directory,
    Kubelet,
    /// A container runtime that can be asked.
    Runtime,
    /// A kernel that tells which files of an overlay are not its image's.
    Upper,
    /// An API server's audit log.
    AuditLog,
}

use Need::{AuditLog, Cgroups, Directory, Hook, Kubelet, Runtime, Upper};

const fn of(technique: &'static Technique, signals: &'static [Signal]) -> Row {
    let Technique { id, name, tactic, attack, microsoft } = technique;
    Row { id, name, tactic, attack, microsoft, signals }
}

const fn signal(what: &'static str, needs: &'static [Need]) -> Signal {
    Signal { what, needs }
}

/// Opens for writing: by a security hook, or at the end of the call.
const OPENS: Need = Hook(&["file-open", "syscall"]);

/// Every technique, in the order of the matrix.
pub static TABLE: [Row; 10] = [
    of(
        &known::SUPPLY_CHAIN,
        &[
            signal("programs executed from memory, from a tmpfs, or without a name", &[Hook(&["exec"]), Cgroups]),
            signal("programs that a container wrote or changed", &[Hook(&["exec"]), Cgroups, Upper]),
            signal("containers of images that images.allow does not have", &[Hook(&["exec"]), Cgroups]),
            signal("images that arrive, and who brought them", &[Hook(&["inode-rename", "syscall"])]),
            signal("names of images by digest", &[Runtime]),
        ],
    ),
    of(
        &known::CONTAINER_EXEC,
        &[
            signal("programs of whoever came into a container from outside", &[Hook(&["exec"]), Cgroups]),
            signal("who came in and executed nothing", &[Hook(&["namespaces", "syscall"])]),
            signal("who descends from whom", &[Hook(&["fork"])]),
        ],
    ),
    of(
        &known::MALICIOUS_OPERATOR,
        &[
            signal("containers that start with the node's privileges", &[Hook(&["exec"]), Cgroups]),
            signal("whose pods they are, by their labels", &[Runtime]),
            signal(
                "a workload that talks to the API server and then runs what it never ran",
                &[Hook(&["exec"]), Hook(&["connection"]), Cgroups],
            ),
        ],
    ),
    of(
        &known::STATIC_POD,
        &[
            signal("changes of what is read as manifests", &[Directory]),
            signal("who made them", &[OPENS]),
            signal("the directories of a kubelet that runs here", &[Kubelet]),
            signal(
                "writes through mappings and descriptors that are older than the agent",
                &[Hook(&["inode-change-set", "mmap", "syscall"])],
            ),
            signal("access to kubelet's memory", &[Hook(&["ptrace", "syscall-guard"]), Kubelet]),
        ],
    ),
    of(
        &known::MALICIOUS_PAUSE,
        &[
            signal("programs and processes of pods' sandboxes", &[Hook(&["exec"]), Hook(&["fork"]), Cgroups]),
            signal("their sockets", &[Hook(&["socket", "syscall"]), Cgroups]),
            signal("their opens for writing", &[OPENS, Cgroups]),
            signal("digests of their images", &[Runtime]),
            signal("settings that name the pause image, and who changed them", &[OPENS]),
        ],
    ),
    of(
        &known::DETECTOR_TAMPERING,
        &[
            signal("signals that end or stop the agent", &[Hook(&["signal"])]),
            signal("who traces it or writes its memory", &[Hook(&["ptrace", "syscall-guard"])]),
            signal("who opens or changes its BPF programs and maps", &[Hook(&["bpf", "syscall-guard"])]),
            signal("events that were lost, and hooks that are detached", &[]),
            signal("who writes its configuration, traces and spool", &[OPENS]),
        ],
    ),
    of(
        &known::SERVICE_ACCOUNT,
        &[
            signal("who reads tokens, kubeconfigs, keys and etcd's data", &[OPENS]),
            signal("whose tokens they are", &[Cgroups]),
            signal("who then connects to an API server", &[Hook(&["connection"])]),
            signal("tokens of pods that others use, by the audit log", &[AuditLog, Hook(&["connection"])]),
        ],
    ),
    of(
        &known::DELETE_EVENTS,
        &[
            signal("events deleted through the API server", &[AuditLog]),
            signal("the audit log emptied, replaced or removed", &[AuditLog]),
            signal("who connects to etcd past the API server", &[Hook(&["connection"])]),
            signal("logs of pods emptied or removed", &[]),
            signal("who did that, and who opens them to overwrite them", &[OPENS]),
        ],
    ),
    of(
        &known::MALICIOUS_ADMISSION,
        &[
            signal(
                "webhook configurations and admission policies made or changed, and where they send objects",
                &[AuditLog],
            ),
            signal("where this node's API server connects for the first time", &[Hook(&["connection"])]),
        ],
    ),
    of(
        &known::PUBLIC_API,
        &[
            signal("requests without authentication, and from outside", &[AuditLog]),
            signal("whom this node's API server accepts from outside", &[Hook(&["connection"])]),
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kernel::hooks::HOOKS;

    #[test]
    fn every_technique_that_is_detected_has_its_signals_here() {
        for technique in known::ALL {
            let row = TABLE.iter().find(|row| row.id == technique.id);
            assert!(row.is_some_and(|row| !row.signals.is_empty()), "say in TABLE what {} is seen by", technique.id);
        }
    }

    #[test]
    fn hooks_that_are_needed_exist() {
        let needs = TABLE.iter().flat_map(|row| row.signals).flat_map(|signal| signal.needs);
        for need in needs {
            let Hook(names) = need else { continue };
            for name in *names {
                assert!(HOOKS.iter().any(|hook| hook.name == *name), "no hook is called {name}");
            }
        }
    }
}
