//! Processes coming, changing program and going: context for everything else.

use aya_ebpf::{helpers::generated::bpf_probe_read_user, macros::btf_tracepoint, programs::BtfTracePointContext};
use detector_common::{
    ARGV_MAX, ARGV_TRUNCATED, EXE_DELETED, EXE_MEMFD, EXE_TMPFS, EXE_UPPER, Exec, Exit, Fork, KernelOffsets, hook,
    kind, scratch, setting,
};

use crate::{
    emit::{self, Ring},
    kernel::{self, Detail, Ptr, Structure as _, Typed},
    maps::{SCRATCH_LEN, offset, setting},
    namespaces, path, watched,
};

/// `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, since 3.4.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn process_exec(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the prototype, which the agent compares with the running kernel's.
    if exec(unsafe { Typed::arg(&ctx, 0) }, unsafe { Typed::arg(&ctx, 2) }).is_none() {
        emit::lost(hook::EXEC);
    }
    0
}

#[inline(always)]
fn exec(task: Typed, bprm: Typed) -> Option<()> {
    const BODY: usize = size_of::<Exec>();
    let scratch = emit::scratch(scratch::EXEC)?;
    let record = scratch.cast::<Exec>();
    let inner_pid = kernel::header(record.cast(), kind::EXEC, hook::EXEC, task, Detail::Full);
    let file = bprm.to(offset!(bprm_file));
    let inode = file.to(offset!(file_inode));
    let sb = inode.to(offset!(inode_sb));
    // SAFETY: the slot is longer than the body.
    let flags = Flags(unsafe { &raw mut (*record).flags });
    flags.set(provenance(inode, sb));
    // SAFETY: `record` lies in this hook's scratch slot.
    let path = unsafe { path::Length::new(&raw mut (*record).path_len) };
    flags.add(path::write_typed::<8, 16>(file, scratch, BODY, path));
    if path::memory(file, scratch, BODY, path) {
        flags.add(EXE_MEMFD);
    }
    let path_len = path.get();
    // SAFETY: as above.
    let argv_len = unsafe { path::Length::new(&raw mut (*record).argv_len) };
    argv(task, scratch.cast(), BODY + path_len, argv_len, flags);
    let parent = task.to(offset!(task_parent)).to(offset!(task_leader));
    let tty = task.to(offset!(task_signal)).to(offset!(signal_tty));
    if inode.field::<u32>(offset!(inode_nlink)) == 0 {
        flags.add(EXE_DELETED);
    }
    // SAFETY: the slot is longer than the body; the name lies on an 8-byte boundary there.
    unsafe {
        (*record).ino = inode.field(offset!(inode_ino));
        (*record).dev = sb.field(offset!(sb_dev));
        (*record).parent_tgid = parent.field(offset!(task_tgid));
        (*record).parent_start_ns = parent.field(offset!(task_start));
        *(&raw mut (*record).tty).cast::<[u64; 2]>() = tty.field(offset!(tty_name));
        (*record).inner_pid = inner_pid;
        namespaces::shared(task, task.to(offset!(task_nsproxy)), &raw mut (*record).shared);
    }
    // A container's own program may be one of these, and then it is an alert.
    const ALIEN: u32 = EXE_DELETED | EXE_UPPER | EXE_TMPFS | EXE_MEMFD;
    // SAFETY: as above.
    let alien = flags.get() & ALIEN != 0 && unsafe { (*record).header.mnt_ns } != setting(setting::HOST_MNT);
    let now = alien || enters(task, parent) || watched::sandbox() != 0;
    let ring = if now { Ring::ContextNow } else { Ring::Context };
    emit::scratched(ring, hook::EXEC, scratch, BODY + path_len + argv_len.get());
    Some(())
}

/// Flags that come together in map memory: of what is loaded from there the verifier knows nothing, so it follows what comes
/// behind once and not for each of them.
#[derive(Clone, Copy)]
struct Flags(*mut u32);

impl Flags {
    #[inline(always)]
    fn get(self) -> u32 {
        // SAFETY: a field of a record in a scratch slot.
        unsafe { core::ptr::read_volatile(self.0) }
    }

    #[inline(always)]
    fn set(self, flags: u32) {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(self.0, flags) };
    }

    #[inline(always)]
    fn add(self, flags: u32) {
        self.set(self.get() | flags);
    }
}

/// Where an executed file comes from, as far as its file system tells.
#[inline(always)]
fn provenance(inode: Typed, sb: Typed) -> u32 {
    /// `super_block.s_magic`.
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    const OVERLAYFS: u64 = 0x794c_7630;
    match sb.field::<u64>(offset!(sb_magic)) {
        TMPFS | RAMFS => EXE_TMPFS,
        // Since 4.13: `ovl_inode.__upperdentry` is set once there is a file in the upper layer.
        OVERLAYFS if offset!(ovl_upper) != KernelOffsets::MISSING as usize => {
            let around = Ptr(inode.address().0.wrapping_sub(offset!(ovl_inode)));
            if around.read::<usize>(offset!(ovl_upper)) == 0 { 0 } else { EXE_UPPER }
        }
        _ => 0,
    }
}

/// Whether the process lives in other namespaces than its parent: a container begins, or somebody enters one.
#[inline(always)]
fn enters(task: Typed, parent: Typed) -> bool {
    let level = |task: Typed| task.to(offset!(task_thread_pid)).field::<u32>(offset!(pid_level));
    let spaces = |task: Typed| task.field::<usize>(offset!(task_nsproxy));
    spaces(task) != spaces(parent) || level(task) != level(parent)
}

/// Copies the argument vector as the new program has it in memory, NUL-separated; its length into `written`.
#[inline(always)]
fn argv(task: Typed, out: *mut u8, at: usize, written: path::Length, flags: Flags) {
    let mm = task.to(offset!(task_mm));
    let start: usize = mm.field(offset!(mm_arg_start));
    let end: usize = mm.field(offset!(mm_arg_end));
    let mut len = end.wrapping_sub(start);
    if len > ARGV_MAX {
        len = ARGV_MAX;
        flags.add(ARGV_TRUNCATED);
    }
    written.set(len);
    let at = at & (SCRATCH_LEN / 2 - 1);
    // SAFETY: the mask keeps `at` in the lower half of the slot, and `len` is at most half of the upper one.
    let failed = unsafe { bpf_probe_read_user(out.add(at).cast(), written.get() as u32, start as *const _) };
    if failed != 0 {
        written.set(0);
    }
}

/// `sched_process_fork(struct task_struct *parent, struct task_struct *child)`, since 2.6.33. The child does not run yet.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn process_fork(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the prototype, which the agent compares with the running kernel's.
    unsafe { fork(Typed::arg(&ctx, 0), Typed::arg(&ctx, 1)) };
    0
}

#[inline(always)]
fn fork(task: Typed, child: Typed) {
    let tgid: u32 = child.field(offset!(task_tgid));
    if child.field::<u32>(offset!(task_pid)) != tgid {
        return; // A thread is no process.
    }
    let parent = child.to(offset!(task_parent)).to(offset!(task_leader));
    // A pause process makes none: whoever does is to be told at once.
    let ring = if watched::sandbox() != 0 { Ring::ContextNow } else { Ring::Context };
    emit::detailed(ring, kind::FORK, hook::FORK, task, Detail::Fork, |record: *mut Fork| {
        // SAFETY: `record` points to reserved ring-buffer memory.
        unsafe {
            (*record).child_tgid = tgid;
            (*record).child_start_ns = child.field(offset!(task_start));
            (*record).zero = 0;
            (*record).parent_tgid = parent.field(offset!(task_tgid));
            (*record).parent_start_ns = parent.field(offset!(task_start));
            (*record).zero2 = 0;
        }
    });
}

/// `sched_process_exit(struct task_struct *p, ...)`, since 2.6.33, for every thread.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    exit(unsafe { Typed::arg(&ctx, 0) });
    0
}

#[inline(always)]
fn exit(task: Typed) {
    // A thread that dies after a page fault changed something leaves nothing behind.
    watched::forget_touch(kernel::current_id());
    // Counted down before this tracepoint: zero when this was the last thread.
    if task.to(offset!(task_signal)).field::<u32>(offset!(signal_live)) != 0 {
        return;
    }
    emit::detailed(Ring::Context, kind::EXIT, hook::EXIT, task, Detail::Exit, |record: *mut Exit| {
        // SAFETY: `record` points to reserved ring-buffer memory.
        unsafe {
            (*record).code = task.field(offset!(task_exit_code));
            (*record).zero = 0;
        }
    });
}
