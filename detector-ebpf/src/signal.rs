//! Signals for the agent that may end or stop it.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use detector_common::{Signal, hook, kind, setting};

use crate::{
    emit::{self, Ring},
    kernel::{Ptr, Structure as _, Typed, arg, current, current_id},
    maps::{offset, setting},
};

/// `SI_KERNEL`.
const KERNEL: i32 = 0x80;
const SIGKILL: u32 = 9;
const SIGSTOP: u32 = 19;
/// SIGCHLD, SIGCONT, SIGURG, SIGWINCH and SIGIO: they neither end nor stop anybody.
const HARMLESS: u64 = 1 << 17 | 1 << 18 | 1 << 23 | 1 << 28 | 1 << 29;

/// `signal_generate(int sig, struct kernel_siginfo *info, struct task_struct *task, int group, int result)`, since 2.6.33, in the
/// sending thread. `info` is 0 or 1 where there is none.
#[btf_tracepoint(function = "signal_generate")]
pub fn signal_generate(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the prototype, which the agent compares with the running kernel's.
    let target = unsafe { Typed::arg(&ctx, 2) };
    let tgid: u32 = target.field(offset!(task_tgid));
    if tgid != setting(setting::SELF) || (current_id() >> 32) as u32 == tgid {
        return 0;
    }
    let signal = arg(&ctx, 0) as u32;
    if signal > 63 || HARMLESS >> signal & 1 != 0 {
        return 0;
    }
    /// `SEND_SIG_NOINFO` and `SEND_SIG_PRIV`.
    const NO_INFO: usize = 0;
    const PRIV: usize = 1;
    let code = match arg(&ctx, 1) {
        NO_INFO => 0,
        PRIV => KERNEL,
        info => Ptr(info).read(offset!(siginfo_code)),
    };
    // What the kernel sends comes in the name of whoever runs, who has nothing to do with it: timers, terminals. But memory that
    // runs out ends processes, and who attaches to one stops it.
    if code > 0 && signal != SIGKILL && signal != SIGSTOP {
        return 0;
    }
    let result = arg(&ctx, 4) as u32;
    let (group, start) = (arg(&ctx, 3) as u32, target.to(offset!(task_leader)).field(offset!(task_start)));
    emit::fixed(Ring::Alerting, kind::SIGNAL, hook::SIGNAL, current(), |record: *mut Signal| {
        // SAFETY: `record` points to reserved ring-buffer memory.
        unsafe {
            (*record).target_start_ns = start;
            (*record).target_tgid = tgid;
            (*record).signal = signal;
            (*record).code = code;
            (*record).group = group;
            (*record).result = result;
            (*record).zero = 0;
        }
    });
    0
}
