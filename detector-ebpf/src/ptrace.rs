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

/// A system call on the process that its caller calls `pid` succeeded: it was attached to, or, where there is no request, its
/// memory was written.
///
/// Only callers in the initial pid namespace are looked at: nobody else can name a process outside of their own by number.
#[inline(always)]
pub fn called(task: Ptr, request: Option<u64>, pid: u32) {
    const PTRACE_ATTACH: u64 = 16;
    const PTRACE_SEIZE: u64 = 0x4206;
    if request.is_some_and(|request| request != PTRACE_ATTACH && request != PTRACE_SEIZE) {
        return;
    }
    let level: u32 = task.follow(offset!(task_thread_pid)).read(offset!(pid_level));
    // SAFETY: the value is not looked at.
    if level != 0 || unsafe { PROTECTED.get(pid) }.is_none() || (current_id() >> 32) as u32 == pid {
        return;
    }
    emit::fixed(Ring::Alerting, kind::PTRACE, hook::SYS_EXIT_GUARD, task, |record: *mut Ptrace| {
        // SAFETY: `record` points to reserved ring-buffer memory.
        unsafe {
            // When it began is not known here.
            (*record).target_start_ns = 0;
            (*record).target_tgid = pid;
            (*record).mode = ATTACH as u32;
        }
    });
}

// `security_ptrace_access_check(struct task_struct *child, unsigned int mode)`, since 2.6.30.
security::wrappers!(
    lsm_ptrace_access_check,
    fentry_ptrace_access_check,
    kprobe_ptrace_access_check,
    2,
    |args: [Ptr; 2], may: May| access(args[0], args[1].0 & 0xffff_ffff, may)
);
