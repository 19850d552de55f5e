//! Cgroups: the id that every record carries, the path that names the container, who is moved into which.
//!
//! All three look at the v2 hierarchy alone: ids of the v1 hierarchies beside it collide with its own.

use aya_ebpf::{helpers::generated::bpf_probe_read_kernel_str, macros::btf_tracepoint, programs::BtfTracePointContext};
use detector_common::{Cgroup, CgroupGone, CgroupMove, PATH_MAX, hook, kind, scratch};

use crate::{
    emit::{self, Ring},
    kernel::{self, Detail, Ptr, arg, current},
    maps::offset,
};

/// `cgroup_mkdir(struct cgroup *cgrp, const char *path)`, since 4.19.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup = Ptr(arg(&ctx, 0));
    if is_v2(cgroup) && made(cgroup, Ptr(arg(&ctx, 1))).is_none() {
        emit::lost(hook::CGROUP_MKDIR);
    }
    0
}

/// Whether a cgroup belongs to the default hierarchy, whose number is 0.
#[inline(always)]
fn is_v2(cgroup: Ptr) -> bool {
    cgroup.follow(offset!(cgroup_root)).read::<u32>(offset!(cgroup_root_hierarchy)) == 0
}

#[inline(always)]
fn id(cgroup: Ptr) -> u64 {
    cgroup.follow(offset!(cgroup_kn)).read(offset!(kn_id))
}

#[inline(always)]
fn made(cgroup: Ptr, path: Ptr) -> Option<()> {
    const BODY: usize = size_of::<Cgroup>();
    let scratch = emit::scratch(scratch::CGROUP)?;
    let record = scratch.cast::<Cgroup>();
    kernel::header(record.cast(), kind::CGROUP, hook::CGROUP_MKDIR, current(), Detail::Full);
    // SAFETY: the slot is longer than the body and the longest path together.
    let read = unsafe {
        bpf_probe_read_kernel_str(scratch.cast::<u8>().add(BODY).cast(), PATH_MAX as u32, path.0 as *const _)
    };
    if read <= 0 {
        return None;
    }
    let len = read as usize & (2 * PATH_MAX - 1);
    // SAFETY: the slot is longer than the body.
    unsafe {
        (*record).id = id(cgroup);
        (*record).flags = 0;
        (*record).path_len = len as u16;
        (*record).zero = [0; 2];
    }
    // A container is about to start: what describes it must be read before it is gone.
    emit::scratched(Ring::ContextNow, hook::CGROUP_MKDIR, scratch, BODY + len);
    Some(())
}

/// `cgroup_rmdir(struct cgroup *cgrp, const char *path)`, since 4.19.
#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup = Ptr(arg(&ctx, 0));
    if is_v2(cgroup) {
        emit::fixed(Ring::Context, kind::CGROUP_GONE, hook::CGROUP_RMDIR, current(), |record: *mut CgroupGone| {
            // SAFETY: `record` points to reserved ring-buffer memory.
            unsafe { (*record).id = id(cgroup) };
        });
    }
    0
}

/// `cgroup_attach_task(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup)`, since 4.19. Not
/// for forks.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn cgroup_attach(ctx: BtfTracePointContext) -> i32 {
    let (cgroup, task) = (Ptr(arg(&ctx, 0)), Ptr(arg(&ctx, 2)));
    if is_v2(cgroup) {
        emit::fixed(Ring::ContextNow, kind::CGROUP_MOVE, hook::CGROUP_ATTACH, current(), |record: *mut CgroupMove| {
            // SAFETY: `record` points to reserved ring-buffer memory.
            unsafe {
                (*record).id = id(cgroup);
                (*record).target_start_ns = task.follow(offset!(task_leader)).read(offset!(task_start));
                (*record).target_tgid = task.read(offset!(task_tgid));
                (*record).zero = 0;
            }
        });
    }
    0
}
