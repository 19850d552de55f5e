//! Successful system calls that open for writing, or secrets for reading, name paths, mount, or complete a change.
//!
//! The hook runs at `sys_exit`: the kernel has done the thing, and its own structures say to what. A descriptor is
//! resolved through the task's file table to the real inode, so there is no window between check and use.

use aya_ebpf::{
    helpers::generated::{bpf_probe_read_user, bpf_probe_read_user_str},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use detector_common::{
    ARG_PATH_MAX, PathCall, hook, kind, scratch, setting, socket as socket_call,
    syscall::{self as class, TABLE, about},
    watch,
};

use crate::{
    bpf,
    emit::{self, Ring},
    kernel::{self, Detail, Ptr, arg, current, current_id, load},
    maps::{GUARD, SCRATCH_LEN, Scratch, Touch, argument_offset, masked, offset, setting, syscall_class},
    namespaces,
    open::{self, FMODE_READ, FMODE_WRITE, Reporter},
    ptrace, secrets,
    security::May,
    socket, watched,
};

const O_ACCMODE: u64 = 0o3;
const O_CREAT: u64 = 0o100;
const O_TRUNC: u64 = 0o1000;
/// The open made the file. Since 4.19.
const FMODE_CREATED: u32 = 1 << 20;
/// `thread_info.status`: the current system call is a 32-bit one.
const TS_COMPAT_BIT: u32 = 1;

/// `sys_exit(struct pt_regs *regs, long ret)`, since 2.6.30.
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    let ret = arg(&ctx, 1) as i64;
    if ret < 0 {
        return 0; // It failed: nothing happened.
    }
    let regs: *const u8 = ctx.arg(0);
    // SAFETY: the first argument is a `struct pt_regs *`.
    let number = unsafe { load::<u64>(regs, offset!(x86_regs_orig_ax)) } as usize & (TABLE - 1);
    let native = syscall_class(number);
    let compat = syscall_class(number + TABLE);
    if native | compat == class::NONE {
        return 0;
    }
    // In a program of its own, so that neither of the two is too long for the verifier. Comes back when it is not there.
    if (native | compat) & class::GUARD != 0 {
        // SAFETY: nothing here needs to be dropped.
        unsafe { GUARD.tail_call(&ctx, 0) };
        return 0;
    }
    // Most of a process's life: calls that matter only after a change, when nothing changed.
    let about = about_class(native) | about_class(compat);
    if u32::from(about) & setting(setting::MATTERS) == 0 && watched::touches() == 0 {
        return 0;
    }
    let secret = about & about::OPENS != 0 && is_secret(ret as u32);
    // The bulk: opens for reading only. The flags are the kernel's own copy of the register.
    if !secret && compat == class::NONE && (native == class::OPENAT || native == class::OPEN) {
        // SAFETY: as above.
        let flags = unsafe {
            if native == class::OPENAT {
                load::<u64>(regs, offset!(x86_regs_dx))
            } else {
                load::<u64>(regs, offset!(x86_regs_si))
            }
        };
        if flags & (O_ACCMODE | O_CREAT | O_TRUNC) == 0 {
            return 0;
        }
    }
    let Some(scratch) = emit::scratch(scratch::SYSCALL_PATHS) else { return 0 };
    let kind = kind::OPEN + u16::from(secret) * (kind::READ - kind::OPEN);
    // SAFETY: the slot is longer.
    unsafe { core::ptr::write_volatile(kind_in(scratch), kind) };
    dispatch(Ptr(regs as usize), ret, number, scratch);
    0
}

/// The same hook, called by the program above for calls on the agent's own objects, and on processes that are protected.
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit_guard(ctx: BtfTracePointContext) -> i32 {
    let regs = Ptr(arg(&ctx, 0));
    let number = regs.read::<u64>(offset!(x86_regs_orig_ax)) as usize & (TABLE - 1);
    let task = current();
    let compat = task.read::<u32>(offset!(task_ti_status)) >> TS_COMPAT_BIT & 1;
    let class = syscall_class(number + TABLE * compat as usize);
    let call = Call { regs, number: number as u32, class, compat };
    match class {
        class::BPF => bpf::called(task, call.arg(0), call.arg(1), arg(&ctx, 1) as u32),
        class::PTRACE => ptrace::called(task, Some(call.arg(0)), call.arg(1) as u32),
        class::VM_WRITE => ptrace::called(task, None, call.arg(0) as u32),
        class::CONNECT | class::SOCKET_CALL => {
            let args = [call.arg(0), call.arg(1), call.arg(2)];
            // `socketcall(3, {fd, ...})`. Of another call on that socket it is as true that it is connected.
            let (what, fd) = match class {
                class::CONNECT => (socket_call::CONNECT, args[0] as u32),
                _ => (socket_call::ANY, user_word(args[1]) as u32),
            };
            socket::connected(task, what, fd, args);
        }
        _ => {}
    }
    0
}

/// Whether the descriptor that an open gave is a secret's, and can be read from.
#[inline(always)]
fn is_secret(fd: u32) -> bool {
    if setting(setting::READS) & 2 == 0 {
        return false;
    }
    let file = kernel::file_of(current(), fd);
    file.read::<u32>(offset!(file_mode)) & FMODE_READ != 0 && secrets::is(file)
}

/// [`ABOUT`] a class.
#[inline(always)]
fn about_class(class: u8) -> u8 {
    // SAFETY: the mask keeps the index inside the table.
    unsafe { core::ptr::read_volatile((&raw const ABOUT).cast::<u8>().add(masked::<63>(u64::from(class)))) }
}

/// A system call on its way out.
struct Call {
    regs: Ptr,
    number: u32,
    class: u8,
    /// 1 for a 32-bit caller.
    compat: u32,
}

/// Most components of a path that is reported: fewer than elsewhere, for this program is the longest.
const STEPS: u32 = 6;

/// Number of an argument that there is none of.
const NONE: u8 = 4;

/// Which arguments of a class are paths. A table rather than a match: the verifier follows one path instead of each arm.
static PATH_ARGS: [[u8; 2]; 64] = {
    let mut args = [[NONE; 2]; 64];
    args[class::PATH as usize] = [0, NONE];
    args[class::PATHS as usize] = [0, 1];
    args[class::MOUNT as usize] = [0, 1];
    args[class::PATH_AT as usize] = [1, NONE];
    args[class::PATHS_AT as usize] = [1, 3];
    args[class::MOVE_MOUNT as usize] = [1, 3];
    args[class::SYMLINK_AT as usize] = [0, 2];
    args
};

/// Which argument of a class is a descriptor, or the flags of an open.
static NUMBER_ARG: [u8; 64] = {
    let mut args = [NONE; 64];
    args[class::OPEN as usize] = 1;
    args[class::OPENAT as usize] = 2;
    args[class::OPENAT2 as usize] = 2;
    args[class::WRITE_FD0 as usize] = 0;
    args[class::WRITE_FD2 as usize] = 2;
    args
};

impl Call {
    /// The `n`th argument, from 0 to 3; zero for [`NONE`].
    #[inline(always)]
    fn arg(&self, n: u8) -> u64 {
        let n = u32::from(n);
        let value: u64 = self.regs.read(argument_offset(self.compat << 2 | n & 3));
        value & u64::from(n >> 2).wrapping_sub(1)
    }

    /// The descriptor or the flags among the arguments.
    #[inline(always)]
    fn number_arg(&self) -> u64 {
        // SAFETY: the mask keeps the index inside the table.
        self.arg(unsafe {
            core::ptr::read_volatile((&raw const NUMBER_ARG).cast::<u8>().add(masked::<63>(u64::from(self.class))))
        })
    }

    /// The address of the `n`th path, 0 or 1; zero when there is none.
    #[inline(always)]
    fn path_arg(&self, n: u64) -> u64 {
        let at = masked::<127>(u64::from(self.class) * 2 + n);
        // SAFETY: the mask keeps the index inside the table.
        self.arg(unsafe { core::ptr::read_volatile((&raw const PATH_ARGS).cast::<u8>().add(at)) })
    }
}

/// What is done about a class ([`about`]): a look into a table is one path for the verifier, a comparison is two.
static ABOUT: [u8; 64] = {
    let mut of = [0; 64];
    let mut class = 0;
    while class < of.len() {
        of[class] = match class as u8 {
            class::OPEN | class::OPENAT | class::CREAT | class::OPENAT2 => about::OPENS,
            class::PATH | class::PATHS | class::PATH_AT | class::PATHS_AT | class::SYMLINK_AT => about::NAMES,
            class::MOUNT | class::MOVE_MOUNT => about::MOUNTS,
            class::WRITE_FD0 | class::WRITE_FD2 => about::WRITES,
            class::SOCKET | class::BIND => about::SOCKETS,
            class::NAMESPACES => about::NAMESPACES,
            _ => 0,
        };
        class += 1;
    }
    of
};

#[inline(always)]
fn dispatch(regs: Ptr, ret: i64, number: usize, scratch: *mut Scratch) {
    let task = current();
    let is_compat = task.read::<u32>(offset!(task_ti_status)) >> TS_COMPAT_BIT & 1;
    let class = syscall_class(number + TABLE * is_compat as usize);
    let about = about_class(class);
    let call = Call { regs, number: number as u32, class, compat: is_compat };
    // Where it is there for writes alone, security hooks see the rest.
    let all = setting(setting::WRITES_ONLY) == 0;
    // SAFETY: the slot is longer than the record and a touch behind it.
    let touch = unsafe {
        let touch = scratch.cast::<u8>().add(TOUCH_AT).cast::<Touch>();
        watched::take_touch(current_id(), touch);
        core::ptr::read_volatile(touch)
    };
    if about & (about::SOCKETS | about::NAMESPACES) != 0 {
        if !all {
            return;
        }
        if about & about::NAMESPACES != 0 {
            namespaces::report(task, task.follow(offset!(task_nsproxy)), hook::SYS_EXIT);
        } else if watched::sandbox() != 0 {
            socket::called(task, class, [call.arg(0), call.arg(1), call.arg(2)]);
        }
        return;
    }
    let changed = touch.watch & (watch::FILE | watch::DIR);
    // One call of each reporter: the verifier follows every call on its own.
    let tracked = about & about::WRITES != 0 && changed == 0 && setting(setting::TRACK_WRITES) != 0;
    if tracked || all && about & about::OPENS != 0 {
        // Through map memory, where an open's kind stands already: both go one way from here.
        // SAFETY: the slot is longer than the record and a touch behind it, and nobody needs that any more.
        let fd = unsafe {
            let way = scratch.cast::<u8>().add(TOUCH_AT).cast::<u32>();
            core::ptr::write_volatile(way, if tracked { call.number_arg() as u32 } else { ret as u32 });
            if tracked {
                core::ptr::write_volatile(kind_in(scratch), kind::WRITE);
            }
            core::ptr::read_volatile(way)
        };
        open(task, &call, scratch, fd);
        return;
    }
    let alerting = changed | u32::from(about & about::MOUNTS);
    let hint = about & about::NAMES != 0 && (touch.watch != 0 || setting(setting::PRECISE) == 0);
    if all && (alerting != 0 || hint) {
        paths(task, &call, scratch, touch, if alerting != 0 { Ring::Alerting } else { Ring::ContextNow });
    }
}

/// Where in its slot what a thread touched is kept: behind the longest record.
const TOUCH_AT: usize = SCRATCH_LEN - size_of::<Touch>();

/// Where before that it is kept what an open is to be reported as.
#[inline(always)]
fn kind_in(scratch: *mut Scratch) -> *mut u16 {
    // SAFETY: inside the slot.
    unsafe { scratch.cast::<u8>().add(TOUCH_AT - size_of::<u64>()).cast() }
}

/// Reports a descriptor whose file is watched: one just opened for writing, or one just written through; or that of a secret.
/// Which of them, stands in the slot of the path calls.
#[inline(always)]
fn open(task: Ptr, call: &Call, paths: *mut Scratch, fd: u32) {
    // SAFETY: inside the slot. Read twice: the verifier knows nothing of what it is after the first time.
    let kind = || unsafe { core::ptr::read_volatile(kind_in(paths)) };
    let file = kernel::file_of(task, fd);
    let mode: u32 = file.read(offset!(file_mode));
    if kind() == kind::READ {
        if !secrets::is_news(file) {
            return;
        }
    } else if mode & (FMODE_WRITE | FMODE_CREATED) == 0 {
        // Read-only and nothing made: only truncation is left, which is in the flags.
        let mut flags = call.number_arg();
        if call.class == class::OPENAT2 {
            flags = user_word(flags);
        }
        if flags & O_TRUNC == 0 {
            return;
        }
    }
    let Some(scratch) = emit::scratch(scratch::SYSCALL_OPEN) else { return };
    let by = Reporter { kind: kind(), hook: hook::SYS_EXIT, syscall: call.number };
    open::report::<STEPS>(task, file, mode, scratch, &by, May::Look);
}

/// Reports a call with the paths that it was given.
#[inline(always)]
fn paths(task: Ptr, call: &Call, scratch: *mut Scratch, touch: Touch, ring: Ring) {
    const BODY: usize = size_of::<PathCall>();
    let record = scratch.cast::<PathCall>();
    kernel::header(record.cast(), kind::PATH, hook::SYS_EXIT, task, Detail::Full);
    let first = user_path(call.path_arg(0), scratch.cast(), BODY);
    let second = user_path(call.path_arg(1), scratch.cast(), BODY + first);
    // SAFETY: the slot is longer than the body.
    unsafe {
        (*record).ino = touch.key.ino;
        (*record).dev = touch.key.dev;
        (*record).watch = touch.watch;
        (*record).syscall = call.number;
        (*record).class = u32::from(call.class);
        (*record).len = [first as u16, second as u16];
        (*record).compat = call.compat;
    }
    emit::scratched(ring, hook::SYS_EXIT, scratch, BODY + first + second);
}

/// The first word of what a pointer argument points to; zero when it cannot be read.
#[inline(always)]
fn user_word(address: u64) -> u64 {
    let mut word = 0_u64;
    // SAFETY: the helper checks the address and writes eight bytes in any case.
    unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, address as usize as *const _) };
    word
}

/// Copies a path from the caller's memory to `out` from `at` on. Returns its length with the NUL, 0 when it cannot be read.
#[inline(always)]
fn user_path(address: u64, out: *mut u8, at: usize) -> usize {
    let at = at & (SCRATCH_LEN / 2 - 1);
    // SAFETY: the mask keeps `at` in the lower half of the slot; the argument is shorter than the upper half.
    let read =
        unsafe { bpf_probe_read_user_str(out.add(at).cast(), ARG_PATH_MAX as u32, address as usize as *const _) };
    if read <= 0 { 0 } else { read as usize & (2 * ARG_PATH_MAX - 1) }
}
