//! New cgroups: the id that every record carries, and the path that names the container.

use aya_ebpf::{helpers::generated::bpf_probe_read_kernel_str, macros::btf_tracepoint, programs::BtfTracePointContext};
use detector_common::{Cgroup, PATH_MAX, hook, kind, scratch};

use crate::{
    emit::{self, Ring},
    kernel::{self, Detail, Ptr, arg, current},
    maps::offset,
};

/// `cgroup_mkdir(struct cgroup *cgrp, const char *path)`, since 4.19.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    if made(Ptr(arg(&ctx, 0)), Ptr(arg(&ctx, 1))).is_none() {
        emit::lost(hook::CGROUP_MKDIR);
    }
    0
}

#[inline(always)]
fn made(cgroup: Ptr, path: Ptr) -> Option<()> {
    const BODY: usize = size_of::<Cgroup>();
    let id = cgroup.follow(offset!(cgroup_kn)).read(offset!(kn_id));
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
        (*record).id = id;
        (*record).flags = 0;
        (*record).path_len = len as u16;
        (*record).zero = [0; 2];
    }
    emit::scratched(Ring::Context, hook::CGROUP_MKDIR, scratch, BODY + len);
    Some(())
}
