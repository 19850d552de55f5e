//! One body a behaviour, thin wrappers for each way to attach to the same security hook.
//!
//! An LSM program may refuse; the others only look. A BPF LSM program runs only while the verdict so far is 0, so 0 passes it
//! on.

use crate::kernel::Ptr;

/// What an LSM program says about an act on inodes with these watch flags: 0 lets it happen.
#[inline(always)]
pub fn verdict(_watch: u32) -> i32 {
    0
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
            $crate::security::verdict(($body)(args))
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
            ($body)(args);
            0
        }

        #[aya_ebpf::macros::kprobe]
        pub fn $kprobe(ctx: aya_ebpf::programs::ProbeContext) -> u32 {
            let args: [$crate::kernel::Ptr; $n] =
                core::array::from_fn(|n| $crate::kernel::Ptr(ctx.arg(n).unwrap_or(0)));
            ($body)(args);
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
