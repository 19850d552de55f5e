//! The table of hooks: what each needs, and what is lost without it.

use detector_common::hook;

/// A kernel program and where it attaches.
#[derive(Debug)]
pub struct Hook {
    /// As doctor, traces and alerts call it: [`crate::decode::hook_name`] of `number`.
    pub name: &'static str,
    pub number: u16,
    /// The program in the object file.
    pub program: &'static str,
    /// The tracepoint that it attaches to.
    pub tracepoint: &'static str,
    /// Without it the main job, to catch who changes a manifest, cannot be done.
    pub required: bool,
    /// Fields of `KernelOffsets` that it reads, those of every record apart.
    pub needs: &'static [&'static str],
    /// What its absence means.
    pub without: &'static str,
}

/// Fields that the header of every record needs.
const HEADER: [&str; 4] = ["task_leader", "task_start", "task_cred", "cred_uid"];

/// Every hook, in the order of attachment: processes first, so that no act is seen before its process.
pub const HOOKS: &[Hook] = &[
    Hook {
        name: "fork",
        number: hook::FORK,
        program: "process_fork",
        tracepoint: "sched_process_fork",
        required: false,
        needs: &[HEADER[0], HEADER[1], HEADER[2], HEADER[3], "task_tgid", "task_pid", "task_parent"],
        without: "new processes are known from their acts alone: lineage has gaps",
    },
    Hook {
        name: "exec",
        number: hook::EXEC,
        program: "process_exec",
        tracepoint: "sched_process_exec",
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
        program: "process_exit",
        tracepoint: "sched_process_exit",
        required: false,
        needs: &[HEADER[0], HEADER[1], HEADER[2], HEADER[3], "task_signal", "signal_live"],
        without: "the process table is bounded by its size alone",
    },
    Hook {
        name: "cgroup",
        number: hook::CGROUP_MKDIR,
        program: "cgroup_mkdir",
        tracepoint: "cgroup_mkdir",
        required: false,
        needs: &["cgroup_kn", "kn_id"],
        without: "processes in containers started from now on are of unknown origin",
    },
    Hook {
        name: "inode-change-set",
        number: hook::CTIME_SET,
        program: "ctime_set",
        tracepoint: "inode_set_ctime_to_ts",
        required: false,
        needs: &["inode_ino", "inode_sb", "sb_dev", "task_flags"],
        without: WITHOUT_CHANGE,
    },
    Hook {
        name: "inode-change-exchange",
        number: hook::CTIME_XCHG,
        program: "ctime_xchg",
        tracepoint: "ctime_ns_xchg",
        required: false,
        needs: &["inode_ino", "inode_sb", "sb_dev", "task_flags"],
        without: WITHOUT_CHANGE,
    },
    Hook {
        name: "inode-change-repeat",
        number: hook::CTIME_SKIP,
        program: "ctime_skip",
        tracepoint: "ctime_xchg_skip",
        required: false,
        needs: &["inode_ino", "inode_sb", "sb_dev", "task_flags"],
        without: WITHOUT_CHANGE,
    },
    Hook {
        name: "io_uring",
        number: hook::IO_URING_SUBMIT,
        program: "io_uring_submit",
        tracepoint: "io_uring_submit_req",
        required: false,
        needs: &["kiocb_opcode"],
        without: "changes made through io_uring are found on a timer and may stay unattributed",
    },
    Hook {
        name: "syscall",
        number: hook::SYS_EXIT,
        program: "sys_exit",
        tracepoint: "sys_exit",
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

const WITHOUT_CHANGE: &str = "renames, links and writes through old descriptors are matched by the paths that callers \
                              passed: attribution is weaker, and path system calls cost more";

/// The tracepoints that together see every change of an inode; with all of them the kernel filters path calls exactly.
pub const PRECISE: [u16; 3] = [hook::CTIME_SET, hook::CTIME_XCHG, hook::CTIME_SKIP];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_alerts_use() {
        for hook in HOOKS {
            assert_eq!(crate::decode::hook_name(hook.number), hook.name);
        }
    }
}
