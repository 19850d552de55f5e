//! Processes that leave their namespaces for others: `setns`, `unshare`.

use detector_common::{Namespaces, Shared, hook, kind};

use crate::{
    emit::{self, Ring},
    kernel::{Ptr, Structure, current},
    maps::offset,
    security,
};

/// Writes the namespaces that a pod's containers may share: those of `nsproxy`, and the user namespace of `task`.
///
/// # Safety
/// `out` points to map or ring-buffer memory.
#[inline(always)]
pub unsafe fn shared<S: Structure>(task: S, nsproxy: S, out: *mut Shared) {
    // SAFETY: promised by the caller.
    unsafe {
        (*out).net = nsproxy.to(offset!(nsproxy_net)).field(offset!(net_inum));
        (*out).ipc = nsproxy.to(offset!(nsproxy_ipc)).field(offset!(ipc_ns_inum));
        (*out).uts = nsproxy.to(offset!(nsproxy_uts)).field(offset!(uts_ns_inum));
        (*out).cgroup = nsproxy.to(offset!(nsproxy_cgroup)).field(offset!(cgroup_ns_inum));
        (*out).user = task.to(offset!(task_cred)).to(offset!(cred_user_ns)).field(offset!(user_ns_inum));
    }
}

/// Reports that `task` lives in the namespaces of `nsproxy` from now on.
#[inline(always)]
pub fn report(task: Ptr, nsproxy: Ptr, hook: u16) {
    emit::fixed(Ring::ContextNow, kind::NAMESPACES, hook, task, |record: *mut Namespaces| {
        // SAFETY: `record` points to reserved ring-buffer memory.
        unsafe {
            (*record).mnt = nsproxy.follow(offset!(nsproxy_mnt)).read(offset!(mnt_ns_inum));
            (*record).pid_children = nsproxy.follow(offset!(nsproxy_pid_children)).read(offset!(pid_ns_inum));
            shared(task, nsproxy, &raw mut (*record).shared);
            (*record).zero = 0;
        }
    });
}

// `switch_task_namespaces(struct task_struct *p, struct nsproxy *new)`, since 2.6.24. Without new ones when a task ends.
security::probes!(fentry_switch_namespaces, kprobe_switch_namespaces, 2, |args: [Ptr; 2], _may| {
    if args[1].0 != 0 && args[0] == current() {
        report(args[0], args[1], hook::NAMESPACES);
    }
});
