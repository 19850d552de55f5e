//! Where fields lie in the running kernel's structures.

macro_rules! offsets {
    ($($(#[$doc:meta])* $field:ident = $ty:literal . $path:literal;)*) => {
        /// Byte offsets of kernel fields, resolved from the running kernel's BTF and written into the read-only
        /// `OFFSETS` global before load, so that the verifier sees constants. [`KernelOffsets::MISSING`] marks a
        /// field that this kernel does not have.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct KernelOffsets {
            $($(#[$doc])* pub $field: u32,)*
        }

        impl KernelOffsets {
            /// Offset of a field that the running kernel does not have.
            pub const MISSING: u32 = u32::MAX;
            /// Every field: its name here, the kernel's type, and the member path inside it.
            pub const FIELDS: &'static [(&'static str, &'static str, &'static str)] =
                &[$((stringify!($field), $ty, $path),)*];
            /// All fields missing.
            pub const NONE: Self = Self { $($field: Self::MISSING,)* };

            /// The field that [`Self::FIELDS`] lists at `index`, or `None` past the end.
            pub fn field_mut(&mut self, index: usize) -> Option<&mut u32> {
                let fields = [$(&mut self.$field,)*];
                fields.into_iter().nth(index)
            }

            /// The offset of the field called `name`, or `None` when there is no such field here.
            #[must_use]
            pub fn get(&self, name: &str) -> Option<u32> {
                match name {
                    $(stringify!($field) => Some(self.$field),)*
                    _ => None,
                }
            }
        }
    };
}

offsets! {
    task_tgid = "task_struct"."tgid";
    task_pid = "task_struct"."pid";
    task_flags = "task_struct"."flags";
    task_leader = "task_struct"."group_leader";
    task_parent = "task_struct"."real_parent";
    task_start = "task_struct"."start_boottime";
    task_cred = "task_struct"."cred";
    task_loginuid = "task_struct"."loginuid";
    task_nsproxy = "task_struct"."nsproxy";
    task_thread_pid = "task_struct"."thread_pid";
    task_files = "task_struct"."files";
    task_mm = "task_struct"."mm";
    task_signal = "task_struct"."signal";
    task_exit_code = "task_struct"."exit_code";
    task_comm = "task_struct"."comm";
    /// `thread_info.status` of x86: says whether the current system call is a 32-bit one.
    task_ti_status = "task_struct"."thread_info.status";
    cred_uid = "cred"."uid";
    nsproxy_mnt = "nsproxy"."mnt_ns";
    nsproxy_net = "nsproxy"."net_ns";
    nsproxy_ipc = "nsproxy"."ipc_ns";
    nsproxy_uts = "nsproxy"."uts_ns";
    nsproxy_cgroup = "nsproxy"."cgroup_ns";
    nsproxy_pid_children = "nsproxy"."pid_ns_for_children";
    cred_user_ns = "cred"."user_ns";
    net_inum = "net"."ns.inum";
    ipc_ns_inum = "ipc_namespace"."ns.inum";
    uts_ns_inum = "uts_namespace"."ns.inum";
    cgroup_ns_inum = "cgroup_namespace"."ns.inum";
    user_ns_inum = "user_namespace"."ns.inum";
    mnt_ns_inum = "mnt_namespace"."ns.inum";
    pid_level = "pid"."level";
    pid_numbers = "pid"."numbers";
    upid_nr = "upid"."nr";
    upid_ns = "upid"."ns";
    pid_ns_inum = "pid_namespace"."ns.inum";
    signal_live = "signal_struct"."live";
    signal_tty = "signal_struct"."tty";
    tty_name = "tty_struct"."name";
    mm_exe_file = "mm_struct"."exe_file";
    mm_arg_start = "mm_struct"."arg_start";
    mm_arg_end = "mm_struct"."arg_end";
    files_fdt = "files_struct"."fdt";
    fdt_max = "fdtable"."max_fds";
    fdt_fd = "fdtable"."fd";
    file_mode = "file"."f_mode";
    file_flags = "file"."f_flags";
    file_inode = "file"."f_inode";
    file_mnt = "file"."f_path.mnt";
    file_dentry = "file"."f_path.dentry";
    inode_ino = "inode"."i_ino";
    inode_sb = "inode"."i_sb";
    inode_mode = "inode"."i_mode";
    inode_rdev = "inode"."i_rdev";
    inode_nlink = "inode"."i_nlink";
    sb_dev = "super_block"."s_dev";
    sb_magic = "super_block"."s_magic";
    /// Where overlayfs keeps what it knows of an inode: around it.
    ovl_inode = "ovl_inode"."vfs_inode";
    ovl_upper = "ovl_inode"."__upperdentry";
    file_private = "file"."private_data";
    bpf_map_id = "bpf_map"."id";
    bpf_prog_aux = "bpf_prog"."aux";
    bpf_prog_id = "bpf_prog_aux"."id";
    bpf_link_id = "bpf_link"."id";
    siginfo_code = "kernel_siginfo"."si_code";
    path_mnt = "path"."mnt";
    path_dentry = "path"."dentry";
    iattr_valid = "iattr"."ia_valid";
    dentry_parent = "dentry"."d_parent";
    dentry_inode = "dentry"."d_inode";
    dentry_name = "dentry"."d_name.name";
    vfsmount_root = "vfsmount"."mnt_root";
    mount_mnt = "mount"."mnt";
    mount_parent = "mount"."mnt_parent";
    mount_mountpoint = "mount"."mnt_mountpoint";
    bprm_file = "linux_binprm"."file";
    kiocb_opcode = "io_kiocb"."opcode";
    cgroup_kn = "cgroup"."kn";
    cgroup_root = "cgroup"."root";
    cgroup_root_hierarchy = "cgroup_root"."hierarchy_id";
    kn_id = "kernfs_node"."id";
    sock_family = "sock_common"."skc_family";
    sock_daddr = "sock_common"."skc_daddr";
    sock_rcv_saddr = "sock_common"."skc_rcv_saddr";
    sock_v6_daddr = "sock_common"."skc_v6_daddr";
    sock_v6_rcv_saddr = "sock_common"."skc_v6_rcv_saddr";
    sock_dport = "sock_common"."skc_dport";
    sock_num = "sock_common"."skc_num";
    sock_net = "sock_common"."skc_net.net";
    socket_sk = "socket"."sk";
    unix_dentry = "unix_sock"."path.dentry";
    unix_peer = "unix_sock"."peer";
    x86_regs_orig_ax = "pt_regs"."orig_ax";
    x86_regs_bx = "pt_regs"."bx";
    x86_regs_cx = "pt_regs"."cx";
    x86_regs_di = "pt_regs"."di";
    x86_regs_si = "pt_regs"."si";
    x86_regs_dx = "pt_regs"."dx";
    x86_regs_r10 = "pt_regs"."r10";
}
