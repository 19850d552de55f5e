//! Files opened for writing, or mapped so that they can be written.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, kprobe, lsm},
    programs::{FEntryContext, LsmContext, ProbeContext},
};
use detector_common::{DENIED, Open, hook, kind, scratch, watch};

use crate::{
    emit::{self, Ring},
    kernel::{self, Detail, Ptr, current, load},
    maps::{Scratch, offset},
    path,
    security::{self, May},
    watched,
};

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
    // SAFETY: `record` lies in a scratch slot.
    let Some(found) = (unsafe { watched::file(file, &raw mut (*record).watch) }) else { return false };
    kernel::header(record.cast(), by.kind, by.hook, task, Detail::Full);
    // SAFETY: `record` lies in a scratch slot.
    let path = unsafe { path::Length::new(&raw mut (*record).path_len) };
    let mut flags = path::write::<STEPS>(file, scratch, BODY, path);
    let denied = security::denies(may, task, found.watch);
    if denied {
        flags |= DENIED;
    }
    // SAFETY: the slot is longer than the body.
    unsafe {
        (*record).ino = found.key.ino;
        (*record).parent_ino = found.parent_ino;
        (*record).dev = found.key.dev;
        (*record).syscall = by.syscall;
        (*record).mode = mode;
        (*record).open_flags = file.read(offset!(file_flags));
        (*record).watch = found.watch;
        (*record).flags = flags;
        (*record).zero = [0; 6];
    }
    let hint = found.watch & !(watch::SUBTREE | watch::STORE) == 0;
    let ring = if hint { Ring::ContextNow } else { Ring::Alerting };
    emit::scratched(ring, by.hook, scratch, BODY + path.get());
    denied
}

/// `security_file_open(struct file *file)`, with this one argument since 4.19. The file is there and its mode is known;
/// nothing can have been written.
#[inline(always)]
fn opened(file: Ptr, mode: u32, may: May) -> bool {
    claimed(kind::OPEN, hook::FILE_OPEN, scratch::FILE_OPEN, file, mode, may)
}

/// Reports in a scratch slot that no other run of this hook writes to.
#[inline(always)]
fn claimed(kind: u16, hook: u16, first: u32, file: Ptr, mode: u32, may: May) -> bool {
    let Some(claim) = emit::claim(first) else {
        emit::lost(hook);
        return false;
    };
    let by = Reporter { kind, hook, syscall: u32::MAX };
    let denied = report::<STEPS>(current(), file, mode, claim.scratch, &by, may);
    emit::release(claim);
    denied
}

/// The mode of a BTF-typed argument, read directly: this runs for every open on the node.
#[inline(always)]
fn mode_of(ctx: *mut c_void) -> (Ptr, u32) {
    // SAFETY: the first argument of the hooked function is a `struct file *`.
    unsafe {
        let file = *ctx.cast::<*const u8>();
        (Ptr(file as usize), load(file, offset!(file_mode)))
    }
}

#[lsm]
pub fn lsm_file_open(ctx: LsmContext) -> i32 {
    let (file, mode) = mode_of(ctx.as_ptr());
    if mode & FMODE_WRITE == 0 { 0 } else { security::verdict(opened(file, mode, May::Deny)) }
}

#[fentry]
pub fn fentry_file_open(ctx: FEntryContext) -> i32 {
    let (file, mode) = mode_of(ctx.as_ptr());
    if mode & FMODE_WRITE != 0 {
        opened(file, mode, May::Look);
    }
    0
}

#[kprobe]
pub fn kprobe_file_open(ctx: ProbeContext) -> u32 {
    let file = Ptr(ctx.arg(0).unwrap_or(0));
    let mode = file.read(offset!(file_mode));
    if mode & FMODE_WRITE != 0 {
        opened(file, mode, May::Look);
    }
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
