//! The table of hooks: what each needs, and what is lost without it.

use detector_common::hook;

/// How a program attaches, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// BPF LSM, where `bpf` is an active security module.
    Lsm,
    /// The entry of the `security_*` function, by a trampoline.
    Fentry,
    /// The entry of the same function, by a breakpoint.
    Kprobe,
    /// A BTF tracepoint.
    Tracepoint,
}

impl Backend {
    /// As doctor and traces call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lsm => "lsm",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// When a hook is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Processes and cgroups, and signals for the agent: always.
    Context,
    /// Changes of inodes: always, where the kernel tells of them.
    Change,
    /// Acts as the security modules see them: wherever the kernel lets them attach.
    Security,
    /// Acts as system calls complete them: where the security hooks do not attach.
    Syscall,
}

/// Why the ends of system calls cannot be looked at on this architecture.
pub const NO_SYSCALLS: Option<&str> = if cfg!(target_arch = "x86_64") {
    None
} else {
    Some(
        "it reads system calls' numbers and arguments from x86-64's registers: this architecture needs the security hooks",
    )
};

/// A program in the object file and where it attaches.
#[derive(Debug)]
pub struct Attach {
    pub backend: Backend,
    pub program: &'static str,
    /// Function, LSM hook or tracepoint.
    pub target: &'static str,
    /// The first parameters that the program relies on: the structure that each points to, empty for anything else.
    pub prototype: &'static [&'static str],
}

/// One behaviour, with the programs that can see it.
#[derive(Debug)]
pub struct Hook {
    /// As doctor, traces and alerts call it: [`crate::decode::hook_name`] of `number`.
    pub name: &'static str,
    pub number: u16,
    pub role: Role,
    /// What it reports can raise an alert.
    pub alerting: bool,
    /// Best first.
    pub attach: &'static [Attach],
    /// Without it the main job, to catch who changes a manifest, cannot be done.
    pub required: bool,
    /// Fields of `KernelOffsets` that it reads.
    pub needs: &'static [&'static str],
    /// What its absence means.
    pub without: &'static str,
}

/// A security hook's programs. The LSM hook and the function behind fentry and kprobe may differ in their prototypes from
/// one kernel to the next: whichever fits is taken.
macro_rules! security {
    ($($program:literal on $hook:literal $prototype:tt),+) => {
        &[
            $(Attach {
                backend: Backend::Lsm,
                program: concat!("lsm_", $program),
                target: $hook,
                prototype: &$prototype,
            },)+
            $(Attach {
                backend: Backend::Fentry,
                program: concat!("fentry_", $program),
                target: concat!("security_", $hook),
                prototype: &$prototype,
            },)+
            $(Attach {
                backend: Backend::Kprobe,
                program: concat!("kprobe_", $program),
                target: concat!("security_", $hook),
                prototype: &$prototype,
            },)+
        ]
    };
}

const fn tracepoint(program: &'static str, target: &'static str, prototype: &'static [&'static str]) -> Attach {
    Attach { backend: Backend::Tracepoint, program, target, prototype }
}

/// Fields that the header of every record needs.
const HEADER: [&str; 4] = ["task_leader", "task_start", "task_cred", "cred_uid"];

/// What a hook on a file needs.
const FILE: &[&str] = &[
    HEADER[0],
    HEADER[1],
    HEADER[2],
    HEADER[3],
    "file_mode",
    "file_inode",
    "file_mnt",
    "file_dentry",
    "inode_ino",
    "inode_sb",
    "inode_mode",
    "inode_rdev",
    "sb_dev",
    "dentry_parent",
    "dentry_inode",
    "dentry_name",
];

/// What a hook on a directory entry needs.
const ENTRY: &[&str] = &[
    HEADER[0],
    HEADER[1],
    HEADER[2],
    HEADER[3],
    "inode_ino",
    "inode_sb",
    "sb_dev",
    "dentry_parent",
    "dentry_inode",
    "dentry_name",
    "iattr_valid",
];

/// What a hook on cgroups needs.
const CGROUPS: &[&str] = &[
    HEADER[0],
    HEADER[1],
    HEADER[2],
    HEADER[3],
    "cgroup_kn",
    "kn_id",
    "cgroup_root",
    "cgroup_root_hierarchy",
    "task_tgid",
];

/// What a hook on a mount needs.
const MOUNTS: &[&str] = &[
    HEADER[0],
    HEADER[1],
    HEADER[2],
    HEADER[3],
    "path_dentry",
    "mount_mnt",
    "mount_mountpoint",
    "dentry_inode",
    "dentry_name",
    "inode_ino",
    "inode_sb",
    "sb_dev",
];

/// Every hook, in the order of attachment: processes first, so that no act is seen before its process.
pub const HOOKS: &[Hook] = &[
    Hook {
        name: "fork",
        number: hook::FORK,
        role: Role::Context,
        alerting: false,
        attach: &[tracepoint("process_fork", "sched_process_fork", &["task_struct", "task_struct"])],
        required: false,
        needs: &[HEADER[0], HEADER[1], HEADER[2], HEADER[3], "task_tgid", "task_pid", "task_parent"],
        without: "new processes are known from their acts alone: lineage has gaps",
    },
    Hook {
        name: "exec",
        number: hook::EXEC,
        role: Role::Context,
        alerting: false,
        attach: &[tracepoint("process_exec", "sched_process_exec", &["task_struct", "", "linux_binprm"])],
        required: true,
        needs: &[
            HEADER[0],
            HEADER[1],
            HEADER[2],
            HEADER[3],
            "bprm_file",
            "file_inode",
            "file_dentry",
            "file_mnt",
            "dentry_parent",
            "dentry_name",
            "vfsmount_root",
            "mount_mnt",
            "mount_parent",
            "mount_mountpoint",
        ],
        without: "alerts name the acting process by its pid only",
    },
    Hook {
        name: "exit",
        number: hook::EXIT,
        role: Role::Context,
        alerting: false,
        attach: &[tracepoint("process_exit", "sched_process_exit", &["task_struct"])],
        required: false,
        needs: &[HEADER[0], HEADER[1], HEADER[2], HEADER[3], "task_signal", "signal_live"],
        without: "the process table is bounded by its size alone",
    },
    Hook {
        name: "cgroup",
        number: hook::CGROUP_MKDIR,
        role: Role::Context,
        alerting: false,
        attach: &[tracepoint("cgroup_mkdir", "cgroup_mkdir", &["cgroup", ""])],
        required: false,
        needs: CGROUPS,
        without: "processes in containers started from now on are of unknown origin",
    },
    Hook {
        name: "cgroup-gone",
        number: hook::CGROUP_RMDIR,
        role: Role::Context,
        alerting: false,
        attach: &[tracepoint("cgroup_rmdir", "cgroup_rmdir", &["cgroup", ""])],
        required: false,
        needs: CGROUPS,
        without: "what is known of ended containers is forgotten by number alone",
    },
    Hook {
        name: "cgroup-move",
        number: hook::CGROUP_ATTACH,
        role: Role::Context,
        alerting: false,
        attach: &[tracepoint("cgroup_attach", "cgroup_attach_task", &["cgroup", "", "task_struct"])],
        required: false,
        needs: CGROUPS,
        without: "a process that is moved into a container's cgroup is known by its next act alone",
    },
    Hook {
        name: "connection",
        number: hook::SOCKET_STATE,
        role: Role::Context,
        alerting: true,
        attach: &[tracepoint("socket_state", "inet_sock_set_state", &["sock", "", ""])],
        required: false,
        needs: &[
            HEADER[0],
            HEADER[1],
            HEADER[2],
            HEADER[3],
            "sock_family",
            "sock_daddr",
            "sock_rcv_saddr",
            "sock_dport",
            "sock_num",
        ],
        without: "who connects to the API server or to etcd, and whom this node's API server talks to, is not seen",
    },
    Hook {
        name: "tcp-receive",
        number: hook::TCP_RECEIVE,
        role: Role::Context,
        alerting: false,
        attach: &[tracepoint("tcp_receive", "tcp_rcv_space_adjust", &["sock"])],
        required: false,
        needs: &[
            HEADER[0],
            HEADER[1],
            HEADER[2],
            HEADER[3],
            "sock_family",
            "sock_daddr",
            "sock_rcv_saddr",
            "sock_dport",
            "sock_num",
        ],
        without: WITHOUT_REQUESTS,
    },
    Hook {
        name: "inode-change-set",
        number: hook::CTIME_SET,
        role: Role::Change,
        alerting: true,
        attach: &[tracepoint("ctime_set", "inode_set_ctime_to_ts", &["inode"])],
        required: false,
        needs: &["inode_ino", "inode_sb", "sb_dev", "task_flags"],
        without: WITHOUT_CHANGE,
    },
    Hook {
        name: "inode-change-exchange",
        number: hook::CTIME_XCHG,
        role: Role::Change,
        alerting: true,
        attach: &[tracepoint("ctime_xchg", "ctime_ns_xchg", &["inode"])],
        required: false,
        needs: &["inode_ino", "inode_sb", "sb_dev", "task_flags"],
        without: WITHOUT_CHANGE,
    },
    Hook {
        name: "inode-change-repeat",
        number: hook::CTIME_SKIP,
        role: Role::Change,
        alerting: true,
        attach: &[tracepoint("ctime_skip", "ctime_xchg_skip", &["inode"])],
        required: false,
        needs: &["inode_ino", "inode_sb", "sb_dev", "task_flags"],
        without: WITHOUT_CHANGE,
    },
    Hook {
        name: "file-open",
        number: hook::FILE_OPEN,
        role: Role::Security,
        alerting: true,
        attach: security!("file_open" on "file_open" ["file"]),
        required: true,
        needs: FILE,
        without: "who opens a manifest for writing, or a token for reading, is not seen",
    },
    Hook {
        name: "inode-rename",
        number: hook::INODE_RENAME,
        role: Role::Security,
        alerting: true,
        attach: security!("inode_rename" on "inode_rename" ["inode", "dentry", "inode", "dentry"]),
        required: true,
        needs: ENTRY,
        without: "who renames a manifest into place is not seen",
    },
    Hook {
        name: "inode-link",
        number: hook::INODE_LINK,
        role: Role::Security,
        alerting: true,
        attach: security!("inode_link" on "inode_link" ["dentry", "inode", "dentry"]),
        required: true,
        needs: ENTRY,
        without: "who links a manifest into place is not seen",
    },
    Hook {
        name: "inode-symlink",
        number: hook::INODE_SYMLINK,
        role: Role::Security,
        alerting: true,
        attach: security!("inode_symlink" on "inode_symlink" ["inode", "dentry", ""]),
        required: true,
        needs: ENTRY,
        without: "who makes a symbolic link to a manifest is not seen",
    },
    Hook {
        name: "inode-unlink",
        number: hook::INODE_UNLINK,
        role: Role::Security,
        alerting: true,
        attach: security!("inode_unlink" on "inode_unlink" ["inode", "dentry"]),
        required: true,
        needs: ENTRY,
        without: "who removes a manifest is not seen",
    },
    Hook {
        name: "inode-create",
        number: hook::INODE_CREATE,
        role: Role::Security,
        alerting: true,
        attach: security!("inode_create" on "inode_create" ["inode", "dentry"]),
        required: false,
        needs: ENTRY,
        without: "empty files made without being opened for writing are found on a timer",
    },
    Hook {
        name: "inode-mkdir",
        number: hook::INODE_MKDIR,
        role: Role::Security,
        alerting: true,
        attach: security!("inode_mkdir" on "inode_mkdir" ["inode", "dentry"]),
        required: false,
        needs: ENTRY,
        without: "a watched directory that is made is found on a timer",
    },
    Hook {
        name: "inode-rmdir",
        number: hook::INODE_RMDIR,
        role: Role::Security,
        alerting: true,
        attach: security!("inode_rmdir" on "inode_rmdir" ["inode", "dentry"]),
        required: false,
        needs: ENTRY,
        without: "a watched directory that is removed is found on a timer",
    },
    Hook {
        name: "inode-mknod",
        number: hook::INODE_MKNOD,
        role: Role::Security,
        alerting: true,
        attach: security!("inode_mknod" on "inode_mknod" ["inode", "dentry"]),
        required: false,
        needs: ENTRY,
        without: "device nodes and fifos are found on a timer",
    },
    Hook {
        name: "inode-attributes",
        number: hook::INODE_SETATTR,
        role: Role::Security,
        alerting: true,
        attach: security!("inode_setattr" on "inode_setattr" ["dentry", "iattr"],
            "inode_setattr_idmap" on "inode_setattr" ["", "dentry", "iattr"]),
        required: true,
        needs: ENTRY,
        without: "who truncates a manifest is not seen",
    },
    Hook {
        name: "mount",
        number: hook::SB_MOUNT,
        role: Role::Security,
        alerting: true,
        attach: security!("sb_mount" on "sb_mount" ["", "path"]),
        required: true,
        needs: MOUNTS,
        without: "who mounts over a manifest is not seen",
    },
    Hook {
        name: "move-mount",
        number: hook::MOVE_MOUNT,
        role: Role::Security,
        alerting: true,
        attach: security!("move_mount" on "move_mount" ["path", "path"]),
        required: true,
        needs: MOUNTS,
        without: "who mounts with the new mount calls is not seen",
    },
    Hook {
        name: "umount",
        number: hook::SB_UMOUNT,
        role: Role::Security,
        alerting: true,
        attach: security!("sb_umount" on "sb_umount" ["vfsmount"]),
        required: true,
        needs: MOUNTS,
        without: "who unmounts is not seen",
    },
    Hook {
        name: "pivot-root",
        number: hook::PIVOT_ROOT,
        role: Role::Security,
        alerting: true,
        attach: security!("sb_pivotroot" on "sb_pivotroot" ["path", "path"]),
        required: false,
        needs: MOUNTS,
        without: "a changed root is found on a timer",
    },
    Hook {
        name: "mmap",
        number: hook::MMAP_FILE,
        role: Role::Security,
        alerting: true,
        attach: &[
            Attach {
                backend: Backend::Lsm,
                program: "lsm_mmap_file",
                target: "mmap_file",
                prototype: &["file", "", "", ""],
            },
            Attach {
                backend: Backend::Fentry,
                program: "fentry_mmap_file",
                target: "security_mmap_file",
                prototype: &["file", "", ""],
            },
            Attach {
                backend: Backend::Kprobe,
                program: "kprobe_mmap_file",
                target: "security_mmap_file",
                prototype: &["file", "", ""],
            },
        ],
        required: false,
        needs: FILE,
        without: "who writes through a mapping of an old descriptor is not seen",
    },
    Hook {
        name: "ptrace",
        number: hook::PTRACE,
        role: Role::Security,
        alerting: true,
        attach: security!("ptrace_access_check" on "ptrace_access_check" ["task_struct", ""]),
        required: false,
        needs: &[HEADER[0], HEADER[1], HEADER[2], HEADER[3], "task_tgid"],
        without: "who traces kubelet or the agent is not seen",
    },
    Hook {
        name: "namespaces",
        number: hook::NAMESPACES,
        role: Role::Security,
        alerting: false,
        attach: &[
            Attach {
                backend: Backend::Fentry,
                program: "fentry_switch_namespaces",
                target: "switch_task_namespaces",
                prototype: &["task_struct", "nsproxy"],
            },
            Attach {
                backend: Backend::Kprobe,
                program: "kprobe_switch_namespaces",
                target: "switch_task_namespaces",
                prototype: &["task_struct", "nsproxy"],
            },
        ],
        required: false,
        needs: &[HEADER[0], HEADER[1], HEADER[2], HEADER[3], "task_nsproxy", "nsproxy_mnt", "mnt_ns_inum"],
        without: "who enters a container's namespaces without executing a program there is not seen",
    },
    Hook {
        name: "socket",
        number: hook::SOCKET_CREATE,
        role: Role::Security,
        alerting: true,
        attach: security!("socket_create" on "socket_create" ["", "", "", ""]),
        required: false,
        needs: &HEADER,
        without: "a pause process that makes a socket is not seen",
    },
    Hook {
        name: "connect",
        number: hook::SOCKET_CONNECT,
        role: Role::Security,
        alerting: true,
        attach: security!("socket_connect" on "socket_connect" ["socket", "", ""]),
        required: false,
        needs: &HEADER,
        without: "where a pause process connects to is not seen",
    },
    Hook {
        name: "unix-connect",
        number: hook::UNIX_CONNECT,
        role: Role::Security,
        alerting: false,
        attach: security!("unix_connect" on "unix_stream_connect" ["sock", "sock", "sock"]),
        required: false,
        needs: &[
            HEADER[0],
            HEADER[1],
            HEADER[2],
            HEADER[3],
            "unix_dentry",
            "dentry_inode",
            "dentry_parent",
            "inode_ino",
            "inode_sb",
            "sb_dev",
        ],
        without: WITHOUT_REQUESTS,
    },
    Hook {
        name: "signal",
        number: hook::SIGNAL,
        role: Role::Context,
        alerting: true,
        attach: &[tracepoint("signal_generate", "signal_generate", &["", "kernel_siginfo", "task_struct"])],
        required: false,
        needs: &[HEADER[0], HEADER[1], HEADER[2], HEADER[3], "task_tgid", "siginfo_code"],
        without: "who stops the agent is not seen",
    },
    Hook {
        name: "bpf",
        number: hook::BPF,
        role: Role::Security,
        alerting: true,
        attach: security!("bpf" on "bpf" ["", ""]),
        required: false,
        needs: &[
            HEADER[0],
            HEADER[1],
            HEADER[2],
            HEADER[3],
            "task_files",
            "files_fdt",
            "fdt_max",
            "fdt_fd",
            "file_private",
            "bpf_map_id",
            "bpf_prog_aux",
            "bpf_prog_id",
        ],
        without: "who uses the agent's own programs and maps is not seen",
    },
    Hook {
        name: "io_uring",
        number: hook::IO_URING_SUBMIT,
        role: Role::Syscall,
        alerting: true,
        attach: &[tracepoint("io_uring_submit", "io_uring_submit_req", &["io_kiocb"])],
        required: false,
        needs: &["kiocb_opcode"],
        without: "changes made through io_uring are found on a timer and may stay unattributed",
    },
    Hook {
        name: "syscall-guard",
        number: hook::SYS_EXIT_GUARD,
        role: Role::Syscall,
        alerting: true,
        attach: &[tracepoint(GUARD, "sys_exit", &["pt_regs", ""])],
        required: false,
        needs: &[
            HEADER[0],
            HEADER[1],
            HEADER[2],
            HEADER[3],
            "task_files",
            "files_fdt",
            "fdt_max",
            "fdt_fd",
            "file_private",
            "bpf_map_id",
            "bpf_prog_aux",
            "bpf_prog_id",
            "x86_regs_orig_ax",
            "x86_regs_di",
            "x86_regs_si",
        ],
        without: "who uses the agent's own programs and maps, or traces it or kubelet, where a pause process connects to, and \
                  who asks a container runtime, is not seen",
    },
    Hook {
        name: "syscall",
        number: hook::SYS_EXIT,
        role: Role::Syscall,
        alerting: true,
        attach: &[tracepoint("sys_exit", "sys_exit", &["pt_regs", ""])],
        required: true,
        needs: &[
            HEADER[0],
            HEADER[1],
            HEADER[2],
            HEADER[3],
            "task_files",
            "files_fdt",
            "fdt_max",
            "fdt_fd",
            "file_mode",
            "file_flags",
            "file_inode",
            "file_mnt",
            "file_dentry",
            "inode_ino",
            "inode_sb",
            "sb_dev",
            "dentry_parent",
            "dentry_inode",
            "dentry_name",
            "vfsmount_root",
            "mount_mnt",
            "mount_parent",
            "mount_mountpoint",
            "x86_regs_orig_ax",
            "x86_regs_di",
            "x86_regs_si",
            "x86_regs_dx",
            "x86_regs_r10",
        ],
        without: "changes of manifests are found on a timer, and nobody is named",
    },
];

const WITHOUT_REQUESTS: &str = "exec probes of pods that come from the API server are not told from kubectl exec";

const WITHOUT_CHANGE: &str = "renames, links and writes through old descriptors are matched by the paths that callers \
                              passed: attribution is weaker, and path system calls cost more";

/// The program that the one at `sys_exit` calls: it is loaded, and attached to nothing.
pub const GUARD: &str = "sys_exit_guard";

/// The tracepoints that together see every change of an inode; with all of them the kernel filters path calls exactly.
pub const PRECISE: [u16; 3] = [hook::CTIME_SET, hook::CTIME_XCHG, hook::CTIME_SKIP];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_has_a_number_of_its_own() {
        let numbers: std::collections::BTreeSet<_> = HOOKS.iter().map(|hook| hook.number).collect();
        assert_eq!(numbers.len(), HOOKS.len());
        assert!(numbers.iter().all(|number| u32::from(*number) < hook::COUNT));
    }

    #[test]
    fn names_are_those_that_alerts_use() {
        for hook in HOOKS {
            assert_eq!(crate::decode::hook_name(hook.number), hook.name);
        }
    }
}
