//! io_uring requests that can open a file or change a directory, on kernels that do not tell of inode changes.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use detector_common::{IoUring, hook, kind, setting};

use crate::{
    emit::{self, Ring},
    kernel::{Ptr, arg, current},
    maps::{offset, setting},
};

/// Bit set of `IORING_OP_*`: OPENAT 18, OPENAT2 28, RENAMEAT 35, UNLINKAT 36, MKDIRAT 37, SYMLINKAT 38, LINKAT 39,
/// FTRUNCATE 55.
const WANTED: u64 = 1 << 18 | 1 << 28 | 1 << 35 | 1 << 36 | 1 << 37 | 1 << 38 | 1 << 39 | 1 << 55;

/// `io_uring_submit_req(struct io_kiocb *req)`, since 6.4.
#[btf_tracepoint(function = "io_uring_submit_req")]
pub fn io_uring_submit(ctx: BtfTracePointContext) -> i32 {
    if setting(setting::PRECISE) != 0 {
        return 0;
    }
    let opcode: u8 = Ptr(arg(&ctx, 0)).read(offset!(kiocb_opcode));
    if opcode >= 64 || WANTED >> opcode & 1 == 0 {
        return 0;
    }
    emit::fixed(Ring::ContextNow, kind::IO_URING, hook::IO_URING_SUBMIT, current(), |record: *mut IoUring| {
        // SAFETY: `record` points to reserved ring-buffer memory.
        unsafe {
            (*record).opcode = u32::from(opcode);
            (*record).zero = 0;
        }
    });
    0
}
