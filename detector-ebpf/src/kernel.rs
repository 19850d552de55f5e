//! Reads of kernel memory: fields by offset, the acting task, the opened file.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task,
        bpf_ktime_get_boot_ns, bpf_probe_read_kernel,
    },
};
use detector_common::{COMM_LEN, Header};

use crate::maps::offset;

/// An address in kernel memory. Only ever read through `bpf_probe_read_kernel`, which fails on a bad one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ptr(pub usize);

impl Ptr {
    /// The value `offset` bytes on; `None` when the address cannot be read.
    #[inline(always)]
    pub fn read<T>(self, offset: usize) -> Option<T> {
        // SAFETY: bpf_probe_read_kernel checks the address; it fails rather than faults.
        unsafe { bpf_probe_read_kernel((self.0 + offset) as *const T) }.ok()
    }

    /// The non-null pointer `offset` bytes on.
    #[inline(always)]
    pub fn follow(self, offset: usize) -> Option<Self> {
        self.read::<usize>(offset).filter(|address| *address != 0).map(Self)
    }
}

/// A field of a BTF-typed argument, read directly: the verifier knows the type and the constant offset.
///
/// # Safety
/// `base` is an argument of the hooked function of the type that `offset` was resolved in, and `T` is the field's type.
#[inline(always)]
pub unsafe fn load<T: Copy>(base: *const u8, offset: usize) -> T {
    // SAFETY: promised by the caller; the kernel turns a faulting load into zero.
    unsafe { core::ptr::read_volatile(base.add(offset).cast::<T>()) }
}

/// The current task.
#[inline(always)]
pub fn current() -> Ptr {
    // SAFETY: the helper has no preconditions.
    Ptr(unsafe { bpf_get_current_task() } as usize)
}

/// `tgid << 32 | tid` of the current task.
#[inline(always)]
pub fn current_id() -> u64 {
    bpf_get_current_pid_tgid()
}

/// Writes a record's header about `task`, which is the current one.
///
/// What cannot be read is zero (or all ones for the login uid): a header is worth more than none.
#[inline(always)]
pub fn header(out: *mut Header, kind: u16, hook: u16, task: Ptr) {
    let id = current_id();
    let start = task.follow(offset!(task_leader)).and_then(|leader| leader.read(offset!(task_start)));
    let uid = task.follow(offset!(task_cred)).and_then(|cred| cred.read(offset!(cred_uid)));
    let mnt_ns = task
        .follow(offset!(task_nsproxy))
        .and_then(|proxy| proxy.follow(offset!(nsproxy_mnt)))
        .and_then(|ns| ns.read(offset!(mnt_ns_inum)));
    // SAFETY: `out` points to a header's worth of map or ring-buffer memory; the helpers have no preconditions.
    unsafe {
        (*out).kind = kind;
        (*out).hook = hook;
        (*out).len = 0;
        (*out).time_ns = bpf_ktime_get_boot_ns();
        (*out).start_ns = start.unwrap_or(0);
        (*out).cgroup = bpf_get_current_cgroup_id();
        (*out).tgid = (id >> 32) as u32;
        (*out).tid = id as u32;
        (*out).uid = uid.unwrap_or(0);
        (*out).login_uid = task.read(offset!(task_loginuid)).unwrap_or(u32::MAX);
        (*out).mnt_ns = mnt_ns.unwrap_or(0);
        (*out).pid_ns = pid_ns(task).unwrap_or(0);
        (*out).comm = bpf_get_current_comm().unwrap_or([0; COMM_LEN]);
    }
}

/// Inode number of the pid namespace that the task lives in: that of its pid's deepest level.
#[inline(always)]
fn pid_ns(task: Ptr) -> Option<u32> {
    /// Size of `struct upid { int nr; struct pid_namespace *ns; }`, unchanged since 2.6.24.
    const UPID_SIZE: usize = 16;
    let pid = task.follow(offset!(task_thread_pid))?;
    let level: u32 = pid.read(offset!(pid_level))?;
    let upid = Ptr(pid.0 + offset!(pid_numbers) + level as usize * UPID_SIZE);
    upid.follow(offset!(upid_ns))?.read(offset!(pid_ns_inum))
}

/// The open file behind a descriptor of the current task.
#[inline(always)]
pub fn file_of(task: Ptr, fd: u32) -> Option<Ptr> {
    let table = task.follow(offset!(task_files))?.follow(offset!(files_fdt))?;
    let max: u32 = table.read(offset!(fdt_max))?;
    if fd >= max {
        return None;
    }
    table.follow(offset!(fdt_fd))?.follow(fd as usize * size_of::<usize>())
}

/// The `n`th argument of a raw tracepoint as an untyped address.
#[inline(always)]
pub fn arg(ctx: &aya_ebpf::programs::BtfTracePointContext, n: usize) -> usize {
    // SAFETY: the context of a BTF tracepoint is an array of u64 arguments, as long as the prototype.
    unsafe { *ctx.as_ptr().cast::<u64>().add(n) as usize }
}
