//! One body a behaviour, thin wrappers for each way to attach to the same security hook.
//!
//! An LSM program may refuse; the others only look. A BPF LSM program runs only while the verdict so far is 0, so 0 passes it
//! on.

use detector_common::{setting, watch};

use crate::{
    entry::key,
    kernel::Ptr,
    maps::{TRUSTED, offset, setting},
};

/// What the caller of a body can do about an act.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum May {
    /// An LSM program: refuse it.
    Deny,
    Look,
}

/// Whether the act of `task` on inodes with these watch flags is to be refused.
#[inline(always)]
pub fn denies(may: May, task: Ptr, watch: u32) -> bool {
    if may == May::Look || watch & (watch::FILE | watch::DIR) == 0 || setting(setting::DENY) == 0 {
        return false;
    }
    let exe = key(task.follow(offset!(task_mm)).follow(offset!(mm_exe_file)).follow(offset!(file_inode)));
    // SAFETY: the value is not looked at.
    unsafe { TRUSTED.get(exe) }.is_none()
}

/// What an LSM program returns: 0, or -EPERM, which is -1.
///
/// Verifiers since 6.12 want to see that it is an errno; of the negation that a compiler makes of a branch they cannot.
#[inline(always)]
pub fn verdict(denied: bool) -> i32 {
    let denied = u64::from(denied);
    let mut verdict: i64;
    // SAFETY: works on registers alone.
    unsafe {
        core::arch::asm!(
            "{1} &= 1",
            "{0} = 0",
            "{0} -= {1}",
            out(reg) verdict,
            inout(reg) denied => _,
            options(pure, nomem, nostack)
        );
    }
    verdict as i32
}

/// The first `N` arguments of an LSM or fentry program, untyped.
///
/// # Safety
/// `ctx` is the context of a program whose hook has at least `N` arguments.
#[inline(always)]
pub unsafe fn args<const N: usize>(ctx: *mut core::ffi::c_void) -> [Ptr; N] {
    // SAFETY: the context is an array of u64 arguments.
    core::array::from_fn(|n| Ptr(unsafe { *ctx.cast::<u64>().add(n) } as usize))
}

macro_rules! lsm {
    ($name:ident, $n:literal, $body:expr) => {
        #[aya_ebpf::macros::lsm]
        pub fn $name(ctx: aya_ebpf::programs::LsmContext) -> i32 {
            use aya_ebpf::EbpfContext as _;
            // SAFETY: the loader checks the prototype of the hook.
            let args = unsafe { $crate::security::args::<$n>(ctx.as_ptr()) };
            $crate::security::verdict(($body)(args, $crate::security::May::Deny))
        }
    };
}
pub(crate) use lsm;

macro_rules! probes {
    ($fentry:ident, $kprobe:ident, $n:literal, $body:expr) => {
        #[aya_ebpf::macros::fentry]
        pub fn $fentry(ctx: aya_ebpf::programs::FEntryContext) -> i32 {
            use aya_ebpf::EbpfContext as _;
            // SAFETY: the loader checks the prototype of the function.
            let args = unsafe { $crate::security::args::<$n>(ctx.as_ptr()) };
            ($body)(args, $crate::security::May::Look);
            0
        }

        #[aya_ebpf::macros::kprobe]
        pub fn $kprobe(ctx: aya_ebpf::programs::ProbeContext) -> u32 {
            let args: [$crate::kernel::Ptr; $n] =
                core::array::from_fn(|n| $crate::kernel::Ptr(ctx.arg(n).unwrap_or(0)));
            ($body)(args, $crate::security::May::Look);
            0
        }
    };
}
pub(crate) use probes;

/// The three wrappers of a hook whose function has the same arguments in the same places.
macro_rules! wrappers {
    ($lsm:ident, $fentry:ident, $kprobe:ident, $n:literal, $body:expr) => {
        $crate::security::lsm!($lsm, $n, $body);
        $crate::security::probes!($fentry, $kprobe, $n, $body);
    };
}
pub(crate) use wrappers;
