//! A watched inode changes: the kernel moves its change time.
//!
//! Since 6.13 three tracepoints see every such move, on every file system: content (through any descriptor, mapping or
//! io_uring request), directory entries, links. They run in the acting thread, before the system call returns; what
//! kubelet can see is complete at its exit, which [`crate::syscall`] reports.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use detector_common::{Change, WatchKey, hook, kind, setting, watch};

use crate::{
    emit::{self, Ring},
    kernel::{current, current_id, load},
    maps::{offset, setting},
    watched,
};

/// `inode_set_ctime_to_ts(struct inode *inode, struct timespec64 *ctime)`, since 6.13.
#[btf_tracepoint(function = "inode_set_ctime_to_ts")]
pub fn ctime_set(ctx: BtfTracePointContext) -> i32 {
    changed(&ctx, hook::CTIME_SET)
}

/// `ctime_ns_xchg(struct inode *inode, u32 old, u32 new, u32 cur)`, since 6.13.
#[btf_tracepoint(function = "ctime_ns_xchg")]
pub fn ctime_xchg(ctx: BtfTracePointContext) -> i32 {
    changed(&ctx, hook::CTIME_XCHG)
}

/// `ctime_xchg_skip(struct inode *inode, struct timespec64 *ctime)`, since 6.13: a second change within one tick.
#[btf_tracepoint(function = "ctime_xchg_skip")]
pub fn ctime_skip(ctx: BtfTracePointContext) -> i32 {
    changed(&ctx, hook::CTIME_SKIP)
}

#[inline(always)]
fn changed(ctx: &BtfTracePointContext, hook: u16) -> i32 {
    let inode: *const u8 = ctx.arg(0);
    // SAFETY: the first argument is a `struct inode *`, which has a super block for as long as it lives.
    let key = unsafe {
        let sb: *const u8 = load(inode, offset!(inode_sb));
        WatchKey::new(load(sb, offset!(sb_dev)), load(inode, offset!(inode_ino)))
    };
    let Some(watch) = watched::flags(&key) else { return 0 };
    /// Threads that never leave a system call: io_uring workers and kernel threads.
    const PF_IO_WORKER_OR_KTHREAD: u32 = 0x0000_0010 | 0x0020_0000;
    let task = current();
    if setting(setting::SYSCALLS) != 0 && task.read::<u32>(offset!(task_flags)) & PF_IO_WORKER_OR_KTHREAD == 0 {
        watched::touch(current_id(), key, watch);
    }
    if watch & (watch::FILE | watch::DIR) != 0 {
        emit::fixed(Ring::Alerting, kind::CHANGE, hook, task, |record: *mut Change| {
            // SAFETY: `record` points to reserved ring-buffer memory.
            unsafe {
                (*record).ino = key.ino;
                (*record).dev = key.dev;
                (*record).watch = watch;
            }
        });
    }
    0
}
