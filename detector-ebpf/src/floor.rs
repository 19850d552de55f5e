//! Empty programs on the hooks that run most: the floor that the benchmark compares with.

use crate::{
    kernel::Ptr,
    security::{self, May},
};

/// `sys_exit(struct pt_regs *regs, long ret)`.
#[aya_ebpf::macros::btf_tracepoint(function = "sys_exit")]
pub fn floor(_ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
    0
}

security::lsm!(floor_lsm_open, 1, |_: [Ptr; 1], _: May| false);
security::probes!(floor_fentry_open, floor_kprobe_open, 1, |_: [Ptr; 1], _: May| false);
security::lsm!(floor_lsm_rename, 1, |_: [Ptr; 1], _: May| false);
security::probes!(floor_fentry_rename, floor_kprobe_rename, 1, |_: [Ptr; 1], _: May| false);
