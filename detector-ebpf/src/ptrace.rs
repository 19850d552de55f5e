//! Access to the memory of the agent and of kubelets: ptrace, process_vm_writev, /proc/<pid>/mem.

use detector_common::{Ptrace, hook, kind};

use crate::{
    emit::{self, Ring},
    kernel::{Ptr, current, current_id},
    maps::{PROTECTED, offset},
    security::{self, May},
};

/// `PTRACE_MODE_ATTACH`: more than reading.
const ATTACH: usize = 2;

#[inline(always)]
fn access(child: Ptr, mode: usize, _may: May) -> bool {
    if mode & ATTACH == 0 {
        return false;
    }
    let tgid: u32 = child.read(offset!(task_tgid));
    // SAFETY: the value is not looked at.
    if unsafe { PROTECTED.get(tgid) }.is_none() || (current_id() >> 32) as u32 == tgid {
        return false;
    }
    emit::fixed(Ring::Alerting, kind::PTRACE, hook::PTRACE, current(), |record: *mut Ptrace| {
        // SAFETY: `record` points to reserved ring-buffer memory.
        unsafe {
            (*record).target_start_ns = child.follow(offset!(task_leader)).read(offset!(task_start));
            (*record).target_tgid = tgid;
            (*record).mode = mode as u32;
        }
    });
    false
}

// `security_ptrace_access_check(struct task_struct *child, unsigned int mode)`, since 2.6.30.
security::wrappers!(
    lsm_ptrace_access_check,
    fentry_ptrace_access_check,
    kprobe_ptrace_access_check,
    2,
    |args: [Ptr; 2], may: May| access(args[0], args[1].0 & 0xffff_ffff, may)
);
