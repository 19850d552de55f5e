//! Reads of kernel memory: fields by offset, the acting task, the opened file.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_boot_ns,
        generated::bpf_probe_read_kernel,
    },
};
use detector_common::{Header, KernelOffsets};

use crate::maps::offset;

/// An address in kernel memory. Only ever read through `bpf_probe_read_kernel`, which fails on a bad one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ptr(pub usize);

impl Ptr {
    /// The value `offset` bytes on; zero when the address cannot be read.
    ///
    /// The helper clears its destination when it fails, so there is no branch for the verifier to follow: a chain of
    /// reads through a null pointer ends in zero, which the last reader checks.
    #[inline(always)]
    pub fn read<T: Copy>(self, offset: usize) -> T {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper checks the address, and writes `value` in any case. Callers read integers and arrays of them.
        unsafe {
            bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, (self.0 + offset) as *const _);
            value.assume_init()
        }
    }

    /// The pointer `offset` bytes on.
    #[inline(always)]
    pub fn follow(self, offset: usize) -> Self {
        Self(self.read(offset))
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

/// A structure in kernel memory, read field by field.
pub trait Structure: Copy {
    /// The field `offset` bytes on; zero when it cannot be read, or this kernel does not have it.
    fn field<T: Copy>(self, offset: usize) -> T;
    /// The structure that the field there points to.
    fn to(self, offset: usize) -> Self;
    /// Its address, for reads that the verifier cannot follow.
    fn address(self) -> Ptr;
}

impl Structure for Ptr {
    #[inline(always)]
    fn field<T: Copy>(self, offset: usize) -> T {
        self.read(offset)
    }

    #[inline(always)]
    fn to(self, offset: usize) -> Self {
        self.follow(offset)
    }

    #[inline(always)]
    fn address(self) -> Ptr {
        self
    }
}

/// A BTF-typed pointer, read by plain loads: an instruction a field, where the helper takes some eighty. For the hooks that
/// run most.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Typed(*const u8);

impl Typed {
    /// The `n`th argument of a BTF tracepoint.
    ///
    /// # Safety
    /// The prototype has that argument, and it points to the structure that the offsets of its fields are resolved in.
    #[inline(always)]
    pub unsafe fn arg(ctx: &aya_ebpf::programs::BtfTracePointContext, n: usize) -> Self {
        Self(ctx.arg(n))
    }
}

impl Typed {
    /// An argument of an LSM or fentry program.
    ///
    /// # Safety
    /// `pointer` was loaded from the program's context, and points to the structure that the offsets are resolved in.
    #[inline(always)]
    pub unsafe fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }
}

impl Structure for Typed {
    #[inline(always)]
    fn field<T: Copy>(self, offset: usize) -> T {
        if offset == KernelOffsets::MISSING as usize {
            // SAFETY: callers read integers, pointers and arrays of them. A constant to the verifier: one branch is left.
            return unsafe { MaybeUninit::zeroed().assume_init() };
        }
        // SAFETY: promised to `arg`; a fault reads as zero.
        unsafe { load(self.0, offset) }
    }

    #[inline(always)]
    fn to(self, offset: usize) -> Self {
        Self(self.field(offset))
    }

    #[inline(always)]
    fn address(self) -> Ptr {
        Ptr(self.0 as usize)
    }
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

/// How much of the header a record needs. Forks and exits are most of what happens on a node, and what they leave out the
/// agent knows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    Full,
    /// All but the namespaces.
    Fork,
    /// Which process, and when.
    Exit,
    /// When: what happens is not the current task's doing.
    Nobody,
}

/// Writes a record's header about `task`, which is the current one. Returns its pid in the namespace that it lives in, where
/// the header has namespaces.
///
/// What cannot be read is zero: a header is worth more than none.
#[inline(always)]
pub fn header(out: *mut Header, kind: u16, hook: u16, task: impl Structure, detail: Detail) -> u32 {
    let nobody = detail == Detail::Nobody;
    let id = if nobody { 0 } else { current_id() };
    // SAFETY: `out` points to a header's worth of map or ring-buffer memory; the helpers have no preconditions.
    unsafe {
        (*out).kind = kind;
        (*out).hook = hook;
        (*out).len = 0;
        (*out).time_ns = bpf_ktime_get_boot_ns();
        (*out).start_ns = if nobody { 0 } else { task.to(offset!(task_leader)).field(offset!(task_start)) };
        (*out).tgid = (id >> 32) as u32;
        (*out).tid = id as u32;
        // The name as two words: it lies on an 8-byte boundary, which its type does not say.
        let comm = (&raw mut (*out).comm).cast::<[u64; 2]>();
        if detail == Detail::Exit || nobody {
            (*out).cgroup = 0;
            (*out).uid = 0;
            (*out).login_uid = u32::MAX;
            *comm = [0; 2];
        } else {
            (*out).cgroup = bpf_get_current_cgroup_id();
            (*out).uid = task.to(offset!(task_cred)).field(offset!(cred_uid));
            (*out).login_uid = task.field(offset!(task_loginuid));
            *comm = task.field(offset!(task_comm));
        }
        if detail == Detail::Full {
            (*out).mnt_ns = task.to(offset!(task_nsproxy)).to(offset!(nsproxy_mnt)).field(offset!(mnt_ns_inum));
            // `struct upid { int nr; struct pid_namespace *ns; }`, unchanged since 2.6.24.
            let [nr, ns] = upid(task);
            (*out).pid_ns = Ptr(ns as usize).read(offset!(pid_ns_inum));
            nr as u32
        } else {
            (*out).mnt_ns = 0;
            (*out).pid_ns = 0;
            0
        }
    }
}

/// The deepest `struct upid` of the task's pid: which it has in the namespace that it lives in.
#[inline(always)]
fn upid(task: impl Structure) -> [u64; 2] {
    let pid = task.to(offset!(task_thread_pid));
    let level = pid.field::<u32>(offset!(pid_level)) as usize;
    Ptr(pid.address().0 + level * size_of::<[u64; 2]>()).read(offset!(pid_numbers))
}

/// The open file behind a descriptor of the current task; null when there is none.
#[inline(always)]
pub fn file_of(task: Ptr, fd: u32) -> Ptr {
    let table = task.follow(offset!(task_files)).follow(offset!(files_fdt));
    if fd >= table.read::<u32>(offset!(fdt_max)) {
        return Ptr(0);
    }
    table.follow(offset!(fdt_fd)).follow(fd as usize * size_of::<usize>())
}

/// The `n`th argument of a raw tracepoint as an untyped address.
#[inline(always)]
pub fn arg(ctx: &aya_ebpf::programs::BtfTracePointContext, n: usize) -> usize {
    // SAFETY: the context of a BTF tracepoint is an array of u64 arguments, as long as the prototype.
    unsafe { *ctx.as_ptr().cast::<u64>().add(n) as usize }
}
