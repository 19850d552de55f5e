//! Files opened for writing, or mapped so that they can be written; secrets opened for reading.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, kprobe, lsm},
    programs::{FEntryContext, LsmContext, ProbeContext},
};
use detector_common::{DENIED, Open, hook, kind, scratch, setting, watch};

use crate::{
    emit::{self, Ring},
    kernel::{self, Detail, Ptr, Structure, Typed, current},
    maps::{SCRATCH_LEN, Scratch, offset, setting},
    path, secrets,
    security::{self, May},
    watched,
};

/// `file->f_mode`: opened for reading.
pub const FMODE_READ: u32 = 1 << 0;

/// `file->f_mode`: opened for writing.
pub const FMODE_WRITE: u32 = 1 << 1;

/// Who reports, and as what.
pub struct Reporter {
    pub kind: u16,
    pub hook: u16,
    pub syscall: u32,
}

/// Most components of a path that a security hook reports.
const STEPS: u32 = 12;

/// Reports a file that is watched, or lies in a watched directory. Returns whether the act is to be refused.
#[inline(always)]
pub fn report<const STEPS: u32>(
    task: Ptr,
    file: Ptr,
    mode: u32,
    scratch: *mut Scratch,
    by: &Reporter,
    may: May,
) -> bool {
    const BODY: usize = size_of::<Open>();
    let record = scratch.cast::<Open>();
    // A secret is reported whatever else it is. By a bit that no other kind here has, and not by a branch, each side of which the
    // verifier would follow.
    const BIT: u16 = 1 << 3;
    const { assert!(kind::READ & BIT != 0 && (kind::OPEN | kind::WRITE | kind::MAP) & BIT == 0) };
    let secret = u32::from(by.kind & BIT) * (watch::READ / BIT as u32);
    // SAFETY: `record` lies in a scratch slot.
    let Some(found) = (unsafe { watched::file(file, &raw mut (*record).watch, secret) }) else { return false };
    kernel::header(record.cast(), by.kind, by.hook, task, Detail::Full);
    // SAFETY: `record` lies in a scratch slot.
    let path = unsafe { path::Length::new(&raw mut (*record).path_len) };
    let mut flags = path::write::<STEPS>(file, scratch, BODY, path);
    let denied = by.kind != kind::READ && security::denies(may, task, found.watch);
    if denied {
        flags |= DENIED;
    }
    // SAFETY: the slot is longer than the body.
    unsafe {
        (*record).ino = found.key.ino;
        (*record).parent_ino = found.parent_ino;
        (*record).dev = found.key.dev;
        (*record).syscall = by.syscall;
        (*record).watch = found.watch;
        (*record).mode = mode;
        (*record).open_flags = file.read(offset!(file_flags));
        (*record).flags = flags;
        (*record).zero = [0; 6];
    }
    let hint = found.watch & !(watch::SUBTREE | watch::STORE) == 0;
    let ring = if hint { Ring::ContextNow } else { Ring::Alerting };
    emit::scratched(ring, by.hook, scratch, BODY + path.get());
    denied
}

/// `security_file_open(struct file *file)`, with this one argument since 4.19. The file is there and its mode is known;
/// nothing can have been read or written.
#[inline(always)]
fn opened(file: impl Structure, may: May) -> bool {
    // Runs for every open on the node.
    let mode: u32 = file.field(offset!(file_mode));
    let kind = if mode & FMODE_READ != 0 && setting(setting::READS) != 0 && secrets::is(file) {
        if !secrets::is_news(file) {
            return false;
        }
        kind::READ
    } else if mode & FMODE_WRITE != 0 {
        kind::OPEN
    } else {
        return false;
    };
    claimed(kind, hook::FILE_OPEN, scratch::FILE_OPEN, file.address(), mode, may)
}

/// Reports in a scratch slot that no other run of this hook writes to.
#[inline(always)]
fn claimed(kind: u16, hook: u16, first: u32, file: Ptr, mode: u32, may: May) -> bool {
    let Some(claim) = emit::claim(first) else {
        emit::lost(hook);
        return false;
    };
    // Through map memory: otherwise the verifier would follow all that comes behind for each kind.
    // SAFETY: the slot is longer than any record.
    let kind = unsafe {
        let way = claim.scratch.cast::<u8>().add(SCRATCH_LEN - size_of::<u64>()).cast::<u16>();
        core::ptr::write_volatile(way, kind);
        core::ptr::read_volatile(way)
    };
    let by = Reporter { kind, hook, syscall: u32::MAX };
    let denied = report::<STEPS>(current(), file, mode, claim.scratch, &by, may);
    emit::release(claim);
    denied
}

/// The `struct file *` of an LSM or fentry program, read directly.
#[inline(always)]
fn typed(ctx: *mut c_void) -> Typed {
    // SAFETY: the first argument of the hooked function is a `struct file *`.
    unsafe { Typed::new(*ctx.cast::<*const u8>()) }
}

#[lsm]
pub fn lsm_file_open(ctx: LsmContext) -> i32 {
    security::verdict(opened(typed(ctx.as_ptr()), May::Deny))
}

#[fentry]
pub fn fentry_file_open(ctx: FEntryContext) -> i32 {
    opened(typed(ctx.as_ptr()), May::Look);
    0
}

#[kprobe]
pub fn kprobe_file_open(ctx: ProbeContext) -> u32 {
    opened(Ptr(ctx.arg(0).unwrap_or(0)), May::Look);
    0
}

/// Maps a file so that others see what is written.
const MAP_SHARED: usize = 1;

#[inline(always)]
fn mapped(file: Ptr, flags: usize, may: May) -> bool {
    // MAP_SHARED_VALIDATE is 3; a private mapping is 2.
    if file.0 == 0 || flags & MAP_SHARED == 0 {
        return false;
    }
    let mode: u32 = file.read(offset!(file_mode));
    if mode & FMODE_WRITE == 0 {
        return false;
    }
    claimed(kind::MAP, hook::MMAP_FILE, scratch::MMAP_FILE, file, mode, may)
}

// `security_mmap_file(struct file *file, unsigned long prot, unsigned long flags)`; the LSM hook `mmap_file` has the
// protection twice, as asked for and as granted. Since 3.5.
security::lsm!(lsm_mmap_file, 4, |args: [Ptr; 4], may: May| mapped(args[0], args[3].0, may));
security::probes!(fentry_mmap_file, kprobe_mmap_file, 3, |args: [Ptr; 3], may: May| mapped(args[0], args[2].0, may));
